"""Zip files of arrays (.npz and PyTorch's), whose directory is checked before decompression."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from models.weights.foreign import Damaged, check_size

_DEFLATE_RATIO = 1032  # maximum number of bytes per deflated byte
_CHUNK = 1 << 20


class Archive:
    """The members of an open zip file; `sizes` holds their decompressed sizes in bytes."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int):
        self._archive, self.sizes = archive, {}
        for member in archive.infolist():
            name, size, stored = member.filename, member.file_size, member.compress_size
            if not name.isprintable():
                raise Damaged(f"the name of a member is not printable: {name}")
            if name in self.sizes:
                raise Damaged(f"member '{name}' is in it twice")
            # No writer of arrays adds comments. If a length is damaged, later entries can be read as a comment.
            if member.comment:
                raise Damaged(f"member '{name}' has a comment")
            if member.flag_bits & 1:
                raise Damaged(f"member '{name}' is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Damaged(f"member '{name}' is compressed by method {member.compress_type}; allowed: none, deflate")
            most = stored if member.compress_type == zipfile.ZIP_STORED else _DEFLATE_RATIO * stored
            if size > most:
                raise Damaged(f"member '{name}' claims {size:,} bytes, which its {stored:,} cannot hold")
            self.sizes[name] = size
        if sum(member.compress_size for member in archive.infolist()) > file_size:
            raise Damaged(f"its members overlap, or are longer than its {file_size:,} bytes")
        check_size(sum(self.sizes.values()), file_size)

    @contextlib.contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a member for reading; its checksum is verified after the last byte."""
        with self._archive.open(name) as file:
            yield file

    def read(self, name: str) -> np.ndarray:
        """Reads the bytes of a member, uint8 and writable."""
        data = np.empty(self.sizes[name], np.uint8)
        with self.member(name) as file:
            fill(data, file)
        return data


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Archive]:
    """Opens a zip file and checks its directory."""
    with zipfile.ZipFile(path) as archive:
        yield Archive(archive, Path(path).stat().st_size)


def fill(data: np.ndarray, file: IO[bytes]) -> None:
    """Reads the rest of a member, which must be as long as the array, into a contiguous array."""
    view = data.view(np.uint8).data if data.size else memoryview(b"")
    position = 0
    while chunk := file.read(min(_CHUNK, len(view) - position + 1)):
        if position + len(chunk) > len(view):
            raise Damaged("a member is longer than the archive says")
        view[position : position + len(chunk)] = chunk
        position += len(chunk)
    if position != len(view):
        raise Damaged("a member is shorter than the archive says")

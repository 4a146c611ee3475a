"""Zip files of arrays (.npz, and PyTorch's), whose directory is checked before anything is decompressed."""

import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.weights.foreign import Damaged, check_size

_DEFLATE_RATIO = 1032  # bytes that one deflated byte can stand for
_CHUNK = 1 << 20


class Archive:
    """The members of an open zip file. `sizes` has the bytes of each when decompressed."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int):
        self._archive, self.sizes = archive, {}
        for member in archive.infolist():
            name, size, stored = member.filename, member.file_size, member.compress_size
            if not name.isprintable():
                raise Damaged(f"the name of a member is not printable: {name}")
            if name in self.sizes:
                raise Damaged(f"member '{name}' is in it twice")
            if member.comment:  # no writer of arrays has any; a damaged length makes one of the entries that follow
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
    def member(self, name: str) -> Iterator[zipfile.ZipExtFile]:
        """Opens a member for reading; the checksum is compared when its last byte is read."""
        with self._archive.open(name) as file:
            yield file

    def read(self, name: str) -> np.ndarray:
        """Returns the bytes of a member, uint8 and writable."""
        data = np.empty(self.sizes[name], np.uint8)
        with self.member(name) as file:
            fill(data, file)
        return data


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Archive]:
    """Opens a zip file and checks its directory."""
    with zipfile.ZipFile(path) as archive:
        yield Archive(archive, Path(path).stat().st_size)


def fill(data: np.ndarray, file: zipfile.ZipExtFile) -> None:
    """Reads the rest of a member, which must be as long as the array, into the contiguous array."""
    view = memoryview(data.view(np.uint8)) if data.size else memoryview(b"")
    place = 0
    while chunk := file.read(min(_CHUNK, len(view) - place + 1)):
        if place + len(chunk) > len(view):
            raise Damaged("a member is longer than the archive says")
        view[place : place + len(chunk)] = chunk
        place += len(chunk)
    if place != len(view):
        raise Damaged("a member is shorter than the archive says")

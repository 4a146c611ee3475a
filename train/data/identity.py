"""Digests of data sets: all bytes of arrays; names, sizes and a sample of the bytes of files."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 64  # evenly spaced files or examples whose content enters the digest
EDGE = 1 << 16  # bytes at each end of such a file
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CHUNK = 1 << 24  # bytes of an array to hash at once


class Digest:
    """The SHA-256 of a sequence of values (1.9 GB/s on an AMD EPYC core)."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, *values: Any) -> "Digest":
        """Adds bytes as they are, and any other value by its `repr`; returns itself."""
        for value in values:
            self._digest.update(value if isinstance(value, bytes) else repr(value).encode())
            self._digest.update(b"\0")
        return self

    def add_array(self, array: np.ndarray) -> "Digest":
        """Adds dtype, shape and all elements; copies only a few rows at a time. Returns itself."""
        self.add(str(array.dtype), array.shape)
        rows = max(1, _CHUNK // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            block = np.ascontiguousarray(array[start : start + rows]).reshape(-1)
            self._digest.update(block.view(np.uint8).data)
        return self

    def add_file(self, path: str | Path) -> "Digest":
        """Adds the size and the first and last EDGE bytes of a file, or the error that reading it raises."""
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                self.add(size)
                for start in (0, max(0, size - EDGE)):
                    file.seek(start)
                    self.add(file.read(EDGE))
        except OSError as error:  # decoding reports the file, or skips it
            self.add(error.errno)
        return self

    def hexdigest(self) -> str:
        """Returns the digest of the values added so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()

    def short(self) -> str:
        """Returns the first 16 digits of `hexdigest`, for people to compare."""
        return self.hexdigest()[:16]


def sample(count: int) -> list[int]:
    """Returns SAMPLES evenly spaced numbers below `count`, with the first and the last, or all if there are fewer."""
    return np.unique(np.linspace(0, count - 1, min(SAMPLES, count)).astype(int)).tolist() if count else []


def of_files(root: str | Path, names: Sequence[str]) -> str:
    """Returns a digest of the files `names` below `root`, or anywhere if they are absolute.

    It covers all names and sizes, and the first and last EDGE bytes of a sample of SAMPLES files. So it misses a change
    of other bytes that leaves the size as it is.

    A million files take 3 s where the system has their sizes cached (800,000 took 2.2 s on an AMD EPYC, ext4).
    """
    digest, root = Digest(), os.fspath(root)
    for name in names:
        try:
            size = os.stat(os.path.join(root, name)).st_size
        except OSError:  # the file has just disappeared; decoding will report it
            size = None
        digest.add(name_bytes(name), size)
    for index in sample(len(names)):
        digest.add_file(os.path.join(root, names[index]))
    return digest.short()


def of_texts(texts: Iterable[str]) -> str:
    """Returns a digest of a sequence of texts."""
    return Digest().add(*texts).short()


def name_bytes(name: str) -> bytes:
    """Returns the bytes of a file's name, which need not be UTF-8.

    They are the same for all Unicode normalizations, since macOS changes the normalization of names.
    """
    return os.fsencode(name if name.isascii() else unicodedata.normalize("NFC", name))


def shown(name: str) -> str:
    """Returns a file's name as text that can be printed in one line and encoded as UTF-8.

    It has the Unicode normalization NFC. Control characters and bytes that are not UTF-8 become backslash escapes.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)

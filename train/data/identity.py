"""Digests of data sets: of arrays by all bytes, of files by names, sizes and a sample of bytes."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 64  # files or examples, evenly spaced, whose content counts
EDGE = 1 << 16  # bytes at each end of such a file
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CHUNK = 1 << 24  # bytes of an array that are hashed at once


class Digest:
    """A SHA-256 of values one after another (1.9 GB/s on an AMD EPYC core)."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, *values: Any) -> "Digest":
        """Adds bytes as they are, of anything else its `repr`; returns itself."""
        for value in values:
            self._digest.update(value if isinstance(value, bytes) else repr(value).encode())
            self._digest.update(b"\0")
        return self

    def add_array(self, array: np.ndarray) -> "Digest":
        """Adds dtype, shape and all elements, copying no more than a few rows at a time."""
        self.add(str(array.dtype), array.shape)
        rows = max(1, _CHUNK // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            self._digest.update(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8))
        return self

    def add_file(self, path: str | Path) -> "Digest":
        """Adds size, first and last EDGE bytes of a file, or why it cannot be read."""
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                self.add(size)
                for start in (0, max(0, size - EDGE)):
                    file.seek(start)
                    self.add(file.read(EDGE))
        except OSError as error:  # decoding says so, or skips it
            self.add(error.errno)
        return self

    def hexdigest(self) -> str:
        """Returns the digest of what was added so far."""
        return self._digest.hexdigest()

    def short(self) -> str:
        """Returns the first 64 bits of it, for people."""
        return self.hexdigest()[:16]


def sample(count: int) -> list[int]:
    """Returns SAMPLES evenly spaced numbers below `count`, among them the first and the last, or all if these are
    fewer.
    """
    return np.unique(np.linspace(0, count - 1, min(SAMPLES, count)).astype(int)).tolist() if count else []


def of_files(root: str | Path, names: Sequence[str]) -> str:
    """Returns a digest of files below `root`: all names and sizes, and of a sample of SAMPLES the first and last EDGE
    bytes. So a change of other bytes that leaves the size as it is goes unseen.

    A million files take 3 s where the system knows their sizes already (800,000 took 2.2 s on an AMD EPYC, ext4).
    """
    digest, root = Digest(), os.fspath(root)
    for name in names:
        try:
            size = os.stat(f"{root}/{name}").st_size
        except OSError:  # it was there a moment ago; decoding will say so
            size = None
        digest.add(name_bytes(name), size)
    for index in sample(len(names)):
        digest.add_file(f"{root}/{names[index]}")
    return digest.short()


def of_texts(texts: Iterable[str]) -> str:
    """Returns a digest of texts in their order."""
    return Digest().add(*texts).short()


def name_bytes(name: str) -> bytes:
    """Returns the bytes of a file's name, the same for all Unicode normalizations (macOS changes them), also of one
    that is not UTF-8.
    """
    return os.fsencode(name if name.isascii() else unicodedata.normalize("NFC", name))


def shown(name: str) -> str:
    """Returns a file's name as text that can be printed in one line and written: in the Unicode normalization NFC, with
    backslashes for control characters and for bytes that are not UTF-8.
    """
    text = unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

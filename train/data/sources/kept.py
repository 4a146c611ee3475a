"""Indexes of large data sets, kept in the machine's cache, so that a set is searched once and then opens at once."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from models.errors import UserError
from models.kernels import runtime
from models.weights import npz
from train.data.identity import Digest, name_bytes

VERSION = 1  # of what the arrays mean; another one makes all indexes anew
LEAST = 4096  # entries; smaller sets are searched each time
_STAMP = "stamp"

Arrays = dict[str, np.ndarray]


def kept(kind: str, files: Sequence[str | Path], build: Callable[[], Arrays], least: int | None = None) -> Arrays:
    """Returns the index of some files: the kept one if all files have the size and time they had then, else a new one.

    A cache that cannot be written or is damaged only costs the time of building the index again.

    Args:
      kind: what the index holds; indexes of other kinds are kept apart.
      files: the files that the index describes.
      build: makes the index; the first array has one row per entry.
      least: entries from which an index is kept; None for LEAST.

    Raises:
      UserError: a file cannot be read, or as `build` does.
    """
    path, stamp = _place(kind, files), _stamp(files)
    with contextlib.suppress(UserError), npz.opened(path) as arrays:
        if arrays[_STAMP].tobytes() == stamp:
            return {name: arrays[name] for name in arrays if name != _STAMP}
    index = build()
    if len(next(iter(index.values()))) >= (LEAST if least is None else least) and _stamp(files) == stamp:
        _write(path, {_STAMP: np.frombuffer(stamp, np.uint8), **index})
    return index


def _place(kind: str, files: Sequence[str | Path]) -> Path:
    digest = Digest().add(kind, VERSION)
    for file in files:
        digest.add(name_bytes(os.path.abspath(file)))
    return runtime.cache_folder() / "indexes" / f"{kind}-{digest.hexdigest()[:24]}.npz"


def _stamp(files: Sequence[str | Path]) -> bytes:
    """Returns bytes that differ once a file changes its size or its time."""
    digest = Digest()
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
        digest.add(status.st_size, status.st_mtime_ns, status.st_ino)
    return digest.hexdigest().encode()


def _write(path: Path, arrays: Arrays) -> None:
    """Writes an index atomically, or not at all if the disk is full or the folder cannot be written."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, allow_pickle=False, **arrays)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()

"""Reader of NumPy's archives of arrays (.npz), which compares headers with the size of the data."""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping

import numpy as np

from models.weights import archive
from models.weights.archive import Archive
from models.weights.foreign import Damaged, reading

_END = ".npy"
# Version 3 differs only in the field names of structured types, which are refused.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_KINDS = "fiubcUS"  # allowed kinds of types, without objects, records and times


class Arrays(Mapping):
    """The arrays of an open .npz file by name, which are read on access."""

    def __init__(self, members: Archive):
        others = [name for name in members.sizes if not name.endswith(_END)]
        if others:
            raise Damaged(f"member '{others[0]}' is no {_END} array")
        self._members = members

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(_END) for name in self._members.sizes)

    def __len__(self) -> int:
        return len(self._members.sizes)

    def __getitem__(self, name: str) -> np.ndarray:
        member = f"{name}{_END}"
        size = self._members.sizes[member]
        with self._members.member(member) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise Damaged(f"'{name}' has version {version} of the format; allowed: 1.0, 2.0")
            shape, columns_first, dtype = _HEADERS[version](file)
            if dtype.kind not in _KINDS or dtype.subdtype or not dtype.itemsize:
                raise Damaged(f"'{name}' holds no plain numbers but {dtype}")
            if not all(type(length) is int and length >= 0 for length in shape):
                raise Damaged(f"'{name}' has the shape {shape}")
            count = math.prod(shape)
            if count * dtype.itemsize != size - file.tell():
                raise Damaged(f"'{name}' has {size - file.tell():,} bytes, not those of {dtype} {list(shape)}")
            array = np.empty(count, dtype)
            archive.fill(array, file)
        return array.reshape(shape, order="F" if columns_first else "C")


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Arrays]:
    """Opens a .npz file; raises a UserError of one line if it, or an array read in the block, is damaged."""
    with reading(path, ".npz"), archive.opened(path) as members:
        yield Arrays(members)

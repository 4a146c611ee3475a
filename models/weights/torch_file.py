"""Reader of PyTorch's checkpoints (torch.save) without PyTorch: zip archives, and files of PyTorch before 1.6.

A zip archive has TOP/data.pkl, a pickle whose tensors refer to storages, and TOP/data/KEY, the bytes of the storages.
An older file is a sequence of pickles (a magic number, a version, the system, the value, the keys of storages) and, for
each key, the count of numbers in eight bytes and the numbers. Nothing in the file is executed. The shapes of tensors
are compared with their storage, and the sizes of storages with the file.
"""

import functools
import io
import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from models.weights import archive, pickles, unwrap
from models.weights.foreign import Damaged, check_size
from models.weights.unwrap import Opaque

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_ZIP = b"PK\3\4"
# Types by the names of storage classes (torch.FloatStorage), and by the names of types (torch.uint16).
_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
    "_UntypedStorage": np.uint8,
}
_TYPES = {"uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64}
_PLAIN = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")


class Storage(NamedTuple):
    """Numbers that tensors are views of; `read` returns their bytes, uint8."""

    dtype: np.dtype | None
    kind: str
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (replaces tuple.count, which nothing calls)
    read: Callable[[], np.ndarray]


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """Reads the numbers, after comparing their positions with the length of the storage."""
        ends = [(length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True)]
        numbers = self.storage.read().view(self.dtype)
        if all(self.shape) and self.offset + sum(ends) >= len(numbers):
            raise Damaged(f"a tensor {list(self.shape)} is beyond its storage of {len(numbers):,} numbers")
        strides = [stride * self.dtype.itemsize for stride in self.strides] if all(self.shape) else None
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)
        return np.ascontiguousarray(view).reshape(self.shape)


class Unusable(NamedTuple):
    """A tensor that NumPy cannot represent: sparse, quantized, nested, or with 8-bit floats."""

    what: str
    shape: None = None


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of a checkpoint by name, at any level of nesting; see unwrap.state.

    Raises:
      Damaged: The file has another format, or does not hold arrays. Damaged bytes may also raise any other exception.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _arrays(_old(content), size)
    with archive.opened(path) as members:
        return _arrays(_new(members), size)


def _arrays(tree: Any, size: int) -> dict[str, np.ndarray]:
    tensors = unwrap.state(tree)
    for name, tensor in tensors.items():
        if isinstance(tensor, Unusable):
            raise Damaged(f"'{name}' is no plain array ({tensor.what})")
    check_size(sum(tensor.nbytes for tensor in tensors.values()), size)
    return {name: tensor.array() for name, tensor in tensors.items()}


def _new(members: archive.Archive) -> Any:
    """Returns the value in a zip archive."""
    pickled = [name for name in members.sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise Damaged("damaged, or not a PyTorch file: a zip archive without one TOP/data.pkl")
    top = pickled[0].removesuffix("data.pkl")
    if f"{top}constants.pkl" in members.sizes:
        raise Damaged("it is a TorchScript program; save its state_dict alone")
    if f"{top}byteorder" in members.sizes and members.read(f"{top}byteorder").tobytes() != b"little":
        raise Damaged("its numbers are big-endian")
    content = functools.cache(members.read)

    def persistent(pid: Any) -> Storage:
        kind, key, count = _reference(pid, 5)
        storage = Storage(_dtype(kind), kind, count, lambda: content(member))
        member = f"{top}data/{key}"
        if storage.dtype and members.sizes.get(member) != count * storage.dtype.itemsize:
            raise Damaged(f"its storage {key} of {count:,} numbers ({kind}) has {members.sizes.get(member, 0):,} bytes")
        return storage

    return pickles.load(io.BytesIO(members.read(pickled[0]).data), _build, persistent)


def _old(file: mmap.mmap) -> Any:
    """Returns the value in a file of PyTorch before 1.6."""
    contents: dict[str, np.ndarray] = {}
    kinds: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        kind, key, count = _reference(pid, 6)
        if pid[5] is not None:
            raise Damaged("its storages are views of others; save it with a newer PyTorch")
        return kinds.setdefault(key, Storage(_dtype(kind), kind, count, lambda: contents[key]))

    def following() -> Any:
        return pickles.load(cast(IO[bytes], file), _build, persistent)  # mmap has the methods that pickletools uses

    if following() != _MAGIC or following() != _PROTOCOL:
        raise Damaged("damaged, or not a PyTorch file")
    system = following()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Damaged("its numbers are big-endian")
    tree, keys = following(), following()
    for key in keys:
        storage = kinds[key]
        if storage.dtype is None:
            raise Damaged(f"it holds numbers of {storage.kind}")
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count or count * storage.dtype.itemsize > len(file) - file.tell():
            raise Damaged(f"its storage {key} has {count:,} numbers, not {storage.count:,}, or is cut")
        contents[key] = np.frombuffer(bytearray(file.read(count * storage.dtype.itemsize)), np.uint8)
    if file.read(1):
        raise Damaged("bytes after the last storage")
    return tree


def _reference(pid: Any, length: int) -> tuple[str, str, int]:
    """Returns the kind, the key, and the count of numbers of a storage that a pickle refers to."""
    if not isinstance(pid, tuple) or len(pid) != length or pid[0] != "storage":
        raise Damaged("a reference to something other than a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    if not isinstance(kind, pickles.Global) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise Damaged("a reference to a storage without kind, key and count")
    return kind.name.rpartition(".")[2], key, count


def _dtype(kind: str) -> np.dtype | None:
    return np.dtype(_STORAGES[kind]) if kind in _STORAGES else None


def _build(name: str, arguments: tuple) -> Any:
    """Replaces the functions and classes that pickles of tensors name; other objects stay opaque."""
    if name in _PLAIN:
        return _tensor(name, *arguments)
    if name in _PARAMETERS:
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        function, _, inner, _ = arguments
        return _build(function.name, inner)
    if name.startswith("torch._utils._rebuild_"):
        return Unusable(name.rpartition(".")[2].removeprefix("_rebuild_"))
    if name in _DICTIONARIES:
        return _dictionary(arguments)
    if name == "torch.Size" and len(arguments) == 1:
        return tuple(arguments[0])
    return Opaque(name)


def _dictionary(arguments: tuple) -> Any:
    """Returns a dictionary, which is created empty, or from [name, value] pairs as in Python 2."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise Damaged("a dictionary of other than pairs")
    return dict(pairs)


def _tensor(name: str, storage: Any, offset: int, shape: tuple, strides: tuple, *rest: Any) -> Tensor | Unusable:
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise Damaged("a tensor without a storage, shape and strides")
    if not all(type(number) is int and number >= 0 for number in (offset, *shape, *strides)):
        raise Damaged("the places of a tensor's numbers are no whole numbers")
    dtype, kind, options = storage.dtype, storage.kind, rest[2:]
    if name.endswith("_v3"):
        kind = getattr(options[0], "name", "").rpartition(".")[2]
        dtype, options = np.dtype(_TYPES[kind]) if kind in _TYPES else None, options[1:]
    if dtype is None or any(options):
        return Unusable(f"its numbers are {kind}" if dtype is None else "conjugated or negated")
    return Tensor(storage, dtype, offset, shape, strides)

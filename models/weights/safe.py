"""Hugging Face's .safetensors files: the length of a JSON header, the header, and the bytes of the arrays.

https://github.com/huggingface/safetensors#format: no holes, no overlaps, offsets count from the header's end.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.weights.foreign import Damaged

MOST_HEADER = 100_000_000  # bytes, as in the format's own reader
_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.dtype(jnp.bfloat16), "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16,
    "U8": np.uint8, "BOOL": np.bool_, "C64": np.complex64,
}


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the texts that a file has beside its arrays."""
    return _header(Path(path))[1]


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays by name. Raises Damaged, or whatever JSON raises."""
    path = Path(path)
    arrays, _, start = _header(path)
    size, place = path.stat().st_size - start, 0
    for name, entry in sorted(arrays.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        if entry["dtype"] not in _TYPES:
            raise Damaged(f"'{name}' holds {entry['dtype']}, which is not read here; allowed: {', '.join(_TYPES)}")
        if first != place or last - first != math.prod(shape) * np.dtype(_TYPES[entry["dtype"]]).itemsize:
            raise Damaged(f"'{name}' takes the bytes {first:,} to {last:,}, which {entry['dtype']} {shape} after byte "
                          f"{place:,} does not")
        place = last
    if place != size:
        raise Damaged(f"it has {size:,} bytes of arrays, its header says {place:,}")
    data = np.fromfile(path, np.uint8, offset=start)
    return {name: data[slice(*entry["data_offsets"])].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in arrays.items()}


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """The entries of the arrays, the metadata, and where the arrays' bytes begin."""
    with path.open("rb") as file:
        first, size = file.read(8), path.stat().st_size
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(size - 8, MOST_HEADER):
            raise Damaged(f"damaged, or no .safetensors file: a header of {length:,} bytes in a file of {size:,}")
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise Damaged("its header is no JSON object")
    texts = header.pop("__metadata__", None) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise Damaged("its metadata are no texts by name")
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Damaged(f"'{name}' has no dtype, shape and data_offsets")
        numbers, offsets = entry["shape"], entry["data_offsets"]
        if (not isinstance(entry["dtype"], str) or not _are_counts(numbers) or not _are_counts(offsets)
                or len(offsets) != 2):
            raise Damaged(f"'{name}' has a dtype, a shape or offsets of another type")
    return header, texts, 8 + length


def _are_counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise Damaged("its header has a name twice")
    return entries

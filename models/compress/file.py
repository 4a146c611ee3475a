"""Compressed networks in files of packed.py: name, fields and variables, without loss."""

import collections
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import models
from models import weights
from models.compress import packed
from models.compress.huffman import Damaged
from models.errors import UserError
from models.kernels.tracing import lowering

SUFFIX = ".ablate"
MOST = 1 << 16  # maximum of a number in a network's fields
# Maxima of the fields whose square or fourth power is the size of a constant table
MOSTS = {"image_size": 1024, "width": 8192, "window": 32, "stage_sizes": 1000, "depth": 1000}
_MODULES_OF_ARRAY, _MODULES = 50, 50_000  # maximum module calls per array of a file, and in total


def dump(name: str, fields: Mapping[str, Any], variables: Mapping[str, Any], inputs: Sequence[int] = ()) -> bytes:
    """Returns the bytes of a file.

    Args:
      name: Name of the network, in models.list_models().
      fields: Fields for `models.create` that JSON can represent.
      variables: Variables, as from `models.initialize`.
      inputs: Shape [1, H, W, C] of an image; () uses the network's own example.
    """
    arrays = {path: np.asarray(array, np.float32) for path, array in weights.flatten(variables).items()}
    return packed.pack({"model": name, "fields": dict(fields), "inputs": list(inputs)}, arrays)


def read(path: str | Path) -> bytes:
    """Reads the bytes of a file; raises UserError if it is missing or damaged."""
    path = Path(path)
    try:
        data = path.read_bytes()
        packed.description(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Damaged as error:
        raise UserError(f"{path}: {error}") from None
    return data


def description(data: bytes) -> dict[str, Any]:
    """Returns {"model": name, "fields", "inputs"} of the bytes of a file."""
    return packed.description(data)


def load(data: bytes, where: str | Path = "the file") -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a file and its variables.

    Nothing is computed unless the network's arrays are those that the file lists.

    Args:
      data: Bytes of the file.
      where: Path of the file, for errors.

    Raises:
      UserError: The file is damaged, or its network is unknown.
    """
    try:
        model, drawn = _network(packed.description(data), len(packed.contents(data)))
        arrays = packed.unpack(data, {path: leaf.shape for path, leaf in weights.flatten(drawn).items()})
    except (Damaged, UserError) as error:
        raise UserError(f"{where}: {error}") from None
    except MemoryError:
        raise UserError(f"{where}: there is not enough memory for its network") from None
    return model, weights.from_arrays(model, arrays, "ablate", drawn=drawn)


def table(data: bytes, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Breaks down the bytes of a file by array.

    Each array with at least two axes has a row. Two further rows sum up all other arrays, and the header and checksum.

    Args:
      data: Bytes of the file.
      variables: Variables from `load`.

    Returns:
      {"name", "weights", "kept" (nonzero weights), "entries" (these and fillers), "values" (in the codebook),
      "index_bits" (of an index into it), "index_coded" (bits per entry after Huffman coding), "jump_bits",
      "jump_coded", "bytes", "float32" (bytes of the weights in float32), "parts" ({part: bytes})}; None where an array
      has no such number.
    """
    arrays, large, small = weights.flatten(variables), [], []
    for name, entry in packed.contents(data).items():
        (small if arrays[name].ndim < 2 else large).append(_row(name, arrays[name], entry))
    parts: collections.Counter[str] = collections.Counter()
    for row in small:
        parts += collections.Counter(row["parts"])
    blank = dict.fromkeys(("entries", "values", "index_bits", "index_coded", "jump_bits", "jump_coded"))
    sums = {key: sum(row[key] for row in small) for key in ("weights", "kept", "bytes", "float32")}
    others = {**blank, "name": "biases, norms", **sums, "parts": dict(parts)}
    framing = len(data) - sum(row["bytes"] for row in (*large, others))
    rest = {"name": "header, checksum", "weights": 0, "kept": 0, "bytes": framing, "float32": 0}
    return [*large, others, {**blank, **rest, "parts": {"header": framing}}]


def _row(name: str, array: np.ndarray, entry: packed.Packed) -> dict[str, Any]:
    """Returns the row of `table` for an array."""
    parts = {part: size for part, size in entry.parts.items() if size}
    nonzero = int(np.count_nonzero(array))
    values = {"shared": parts.get("codebook", 0) // 4, "signs": 2}.get(entry.encoding)
    symbols = values and values + (entry.entries > nonzero)  # zeros and fillers share one more symbol
    coded = {part: 8 * parts.get(part, 0) / max(entry.entries, 1) for part in ("indices", "signs", "jumps")}
    return {
        "name": name,
        "weights": array.size,
        "kept": nonzero,
        "entries": entry.entries,
        "bytes": sum(parts.values()),
        "float32": 4 * array.size,
        "parts": parts,
        "values": values,
        "index_bits": symbols and max(1, math.ceil(math.log2(symbols))),
        "index_coded": values and (coded["signs"] or coded["indices"]),
        "jump_bits": entry.jump_bits or None,
        "jump_coded": coded["jumps"] if entry.jump_bits else None,
    }


def rows(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Formats `table` with a row of totals, like tables 2 to 5 of Han 2016.

    The columns are name, weights, fraction kept, bits of an index and of a jump before / after Huffman coding, bytes,
    and bytes as a fraction of float32's.
    """

    def bits(row, part):
        return f"{row[f'{part}_bits']} / {row[f'{part}_coded']:.1f}" if row.get(f"{part}_bits") else ""

    total = {key: sum(row[key] for row in layers) for key in ("weights", "kept", "bytes", "float32")}
    return [
        [
            row["name"].removesuffix("/kernel"),
            f"{row['weights']:,}",
            f"{row['kept'] / row['weights']:.1%}" if row["weights"] else "",
            bits(row, "index"),
            bits(row, "jump"),
            f"{row['bytes']:,}",
            f"{row['bytes'] / row['float32']:.2%}" if row["float32"] else "",
        ]
        for row in (*layers, {"name": "total", **total})
    ]


def _network(description: Mapping[str, Any], count: int) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a header and the shapes of its variables, of which `count` are expected."""
    called = 0

    def bounded(call, args, kwargs, context):
        nonlocal called
        called += 1
        if called > min(_MODULES_OF_ARRAY * (count + 1), _MODULES):
            raise Damaged("its network has far more layers than the file")
        return call(*args, **kwargs)

    try:
        name, fields = description["model"], _checked(description["fields"])
        inputs = _checked(description["inputs"])
        with lowering("plain"), nn.intercept_methods(bounded):
            model = models.create(name, **fields)  # traces networks with `widths`
            inputs = models.abstract(inputs) if inputs else model.example()
            variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    except (Damaged, UserError):
        raise
    except Exception as error:  # a model's code may fail in any way on damaged fields
        raise Damaged(f"its network cannot be created: {type(error).__name__} {error}".splitlines()[0]) from None
    return model, dict(variables)


def _checked(value: Any, depth: int = 0, most: int = MOST) -> Any:
    """Converts lists in fields from JSON to tuples; raises Damaged for numbers and lists that are too large."""
    if isinstance(value, dict) and not depth:
        return {str(name): _checked(field, 1, MOSTS.get(name, MOST)) for name, field in value.items()}
    if isinstance(value, list) and len(value) <= 10_000 and depth < 4:
        return tuple(_checked(element, depth + 1, most) for element in value)
    if value is None or isinstance(value, (str, bool)) or (isinstance(value, (int, float)) and abs(value) <= most):
        return value
    raise Damaged(f"a field of its network is {str(value)[:40]}")

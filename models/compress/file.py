"""Networks in the files of packed.py: name, fields and variables, as they were to the bit."""

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
MOST = 1 << 16  # of a number in a network's fields
# Of those whose square or fourth power is the size of a constant table
MOSTS = {"image_size": 1024, "width": 8192, "window": 32, "stage_sizes": 1000, "depth": 1000}
_MODULES_OF_ARRAY, _MODULES = 50, 50_000  # called modules, above which the network of a file is not its own


def dump(name: str, fields: Mapping[str, Any], variables: Mapping[str, Any], inputs: Sequence[int] = ()) -> bytes:
    """The bytes of a file.

    Args:
      name: of the network, in models.names().
      fields: for `models.create`, what JSON can hold.
      variables: as `models.initialize` gives them.
      inputs: shape [1, H, W, C] of an image; () for the network's own example.
    """
    arrays = {path: np.asarray(array, np.float32) for path, array in weights.flatten(variables).items()}
    return packed.pack({"model": name, "fields": dict(fields), "inputs": list(inputs)}, arrays)


def read(path: str | Path) -> bytes:
    """The bytes of a file; UserError where there is none, or it is damaged."""
    path = Path(path)
    try:
        data = path.read_bytes()
        packed.about(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Damaged as error:
        raise UserError(f"{path}: {error}") from None
    return data


def about(data: bytes) -> dict[str, Any]:
    """{"model": name, "fields", "inputs"} of a file that `read` has read."""
    return packed.about(data)


def load(data: bytes, where: str | Path = "the file") -> tuple[nn.Module, dict[str, Any]]:
    """The network of a file, and its variables.

    Nothing is computed for the network before its arrays are those that the file lists.

    Args:
      data: of the file.
      where: its path, for errors.

    Raises:
      UserError: damaged, or its network is unknown here.
    """
    try:
        model, drawn = _network(packed.about(data), len(packed.contents(data)))
        arrays = packed.unpack(data, {path: leaf.shape for path, leaf in weights.flatten(drawn).items()})
    except (Damaged, UserError) as error:
        raise UserError(f"{where}: {error}") from None
    except MemoryError:
        raise UserError(f"{where}: there is not the memory for its network") from None
    return model, weights.from_arrays(model, arrays, "ablate", drawn=drawn)


def table(data: bytes, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the bytes of a file are spent, a row an array of two axes or more; then all others, and what frames them.

    Args:
      data: of the file.
      variables: what `load` made of it.

    Returns:
      {"name", "weights", "kept" (not 0), "entries" (those and fillers), "values" (of the codebook), "index_bits" (of an
      index into it), "index_coded" (after Huffman, an entry), "jump_bits", "jump_coded", "bytes", "float32" (bytes that
      the weights would take), "parts" ({part: bytes})}; None where an array has no such thing.
    """
    found, others = [], {"name": "biases, norms", "weights": 0, "kept": 0, "bytes": 0, "float32": 0, "parts": {}}
    arrays = weights.flatten(variables)
    for name, one in packed.contents(data).items():
        array, parts = arrays[name], {part: size for part, size in one.parts.items() if size}
        row = {
            "name": name,
            "weights": array.size,
            "kept": int(np.count_nonzero(array)),
            "entries": one.entries,
            "bytes": sum(parts.values()),
            "float32": 4 * array.size,
            "parts": parts,
        }
        if array.ndim < 2:
            for key in ("weights", "kept", "bytes", "float32"):
                others[key] += row[key]
            others["parts"] = dict(collections.Counter(others["parts"]) + collections.Counter(parts))
            continue
        values = {"shared": parts.get("codebook", 0) // 4, "signs": 2}.get(one.encoding)
        symbols = values and values + (one.entries > row["kept"])  # a zero, or a filler, is one more
        coded = {part: 8 * parts.get(part, 0) / max(one.entries, 1) for part in ("indices", "signs", "jumps")}
        found.append(
            {
                **row,
                "values": values,
                "index_bits": symbols and max(1, math.ceil(math.log2(symbols))),
                "index_coded": values and (coded["signs"] or coded["indices"]),
                "jump_bits": one.jump_bits or None,
                "jump_coded": coded["jumps"] if one.jump_bits else None,
            }
        )
    framing = len(data) - sum(row["bytes"] for row in found) - others["bytes"]
    rest = {
        "name": "header, checksum",
        "weights": 0,
        "kept": 0,
        "bytes": framing,
        "float32": 0,
        "parts": {"header": framing},
    }
    blank = dict.fromkeys(("entries", "values", "index_bits", "index_coded", "jump_bits", "jump_coded"))
    return [*found, {**blank, **others}, {**blank, **rest}]


def rows(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """`table` as texts, with a line of the totals, as Han 2016, tables 2 to 5: name, weights, share that is kept, bits
    of an index and of a jump as such / after Huffman coding, bytes, and these as a share of float32's.
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


def _network(about: Mapping[str, Any], count: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a header, and the shapes of its variables, of which there should be `count`."""
    called = 0

    def bounded(call, args, kwargs, context):
        nonlocal called
        called += 1
        if called > min(_MODULES_OF_ARRAY * (count + 1), _MODULES):
            raise Damaged("its network has far more layers than the file")
        return call(*args, **kwargs)

    try:
        name, fields = about["model"], _checked(about["fields"])
        inputs = _checked(about["inputs"])
        with lowering("plain"), nn.intercept_methods(bounded):
            model = models.create(name, **fields)  # which traces a network with `widths`
            inputs = models.abstract(inputs) if inputs else model.example()
            variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    except (Damaged, UserError):
        raise
    except Exception as error:  # whatever a model's code stumbles over in fields that no one wrote for it
        raise Damaged(f"its network cannot be made: {type(error).__name__} {error}".splitlines()[0]) from None
    return model, dict(variables)


def _checked(value: Any, depth: int = 0, most: int = MOST) -> Any:
    """Fields from JSON: lists as tuples; Damaged where a number or a list is beyond all networks."""
    if isinstance(value, dict) and not depth:
        return {str(name): _checked(one, 1, MOSTS.get(name, MOST)) for name, one in value.items()}
    if isinstance(value, list) and len(value) <= 10_000 and depth < 4:
        return tuple(_checked(one, depth + 1, most) for one in value)
    if value is None or isinstance(value, (str, bool)) or (isinstance(value, (int, float)) and abs(value) <= most):
        return value
    raise Damaged(f"a field of its network is {str(value)[:40]}")

"""File format of a compressed network. The network's compressed size is the size of this file.

  magic (8 bytes), version (2), size of the header (4), header, parts of the arrays, CRC-32 of everything before (4)

Numbers are little-endian. The header is deflated JSON: {"about": ..., "arrays": [[name, shape, encoding, jump bits,
entries, [size of each part]], ...]}. The parts of each array follow in this order:

  float32   values
  sparse    tables, jumps, values: the nonzero values themselves
  shared    codebook, tables, jumps, indices: the distinct values, and Huffman-coded indices (Han 2016)
  signs     scales, signs: one magnitude for each index of the last axis, and one bit per weight

Jumps (sparse.py) are Huffman-coded. With 0 jump bits there are no jumps, and every position has an entry. An index is 0
for a zero (or a filler), else 1 + the index of a value in the codebook. Tables are deflated code lengths, one byte per
symbol, of jumps and then of indices. `pack` chooses the smallest encoding of every array; all of them are lossless.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from models.compress import huffman, sparse
from models.compress.huffman import Damaged

MAGIC, VERSION = b"ablate\0c", 1
_HEAD = struct.Struct("<8sHI")
PARTS = {
    "float32": ("values",),
    "sparse": ("tables", "jumps", "values"),
    "shared": ("codebook", "tables", "jumps", "indices"),
    "signs": ("scales", "signs"),
}
# Possible bit widths of a jump before Huffman coding. A jump of 8 bits spans at most 256 positions. In the file, an
# entry with a jump takes at least 2 bits: one for the jump, and one for the index or value.
JUMPS = range(2, 9)
MOST_VALUES = 1 << 16  # maximum size of a codebook
MOST_HEADER = 1 << 20  # maximum bytes of the JSON; ResNet-1202 takes a third of that


class Packed(NamedTuple):
    """The entry of an array in the header; `parts` holds the size of each part in bytes."""

    shape: tuple[int, ...]
    encoding: str
    jump_bits: int
    entries: int
    parts: dict[str, int]


class _Encoded(NamedTuple):
    """An encoded array."""

    encoding: str
    jump_bits: int
    entries: int
    parts: list[bytes]

    def size(self) -> int:
        """Returns the number of bytes."""
        return sum(map(len, self.parts))


def pack(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the bytes of a file.

    Args:
      description: Name and fields of the network, which JSON can represent.
      arrays: float32 arrays by name.
    """
    entries, payload = [], []
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype != np.float32:
            raise TypeError(f"{name} is {array.dtype}, not float32")
        encoded = _smallest(array)
        entries.append([name, array.shape, *encoded[:3], [len(part) for part in encoded.parts]])
        payload += encoded.parts
    header = zlib.compress(json.dumps({"about": description, "arrays": entries}, separators=(",", ":")).encode(), 9)
    data = _HEAD.pack(MAGIC, VERSION, len(header)) + header + b"".join(payload)
    return data + struct.pack("<I", zlib.crc32(data))


def _smallest(array: np.ndarray) -> _Encoded:
    """Returns the encoding of the fewest bytes."""
    raw = np.ascontiguousarray(array).view(np.uint32).ravel()  # bits, which preserve -0.0 and NaN
    encodings = [_Encoded("float32", 0, raw.size, [raw.astype("<u4").tobytes()])]
    if raw.size < 2:
        return encodings[0]
    if array.ndim > 1 and (scales := _scales(array)) is not None:
        parts = [scales.astype("<f4").tobytes(), np.packbits(array < 0).tobytes()]
        encodings.append(_Encoded("signs", 0, raw.size, parts))
    return min([*encodings, *_with_jumps(raw)], key=_Encoded.size)


def _with_jumps(raw: np.ndarray) -> list[_Encoded]:
    """Returns the encodings "sparse" and "shared" of bits uint32 [N], where they apply, with the best jump bits."""
    nonzero = np.flatnonzero(raw)
    codebook, index = np.unique(raw[nonzero], return_inverse=True)
    symbols = index + 1 if len(codebook) <= min(MOST_VALUES, raw.size // 2) else None
    options = [*([] if symbols is None else [0]), *(JUMPS if len(nonzero) < raw.size else [])]
    if not options:
        return []
    bits = min(options, key=lambda bits: _size(raw.size, nonzero, symbols, bits))
    positions, tables, jumps = _jumps(raw.size, nonzero, bits)
    encodings = []
    if bits:
        values = raw[positions].astype("<u4").tobytes()
        encodings.append(_Encoded("sparse", bits, len(positions), [zlib.compress(tables, 9), jumps, values]))
    if symbols is not None:
        filled = np.zeros(raw.size, np.int64)
        filled[nonzero] = symbols
        lengths = huffman.lengths(np.bincount(filled[positions], minlength=len(codebook) + 1))
        parts = [codebook.astype("<u4").tobytes(), zlib.compress(tables + lengths.tobytes(), 9), jumps]
        indices = huffman.encode(filled[positions], lengths)
        encodings.append(_Encoded("shared", bits, len(positions), [*parts, indices]))
    return encodings


def _scales(array: np.ndarray) -> np.ndarray | None:
    """Returns [D] if the magnitude depends only on the last axis and nothing is 0, else None."""
    rows = np.abs(array).reshape(-1, array.shape[-1])
    return rows[0] if len(rows) and (rows == rows[0]).all() and (rows[0] > 0).all() else None


def _jumps(size: int, nonzero: np.ndarray, bits: int) -> tuple[np.ndarray, bytes, bytes]:
    """Returns the positions of the entries, including fillers, the table of their jumps, and the coded jumps."""
    if not bits:
        return np.arange(size), b"", b""
    steps = sparse.jumps(nonzero, bits, size)
    lengths = huffman.lengths(np.bincount(steps - 1, minlength=1 << bits))
    return np.cumsum(steps) - 1, lengths.tobytes(), huffman.encode(steps - 1, lengths)


def _size(size: int, nonzero: np.ndarray, symbols: np.ndarray | None, bits: int) -> int:
    """Estimates the bits of jumps, indices (or 32 per value) and tables, which deflate to about half."""

    def coded(counts):
        return int((huffman.lengths(counts).astype(np.int64) * counts).sum()) + 4 * len(counts)

    entries, total = size, 0
    if bits:
        steps = sparse.jumps(nonzero, bits, size)
        entries, total = len(steps), coded(np.bincount(steps - 1, minlength=1 << bits))
    if symbols is None:
        return total + 32 * entries
    counts = np.bincount(symbols, minlength=1)
    counts[0] = entries - len(nonzero)
    return total + coded(counts)


def description(data: bytes) -> dict[str, Any]:
    """Returns the description of the network that was passed to `pack`.

    Raises:
      Damaged: The file has another format or version, is truncated, or its bits have changed.
    """
    return _header(data)[0]


def contents(data: bytes) -> dict[str, Packed]:
    """Returns the entries of the arrays in the header; raises Damaged like `description`."""
    return _header(data)[1]


def unpack(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the packed arrays, float32, bit for bit.

    Args:
      data: Bytes of a file.
      shapes: Shapes of the network's arrays by name. Nothing is allocated unless the file agrees with them.

    Raises:
      Damaged: See `about`; or the arrays differ, or a part is malformed.
    """
    _, listed, start = _header(data)
    if {name: packed.shape for name, packed in listed.items()} != {n: tuple(shape) for n, shape in shapes.items()}:
        raise Damaged("its arrays differ from those of its network")
    arrays = {}
    for name, packed in listed.items():
        parts = {}
        for part, length in packed.parts.items():
            parts[part] = data[start : start + length]
            start += length
        arrays[name] = _array(name, packed, parts)
    return arrays


def _header(data: bytes) -> tuple[dict[str, Any], dict[str, Packed], int]:
    """Returns the description of the network, the entries of the arrays, and the offset of the first part."""
    if len(data) < _HEAD.size + 4 or data[:8] != MAGIC:
        raise Damaged("it is not a file of a compressed network, or only its beginning")
    _, version, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise Damaged(f"its version is {version}; this program reads {VERSION}")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise Damaged("its checksum is wrong: it was truncated or changed")
    start = _HEAD.size + length
    try:
        if start > len(data) - 4:
            raise ValueError("it is longer than the file")
        header = json.loads(_inflated(data[_HEAD.size : start], MOST_HEADER))
        if not isinstance(header["about"], dict):
            raise ValueError("its JSON has another structure")
        listed = {}
        for name, shape, encoding, bits, count, lengths in header["arrays"]:
            packed = Packed(tuple(shape), encoding, bits, count, dict(zip(PARTS[encoding], lengths, strict=True)))
            if not all(type(n) is int and n >= 0 for n in (*packed.shape, bits, count, *lengths)):
                raise ValueError(f"{name}: sizes are not numbers")
            if name in listed:
                raise ValueError(f"{name}: listed twice")
            listed[name] = packed
        if sum(sum(packed.parts.values()) for packed in listed.values()) != len(data) - 4 - start:
            raise ValueError("the sizes of parts do not add up to the size of the file")
        return header["about"], listed, start
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(f"its header cannot be read: {type(error).__name__} {error}") from None


def _inflated(data: bytes, most: int) -> bytes:
    """Inflates data to at most `most` bytes; raises Damaged for bad data."""
    inflate = zlib.decompressobj()
    try:
        inflated = inflate.decompress(data, most + 1)
    except zlib.error as error:
        raise Damaged(f"deflated bytes are damaged: {error}") from None
    if not inflate.eof or inflate.unused_data or len(inflated) > most:
        raise Damaged("deflated bytes are truncated, or too many")
    return inflated


def _array(name: str, packed: Packed, parts: Mapping[str, bytes]) -> np.ndarray:
    """Decodes an array from its parts; raises Damaged for parts that no packer writes."""
    size, bits, count = int(np.prod(packed.shape, dtype=np.float64)), packed.jump_bits, packed.entries
    coded = {"shared": parts.get("indices", b""), "sparse": parts.get("jumps", b"")}.get(packed.encoding)
    if coded is not None and count > 8 * len(coded):  # a code has at least one bit; checked before any allocation
        raise Damaged(f"{name}: {count} entries in {len(coded)} bytes")
    if count > size or (not bits and count != size) or (bits and bits not in JUMPS) or size > (count + 1) << bits:
        raise Damaged(f"{name}: {count} entries in an array of {size}, jumps of {bits} bits")
    if packed.encoding == "float32":
        return _floats(name, parts["values"], size).reshape(packed.shape)
    if packed.encoding == "signs":
        if not packed.shape or len(parts["signs"]) != -(-size // 8):
            raise Damaged(f"{name}: {len(parts['signs'])} bytes are not {size} signs")
        scales = _floats(name, parts["scales"], packed.shape[-1])
        negative = np.unpackbits(np.frombuffer(parts["signs"], np.uint8), count=size).reshape(packed.shape)
        return np.where(negative, -scales, scales)
    width = (1 << bits) if bits else 0
    tables = np.frombuffer(_inflated(parts["tables"], width + MOST_VALUES + 1), np.uint8)
    positions: np.ndarray | slice = slice(None)
    if bits:
        positions = sparse.positions(huffman.decode(parts["jumps"], tables[:width], count) + 1, size)
    elif parts["jumps"]:
        raise Damaged(f"{name}: it has jumps of 0 bits")
    values = np.zeros(size, np.float32)
    if packed.encoding == "sparse":
        values[positions] = _floats(name, parts["values"], count)
    else:
        values[positions] = _shared(name, parts, tables[width:], count)
    return values.reshape(packed.shape)


def _shared(name: str, parts: Mapping[str, bytes], lengths: np.ndarray, count: int) -> np.ndarray:
    """Decodes `count` indices into a codebook, with code lengths from the table."""
    if len(parts["codebook"]) % 4:
        raise Damaged(f"{name}: {len(parts['codebook'])} bytes are not a codebook")
    codebook = np.frombuffer(parts["codebook"], "<f4").astype(np.float32)
    if len(lengths) != len(codebook) + 1:
        raise Damaged(f"{name}: the table has {len(lengths)} codes for {len(codebook)} values")
    return np.append(np.float32(0), codebook)[huffman.decode(parts["indices"], lengths, count)]


def _floats(name: str, data: bytes, count: int) -> np.ndarray:
    if len(data) != 4 * count:
        raise Damaged(f"{name}: {len(data)} bytes are not {count} values")
    return np.frombuffer(data, "<f4").astype(np.float32)

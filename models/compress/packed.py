"""One file of a compressed network: what is on disk is what it takes.

  magic (8 bytes), version (2), bytes of the header (4), header, what the header lists, CRC-32 of all this (4)

Numbers are little-endian. The header is JSON, deflated: {"about": …, "arrays": [[name, shape, encoding, jump bits,
entries, [bytes of each part]], …]}. The parts of each array follow in that order:

  float32   values
  sparse    tables, jumps, values: what is not 0, as it is
  shared    codebook, tables, jumps, indices: Han 2016: the few values there are, and Huffman-coded indices
  signs     scales, signs: one magnitude for each place of the last axis, a bit a weight

Jumps (sparse.py) are Huffman-coded; with jump bits 0 there are none, every place has its entry. An index is 0 for a
zero (or a filler), else 1 + a place in the codebook. Tables are code lengths, a byte a symbol, of jumps and then of
indices, deflated. `pack` takes for every array the smallest; all give back what went in, bit for bit.
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
JUMPS = range(2, 9)  # bits of a jump to choose from; an entry, 2 bits of a file at least, then spans 256 places at most
MOST_VALUES = 1 << 16  # of a codebook
MOST_HEADER = 1 << 20  # bytes of the JSON; ResNet-1202 takes a third of that


class Packed(NamedTuple):
    """How one array lies in a file."""

    shape: tuple[int, ...]
    encoding: str
    jump_bits: int
    entries: int
    parts: dict[str, int]  # bytes of each


def pack(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of the file.

    Args:
      about: what JSON can hold: the name and fields of the network.
      arrays: float32, by name.
    """
    entries, payload = [], []
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype != np.float32:
            raise TypeError(f"{name} is {array.dtype}, not float32")
        encoding, bits, count, parts = _smallest(array)
        entries.append([name, array.shape, encoding, bits, count, [len(part) for part in parts]])
        payload += parts
    header = zlib.compress(json.dumps({"about": about, "arrays": entries}, separators=(",", ":")).encode(), 9)
    data = _HEAD.pack(MAGIC, VERSION, len(header)) + header + b"".join(payload)
    return data + struct.pack("<I", zlib.crc32(data))


def _smallest(array: np.ndarray) -> tuple[str, int, int, list[bytes]]:
    """(encoding, jump bits, entries, parts) of the fewest bytes."""
    raw = np.ascontiguousarray(array).view(np.uint32).ravel()  # bits, so that -0.0 and NaN are what they are
    plain = ("float32", 0, raw.size, [raw.astype("<u4").tobytes()])
    if raw.size < 2:
        return plain
    found = [plain]
    if array.ndim > 1 and (scales := _scales(array)) is not None:
        found.append(("signs", 0, raw.size, [scales.astype("<f4").tobytes(), np.packbits(array < 0).tobytes()]))
    kept = np.flatnonzero(raw)
    codebook, index = np.unique(raw[kept], return_inverse=True)
    few = len(codebook) <= min(MOST_VALUES, raw.size // 2)
    options = [*([0] if few else []), *(JUMPS if len(kept) < raw.size else [])]
    if not options:
        return min(found, key=lambda one: sum(map(len, one[3])))
    symbols = index + 1 if few else None
    best = min(options, key=lambda bits: _size(raw.size, kept, symbols, bits))
    places, tables, jumps = _jumps(raw.size, kept, best)
    if best:
        values = raw[places].astype("<u4").tobytes()
        found.append(("sparse", best, len(places), [zlib.compress(tables, 9), jumps, values]))
    if few:
        filled = np.zeros(raw.size, np.int64)
        filled[kept] = symbols
        lengths = huffman.lengths(np.bincount(filled[places], minlength=len(codebook) + 1))
        found.append(
            (
                "shared",
                best,
                len(places),
                [
                    codebook.astype("<u4").tobytes(),
                    zlib.compress(tables + lengths.tobytes(), 9),
                    jumps,
                    huffman.encode(filled[places], lengths),
                ],
            )
        )
    return min(found, key=lambda one: sum(map(len, one[3])))


def _scales(array: np.ndarray) -> np.ndarray | None:
    """[D] where the magnitude depends on the last axis alone, and nothing is 0; else None."""
    rows = np.abs(array).reshape(-1, array.shape[-1])
    return rows[0] if len(rows) and (rows == rows[0]).all() and (rows[0] > 0).all() else None


def _jumps(size: int, kept: np.ndarray, bits: int) -> tuple[np.ndarray, bytes, bytes]:
    """Places of the entries, fillers among them, the table of their jumps, and these."""
    if not bits:
        return np.arange(size), b"", b""
    steps = sparse.jumps(kept, bits, size)
    lengths = huffman.lengths(np.bincount(steps - 1, minlength=1 << bits))
    return np.cumsum(steps) - 1, lengths.tobytes(), huffman.encode(steps - 1, lengths)


def _size(size: int, kept: np.ndarray, symbols: np.ndarray | None, bits: int) -> int:
    """Bits of jumps, indices (32 a value without) and tables, these before they are deflated by about a half."""

    def coded(counts):
        return int((huffman.lengths(counts).astype(np.int64) * counts).sum()) + 4 * len(counts)

    entries, total = size, 0
    if bits:
        steps = sparse.jumps(kept, bits, size)
        entries, total = len(steps), coded(np.bincount(steps - 1, minlength=1 << bits))
    if symbols is None:
        return total + 32 * entries
    counts = np.bincount(symbols, minlength=1)
    counts[0] = entries - len(kept)
    return total + coded(counts)


def about(data: bytes) -> dict[str, Any]:
    """What `pack` was told of the network.

    Raises:
      Damaged: it is no such file, of another version, cut, or of other bits than were written.
    """
    return _header(data)[0]


def contents(data: bytes) -> dict[str, Packed]:
    """How each array lies in the file; Damaged as `about`."""
    return _header(data)[1]


def unpack(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays, float32 and bit for bit those that were packed.

    Args:
      data: of a file.
      shapes: what the network's arrays are called and shaped. Nothing is allocated before the file agrees.

    Raises:
      Damaged: as `about`; or the file has other arrays, or parts that no packer writes.
    """
    _, listed, start = _header(data)
    if {name: packed.shape for name, packed in listed.items()} != {n: tuple(shape) for n, shape in shapes.items()}:
        raise Damaged("it has other arrays than its network")
    found = {}
    for name, packed in listed.items():
        parts = {}
        for part, length in packed.parts.items():
            parts[part] = data[start : start + length]
            start += length
        found[name] = _array(name, packed, parts)
    return found


def _header(data: bytes) -> tuple[dict[str, Any], dict[str, Packed], int]:
    """What it says of the network, of each array, and where the first part starts."""
    if len(data) < _HEAD.size + 4 or data[:8] != MAGIC:
        raise Damaged("it is no file of a compressed network, or only its beginning")
    _, version, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise Damaged(f"its version is {version}; this program reads {VERSION}")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise Damaged("its checksum does not fit: it was cut or changed")
    start = _HEAD.size + length
    try:
        if start > len(data) - 4:
            raise ValueError("longer than the file")
        header = json.loads(_inflated(data[_HEAD.size : start], MOST_HEADER))
        if not isinstance(header["about"], dict):
            raise ValueError("another kind of JSON")
        listed = {}
        for name, shape, encoding, bits, count, lengths in header["arrays"]:
            packed = Packed(tuple(shape), encoding, bits, count, dict(zip(PARTS[encoding], lengths, strict=True)))
            if not all(type(n) is int and n >= 0 for n in (*packed.shape, bits, count, *lengths)):
                raise ValueError(f"{name}: no numbers")
            if name in listed:
                raise ValueError(f"{name}: twice")
            listed[name] = packed
        if sum(sum(packed.parts.values()) for packed in listed.values()) != len(data) - 4 - start:
            raise ValueError("parts that are not as long as the file")
        return header["about"], listed, start
    except Damaged:
        raise
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(f"its header cannot be read: {type(error).__name__} {error}") from None


def _inflated(data: bytes, most: int) -> bytes:
    """What was deflated, of at most so many bytes."""
    inflate = zlib.decompressobj()
    try:
        found = inflate.decompress(data, most + 1)
    except zlib.error as error:
        raise Damaged(f"deflated bytes that cannot be: {error}") from None
    if not inflate.eof or inflate.unused_data or len(found) > most:
        raise Damaged("deflated bytes that are cut, or too many")
    return found


def _array(name: str, packed: Packed, parts: Mapping[str, bytes]) -> np.ndarray:
    size, bits, count = int(np.prod(packed.shape, dtype=np.float64)), packed.jump_bits, packed.entries
    coded = {"shared": parts.get("indices", b""), "sparse": parts.get("jumps", b"")}.get(packed.encoding)
    if coded is not None and count > 8 * len(coded):  # of a code a bit is the least; said before anything is allocated
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
    place: Any = slice(None)
    if bits:
        place = sparse.positions(huffman.decode(parts["jumps"], tables[:width], count) + 1, size)
    elif parts["jumps"]:
        raise Damaged(f"{name}: jumps of 0 bits")
    if packed.encoding == "sparse":
        found = _floats(name, parts["values"], count)
    else:
        if len(parts["codebook"]) % 4:
            raise Damaged(f"{name}: {len(parts['codebook'])} bytes are no codebook")
        codebook = np.frombuffer(parts["codebook"], "<f4").astype(np.float32)
        if len(tables) != width + len(codebook) + 1:
            raise Damaged(f"{name}: tables of {len(tables)} codes for {len(codebook)} values")
        found = np.append(np.float32(0), codebook)[huffman.decode(parts["indices"], tables[width:], count)]
    values = np.zeros(size, np.float32)
    values[place] = found
    return values.reshape(packed.shape)


def _floats(name: str, data: bytes, count: int) -> np.ndarray:
    if len(data) != 4 * count:
        raise Damaged(f"{name}: {len(data)} bytes are not {count} values")
    return np.frombuffer(data, "<f4").astype(np.float32)

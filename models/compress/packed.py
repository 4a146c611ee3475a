"""One file of a compressed network: what is on disk is what it takes.

  magic (8 bytes), version (2), length of the header (4), header (JSON), what the header lists, CRC-32 of all this (4)

Numbers are little-endian. The header names the network, its fields and, for each array, shape, encoding and bytes of
its parts, which follow in that order:

  float32   values
  sparse    tables, jumps, values: what is not 0, as it is
  shared    codebook, tables, jumps, indices: Han 2016: the codebook's values by Huffman-coded indices

Jumps (sparse.py) are Huffman-coded; where nothing is 0 there are none. An index is 0 for a filler, else 1 + a place in
the codebook; a filler's value is 0. Tables are code lengths, a byte a symbol, of jumps and then of indices.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.compress import huffman, sparse
from models.compress.codebook import Shared
from models.compress.huffman import Damaged

MAGIC, VERSION = b"ablate\0c", 1
_HEAD = struct.Struct("<8sHI")
PARTS = {"float32": ("values",), "sparse": ("tables", "jumps", "values"),
         "shared": ("codebook", "tables", "jumps", "indices")}
MOST_BITS = 16  # of jumps; 0: there are none
DENSE = 0.95  # share of what is not 0 above which values are stored as they are


def pack(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray | Shared], jump_bits: Mapping[str, int]
         ) -> tuple[bytes, dict[str, dict[str, int]]]:
    """The bytes of the file.

    Args:
      about: what JSON can hold: the name and fields of the network.
      arrays: by name: Shared, or float32, which is stored sparse where 5% or more of it is 0.
      jump_bits: by name, of arrays that may have zeros; 8 for others.

    Returns:
      The bytes, and {name: {part: bytes}}.
    """
    entries, payload = [], []
    for name, array in arrays.items():
        shared = isinstance(array, Shared)
        values = array.index + 1 if shared else np.asarray(array, np.float32)
        kept = np.flatnonzero(values.ravel())
        bits = jump_bits.get(name, 8) if len(kept) < values.size else 0
        if not shared and len(kept) > DENSE * values.size:
            bits = 0
            encoding, parts, count = "float32", {"values": values.astype("<f4").tobytes()}, values.size
        else:
            encoding, (parts, count) = ("shared" if shared else "sparse"), _entries(
                values.ravel(), kept, bits, array.codebook if shared else None)
        entries.append({"name": name, "shape": list(values.shape), "encoding": encoding, "jump_bits": bits,
                        "count": count, "parts": {part: len(parts[part]) for part in PARTS[encoding]}})
        payload += [parts[part] for part in PARTS[encoding]]
    header = json.dumps({"about": about, "arrays": entries}, separators=(",", ":")).encode()
    data = _HEAD.pack(MAGIC, VERSION, len(header)) + header + b"".join(payload)
    return data + struct.pack("<I", zlib.crc32(data)), {entry["name"]: entry["parts"] for entry in entries}


def _entries(values: np.ndarray, kept: np.ndarray, bits: int, codebook: np.ndarray | None
             ) -> tuple[dict[str, bytes], int]:
    """Parts of values [N] that are not 0 at `kept`, and the number of their entries, fillers among them."""
    tables, jumps, filler = b"", b"", np.zeros(len(kept), bool)
    if bits:
        steps, filler = sparse.jumps(kept, bits)
        lengths = huffman.lengths(np.bincount(steps - 1, minlength=1 << bits))
        tables, jumps = lengths.tobytes(), huffman.encode(steps - 1, lengths)
    entries = np.zeros(len(filler), values.dtype)
    entries[~filler] = values[kept]
    if codebook is None:
        return {"tables": tables, "jumps": jumps, "values": entries.astype("<f4").tobytes()}, len(entries)
    lengths = huffman.lengths(np.bincount(entries, minlength=len(codebook) + 1))
    return {"codebook": codebook.astype("<f4").tobytes(), "tables": tables + lengths.tobytes(), "jumps": jumps,
            "indices": huffman.encode(entries, lengths)}, len(entries)


def about(data: bytes) -> dict[str, Any]:
    """What `pack` was told of the network.

    Raises:
      Damaged: it is no such file, of another version, cut, or of other bits than were written.
    """
    return _header(data)[0]["about"]


def unpack(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays, float32 and bit for bit those that were packed.

    Args:
      data: of a file.
      shapes: what the network's arrays are called and shaped. Nothing is allocated before the file agrees.

    Raises:
      Damaged: as `about`; or the file has other arrays, or parts that no packer writes.
    """
    header, start = _header(data)
    try:
        listed = {entry["name"]: tuple(entry["shape"]) for entry in header["arrays"]}
        if listed != {name: tuple(shape) for name, shape in shapes.items()} or len(listed) != len(header["arrays"]):
            raise Damaged("it has other arrays than its network")
        found = {}
        for entry in header["arrays"]:
            parts = {}
            for part in PARTS[entry["encoding"]]:
                length = entry["parts"][part]
                if not (type(length) is int and 0 <= length <= len(data) - 4 - start):
                    raise Damaged(f"{entry['name']}: its {part} are longer than the file")
                parts[part] = data[start:start + length]
                start += length
            found[entry["name"]] = _array(entry, parts)
        if start != len(data) - 4:
            raise Damaged("bytes that belong to no array")
        return found
    except Damaged:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise Damaged(f"its header cannot be: {type(error).__name__} {error}") from None


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < _HEAD.size + 4 or data[:8] != MAGIC:
        raise Damaged("it is no file of a compressed network, or only its beginning")
    _, version, length = _HEAD.unpack_from(data)
    if version != VERSION:
        raise Damaged(f"its version is {version}; this program reads {VERSION}")
    if zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise Damaged("its checksum does not fit: it was cut or changed")
    try:
        if _HEAD.size + length > len(data) - 4:
            raise ValueError("longer than the file")
        header = json.loads(data[_HEAD.size:_HEAD.size + length])
        if not (isinstance(header, dict) and isinstance(header["about"], dict) and isinstance(header["arrays"], list)):
            raise ValueError("another kind of JSON")
        return header, _HEAD.size + length
    except (ValueError, KeyError, RecursionError) as error:
        raise Damaged(f"its header cannot be read: {type(error).__name__} {error}") from None


def _array(entry: Mapping[str, Any], parts: Mapping[str, bytes]) -> np.ndarray:
    name, shape, count, bits = entry["name"], tuple(entry["shape"]), entry["count"], entry["jump_bits"]
    size = int(np.prod(shape, dtype=np.int64))
    if not (type(count) is int and 0 <= count <= size and type(bits) is int and 0 <= bits <= MOST_BITS):
        raise Damaged(f"{name}: {count} entries in an array of {size}, jumps of {bits} bits")
    if not bits and count != size:
        raise Damaged(f"{name}: {count} entries of {size} without jumps")
    if entry["encoding"] == "float32":
        return _floats(name, parts["values"], size).reshape(shape)
    tables, width = np.frombuffer(parts["tables"], np.uint8), (1 << bits) if bits else 0
    place = np.arange(size)
    if bits:
        place = sparse.positions(huffman.decode(parts["jumps"], tables[:width], count) + 1, size)
    if entry["encoding"] == "sparse":
        found = _floats(name, parts["values"], count)
    else:
        codebook = np.frombuffer(parts["codebook"], "<f4")
        if len(tables) != width + len(codebook) + 1:
            raise Damaged(f"{name}: tables of {len(tables)} codes for {len(codebook)} values")
        found = np.append(np.float32(0), codebook)[huffman.decode(parts["indices"], tables[width:], count)]
    values = np.zeros(size, np.float32)
    values[place] = found
    return values.reshape(shape)


def _floats(name: str, data: bytes, count: int) -> np.ndarray:
    if len(data) != 4 * count:
        raise Damaged(f"{name}: {len(data)} bytes are not {count} values")
    return np.frombuffer(data, "<f4").astype(np.float32)

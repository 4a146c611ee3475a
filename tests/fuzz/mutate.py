"""Seeded mutations of files: the same seed gives the same mutants, each with a name that describes the change.

Bits, bytes, blocks, and binary and decimal numbers are changed anywhere. Changes are more frequent near the beginning
and the end, where headers and directories lie. In zip archives the directory is edited as well. Members are also
mutated and packed again with correct checksums, so that the readers behind the checksums are reached.
"""

import io
import random
import re
import struct
import zipfile
from collections.abc import Callable, Iterator

_EDGES = (
    0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1,
)  # fmt: skip
_DECIMALS = (b"0", b"-1", b"3", b"65536", b"2147483648", b"9223372036854775807", b"1e999", b"NaN", b"9" * 400)
_EDGE = 300  # bytes at the beginning and the end that are changed more often
_ENTRY = b"PK\x01\x02"  # in a zip's directory
# Offsets and struct formats of the fields of an entry.
_FIELDS = {
    "version": (6, "<H"), "flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "stored": (20, "<I"),
    "size": (24, "<I"), "name length": (28, "<H"), "extra length": (30, "<H"), "offset": (42, "<I"),
}  # fmt: skip
_NAMES = ("../x", "x", "x.npy", "data.pkl", "a/data.pkl", "a" * 500, "\u0000", "a\nb")


def mutants(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yields `count` pairs of a description and the bytes of a mutant, which differs from `data`."""
    rng = random.Random(seed)
    kinds = [_bits, _bytes, _number, _decimal, _cut, _insert, _delete, _repeat, _blank]
    if zipfile.is_zipfile(io.BytesIO(data)):
        kinds += [_entry, _entry, _member, _member, _member, _packing]
    number = 0
    while number < count:
        what, mutant = rng.choice(kinds)(data, rng)
        if mutant != data:
            yield f"{number}: {what}", mutant
            number += 1


def _place(data: bytes, rng: random.Random) -> int:
    if not data:
        return 0
    edge = min(_EDGE, len(data))
    return rng.choice((rng.randrange(len(data)), rng.randrange(edge), len(data) - 1 - rng.randrange(edge)))


def _put(data: bytes, place: int, new: bytes, removed: int | None = None) -> bytes:
    return data[:place] + new + data[place + (len(new) if removed is None else removed) :]


def _bits(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    changed, places = bytearray(data), [_place(data, rng) for _ in range(rng.choice((1, 1, 2, 8)))]
    for place in places if data else ():
        changed[place] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places}", bytes(changed)


def _bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place, new = _place(data, rng), rng.randbytes(rng.choice((1, 2, 16)))
    return f"{len(new)} bytes at {place} replaced", _put(data, place, new)


def _number(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place, width, value = _place(data, rng), rng.choice((1, 2, 4, 8)), rng.choice(_EDGES)
    new = (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big")))
    return f"{width} bytes at {place} are {new.hex()}", _put(data, place, new)


def _decimal(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    numbers = list(re.finditer(rb"\d+", data[:100_000]))
    if not numbers:
        return _number(data, rng)
    number, new = rng.choice(numbers), rng.choice(_DECIMALS)
    return f"the number at {number.start()} is {new[:24].decode()}", _put(data, number.start(), new, len(number[0]))


def _cut(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place = _place(data, rng)
    return f"cut at {place}", data[:place]


def _insert(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place, new = _place(data, rng), rng.choice((rng.randbytes(rng.choice((1, 8, 300))), b"[" * 5000, b"{" * 200))
    return f"{len(new)} bytes {new[:4].hex()} inserted at {place}", _put(data, place, new, 0)


def _delete(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place, length = _place(data, rng), rng.choice((1, 4, 64))
    return f"{length} bytes at {place} deleted", _put(data, place, b"", length)


def _repeat(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place, length, times = _place(data, rng), rng.choice((1, 16, 200)), rng.choice((1, 2, 50))
    return f"{length} bytes at {place} repeated {times} times", _put(
        data, place, data[place : place + length] * times, 0
    )


def _blank(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    place, length = _place(data, rng), rng.choice((4, 32, 512))
    return f"{length} bytes at {place} zeroed", _put(data, place, bytes(min(length, len(data) - place)))


def _entry(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Changes a field in a zip's directory and, half of the time, the same field in the member's own header."""
    entries = [match.start() for match in re.finditer(re.escape(_ENTRY), data)]
    if not entries:
        return _number(data, rng)
    start, (name, (offset, form)) = rng.choice(entries), rng.choice(list(_FIELDS.items()))
    old = struct.unpack_from(form, data, start + offset)[0]
    values = (1, 8, 9, 12, 14, 99) if name in ("flags", "method", "version") else (old + 1, old * 1000 + 7, *_EDGES)
    new = struct.pack(form, rng.choice(values) % (1 << 8 * struct.calcsize(form)))
    changed = _put(data, start + offset, new)
    header = struct.unpack_from("<I", data, start + 42)[0]
    if offset < 42 and rng.random() < 0.5:  # a member's own header has them two bytes earlier
        changed = _put(changed, header + offset - 2, new)
    return f"zip entry at {start}: {name} {old} is {new.hex()}", changed


def _member(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Mutates the content of one member and packs the archive again."""
    members = _members(data)
    name = rng.choice(list(members))
    change: Callable = rng.choice((_bits, _bytes, _number, _number, _decimal, _cut, _insert, _delete, _repeat))
    what, content = change(members[name], rng)
    return f"member {name}: {what}", _packed({**members, name: content})


def _packing(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Packs the archive again with different members, names or methods."""
    members = _members(data)
    name, new = rng.choice(list(members)), rng.choice(_NAMES)
    kind = rng.randrange(4)
    if kind == 0:
        method = rng.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED))
        return f"packed by method {method}", _packed(members, method)
    if kind == 1:
        return f"member {name} left out", _packed({key: value for key, value in members.items() if key != name})
    if kind == 2:
        return f"member {name} called {new!r}", _packed({new if k == name else k: v for k, v in members.items()})
    return f"a member of zeros called {new!r}", _packed({**members, new: bytes(50_000)}, zipfile.ZIP_DEFLATED)


def _members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()

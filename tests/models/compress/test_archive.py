"""Compressed networks as files: content is restored bit for bit, and mutated files at most raise a stated error."""

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from models.compress import codebook, packed
from models.compress.huffman import Damaged
from tests.tiers import keep_first

RNG = np.random.default_rng(0)


def network():
    """Returns arrays for every encoding."""
    pruned = RNG.normal(size=(30, 40)).astype(np.float32)
    pruned[RNG.random(pruned.shape) < 0.9] = 0
    rare = np.zeros((50, 50), np.float32)
    rare[[3, 40], [7, 1]] = 1.5, -2.0
    dense = RNG.normal(size=(3, 3, 4, 64)).astype(np.float32)
    signs = np.where(RNG.random((3, 3, 16, 8)) < 0.5, -1, 1) * RNG.uniform(0.1, 1, 8)
    return {
        "shared/pruned": codebook.share(pruned, 5).weights(), "sparse": pruned * 2,
        "shared/whole": codebook.share(dense, 5).weights(), "float32": dense[0, 0, 0], "rare": rare,
        "ternary": RNG.choice(np.float32([-1, 0, 1]), (20, 30)), "signs": signs.astype(np.float32),
        "zeros": np.zeros((40, 40), np.float32), "zero": np.float32(3.5), "nothing": np.zeros((0, 3), np.float32),
        "odd": np.float32([[-0.0, np.nan, np.inf, 0.0]] * 20),
    }  # fmt: skip


def packing(arrays=None):
    arrays = arrays or network()
    data = packed.pack({"model": "lenet5", "fields": {}}, arrays)
    return data, arrays, {name: array.shape for name, array in arrays.items()}


def test_packed_arrays_are_restored():
    data, arrays, shapes = packing()
    assert packed.description(data) == {"model": "lenet5", "fields": {}}
    restored, listed = packed.unpack(data, shapes), packed.contents(data)
    assert list(restored) == list(arrays)
    for name, array in arrays.items():
        assert restored[name].dtype == np.float32 and restored[name].shape == array.shape, name
        assert restored[name].tobytes() == array.tobytes(), name
    header = struct.unpack_from("<I", data, 10)[0]
    assert sum(sum(one.parts.values()) for one in listed.values()) + header + 14 + 4 == len(data)


@pytest.mark.parametrize(
    ("name", "encoding", "most"),
    [
        ("shared/pruned", "shared", 1200 * 0.12 * (5 + 5) / 8 + 4 * 32 + 64),
        ("sparse", "sparse", 1200 * 0.12 * 5.2 + 40),
        ("shared/whole", "shared", 2304 * 5 / 8 + 4 * 32 + 64),
        ("ternary", "shared", 600 * 5 / 3 / 8 + 24),
        ("signs", "signs", 1152 / 8 + 32),
        ("zeros", "shared", 40),
        ("float32", "float32", 256),
        ("rare", "shared", 60),
    ],
)
def test_every_array_gets_the_smallest_encoding(name, encoding, most):
    one = packed.contents(packing()[0])[name]
    assert one.encoding == encoding and sum(one.parts.values()) <= most


def test_the_chosen_width_of_jumps_is_the_best():
    for share in (0.5, 0.9, 0.99, 0.999):
        weights = np.where(RNG.random(20_000) < share, 0, RNG.choice(np.float32([1, 2, 3]), 20_000)).astype(np.float32)
        nonzero = np.flatnonzero(weights)
        index = weights[nonzero].astype(int)
        one = packed.contents(packed.pack({}, {"w": weights}))["w"]
        sizes = {bits: packed._size(weights.size, nonzero, index, bits) / 8 for bits in (0, *packed.JUMPS)}
        assert abs(sum(one.parts.values()) - 12 - min(sizes.values())) < 80
        assert one.jump_bits == min(sizes, key=sizes.get)


def mutated(data):
    """Returns a mutant: cut, with a flipped bit, changed bytes, or a doubled part; half have a valid checksum."""
    data = bytearray(data)
    kind = RNG.integers(4)
    if kind == 0:
        data = data[: RNG.integers(len(data))]
    elif kind == 1:
        data[RNG.integers(len(data))] ^= 1 << int(RNG.integers(8))
    elif kind == 2:
        start = RNG.integers(len(data))
        data[start : start + 4] = RNG.bytes(4)
    else:
        start = RNG.integers(len(data))
        data[start:start] = data[start : start + RNG.integers(20)]
    if RNG.random() < 0.5 and len(data) > 4:
        data[-4:] = struct.pack("<I", zlib.crc32(bytes(data[:-4])))
    return bytes(data)


def test_ten_thousand_mutants_are_damaged_or_give_arrays_of_the_right_shapes():
    pruned = np.where(RNG.random((20, 20)) < 0.8, 0, RNG.normal(size=(20, 20))).astype(np.float32)
    signs = np.where(pruned < 0, np.float32(-2), np.float32(2))
    data, _, shapes = packing({"a": codebook.share(pruned, 3).weights(), "b": pruned, "c": pruned[0], "d": signs})
    refused = 0
    for _ in range(10_000):
        try:
            restored = packed.unpack(mutated(data), shapes)
            assert {name: array.shape for name, array in restored.items()} == shapes
        except Damaged:
            refused += 1
    assert refused > 7000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["arrays"][0].__setitem__(1, [10**9, 10**9]), "arrays differ from those of its network"),
        (lambda header: header["arrays"][0].__setitem__(4, 10**12), "1000000000000 entries in"),
        (lambda header: header["arrays"][0].__setitem__(2, "pickle"), "header cannot be read"),
        (lambda header: header["arrays"][0][5].__setitem__(0, 10**9), "do not add up to the size of the file"),
        (lambda header: header["arrays"][0].__setitem__(3, 60), "jumps of 60 bits"),
        (lambda header: header["arrays"].append(header["arrays"][0]), "twice"),
        (lambda header: header["arrays"].clear(), "do not add up to the size of the file"),
        (lambda header: header["arrays"].append(3), "header cannot be read"),
        (lambda header: header.pop("about"), "header cannot be read"),
    ],
)
def test_hostile_headers(change, message):
    data, _, shapes = packing()
    header = json.loads(zlib.decompress(data[14 : 14 + struct.unpack_from("<I", data, 10)[0]]))
    change(header)
    with pytest.raises(Damaged, match=message):
        packed.unpack(with_header(data, zlib.compress(json.dumps(header).encode())), shapes)


def with_header(data, header):
    """Returns the file with other bytes as its header, and a valid checksum."""
    length = struct.unpack_from("<I", data, 10)[0]
    hostile = data[:10] + struct.pack("<I", len(header)) + header + data[14 + length : -4]
    return hostile + struct.pack("<I", zlib.crc32(hostile))


def test_a_header_that_inflates_without_end_is_refused():
    data, _, shapes = packing()
    with pytest.raises(Damaged, match="truncated, or too many"):
        packed.unpack(with_header(data, zlib.compress(b" " * (packed.MOST_HEADER + 1), 9)), shapes)


def test_a_small_file_cannot_ask_for_a_large_array():
    """Checks that an entry of a few bits stands for at most 256 positions."""
    data = packed.pack({}, {"w": np.zeros((300, 300), np.float32)})
    length = struct.unpack_from("<I", data, 10)[0]
    header = json.loads(zlib.decompress(data[14 : 14 + length]))
    header["arrays"][0][1] = [10**6, 10**6]
    for count in (header["arrays"][0][4], 10**12):
        header["arrays"][0][4] = count
        with pytest.raises(Damaged, match="entries in"):
            packed.unpack(with_header(data, zlib.compress(json.dumps(header).encode())), {"w": (10**6, 10**6)})


@pytest.mark.parametrize("count", keep_first(1, [1_000, 10_000]))
def test_changed_headers_take_no_more_memory_than_the_file_justifies(count):
    pruned = np.where(RNG.random((40, 40)) < 0.8, 0, RNG.normal(size=(40, 40))).astype(np.float32)
    data, _, _ = packing({"a": codebook.share(pruned, 3).weights(), "b": pruned, "c": np.ones((9, 9), np.float32)})
    header = json.loads(zlib.decompress(data[14 : 14 + struct.unpack_from("<I", data, 10)[0]]))
    numbers = (0, 1, 2, 7, 8, 255, 10**6, 10**9, 10**15, -1, 2.5, "x", None, [3], [10**5, 10**5], [40, 40])
    tracemalloc.start()
    try:
        for _ in range(count):
            changed = json.loads(json.dumps(header))
            for _ in range(RNG.integers(1, 4)):
                entry = changed["arrays"][RNG.integers(len(changed["arrays"]))]
                place = int(RNG.integers(6))
                value = numbers[RNG.integers(len(numbers))]
                if place == 5 and isinstance(entry[5], list) and entry[5]:
                    entry[5][RNG.integers(len(entry[5]))] = value
                elif place == 2:
                    entry[2] = list(packed.PARTS)[RNG.integers(4)]
                else:
                    entry[place] = value
            try:
                hostile = with_header(data, zlib.compress(json.dumps(changed).encode(), 1))
                shapes = {name: one.shape for name, one in packed.contents(hostile).items()}
                packed.unpack(hostile, shapes)  # for a network with exactly these arrays
            except Damaged:
                pass
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_other_files_and_versions():
    data, _, shapes = packing()
    for bad, message in (
        (b"", "not a file of a compressed network"),
        (b"PK" + data, "not a file of a compressed network"),
        (data[:-1], "checksum is wrong"),
        (data[:8] + b"\x09\0" + data[10:], "its version is 9; this program reads 1"),
    ):
        with pytest.raises(Damaged, match=message):
            packed.unpack(bad, shapes)


def test_types_other_than_float32_are_refused():
    with pytest.raises(TypeError, match="w is float64, not float32"):
        packed.pack({}, {"w": np.zeros(3)})

"""The file of a compressed network: bit for bit what went in, and no mutation does more than say so."""

import json
import struct
import zlib

import numpy as np
import pytest

from models.compress import codebook, packed
from models.compress.huffman import Damaged

RNG = np.random.default_rng(0)


def network():
    """Arrays of every encoding."""
    pruned = RNG.normal(size=(30, 40)).astype(np.float32)
    pruned[RNG.random(pruned.shape) < 0.9] = 0
    rare = np.zeros((50, 50), np.float32)
    rare[[3, 40], [7, 1]] = 1.5, -2.0
    dense = RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)
    return {"a/kernel": codebook.share(pruned, 5), "b/kernel": pruned * 2, "c/kernel": codebook.share(dense, 8),
            "c/bias": dense[0, 0, 0], "d/kernel": codebook.share(rare, 5), "e/kernel": np.zeros((4, 4), np.float32),
            "f/kernel": codebook.share(np.zeros((4, 5)), 5), "g": np.float32(3.5)}


def plain(arrays):
    return {name: array.weights() if isinstance(array, codebook.Shared) else np.asarray(array)
            for name, array in arrays.items()}


def packing(arrays=None):
    arrays = arrays or network()
    data, parts = packed.pack({"model": "lenet5", "fields": {}}, arrays, {"a/kernel": 5, "d/kernel": 3})
    return data, parts, plain(arrays), {name: array.shape for name, array in plain(arrays).items()}


def test_what_went_in_comes_out():
    data, parts, arrays, shapes = packing()
    assert packed.about(data) == {"model": "lenet5", "fields": {}}
    found = packed.unpack(data, shapes)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == np.float32 and found[name].tobytes() == array.tobytes(), name
    header = struct.unpack_from("<I", data, 10)[0]
    assert sum(sum(sizes.values()) for sizes in parts.values()) + header + 14 + 4 == len(data)
    assert set(parts["a/kernel"]) == {"codebook", "tables", "jumps", "indices"}
    assert set(parts["c/bias"]) == {"values"} and parts["c/kernel"]["jumps"] == 0


def test_few_bits_make_a_small_file():
    weights = RNG.normal(size=(400, 400)).astype(np.float32)
    weights[np.abs(weights) < 1.6] = 0  # some 11% are left
    shared, _, arrays, shapes = packing({"w": codebook.share(weights, 5)})
    assert len(shared) < weights.nbytes / 25
    np.testing.assert_array_equal(packed.unpack(shared, shapes)["w"], arrays["w"])


def mutated(data):
    """Cut, a bit flipped, bytes changed, or a part doubled; with a checksum that fits, every second time."""
    data = bytearray(data)
    kind = RNG.integers(4)
    if kind == 0:
        data = data[:RNG.integers(len(data))]
    elif kind == 1:
        data[RNG.integers(len(data))] ^= 1 << int(RNG.integers(8))
    elif kind == 2:
        start = RNG.integers(len(data))
        data[start:start + 4] = RNG.bytes(4)
    else:
        start = RNG.integers(len(data))
        data[start:start] = data[start:start + RNG.integers(20)]
    if RNG.random() < 0.5 and len(data) > 4:
        data[-4:] = struct.pack("<I", zlib.crc32(bytes(data[:-4])))
    return bytes(data)


def test_ten_thousand_mutations_are_said_to_be_damaged_or_give_arrays_of_the_right_shapes():
    pruned = np.where(RNG.random((20, 20)) < 0.8, 0, RNG.normal(size=(20, 20))).astype(np.float32)
    data, _, _, shapes = packing({"a": codebook.share(pruned, 3), "b": pruned, "c": pruned[0]})
    said = 0
    for _ in range(10_000):
        try:
            found = packed.unpack(mutated(data), shapes)
            assert {name: array.shape for name, array in found.items()} == shapes
        except Damaged:
            said += 1
    assert said > 7000


@pytest.mark.parametrize(("change", "message"), [
    (lambda header: header["arrays"][0].update(shape=[10**9, 10**9]), "other arrays than its network"),
    (lambda header: header["arrays"][0].update(count=10**12), "entries in an array of"),
    (lambda header: header["arrays"][0].update(encoding="pickle"), "header cannot be"),
    (lambda header: header["arrays"][0]["parts"].update(jumps=10**9), "longer than the file"),
    (lambda header: header["arrays"][0].update(jump_bits=60), "jumps of 60 bits"),
    (lambda header: header["arrays"].append(header["arrays"][0]), "other arrays than its network"),
    (lambda header: header["arrays"].clear(), "other arrays than its network"),
    (lambda header: header.pop("about"), "header cannot be read"),
])
def test_hostile_headers(change, message):
    data, _, _, shapes = packing()
    length = struct.unpack_from("<I", data, 10)[0]
    header = json.loads(data[14:14 + length])
    change(header)
    made = json.dumps(header).encode()
    hostile = data[:10] + struct.pack("<I", len(made)) + made + data[14 + length:-4]
    with pytest.raises(Damaged, match=message):
        packed.unpack(hostile + struct.pack("<I", zlib.crc32(hostile)), shapes)


def test_other_files_and_versions():
    data, _, _, shapes = packing()
    for bad, message in ((b"", "no file of a compressed network"), (b"PK" + data, "no file of a compressed network"),
                         (data[:-1], "checksum does not fit"),
                         (data[:8] + b"\x09\0" + data[10:], "its version is 9; this program reads 1")):
        with pytest.raises(Damaged, match=message):
            packed.unpack(bad, shapes)

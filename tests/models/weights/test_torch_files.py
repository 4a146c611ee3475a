"""PyTorch's files are read without PyTorch: files that it wrote (fuzz/torch_files.npz), and forged ones."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.weights import pickles, read
from tests.fuzz.build import TORCH, A, B, archive, refused


@pytest.mark.parametrize("name", ["new", "old", "protocol4", "parameters", "cycle_of_arrays"])
def test_files_of_torch(tmp_path, name):
    (tmp_path / "w.pth").write_bytes(TORCH[name].tobytes())
    arrays = read(tmp_path / "w.pth")
    assert arrays.keys() == {"a", "b"} and all(array.flags.writeable for array in arrays.values())
    np.testing.assert_array_equal(arrays["a"], A)
    np.testing.assert_array_equal(arrays["b"], B)


@pytest.mark.parametrize("name", ["training", "old_training"])
def test_training_checkpoints_of_torch(tmp_path, name):
    """Checks files with more than weights: NumPy numbers, an argparse.Namespace, an optimizer's state."""
    (tmp_path / "w.pth").write_bytes(TORCH[name].tobytes())
    arrays = read(tmp_path / "w.pth")
    assert arrays.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(arrays["weight"], A)


@pytest.mark.parametrize("name", ["views", "old_views"])
def test_views_of_torch(tmp_path, name):
    (tmp_path / "w.pth").write_bytes(TORCH[name].tobytes())
    base, arrays = np.arange(24, dtype=np.float32), read(tmp_path / "w.pth")
    expected = {
        "whole": base, "transposed": base.reshape(4, 6).T, "part": base[5:9], "steps": base[1::7],
        "channels_last": base.reshape(2, 3, 2, 2), "expanded": np.full(5, 3), "number": np.array(7),
        "empty": np.zeros((0, 3)), "tied": base,
    }  # fmt: skip
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        assert arrays[key].shape == array.shape
        np.testing.assert_array_equal(arrays[key], array)


def test_types_of_torch(tmp_path):
    (tmp_path / "w.pth").write_bytes(TORCH["types"].tobytes())
    for name, array in read(tmp_path / "w.pth").items():
        assert array.dtype == ("float32" if name in ("float16", "bfloat16") else name)
        np.testing.assert_array_equal(array, [0, 1] if name == "bool" else [0, 1, 2])


@pytest.mark.parametrize(
    "name,message",
    [
        ("module", r"refused for the objects in it \(torch.nn.modules.linear.Linear\); save its state_dict alone"),
        ("cycle", "no arrays by name in it, but 'model'"), ("sparse", r"'a' is no plain array \(sparse"),
        ("csr", "sparse"), ("quantized", r"'a' is no plain array \(qtensor"),
        ("float8", "its numbers are float8_e4m3fn"), ("complex", "no real numbers but complex64"),
        ("conjugated", "conjugated or negated"), ("nested", "nested_tensor"), ("meta", "meta_tensor"),
        ("tensor", "a Tensor instead of arrays by name"), ("list", "a list instead of arrays"),
        ("nothing", "no arrays"), ("numbers", "no arrays by name in it, but 'epoch'"),
        ("numbered", "numbered, not named"), ("program", "TorchScript program"),
    ],
)  # fmt: skip
def test_files_of_torch_without_arrays(tmp_path, name, message):
    refused(tmp_path / "w.pth", TORCH[name].tobytes(), message=message)


def forged(old, new, name="new", member="data.pkl"):
    """Returns a torch.save file with other bytes in one member, packed again with correct checksums."""
    with zipfile.ZipFile(io.BytesIO(TORCH[name].tobytes())) as file:
        members = {key: file.read(key) for key in file.namelist()}
    key = next(key for key in members if key.endswith(member))
    assert old in members[key]
    return archive({**members, key: members[key].replace(old, new, 1)})


BIG, SHAPE = b"J\xff\xff\xff\x7f", b"K\x04K\x03\x86"
FORGED = {
    "an enormous shape": forged(SHAPE, BIG + b"K\x03\x86"), "a larger shape": forged(SHAPE, b"K\x05K\x03\x86"),
    "a negative shape": forged(SHAPE, b"J\xff\xff\xff\xffK\x03\x86"),
    "a shape of text": forged(SHAPE, b"X\1\0\0\0aK\x03\x86"),
    "a shape beyond 64 bits": forged(SHAPE, b"\x8a\x0a" + b"\xff" * 9 + b"\x7fK\x03\x86"),
    "strides beyond": forged(b"K\x03K\x01\x86", BIG + b"K\x01\x86"),
    "one stride": forged(b"K\x03K\x01\x86", b"K\x03\x85"), "2^62 numbers": forged(SHAPE, BIG + BIG + b"\x86"),
    "a storage of more": forged(b"K\x0ct", b"K\x0dt"), "an enormous storage": forged(b"K\x0ct", BIG + b"t"),
    "a storage of another type": forged(b"FloatStorage", b"DoubleStorage"),
    "a missing storage": forged(b"X\1\0\0\x000", b"X\1\0\0\x007"),
    "big-endian": forged(b"little", b"big", member="byteorder"),
    "an unknown opcode": forged(b"\x80\x02", b"\x80\x02\xff"),
    "an extension": forged(b"\x80\x02", b"\x80\x02\x82\x01"), "an empty stack": forged(b"\x80\x02", b"\x80\x02R"),
    "no mark": forged(b"\x80\x02", b"\x80\x02u"),
    "a place that is not in the memo": forged(b"\x80\x02", b"\x80\x02h\x70"),
    "an object": forged(b"\x80\x02", b"\x80\x02ctorch\nload\n)R."), "no end": forged(b"u.", b"u"),
    "an enormous text": forged(b"\x80\x02", b"\x80\x02X\xff\xff\xff\x7f"),
    "bytes": forged(b"\x80\x02", b"\x80\x02\x8e" + b"\x7f" * 8),
    "digits": forged(b"\x80\x02", b"\x80\x02L" + b"9" * 9000 + b"L\n"),
    "other rebuilding": forged(b"_rebuild_tensor_v2", b"_rebuild_qtensor"),
    "too few arguments": forged(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"),
    "a pickle of nothing": forged(b"\x80\x02", b"."), "no pickle": forged(b"\x80\x02", b"hello"),
    "a legacy number": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03.", "a tar": b"data" * 500,
    "two values": archive({"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "no value": archive({"a/version": b"3"}),
    "a zip of a zip": archive({"a/data.pkl": TORCH["new"].tobytes()}), "an empty zip": archive({}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_of_torch(tmp_path, name):
    refused(tmp_path / "w.pth", FORGED[name])


def test_nothing_in_a_pickle_is_executed(tmp_path):
    call = b"cposix\nsystem\nX\x09\0\0\0touch pwn\x85R0"
    (tmp_path / "w.pth").write_bytes(forged(b"\x80\x02", b"\x80\x02" + call))
    assert read(tmp_path / "w.pth").keys() == {"a", "b"} and not Path("pwn").exists()


def test_pickles_that_take_other_readers_gigabytes_or_years():
    def built(data):
        return pickles.load(io.BytesIO(data), lambda name, arguments: None, lambda pid: pid)

    assert built(b"\x80\x02Nr\xff\xff\xff\x7f.") is None  # a memo of 2^31 entries in C's unpickler
    pairs = b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))  # hashing the last one takes 2^100 steps
    assert len(built(b"\x80\x02}N" + pairs + b"Ns.")) == 1
    depth = 100_000
    nested = built(b"\x80\x02" + b"(" * depth + b"N" + b"l" * depth + b".")
    assert isinstance(nested, list)
    while nested and nested[0] is not None:  # frees from the outside in, as Python does for deep lists
        nested = nested[0]

"""Damaged and hostile files of weights and arrays are refused in one line, whatever their headers claim."""

import io
import json
import re
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy

from configs import transfer
from models import weights
from models.errors import UserError
from models.weights import foreign, read, write
from models.weights.__main__ import main
from tests.fuzz.build import TORCH, A, B, archive, edited, npy, refused, saved
from tests.fuzz.mutate import mutants
from train.data.load import load
from train.data.source import Options
from train.data.sources.arrays import MOST_CLASSES, ArraySource

# The boundary


class Unprintable(Exception):
    def __init__(self, needed, also_needed):
        super().__init__(needed)

    def __str__(self):
        raise RuntimeError


def foreign_reader(error):
    with foreign.reading("dir/w.npz", ".npz"):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), MemoryError(), RecursionError("deep"), zlib.error("bits"),
        NotImplementedError("zip version"), OverflowError("big"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "start"),
        struct.error("short"), KeyError("k"), AttributeError("a"), EOFError(), IndexError("i"), AssertionError(),
        Unprintable(1, 2), ValueError("a\nb\x1b[2J" * 999), zipfile.BadZipFile("no"), TypeError("t"),
        SyntaxError("s"), ValueError("\ud800"), StopIteration(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_any_exception_of_a_reader_becomes_one_line(error):
    with pytest.raises(UserError, match=r"^dir/w.npz: damaged, or not a .npz file \(") as caught:
        foreign_reader(error)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= foreign.LONGEST


def test_errors_unrelated_to_the_file_propagate():
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), foreign.reading("w.npz", ".npz"):
            raise error
    with pytest.raises(UserError, match=r"^w.npz: cannot be read: Permission denied$"), foreign.reading("w.npz", ""):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(UserError, match=r"^mine$"), foreign.reading("w.npz", ".npz"):
        raise UserError("mine")


# .npz files of weights and of data sets

PLAIN = archive({"a.npy": npy()})
NPZ = {
    "an enormous shape": archive({"a.npy": npy("(1000000000000,)")}),
    "a shape beyond 64 bits": archive({"a.npy": npy("(9223372036854775807, 9223372036854775807)")}),
    "a negative shape": archive({"a.npy": npy("(-1,)")}),
    "a shape of truth values": archive({"a.npy": npy("(True, True)")}),
    "a shape of fractions": archive({"a.npy": npy("(2.0,)")}),
    "a shape of two too few": archive({"a.npy": npy("(1,)")}),
    "a nested shape": archive({"a.npy": npy("(" * 300 + ")" * 300)}),
    "a shape of many signs": archive({"a.npy": npy(f"({'-' * 5000}1,)")}),
    "a hundred axes": archive({"a.npy": npy(f"({'1, ' * 100})", data=bytes(4))}),
    "no axes of nothing": archive({"a.npy": npy(f"(0, {1 << 70})", data=b"")}),
    "an enormous type": archive({"a.npy": npy("(1,)", "'<U500000000'")}),
    "an enormous void": archive({"a.npy": npy("(1,)", "'|V2000000000'")}),
    "objects": archive({"a.npy": npy(descr="'|O'")}), "records": archive({"a.npy": npy(descr="[('x', '<f4')]")}),
    "a type of arrays": archive({"a.npy": npy("(1,)", "('<f4', (2,))")}),
    "times": archive({"a.npy": npy("(1,)", "'<M8[s]'")}), "complex numbers": archive({"a.npy": npy("(1,)", "'<c8'")}),
    "a type without size": archive({"a.npy": npy("(2,)", "'<U0'")}),
    "an unknown type": archive({"a.npy": npy(descr="'<f3'")}),
    "a type that is none": archive({"a.npy": npy(descr="7")}),
    "no text in the header": archive({"a.npy": npy("(\xff,)", version=2)}),
    "a long header": archive({"a.npy": npy(f"(2,{' ' * 60_000})")}), "half a header": archive({"a.npy": npy()[:30]}),
    "version 3": archive({"a.npy": npy(version=3)}), "version 9": archive({"a.npy": npy(version=9)}),
    "no header": archive({"a.npy": b"hello"}), "an empty member": archive({"a.npy": b""}),
    "a pickle": archive({"a.npy": b"\x80\x04N."}),
    "another member": archive({"a.npy": npy(), "readme.txt": b"hello"}),
    "a folder": archive([("a.npy", npy()), ("b/", b"")]),
    "a name of control characters": archive({"a\x1b[2J\n.npy": npy()}),
    "bzip2": archive({"a.npy": npy()}, zipfile.ZIP_BZIP2), "lzma": archive({"a.npy": npy()}, zipfile.ZIP_LZMA),
    "an unknown method": edited(PLAIN, 10, "<H", 99), "an encrypted member": edited(PLAIN, 8, "<H", 1),
    "a newer zip": edited(PLAIN, 6, "<H", 99), "a size of 4 GB": edited(PLAIN, 24, "<I", 0xFFFFFFF0),
    "stored 4 GB": edited(edited(PLAIN, 24, "<I", 0xFFFFFFF0), 20, "<I", 0xFFFFFFF0),
    "a deflated size of 4 GB": edited(archive({"a.npy": npy()}, zipfile.ZIP_DEFLATED), 24, "<I", 0xFFFFFFF0),
    "a smaller size": edited(archive({"a.npy": npy()}, zipfile.ZIP_DEFLATED), 24, "<I", 80),
    "another checksum": edited(PLAIN, 16, "<I", 1), "a member beyond the file": edited(PLAIN, 42, "<I", 1 << 31),
    "an entry that swallows the next": edited(archive({"a.npy": npy(), "b.npy": npy()}), 32, "<H", 46 + 5),
    "no directory": PLAIN[:-30], "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", NPZ)
def test_hostile_npz_files(tmp_path, name):
    assert refused(tmp_path / "w.npz", NPZ[name]).startswith(f"{tmp_path}/w.npz: ")


@pytest.mark.parametrize("name", sorted(set(NPZ) - {"complex numbers"}))
def test_hostile_npz_files_as_data_sets(tmp_path, name):
    """Tests the same files under the names that a data set has."""
    data = NPZ[name]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [(info.filename, file.read(info)) for info in file.infolist()]
    except Exception:
        pass  # an archive that Python cannot read either is left as it is
    else:
        members = [("train_image.npy" if key == "a.npy" else key, value) for key, value in members]
        method = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(name, zipfile.ZIP_STORED)
        data = archive([*members, ("train_label.npy", npy("(2,)", "'<i4'"))], method)
    refused(tmp_path / "w.npz", data, lambda path: load(Options(f"arrays:{path}"), "train"))


def test_a_zip_bomb_is_not_read(tmp_path, monkeypatch):
    """Checks the stated limit of a file's content: FREE bytes, or RATIO times the file's own size."""
    size = 3 << 20
    data = archive({"a.npy": npy(f"({size // 4},)", data=bytes(size))}, zipfile.ZIP_DEFLATED)
    (tmp_path / "w.npz").write_bytes(data)
    assert read(tmp_path / "w.npz")["a"].nbytes == size
    monkeypatch.setattr(foreign, "FREE", 1 << 20)
    refused(tmp_path / "w.npz", data, message=r"would take 3,145,\d+ bytes; allowed: 1,048,576, or 100 times the")
    write(tmp_path / "w.npz", {"a": np.zeros(size // 4)})
    assert read(tmp_path / "w.npz")["a"].shape == (size // 4,)


def test_a_zip_whose_members_share_their_bytes(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in "ab":
            file.writestr(f"{name}.npy", npy("(250,)", data=bytes(1000)))
        file.filelist[1].header_offset = 0
        file.filelist[1].filename = "b.npy"
        file.filelist += [file.filelist[0]] * 50
    refused(tmp_path / "w.npz", buffer.getvalue())


def test_npz_files_of_numpy_are_read(tmp_path):
    arrays = {
        "f": np.asfortranarray(A),
        "big": A.astype(">f8"),
        "number": np.float64(0.5),
        "empty": np.zeros((0, 3)),
        "long": np.arange(1 << 18, dtype=np.int64),
        "true": np.array([True, False]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "w.npz", **arrays, text=np.array("resnet"))
        restored = read(tmp_path / "w.npz")
        assert restored.keys() == arrays.keys()
        for name, array in arrays.items():
            assert restored[name].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(restored[name], array)


# Labels of arrays

IMAGES = np.zeros((3, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 1 << 63], np.uint64), np.array([0, 1, (1 << 64) - 1], np.uint64),
        np.array([0, 1, (1 << 63) - 1]), np.array([0, 1, 1 << 31]), np.array([0, 1, -1]),
        np.array([-(1 << 63), 0, 1]), np.array([0, 1, MOST_CLASSES]), np.array([0, 1, 2.0]), np.array([0, 1, np.nan]),
        np.array([0, 1, np.inf]), np.array([True, False, True]), np.array(["a", "b", "c"]), np.array([0, 1]),
        np.array(0), np.zeros((3, 1, 1), int), np.array([[2], [0], [1]]), np.array([[-128], [0], [1]], np.int8),
        np.array([0, 1, 2], np.complex64),
    ],
    ids=lambda labels: f"{labels.dtype}-{labels.ravel()[-1]}",
)  # fmt: skip
def test_invalid_labels_are_refused(tmp_path, labels):
    data = saved(train_image=IMAGES, train_label=labels)
    line = refused(tmp_path / "a.npz", data, lambda path: load(Options(f"arrays:{path}"), "train"))
    assert line.startswith(f"data.source=arrays:{tmp_path}/a.npz: ")


@pytest.mark.parametrize(
    "images,labels,message",
    [
        (IMAGES[:0], np.zeros(0, int), "no examples"),
        (IMAGES[:0], np.zeros((0, 10**9), int), "at most 65,536 classes"),
        (IMAGES, None, "there is no array 'train_label'"),
        (IMAGES.astype(np.float32), np.zeros(3, int), "images must be uint8"),
    ],
)
def test_data_sets_without_examples_or_labels(tmp_path, images, labels, message):
    data = saved(train_image=images, **({} if labels is None else {"train_label": labels}))
    refused(tmp_path / "a.npz", data, lambda path: load(Options(f"arrays:{path}"), "train"), message)


def test_labels_at_the_limits():
    assert len(ArraySource(IMAGES, np.array([0, 1, MOST_CLASSES - 1])).classes) == MOST_CLASSES
    assert ArraySource(IMAGES, np.array([0, 1, 1], np.uint64), ["a", "b"]).classes == ("a", "b")
    for labels in ([0, 1, 2], [0, 1, -1]):
        with pytest.raises(UserError, match="at most 2 classes"):
            ArraySource(IMAGES, np.array(labels), ["a", "b"])


# .safetensors


def safe(header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32", **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


ENTRY = json.dumps(entry()).encode()
SAFE = {
    "a header of 2^63 bytes": safe({"a": entry()}, length=1 << 63), "half a length": b"\x01\0",
    "a header beyond the file": safe({"a": entry()}, length=10_000), "no header": safe(b""),
    "deep JSON": safe(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deeper objects": safe(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "half of the JSON": safe(b'{"a": {"dtype'),
    "a list": safe(b"[]"), "a number": safe(b"1"), "no JSON": safe(b"\xff\xfe"), "an entry of text": safe({"a": "b"}),
    "no shape": safe({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
    "an enormous shape": safe({"a": entry((10**12,), (0, 4 * 10**12))}), "fewer bytes": safe({"a": entry((3,))}),
    "more bytes": safe({"a": entry((1,))}), "negative": safe({"a": entry((-2,), (0, 8))}),
    "offsets backwards": safe({"a": entry((2,), (8, 0))}), "three offsets": safe({"a": entry((2,), (0, 4, 8))}),
    "a shape of fractions": safe({"a": entry((2.0,))}), "a shape of true": safe({"a": entry((True, 2))}),
    "digits": safe(b'{"a": {"dtype": "F32", "data_offsets": [0, 8], "shape": [' + b"9" * 9000 + b"]}}"),
    "not a number": safe(b'{"a": {"dtype": "F32", "data_offsets": [0, 8], "shape": [NaN]}}'),
    "overlapping": safe({"a": entry(), "b": entry()}),
    "a hole": safe({"a": entry(), "b": entry((2,), (12, 20))}, bytes(20)),
    "bytes after the last": safe({"a": entry()}, bytes(9)), "bytes missing": safe({"a": entry()}, bytes(7)),
    "float8": safe({"a": entry((8,), dtype="F8_E4M3")}), "float4": safe({"a": entry((16,), dtype="F4")}),
    "an unknown type": safe({"a": entry(dtype="F31")}), "a type of list": safe({"a": entry(dtype=["F32"])}),
    "complex": safe({"a": entry((1,), dtype="C64")}),
    "a hundred axes": safe({"a": entry((1,) * 100, (0, 4))}, bytes(4)),
    "metadata of numbers": safe({"__metadata__": {"a": 1}, "a": entry()}), "a newline": safe({"a\nb": entry()}),
    "metadata of text": safe({"__metadata__": "x", "a": entry()}),
    "a lone surrogate": safe(b'{"\\ud800": ' + ENTRY + b"}"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFE)
def test_hostile_safetensors_files(tmp_path, name):
    assert refused(tmp_path / "w.safetensors", SAFE[name]).startswith(f"{tmp_path}/w.safetensors: ")
    with pytest.raises(ValueError, match="it does not record its network"):
        transfer.described(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000, "-" * 20_000 + "1", "9" * 9000, "[1, 2]", "{'model': 3}", "{'fields': [1]}", "{'fields': {1: 2}}",
        "{'model': ", "\0", "{[]: 1}", "x" * 10_000,
    ],
)  # fmt: skip
def test_metadata_that_do_not_name_a_network(tmp_path, text):
    path = tmp_path / "w.safetensors"
    refused(path, safetensors.numpy.save({"a": B}, {"ablate": text}), weights.description, "its metadata 'ablate'")


@pytest.mark.parametrize(
    "fields",
    [{"stage_sizes": 3}, {"width": -1}, {"width": "x"}, {"norm": 5}, {"num_classes": 10**30}, {"stage_sizes": ((),)}],
)
def test_unknown_fields_are_refused(tmp_path, capsys, fields):
    path = tmp_path / "w.safetensors"
    write(path, {"a": B}, {"ablate": repr({"model": "resnet18", "fields": fields})})
    assert main(["weights", "export", str(path), "--to=timm", f"--out={tmp_path}/o.npz"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_types_of_safetensors(tmp_path):
    arrays = {
        name: np.arange(3).astype(name)
        for name in (
            "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32",
            "uint16", "uint8", "bool",
        )
    }  # fmt: skip
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors", {"k": "v"})
    restored = read(tmp_path / "w.safetensors")
    assert weights.metadata(tmp_path / "w.safetensors") == {"k": "v"}
    for name, array in arrays.items():
        assert restored[name].dtype == ("float32" if name in ("float16", "bfloat16") else name)
        np.testing.assert_array_equal(restored[name], array.astype(restored[name].dtype))


# Mutants

BASES = {
    "npz.npz": saved(a=A, b=B),
    "deflated.npz": archive({"a.npy": npy(), "b.npy": npy()}, zipfile.ZIP_DEFLATED),
    "safe.safetensors": safetensors.numpy.save({"a": A, "b": B}, {"format": "pt"}),
    **{
        f"{name}.pth": TORCH[name].tobytes()
        for name in ("new", "old", "training", "old_training", "views", "old_views")
    },
}


@pytest.mark.parametrize("name", BASES)
def test_mutants_of_weights(tmp_path, name):
    """Checks that each mutant gives one line or arrays, with memory for a few times its length."""
    path, outcomes = tmp_path / name, set()
    for what, data in mutants(BASES[name], 3, 60):
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            arrays = read(path)
            outcomes.add("read")
        except UserError as error:
            assert "\n" not in str(error) and re.match(rf"{re.escape(str(path))}: ", str(error)), what
            outcomes.add("refused")
        else:
            assert sum(array.nbytes for array in arrays.values()) < 1 << 20, what
        assert time.perf_counter() - start < 5, what
    assert "refused" in outcomes


def test_mutants_of_data_sets(tmp_path):
    base = saved(train_image=np.arange(96, dtype=np.uint8).reshape(6, 4, 4, 1), train_label=np.arange(6) % 3)
    for what, data in mutants(base, 4, 100):
        (tmp_path / "a.npz").write_bytes(data)
        start = time.perf_counter()
        try:
            load(Options(f"arrays:{tmp_path}/a.npz"), "train")
        except UserError as error:
            assert "\n" not in str(error), what
        assert time.perf_counter() - start < 5, what


def test_mutants_are_the_same_for_a_seed():
    base = BASES["npz.npz"]
    first, again, other = (list(mutants(base, seed, 50)) for seed in (1, 1, 2))
    assert first == again != other and all(data != base for _, data in first) and len(first) == 50

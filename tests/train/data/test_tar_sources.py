"""Tar files: the same bits as folders, webdataset's rules, ImageNet's archives, the kept index."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from models.errors import UserError
from tests.golden import FOLDER
from tests.train.data.packed import FORMATS, images, opened, png, same, shard, tar, write_folder
from train.data import imagenet
from train.data.names import Names
from train.data.sources import kept, tar_index, tar_members, webdataset


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder", images())


def written(path, members, kind="gnu"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(members if isinstance(members, bytes) else tar(members, kind))
    return path


SPLITS = ("train", "test", "train_fit", "validation")


# The same bits in every form


@pytest.mark.parametrize("split", SPLITS)
def test_every_form_of_a_set_gives_the_bits_of_its_folder(tmp_path, folder, split):
    members = images()
    shuffled = dict(reversed(members.items()))
    written(tmp_path / "a.tar", shuffled)
    written(tmp_path / "around.tar", {f"./set/x/{name}": content for name, content in members.items()}, "pax")
    for name in ("cat", "dog", "eel"):
        part = {file.partition("/")[2]: content for file, content in members.items() if file.startswith(name)}
        written(tmp_path / "classes" / f"{name}.tar", part, "ustar")
    inner = {path.name: path.read_bytes() for path in (tmp_path / "classes").iterdir()}
    written(tmp_path / "tars.tar", inner)
    items = list(shard(members).items())
    for number in range(3):
        written(tmp_path / "shards" / f"{number:03}.tar", dict(items[14 * number : 14 * number + 14]))
    forms = ("a.tar", "around.tar", "classes", "tars.tar", "shards/{000..002}.tar")
    expected = opened(f"folder:{folder}", split)
    identities = set()
    for form in forms:
        kind = "webdataset" if "shards" in form else "tar"
        source = opened(f"{kind}:{tmp_path}/{form}", split)
        same(source, expected)
        identities.add(source.identity()["content"])
    assert len(identities) == 1  # how a set is packed is not what it is


def test_splits_in_one_tar_in_several_and_in_folders(tmp_path):
    members = images()
    parts = {"train": members, "val": {name: png(200 + i) for i, name in enumerate(list(members)[::3])}}
    whole = {f"{split}/{name}": content for split, part in parts.items() for name, content in part.items()}
    expected = write_folder(tmp_path / "folder", whole)
    written(tmp_path / "one.tar", whole)
    for split, part in parts.items():
        written(tmp_path / "two" / f"set-{split}.tar", part)
        written(tmp_path / "shards" / f"set-{split}-000.tar", shard(part))
        written(tmp_path / "deep" / split / "0.tar", shard(part))
        for name in ("cat", "dog", "eel"):
            inside = {file.partition("/")[2]: content for file, content in part.items() if file.startswith(name)}
            written(tmp_path / "nested" / split / f"{name}.tar", inside)
    (tmp_path / "two" / "notes.tar").write_bytes(tar({"a/b.txt": b""}))
    patterns = f"{tmp_path}/shards/set-{{train,val}}-000.tar"
    for source in (
        f"tar:{tmp_path}/one.tar", f"tar:{tmp_path}/two", f"tar:{tmp_path}/nested", f"webdataset:{patterns}",
        f"webdataset:{tmp_path}/shards", f"webdataset:{tmp_path}/shards/*.tar", f"webdataset:{tmp_path}/deep",
        f"webdataset:{tmp_path}/shards/set-train-000.tar::{tmp_path}/shards/set-val-000.tar",
    ):  # fmt: skip
        for split in ("train", "test"):
            one, other = opened(source, split), opened(f"folder:{expected}", split)
            assert one.classes == other.classes
            for key in ("image", "label"):
                assert np.array_equal(one.arrays()[key], other.arrays()[key])
    assert "not used: notes.tar" in opened(f"tar:{tmp_path}/two").report


@pytest.mark.parametrize("kind", FORMATS)
def test_long_names_and_all_formats_are_read_as_tarfile_reads_them(tmp_path, kind):
    names = ["a.png", "ä/ü.png", "x" * 90 + "/" + "y" * 90 + ".png"]
    names += ["deep/" * 60 + "n" * 120 + ".png"] * (kind != "ustar")
    content = {name: png(number) + bytes(600 * number) for number, name in enumerate(names)}
    path = written(tmp_path / "a.tar", content, kind)
    with tarfile.open(path) as file, path.open("rb") as raw:
        expected = [(member.name, member.offset_data, member.size, True) for member in file]
        read = [(m.name.decode(), *m[1:]) for m in tar_members.members(raw.fileno())]
    assert read == expected and [name for name, *_ in read] == names


def test_large_and_small_members_in_any_order_and_more_headers_than_are_checked_at_once(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [*rng.choice([0, 1, 511, 512, 513, 5000, 40_000, 300_000], 60), *[3] * 2500, 300_000, 7]
    content = {f"{number}.bin": bytes([number % 256]) * size for number, size in enumerate(sizes)}
    path = written(tmp_path / "a.tar", content)
    with path.open("rb") as raw:
        for name, offset, size, _ in tar_members.members(raw.fileno()):
            assert os.pread(raw.fileno(), size, offset) == content.pop(name.decode())
    assert not content
    damaged = bytearray(path.read_bytes())
    place = damaged.index(b"2000.bin")
    damaged[place : place + 1] = b"9"
    with pytest.raises(UserError, match="a header before byte [0-9,]+ is damaged"):
        opened(f"tar:{written(path, bytes(damaged))}")


def test_files_of_other_programs_are_read(tmp_path):
    """GNU tar 1.34 in four formats, bsdtar's pax, and webdataset 1.0's TarWriter wrote the golden archives."""
    golden = np.load(FOLDER / "tars.npz")
    assert len(golden.files) >= 5
    for name in golden.files:
        path = tmp_path / f"{name}.tar"
        path.write_bytes(gzip.decompress(golden[name].tobytes()))
        with tarfile.open(path) as file, path.open("rb") as raw:
            expected = [(m.name, m.offset_data, m.size) for m in file if m.isreg() and not m.issparse()]
            read = [(m.name.decode(), m.offset, m.size) for m in tar_members.members(raw.fileno()) if m.is_file]
        assert read == expected and len(read) >= 3, name


# Webdataset


def test_examples_are_members_with_one_name_up_to_the_first_dot(tmp_path):
    parts = {
        "a/1.cls": b"1", "a/1.jpg": png(1), "a/2.png": png(2), "a/2.json": b'{"label": 0}', "a/2.left.png": b"",
        "b/1.txt": b" 2\n", "b/1.PNG": png(3), "c.4.jpg": b"", ".hidden.png": b"",
        "c.cls": b"0", "c.json": b"not JSON, and not read", "c.jpeg": png(4), "d.npy": b"x", "README": b"x",
    }  # fmt: skip
    source = opened(f"webdataset:{written(tmp_path / 'train-0.tar', parts)}", "train")
    source = source.source  # all of them, before a fifth is held out
    assert [source.key(i) for i in range(4)] == ["a/1.jpg", "a/2.png", "b/1.png", "c.jpeg"]
    assert source.known_labels().tolist() == [1, 0, 2, 0] and source.classes == ("0", "1", "2")
    assert source.arrays()["image"][:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert "(1 hidden, 1 .left.png, 1 .4.jpg, 1 without an ending, 1 without an image left out)" in source.report


def test_class_names_lie_beside_the_shards_or_are_the_labels(tmp_path):
    members = images()
    written(tmp_path / "train" / "0.tar", shard(members, numbers=True))
    written(tmp_path / "val" / "0.tar", shard(dict(list(members.items())[:8]), numbers=True))
    source = f"webdataset:{tmp_path}"
    assert opened(source).classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("Katze\nHund\nAal\nSpinne\n")
    for split in ("train", "test"):
        assert opened(source, split).classes == ("Katze", "Hund", "Aal", "Spinne")
    (tmp_path / "classes.txt").write_text("Katze\nHund\n")
    with pytest.raises(UserError, match=r"0.tar: eel/0.png has the label '2'; allowed: the 2 classes of .*classes.txt"):
        opened(source)
    (tmp_path / "classes.txt").unlink()
    written(tmp_path / "val" / "0.tar", shard({"fox/1.png": png(1)}))
    with pytest.raises(
        UserError, match=r"fox/1.png has the label 'fox'; allowed: the 3 classes of the training shards"
    ):
        opened(source, "test")


def test_labels_mean_in_each_split_what_they_mean_in_training(tmp_path):
    parts = {f"{i}.png": png(i) for i in range(3)}
    train = {**parts, "0.cls": b"x", "1.cls": b"2", "2.cls": b"7"}  # names, although two are digits
    written(tmp_path / "train.tar", dict(sorted(train.items())))
    written(tmp_path / "val.tar", {"0.cls": b"7", "0.png": png(0), "1.cls": b"2", "1.png": png(1)})
    source = opened(f"webdataset:{tmp_path}", "test")
    assert source.classes == ("2", "7", "x") and source.all_labels().tolist() == [1, 0]
    written(tmp_path / "train.tar", dict(sorted({**train, "0.cls": b"0"}.items())))
    written(tmp_path / "val.tar", {"0.cls": b"x", "0.png": png(0)})
    with pytest.raises(UserError, match="0.png has the label 'x'; allowed: the 8 classes of the training shards"):
        opened(f"webdataset:{tmp_path}", "test")
    (tmp_path / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match="classes.txt: 'a' is there twice"):
        opened(f"webdataset:{tmp_path}")


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{a,b}{9..10}", ["a9", "a10", "b9", "b10"]),
        ("a{}b", ["ab"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_webdatasets(pattern, expected):
    assert webdataset.expand(pattern) == expected


def test_missing_shards_are_named(tmp_path):
    for number in (0, 1, 3):
        written(tmp_path / f"s-{number:03}.tar", shard(images()))
    with pytest.raises(UserError, match=r"1 of the 4 shards are missing: .*s-002.tar$"):
        opened(f"webdataset:{tmp_path}/s-{{000..003}}.tar")
    with pytest.raises(UserError, match="must rise, and name at most 100,000 shards"):
        opened(f"webdataset:{tmp_path}/s-{{0..999999}}.tar")
    with pytest.raises(UserError, match="more than 100,000 shards"):
        opened(f"webdataset:{tmp_path}/{{0..999}}{{0..999}}.tar")
    for pattern, message in (("none.tar", "no such file or folder"), ("x*.tar", "no file has such a name")):
        with pytest.raises(UserError, match=message):
            opened(f"webdataset:{tmp_path}/{pattern}")
    written(tmp_path / "train-9.tar", shard(images()))
    with pytest.raises(UserError, match=r"s-000.tar: its name tells no split .* but that of train-9.tar does"):
        opened(f"webdataset:{tmp_path}")


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"a.png": b"x"}, r"example 'a' has no label: add a member .cls"),
        ({"a.png": b"x", "a.cls": b" "}, r"example 'a' has no label"),
        ({"a.png": b"x", "a.json": b'{"caption": "x"}'}, r"example 'a' has no label"),
        ({"a.png": b"x", "a.json": b"{"}, r"a member .json at byte \d[\d,]* is not JSON"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"1"}, r"example 'a' has 2 images, .png, .jpg; allowed: one"),
        ({"a.cls": b"1"}, r"its shards hold no images \(1 without an image\)"),
        ({"a.png": b"x", "a.cls": b"99999999"}, r"the label 99999999 is beyond the 65,536 classes"),
        ({"a.png": b"x", "a.cls": b"9" * 5000}, r"no label: it has 5,000 characters"),
        ({}, r"its shards hold no images \(nothing at all\)"),
    ],
)
def test_examples_that_lack_something_are_refused(tmp_path, parts, message):
    with pytest.raises(UserError, match=message) as error:
        opened(f"webdataset:{written(tmp_path / 'a.tar', parts)}")
    assert "\n" not in str(error.value)


def test_names_that_are_there_twice_are_refused(tmp_path):
    def twice(*names):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as file:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 1
                file.addfile(member, io.BytesIO(b"1"))
        return written(tmp_path / "a.tar", buffer.getvalue())

    with pytest.raises(UserError, match="member 'a.png' is there twice"):
        opened(f"webdataset:{twice('a.png', 'a.cls', 'a.png')}")
    with pytest.raises(UserError, match="two examples have the same name"):
        opened(f"webdataset:{twice('a.png', 'a.cls', 'b.png', 'b.cls', 'a.png', 'a.cls')}")
    with pytest.raises(UserError, match="member 'x/a.png' is there twice"):
        opened(f"tar:{twice('x/a.png', 'y/a.png', 'x/a.png')}")


# ImageNet's archives


WNIDS = imagenet.wnids()[:3]


def ilsvrc(root):
    """Writes ImageNet's archives with three classes; returns the labels of the nine validation images."""
    inner = {
        f"{wnid}.tar": tar({f"{wnid}_{i}.JPEG": png(20 * label + i) for i in (3, 1, 2)})
        for label, wnid in enumerate(WNIDS)
    }
    written(root / "ILSVRC2012_img_train.tar", inner)
    written(root / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_{i:08}.JPEG": png(100 + i) for i in range(1, 10)})
    written(root / "ILSVRC2012_img_test_v10102019.tar", {"test/ILSVRC2012_test_1.JPEG": png(0)})
    return [0, 2, 1, 1, 0, 2, 2, 1, 0]


def devkit(labels, numbers=(7, 5, 9)):
    """Returns the development kit, whose numbers of classes are in another order."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, "words", "gloss", 0) for number, wnid in zip(numbers, WNIDS, strict=True)]
    buffer = io.BytesIO()
    table = np.array([*rows, (1001, "n00001740", "entity", "", 3)], fields).reshape(-1, 1)
    scipy.io.savemat(buffer, {"synsets": table}, do_compression=True)
    truth = "".join(f"{numbers[label]}\n" for label in labels).encode()
    name = "ILSVRC2012_devkit_t12/data"
    parts = {f"{name}/meta.mat": buffer.getvalue(), f"{name}/ILSVRC2012_validation_ground_truth.txt": truth}
    return gzip.compress(tar(parts))


def kaggle(labels):
    rows = [f"ILSVRC2012_val_{i:08},{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8" for i, label in enumerate(labels, 1)]
    return "\n".join(["ImageId,PredictionString", *reversed(rows)]).encode()


BESIDE = {
    "ILSVRC2012_devkit_t12.tar.gz": devkit,
    "LOC_val_solution.csv": kaggle,
    "val_labels.txt": lambda labels: "\n".join(WNIDS[label] for label in labels).encode(),
    "validation_labels.txt": lambda labels: "\n".join(map(str, labels)).encode(),
    "ILSVRC2012_img_val_labels.txt": lambda labels: "".join(
        f"ILSVRC2012_val_{i:08}.JPEG {WNIDS[label]}\n" for i, label in enumerate(labels, 1)
    ).encode(),
}


@pytest.mark.parametrize("name", BESIDE)
def test_imagenet_is_read_as_it_is_downloaded(tmp_path, name):
    labels = ilsvrc(tmp_path)
    (tmp_path / name).write_bytes(BESIDE[name](labels))
    train, test = (opened(f"tar:{tmp_path}", split) for split in ("train", "test"))
    assert train.classes == test.classes == WNIDS and "9 images in 3 classes" in train.report
    assert "not used: ILSVRC2012_img_test_v10102019.tar" in train.report
    assert train.arrays()["image"][:, 0, 0, 0].tolist() == [1, 2, 3, 21, 22, 23, 41, 42, 43]
    assert train.arrays()["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert train.key(4) == f"{WNIDS[1]}/{WNIDS[1]}_2.JPEG"
    assert test.arrays()["label"].tolist() == labels
    assert test.arrays()["image"][:, 0, 0, 0].tolist() == list(range(101, 110))
    assert len(opened(f"tar:{tmp_path}", "validation")) == len(train) // 5 + 1
    assert opened(f"tar:{tmp_path}/ILSVRC2012_img_val.tar", "test").known_labels().tolist() == labels


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("val_labels.txt", b"n1\nn2\n", r"val_labels.txt: it has 2 lines, but there are 9 images"),
        ("val_labels.txt", b"a b c\n", r"the line 'a b c' is no class"),
        ("val_labels.txt", b"\n".join([b"5000"] * 9), r"'5000' is beyond the 1,000 classes of ImageNet"),
        ("val_labels.txt", b"\n".join([WNIDS[0].encode()] * 8 + [b"n5"]), r"classes that training lacks: n5"),
        ("val_labels.txt", b"\xff\xfe" * 9, r"val_labels.txt: damaged, or not a text file"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\n", r"it has no label for ILSVRC2012_val_00000001.JPEG"),
        ("ILSVRC2012_devkit_t12.tar.gz", b"no archive", r"devkit_t12.tar.gz: cannot be read: Not a gzipped file"),
        ("ILSVRC2012_devkit_t12.tar.gz", gzip.compress(tar({"a": b""})), r"it holds no data/ILSVRC2012_val"),
        ("ILSVRC2012_devkit_t12.tar.gz", devkit([0, 1]), r"it has the labels of 2 images, but there are 9"),
        ("ILSVRC2012_devkit_t12.tar.gz", gzip.compress(bytes(70 << 20)), r"it unpacks to more than 67,108,864 bytes"),
        ("other.txt", b"", r"img_val.tar: its images lie in no folders, so their labels must lie beside it"),
    ],
)
def test_labels_beside_imagenets_images_are_checked(tmp_path, name, content, message):
    ilsvrc(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        opened(f"tar:{tmp_path}", "test")
    assert "\n" not in str(error.value)


# Damaged tars


def header(name=b"a.png", size=b"00000000010", kind=b"0", magic=b"ustar\x0000"):
    """Returns a header with a right checksum."""
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[257 : 257 + len(magic)], block[148:156] = magic, b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


WHOLE = tar(images())
RECORD = b"30 path=" + b"p" * 21 + b"\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "it is empty, not a tar"),
        (b"no tar", "this is not a tar"),
        (bytes(10240), "holds no images"),
        (b"x" * 2048, "this is not a tar"),
        (gzip.compress(WHOLE), "it is compressed, and has no random access: unpack it once, to a .tar, by gunzip"),
        (WHOLE[:1500], "it was cut short: it ends at byte 1,500 without the end mark"),
        (WHOLE[:520], r"it was cut short: member 'cat/0.png' has \d+ bytes, of which 8 are there"),
        (WHOLE[:600], "it was cut short: it ends at byte 600 without the end mark"),
        (WHOLE[:2048], "it was cut short: it ends at byte 2,048 without the end mark"),
        (WHOLE[:1100] + b"X" + WHOLE[1101:], "a header before byte .* is damaged"),
        (WHOLE + WHOLE, "bytes follow its end mark"),
        (WHOLE + bytes(2 << 20) + WHOLE, "bytes follow its end mark: join tars by tar --concatenate"),
        (header(size=b"77777777777"), "member 'a.png' has 8,589,934,591 bytes, of which 0 are there"),
        (header(size=b"\x80\0\0\0\x7f" + b"\xff" * 7), "this is not a tar"),
        (header(size=b"\xff" * 12), "this is not a tar"),
        (header(size=b"-0000000010"), "this is not a tar"),
        (header(kind=b"L", size=b"77777777777"), "a header has 8,589,934,591 bytes; allowed"),
        (header(kind=b"x", size=b"00000000036") + RECORD.ljust(512, b"\0"), "ends at byte 1,024 without the end mark"),
        (header(kind=b"x", size=b"00000000036") + b"99999999999 path=a\n".ljust(512, b"\0"), "not a tar|is damaged"),
        (header(kind=b"x", size=b"00000000036") + b"0 path=a\n".ljust(512, b"\0"), "not a tar|is damaged"),
        (header(kind=b"L", size=b"00000100000") + b"n" * 32768 + header() + bytes(1536), "a name has 32,768 bytes"),
        (tar({"cat.tar": b"no tar", "dog.tar": WHOLE}), "member cat.tar: this is not a tar"),
        (tar({"cat.tar": gzip.compress(WHOLE)}), "member cat.tar: it is compressed"),
        (tar({"a/x.txt": b"x", "b.npy": b"x"}), r"holds no images \(1 .txt, 1 .npy\)"),
    ],
)  # fmt: skip
def test_damaged_tars_are_refused_in_one_line(tmp_path, content, message):
    path = written(tmp_path / "a.tar", content)
    with pytest.raises(UserError, match=message) as error:
        opened(f"tar:{path}")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_links_folders_and_sparse_files_are_left_out_and_counted(tmp_path):
    links = {}
    for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("p.png", tarfile.FIFOTYPE)):
        links[name] = tarfile.TarInfo(f"cat/{name}")
        links[name].type, links[name].linkname = kind, "../../../etc/passwd"
    links["d"] = tarfile.TarInfo("cat")
    links["d"].type = tarfile.DIRTYPE
    members = {"../../cat.png": png(0), "__MACOSX/cat/1.png": png(0), "cat/._1.png": png(0), "outside.png": png(0)}
    source = opened(f"tar:{written(tmp_path / 'a.tar', {**images(), **links, **members})}").source
    assert len(source) == 21
    assert "(3 hidden, 3 link or special file, 1 outside of the folders left out)" in source.report
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar"} and not Path(
        tmp_path.parent.parent, "cat.png"
    ).exists()


def test_a_member_that_is_no_image_is_named_when_it_is_read(tmp_path):
    path = written(tmp_path / "a.tar", {**images(), "cat/bad.png": b"no picture"})
    with pytest.raises(UserError, match=r"cannot decode image .*a.tar: cat/bad.png: .*data.on_error=skip"):
        opened(f"tar:{path}").source.arrays()
    assert opened(f"tar:{path}", on_error="skip").source.arrays()["mask"].sum() == 21


def test_missing_tars_and_compressed_ones_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        opened(f"tar:{tmp_path}/none")
    with pytest.raises(UserError, match="there are no .tar files in this folder$"):
        opened(f"tar:{tmp_path}")
    (tmp_path / "cat.tar.gz").write_bytes(gzip.compress(WHOLE))
    for kind in ("tar", "webdataset"):
        with pytest.raises(UserError, match=r"no .tar files.*; cat.tar.gz is compressed: unpack it once"):
            opened(f"{kind}:{tmp_path}")


# Reading


def test_a_source_is_pickled_without_open_files_and_reads_in_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MOST_OPEN", 2)
    items = list(shard(images(count=20)).items())
    for number in range(12):
        written(tmp_path / f"{number:02}.tar", dict(items[10 * number : 10 * number + 10]))
    source = opened(f"webdataset:{tmp_path}").source
    expected = source.arrays(threads=1)["image"]
    pickled = pickle.dumps(source)
    assert len(pickled) < 20_000
    copy, order = pickle.loads(pickled), np.random.default_rng(0).permutation(60)
    results = {}

    def read(number):
        results[number] = copy.read(np.roll(order, number))["image"]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in results.items():
        assert np.array_equal(found, expected[np.roll(order, number)])
    assert len(results) == 8 and len(copy._files._open) <= 8  # each thread holds one at most
    copy.fetch([0])
    assert len(copy._files._open) <= 2


def test_a_shard_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = written(tmp_path / "a.tar", images())
    source = opened(f"tar:{path}")
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=r"a.tar: it was cut short after it was opened"):
        source.arrays()


def test_identity_changes_with_a_byte_a_label_and_a_name(tmp_path):
    members = shard(images())

    def identity(**changes):
        return opened(f"webdataset:{written(tmp_path / 'a.tar', {**members, **changes})}").source.identity()

    whole = identity()
    assert whole == identity() and whole["images"] == 21
    assert len({whole["content"], identity(**{"cat/3.png": png(99)})["content"],
                identity(**{"cat/3.cls": b"dog"})["content"]}) == 3  # fmt: skip


# The kept index


def test_the_index_is_kept_and_made_again_when_a_shard_changes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 1)
    path = written(tmp_path / "a.tar", images())
    first = opened(f"tar:{path}")
    (file,) = cache.iterdir()
    scans = []
    build = tar_index._build
    monkeypatch.setattr(tar_index, "_build", lambda *arguments: scans.append(1) or build(*arguments))
    same(opened(f"tar:{path}"), first)
    assert not scans
    written(path, images(count=9))
    assert len(opened(f"tar:{path}").source) == 27 and len(scans) == 1
    assert list(cache.iterdir()) == [file]  # it took the old one's place
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert len(opened(f"tar:{path}").source) == 27 and len(scans) == 2
    assert len(opened(f"tar:{path}").source) == 27 and len(scans) == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(kept, "LEAST", 1)
    path = written(tmp_path / "a.tar", images())
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    assert len(opened(f"tar:{path}").source) == 21


def test_names_are_a_blob():
    names = ["a", "", "ü/b", "\udcff"]
    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    blob = Names.of_lengths(b"".join(encoded), np.array([len(name) for name in encoded]))
    assert list(blob) == names and blob[2] == "ü/b" and list(blob.take(np.array([3, 0]))) == ["\udcff", "a"]
    assert blob.take(np.array([2, 0])).joined() == "ü/ba".encode()


def test_the_number_of_bytes_in_a_binary_size():
    assert tar_members._number(b"\x80" + struct.pack(">IQ", 0, 1 << 40)[1:]) == 1 << 40

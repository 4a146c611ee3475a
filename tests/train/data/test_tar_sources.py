"""Tar files: the same bits as folders, webdataset's rules, ImageNet's archives, the kept index."""

import gzip
import io
import os
import tarfile

import numpy as np
import pytest
import scipy.io

from models.errors import UserError
from tests.golden import FOLDER
from tests.train.data.packed import FORMATS, images, opened, png, same, shard, tar, write_folder, written
from train.data import imagenet
from train.data.sources import tar_members, webdataset


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder", images())


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
        ("t-{{00..01},{10..11}}", ["t-00", "t-10", "t-11", "t-01"]),
        ("{a,{b,c}}d", ["ad", "bd", "cd"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_webdatasets(pattern, expected):
    assert sorted(webdataset.expand(pattern)) == sorted(expected)


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


def test_labels_beside_several_tars_are_those_of_the_sorted_names(tmp_path):
    for number in range(2):  # val-0.tar has 0.png, 2.png, …; its label lies in line 0, 2, …
        written(tmp_path / f"val-{number}.tar", {f"{i}.png": png(i) for i in range(number, 6, 2)})
    written(tmp_path / "train.tar", {f"{name}/0.png": png(9) for name in "ab"})
    (tmp_path / "val_labels.txt").write_text("a\nb\nb\na\nb\na\n")
    test = opened(f"tar:{tmp_path}", "test")
    names = [test.name(i)[-5:] for i in range(6)]
    assert {name: test.classes[label] for name, label in zip(names, test.all_labels(), strict=True)} == {
        f"{i}.png": "abbaba"[i] for i in range(6)
    }
    written(tmp_path / "val-1.tar", {"0.png": png(0), "1.png": png(1), "2.png": png(2)})
    with pytest.raises(UserError, match="0.png is in several tars"):
        opened(f"tar:{tmp_path}", "test")


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
    return gzip.compress(tar(parts), mtime=0)


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
        ("ILSVRC2012_devkit_t12.tar.gz", gzip.compress(tar({"a": b""}), mtime=0), r"it holds no data/ILSVRC2012_val"),
        ("ILSVRC2012_devkit_t12.tar.gz", devkit([0, 1]), r"it has the labels of 2 images, but there are 9"),
        (
            "ILSVRC2012_devkit_t12.tar.gz",
            gzip.compress(bytes(70 << 20), mtime=0),
            r"it unpacks to more than 67,108,864 bytes",
        ),
        ("other.txt", b"", r"img_val.tar: its images lie in no folders, so their labels must lie beside it"),
    ],
)
def test_labels_beside_imagenets_images_are_checked(tmp_path, name, content, message):
    ilsvrc(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        opened(f"tar:{tmp_path}", "test")
    assert "\n" not in str(error.value)

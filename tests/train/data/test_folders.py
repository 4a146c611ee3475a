"""Folders of images: hidden files, links, endings, names, splits, and the fifth that is held out."""

import json
import os
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from tests import hostile_pictures as pictures
from train.data import splits
from train.data.load import load
from train.data.source import Options, Unreadable

# Folders


def fill(root, *names, start=0):
    """Writes small, distinct images (up to 256) at these paths; returns the folder."""
    for number, name in enumerate(names, start):
        path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(pictures.saved(np.full((8, 8), number % 256, np.uint8), "PNG"))
    return root


def class_of(name, count=5):
    return [f"{name}/{number}.png" for number in range(count)]


def opened(root, split="train", **changes):
    return load(Options(f"folder:{root}", image_size=8, crop="resize", **changes), split)


def test_hidden_files_and_files_of_the_system_are_not_images(tmp_path):
    fill(tmp_path, *class_of("cat"), *class_of("dog"))
    hidden = [
        "cat/.ipynb_checkpoints/1-checkpoint.png", ".ipynb_checkpoints/1.png", "cat/._1.png", "__MACOSX/cat/._1.png",
        "cat/@eaDir/1.png", "dog/deep/.hidden.png", ".git/objects/1.png", "cat/deep/.cache/deeper/1.png",
    ]  # fmt: skip
    for name in hidden:
        fill(tmp_path, name)
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0")
    source, test = opened(tmp_path), opened(tmp_path, "test")
    assert source.classes == ("cat", "dog") and len(source) + len(test) == 10 and len(test) == 2
    assert (
        source.report
        == test.report
        == (f"folder {tmp_path}: 10 images in 2 classes (12 hidden left out); 2 of them are held out for testing")
    )


def test_the_report_counts_ignored_files_by_reason(tmp_path):
    fill(tmp_path, *class_of("cat", 3), *class_of("dog", 3), "outside.png")
    for number in range(4):
        (tmp_path / "cat" / f"{number}.HEIC").write_bytes(b"")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "dog" / "README").write_bytes(b"")
    (tmp_path / "dog" / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "dog" / "itself.png").symlink_to("itself.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    assert (
        opened(tmp_path).report.startswith(f"folder {tmp_path}: 6 images in 2 classes (1 hidden, 4 .heic, ")
        and "; 1 of them" in opened(tmp_path).report
    )
    for reason in ("2 broken link", "1 without an ending", "1 outside of the folders", "1 not a file"):
        assert reason in opened(tmp_path).report
    for number in range(9):
        (tmp_path / "dog" / f"a.x{number}").write_bytes(b"")
    assert "5 of other endings left out)" in opened(tmp_path).report


ENDS = [
    ".jpg", ".JPG", ".jpeg", ".Jpeg", ".jpe", ".jfif", ".png", ".PNG", ".apng", ".bmp", ".dib", ".gif", ".webp",
    ".tif", ".TIFF", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".qoi", ".mpo", ".ico",
]  # fmt: skip


@pytest.mark.parametrize("ending", ENDS)
def test_endings_of_pictures(ending, tmp_path):
    fill(tmp_path, f"a/1{ending}", f"a/2{ending}")  # the content of a file, not its ending, decides how it is read
    assert opened(tmp_path).example(0)["image"].shape == (8, 8, 3)


@pytest.mark.parametrize("ending", [".pdf", ".eps", ".ps", ".heic", ".svg", ".mpg", ".h5", ".txt", ".npy", ".png~"])
def test_endings_of_other_files(ending, tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png", f"a/3{ending}")
    assert len(opened(tmp_path)) == 1 and f"1 {ending} left out" in opened(tmp_path).report
    with pytest.raises(UserError, match=f"class folder .*/b has no images, only 1 {re.escape(ending)}: fill it or"):
        opened(fill(tmp_path, f"b/1{ending}"))


def test_links_are_followed_without_endless_loops(tmp_path):
    """Tests links to a folder of images, a file, the link itself, the class, all classes, and the whole disk."""
    elsewhere = fill(tmp_path / "elsewhere", *[f"deep/{n}.png" for n in range(4)], "one.png")
    root = fill(tmp_path / "set", *class_of("cat", 2), *class_of("dog", 2), "dog/inside/9.png")
    (root / "cat" / "more").symlink_to(elsewhere / "deep")
    (root / "cat" / "again").symlink_to(elsewhere / "deep")
    (root / "cat" / "one.png").symlink_to(elsewhere / "one.png")
    (root / "bird").symlink_to(elsewhere / "deep")
    for number, target in enumerate([".", "..", "inside", "../..", "/", "../dog"]):
        (root / "dog" / f"loop{number}").symlink_to(target)
    (root / "dog" / "itself").symlink_to("itself")
    names = [name for split in ("train", "test") for name in opened(root, split).files]
    assert sorted(names) == sorted(
        [
            "cat/0.png", "cat/1.png", "cat/one.png", *[f"cat/again/{n}.png" for n in range(4)], "dog/0.png",
            "dog/1.png", "dog/inside/9.png", *[f"bird/{n}.png" for n in range(4)],
        ]
    )  # fmt: skip


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training"])
@pytest.mark.parametrize("test", ["test", "Testing", "TEST", "val", "Valid", "VALIDATION"])
def test_folders_that_are_splits(train, test, tmp_path):
    fill(
        tmp_path,
        *class_of(f"{train}/cat"),
        *class_of(f"{train}/dog"),
        *class_of(f"{test}/cat", 2),
        *class_of(f"{test}/dog", 1),
    )
    (tmp_path / "__MACOSX").mkdir()
    assert [opened(tmp_path).classes, len(opened(tmp_path)), len(opened(tmp_path, "test"))] == [("cat", "dog"), 10, 3]
    assert opened(tmp_path, "test").report == f"folder {tmp_path}/{test}: 3 images in 2 classes"
    assert len(opened(tmp_path, "validation")) == 2 and len(opened(tmp_path, "train_fit")) == 8


def test_other_folders_beside_splits_are_reported(tmp_path):
    fill(tmp_path, *class_of("train/cat"), *class_of("val/cat"), "test/0.png", "masks/cat/0.png")
    source = opened(tmp_path)
    assert len(source) == 5 and opened(tmp_path, "test").files[0] == "val/cat/0.png"
    assert source.report.endswith("; not searched, since it is not a split: masks, test")


@pytest.mark.parametrize(
    "names, classes",
    [
        (["bus", "car", "train"], ("bus", "car", "train")),
        (["bus", "train", "test"], ("bus", "test", "train")),
        (["bus", "train/steam", "train/diesel"], ("bus", "train")),
        (["bus", "Val"], ("Val", "bus")),
    ],
)
def test_a_class_that_is_called_train(names, classes, tmp_path):
    source = opened(fill(tmp_path, *[file for name in names for file in class_of(name)]))
    assert source.classes == classes and "used as a class, not as a split: " in source.report


@pytest.mark.parametrize(
    "names, mixed",
    [
        (["train/cat"], ""),
        (["train", "test"], "test, train"),
        (["val/cat", "test/cat"], ""),
        (["Train"], "Train"),
        (["train/cat", "test"], "test"),
        (["train/cat", "train", "test/cat"], "train"),
    ],
)
def test_splits_without_a_counterpart_are_no_classes(names, mixed, tmp_path):
    fill(tmp_path, *[file for name in names for file in class_of(name)])
    with pytest.raises(
        UserError, match="has no folders except .*: it must have a training folder and a test or valid"
    ) as error:
        opened(tmp_path)
    assert str(error.value).endswith(f"directly in {mixed}" if mixed else "one folder of images for each class")


def test_two_folders_for_one_split_are_refused(tmp_path):
    fill(tmp_path, *[file for name in ("train/cat", "Training/cat", "test/cat") for file in class_of(name)])
    with pytest.raises(UserError, match="two folders for one split: Training, train"):
        opened(tmp_path)


def test_a_test_split_may_lack_classes_but_not_add_any(tmp_path):
    fill(tmp_path, *class_of("train/ant"), *class_of("train/bee"), *class_of("train/cat"), *class_of("test/cat"))
    (tmp_path / "test" / "bee").mkdir()
    (tmp_path / "test" / "nothing").mkdir()
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert test.classes == train.classes == ("ant", "bee", "cat") and set(test.labels) == {2}
    assert "5 images in 1 of 3 classes" in test.report
    assert splits.compare(train, test, "x") == ["2 of the 3 classes have no test images: ant, bee"]
    fill(tmp_path, "test/bees/0.png", "test/wasp/0.png")
    with pytest.raises(UserError, match="classes that the training folder lacks: bees, wasp; did you mean 'bee'?"):
        opened(tmp_path, "test")


NAMES = {
    "composed": "caf\u00e9", "decomposed": "cafe\u0301", "latin1": b"caf\xe9", "money": "$1", "cjk": "\u732b",
    "long": "x" * 200, "spaces": " a  b ", "line": "a\nb", "percent": "%s{0}", "brackets": "[red]x[/red]",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind_work_from_end_to_end(name, tmp_path):
    """Trains a run whose data is decoded as worker processes do, shown, and written as JSON."""
    raw = os.fsencode(NAMES[name])
    fill(tmp_path, *[raw + b"/" + raw[:100] + b"%d.png" % n for n in range(5)], *class_of("zebra"))
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    images = source.read(range(len(source)))["image"]
    assert len(images) == 8 and len(source.classes) == 2 and "zebra" in source.classes
    json.dumps([source.identity(), source.classes, source.name(0), source.report]).encode()
    "".join([*source.classes, source.name(0), source.report]).encode()
    (Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), raw))) / "bad.png").write_bytes(b"no image")
    with pytest.raises(Unreadable, match="cannot decode image") as error:
        for split in ("train", "test"):
            opened(tmp_path, split).arrays()
    assert str(error.value).encode() and "\n" not in str(error.value)


def test_class_names_match_in_any_unicode_normalization(tmp_path):
    fill(
        tmp_path,
        *class_of("train/caf\u00e9"),
        *class_of("train/dog"),
        *class_of("test/cafe\u0301"),
        *class_of("test/dog"),
    )
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert train.classes == test.classes == ("caf\u00e9", "dog") and sorted(set(test.labels)) == [0, 1]
    other = fill(tmp_path / "mac", *class_of("train/cafe\u0301"), *class_of("train/dog"), *class_of("test/dog"))
    assert opened(other).identity() == train.identity()  # a copy made by macOS
    fill(other, "train/caf\u00e9/more.png")
    assert opened(other).classes == train.classes and len(opened(other)) == 11


def test_ten_thousand_classes_take_seconds(tmp_path):
    for number in range(10_001):
        (tmp_path / f"{number:05d}").mkdir()
        for image in range(2):
            (tmp_path / f"{number:05d}" / f"{image}.png").write_bytes(b"")
    began = time.process_time()
    source = opened(tmp_path)
    assert len(source.classes) == 10_001 and time.process_time() - began < 10


@pytest.mark.parametrize(
    "counts, held",
    [
        ((14, 13, 13), (3, 3, 2)), ((40, 1), (8, 0)), ((1, 1, 1, 7), (0, 0, 0, 2)), ((2,), (1,)),
        ((5, 5, 5), (1, 1, 1)), ((2, 2, 2, 2, 2), (1, 1, 0, 0, 0)), ((3, 3, 3), (1, 1, 0)), ((1000, 10), (200, 2)),
        ((1, 1, 1, 1, 2), (0, 0, 0, 0, 1)), ((4,) * 25, (1,) * 20 + (0,) * 5),
    ],
)  # fmt: skip
def test_a_fifth_is_held_out_exactly(counts, held, tmp_path):
    fill(tmp_path, *[name for label, count in enumerate(counts) for name in class_of(f"{label:02d}", count)])
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert np.bincount(test.labels, minlength=len(counts)).tolist() == list(held)
    assert not set(train.files) & set(test.files) and len(train) + len(test) == sum(counts)
    assert np.bincount(train.labels, minlength=len(counts)).min() >= 1
    again = opened(fill(tmp_path / "copy", *train.files, *test.files), "test")
    assert again.files == test.files  # only names decide

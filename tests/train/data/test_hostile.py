"""Data of strangers: folders, names, splits beside each other, and what a run takes for the same data."""

import io
import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import rich.console

from models.errors import UserError
from tests import hostile_pictures as pictures
from tests import tfds_sample, tiny
from tests.hostile_pictures import HEIGHT, WIDTH
from train import loop
from train.data import splits
from train.data.load import load
from train.data.select import select
from train.data.source import Options, Unreadable
from train.data.sources.arrays import ArraySource
from train.devices import multihost
from train.run import build_run

ROOT = Path(__file__).parents[3]
SHAPE = (HEIGHT, WIDTH, 3)


# Folders


def fill(root, *names, start=0):
    """Writes small images, 256 different ones, at these places; returns the folder."""
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


def test_hidden_files_and_what_systems_leave_behind_are_no_images(tmp_path):
    fill(tmp_path, *class_of("cat"), *class_of("dog"))
    hidden = [
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        ".ipynb_checkpoints/1.png",
        "cat/._1.png",
        "__MACOSX/cat/._1.png",
        "cat/@eaDir/1.png",
        "dog/deep/.hidden.png",
        ".git/objects/1.png",
        "cat/deep/.cache/deeper/1.png",
    ]
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


def test_the_report_counts_what_is_left_out_by_reason(tmp_path):
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
    fill(tmp_path, f"a/1{ending}", f"a/2{ending}")  # what is in a file, and not its ending, says how it is read
    assert opened(tmp_path).example(0)["image"].shape == (8, 8, 3)


@pytest.mark.parametrize("ending", [".pdf", ".eps", ".ps", ".heic", ".svg", ".mpg", ".h5", ".txt", ".npy", ".png~"])
def test_endings_of_other_things(ending, tmp_path):
    fill(tmp_path, "a/1.png", "a/2.png", f"a/3{ending}")
    assert len(opened(tmp_path)) == 1 and f"1 {ending} left out" in opened(tmp_path).report
    with pytest.raises(UserError, match=f"class folder .*/b has no images, only 1 {re.escape(ending)}: fill it or"):
        opened(fill(tmp_path, f"b/1{ending}"))


def test_links_are_followed_and_end(tmp_path):
    """To a folder of images, to a file, to itself, to the class, to all classes, and to all of the disk."""
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
            "cat/0.png",
            "cat/1.png",
            "cat/one.png",
            *[f"cat/again/{n}.png" for n in range(4)],
            "dog/0.png",
            "dog/1.png",
            "dog/inside/9.png",
            *[f"bird/{n}.png" for n in range(4)],
        ]
    )


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


def test_what_lies_beside_splits_is_said(tmp_path):
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


def test_a_test_split_may_lack_classes_and_have_none_of_its_own(tmp_path):
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
def test_names_of_any_kind_work_to_the_end(name, tmp_path):
    """In a run: decoded in worker processes' way, shown, and written as JSON."""
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
    assert opened(other).identity() == train.identity()  # a copy by macOS
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
    assert again.files == test.files  # names alone decide


# Splits beside each other


def arrays(labels, shape=(8, 8, 3), classes=None, value=0, **changes):
    labels = np.asarray(labels)
    images = np.random.default_rng(value).integers(0, 256, (len(labels), *shape), np.uint8)
    return ArraySource(images, labels, classes, Options(source="arrays", **changes))


@pytest.mark.parametrize(
    "train, test, message",
    [
        ({}, {"shape": (9, 8, 3)}, "training images are 8x8x3 and its test images 9x8x3"),
        ({}, {"shape": (8, 8, 1)}, "training images are 8x8x3 and its test images 8x8x1"),
        ({}, {"labels": [0, 1, 5]}, "different classes: training lacks 3, 4, 5"),
        ({"labels": [0, 2, 2]}, {"labels": [0, 1, 2]}, "no training image has these labels of test images: 1"),
        (
            {},
            {"labels": [[0, 1], [1, 0]]},
            r"labels of training images have the shape \[\], those of test images \[2\]",
        ),
        ({"labels": [[0, 1], [0, -1]]}, {"labels": [[0, 1], [1, 0]]}, "no training image has these labels .*: 0"),
        ({"classes": ["a", "b", "c"]}, {"classes": ["b", "a", "c"]}, "the test split numbers them differently"),
        ({"classes": ["a", "b", "c"]}, {"classes": ["a", "b", "d"]}, "training lacks d"),
    ],
)
def test_splits_that_do_not_fit_are_refused(train, test, message):
    with pytest.raises(UserError, match=message):
        splits.compare(arrays(**{"labels": [0, 1, 2], **train}), arrays(**{"labels": [0, 1, 2], **test}), "x")


@pytest.mark.parametrize("labels, lacking", [([0, 1, 2], []), ([0, 1], ["2"]), ([2], ["0", "1"])])
def test_a_test_set_that_lacks_classes_is_fine(labels, lacking):
    lines = splits.compare(arrays([0, 1, 2]), arrays(labels), "x")
    assert len(lines) == bool(lacking) and all(line.endswith(": " + ", ".join(lacking)) for line in lines)


def test_of_many_classes_a_few_are_named():
    (line,) = splits.compare(arrays(range(50)), arrays([0]), "x")
    assert line == "49 of the 50 classes have no test images: 1, 2, 3, 4, 5 and 44 more"


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_split_without_a_readable_image_is_an_error(split, tmp_path):
    fill(tmp_path, *class_of("train/a"), *class_of("train/b"), *class_of("test/a"), *class_of("test/b"))
    for path in (tmp_path / split.removesuffix("ing")).rglob("*.png"):
        path.write_bytes(b"no image")
    config = tiny.config(
        data__source=f"folder:{tmp_path}",
        data__image_size=8,
        data__crop="resize",
        steps_per_call=1,
        data__on_error="skip",
        batch_size=4,
        eval_batch_size=4,
    )
    with pytest.raises(UserError, match=f"none of its 10 {split} images can be decoded; the first: cannot decode"):
        build_run(config)


# Identity


def identity_of(images, labels, tmp_path, name="set"):
    np.savez(tmp_path / f"{name}.npz", train_image=images, train_label=labels)
    return load(Options(f"arrays:{tmp_path / name}.npz"), "train").identity()


def changed(array, *place, by=1):
    array = array.copy()
    array[place] += by
    return array


def test_arrays_are_known_by_their_pixels_and_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 250, (40, 8, 8, 1), np.uint8)
    labels = np.arange(40) % 4
    first = identity_of(images, labels, tmp_path)
    assert first == identity_of(images, labels.astype(np.uint8), tmp_path, "copy") and json.dumps(first)
    others = [
        identity_of(*other, tmp_path)
        for other in (
            (changed(images, 0, 0, 0, 0), labels),
            (changed(images, -1, -1, -1, -1), labels),
            (images[::-1], labels[::-1]),
            (images, np.roll(labels, 1)),
            (images, changed(labels, 39, by=-1)),
            (images.reshape(40, 4, 16, 1), labels),
            (images[:39], labels[:39]),
        )
    ]
    assert len({tuple(sorted(other.items())) for other in (first, *others)}) == 8


def test_folders_are_known_by_names_sizes_and_a_sample(tmp_path):
    root = fill(tmp_path / "set", *class_of("cat", 30), *class_of("dog", 30))
    first = opened(root).identity()
    shutil.copytree(root, tmp_path / "copy")
    assert opened(tmp_path / "copy").identity() == first and json.dumps(first)
    victim = tmp_path / "copy" / opened(root).files[0]
    whole = victim.read_bytes()
    for data in (whole + b"\0", bytes([*whole[:-1], whole[-1] ^ 1]), bytes([whole[0] ^ 1, *whole[1:]])):
        victim.write_bytes(data)
        assert opened(tmp_path / "copy").identity() != first
    victim.write_bytes(whole)
    os.utime(victim, (0, 0))
    assert opened(tmp_path / "copy").identity() == first  # times are of no account
    (tmp_path / "copy" / "cat").rename(tmp_path / "copy" / "zebra")
    assert opened(tmp_path / "copy").identity() != first


def test_tfds_sets_are_known_by_version_split_and_files(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        images = np.random.default_rng(seed).integers(0, 256, (12, 8, 8, 3), np.uint8)
        examples = [(tfds_sample.encode(image), i % 3) for i, image in enumerate(images)]
        tfds_sample.write(tmp_path / folder, "insects", {"train": examples, "test": examples[:5]}, (8, 8))

    def identity(split="train", folder="a"):
        return load(Options("tfds:insects", dir=str(tmp_path / folder)), split).identity()

    first = identity()
    assert first == identity(folder="b") and first["set"] == "insects/1.0.0" and json.dumps(first)
    assert (
        len(
            {
                json.dumps(other)
                for other in (
                    first,
                    identity("test"),
                    identity("train[:50%]"),
                    identity("train+test"),
                    identity(folder="c"),
                )
            }
        )
        == 5
    )
    record = next((tmp_path / "b").rglob("*train.array_record*"))
    data = record.read_bytes()
    record.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    assert identity(folder="b") != first


OWN = """
import numpy as np
from train.data.source import Source

class Own(Source):
    def __init__(self, options, value):
        super().__init__(500, ["a", "b"], (8, 8, 3), options)
        self.value = value

    def fetch(self, indices):
        return [(np.full((8, 8, 3), (i + self.value) % 256, np.uint8), i % 2) for i in indices]

    def name(self, index):
        return str(index)

def images(split, options, value=0):
    return Own(options, value)
"""


def test_sources_of_users_are_known_by_a_sample(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    first, same, other = (
        load(Options(f"{tmp_path}/own.py:images{call}"), "train").identity() for call in ("", "(0)", "(value=1)")
    )
    assert first == same != other and first["images"] == 500


def test_what_is_made_of_a_source_is_known_by_it_and_by_how():
    specs = (
        "", "share(0.5)", "share(0.5, seed=1)", "classes(0, 1)", "classes(1, 0)", "paint(0)", "paint(1)",
        "paint(0, size=0.5)", "place(16)", "place(16, seed=1)", "place(16, copies=2)", "place(20)",
    )  # fmt: skip
    found = {
        json.dumps(select(arrays(np.arange(40) % 4, value=value), spec).identity())
        for spec in specs
        for value in (0, 1)
    }
    assert len(found) == 2 * len(specs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on arrays, what it was trained on, and how to write others into their file."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    first = {
        "train_image": rng.integers(0, 250, (40, 8, 8, 1), np.uint8),
        "train_label": np.arange(40) % 4,
        "test_image": rng.integers(0, 250, (20, 8, 8, 1), np.uint8),
        "test_label": np.arange(20) % 4,
    }
    config = tiny.config(data__source=f"arrays:{folder / 'set.npz'}", duration="4 steps", eval_batch_size=10)
    np.savez(folder / "set.npz", **first)
    return config, folder, first, loop.train(config, folder / "run")


@pytest.mark.parametrize(
    "name, place",
    [("train_image", (7, 3, 3, 0)), ("test_image", (0, 0, 0, 0)), ("train_label", (4,)), ("test_label", (8,))],
)
def test_a_run_is_not_resumed_with_other_arrays(trained, name, place):
    config, folder, first, summary = trained
    split = name.partition("_")[0]
    np.savez(folder / "set.npz", **{**first, name: changed(first[name], *place)})
    with pytest.raises(UserError, match=rf"changed since \(identity.{split}.content: \w+ -> \w+\)"):
        loop.train(config, folder / "run")
    np.savez(folder / "set.npz", **first)
    assert loop.train(config, folder / "run") == summary


def test_processes_with_other_pixels_or_labels_are_refused(trained, monkeypatch):
    config, folder, first, _ = trained
    identities = []
    for name in (None, *first):
        data = {**first, name: changed(first[name], 0)} if name else first
        np.savez(folder / "set.npz", **data)
        identities.append(build_run(config).feed.record())
    np.savez(folder / "set.npz", **first)
    for other in identities[1:]:
        monkeypatch.setattr(multihost, "gather", lambda value, other=other: [value, other])
        with pytest.raises(UserError, match=r"process 1 has another set .*content: \w+ -> \w+"):
            multihost.check_same("set of data", identities[0])
    monkeypatch.setattr(multihost, "gather", lambda value: [value, dict(value)])
    multihost.check_same("set of data", identities[0])


# What a run says


def test_a_streamed_run_says_what_it_skipped_and_found(tmp_path):
    root = fill(tmp_path / "set", *class_of("train/a", 9), *class_of("train/b", 9), *class_of("test/a", 5))
    (root / "train" / "a" / ".hidden.png").write_bytes(b"")
    bad = [*[f"train/a/{n}.png" for n in range(4)], "test/a/3.png"]
    for name in bad:
        (root / name).write_bytes(b"no image")
    config = tiny.config(
        data__source=f"folder:{root}",
        data__image_size=8,
        data__crop="random_resized",
        batch_size=6,
        data__on_error="skip",
        eval_batch_size=4,
        steps_per_call=1,
        duration="7 steps",
    )
    assert build_run(config).feed.notes == [
        f"folder {root}/train: 18 images in 2 classes (1 hidden left out)",
        f"folder {root}/test: 5 images in 1 of 2 classes",
        "1 of the 2 classes have no test images: b",
    ]
    console = rich.console.Console(file=io.StringIO(), width=500)
    summary = loop.train(config, tmp_path / "run", console)
    assert summary["skipped_images"] == {"train": 4, "test": 1} and summary["test_examples"] == 4
    assert (
        f"warning: images that cannot be decoded: 4 training images, replaced by others: {root}/train/a/0.png, "
        f"{root}/train/a/1.png, {root}/train/a/2.png, …; 1 test images, left out: {root}/test/a/3.png"
    ) in console.file.getvalue()


def test_a_resident_run_counts_the_same(tmp_path):
    root = fill(tmp_path / "set", *class_of("train/a", 9), *class_of("train/b", 9), *class_of("test/a", 5))
    (root / "train/a/3.png").write_bytes(b"no image")
    config = tiny.config(
        data__source=f"folder:{root}",
        data__image_size=8,
        data__crop="none",
        batch_size=6,
        data__pipeline="resident",
        data__on_error="skip",
        eval_batch_size=4,
        steps_per_call=1,
    )
    feed = build_run(config).feed
    assert feed.skipped == {"train": 1, "test": 0} and "train/a/3.png" in feed.skipped_line()

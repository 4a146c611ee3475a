"""Unusual data: folders, names, splits beside each other, and data that a run accepts as the same."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rich.console

from models.errors import UserError
from tests import tfds_sample, tiny
from tests.hostile_pictures import HEIGHT, WIDTH
from tests.train.data.test_folders import class_of, fill, opened
from train import loop
from train.data import splits
from train.data.load import load
from train.data.select import select
from train.data.source import Options
from train.data.sources.arrays import ArraySource
from train.devices import multihost
from train.run import build_run

ROOT = Path(__file__).parents[3]
SHAPE = (HEIGHT, WIDTH, 3)


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


def test_a_few_of_many_classes_are_named():
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
    with pytest.raises(UserError, match=f"none of its 10 {split} images can be decoded; the first error: cannot"):
        build_run(config)


# Identity


def identity_of(images, labels, tmp_path, name="set"):
    np.savez(tmp_path / f"{name}.npz", train_image=images, train_label=labels)
    return load(Options(f"arrays:{tmp_path / name}.npz"), "train").identity()


def changed(array, *place, by=1):
    array = array.copy()
    array[place] += by
    return array


def test_arrays_are_identified_by_their_pixels_and_labels(tmp_path):
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


def test_folders_are_identified_by_names_sizes_and_a_sample(tmp_path):
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
    assert opened(tmp_path / "copy").identity() == first  # modification times do not matter
    (tmp_path / "copy" / "cat").rename(tmp_path / "copy" / "zebra")
    assert opened(tmp_path / "copy").identity() != first


def test_tfds_sets_are_identified_by_version_split_and_files(tmp_path):
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


def test_sources_of_users_are_identified_by_a_sample(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    first, same, other = (
        load(Options(f"{tmp_path}/own.py:images{call}"), "train").identity() for call in ("", "(0)", "(value=1)")
    )
    assert first == same != other and first["images"] == 500


def test_derived_sources_are_identified_by_source_and_derivation():
    specs = (
        "", "share(0.5)", "share(0.5, seed=1)", "classes(0, 1)", "classes(1, 0)", "paint(0)", "paint(1)",
        "paint(0, size=0.5)", "place(16)", "place(16, seed=1)", "place(16, copies=2)", "place(20)",
    )  # fmt: skip
    identities = {
        json.dumps(select(arrays(np.arange(40) % 4, value=value), spec).identity())
        for spec in specs
        for value in (0, 1)
    }
    assert len(identities) == 2 * len(specs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a finished run on arrays, its data, and a function that writes other arrays into the file."""
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
    with pytest.raises(UserError, match=rf"have changed \(identity.{split}.content: \w+ -> \w+\)"):
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
        with pytest.raises(UserError, match=r"process 1's set of data differs from .*content is \w+, not \w+"):
            multihost.check_same("set of data", identities[0])
    monkeypatch.setattr(multihost, "gather", lambda value: [value, dict(value)])
    multihost.check_same("set of data", identities[0])


# Messages of a run


def test_a_streamed_run_reports_its_data_and_what_it_skipped(tmp_path):
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

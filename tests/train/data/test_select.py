"""Parts of a split and cues: their examples, labels, and painted pixels."""

import pickle

import numpy as np
import pytest

from models.errors import UserError
from tests import tiny
from train.data.load import load
from train.data.select import Selected, select
from train.data.source import Options
from train.data.sources.arrays import ArraySource
from train.run import build_run


def source(count=60, classes=6, channels=3):
    """Returns a source in which image i has color i and class i % classes."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, channels))
    return ArraySource(np.ascontiguousarray(images), np.arange(count) % classes, [f"c{i}" for i in range(classes)])


def content(part):
    """Returns (color of the upper left pixel, label) of every example."""
    arrays = part.arrays()
    return list(zip(arrays["image"][:, 0, 0, 0].tolist(), arrays["label"].tolist(), strict=True))


def test_all_is_the_source_itself():
    whole = source()
    assert select(whole, "") is whole


def test_classes_are_renumbered_in_the_order_in_which_they_are_named():
    part = select(source(), "classes(4, '0-1')")
    assert part.classes == ("c4", "c0", "c1") and len(part) == 30
    assert all(label == {4: 0, 0: 1, 1: 2}[color % 6] for color, label in content(part))
    assert select(source(), "classes('1-5/2')").classes == ("c1", "c3", "c5")
    again = select(part, "classes(2)")
    assert again.classes == ("c1",) and {color % 6 for color, _ in content(again)} == {1}


def test_a_smaller_part_is_within_a_larger_one_and_seeds_differ():
    whole = source()
    few, more, other = (
        set(select(whole, f"per_class({n}, seed={seed})").index) for n, seed in ((2, 0), (5, 0), (2, 1))
    )
    assert few < more and len(few) == 12 and few != other
    counts = np.bincount(whole.labels[sorted(more)])
    assert counts.tolist() == [5] * 6
    tenth, half = (set(select(whole, f"share({p})").index) for p in (0.1, 0.5))
    assert tenth < half and len(tenth) == 6 and len(half) == 30


def test_imbalance_falls_exponentially():
    part = select(source(600), "imbalance(10)")
    counts = np.bincount([label for _, label in content(part)])
    np.testing.assert_array_equal(np.sort(counts)[::-1], np.round(100 * 10 ** (-np.arange(6) / 5)))
    other = np.bincount([label for _, label in content(select(source(600), "imbalance(10, seed=1)"))])
    assert sorted(other) == sorted(counts) and other.tolist() != counts.tolist()


def test_paint_only_marks_images_of_its_classes_and_changes_no_label():
    whole = source()
    part = select(whole, "paint('0-2', p=1.0, size=0.25)")
    painted, plain = part.arrays(), whole.arrays()
    marked = (painted["image"][:, -2:, -2:] == (255, 255, 0)).all((1, 2, 3))
    np.testing.assert_array_equal(marked, painted["label"] < 3)
    np.testing.assert_array_equal(painted["image"][:, :-2], plain["image"][:, :-2])
    np.testing.assert_array_equal(painted["image"][:, :, :-2], plain["image"][:, :, :-2])
    np.testing.assert_array_equal(painted["label"], plain["label"])
    assert plain["image"].max() < 60  # the source itself is unchanged
    chosen = select(source(200), "share(0.5, seed=1)|paint(p=0.5)")  # not the images that the share chose
    assert 0.35 < (chosen.painted > 0).mean() < 0.65
    half = (select(source(6000), "paint(p=0.5)").painted > 0).mean()
    assert 0.47 < half < 0.53
    gray = select(source(channels=1), "paint()").arrays()["image"]
    assert (gray[:, -2:, -2:] == 255).all()


def test_parts_of_parts_names_and_copies():
    part = select(source(), "classes('0-2')|per_class(3)|paint(0)")
    assert len(part) == 9 and part.painted.tolist().count(0.25) == 3
    within = select(part, "classes(0, 1)")  # a part of a part keeps its paint
    np.testing.assert_array_equal(within.arrays()["image"], part.arrays()["image"][within.index])
    copy = pickle.loads(pickle.dumps(part))
    assert content(copy) == content(part) and copy.name(0) == f"arrays {part.index[0]}"
    assert isinstance(part, Selected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("per_class(11)", "class 'c0' has 10 examples, not 11"), ("per_class(0)", "n=0 must be 1 or more"),
        ("share(0.0)", r"p=0.0 must be in \(0, 1\]"), ("share(0.001)", "leaves no example"),
        ("imbalance(0.5)", "r=0.5 must be 1 or more"), ("classes('0-9')", "must be distinct numbers from 0 to 5"),
        ("classes(1, 1)", "distinct"), ("classes('a')", "cannot read the classes 'a'"),
        ("classes('0-4/0')", "cannot read the classes '0-4/0'"), ("classes()", "it names no class"),
        ("paint(size=2.0)", "size=2.0 must be in"),
        ("per_clas(3)", "unknown data.select 'per_clas'; did you mean 'per_class'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(spec, message):
    with pytest.raises(UserError, match=message):
        select(source(), spec)


def test_splits_are_selected_on_their_own_and_must_have_the_same_classes():
    run = build_run(
        tiny.config(data__select="classes(3, 5)|per_class(20)", data__select_test="classes(3, 5)", eval_batch_size=72)
    )
    assert run.feed.classes == ("3", "5") and len(run.feed.train) == 40 and len(run.feed.test) == 74
    with pytest.raises(UserError, match="its splits have different classes"):
        build_run(tiny.config(data__select="classes(3, 5)"))


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_images_as_rgb_and_back(channels):
    options = {"source": "digits", "channels": channels, "image_size": 16, "crop": "resize", "eval_crop": 1.0}
    part = load(type("Section", (), {**Options(source="").__dict__, **options}), "test")
    pixels = part.read([0, 1])["image"]
    assert pixels.shape == (2, 16, 16, channels)
    assert (pixels == pixels[..., :1]).all()
    images = [
        load(type("Section", (), {**Options(source="").__dict__, "source": "digits", **changed}), "test").read([0])[
            "image"
        ][0, ..., 0]
        for changed in ({}, {"channels": channels})
    ]
    np.testing.assert_array_equal(*images)


def test_the_whole_image_is_squeezed_and_training_crops_keep_its_shape():
    ramp = np.zeros((2, 40, 80, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(80)[None, None], np.arange(40)[None, :, None]
    whole = ArraySource(
        ramp, np.arange(2), options=Options(source="arrays", crop="whole", image_size=20, crop_scale=(0.64, 0.64))
    )
    assert whole.random_crop
    tested = whole.example(0)["image"]
    assert tested.shape == (20, 20, 3)
    assert tested[0, 0, 0] < 4 and tested[0, -1, 0] > 75 and tested[-1, 0, 1] > 37  # from corner to corner
    for seed in range(5):
        crop = whole.example(0, np.random.default_rng(seed))["image"].astype(int)
        assert crop[0, -1, 0] - crop[0, 0, 0] == pytest.approx(0.8 * 80 * 19 / 20, abs=2)
        assert crop[-1, 0, 1] - crop[0, 0, 1] == pytest.approx(0.8 * 40 * 19 / 20, abs=2)

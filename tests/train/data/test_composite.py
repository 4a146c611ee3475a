"""Tests of train/data/composite.py: objects at known positions."""

import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from train.data.composite import Placed
from train.data.select import select
from train.data.sources.arrays import ArraySource
from train.probing.features import content


def source(channels=3, classes=4):
    """Returns a source of 24 noise images of 8x8."""
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, channels), np.uint8)
    return ArraySource(images, np.arange(24) % classes)


def resized(pixels, side):
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR)).reshape(side, side, -1)


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_objects_are_at_their_stated_positions(objects, channels):
    images = source(channels)
    placed = select(images, f"place(32, objects={objects}, copies=2)")
    assert len(placed) == 48 and placed.image_shape == (32, 32, channels) and placed.classes == images.classes
    sides = []
    for i in (0, 5, 30, 47):
        example, things = placed.example(i), placed.objects(i)
        assert len(things) == objects and things[0].image == i % 24 and example["label"] == things[0].label
        assert len({thing.label for thing in things}) == objects
        covered = np.zeros((32, 32), int)
        for thing in things:
            top, left, bottom, right = thing.box
            assert thing.label == images.labels[thing.image] and bottom - top == right - left
            np.testing.assert_array_equal(
                example["image"][top:bottom, left:right], resized(images.images[thing.image], bottom - top)
            )
            covered[top:bottom, left:right] += 1
            sides.append(bottom - top)
        assert covered.max() == 1 and covered.sum() == sum((t.box[2] - t.box[0]) ** 2 for t in things)
    assert 10 <= min(sides) < max(sides) <= 16  # 0.3 to 0.5 of 32
    np.testing.assert_array_equal(placed.all_labels(), [placed.example(i)["label"] for i in range(48)])


def test_an_example_only_depends_on_seed_and_number():
    placed = select(source(), "place(32, copies=2)")
    alone = placed.example(29)["image"]
    np.testing.assert_array_equal(placed.read([3, 29, 5])["image"][1], alone)
    assert placed.objects(29).pop().image == placed.objects(5).pop().image == 5  # two canvases show image 5
    assert not np.array_equal(placed.example(5)["image"], alone)
    assert not np.array_equal(select(source(), "place(32, copies=2, seed=1)").example(29)["image"], alone)
    # Cached features must not be shared
    assert content(placed) != content(select(source(), "place(32, copies=2, seed=1)"))


def test_clutter_lies_outside_of_the_object_and_the_background_is_smooth():
    plain, cluttered = (select(source(), f"place(32, clutter={n})") for n in (0, 6))
    top, left, bottom, right = plain.objects(2)[0].box
    assert cluttered.objects(2) == plain.objects(2)
    outside = np.ones((32, 32), bool)
    outside[top:bottom, left:right] = False
    a, b = (some.example(2)["image"].astype(int) for some in (plain, cluttered))
    np.testing.assert_array_equal(a[~outside], b[~outside])
    assert (a[outside] != b[outside]).any()
    inner = outside[:, 1:] & outside[:, :-1]
    assert np.abs(np.diff(a, axis=1))[inner].max() <= 255 / 8 + 1  # bilinear between points that are 8 pixels apart


def test_clutter_is_of_other_classes():
    """Checks clutter on images with one color per class."""
    colors = np.repeat(10 * np.arange(4, dtype=np.uint8) + 200, 6)[:, None, None, None]
    images = ArraySource(colors * np.ones((1, 8, 8, 3), np.uint8), np.repeat(np.arange(4), 6))
    for i in (0, 7, 20):
        placed = select(images, "place(32, clutter=9, objects=2)")
        objects, seen = placed.objects(i), placed.example(i)["image"].copy()
        for thing in objects:
            top, left, bottom, right = thing.box
            seen[top:bottom, left:right] = 0
        plain = select(images, "place(32, clutter=0, objects=2)").example(i)["image"]
        colors = set(seen[(seen != plain).any(-1) & seen.any(-1)][:, 0].tolist())
        assert colors and colors <= {200 + 10 * c for c in range(4)} - {200 + 10 * t.label for t in objects}


def test_images_that_were_selected_before_are_placed():
    placed = select(source(), "classes('2-3')|place(32)")  # clutter belongs to the other of the two classes
    assert placed.classes == ("2", "3") and len(placed) == 12 and set(placed.all_labels()) == {0, 1}


@pytest.mark.parametrize(
    "spec, message",
    [
        ("place(32, objects=3)", "objects=3 must be 1 or 2"),
        ("place(32, objects=2, size='0.4-0.6')", "size=0.4-0.6 must be within 0 and 0.5"),
        ("place(32, size='big')", "size='big': must be a range"),
        ("place(3)", "at least 2 pixels"),
        ("place(32)|share(0.5)", "place must come last"),
        ("classes('1-2')|place(32, objects=2)", "objects=2 and clutter=4 need images of 3 classes, not 2"),
        ("place(32, seed=-1)", "nothing may be negative"),
        ("place()", "missing a required argument"),
    ],
)
def test_impossible_specifications_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        select(source(), spec)


def test_images_of_several_classes_are_refused():
    several = ArraySource(np.zeros((4, 8, 8, 3), np.uint8), np.ones((4, 3), int))
    with pytest.raises(UserError, match="one label per image"):
        Placed(several, 32)

"""train/data/background.py: which training sets have a background, and which images are inverted."""

import numpy as np
import pytest

from configs import base
from tests import tiny
from train.data import background, load
from train.data.options import Options
from train.data.sources.arrays import ArraySource


def source(images):
    return ArraySource(images, np.zeros(len(images), np.int64), ["x"], Options.read(base.base().data))


def strokes(ink, paper, channels=1, count=40):
    """Images with a bar from top to bottom, so that a quarter of the border is ink."""
    images = np.full((count, 8, 8, channels), paper, np.uint8)
    images[:, :, 2:4] = ink
    return images


@pytest.mark.parametrize(
    ("images", "side"),
    [
        (strokes(255, 0), "dark"),
        (strokes(0, 255), "light"),
        (strokes(255, 60), "dark"),
        (strokes(255, 128), ""),  # gray
        (strokes(255, 0, channels=3), ""),  # in colors
        (np.concatenate([strokes(255, 0, count=20), strokes(0, 255, count=20)]), ""),
        (np.concatenate([strokes(255, 0, count=39), strokes(0, 255, count=1)]), "dark"),  # nearly all
    ],
)
def test_the_background_of_a_training_set(images, side):
    assert background.of_training(source(images)) == side


def test_digits_are_light_on_dark():
    assert background.of_training(load.load(tiny.config().data, "train")) == "dark"


@pytest.mark.parametrize(("paper", "side", "inverted"), [(255, "dark", True), (0, "light", True), (0, "dark", False)])
def test_an_image_of_the_other_kind_is_inverted(paper, side, inverted):
    (image,) = strokes(255 - paper, paper, count=1)
    pixels, was_inverted = background.matched(image, side)
    np.testing.assert_array_equal(pixels, 255 - image if inverted else image)
    assert was_inverted == inverted and pixels.dtype == np.uint8
    assert background.matched(image, "")[1] is False

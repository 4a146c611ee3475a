"""Corruptions: equal to Hendrycks' code on two pictures, the same for an image in whatever part and batch."""

import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from models.errors import UserError
from tests import tiny
from tests.golden import corruption_draws
from train.data import corrupted
from train.data.corrupted import Corrupted
from train.data.corruptions import functions
from train.data.corruptions.severities import COMMON, EXTRA, LARGE, NAMES, SEVERITIES, SMALL
from train.data.load import load
from train.data.select import select
from train.data.sources.arrays import ArraySource

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "corruptions.npz")
# OpenCV sums in float32, or by a Fourier transform, where SciPy sums in float64
ONE_LEVEL = {"defocus_blur", "elastic_transform"}


def chosen(whole, text) -> Any:
    """Returns a part of a source, whose attributes depend on the text."""
    return select(whole, text)


def source(count=20, side=16, channels=3):
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)
    return ArraySource(images, np.arange(count) % 4, list("abcd"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "frost"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_corruption_equals_hendrycks_code(name, size):
    picture, every = corruption_draws.picture(size), corruption_draws.EVERY[size]
    for severity in SEVERITIES:
        ours = functions.apply(picture, name, severity, cast(Any, corruption_draws.Draws()))[::every, ::every]
        theirs = GOLDEN[f"{size}/{name}/{severity}"]
        if name in ONE_LEVEL:
            assert (ours != theirs).mean() < 0.01 and abs(ours.astype(int) - theirs).max() <= 1
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_every_corruption_has_constants_and_a_function():
    assert len(COMMON) == 15 and len(EXTRA) == 4 and set(NAMES) == set(functions.FUNCTIONS)
    for table in (SMALL, LARGE):
        assert set(table) == set(NAMES) and {len(values) for values in table.values()} == {len(SEVERITIES)}


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (9, 14, 3), (14, 9, 1), (90, 120, 3)])
def test_every_corruption_takes_every_shape_that_is_allowed(shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    before = pixels.copy()
    for name in NAMES:
        for severity in (1, 5):
            if name == "saturate" and shape[2] == 1:
                continue
            image = functions.apply(pixels, name, severity, corrupted.generator(name, severity, 0))
            assert image.shape == shape and image.dtype == np.uint8
            assert severity == 1 or (image != pixels).any(), name
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_images_stay_finite(level):
    pixels = np.full((12, 12, 3), level, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        for name in NAMES:
            functions.apply(pixels, name, 3, corrupted.generator(name, 3, 0))


@pytest.mark.parametrize("name", ["gaussian_noise", "frost", "fog", "contrast", "pixelate", "defocus_blur"])
def test_a_higher_severity_changes_more(name):
    picture = corruption_draws.picture("small")
    for size in (picture, corruption_draws.picture("large")):
        first, last = (
            functions.apply(size, name, severity, corrupted.generator(name, severity, 0)).astype(int)
            for severity in (1, 5)
        )
        assert abs(last - size).mean() > abs(first - size).mean()


def test_the_noise_of_an_image_depends_on_its_number_alone():
    whole = source()
    all_of_them = chosen(whole, "corrupt(gaussian_noise, 5)")
    part = chosen(whole, "share(0.5)|corrupt(gaussian_noise, 5)")
    arrays = all_of_them.arrays()["image"]
    np.testing.assert_array_equal(part.arrays()["image"], arrays[part.source.index])
    np.testing.assert_array_equal(all_of_them.read([7, 3])["image"], arrays[[7, 3]])
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(again.example(4)["image"], part.example(4)["image"])
    for other in ("corrupt(gaussian_noise, 4)", "corrupt(gaussian_noise, 5, seed=1)", "corrupt(speckle_noise, 5)"):
        assert (chosen(whole, other).example(0)["image"] != arrays[0]).any()
    # Two images differ in their noise, too
    black = ArraySource(np.zeros((2, 16, 16, 3), np.uint8), np.arange(2), ["a", "b"])
    first, second = chosen(black, "corrupt(gaussian_noise, 5)").arrays()["image"]
    assert (first != second).any()


def test_labels_names_and_identity():
    whole = source()
    part = chosen(whole, "classes(2, 1)|corrupt(fog)")
    assert isinstance(part, Corrupted) and part.classes == ("c", "b") and len(part) == 10
    assert part.all_labels().tolist() == chosen(whole, "classes(2, 1)").all_labels().tolist()
    assert part.name(3) == part.source.name(3) and part.corruption == ("fog", 3, 0)
    identities = [
        str(chosen(whole, text).identity())
        for text in (
            "",
            "corrupt(fog)",
            "corrupt(fog, 2)",
            "corrupt(snow)",
            "corrupt(fog)|corrupt(snow)",
            "share(0.9)|corrupt(fog)",
        )
    ]
    assert len(set(identities)) == len(identities)


def test_canvases_can_be_corrupted():
    part = chosen(source(), "place(24, clutter=1)|corrupt(contrast, 5)")
    assert part.image_shape == (24, 24, 3)
    assert np.ptp(part.example(0)["image"].astype(int)) < np.ptp(part.source.example(0)["image"].astype(int))


def test_the_test_split_of_a_run():
    config = tiny.config(data__select_test="per_class(2)|corrupt(shot_noise, 5)").data
    clean, part = load(tiny.config(data__select_test="per_class(2)").data, "test"), load(config, "test")
    assert part.image_shape == (8, 8, 1) and (part.arrays()["image"] != clean.arrays()["image"]).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corrupt(fogg)", "unknown corruption 'fogg'; did you mean 'fog'?"),
        ("corrupt(fog, 6)", "severity=6 must be one of 1, 2, 3, 4, 5"),
        ("corrupt(fog, 0)", "severity=0 must be one of 1, 2, 3, 4, 5"),
        ("corrupt(fog, 2.5)", "severity must be int, not 2.5"),
        ("corrupt(fog, seed=-1)", "seed=-1 must be 0 or more"),
        ("corrupt()", "missing a required argument"),
        ("corrupt(fog)|share(0.5)", "corrupt must come last; only corrupt may follow"),
    ],
)
def test_mistakes_are_one_line(text, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        select(source(), text)
    assert message in str(error.value)


def test_images_that_cannot_be_corrupted():
    with pytest.raises(UserError, match="saturate changes colors, but the images are gray"):
        select(source(channels=1), "corrupt(saturate)")
    with pytest.raises(UserError, match="images of 7x7 are too small for corruptions, which need 8x8"):
        select(source(side=7), "corrupt(fog)")

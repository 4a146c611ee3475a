"""Sizes of training images over time: their text, the batches, resuming, and networks of one size."""

import jax
import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from tests import tiny
from train import loop
from train.data import resolutions
from train.data.resolutions import Resolution
from train.run import build_run
from train.setup.config import Durations

DURATIONS = Durations(10, 100).with_total("10 epochs")  # 100 steps


def _parsed(text):
    return resolutions.parse(text, DURATIONS.steps, DURATIONS.total).parts


def test_parts_begin_at_durations():
    assert _parsed("") == ()
    assert _parsed("160") == _parsed("160@0%") == (Resolution(160, 0, 100),)
    assert _parsed("128@0%|160@40%|224@70%") == (
        Resolution(128, 0, 40),
        Resolution(160, 40, 70),
        Resolution(224, 70, 100),
    )
    assert _parsed("8 | 6@15 steps|9@2 epochs") == (Resolution(8, 0, 15), Resolution(6, 15, 20), Resolution(9, 20, 100))
    schedule = resolutions.parse("8@0%|9@50%|6@60%", DURATIONS.steps, 100)
    assert (schedule.sizes, schedule.heaviest_step) == ((9, 8, 6), 50)
    assert schedule.at(49, 100)[1] == 50 and schedule.at(50, 55) == ({"size": resolutions.Size(9)}, 55)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("small", "cannot read data.resolutions='small' at 'small': write SIZE@DURATION"),
        ("8@0%|", "cannot read data.resolutions='8@0%|' at ''"),
        ("0@0%", r"sizes in \[1, 16,384\]"),
        ("99999", r"sizes in \[1, 16,384\]"),
        ("8@x", "cannot read the duration 'x'"),
        ("8@10%", "the first size must begin at 0%, not at step 10"),
        ("8|9@50%|7@40%", "7 begins at step 40, and the size before it at step 50"),
        ("8|9@0.1%", "9 begins at step 0, and the size before it at step 0"),
        ("8|9@100%", "9 begins at step 100, but the training has 100 steps"),
    ],
)
def test_a_wrong_text_is_named_in_one_line(text, message):
    with pytest.raises(UserError, match=message.replace("|'", r"\|'")) as error:
        _parsed(text)
    assert "\n" not in str(error.value)


def test_the_step_resizes_as_pillow_does():
    image = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3), np.uint8)
    for size in (5, 6, 9, 18):
        theirs = np.asarray(Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR))
        ours = np.asarray(resolutions.resized(image, size))[0]
        assert ours.dtype == np.uint8 and np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def _sizes(run, step=0):
    """Returns (step, number of steps, size of the images after augmentation) of each call from a step on."""
    key = jax.random.key(0)

    def images(items):
        item = jax.tree.map(lambda x: x[0], items)
        item = jax.tree.map(lambda x: x[0], item)  # of one device
        return run.feed.prepare(key, run.feed.gather(run.feed.data, item), 0)["image"]

    for count, items in run.feed.calls(step, run.total):
        yield step, count, jax.eval_shape(images, items).shape[1:3]
        step += count


def test_resident_images_are_resized_in_the_step():
    run = build_run(tiny.config(data__resolutions="4|6@5 steps|8@70%", data__augment="crop(1)", steps_per_call=4))
    assert list(_sizes(run)) == [(0, 4, (4, 4)), (4, 1, (4, 4)), (5, 3, (6, 6)), (8, 4, (8, 8))]
    assert list(_sizes(run, 5)) == [(5, 3, (6, 6)), (8, 4, (8, 8))]  # a resumed run dispatches the same programs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("ash", "beech"):
        (root / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


def test_streamed_images_are_decoded_at_the_size(folder):
    changes = {"data__source": f"folder:{folder}", "data__crop": "random_resized", "data__image_size": 12}
    config = tiny.config(**changes, data__resolutions="8|10@6 steps", steps_per_call=1, batch_size=4, eval_batch_size=4)
    run = build_run(config)
    calls = [np.asarray(items["image"]) for _, items in run.feed.calls(0, run.total)]
    assert [images.shape[-3:] for images in calls] == [(8, 8, 3)] * 6 + [(10, 10, 3)] * 6
    plain = build_run(
        tiny.config(**{**changes, "data__image_size": 8}, steps_per_call=1, batch_size=4, eval_batch_size=4)
    )
    for images, (_, items) in zip(calls[:6], plain.feed.calls(0, 6), strict=True):
        np.testing.assert_array_equal(images, np.asarray(items["image"]))
    later = [np.asarray(items["image"]) for _, items in run.feed.calls(4, 8)]  # as after a restart
    for images, same in zip(later, calls[4:8], strict=True):
        np.testing.assert_array_equal(images, same)
    (_, items) = next(zip([0], run.feed.evaluation_calls(), strict=False))
    assert items["image"].shape[-3:] == (12, 12, 3)


def test_a_run_paused_between_sizes_ends_with_the_same_bits(tmp_path):
    changes = {"data__resolutions": "4|6@5 steps|8@70%", "data__repeats": 3, "checkpoint_every": "1 steps"}
    changes["model__stage_sizes"] = (1,)  # each size has a program
    loop.train(tiny.config(**changes), tmp_path / "whole")
    loop.train(tiny.config(**changes), tmp_path / "parts", until=4)
    loop.train(tiny.config(**changes), tmp_path / "parts", until=7)
    loop.train(tiny.config(**changes), tmp_path / "parts")
    whole, parts = (tiny.points(tmp_path / name) for name in ("whole", "parts"))
    for key in (("test/loss", 12), ("test/accuracy", 12), ("train/loss", 12)):
        assert whole[key] == parts[key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model__name": "vit_tiny_patch16", "model__patch_size": 4},
            "model.name=vit_tiny_patch16 does not take images of 4",
        ),
        (
            {"model__name": "lenet5", "data__resolutions": "20|28@50%"},
            "model.name=lenet5 does not take images of 20: its parameter params/.*/kernel depends on the size",
        ),
        ({"model__name": "lenet5"}, "model.name=lenet5 does not take images of 8: images of 8 x 8 are too small"),
        ({"data__augment": "crop(4, reflect)"}, "cannot reflect 4 pixels of 4"),
        (
            {"task__name": "classify(views=multi_scale)", "data__resolutions": "", "model__name": "lenet5"},
            "does not take images of 24: its parameter",
        ),
        ({"data__repeats": 0}, r"data.repeats=0 must be in \[1, 32\]"),
        ({"data__repeats": 33}, r"data.repeats=33 must be in \[1, 32\]"),
    ],
)
def test_what_sizes_do_not_fit_is_refused_before_training(changes, message):
    config = tiny.config(**{"data__resolutions": "4|8@50%", **changes})
    if config.model.name != "resnet8":
        del config.model.width
    if config.model.name == "lenet5":
        del config.model.norm
        config.data.crop, config.data.image_size = "resize", 28
    with pytest.raises(UserError, match=message) as error:
        build_run(config)
    assert "\n" not in str(error.value)

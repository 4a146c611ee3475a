"""Tests of models/swin.py: windows, their shift, and the effect of each field. test_parity.py compares with others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import swin, weights
from models.layers.endpoint import capture
from models.layers.init import jit_once
from models.weights.layouts import flatten
from tests.golden import drawn

# One stage on maps of the same size as the images.
FLAT = {"stage_sizes": (2,), "heads": (2,), "width": 8, "window": 4, "patch_size": 1, "num_classes": 10}
TINY = {"stage_sizes": (2, 1), "heads": (2, 4), "width": 8, "window": 4, "num_classes": 10}


def reached(row, column, size, **fields):
    """Returns the positions that change when one pixel of the image does: bool [H, W] for each block."""
    model = models.create("swin_t", **{**FLAT, **fields})
    variables = drawn.variables(model)
    images = jnp.asarray(drawn.images("pixel", (1, *size, 3)))
    run = jit_once(lambda images: capture(model, variables, images)[1])
    before, after = run(images), run(images.at[0, row, column].add(1.0))
    return [np.asarray(before[f"stage1/block{i}"] != after[f"stage1/block{i}"]).any((0, 3)) for i in (0, 1)]


def rectangle(size, rows, columns):
    places = np.zeros(size, bool)
    places[rows, columns] = True
    return places


def test_a_window_is_local_and_the_shift_connects_its_neighbors():
    """Checks windows of 4 on 12 x 12; shifted by 2, the next ones start at 2 and 6, with smaller ones at either end."""
    first, second = reached(5, 6, (12, 12))
    np.testing.assert_array_equal(first, rectangle((12, 12), slice(4, 8), slice(4, 8)))
    np.testing.assert_array_equal(second, rectangle((12, 12), slice(2, 10), slice(2, 10)))


def test_a_shifted_window_does_not_join_opposite_ends():
    first, second = reached(0, 11, (12, 12))
    np.testing.assert_array_equal(first, rectangle((12, 12), slice(0, 4), slice(8, 12)))
    np.testing.assert_array_equal(second, rectangle((12, 12), slice(0, 6), slice(6, 12)))


def test_a_map_that_one_window_covers_is_not_shifted():
    """Checks each axis on its own: 4 rows are one window, 12 columns are three."""
    first, second = reached(1, 1, (4, 12))
    np.testing.assert_array_equal(first, rectangle((4, 12), slice(0, 4), slice(0, 4)))
    np.testing.assert_array_equal(second, rectangle((4, 12), slice(0, 4), slice(0, 6)))
    assert reached(1, 1, (3, 4))[1].all()


def test_windows_of_maps_whose_size_they_do_not_divide():
    first, second = reached(9, 0, (10, 5))  # padded to 12 x 8
    np.testing.assert_array_equal(first, rectangle((10, 5), slice(8, 10), slice(0, 4)))
    np.testing.assert_array_equal(second, rectangle((10, 5), slice(6, 10), slice(0, 5)))


@pytest.mark.parametrize("height,width,window,shift", [(8, 12, 4, (2, 2)), (6, 9, 3, (1, 1)), (4, 8, 4, (0, 2))])
def test_the_mask_joins_positions_that_were_adjacent_before_the_shift(height, width, window, shift):
    places = np.stack(np.mgrid[:height, :width], -1)  # the original position of each place in the shifted map
    places = swin.windows_of(np.roll(places, (-shift[0], -shift[1]), (0, 1))[None], window)
    near = np.abs(places[:, :, None] - places[:, None]).max(-1) < window
    np.testing.assert_array_equal(swin.shifted_mask(height, width, window, shift), near)


def test_windows_survive_a_round_trip():
    x = drawn.images("windows", (2, 6, 9, 5))
    windows = swin.windows_of(x, 3)
    assert windows.shape == (12, 9, 5)
    np.testing.assert_array_equal(windows[8].reshape(3, 3, 5), x[0, 3:6, 3:6])  # the fifth window of two images
    np.testing.assert_array_equal(swin.maps_of(windows, 2, 6, 9), x)


def test_relative_positions_number_the_distances():
    """Checks that equal distances share a number, different ones do not, and every row of the table is used."""
    rows = swin.relative_positions(3)
    places = list(itertools.product(range(3), range(3)))
    of = {}
    for (i, q), (j, k) in itertools.product(enumerate(places), enumerate(places)):
        assert of.setdefault((q[0] - k[0], q[1] - k[1]), rows[i, j]) == rows[i, j]
    assert sorted(of.values()) == list(range(25))


def test_position_bias_acts_on_the_attention_of_its_distance():
    """Checks that a bias that only admits the right neighbor moves the map left by one, within each window."""
    model = swin.WindowAttention(models.create("swin_t").ingredients(False), 1, 4, False)
    x = jnp.asarray(drawn.images("neighbour", (1, 4, 8, 3)))
    table = jnp.zeros((49, 1)).at[swin.relative_positions(4)[0, 1]].set(1e4)
    eye = jnp.concatenate([jnp.zeros((3, 6)), jnp.eye(3)], 1)  # the value is x itself
    attention = {"qkv": {"kernel": eye, "bias": jnp.zeros(9)}, "out": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}}
    y = model.apply({"params": {"position_bias": table, "attention": attention}}, x)
    for left in (0, 4):
        np.testing.assert_allclose(y[:, :, left : left + 3], x[:, :, left + 1 : left + 4], atol=1e-6)


@pytest.mark.full
def test_merging_halves_the_resolution_rounded_up():
    model = models.create("swin_t", **TINY)
    activations = capture(model, drawn.variables(model), jnp.asarray(drawn.images("odd", (1, 36, 28, 3))))[1]
    assert activations["stage1"].shape == (1, 9, 7, 8) and activations["stage2"].shape == (1, 5, 4, 16)
    assert list(activations) == [
        "stem", "stage1/block0", "stage1/block1", "stage1", "stage2/block0", "stage2", "last_map", "pre_logits",
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_weights_survive_a_round_trip_through_the_layouts(layout):
    model = models.create("swin_t", **TINY)
    variables = drawn.variables(model)
    arrays = weights.to_arrays(model, variables, layout)
    assert sum(name.endswith("relative_position_index") for name in arrays) == (3 if layout == "torchvision" else 0)
    jax.tree.map(np.testing.assert_array_equal, flatten(variables), flatten(weights.from_arrays(model, arrays, layout)))

"""Tests of models/explain/patches.py, against NumPy over the whole data set and plain gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.explain import patches
from models.explain.receptive import theoretical
from models.explain.rules import with_rule
from models.layers.endpoint import capture
from tests.golden import drawn
from tests.networks import SMALL
from tests.tiers import keep_first

# The last one's maps are rounded, so that ties occur between images and within them.
KINDS = {"basic": "stage2", "vit": "block0", "inverted": "stage1", "convnext": "stage1", "ties": "stage1"}
SET = drawn.images("data set", (23, 32, 32, 3))
SET[11], SET[17] = SET[5], SET[2]  # the same image twice


@functools.cache
def network(kind):
    name, fields = SMALL["basic" if kind == "ties" else kind]
    act = {"act": lambda x: jnp.round(jnp.clip(x, 0, 2))} if kind == "ties" else {}
    model = models.create(name, **fields, **act)
    return model, drawn.variables(model)


@functools.cache
def maps(kind):
    """Returns the maps of the whole set, float32 [N, h, w, C]."""
    model, variables = network(kind)
    x = np.asarray(jax.jit(lambda x: capture(model, variables, x)[1][KINDS[kind]])(SET))
    return x if x.ndim == 4 else x[:, 1:].reshape(len(x), 4, 4, -1)  # after the class token


def batches(size, order=None):
    """Yields batches of `size`.

    The last one is padded with images that would win, and has a masked row in the middle.
    """
    order = np.arange(len(SET)) if order is None else order
    order = np.concatenate([order[:3], [-1], order[3:]])
    order = np.concatenate([order, np.full(-len(order) % size, -1)])
    for i in range(0, len(order), size):
        rows = order[i : i + size]
        yield np.where((rows >= 0)[:, None, None, None], SET[rows], 9), rows, (rows >= 0).astype(np.float32)


def in_numpy(kind, channels, k):
    """Returns values, index, row and column by a stable sort of all activations."""
    x = maps(kind)
    flat = x.reshape(len(x), -1, x.shape[-1])[..., channels]
    place, values = flat.argmax(1), flat.max(1)  # [N, C]
    index = np.argsort(-values, 0, kind="stable")[:k]
    rows, columns = np.unravel_index(np.take_along_axis(place, index, 0), x.shape[1:3])
    return [x.T for x in (np.take_along_axis(values, index, 0), index, rows, columns)]


@pytest.mark.parametrize("kind,size", keep_first(3, [("basic", 5), ("ties", 7), ("ties", 1), ("ties", 24), ("vit", 8)]))
def test_is_a_stable_sort_of_the_whole_set(kind, size):
    channels = [5, 0, 3]
    top = patches.top_patches(*network(kind), batches(size), endpoint=KINDS[kind], channels=channels, k=6)
    values, *places = in_numpy(kind, channels, 6)
    np.testing.assert_allclose(top.values, values, rtol=1e-4, atol=1e-4)
    for name, expected in zip(("index", "row", "column"), places, strict=True):
        np.testing.assert_array_equal(getattr(top, name), expected, err_msg=name)
    assert top.index.dtype == top.row.dtype == jnp.int32 and top.values.dtype == jnp.float32
    if kind == "ties":
        assert len(np.unique(values)) < values.size / 2


def test_order_of_the_batches_does_not_matter():
    order = np.random.default_rng(0).permutation(len(SET))
    one, other = (
        patches.top_patches(*network("ties"), batches(8, order), endpoint="stage1", channels=(1, 2))
        for order in (None, order)
    )
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


def test_fewer_images_than_asked_for():
    def few():
        yield SET[:4], np.arange(4), np.asarray([1, 0, 1, 1])
        yield np.full((4, 32, 32, 3), np.nan, np.float32), np.arange(4, 8), np.ones(4)  # NaN is ignored

    top = patches.top_patches(*network("basic"), few(), k=30)
    assert top.values.shape == (16, 30)  # the first 16 channels of the last map; 30, more than there are images
    assert np.isneginf(top.values[:, 3:]).all() and (np.asarray(top.index)[:, 3:] == -1).all()
    assert all(sorted(row) == [0, 2, 3] for row in np.asarray(top.index)[:, :3].tolist())


@pytest.mark.parametrize(
    "kind,rule",
    keep_first(
        2,
        [
            ("inverted", "guided"),
            ("basic", "deconvnet"),
            ("basic", "gradient"),
            ("vit", "guided"),
            ("convnext", "deconvnet"),
        ],
    ),
)  # relu, relu6, gelu
def test_projections_are_gradients_of_one_unit(kind, rule):
    model, variables = network(kind)
    _, rows, columns, channels = np.transpose(
        [  # the strongest of each: other channels may be dead
            (n, *np.unravel_index(maps(kind)[n].argmax(), maps(kind).shape[1:])) for n in (0, 1)
        ]
    )
    units = {"channels": channels, "rows": rows, "columns": columns}
    projections = patches.projections(model, variables, SET[:2], endpoint=KINDS[kind], rule=rule, **units)
    ruled = model if rule == "gradient" else with_rule(model, rule)

    @jax.jit
    def unit(image, channel, row, column):
        x = capture(ruled, variables, image[None])[1][KINDS[kind]][0]
        return (x if x.ndim == 3 else x[1:].reshape(4, 4, -1))[row, column, channel]

    assert projections.shape == (2, 32, 32, 3)
    for n, image in enumerate(SET[:2]):
        expected = jax.grad(unit)(image, *(units[name][n] for name in ("channels", "rows", "columns")))
        np.testing.assert_allclose(projections[n], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        assert np.abs(expected).max() > 0


def test_projections_stay_in_the_receptive_field():
    model, variables = network("basic")
    best = patches.top_patches(model, variables, batches(8), endpoint="stage1", channels=(4,), k=3)
    field = theoretical(model, SET.shape, "stage1")
    index, rows, columns = (np.asarray(x)[0] for x in best[1:])
    projections = np.asarray(
        patches.projections(
            model, variables, SET[index], endpoint="stage1", channels=[4] * 3, rows=rows, columns=columns, rule="guided"
        )
    )
    boxes = [field.box(*place) for place in zip(rows.tolist(), columns.tolist(), strict=True)]
    inside = patches.crop(projections, boxes, 0)
    assert inside.shape == (3, *field.size, 3) and np.abs(inside).max() > 0
    np.testing.assert_allclose(np.abs(inside).sum((1, 2, 3)), np.abs(projections).sum((1, 2, 3)), rtol=1e-5)


def test_crop():
    images = drawn.images("crop", (4, 6, 5, 3))
    padded = np.pad(images, ((0, 0), (9, 9), (9, 9), (0, 0)), constant_values=0.5)
    boxes = [(1, 1, 5, 4), (-2, 3, 2, 6), (4, -1, 8, 2), (-9, -3, -5, 0)]
    crops = patches.crop(images, boxes)
    for patch, image, (top, left, bottom, right) in zip(crops, padded, boxes, strict=True):
        np.testing.assert_array_equal(patch, image[top + 9 : bottom + 9, left + 9 : right + 9])
    # Extends beyond the image
    assert patches.crop(images[:1], [(-2, -2, 8, 7)], (7, 8, 9))[0, 0, 0].tolist() == [7, 8, 9]
    beyond = patches.crop(np.zeros((1, 2, 2, 1), np.uint8), [(0, 0, 3, 3)])
    assert beyond.ravel().tolist() == [0, 0, 128, 0, 0, 128, 128, 128, 128]
    with pytest.raises(UserError, match="each of the 4 images needs one box, and all boxes need one size"):
        patches.crop(images, [*boxes[:3], (0, 0, 1, 1)])


@pytest.mark.parametrize(
    "options,message",
    [
        ({"k": 0}, "k=0 must be at least 1"),
        ({"channels": (0, 16)}, "channel=16 is out of range: stage2 has channels 0 to 15"),
        ({"endpoint": "stage7"}, "unknown endpoint 'stage7'"),
        ({"batches": []}, "there are no images to find patches in"),
    ],
)
def test_errors(options, message):
    options = {"batches": batches(8), "endpoint": "stage2", **options}
    with pytest.raises(UserError, match=message):
        patches.top_patches(*network("basic"), options.pop("batches"), **options)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"rule": "deconv"}, "unknown rule 'deconv'; did you mean 'deconvnet'"),
        ({"rows": [0, 16]}, "row=16 is out of range: stage2 has rows 0 to 15"),
        ({"channels": [-1, 0]}, "channel=-1 is out of range: stage2 has channels 0 to 15"),
        ({"columns": [0]}, r"columns must have one entry for each of the 2 images"),
    ],
)
def test_errors_of_projections(options, message):
    units = {"channels": [0, 0], "rows": [0, 0], "columns": [0, 0], "endpoint": "stage2"}
    with pytest.raises(UserError, match=message):
        patches.projections(*network("basic"), SET[:2], **{**units, **options})

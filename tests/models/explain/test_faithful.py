"""Tests of models/explain/faithful.py, against plain loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import models
from models.errors import UserError
from models.explain import faithful
from tests import networks
from tests.golden import drawn

IMAGES = drawn.images("faithful", (3, 16, 16, 3))


@pytest.fixture(scope="module")
def network():
    model = models.create("resnet8", width=4)
    return model, models.initialize(model, jax.random.key(0), IMAGES.shape)


def probability(model, variables, image, target):
    return float(jax.nn.softmax(model.apply(variables, image[None]))[0, target])


def test_deletion_and_insertion_equal_a_loop_over_pixels(network):
    maps = np.random.default_rng(0).integers(0, 40, (3, 16, 16))  # with ties: the first position comes first
    target, steps = np.array([1, 7, 2]), 4
    deleted = faithful.deletion(*network, IMAGES, maps, target, steps=steps, color=(0.5, -1.0, 2.0))
    inserted = faithful.insertion(*network, IMAGES, maps, target, steps=steps)
    blurred = np.asarray(faithful.blurred(jnp.asarray(IMAGES)))
    for n, kind in enumerate(target):
        order = np.argsort(-maps[n].ravel(), kind="stable")
        for step in range(steps + 1):
            gone = order[: round(step * 256 / steps)]
            image, back = IMAGES[n].reshape(-1, 3).copy(), blurred[n].reshape(-1, 3).copy()
            image[gone] = (0.5, -1.0, 2.0)
            back[gone] = IMAGES[n].reshape(-1, 3)[gone]
            for curve, pixels in ((deleted, image), (inserted, back)):
                expected = probability(*network, pixels.reshape(16, 16, 3), kind)
                np.testing.assert_allclose(curve.probability[n, step], expected, rtol=1e-4)
    p = np.asarray(deleted.probability)
    np.testing.assert_allclose(deleted.area, (p[:, 1:] + p[:, :-1]).mean(1) / 2, rtol=1e-5)


def test_the_class_is_that_of_the_whole_image_unless_it_is_named(network):
    images = 2 * drawn.images("large", (6, 64, 64, 3))
    tops = [
        np.asarray(network[0].apply(network[1], x)).argmax(1)
        for x in (jnp.asarray(images), faithful.blurred(jnp.asarray(images)))
    ]
    assert (tops[0] != tops[1]).any()
    maps = np.random.default_rng(0).random((6, 64, 64))
    for kind in (faithful.deletion, faithful.insertion):
        np.testing.assert_array_equal(
            kind(*network, images, maps, steps=2).probability,
            kind(*network, images, maps, tops[0], steps=2).probability,
        )


def test_blur_is_a_gaussian():
    images = drawn.images("blur", (2, 224, 32, 2))  # the size for which the paper states its blur
    blurred = np.asarray(faithful.blurred(jnp.asarray(images)))
    for n, c in np.ndindex(2, 2):
        expected = ndimage.gaussian_filter(images[n, ..., c], 5.0, radius=5, mode="nearest")
        np.testing.assert_allclose(blurred[n, ..., c], expected, atol=1e-5)


def test_the_order_by_products_is_the_best_for_a_linear_network():
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    model, images = Linear(), jnp.asarray(drawn.images("linear", (1, 6, 6, 1)))
    variables = model.init(jax.random.key(0), images)
    kernel = variables["params"]["Dense_0"]["kernel"]
    weight = kernel - kernel.mean(1, keepdims=True)
    exact = (images.reshape(1, -1) * weight[:, 1]).reshape(1, 6, 6)
    random = [np.random.default_rng(seed).random((1, 6, 6)) for seed in range(5)]
    area = faithful.deletion(model, variables, images, exact, 1, steps=36).area[0]
    assert all(area < faithful.deletion(model, variables, images, other, 1, steps=36).area[0] for other in random)


def test_pointing_takes_the_first_highest_place():
    maps = np.zeros((3, 8, 8))
    maps[0, 2, 3] = maps[1, 7, 7] = 1.0
    boxes = [(2, 3, 3, 4), (0, 0, 7, 7), (0, 0, 1, 1)]
    assert faithful.pointing(maps, boxes).tolist() == [True, False, True]
    assert faithful.pointing(maps, boxes, tolerance=1).tolist() == [True, True, True]


def test_box_is_that_of_the_largest_part():
    heat = np.zeros((10, 12))
    heat[1, 1] = 1.0  # the peak alone
    heat[4:7, 5:9] = 0.3
    assert faithful.box_of(heat, 0.2) == (4, 5, 7, 9)
    assert faithful.box_of(heat, 0.5) == (1, 1, 2, 2)
    assert faithful.box_of(np.zeros((10, 12))) == (0, 0, 10, 12)
    assert faithful.localized([heat, heat], [(4, 5, 7, 9), (4, 5, 7, 9 + 5)]).tolist() == [True, False]


def test_iou_equals_that_of_masks():
    rng = np.random.default_rng(0)
    for _ in range(30):
        masks, boxes = [], []
        for _ in range(2):
            (top, bottom), (left, right) = np.sort(rng.integers(0, 9, (2, 2)) + [[0, 1]] * 2, 1)
            mask = np.zeros((12, 12), bool)
            mask[top:bottom, left:right] = True
            masks.append(mask)
            boxes.append((top, left, bottom, right))
        if all(mask.any() for mask in masks):
            expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
            assert faithful.iou(*boxes) == pytest.approx(expected)


def test_rank_correlation():
    a = np.random.default_rng(0).random((1, 4, 4))
    assert faithful.rank_correlation(a, np.exp(5 * a))[0] == pytest.approx(1)
    assert faithful.rank_correlation(a, -a)[0] == pytest.approx(-1)
    assert np.isnan(faithful.rank_correlation(a, np.ones_like(a))[0])


@pytest.mark.parametrize("kind, first", [("basic", "stem_conv"), ("vgg", "stage1/conv1"), ("vit", "stem_conv")])
def test_layers_are_redrawn_from_the_logits_down(kind, first):
    name, fields = networks.SMALL[kind]
    model = models.create(name, **fields)
    variables = drawn.variables(model)
    inputs, new = (1, 32, 32, 3), models.initialize(model, jax.random.key(5), (1, 32, 32, 3))

    def flat(tree):
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    before, drawn_anew, seen, order = flat(variables), flat(new), set(), []
    for layer, changed in faithful.randomized(model, variables, inputs, seed=5):
        now = flat(changed)
        replaced = {path for path in before if not np.array_equal(now[path], before[path])}
        assert all(np.array_equal(now[path], drawn_anew[path]) for path in replaced)
        assert f"params/{layer}/kernel" in replaced and seen <= replaced
        seen = replaced
        order.append(layer)
    assert seen == set(before)  # all variables, statistics included
    assert order[0] == "head" and order[-1] == first


def test_what_does_not_fit_is_refused(network):
    with pytest.raises(UserError, match=r"maps have the shape \[3, 4, 4\], but the images need \[3, 16, 16\]"):
        faithful.deletion(*network, IMAGES, np.zeros((3, 4, 4)))
    with pytest.raises(UserError, match="steps=0 must be at least 1"):
        faithful.insertion(*network, IMAGES, np.zeros((3, 16, 16)), steps=0)
    with pytest.raises(UserError, match="target=10 is out of range"):
        faithful.deletion(*network, IMAGES, np.zeros((3, 16, 16)), 10)

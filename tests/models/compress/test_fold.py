"""Batch normalization folded into the preceding layer: the same logits, and only where folding is correct."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.compress.fold import fold
from tests.golden import drawn
from tests.networks import SMALL

# The number of normalizations, and how many of them follow a convolution or dense layer that has no other consumer.
COUNTS = {
    "basic": (5, 5), "bottleneck": (9, 9), "preact": (5, 3), "bit": (0, 0), "gated": (11, 11), "dense": (8, 3),
    "dense_imagenet": (5, 1), "multi_scale": (23, 23), "inverted": (10, 10), "separable": (7, 7),
    "ladder_start": (9, 9), "vit": (0, 0), "airbench": (6, 3),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [  # tests/models/test_any_network.py folds every family
        pytest.param(kind, marks=[pytest.mark.full] * (kind not in ("preact", "gated", "dense"))) for kind in COUNTS
    ],
)
def test_logits_are_those_of_the_whole_network(kind):
    name, fields = SMALL[kind]
    model = models.create(name, **fields)
    variables, images = drawn.variables(model), jnp.asarray(drawn.images(kind, (2, 32, 32, 3)))
    norms = sum(
        path[-1].key == "var" for path, _ in jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {}))
    )
    parts = fold(model, variables, images)
    apply, folded, pairs = parts.apply(model), parts.variables, parts.pairs
    assert (norms, len(pairs)) == COUNTS[kind]
    expected = np.asarray(jax.jit(model.apply)(variables, images))
    logits = np.asarray(jax.jit(apply)(folded, images))
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    for pair in pairs:  # the arguments of the normalization are no longer read
        tree = folded["batch_stats"]
        for key in pair.norm:
            tree = tree[key]
        tree["mean"] = tree["mean"] * np.nan
    assert np.isfinite(np.asarray(jax.jit(apply)(folded, images))).all()


def test_a_layer_with_a_bias_keeps_one():
    model = models.create("vgg11_bn", stage_sizes=(1, 2), width=4, classifier=(16,), num_classes=10, image_size=32)
    variables, images = drawn.variables(model), jnp.asarray(drawn.images("vgg", (2, 32, 32, 3)))
    parts = fold(model, variables, images)
    apply, folded, pairs = parts.apply(model), parts.variables, parts.pairs
    assert pairs and np.abs(np.asarray(apply(folded, images) - model.apply(variables, images))).max() < 1e-4
    before, after = (jax.tree.structure(tree) for tree in (variables, folded))
    assert before == after

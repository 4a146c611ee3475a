"""Batch norm's statistics over the training set, against NumPy over all images at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.norm import norm
from train.hooks.recalibrate import recalibrate_batch_norm


class Normalize(nn.Module):
    """Batch norm alone: its inputs are the images, so its statistics can be computed elsewhere."""

    @nn.compact
    def __call__(self, x, train=False):
        return norm("batch", train=train)(name="norm")(x)


def test_moments_are_those_of_all_images_together():
    rng = np.random.default_rng(0)
    # The mean is large and differs between batches: a difference of squares would lose the variance.
    batches = [rng.normal(1000 + 3 * i, 2, (size, 4, 4, 3)).astype(np.float32) for i, size in enumerate((8, 8, 4))]
    variables = models.initialize(Normalize(), jax.random.key(0), (1, 4, 4, 3))
    stats = recalibrate_batch_norm(Normalize(), variables, batches)["batch_stats"]["norm"]
    everything = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(stats["mean"], everything.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], everything.var((0, 1, 2)), rtol=1e-4)


def test_evaluation_on_the_same_images_matches_training_mode():
    """Checks one batch: running statistics equal batch statistics, so both modes give the same logits."""
    model = models.create("resnet8", width=4, num_classes=5)
    images = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    variables = models.initialize(model, jax.random.key(0), images.shape)
    fresh = recalibrate_batch_norm(model, variables, [images])
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    in_training, _ = model.apply(fresh, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(model.apply(fresh, images), in_training, rtol=1e-4, atol=1e-4)
    assert not np.allclose(model.apply(variables, images), in_training, rtol=1e-2, atol=1e-2)


def test_what_cannot_be_recalibrated():
    model = models.create("resnet8", width=4, norm="group:2")
    variables = models.initialize(model, jax.random.key(0), (1, 8, 8, 3))
    with pytest.raises(UserError, match="no batch norm"):
        recalibrate_batch_norm(model, variables, [jnp.zeros((2, 8, 8, 3))])
    model = models.create("resnet8", width=4)
    with pytest.raises(UserError, match="there are no images"):
        recalibrate_batch_norm(model, models.initialize(model, jax.random.key(0), (1, 8, 8, 3)), [])

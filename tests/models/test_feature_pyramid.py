"""Pyramids of features, beside timm's feature_info."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.endpoint import capture
from tests.golden import drawn
from tests.tiers import keep

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "pyramid.json").read_text())


@pytest.mark.parametrize("name", keep(("resnet18", "vgg11", "mobilenet_v1", "vit_tiny_patch16"), GOLDEN))
def test_strides_and_channels_are_those_of_timm(name):
    pyramid = models.pyramid(models.create(name))
    ours = list(zip(pyramid.strides, pyramid.channels, strict=True))
    theirs = sorted({tuple(level) for level in GOLDEN[name]})
    # Ours have no map between the first convolution and the pooling of residual and dense networks
    assert ours == theirs[len(theirs) - len(ours) :] and len(theirs) - len(ours) <= 1


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("lenet5", (2, 4)),  # without padding: maps of 12 x 12 and 4 x 4 of 28 x 28 pixels
        ("alexnet", (4, 8, 16, 32)),
        ("airbench94", (1, 2, 4, 8)),
        ("resnet20", (1, 2, 4)),
    ],
)
def test_strides_of_other_networks(name, strides):
    assert models.pyramid(models.create(name)).strides == strides


def test_features_are_the_endpoints():
    model = models.create("resnet8", width=4)
    images = jnp.asarray(drawn.images("pyramid", (2, 24, 16, 3)))
    variables = models.initialize(model, jax.random.key(0), images.shape)
    pyramid = models.pyramid(model)
    maps = jax.jit(pyramid.features)(variables, images)
    assert [maps[name].shape for name in pyramid.names] == [(2, 24, 16, 4), (2, 12, 8, 8), (2, 6, 4, 16)]
    for name, x in capture(model, variables, images, names=pyramid.names)[1].items():
        np.testing.assert_allclose(maps[name], x, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda x: pyramid.features(variables, x)["stage2"].sum())(images)
    assert gradient.shape == images.shape and np.abs(gradient).max() > 0


def test_tokens_become_a_map_without_the_class_token():
    model = models.create("vit_tiny_patch16", image_size=32, patch_size=8, width=24, depth=1, heads=2, mlp_width=32)
    images = jnp.asarray(drawn.images("pyramid", (2, 32, 32, 3)))
    variables = models.initialize(model, jax.random.key(0), images.shape)
    pyramid = models.pyramid(model)
    assert (pyramid.names, pyramid.strides, pyramid.channels) == (("block0",), (8,), (24,))
    tokens = capture(model, variables, images, names=["block0"])[1]["block0"]
    maps = pyramid.features(variables, images)["block0"]
    np.testing.assert_array_equal(maps[:, 1, 2], tokens[:, 1 + 4 + 2])


@pytest.mark.parametrize(
    ("name", "message"), [("lenet_300_100", "none of its endpoints has positions"), ("transformer_base", "take images")]
)
def test_networks_without_maps_are_one_line(name, message):
    with pytest.raises(UserError, match=message):
        models.pyramid(models.create(name))

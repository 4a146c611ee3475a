"""Tests of models/lenet.py: Caffe's networks, on the images they were designed for and on others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import models
from models.layers.endpoint import capture
from tests.golden import drawn


def shapes(name, size=None, channels=1, **fields):
    model = models.create(name, **fields)
    return jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0), *model.example(size, channels)))


def test_layers_of_caffe():
    params = shapes("lenet5")["params"]
    assert {name: layer["kernel"] for name, layer in params.items()} == {
        "conv1": (5, 5, 1, 20),
        "conv2": (5, 5, 20, 50),
        "hidden1": (800, 500),
        "head": (500, 10),
    }
    params = shapes("lenet_300_100")["params"]
    assert {name: layer["kernel"] for name, layer in params.items()} == {
        "hidden1": (784, 300),
        "hidden2": (300, 100),
        "head": (100, 10),
    }


def test_example_is_a_digit():
    assert models.create("lenet5").example()[0].shape == (1, 28, 28, 1)
    assert models.create("lenet5", image_size=32).example(channels=3)[0].shape == (1, 32, 32, 3)


def test_parameters_depend_on_the_image():
    assert shapes("lenet5", channels=3, image_size=32)["params"]["hidden1"]["kernel"] == (5 * 5 * 50, 500)
    assert shapes("lenet_300_100", channels=3, image_size=32)["params"]["hidden1"]["kernel"] == (32 * 32 * 3, 300)


def test_the_only_activation_follows_the_hidden_layer():
    model = models.create("lenet5", convs=(4, 4), hidden=(8,), act=jnp.zeros_like)
    variables = drawn.variables(model)
    logits, activations = capture(model, variables, jnp.asarray(drawn.images("lenet", (2, 28, 28, 1))))
    assert float(activations["conv1"].min()) < 0 and float(activations["conv2"].min()) < 0
    np.testing.assert_array_equal(logits, np.broadcast_to(variables["params"]["head"]["bias"], (2, 10)))


def test_norm_follows_convolutions_and_hidden_layers():
    for name in ("lenet5", "lenet_300_100"):
        params = shapes(name, norm="batch")["params"]
        before = {layer for layer in params if not layer.endswith("_norm")}
        assert set(params) - before == {f"{layer}_norm" for layer in before - {"head"}}
        assert all(("bias" in params[layer]) == (not layer.startswith("conv")) for layer in before)


def test_pooling_takes_maxima():
    model = models.create("lenet5", convs=(1,), hidden=(4,), init=nn.initializers.ones_init())
    image = jnp.zeros((1, 28, 28, 1)).at[0, 4, 4, 0].set(1.0)
    activations = capture(model, models.initialize(model, jax.random.key(0), image.shape), image)[1]
    expected = jnp.zeros((1, 12, 12, 1)).at[0, :3, :3].set(1.0)  # 5 x 5 outputs see the pixel
    np.testing.assert_array_equal(activations["conv1"], expected)

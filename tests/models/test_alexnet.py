"""Tests of models/alexnet.py and layers/pooling.py: the effect of each field. test_parity.py compares with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.alexnet import local_response_norm
from models.errors import UserError
from models.layers.endpoint import capture
from models.layers.pooling import adaptive_avg_pool
from tests.golden import drawn


def endpoints(name, size, **fields):
    model = models.create(name, **fields)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return {
        key: value.shape[1:]
        for key, value in jax.eval_shape(
            lambda variables, x: capture(model, variables, x)[1], drawn.abstract(model), images
        ).items()
    }


def test_shapes_of_the_paper():
    """Compares shapes with Krizhevsky 2012, fig. 2."""
    assert endpoints("alexnet_original", 227) == {
        "conv1": (55, 55, 96), "conv2": (27, 27, 256), "conv3": (13, 13, 384), "conv4": (13, 13, 384),
        "conv5": (13, 13, 256), "pool5": (6, 6, 256), "pre_logits": (4096,),
    }  # fmt: skip


def test_towers_meet_in_conv3_alone():
    params = drawn.abstract(models.create("alexnet_original"))["params"]
    assert [params[f"conv{i}"]["kernel"].shape for i in range(1, 6)] == [
        (11, 11, 3, 96),
        (5, 5, 48, 256),
        (3, 3, 256, 384),
        (3, 3, 192, 384),
        (3, 3, 192, 256),
    ]


@pytest.mark.parametrize("n", [1, 4, 5])
def test_local_response_norm_is_equation_1(n):
    x = drawn.images("response", (2, 3, 3, 7)) * 10
    expected = np.empty_like(x)
    for i in range(7):  # for even n, the window has one channel more below than above
        around = x[..., max(0, i - n // 2) : min(7, i + (n - 1) // 2 + 1)]
        expected[..., i] = x[..., i] / (2 + 1e-2 * np.square(around).sum(-1)) ** 0.75
    output = local_response_norm(jnp.asarray(x), n, 2.0, 1e-2)
    np.testing.assert_allclose(output, expected, rtol=2e-6)
    half = local_response_norm(jnp.asarray(x, jnp.bfloat16), n, 2.0, 1e-2)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0.02)


def test_response_normalization_acts_twice(monkeypatch):
    seen = []
    monkeypatch.setattr("models.alexnet.local_response_norm", lambda x, *how: seen.append((x.shape[1:], how)) or x)
    endpoints("alexnet_original", 227)
    assert seen[-2:] == [((55, 55, 96), (5, 2.0, 1e-4)), ((27, 27, 256), (5, 2.0, 1e-4))]
    seen.clear()
    endpoints("alexnet_original", 227, local_response=None)
    assert not seen


@pytest.mark.parametrize("size", [1, 3, 6, 7])
def test_adaptive_pooling_averages_overlapping_cells(size):
    """Compares PyTorch's cells for lengths below, equal to, a multiple of and next to a multiple of the size."""
    x = drawn.images("adaptive", (2, 6, 13, 3))
    expected = np.empty((2, size, size, 3), np.float32)
    for i in range(size):
        for j in range(size):
            rows, columns = ((k * n // size, -(-(k + 1) * n // size)) for k, n in ((i, 6), (j, 13)))
            expected[:, i, j] = x[:, slice(*rows), slice(*columns)].mean((1, 2))
    np.testing.assert_allclose(adaptive_avg_pool(jnp.asarray(x), size), expected, rtol=1e-5, atol=1e-6)


def test_adaptive_pooling_of_a_map_of_the_output_size_is_the_identity():
    x = jnp.asarray(drawn.images("adaptive", (1, 6, 6, 2)))
    assert adaptive_avg_pool(x, 6) is x


def test_images_that_are_too_small_are_refused():
    for name in ("alexnet", "alexnet_original", "vgg11"):
        with pytest.raises(UserError, match="images of 30 x 30 are too small"):
            endpoints(name, 30)


def test_dropout_acts_on_the_hidden_layers_in_training():
    model = models.create("alexnet", stem=(3, 1, 1), convs=(4,) * 5, classifier=(2000,), num_classes=4, dropout=0.3)
    variables = models.initialize(model, jax.random.key(0), (1, 32, 32, 3))
    images = jnp.asarray(drawn.images("dropout", (1, 32, 32, 3)))
    evaluated = capture(model, variables, images)[1]["pre_logits"]
    trained = capture(model, variables, images, train=True, rngs={"dropout": jax.random.key(0)})[1]["pre_logits"]
    mask = np.asarray(trained != 0)[np.asarray(evaluated != 0)]
    assert mask.mean() == pytest.approx(0.7, abs=0.05)
    np.testing.assert_allclose(trained[trained != 0], (evaluated / 0.7)[trained != 0], rtol=1e-5)

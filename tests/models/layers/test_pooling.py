"""Tests of models/layers/pooling.py: maxima and their gradients as lax computes them, for each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.kernels.tracing import PLATFORMS, for_platform, lowering
from models.layers.pooling import max_pool

CASES = [  # size, stride, padding
    (3, 2, 1),
    (3, 2, 0),
    (2, 2, 0),
    (3, 1, 1),
    (2, 3, 0),  # positions between windows
    (3, 3, 1),
]


def by_lax(x, size, stride, padding):
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), border)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [(8, 11), (9, 6)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_has_the_maxima_and_gradients_of_lax(case, lengths, dtype):
    """Draws few values, so that most windows have several maxima; gradients are small integers, so sums are exact."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-1, 3, (3, *lengths, 4)), dtype)

    def both(function):
        def call(x):
            y, backward = jax.vjp(lambda x: function(x, *case), x)
            dy = np.random.default_rng(1).integers(-8, 9, y.shape)
            return y, *backward(jnp.asarray(dy, dtype))

        return jax.jit(call)(x)  # one program instead of one per operation

    expected = both(by_lax)
    with for_platform("gpu"):
        ours = both(max_pool)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == dtype


def test_a_gpu_keeps_what_is_not_a_number():
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    with for_platform("gpu"):
        np.testing.assert_array_equal(max_pool(x, 2, 2), by_lax(x, 2, 2, 0))


def lowered_gradient(platform, size, kind="auto"):
    with for_platform(platform), lowering(kind):
        gradient = jax.jit(jax.grad(lambda x: max_pool(x, size, 2, padding=1).sum()))
        traced = gradient.trace(jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.bfloat16))
    return traced.lower(lowering_platforms=({"gpu": "cuda"}.get(platform, platform),)).as_text()


def test_only_a_gpu_has_no_scatter():
    scatters = {platform: "select_and_scatter" in lowered_gradient(platform, 3) for platform in PLATFORMS}
    assert scatters == {"cpu": True, "gpu": False, "tpu": True}
    assert "select_and_scatter" in lowered_gradient("gpu", 7)
    assert "select_and_scatter" in lowered_gradient("gpu", 3, "plain")

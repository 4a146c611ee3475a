"""Tests of models/kernels/fused.py: equal to lax's convolution and what follows it, in one loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.kernels import fused, native
from models.kernels.convolution import pair_of_pairs

SAME, NONE, WIDE = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 2), (2, 2))
# shape of x, shape of the kernel, strides, padding, dilation, groups
CASES = [
    ((1, 32, 32, 16), (3, 3, 16, 16), (1, 1), SAME, (1, 1), 1),
    ((3, 9, 8, 5), (3, 3, 5, 40), (2, 2), SAME, (1, 1), 1),  # the last block overlaps
    ((2, 14, 14, 48), (1, 1, 48, 17), (1, 1), NONE, (1, 1), 1),
    ((2, 9, 9, 32), (1, 1, 32, 64), (2, 2), NONE, (1, 1), 1),
    ((1, 56, 56, 64), (3, 3, 64, 64), (1, 1), SAME, (1, 1), 1),  # several threads
    ((1, 7, 7, 256), (3, 3, 256, 128), (1, 1), SAME, (1, 1), 1),
    ((2, 11, 13, 16), (5, 3, 16, 32), (2, 1), ((2, 0), (1, 3)), (2, 1), 1),
    ((2, 11, 13, 6), (3, 3, 6, 24), (1, 1), ((3, 2), (2, 4)), (2, 3), 1),
    ((3, 6, 6, 32), (3, 3, 16, 32), (1, 1), SAME, (1, 1), 2),
    ((1, 25, 25, 3), (7, 7, 3, 16), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((2, 2, 1, 8), (5, 5, 8, 16), (1, 1), ((6, 6), (2, 2)), (1, 1), 1),  # unseen taps
    ((1, 56, 56, 96), (3, 3, 1, 96), (1, 1), SAME, (1, 1), 96),
    ((2, 15, 14, 24), (3, 3, 1, 24), (2, 2), ((0, 1), (0, 1)), (1, 1), 24),
    ((2, 7, 7, 40), (5, 5, 1, 40), (1, 1), WIDE, (1, 1), 40),
]  # fmt: skip

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")


def _drawn(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_layers_equal_lax(case):
    x_shape, shape, strides, padding, dilation, groups = case
    assert fused.fits(shape, groups)
    x, kernel, bias = _drawn(0, x_shape), _drawn(1, shape), _drawn(2, shape[-1])
    packed, options = fused.pack(kernel, bias), (strides, pair_of_pairs(padding), dilation, groups)
    expected = bias + jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    shortcut = _drawn(3, expected.shape)

    def block(x, packed, shortcut):
        y = fused.convolve(x, packed, shape[:2], *options)
        return jnp.minimum(jax.nn.relu(shortcut + y), 2)

    alone = jax.jit(lambda x, packed: fused.convolve(x, packed, shape[:2], *options))(x, packed)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(alone, expected, rtol=0, atol=tolerance)
    whole = jax.jit(fused.merged(block))(x, packed, shortcut)
    np.testing.assert_allclose(whole, np.clip(expected + shortcut, 0, 2), rtol=0, atol=tolerance)
    assert _operations(fused.merged(block), x, packed, shortcut) == ["layer_fused"]


def _operations(function, *args):
    """Returns the operations of a program that compute with an array."""
    text = str(jax.make_jaxpr(function)(*args))
    return [name for name in re.findall(r"= (\w+)", text) if name not in ("broadcast_in_dim", "jit", "reshape")]


@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 48), (130, 48)])
def test_native_products_equal_lax(shape):
    x, kernel, bias = _drawn(0, shape), _drawn(1, (48, 37)), _drawn(2, 37)
    y = jax.jit(fused.multiply)(x, fused.pack(kernel, bias))
    assert y.shape == (*shape[:-1], 37)
    np.testing.assert_allclose(y, x.astype(np.float64) @ kernel + bias, rtol=0, atol=1e-5)


def _layer(seed):
    packed = fused.pack(_drawn(seed, (1, 1, 16, 16)))
    return lambda x: fused.convolve(x, packed, (1, 1), (1, 1), NONE, (1, 1))


FIRST, SECOND = _layer(1), _layer(2)


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x: jax.nn.relu(SECOND(jax.nn.relu6(FIRST(x)))), ["layer_fused"] * 2),
        (lambda x: jax.nn.relu(FIRST(x) + SECOND(x)), ["layer_fused"] * 2),  # one of them is the other's summand
        (lambda x: x + jax.nn.relu(FIRST(x)), ["layer_fused", "add"]),  # the limit comes before the sum
        (lambda x: FIRST(x) + FIRST(x).mean(), ["layer_fused", "layer_fused", "reduce_sum", "div", "add"]),
        (lambda x: (y := FIRST(x)) + jax.nn.relu(y), ["layer_fused", "max", "add"]),  # used twice
        (lambda x: jnp.maximum(jnp.minimum(FIRST(x), -1), 1), ["layer_fused", "max"]),  # every number is 1
        (lambda x: jnp.maximum(FIRST(x), x), ["layer_fused", "max"]),  # a limit is a number
        (lambda x: (FIRST(x) + x + x), ["layer_fused", "add"]),  # one summand
        (lambda x: jnp.tanh(FIRST(x)), ["layer_fused", "tanh"]),
    ],
)  # fmt: skip
def test_only_what_can_end_a_layer_becomes_part_of_it(function, operations):
    x = _drawn(0, (2, 5, 5, 16))
    np.testing.assert_allclose(fused.merged(function)(x), function(x), rtol=0, atol=1e-5)
    assert sorted(_operations(fused.merged(function), x)) == sorted(operations)


def test_results_keep_their_structure_and_nan():
    x = _drawn(0, (1, 4, 4, 16))
    x[0, 1, 2] = np.nan
    result = fused.merged(lambda x, scale: {"y": jax.nn.relu6(FIRST(x)), "x": (x, FIRST(x), scale)})(x, scale=2.0)
    assert np.isnan(result["y"][0, 1, 2]).all() and np.isnan(result["y"]).sum() == 16
    assert result["x"][0] is x or np.array_equal(result["x"][0], x, equal_nan=True)
    assert result["x"][2] == 2 and result["x"][1].shape == x.shape


@pytest.mark.parametrize(
    ("shape", "groups", "answer"),
    [
        ((3, 3, 8, 15), 1, False),  # less than a block
        ((3, 3, 4, 128), 32, False),
        ((3, 3, 16, 64), 4, True),
        ((7, 7, 1, 64), 64, False),  # most places of a small map see different taps
        ((64, 1000), 1, True),
        ((1, 1, 0, 16), 1, False),
    ],
)
def test_which_kernels_fit(shape, groups, answer):
    assert fused.fits(shape, groups) == answer


def test_arrays_that_do_not_fit_are_refused():
    x, packed = _drawn(0, (1, 4, 4, 16)), fused.pack(_drawn(1, (3, 3, 16, 16)))
    for broken in (packed._replace(bias=packed.bias[:8]), packed._replace(weights=packed.weights[:, :-1])):
        layer = fused._Layer((1, 4, 4, 16), (3, 3), (1, 1), SAME, (1, 1), 1)
        with pytest.raises(jax.errors.JaxRuntimeError, match="sizes that do not fit"):
            fused._layer.bind(x, *broken, jnp.zeros(0), layer=layer).block_until_ready()

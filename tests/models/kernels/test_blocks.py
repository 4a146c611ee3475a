"""Tests of models/kernels/blocks.py: equal to lax's convolution of the whole kernel, by the nonzero blocks alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.kernels import blocks, convolution, native
from models.kernels.convolution import pair_of_pairs

SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))
# shape of x, shape of the kernel, strides, padding, dilation, groups
CASES = [
    ((1, 32, 32, 16), (3, 3, 16, 16), (1, 1), SAME, (1, 1), 1),
    ((9, 8, 8, 32), (3, 3, 32, 64), (2, 2), SAME, (1, 1), 1),
    ((2, 7, 5, 48), (1, 1, 48, 80), (1, 1), NONE, (1, 1), 1),
    ((2, 9, 9, 32), (1, 1, 32, 16), (2, 2), NONE, (1, 1), 1),
    ((1, 56, 56, 64), (3, 3, 64, 32), (1, 1), SAME, (1, 1), 1),
    ((2, 11, 13, 16), (5, 3, 16, 32), (2, 1), ((2, 0), (1, 3)), (2, 1), 1),
    ((3, 6, 6, 32), (3, 3, 16, 32), (1, 1), SAME, (1, 1), 2),
    ((1, 12, 12, 3), (7, 7, 3, 16), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
]

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")


def _sparse(shape, share, seed=0):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=shape).astype(np.float32)
    zero = rng.random((*shape[:-1], shape[-1] // blocks.SIZE)) < share
    kernel.reshape(*zero.shape, blocks.SIZE)[zero] = 0
    return kernel, int((~zero).sum())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_equals_the_convolution_of_the_whole_kernel(case, share):
    x_shape, shape, strides, padding, dilation, groups = case
    x = np.random.default_rng(1).normal(size=x_shape).astype(np.float32)
    bias = np.random.default_rng(2).normal(size=shape[-1]).astype(np.float32)
    kernel, nonzero = _sparse(shape, share)
    packed = blocks.pack(kernel, bias)
    assert packed.weights.shape == (nonzero, blocks.SIZE) and len(packed.indices) == packed.starts[-1] == nonzero
    options = (strides, pair_of_pairs(padding), dilation, groups)
    y = jax.jit(lambda x, b: blocks.convolve(x, b, shape[:2], *options))(x, packed)
    expected = bias + jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_equals_the_dense_native_loops_to_the_bit():
    x = np.random.default_rng(1).normal(size=(2, 16, 16, 32)).astype(np.float32)
    kernel, _ = _sparse((3, 3, 32, 32), 0.6)
    dense = jax.jit(lambda x, k: convolution.conv2d(x, k, (1, 1), SAME))(x, kernel)
    y = jax.jit(lambda x, b: blocks.convolve(x, b, (3, 3), (1, 1), SAME, (1, 1)))(x, blocks.pack(kernel))
    assert np.array_equal(y, dense)


@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 48)])
def test_products(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    kernel, _ = _sparse((48, 32), 0.7)
    y = jax.jit(blocks.multiply)(x, blocks.pack(kernel))
    assert y.shape == (*shape[:-1], 32)
    np.testing.assert_allclose(y, x.astype(np.float64) @ kernel, rtol=0, atol=1e-5)


def test_a_block_with_one_nonzero_weight_is_kept():
    kernel = np.zeros((3, 3, 16, 32), np.float32)
    kernel[1, 2, 5, 20] = 3.0
    packed = blocks.pack(kernel)
    assert packed.indices.tolist() == [5 * 16 + 5] and packed.starts.tolist() == [0, 0, 1]
    assert blocks.nonzero(kernel).sum() == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b._replace(indices=b.indices + 1000),
        lambda b: b._replace(indices=b.indices - 1000),
        lambda b: b._replace(starts=b.starts[::-1].copy()),
        lambda b: b._replace(starts=b.starts + 1),
        lambda b: b._replace(weights=b.weights[:-1]),
        lambda b: b._replace(bias=b.bias[:-1]),
    ],
)
def test_indices_outside_of_the_arrays_are_refused(change):
    x = jnp.ones((1, 8, 8, 16))
    packed = change(blocks.pack(_sparse((3, 3, 16, 32), 0.5)[0]))
    with pytest.raises(Exception, match="sizes that do not fit each other"):
        jax.block_until_ready(jax.jit(lambda x, b: blocks.convolve(x, b, (3, 3), (1, 1), SAME, (1, 1)))(x, packed))

"""Tests of models/layers/xnor.py: values and gradients against NumPy, and packed bits against floats, bit for bit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.kernels import native
from models.kernels.tracing import lowering
from models.layers import xnor
from models.layers.init import jit_once
from models.layers.low_bit import XnorConv, XnorDense
from tests.tiers import keep_first

# x shape, kernel size, features, strides, padding, dilation
CASES = [
    ((2, 8, 8, 64), (3, 3), 64, (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((2, 9, 7, 37), (3, 3), 21, (2, 1), ((1, 1), (2, 0)), (1, 2)),
    ((1, 9, 7, 130), (5, 3), 70, (2, 3), ((0, 1), (2, 4)), (2, 1)),
    ((2, 6, 5, 3), (1, 1), 5, (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((2, 7, 9, 32), (1, 1), 16, (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((1, 2, 3, 33), (7, 7), 130, (1, 1), ((3, 3), (3, 3)), (1, 1)),  # most taps only see padding
    ((1, 14, 14, 96), (3, 3), 80, (1, 1), ((2, 2), (2, 2)), (2, 2)),
    ((2, 9, 9, 20), (3, 3), 24, (1, 1), ((-1, -2), (1, -1)), (1, 1)),  # negative padding: rows and columns are cut off
]


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def by_hand(x, kernel, strides, padding, dilation, groups=1):
    """Computes the definition, position by position, in float64: sums of signs, alpha, K."""
    signs, sizes = np.where(x >= 0, 1.0, -1.0), np.abs(x.astype(np.float64))
    signs, sizes = (np.pad(a, ((0, 0), *np.maximum(padding, 0), (0, 0))) for a in (signs, sizes))
    (top, bottom), (left, right) = -np.minimum(padding, 0)
    signs, sizes = (a[:, top : a.shape[1] - bottom, left : a.shape[2] - right] for a in (signs, sizes))
    kh, kw, inside, features = kernel.shape
    reach = [(k - 1) * d for k, d in zip((kh, kw), dilation, strict=True)]
    shape = [(size - far - 1) // s + 1 for size, far, s in zip(signs.shape[1:3], reach, strides, strict=True)]
    sums, scale = (np.zeros((x.shape[0], *shape, features)) for _ in range(2))
    for i, j, group in itertools.product(*map(range, shape), range(groups)):
        window = (
            slice(None),
            slice(i * strides[0], i * strides[0] + reach[0] + 1, dilation[0]),
            slice(j * strides[1], j * strides[1] + reach[1] + 1, dilation[1]),
            slice(group * inside, (group + 1) * inside),
        )
        of_group = slice(group * features // groups, (group + 1) * features // groups)
        flipped = np.where(kernel[..., of_group] >= 0, 1.0, -1.0)
        sums[:, i, j, of_group] = np.einsum("nhwc,hwcd->nd", signs[window], flipped)
        scale[:, i, j, of_group] = sizes[window].mean((1, 2, 3))[:, None]
    return sums, np.abs(kernel.astype(np.float64)).mean((0, 1, 2)), scale


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("compiled", keep_first(1, [True, False]))
def test_packed_equals_float_to_the_bit(case, compiled, monkeypatch):
    x_shape, size, features, *how = case
    if compiled and not native.available():
        pytest.skip("no C++ compiler here")
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    x, kernel = drawn(x_shape, (*size, x_shape[-1], features))
    x[0, 0] = 0.0  # its sign is 1
    x[0, 1] = -0.0
    floats = jax.jit(lambda x, kernel: xnor.convolve(x, kernel, *how))(x, kernel)
    packed = jax.jit(xnor.pack_conv)(kernel)
    y = jax.jit(lambda x, packed: xnor.convolve_packed(x, packed, *how))(x, packed)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, floats)
    sums, alpha, scale = by_hand(x, kernel, *how)
    np.testing.assert_allclose(floats, sums * alpha * scale, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 70), (2, 5, 64), (1, 4096), (70,)])
@pytest.mark.parametrize("compiled", [True, False])
def test_packed_products_equal_float_ones_to_the_bit(shape, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "available", lambda: False)
    x, kernel = drawn(shape, (shape[-1], 37))
    floats = jax.jit(xnor.multiply)(x, kernel)
    y = jax.jit(xnor.multiply_packed)(x, jax.jit(xnor.pack_dense)(kernel))
    np.testing.assert_array_equal(y, floats)
    signs = [np.where(a >= 0, 1.0, -1.0) for a in (x, kernel)]
    np.testing.assert_allclose(
        y, signs[0] @ signs[1] * np.abs(kernel).mean(0) * np.abs(x).mean(-1, keepdims=True), rtol=1e-5, atol=1e-6
    )


def test_bits_are_in_the_order_of_channels():
    x = -np.ones((2, 40), np.float32)
    x[0, [0, 5, 33]] = 1
    np.testing.assert_array_equal(xnor.pack(x), [[1 + 2**5, 2], [0, 0]])
    packed = xnor.pack_conv(x.T.reshape(1, 1, 40, 2))
    assert packed.bits.shape == (1, 1, 2, 16) and not packed.bits[..., 2:].any()
    np.testing.assert_array_equal(packed.bits[0, 0, :, :2], [[33, 0], [2, 0]])


@pytest.mark.parametrize("groups,inside,outside", [(2, 6, 5), (12, 1, 2)])
def test_groups_have_scales_of_their_own(groups, inside, outside):
    x, kernel = drawn((2, 6, 5, groups * inside), (3, 3, inside, groups * outside))
    how = ((2, 1), ((1, 1), (0, 1)), (1, 1), groups)
    sums, alpha, scale = by_hand(x, kernel, *how)
    np.testing.assert_allclose(
        jit_once(lambda x, k: xnor.convolve(x, k, *how))(x, kernel), sums * alpha * scale, rtol=1e-5, atol=1e-6
    )


def test_scales_of_filters_have_the_same_bits_everywhere_and_are_exact_where_magnitudes_are_equal():
    """Tests sizes whose reciprocals are inexact, and magnitudes whose sums are."""
    for size in ((3, 3, 5, 7), (49, 400), (4097, 20), (1, 1)):
        (kernel,) = drawn(size)
        scale = jax.jit(xnor.filter_scale)(kernel)
        other = jit_once(lambda kernel: xnor.filter_scale(kernel) * 2)
        np.testing.assert_array_equal(other(kernel), 2 * scale)
        equal = xnor.signs(kernel) * scale
        np.testing.assert_array_equal(xnor.filter_scale(equal) if len(kernel) < 50 else other(equal) / 2, scale)
        np.testing.assert_allclose(scale, np.abs(kernel).mean(tuple(range(len(size) - 1))), rtol=1e-5)
    np.testing.assert_array_equal(xnor.filter_scale(jnp.zeros((3, 3, 2, 2))), [0, 0])


def test_gradients():
    """Checks gradients: exact for the scales; through signs that of the identity, where magnitudes are at most 1."""
    x, kernel = drawn((2, 5, 4, 6), (3, 3, 6, 4))
    kernel *= 0.9
    how = ((2, 1), ((1, 1), (0, 1)), (1, 1))
    (dy,) = drawn((2, 3, 3, 4))
    dx, dk = jit_once(lambda x, k, dy: jax.vjp(lambda x, k: xnor.convolve(x, k, *how), x, k)[1](dy))(x, kernel, dy)
    sums, alpha, scale = by_hand(x, kernel, *how)
    wx, wk = np.zeros(x.shape), np.zeros(kernel.shape)
    padded_x = np.pad(np.where(x >= 0, 1.0, -1.0), ((0, 0), (1, 1), (0, 1), (0, 0)))
    signs, magnitude = np.where(kernel >= 0, 1.0, -1.0), 0 * padded_x
    by_sign = 0 * padded_x
    for i, j in itertools.product(*map(range, dy.shape[1:3])):
        window = (slice(None), slice(2 * i, 2 * i + 3), slice(j, j + 3))
        g = dy[:, i, j]
        wk += np.einsum("nhwc,nd->hwcd", padded_x[window], g * alpha * scale[:, i, j])
        by_sign[window] += np.einsum("hwcd,nd->nhwc", signs, g * alpha * scale[:, i, j])
        magnitude[window] += (g * alpha * sums[:, i, j]).sum(-1)[:, None, None, None] / kernel[..., 0].size
    inner = (slice(None), slice(1, -1), slice(0, -1))
    wx = by_sign[inner] * (np.abs(x) <= 1) + magnitude[inner] * np.sign(x)
    wk = wk * (np.abs(kernel) <= 1) + (dy * sums * scale).sum((0, 1, 2)) * np.sign(kernel) / kernel[..., 0].size
    assert (np.abs(x) > 1).any() and (np.abs(kernel) > 1).any()
    np.testing.assert_allclose(dx, wx, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dk, wk, rtol=1e-4, atol=1e-4)


def test_gradients_of_products():
    x, kernel = drawn((5, 7), (7, 4))
    (dy,) = drawn((5, 4))
    dx, dk = jit_once(lambda x, k, dy: jax.vjp(xnor.multiply, x, k)[1](dy))(x, kernel, dy)
    sx, sk = (np.where(a >= 0, 1.0, -1.0) for a in (x, kernel))
    alpha, scale = np.abs(kernel).mean(0), np.abs(x).mean(-1, keepdims=True)
    g = dy * alpha * scale
    np.testing.assert_allclose(
        dx,
        (g @ sk.T) * (np.abs(x) <= 1) + np.sign(x) * (dy * (sx @ sk) * alpha).sum(-1, keepdims=True) / 7,
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        dk,
        (sx.T @ g) * (np.abs(kernel) <= 1) + np.sign(kernel) * (dy * (sx @ sk) * scale).sum(0) / 7,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", keep_first(1, ["bfloat16", None]))
@pytest.mark.parametrize(
    "layer,shape",
    [
        (XnorConv(24, 3, strides=2, use_bias=True), (2, 9, 7, 40)),
        (XnorConv(8, 3, groups=4), (2, 9, 7, 40)),
        (XnorConv(8, 3, padding=[[1, 2], [0, 1]], dilation=2), (2, 9, 7, 40)),
        (XnorDense(24), (3, 5, 70)),
    ],
    ids=str,
)
def test_layers_take_packed_bits_inside_of_the_lowering(layer, shape, dtype):
    """Checks sums of many channels in bfloat16: the layers compute them exactly, in float32."""
    layer = layer.clone(dtype=dtype and jnp.dtype(dtype), bias_init=jax.nn.initializers.normal(1.0))
    (x,) = drawn(shape)
    variables = jit_once(layer.init)(jax.random.key(0), x)
    floats = jax.jit(layer.apply)(variables, x)
    with lowering("packed"):
        program = jax.make_jaxpr(layer.apply)(variables, x)
        packed = jax.jit(layer.apply)(variables, x)
    assert packed.dtype == floats.dtype == (dtype or jnp.float32)
    np.testing.assert_array_equal(packed, floats)
    bits = "conv_signs" if native.available() else "population_count"
    assert (bits in str(program)) == (getattr(layer, "groups", 1) == 1)

"""Lowerings of a convolution that XLA compiles: the plain one, and its replacements on CPUs; convolution.py chooses.

All of them take x [N, H, W, C], a kernel [kh, kw, C / groups, D] of the same type, and strides, padding and dilation
per axis.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from models.errors import UserError
from models.kernels.derivatives import Bilinear

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    """Returns the convolution, [N, H', W', D], by XLA's own operation."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=_DIMENSIONS
    )


class EmptyMap(UserError):
    """A map is empty because the images are too small for the network."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__("images are too small for this network: they leave a map of {} x {}".format(*sizes))


def output_size(size, taps, stride, padding, dilation):
    """Returns H' or W' for an axis of `size` pixels."""
    return max(0, (size + sum(padding) - dilation * (taps - 1) - 1) // stride + 1)


def shape_of(x_shape, kernel_shape, strides, padding, dilation, *_):
    """Returns the shape of a convolution of arrays of these shapes, [N, H', W', D]."""
    return (x_shape[0], *output_sizes(x_shape[1:3], kernel_shape[:2], strides, padding, dilation), kernel_shape[-1])


def output_sizes(sizes, taps, strides, padding, dilation):
    """Returns (H', W') for windows of `taps` on a map of `sizes`; raises EmptyMap if one of them is 0."""
    outputs = tuple(map(output_size, sizes, taps, strides, padding, dilation))
    if 0 in outputs:
        raise EmptyMap(outputs)
    return outputs


def _flipped(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


# -- dense -----------------------------------------------------------------------------------------------
# The gradients that JAX derives are convolutions with permuted dimensions. XLA's CPU compiler converts them to the
# layout [N, H, W, C] of its kernels where it can, but not inside loops (several steps per call, accumulated gradients).
# There the kernel gradient runs 50 times slower (64 images of 8x8x32: 97 -> 1.8 ms per step). Therefore the gradients
# are written out in that layout.


def _axes(kernel_shape, x_shape, dy_shape, strides, padding, dilation):
    """Yields (taps, dilation, padding, size of x, size of dy, stride) for each axis of the image."""
    return zip(kernel_shape[:2], dilation, padding, x_shape[1:3], dy_shape[1:3], strides, strict=True)


def dense_to_x(dy, kernel, shape, strides, padding, dilation):
    """Returns dx[i], the sum of dy[o] k[t] over o stride + t dilation - low = i: a convolution of dilated dy."""
    pads = [
        ((taps - 1) * far - low, size - 1 + low - (out - 1) * stride)
        for taps, far, (low, _), size, out, stride in _axes(kernel.shape, shape, dy.shape, strides, padding, dilation)
    ]
    return lax.conv_general_dilated(dy, _flipped(kernel), (1, 1), pads, strides, dilation, _DIMENSIONS)


def dense_to_kernel(x, dy, shape, strides, padding, dilation):
    """Returns dk[t], the sum of x[o stride + t dilation - low] dy[o]: channels act as images, and dy as the kernel."""
    pads = [
        (low, (taps - 1) * far + (out - 1) * stride + 1 - size - low)
        for taps, far, (low, _), size, out, stride in _axes(shape, x.shape, dy.shape, strides, padding, dilation)
    ]
    x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)  # [C, H, W, N], [H', W', N, D] -> [C, kh, kw, D]
    dk = lax.conv_general_dilated(x, dy, dilation, pads, None, strides, _DIMENSIONS)
    return dk.transpose(1, 2, 0, 3)


dense = Bilinear(
    "conv_dense", shape_of, plain, plain, dense_to_x, dense_to_kernel
)  # `plain` of one group, fast within loops


# -- depthwise -------------------------------------------------------------------------------------------
# XLA's CPU kernel for feature_group_count = C takes 100 times as long as a sum over the taps of shifted x times the
# tap's channel weights, which compiles to one loop (3x3, 128 channels, 32x32, batch 32: 290 -> 4 ms).


def depthwise(x, kernel, strides, padding, dilation):
    """Returns `plain` of C groups, with a kernel [kh, kw, 1, D], computed as a sum of shifted products."""
    channels, features = x.shape[-1], kernel.shape[-1]
    if features != channels:  # each channel has D / C features
        x = jnp.repeat(x, features // channels, -1)
    return _shifted_products(x, kernel[:, :, 0], strides, padding, dilation)


def _taps(kernel, dilation):
    """Returns (pixels down, pixels right, weights [C]) for every tap."""
    indices = itertools.product(*map(range, kernel.shape[:2]))
    return [(i * dilation[0], j * dilation[1], kernel[i, j]) for i, j in indices]


def pad(x, padding):
    """Pads x with zeros to [N, H + low + high, W + ..., C]; negative padding crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))


def window(x, top, left, shape, strides):
    """Returns the part of padded x that a tap at (top, left) sees: [N, H', W', C]."""
    limits = (top + (shape[0] - 1) * strides[0] + 1, left + (shape[1] - 1) * strides[1] + 1)
    return lax.slice(x, (0, top, left, 0), (x.shape[0], *limits, x.shape[3]), (1, *strides, 1))


def _sum_of_products(terms, dtype):
    """Returns the sum of a * b over (a, b) in terms, in at least float32; XLA compiles it to one loop."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.asarray(sum(a.astype(wide) * b.astype(wide) for a, b in terms)).astype(dtype)


def _sum_of_shifts(x, kernel, strides, padding, dilation):
    shape = output_sizes(x.shape[1:3], kernel.shape[:2], strides, padding, dilation)
    padded = pad(x, padding)
    terms = [(window(padded, i, j, shape, strides), tap) for i, j, tap in _taps(kernel, dilation)]
    return _sum_of_products(terms, x.dtype)


def _depthwise_to_x(dy, kernel, shape, strides, padding, dilation):
    """Returns dx.

    Padded x at stride q + r receives dy[q - i' // stride] through the taps i' (in pixels) with i' % stride = r.
    """
    counts = [-(-(size + sum(pad)) // stride) for size, pad, stride in zip(shape[1:3], padding, strides, strict=True)]
    reach = [(taps - 1) * far // stride for taps, far, stride in zip(kernel.shape[:2], dilation, strides, strict=True)]
    grown = pad(dy, [(r, count - size) for r, count, size in zip(reach, counts, dy.shape[1:3], strict=True)])
    phases = []
    for r, s in itertools.product(*map(range, strides)):
        terms = [
            (window(grown, reach[0] - i // strides[0], reach[1] - j // strides[1], counts, (1, 1)), tap)
            for i, j, tap in _taps(kernel, dilation)
            if i % strides[0] == r and j % strides[1] == s
        ]
        zeros = jnp.zeros((dy.shape[0], *counts, dy.shape[3]), dy.dtype)
        phases.append(_sum_of_products(terms, dy.dtype) if terms else zeros)
    if len(phases) == 1:
        dx = phases[0]
    else:  # [phases, N, H / s, W / s, C] -> [N, H, W, C]
        dx = jnp.stack(phases).reshape(*strides, dy.shape[0], *counts, dy.shape[3]).transpose(2, 3, 0, 4, 1, 5)
        dx = dx.reshape(dy.shape[0], counts[0] * strides[0], counts[1] * strides[1], dy.shape[3])
    (top, _), (left, _) = padding
    extra = [c * s - size - low for c, s, size, low in zip(counts, strides, shape[1:3], (top, left), strict=True)]
    return pad(dx, ((-top, -extra[0]), (-left, -extra[1])))


def _depthwise_to_kernel(x, dy, shape, strides, padding, dilation):
    """Returns the kernel gradient, summed image by image so that the data of one image stays in the cache."""

    def add_image(total, image):
        x, dy = image
        padded = pad(x[None], padding)
        windows = [window(padded, i, j, dy.shape[:2], strides)[0] for i, j in places]
        return total + jnp.stack([(window * dy).sum((0, 1)) for window in windows]).astype(total.dtype), None

    places = [(i * dilation[0], j * dilation[1]) for i, j in itertools.product(*map(range, shape[:2]))]
    zero = jnp.zeros((shape[0] * shape[1], shape[2]), jnp.float32)
    return lax.scan(add_image, zero, (x, dy))[0].reshape(shape).astype(x.dtype)


def _plain_depthwise(x, kernel, strides, padding, dilation):
    return plain(x, kernel[:, :, None], strides, padding, dilation, x.shape[-1])


_shifted_products = Bilinear(
    "conv_depthwise", shape_of, _plain_depthwise, _sum_of_shifts, _depthwise_to_x, _depthwise_to_kernel
)

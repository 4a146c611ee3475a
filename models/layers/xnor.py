"""Products of signs with signs, as floats and as packed bits.

  Rastegari et al. 2016    XNOR-Net: ImageNet classification using binary convolutional neural networks,
                           arXiv 1603.05279, section 3

A convolution of x with w becomes (sign(x) * sign(w)) alpha K (eq. 11). `filter_scale` computes alpha, a number per
filter, and `window_scale` computes K, a number per position. sign(0) is 1. Padding adds zeros to the signs.

Sums of signs are whole numbers and exact in float32, so packed functions return the same bits as those on floats. The
products of n pairs of signs, `different` of which are unequal, sum to n - 2 different; a popcount of an xor counts
unequal signs 32 at a time. Packed functions run in kernels/signs.cc if there is a compiler, and have no gradients.

Milliseconds with kernels packed in advance, 2 busy cores: on floats, packed, packed without a compiler:
  3x3, 64 channels, 32x32, batch 16     7.8   0.98   1.6       3x3, 512 channels, 7x7, batch 1     2.0   0.16   1.4
  3x3, 256 channels, 14x14, batch 16   18.8   1.4   23.0      dense, 4096 x 4096, batch 16        6.6   0.21   1.0
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.errors import UserError
from models.kernels import lowerings, native
from models.kernels.convolution import Padding, Pair, conv2d, product
from models.kernels.tracing import platform

WORD = 32
_VECTOR = 16  # filters of a vector in kernels/signs.cc


@jax.custom_jvp
def signs(x: jax.Array) -> jax.Array:
    """Returns 1 where x >= 0, else -1, of x's type; the derivative is 1 where |x| <= 1, else 0 (section 3.1)."""
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


@signs.defjvp
def _signs_derivative(primals, tangents):
    (x,), (dx,) = primals, tangents
    return signs(x), jnp.where(jnp.abs(x) <= 1, dx, 0)


@jax.custom_jvp
def filter_scale(kernel: jax.Array) -> jax.Array:
    """Returns alpha of a kernel [..., D], the mean magnitude of each filter, float32 [D] (eq. 6).

    The result has the same bits in every program, because magnitudes are added in pairs, in a fixed order. alpha is
    computed as the largest magnitude minus the mean difference from it. If all magnitudes of a filter are equal, this
    difference is 0, and alpha is exact. Therefore the kernel sign(w) alpha has the same alpha as w.
    """
    size = jnp.abs(kernel.astype(jnp.float32)).reshape(-1, kernel.shape[-1])  # [n, D]
    largest, count = size.max(0), size.shape[0]
    lacking = jnp.pad(largest - size, ((0, (1 << (count - 1).bit_length()) - count), (0, 0)))
    while len(lacking) > 1:
        lacking = lacking[: len(lacking) // 2] + lacking[len(lacking) // 2 :]
    # The minimum changes nothing; it stops LLVM from fusing product and difference with one rounding in some programs.
    return largest - jnp.minimum(lacking[0] * np.float32(1 / count), largest)


@filter_scale.defjvp
def _filter_scale_derivative(primals, tangents):
    (kernel,), (d_kernel,) = primals, tangents
    of_size = (jnp.sign(kernel) * d_kernel).astype(jnp.float32)
    return filter_scale(kernel), of_size.mean(tuple(range(kernel.ndim - 1)))


def window_scale(
    x: jax.Array, size: Pair, strides: Pair, padding: Padding, dilation: Pair, groups: int = 1
) -> jax.Array:
    """Returns K of images [N, H, W, C]: mean magnitudes per window and group, float32 [N, H', W', groups] (fig. 2)."""
    # The barriers make XLA compile this the same way in every program, so packed and float layers agree to the bit.
    size_of = jnp.abs(lax.optimization_barrier(x).astype(jnp.float32))
    means = size_of.reshape(*x.shape[:3], groups, x.shape[3] // groups).mean(-1)
    sums = lax.reduce_window(
        means,
        0.0,
        lax.add,
        (1, *size, 1),
        (1, *strides, 1),
        ((0, 0), *padding, (0, 0)),
        window_dilation=(1, *dilation, 1),
    )
    return lax.optimization_barrier(sums / (size[0] * size[1]))


def row_scale(x: jax.Array) -> jax.Array:
    """Returns K of rows [..., C], the mean magnitude of each row, float32 [..., 1]."""
    return lax.optimization_barrier(jnp.abs(lax.optimization_barrier(x).astype(jnp.float32)).mean(-1, keepdims=True))


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair, groups: int = 1
) -> jax.Array:
    """Returns conv2d of the signs times the scales, float32 [N, H', W', D], with gradients."""
    y = conv2d(signs(x.astype(jnp.float32)), signs(kernel.astype(jnp.float32)), strides, padding, dilation, groups)
    scale = window_scale(x, (kernel.shape[0], kernel.shape[1]), strides, padding, dilation, groups)
    return (y * filter_scale(kernel)) * jnp.repeat(scale, kernel.shape[3] // groups if groups > 1 else 1, -1)


def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the product of the signs of x [..., C] and a kernel [C, D] times the scales, float32 [..., D]."""
    y = product(signs(x.astype(jnp.float32)), signs(kernel.astype(jnp.float32)))
    return (y * filter_scale(kernel)) * row_scale(x)


# -- packed ----------------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """A packed kernel of D filters.

    Attributes:
      bits: uint32 [kh, kw, C / 32 rounded up, D rounded up to a multiple of 16]; bit c % 32 of word c // 32 is set
        where the weight of channel c is at least 0. Bits beyond C and D are 0.
      scale: alpha, float32 [D].
    """

    bits: jax.Array
    scale: jax.Array


def pack(x: jax.Array) -> jax.Array:
    """Packs the signs of [..., C] into bits, uint32 [..., C / 32 rounded up]."""
    bits = jnp.pad(x >= 0, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % WORD)])
    bits = bits.reshape(*x.shape[:-1], bits.shape[-1] // WORD, WORD).astype(jnp.uint32)
    return (bits << jnp.arange(WORD, dtype=jnp.uint32)).sum(-1, dtype=jnp.uint32)


def pack_conv(kernel: jax.Array) -> Packed:
    """Packs a kernel [kh, kw, C, D]."""
    bits = pack(kernel.swapaxes(2, 3)).swapaxes(2, 3)
    return Packed(jnp.pad(bits, ((0, 0), (0, 0), (0, 0), (0, -kernel.shape[3] % _VECTOR))), filter_scale(kernel))


def pack_dense(kernel: jax.Array) -> Packed:
    """Packs a kernel [C, D] as a 1x1 convolution."""
    return pack_conv(kernel[None, None])._replace(scale=filter_scale(kernel))


def convolve_packed(x: jax.Array, kernel: Packed, strides: Pair, padding: Padding, dilation: Pair) -> jax.Array:
    """Returns `convolve` without groups, to the bit."""
    y = _sums(x, kernel, tuple(strides), tuple(padding), tuple(dilation))
    size = (kernel.bits.shape[0], kernel.bits.shape[1])
    return (y * kernel.scale) * window_scale(x, size, strides, padding, dilation)


def multiply_packed(x: jax.Array, kernel: Packed) -> jax.Array:
    """Returns `multiply`, to the bit."""
    rows = x.reshape(1, 1, -1, x.shape[-1])  # [..., C] -> [1, 1, rows, C]
    y = _sums(rows, kernel, (1, 1), ((0, 0), (0, 0)), (1, 1)).reshape(*x.shape[:-1], kernel.scale.size)
    return (y * kernel.scale) * row_scale(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _sums(x, kernel, strides, padding, dilation):
    """Returns the sums of products of signs, float32 [N, H', W', D]; they have no derivatives."""
    size, features = kernel.bits.shape[:2], kernel.scale.shape[0]
    shape = lowerings.output_sizes(x.shape[1:3], size, strides, padding, dilation)
    if platform() == "cpu" and 0 not in (*x.shape, features) and native.available():
        x, shape = x.astype(jnp.float32), (x.shape[0], *shape, features)
        return native.call("conv_signs", x, kernel.bits, shape, 1, strides, padding, dilation)
    bits, channels = kernel.bits[..., :features], x.shape[-1]
    words = lowerings.pad(pack(x), padding)  # padding has zero bits, which stand for -1; this is corrected below
    taps = [
        (i, j, lowerings.window(words, i * dilation[0], j * dilation[1], shape, strides))
        for i, j in itertools.product(*map(range, size))
    ]

    def add_word(different, word):
        words, bits = word  # per tap, [N, H', W'] and [kh, kw, D]
        unequal = [lax.population_count(x[..., None] ^ bits[i, j]) for (i, j, _), x in zip(taps, words, strict=True)]
        return different + functools.reduce(jnp.add, unequal), None

    seen = [jnp.moveaxis(window, -1, 0) for _, _, window in taps]
    start = jnp.zeros((x.shape[0], *shape, features), jnp.uint32)
    different, _ = lax.scan(add_word, start, (seen, jnp.moveaxis(bits, 2, 0)))
    y = (channels * len(taps) - 2 * different.astype(jnp.int32)).astype(jnp.float32)
    if not any(itertools.chain(*padding)):
        return y
    outside = 1 - lowerings.pad(jnp.ones((1, *x.shape[1:3], 1), jnp.float32), padding)
    of_tap = channels - 2 * lax.population_count(bits).sum(2, keepdims=True).astype(jnp.float32)  # [kh, kw, 1, D]
    return y - lowerings.plain(outside, of_tap, strides, padding=((0, 0), (0, 0)), dilation=dilation)


@_sums.defjvp
def _refuse(*_):
    raise UserError(
        "packed XNOR layers have no gradients; leave out `with models.lowering('packed'):` to differentiate"
    )

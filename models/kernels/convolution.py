"""Convolutions and matrix products, with a lowering chosen by backend, type and shape.

Accelerators use lax.conv_general_dilated. XLA's CPU backend compiles some shapes so badly that other ways to compute
the same sums are up to a hundred times faster there. `chosen_lowering` names the lowering of a convolution:

  plain      lax.conv_general_dilated
  matmul     1x1 kernels, and patches that do not overlap: a matrix product, see `product`
  patches    small maps and wide kernels: a product with gathered patches
  native     float32, channels in whole vectors: the loops of conv.cc, compiled on this machine (native.py); gradients
             of wide kernels as in dense
  dense      without native code: the plain one, with gradients in the layout for which XLA has fast kernels
  depthwise  without native code: a sum of shifted products
  grouped    without native code: dense convolutions of block-diagonal kernels, which merge groups into blocks of up to
             32 channels

All of them agree with the plain one in value and both gradients to 1e-5. The choice depends only on the machine and on
shapes. Those with other gradients than JAX would derive are `Bilinear`, with derivatives of every mode and order.
Measurements: 2 cores with AVX-512, jax 0.10.2, float32, with the settings of models/kernels/runtime.py.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from models.kernels import lowerings, native
from models.kernels.derivatives import Bilinear
from models.kernels.tracing import plain_wanted, platform

# Channels of a block of merged groups. Larger blocks need more arithmetic, at a higher speed up to about this size.
_BLOCK_CHANNELS = 32

# Channels of a vector in conv.cc, and the kernel size C D up to which its kernel gradient is the faster one.
_VECTOR = 16
_WIDE = 256 * 256
# Width of the output up to which wide kernels use gathered patches, because such rows are too short for conv.cc
# (VGG-16 at 32x32, batch 64: forward 373 -> 316 ms, gradient 1103 -> 999 ms).
_FEW = 4

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def pair(value: int | Sequence[int]) -> Pair:
    """Returns (vertical, horizontal) for one number or two."""
    if isinstance(value, int):
        return value, value
    vertical, horizontal = value
    return vertical, horizontal


def pair_of_pairs(value: Sequence[Sequence[int]]) -> Padding:
    """Returns ((top, bottom), (left, right)) as tuples of int."""
    (top, bottom), (left, right) = value
    return (int(top), int(bottom)), (int(left), int(right))


def chosen_lowering(
    x_shape, kernel_shape, strides, padding, dilation, groups, backend: str, dtype=jnp.float32, compiled: bool = True
) -> str:
    """Returns the name of the lowering (module docstring) of a convolution of these shapes.

    Args:
      x_shape: Shape of x.
      kernel_shape: Shape of the kernel.
      strides: See `conv2d`.
      padding: See `conv2d`.
      dilation: See `conv2d`.
      groups: See `conv2d`.
      backend: "cpu", "gpu", ...
      dtype: Type of x and kernel.
      compiled: Whether the library for "native" is available.
    """
    channels, features = x_shape[3], kernel_shape[3]
    if backend != "cpu" or 0 in (*x_shape, *kernel_shape):
        return "plain"
    unpadded = padding == ((0, 0), (0, 0)) and dilation == (1, 1) and groups == 1
    if unpadded and (kernel_shape[:2] == (1, 1) or _are_patches(x_shape, kernel_shape, strides)):
        return "matmul"
    width = lowerings.output_size(x_shape[2], kernel_shape[1], strides[1], padding[1], dilation[1])
    if groups == 1 and width <= _FEW and channels * features >= _WIDE and min(itertools.chain(*padding)) >= 0:
        return "patches"
    if compiled and dtype == jnp.float32 and min(itertools.chain(*padding)) >= 0:
        inside, outside = channels // groups, features // groups
        by_vector = (
            (groups == 1 and features % _VECTOR == 0)
            or (groups == channels == features and channels >= _VECTOR)
            or (inside == outside in (4, 8) and channels % _VECTOR == 0)
            or (inside % _VECTOR == 0 and outside % _VECTOR == 0)
        )
        if by_vector:
            return "native"
    if groups > 1:
        return "depthwise" if groups == channels else "grouped"
    return "dense"


def _are_patches(x_shape, kernel_shape, strides) -> bool:
    return kernel_shape[:2] == strides and all(size % k == 0 for size, k in zip(x_shape[1:3], strides, strict=True))


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Returns the convolution (cross-correlation) of images, by the fastest lowering for the backend and the shapes.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C / groups, D], of x's type; D is a multiple of groups.
      strides: (vertical, horizontal).
      padding: ((top, bottom), (left, right)), pixels of zeros.
      dilation: (vertical, horizontal) distance of the kernel's taps.
      groups: Number of groups; each maps C / groups input channels to D / groups output channels.

    Returns:
      [N, H', W', D] with H' = (H + top + bottom - dilation (kh - 1) - 1) // stride + 1.

    Raises:
      EmptyMap: H' or W' is 0.
    """
    strides, dilation, padding = pair(strides), pair(dilation), pair_of_pairs(padding)
    lowerings.output_sizes(x.shape[1:3], kernel.shape[:2], strides, padding, dilation)
    name = "plain"
    if not plain_wanted():
        if platform() == "cpu":
            kernel, padding = _without_dead_taps(x.shape, kernel, strides, padding, dilation)
        shapes = (x.shape, kernel.shape, strides, padding, dilation, groups, platform(), x.dtype)
        name = chosen_lowering(*shapes, compiled=True)
        if name == "native" and not native.available():
            name = chosen_lowering(*shapes, compiled=False)
    if name == "matmul":
        return _matmul(x, kernel, strides)
    if name == "patches":
        return _patches(x, kernel, strides, padding, dilation)
    if name == "native":
        return _native(x, kernel, strides, padding, dilation, groups)
    if name == "dense":
        return lowerings.dense(x, kernel, strides, padding, dilation)
    if name == "depthwise":
        return lowerings.depthwise(x, kernel, strides, padding, dilation)
    if name == "grouped":
        return _grouped(x, kernel, strides, padding, dilation, groups)
    return lowerings.plain(x, kernel, strides, padding, dilation, groups)


def _without_dead_taps(x_shape, kernel, strides, padding, dilation) -> tuple[jax.Array, Padding]:
    """Removes the rows and columns at the edges of a kernel that only ever see padding.

    A 7x7 kernel on a 2x2 map shrinks to 3x3 (ConvNeXt's last stages at 32x32), a 3x3 kernel on a 1x1 map to 1x1.

    Returns:
      The kernel, and the remaining padding.
    """
    for axis in (0, 1):
        (low, high), count, step = padding[axis], kernel.shape[axis], dilation[axis]
        length = lowerings.output_size(x_shape[1 + axis], count, strides[axis], padding[axis], step)
        alive = [
            tap
            for tap in range(count)
            if any(0 <= i * strides[axis] - low + tap * step < x_shape[1 + axis] for i in range(length))
        ]
        if not alive:
            continue
        left = low - alive[0] * step, high - (count - 1 - alive[-1]) * step
        if min(left) >= 0:
            kernel = lax.slice_in_dim(kernel, alive[0], alive[-1] + 1, axis=axis)
            padding = (left, padding[1]) if axis == 0 else (padding[0], left)
    return kernel, padding


def _matmul(x, kernel, strides):
    kh, kw, channels, features = kernel.shape
    if (kh, kw) == (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
    else:  # [N, H, W, C] -> [N, H / kh, W / kw, kh kw C]
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height // kh, kh, width // kw, kw, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height // kh, width // kw, kh * kw * channels)
    return product(x, kernel.reshape(-1, features))


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the matrix product of x [..., C] with a kernel [C, D].

    On a CPU, conv.cc computes the gradient of a small kernel if it supports the shape. This gradient is a product of
    two narrow and very long matrices. For 16 to 96 channels at 112x112, batch 8, conv.cc takes 3 ms instead of 41.
    """
    if plain_wanted() or platform() != "cpu":
        return jnp.matmul(x, kernel)
    return _product(x, kernel) if x.ndim > 1 else _product(x[None], kernel)[0]


def unfused(x: jax.Array) -> jax.Array:
    """Returns x, and on a CPU stops YNNPACK from fusing x into its consumer and recomputing it.

    It rounds x to its own precision. Without it, YNNPACK computes the first of two products again for every block of
    the second (VGG-16's classifier: 1150 -> 40 ms; DenseNet-121 forward, 32x32, batch 64: 53 -> 50 ms), or GELU in a
    slower way (ConvNeXt-T forward, 32x32, batch 64: 128 -> 109 ms).
    """
    if plain_wanted() or platform() != "cpu":
        return x
    return lax.reduce_precision(x, jnp.finfo(x.dtype).nexp, jnp.finfo(x.dtype).nmant)


def _patches(x, kernel, strides, padding, dilation):
    kh, kw, channels, features = kernel.shape
    shape = lowerings.output_sizes(x.shape[1:3], (kh, kw), strides, padding, dilation)
    padded = lowerings.pad(x, padding)
    windows = [
        lowerings.window(padded, i * dilation[0], j * dilation[1], shape, strides)
        for i, j in itertools.product(range(kh), range(kw))
    ]
    return product(jnp.concatenate(windows, -1), kernel.reshape(kh * kw * channels, features))


def _product_to_kernel(x, dy, shape):
    # the last axis of the kernel that consists of whole vectors, if there is one
    side = next((axis for axis in (1, 0) if shape[axis] % _VECTOR == 0), None)
    small = x.ndim in (3, 4) and x.dtype == jnp.float32 and math.prod(shape) < _WIDE
    if side is None or not small or not native.available():
        x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))  # otherwise XLA copies x, transposed
        return unfused(x.T @ dy)  # not fused with the optimizer's update
    if x.ndim == 3:  # [N, T, C] -> [N, 1, T, C]
        x, dy = x[:, None], dy[:, None]
    a, b = (x, dy) if side == 1 else (dy, x)
    shape = (1, 1, a.shape[-1], b.shape[-1])
    dk = native.call("conv_kernel_gradient", a, b, shape, 1, (1, 1), ((0, 0), (0, 0)), (1, 1))[0, 0]
    return dk if side == 1 else dk.T


_product = Bilinear(
    "product",
    lambda x_shape, kernel_shape: (*x_shape[:-1], kernel_shape[1]),
    jnp.matmul,
    lambda x, kernel: jnp.matmul(unfused(x), kernel),
    lambda dy, kernel, _: jnp.matmul(dy, kernel.T),
    _product_to_kernel,
    stored=jnp.matmul,  # x need not be `unfused`: it is stored, and not recomputed
)


# -- native ----------------------------------------------------------------------------------------------
# Milliseconds for value and both gradients; in parentheses, the best lowering by XLA, and PyTorch's oneDNN:
#   3x3, 16 channels, 32x32, batch 128                9.5   (17.3;  9.7)
#   3x3, 64 channels, 56x56, batch 8                 28.0   (35.1; 26.1)
#   3x3 depthwise, 144 channels, 56x56, batch 8       5.5   (19.3; 18.0)
#   7x7 depthwise, 384 channels, 14x14, batch 8       2.2   (21.4;  5.4)


def _native_forward(x, kernel, strides, padding, dilation, groups):
    shape = lowerings.shape_of(x.shape, kernel.shape, strides, padding, dilation)
    return native.call("conv_forward", x, kernel, shape, groups, strides, padding, dilation)


def _native_to_x(dy, kernel, shape, strides, padding, dilation, groups):
    options = (strides, padding, dilation)
    kh, kw, inputs, features = kernel.shape
    if groups == 1 and inputs % _VECTOR:
        return lowerings.dense_to_x(dy, kernel, shape, *options)
    # [kh, kw, C / g, g D / g] -> [kh, kw, D / g, g C / g]
    swapped = kernel.reshape(kh, kw, inputs, groups, features // groups).transpose(0, 1, 4, 3, 2)
    swapped = swapped.reshape(kh, kw, features // groups, groups * inputs)
    return native.call("conv_input_gradient", dy, swapped, shape, groups, *options)


def _native_to_kernel(x, dy, shape, strides, padding, dilation, groups):
    if groups == 1 and shape[2] * shape[3] >= _WIDE:
        return lowerings.dense_to_kernel(x, dy, shape, strides, padding, dilation)
    return native.call("conv_kernel_gradient", x, dy, shape, groups, strides, padding, dilation)


_native = Bilinear("conv_native", lowerings.shape_of, lowerings.plain, _native_forward, _native_to_x, _native_to_kernel)


# -- groups ----------------------------------------------------------------------------------------------
# XLA's kernel gradient for 32 groups of 4 channels takes 85 times as long as this one in training.


def _grouped(x, kernel, strides, padding, dilation, groups):
    kh, kw, inputs, features = kernel.shape
    outputs = features // groups
    merged = max(
        n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * max(inputs, outputs) <= _BLOCK_CHANNELS)
    )
    blocks = groups // merged
    # [kh, kw, inputs, D] -> [blocks, kh, kw, merged inputs, merged outputs], zero off the diagonal of groups
    kernel = kernel.reshape(kh, kw, inputs, blocks, merged, outputs)
    kernel = jnp.einsum("hwibmo,mn->bhwnimo", kernel, jnp.eye(merged, dtype=kernel.dtype))
    kernel = kernel.reshape(blocks, kh, kw, merged * inputs, merged * outputs)
    parts = jnp.split(x, blocks, -1)
    return jnp.concatenate([conv2d(*part, strides, padding, dilation) for part in zip(parts, kernel, strict=True)], -1)

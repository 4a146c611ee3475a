"""Convolution and dense layers: ONE convolution, with the lowering picked by backend, type and shape.

On accelerators it is lax.conv_general_dilated. XLA's CPU backend lowers some shapes so badly that other formulations of
the same sums are up to a hundred times faster there. `chosen_lowering` names the formulation that a convolution gets:

  plain      lax.conv_general_dilated
  matmul     1x1, and patches that do not overlap: a matrix product, see `product`
  patches    few places and wide kernels: a product with the patches, copied next to each other
  native     float32, channels by the vector: the loops of conv.cc, compiled on the machine (native.py); gradients of
             wide kernels as in dense
  dense      without those: the plain one, its gradients as convolutions of the one layout that XLA has kernels for
  depthwise  likewise: a sum of shifted products
  grouped    likewise: groups merged into blocks of up to 32 channels, dense convolutions of block-diagonal kernels

All agree with the plain one in value and both gradients to 1e-5 and depend on the machine and on shapes alone. All but
plain have a custom gradient for reverse mode; tracing.py says what forward mode needs.
Measurements: 2 cores with AVX-512, jax 0.10.2, float32, with the settings of models/kernels/runtime.py.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.errors import UserError
from models.kernels import lowerings, native
from models.kernels.tracing import custom_vjp, plain_wanted

# Channels of a block of merged groups: the arithmetic grows with it, and so does its speed, up to about here.
_BLOCK_CHANNELS = 32

# Channels of a vector of conv.cc, and the kernel sizes (C D) up to which its gradient by the kernel is the faster one.
_VECTOR = 16
_WIDE = 256 * 256
# Places of a row of the output up to which a wide kernel meets copied patches: rows of them are too short for conv.cc
# (VGG-16 at 32x32, batch 64: forward 373 -> 316 ms, gradient 1103 -> 999 ms).
_FEW = 4

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def chosen_lowering(
    x_shape, kernel_shape, strides, padding, dilation, groups, backend: str, dtype=jnp.float32, compiled: bool = True
) -> str:
    """Names the formulation (module docstring) of a convolution of these shapes.

    Args:
      x_shape to groups: as for `conv2d`.
      backend: "cpu", "gpu", ...
      dtype: of x and kernel.
      compiled: whether there is a library for "native".
    """
    channels, features = x_shape[3], kernel_shape[3]
    if backend != "cpu" or 0 in (*x_shape, *kernel_shape):
        return "plain"
    unpadded = padding == ((0, 0), (0, 0)) and dilation == (1, 1) and groups == 1
    if unpadded and (kernel_shape[:2] == (1, 1) or _are_patches(x_shape, kernel_shape, strides)):
        return "matmul"
    places = lowerings.output_size(x_shape[2], kernel_shape[1], strides[1], padding[1], dilation[1])
    if groups == 1 and places <= _FEW and channels * features >= _WIDE and min(itertools.chain(*padding)) >= 0:
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
    """Convolution (cross-correlation) of images, by the fastest formulation for the backend and the shapes.

    Args:
      x: [N, H, W, C].
      kernel: [kh, kw, C / groups, D], of x's dtype; D a multiple of groups.
      strides, dilation: (vertical, horizontal); `dilation` is the distance of the kernel's taps.
      padding: ((top, bottom), (left, right)), pixels of zeros.
      groups: C / groups input channels reach D / groups output channels each.

    Returns:
      [N, H', W', D] with H' = (H + top + bottom - dilation (kh - 1) - 1) // stride + 1.

    Raises:
      EmptyMap: H' or W' is 0.
    """
    strides, dilation = tuple(strides), tuple(dilation)
    padding = tuple((int(low), int(high)) for low, high in padding)
    lowerings.output_sizes(x.shape[1:3], kernel.shape[:2], strides, padding, dilation)
    name = "plain"
    if not plain_wanted():
        if jax.default_backend() == "cpu":
            kernel, padding = _without_dead_taps(x.shape, kernel, strides, padding, dilation)
        how = (x.shape, kernel.shape, strides, padding, dilation, groups, jax.default_backend(), x.dtype)
        name = chosen_lowering(*how, compiled=True)
        if name == "native" and not native.available():
            name = chosen_lowering(*how, compiled=False)
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
    """The kernel without the rows and columns at its edges that meet nothing but padding, and the padding left: of a
    7x7 kernel on 2x2 places 3x3 remains (ConvNeXt's last stages at 32x32), of a 3x3 kernel on one place 1x1.
    """
    for axis in (0, 1):
        (low, high), count, step = padding[axis], kernel.shape[axis], dilation[axis]
        places = lowerings.output_size(x_shape[1 + axis], count, strides[axis], padding[axis], step)
        alive = [
            tap
            for tap in range(count)
            if any(0 <= place * strides[axis] - low + tap * step < x_shape[1 + axis] for place in range(places))
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
    """Matrix product of x [..., C] with a kernel [C, D].

    On a CPU the gradient by a small kernel, a product of two narrow and very long matrices, is taken by conv.cc where
    it can be: for 16 to 96 channels at 112x112, batch 8, 3 ms instead of 41.
    """
    if plain_wanted() or jax.default_backend() != "cpu":
        return jnp.matmul(x, kernel)
    return _product(x, kernel)


def unfused(x: jax.Array) -> jax.Array:
    """x; on a CPU cut to its own precision, which keeps YNNPACK from computing x inside of what follows: the first of
    two products again for every block of the second (VGG-16's classifier: 1150 -> 40 ms; DenseNet-121 forward, 32x32,
    batch 64: 53 -> 50 ms), or GELU by slower means (ConvNeXt-T forward, 32x32, batch 64: 128 -> 109 ms).
    """
    if plain_wanted() or jax.default_backend() != "cpu":
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


@custom_vjp
def _product(x, kernel):
    return jnp.matmul(unfused(x), kernel)  # where gradients are taken, x is kept, and not computed again


def _product_backward(residuals, dy):
    x, kernel = residuals
    dx = jnp.matmul(dy, kernel.T)
    # the last axis of the kernel that is whole vectors, if one is
    side = next((axis for axis in (1, 0) if kernel.shape[axis] % _VECTOR == 0), None)
    small = x.ndim in (3, 4) and x.dtype == jnp.float32 and kernel.size < _WIDE
    if side is None or not small or not native.available():
        x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))  # or else XLA copies x, transposed
        return dx, unfused(x.T @ dy)  # not with the optimizer's update
    if x.ndim == 3:  # [N, T, C] -> [N, 1, T, C]
        x, dy = x[:, None], dy[:, None]
    a, b = (x, dy) if side == 1 else (dy, x)
    shape = (1, 1, a.shape[-1], b.shape[-1])
    dk = native.call("conv_kernel_gradient", a, b, shape, 1, (1, 1), ((0, 0), (0, 0)), (1, 1))[0, 0]
    return dx, dk if side == 1 else dk.T


_product.defvjp(lambda x, kernel: (jnp.matmul(x, kernel), (x, kernel)), _product_backward)


# -- native ----------------------------------------------------------------------------------------------
# Milliseconds for value and both gradients; the best formulation that XLA compiles, and PyTorch's oneDNN:
#   3x3, 16 channels, 32x32, batch 128                9.5   (17.3;  9.7)
#   3x3, 64 channels, 56x56, batch 8                 28.0   (35.1; 26.1)
#   3x3 depthwise, 144 channels, 56x56, batch 8       5.5   (19.3; 18.0)
#   7x7 depthwise, 384 channels, 14x14, batch 8       2.2   (21.4;  5.4)


@functools.partial(custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _native(x, kernel, strides, padding, dilation, groups):
    how = (strides, padding, dilation)
    shape = (x.shape[0], *lowerings.output_sizes(x.shape[1:3], kernel.shape[:2], *how), kernel.shape[3])
    return native.call("conv_forward", x, kernel, shape, groups, *how)


def _native_backward(strides, padding, dilation, groups, residuals, dy):
    x, kernel = residuals
    how = (strides, padding, dilation)
    kh, kw, inputs, features = kernel.shape
    if groups == 1 and inputs % _VECTOR:
        dx = lowerings.dense_dx(x, kernel, dy, *how)
    else:  # [kh, kw, C / g, g D / g] -> [kh, kw, D / g, g C / g]
        swapped = kernel.reshape(kh, kw, inputs, groups, features // groups).transpose(0, 1, 4, 3, 2)
        swapped = swapped.reshape(kh, kw, features // groups, groups * inputs)
        dx = native.call("conv_input_gradient", dy, swapped, x.shape, groups, *how)
    if groups == 1 and inputs * features >= _WIDE:
        return dx, lowerings.dense_dk(x, kernel, dy, *how)
    return dx, native.call("conv_kernel_gradient", x, dy, kernel.shape, groups, *how)


_native.defvjp(lambda x, kernel, *how: (_native(x, kernel, *how), (x, kernel)), _native_backward)


# -- groups ----------------------------------------------------------------------------------------------
# XLA's kernel gradient for 32 groups of 4 channels takes 85 times as long as this in training.


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


# -- layers ----------------------------------------------------------------------------------------------


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)


def width_of(layer: nn.Module) -> int:
    """Output features of a layer: those that `layer.widths`, pairs (path, features), has for its path, or its own."""
    return dict(layer.widths).get("/".join(layer.path), layer.features) if layer.widths else layer.features


class Conv(nn.Module):
    """Convolution of images [N, H, W, C] to [N, H', W', features], by `conv2d`.

    Attributes:
      features: output channels, a multiple of groups.
      kernel_size, strides, dilation: a number, or (vertical, horizontal).
      padding: pixels on every side, or ((top, bottom), (left, right)); None: half the kernel, k // 2, on every side.
      groups: of channels; the kernel is [kh, kw, C / groups, features].
      dtype: of the computation; None for that of the input and the parameters.
      widths: see `width_of`.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: int | Sequence[Sequence[int]] | None = None
    groups: int = 1
    dilation: int | Sequence[int] = 1
    use_bias: bool = False
    kernel_init: Callable[..., Any] = nn.initializers.he_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32
    widths: Sequence[tuple[str, int]] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, strides, dilation = _pair(self.kernel_size), _pair(self.strides), _pair(self.dilation)
        padding = self.padding
        if padding is None:
            padding = tuple((d * (k // 2),) * 2 for k, d in zip(size, dilation, strict=True))
        elif isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))
        features = width_of(self)
        if x.shape[-1] % self.groups or features % self.groups:
            raise UserError(
                f"convolution {'/'.join(self.path)}: {x.shape[-1]} channels in and {features} out "
                f"cannot be dealt into {self.groups} groups"
            )
        shape = (*size, x.shape[-1] // self.groups, features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        y = self.convolve(x, kernel, strides, padding, dilation)
        return y if bias is None else y + bias.astype(y.dtype)

    def effective(self, kernel: jax.Array) -> jax.Array:
        """The kernel to convolve with, of the kernel that is learned."""
        return kernel

    def convolve(self, x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair) -> jax.Array:
        """X with the kernel that is learned, in the type of the computation; without the bias."""
        x, kernel = nn.dtypes.promote_dtype(x, self.effective(kernel), dtype=self.dtype)
        return conv2d(x, kernel, strides, padding, dilation, self.groups)


class StandardizedConv(Conv):
    """Convolution by kernels of zero mean and unit variance for each output feature: weight standardization.

    Qiao et al. 2019, arXiv 1903.10520, eq. 4 to 6, with the epsilon of BiT's published networks.
    """

    epsilon: float = 1e-8

    def effective(self, kernel: jax.Array) -> jax.Array:
        """Kernel [kh, kw, C / groups, D], standardized over all axes but D."""
        centred = kernel - kernel.mean((0, 1, 2))
        return centred * lax.rsqrt(jnp.square(centred).mean((0, 1, 2)) + self.epsilon)


class Dense(nn.Module):
    """Matrix product of x [..., inputs] with a kernel [inputs, features], plus a bias."""

    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros_init()
    dtype: Any = None
    param_dtype: Any = jnp.float32
    widths: Sequence[tuple[str, int]] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = width_of(self)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        y = self.multiply(unfused(x), kernel)
        return y if bias is None else y + bias.astype(y.dtype)

    def effective(self, kernel: jax.Array) -> jax.Array:
        """The kernel to multiply with, of the kernel that is learned."""
        return kernel

    def multiply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """X with the kernel that is learned, in the type of the computation; without the bias."""
        x, kernel = nn.dtypes.promote_dtype(x, self.effective(kernel), dtype=self.dtype)
        return product(x, kernel)

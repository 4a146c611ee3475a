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
plain have a custom reverse-mode gradient: forward-mode derivatives through them need `lowering("plain")`.
Measurements: 2 cores with AVX-512, jax 0.10.2, float32, with the settings of models/runtime.py.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.errors import UserError, choice_error
from models.layers import native

LOWERINGS = ("auto", "plain")
_lowering = contextvars.ContextVar("lowering", default="auto")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
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


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Within the context, convolutions that are traced use "plain" (lax.conv_general_dilated) or "auto" (the choice).

    It acts while tracing: a function that was jitted and traced before keeps what it had. For programs that are traced
    here to run on another backend (export), and for derivatives that a custom gradient does not have.

    Raises:
      UserError: unknown name.
    """
    if name not in LOWERINGS:
        raise choice_error("lowering", name, LOWERINGS)
    token = _lowering.set(name)
    try:
        yield
    finally:
        _lowering.reset(token)


def plain_wanted() -> bool:
    """Whether the program that is being traced is inside of `lowering("plain")`."""
    return _lowering.get() == "plain"


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
    places = _output_size(x_shape[2], kernel_shape[1], strides[1], padding[1], dilation[1])
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
    """
    strides, dilation = tuple(strides), tuple(dilation)
    padding = tuple((int(low), int(high)) for low, high in padding)
    name = "plain"
    if not plain_wanted():
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
        return _dense(x, kernel, strides, padding, dilation)
    if name == "depthwise":
        return _depthwise(x, kernel, strides, padding, dilation)
    if name == "grouped":
        return _grouped(x, kernel, strides, padding, dilation, groups)
    return _plain(x, kernel, strides, padding, dilation, groups)


def _plain(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=_DIMENSIONS
    )


def _output_size(size, taps, stride, padding, dilation):
    return (size + sum(padding) - dilation * (taps - 1) - 1) // stride + 1


def _flipped(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


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
    """The identity, to x's own precision. It keeps YNNPACK from fusing a product with what follows it, where it
    computes the first of two products again for every block of the second (VGG-16's classifier: 1150 -> 40 ms)."""
    return lax.reduce_precision(x, jnp.finfo(x.dtype).nexp, jnp.finfo(x.dtype).nmant)


def _patches(x, kernel, strides, padding, dilation):
    kh, kw, channels, features = kernel.shape
    shape = tuple(map(_output_size, x.shape[1:3], (kh, kw), strides, padding, dilation))
    padded = _pad(x, padding)
    windows = [_window(padded, i * dilation[0], j * dilation[1], shape, strides)
               for i, j in itertools.product(range(kh), range(kw))]
    return product(jnp.concatenate(windows, -1), kernel.reshape(kh * kw * channels, features))


@jax.custom_vjp
def _product(x, kernel):
    return jnp.matmul(x, kernel)


def _product_backward(residuals, dy):
    x, kernel = residuals
    dx = jnp.matmul(dy, kernel.T)
    # the last axis of the kernel that is whole vectors, if one is
    side = next((axis for axis in (1, 0) if kernel.shape[axis] % _VECTOR == 0), None)
    small = x.ndim in (3, 4) and x.dtype == jnp.float32 and kernel.size < _WIDE
    if side is None or not small or not native.available():
        axes = tuple(range(x.ndim - 1))
        return dx, unfused(jnp.tensordot(x, dy, (axes, axes)))  # not with the optimizer's update
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _native(x, kernel, strides, padding, dilation, groups):
    how = (strides, padding, dilation)
    shape = (x.shape[0], *map(_output_size, x.shape[1:3], kernel.shape[:2], *how), kernel.shape[3])
    return native.call("conv_forward", x, kernel, shape, groups, *how)


def _native_backward(strides, padding, dilation, groups, residuals, dy):
    x, kernel = residuals
    how = (strides, padding, dilation)
    kh, kw, inputs, features = kernel.shape
    if groups == 1 and inputs % _VECTOR:
        dx = _dense_dx(x, kernel, dy, *how)
    else:  # [kh, kw, C / g, g D / g] -> [kh, kw, D / g, g C / g]
        swapped = kernel.reshape(kh, kw, inputs, groups, features // groups).transpose(0, 1, 4, 3, 2)
        swapped = swapped.reshape(kh, kw, features // groups, groups * inputs)
        dx = native.call("conv_input_gradient", dy, swapped, x.shape, groups, *how)
    if groups == 1 and inputs * features >= _WIDE:
        return dx, _dense_dk(x, kernel, dy, *how)
    return dx, native.call("conv_kernel_gradient", x, dy, kernel.shape, groups, *how)


_native.defvjp(lambda x, kernel, *how: (_native(x, kernel, *how), (x, kernel)), _native_backward)


# -- dense -----------------------------------------------------------------------------------------------
# The gradients that JAX derives are convolutions with permuted dimensions. XLA's CPU compiler brings them into the
# layout [N, H, W, C] of its kernels where it can, but not inside loops: there (several steps a call, accumulated
# gradients) the kernel gradient runs 50 times slower (64 images of 8x8x32: 97 -> 1.8 ms a step). So they are written
# out in that layout.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dense(x, kernel, strides, padding, dilation):
    return _plain(x, kernel, strides, padding, dilation)


def _dense_backward(strides, padding, dilation, residuals, dy):
    how = (*residuals, dy, strides, padding, dilation)
    return _dense_dx(*how), _dense_dk(*how)


_dense.defvjp(lambda x, kernel, *how: (_plain(x, kernel, *how), (x, kernel)), _dense_backward)


def _axes(x, kernel, dy, strides, padding, dilation):
    """By axis of the image: (taps, dilation, padding, size of x, size of dy, stride)."""
    return zip(kernel.shape[:2], dilation, padding, x.shape[1:3], dy.shape[1:3], strides, strict=True)


def _dense_dx(x, kernel, dy, strides, padding, dilation):
    """dx[i] = sum of dy[o] k[t] over o stride + t dilation - low = i: a convolution of dy spread out by the stride."""
    pads = [
        ((taps - 1) * far - low, size - 1 + low - (out - 1) * stride)
        for taps, far, (low, _), size, out, stride in _axes(x, kernel, dy, strides, padding, dilation)
    ]
    return lax.conv_general_dilated(dy, _flipped(kernel), (1, 1), pads, strides, dilation, _DIMENSIONS)


def _dense_dk(x, kernel, dy, strides, padding, dilation):
    """dk[t] = sum of x[o stride + t dilation - low] dy[o]: channels as images, dy as the kernel, summed."""
    pads = [
        (low, (taps - 1) * far + (out - 1) * stride + 1 - size - low)
        for taps, far, (low, _), size, out, stride in _axes(x, kernel, dy, strides, padding, dilation)
    ]
    x, dy = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)  # [C, H, W, N], [H', W', N, D] -> [C, kh, kw, D]
    dk = lax.conv_general_dilated(x, dy, dilation, pads, None, strides, _DIMENSIONS)
    return dk.transpose(1, 2, 0, 3)


# -- depthwise -------------------------------------------------------------------------------------------
# XLA's CPU kernel for feature_group_count = C takes 100 times as long as a sum over the taps of x, shifted, times the
# tap's channel weights, which compiles to one loop (3x3, 128 channels, 32x32, batch 32: 290 -> 4 ms).


def _depthwise(x, kernel, strides, padding, dilation):
    channels, features = x.shape[-1], kernel.shape[-1]
    if features != channels:  # D / C features of each channel
        x = jnp.repeat(x, features // channels, -1)
    return _shifted_products(x, kernel[:, :, 0], strides, padding, dilation)


def _taps(kernel, dilation):
    """(pixels down, pixels right, weights [C]) of every tap."""
    places = itertools.product(*map(range, kernel.shape[:2]))
    return [(i * dilation[0], j * dilation[1], kernel[i, j]) for i, j in places]


def _pad(x, padding):
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))


def _window(x, top, left, shape, strides):
    """What a tap at (top, left) sees of the padded x: [N, H', W', C]."""
    limits = (top + (shape[0] - 1) * strides[0] + 1, left + (shape[1] - 1) * strides[1] + 1)
    return lax.slice(x, (0, top, left, 0), (x.shape[0], *limits, x.shape[3]), (1, *strides, 1))


def _sum_of_products(terms, dtype):
    """Sum of a * b over (a, b) in terms, in float32 at least; XLA compiles it to one loop."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return sum(a.astype(wide) * b.astype(wide) for a, b in terms).astype(dtype)


def _sum_of_shifts(x, kernel, strides, padding, dilation):
    shape = tuple(map(_output_size, x.shape[1:3], kernel.shape[:2], strides, padding, dilation))
    padded = _pad(x, padding)
    terms = [(_window(padded, i, j, shape, strides), tap) for i, j, tap in _taps(kernel, dilation)]
    return _sum_of_products(terms, x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted_products(x, kernel, strides, padding, dilation):
    return _sum_of_shifts(x, kernel, strides, padding, dilation)


def _shifted_products_backward(strides, padding, dilation, residuals, dy):
    how = (*residuals, dy, strides, padding, dilation)
    return _depthwise_dx(*how), _depthwise_dw(*how)


_shifted_products.defvjp(
    lambda x, kernel, *how: (_sum_of_shifts(x, kernel, *how), (x, kernel)), _shifted_products_backward
)


def _depthwise_dx(x, kernel, dy, strides, padding, dilation):
    """Padded x at stride q + r gets dy[q - i' // stride] through the taps i' (in pixels) with i' % stride = r."""
    counts = [-(-(size + sum(pad)) // stride) for size, pad, stride in zip(x.shape[1:3], padding, strides, strict=True)]
    reach = [(taps - 1) * far // stride for taps, far, stride in zip(kernel.shape[:2], dilation, strides, strict=True)]
    grown = _pad(dy, [(r, count - size) for r, count, size in zip(reach, counts, dy.shape[1:3], strict=True)])
    phases = []
    for r, s in itertools.product(*map(range, strides)):
        terms = [
            (_window(grown, reach[0] - i // strides[0], reach[1] - j // strides[1], counts, (1, 1)), tap)
            for i, j, tap in _taps(kernel, dilation)
            if i % strides[0] == r and j % strides[1] == s
        ]
        zeros = jnp.zeros((dy.shape[0], *counts, dy.shape[3]), x.dtype)
        phases.append(_sum_of_products(terms, x.dtype) if terms else zeros)
    if len(phases) == 1:
        dx = phases[0]
    else:  # [phases, N, H / s, W / s, C] -> [N, H, W, C]
        dx = jnp.stack(phases).reshape(*strides, dy.shape[0], *counts, dy.shape[3]).transpose(2, 3, 0, 4, 1, 5)
        dx = dx.reshape(dy.shape[0], counts[0] * strides[0], counts[1] * strides[1], dy.shape[3])
    (top, _), (left, _) = padding
    extra = [c * s - size - low for c, s, size, low in zip(counts, strides, x.shape[1:3], (top, left), strict=True)]
    return _pad(dx, ((-top, -extra[0]), (-left, -extra[1])))


def _depthwise_dw(x, kernel, dy, strides, padding, dilation):
    """Summed image by image: what the taps of one image read stays in the cache."""

    def add_image(total, image):
        x, dy = image
        padded = _pad(x[None], padding)
        seen = [_window(padded, i, j, dy.shape[:2], strides)[0] for i, j, _ in _taps(kernel, dilation)]
        return total + jnp.stack([(window * dy).sum((0, 1)) for window in seen]).astype(total.dtype), None

    zero = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[2]), jnp.float32)
    return lax.scan(add_image, zero, (x, dy))[0].reshape(kernel.shape).astype(kernel.dtype)


# -- groups ----------------------------------------------------------------------------------------------
# XLA's kernel gradient for 32 groups of 4 channels takes 85 times as long as this in training.


def _grouped(x, kernel, strides, padding, dilation, groups):
    kh, kw, inputs, features = kernel.shape
    outputs = features // groups
    merged = max(n for n in range(1, groups + 1)
                 if groups % n == 0 and (n == 1 or n * max(inputs, outputs) <= _BLOCK_CHANNELS))
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
            raise UserError(f"convolution {'/'.join(self.path)}: {x.shape[-1]} channels in and {features} out "
                            f"cannot be dealt into {self.groups} groups")
        shape = (*size, x.shape[-1] // self.groups, features)
        kernel = self.effective(self.param("kernel", self.kernel_init, shape, self.param_dtype))
        bias = self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(x, kernel, strides, padding, dilation, self.groups)
        return y if bias is None else y + bias

    def effective(self, kernel: jax.Array) -> jax.Array:
        """The kernel to convolve with, of the kernel that is learned."""
        return kernel


class StandardizedConv(Conv):
    """Convolution by kernels of zero mean and unit variance for each output feature: weight standardization.

    Qiao et al. 2019, arXiv 1903.10520, eq. 4 to 6, with the epsilon of BiT's published networks.
    """

    epsilon: float = 1e-8

    def effective(self, kernel: jax.Array) -> jax.Array:
        """kernel [kh, kw, C / groups, D], standardized over all axes but D."""
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
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = product(x, kernel)
        if jax.default_backend() == "cpu" and not plain_wanted():
            y = unfused(y)
        return y if bias is None else y + bias

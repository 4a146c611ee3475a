"""Convolution and dense layers: ONE convolution, with the lowering picked by backend and shape.

On accelerators it is lax.conv_general_dilated. XLA's CPU backend lowers some shapes so badly that other formulations of
the same sums are up to a hundred times faster there. `chosen_lowering` names the formulation that a shape gets:

  plain        lax.conv_general_dilated
  dense        the same, with gradients written as convolutions of the one layout that XLA has kernels for
  matmul       1x1: a matrix product (strided: slice first)
  depthwise    a sum of shifted products, with its own gradient
  grouped      groups merged into blocks of up to 32 channels, each a dense convolution with a block-diagonal kernel
  two_columns  up to 16 channels in and out, 3 wide: two neighbouring columns as one place with twice the features
  four_phases  up to 16 channels in, 3x3, stride 2: only the gradient of the input differs from plain

All agree with the plain one in value and both gradients to 1e-5 and depend on backend and shapes alone. All but plain
and matmul have a custom reverse-mode gradient: forward-mode derivatives through them need `lowering("plain")`.
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

LOWERINGS = ("auto", "plain")
_lowering = contextvars.ContextVar("lowering", default="auto")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# YNNPACK takes convolutions of more than 16 channels; up to 16 go to Eigen kernels of half the speed.
_FEW_CHANNELS = 16
# Channels of a block of merged groups: the arithmetic grows with it, and so does its speed, up to about here.
_BLOCK_CHANNELS = 32

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


def chosen_lowering(x_shape, kernel_shape, strides, padding, dilation, groups, backend: str) -> str:
    """Names the formulation (module docstring) of a convolution of these shapes on `backend` ("cpu", "gpu", ...)."""
    _, height, width, channels = x_shape
    kh, kw, _, features = kernel_shape
    if backend != "cpu" or 0 in (*x_shape, *kernel_shape):
        return "plain"
    if groups > 1:
        return "depthwise" if groups == channels else "grouped"
    if kernel_shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        return "matmul"
    if channels <= _FEW_CHANNELS and (kh, kw) == (3, 3) and dilation == (1, 1):
        pads = [pad for side in padding for pad in side]
        if strides == (1, 1) and features <= _FEW_CHANNELS and min(height + sum(pads[:2]), width + sum(pads[2:])) > 2:
            # x and y of even width, so that the gradient is of the same kind
            even = width % 2 == 0 and sum(pads[2:]) % 2 == 0
            return "two_columns" if even and min(pads) >= 0 and max(pads) <= 2 else "dense"
        if strides == (2, 2) and set(pads) == {1} and height % 2 == width % 2 == 0:
            return "four_phases"
    return "dense"


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
        backend = jax.default_backend()
        name = chosen_lowering(x.shape, kernel.shape, strides, padding, dilation, groups, backend)
    if name == "matmul":
        return _matmul(x, kernel, strides)
    if name == "dense":
        return _dense(x, kernel, strides, padding, dilation)
    if name == "depthwise":
        return _depthwise(x, kernel, strides, padding, dilation)
    if name == "grouped":
        return _grouped(x, kernel, strides, padding, dilation, groups)
    if name == "two_columns":
        return _two_columns(x, kernel, padding)
    if name == "four_phases":
        return _four_phases(x, kernel)
    return _plain(x, kernel, strides, padding, dilation, groups)


def _plain(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=_DIMENSIONS
    )


def _flipped(kernel):
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _matmul(x, kernel, strides):
    x = x[:, :: strides[0], :: strides[1]]
    return jnp.matmul(x, kernel[0, 0])


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


# -- few channels ----------------------------------------------------------------------------------------
# 16 output features are one vector register, and the matrix kernels want several. Two columns as one output place of
# 2 D features, read through a kernel 4 wide at stride 2, is a third more arithmetic at twice the speed or more. The
# 16-channel 32x32 convolution of ResNet-20 at batch 128: 3.3 -> 2.8 ms; its training step 182 -> 173 ms.


def _by_two_columns(x, kernel, padding):
    right, left = (jnp.pad(kernel, ((0, 0), pad, (0, 0), (0, 0))) for pad in ((0, 1), (1, 0)))
    y = _plain(x, jnp.concatenate([right, left], -1), (1, 2), padding)  # [N, H', W' / 2, 2 D]
    # To its own precision, so the identity: it keeps YNNPACK from fusing the convolution with what follows the reshape,
    # which it then computes with one thread (with scale, bias and ReLU 4.6 -> 3.4 ms).
    y = lax.reduce_precision(y, jnp.finfo(y.dtype).nexp, jnp.finfo(y.dtype).nmant)
    return y.reshape(*y.shape[:2], -1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _two_columns(x, kernel, padding):
    return _by_two_columns(x, kernel, padding)


def _two_columns_backward(padding, residuals, dy):
    x, kernel = residuals
    (top, bottom), (left, right) = padding
    dx = _by_two_columns(dy, _flipped(kernel), ((2 - top, 2 - bottom), (2 - left, 2 - right)))
    return dx, _few_channels_dk(x, kernel, dy, padding)


# The kernel gradient as one product of three rows of x with three columns of dy, [3 C, places] x [places, 3 D], for so
# many images at a time that both stay in the cache: ResNet-20's training step 162 -> 158 ms.
_PLACES = 8192


def _few_channels_dk(x, kernel, dy, padding):
    """dk[i, j] = sum of x[h + i - top, u] dy[h, u - j + left] over h, u: x shifted by rows, dy by columns."""
    (top, bottom), (left, right) = padding
    batch, _, width, channels = x.shape
    height, features = dy.shape[1], dy.shape[3]

    def product(x, dy):
        x, dy = _pad(x, ((top, bottom), (0, 0))), _pad(dy, ((0, 0), (2 - left, 2 - right)))
        rows = jnp.concatenate([x[:, i : i + height] for i in range(3)], -1).reshape(-1, 3 * channels)
        columns = jnp.concatenate([dy[:, :, 2 - j : 2 - j + width] for j in range(3)], -1).reshape(-1, 3 * features)
        return lax.dot_general(rows, columns, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    images = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * height * width <= _PLACES))
    parts = (x.reshape(-1, images, *x.shape[1:]), dy.reshape(-1, images, *dy.shape[1:]))
    zero = jnp.zeros((3 * channels, 3 * features), jnp.float32)
    total = lax.scan(lambda total, part: (total + product(*part), None), zero, parts)[0]
    return total.reshape(3, channels, 3, features).transpose(0, 2, 1, 3).astype(kernel.dtype)


_two_columns.defvjp(
    lambda x, kernel, padding: (_by_two_columns(x, kernel, padding), (x, kernel)), _two_columns_backward
)


# The gradient of a strided convolution's input is a convolution over dy with zeros between its places, for which XLA
# has no good kernel. The four phases of dx, each from the taps that reach it, are one 2x2 convolution of dy to 4 C
# channels: 6.2 -> 2.3 ms for 16 -> 32 channels at 32x32; from 32 channels on the plain one is as good.


@jax.custom_vjp
def _four_phases(x, kernel):
    return _plain(x, kernel, (2, 2), ((1, 1), (1, 1)))


def _four_phases_backward(residuals, dy):
    x, kernel = residuals
    batch, height, width, channels = x.shape
    # x[2 h + a, 2 w + b] reaches dy[h + r, w + s] through the tap [a + 1 - 2 r, b + 1 - 2 s], where there is one
    taps = jnp.pad(_flipped(kernel), ((0, 1), (0, 1), (0, 0), (0, 0)))  # rows 2, 1, 0 of the kernel, and zeros
    phases = [[taps[1 - a :: 2, 1 - b :: 2] for b in (0, 1)] for a in (0, 1)]
    merged = jnp.concatenate([phase for row in phases for phase in row], -1)  # [2, 2, D, 4 C]
    dx = _plain(dy, merged, (1, 1), ((0, 1), (0, 1))).reshape(batch, height // 2, width // 2, 2, 2, channels)
    dx = dx.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    return dx, _dense_dk(x, kernel, dy, (2, 2), ((1, 1), (1, 1)), (1, 1))


_four_phases.defvjp(lambda x, kernel: (_four_phases(x, kernel), (x, kernel)), _four_phases_backward)


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


def _output_size(size, taps, stride, padding, dilation):
    return (size + sum(padding) - dilation * (taps - 1) - 1) // stride + 1


def _sum_of_products(terms):
    """Sum of a * b over (a, b) in terms, as one loop.

    Two products are the real part of one of complex numbers, (a + ic)(b - id) = ab + cd. XLA compiles that to the same
    instructions as the real sum; but YNNPACK, which has no complex numbers, then leaves the loop whole, where it would
    take the real products and sums for itself and have every shifted copy of x written out (4 -> 15 ms).
    """
    a = terms[0][0]
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    if len(terms) % 2:
        terms = [*terms, (jnp.zeros_like(a), jnp.zeros_like(terms[0][1]))]
    (a, b), (c, d) = zip(*terms[::2], strict=True), zip(*terms[1::2], strict=True)
    a, b, c, d = ([value.astype(dtype) for value in values] for values in (a, b, c, d))
    return lax.real(sum(map(lambda a, b, c, d: lax.complex(a, c) * lax.complex(b, -d), a, b, c, d)))


def _sum_of_shifts(x, kernel, strides, padding, dilation):
    shape = tuple(map(_output_size, x.shape[1:3], kernel.shape[:2], strides, padding, dilation))
    padded = _pad(x, padding)
    terms = [(_window(padded, i, j, shape, strides), tap) for i, j, tap in _taps(kernel, dilation)]
    return _sum_of_products(terms).astype(x.dtype)


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
        phases.append(_sum_of_products(terms).astype(x.dtype) if terms else zeros)
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


class Conv(nn.Module):
    """Convolution of images [N, H, W, C] to [N, H', W', features], by `conv2d`.

    Attributes:
      features: output channels, a multiple of groups.
      kernel_size, strides, dilation: a number, or (vertical, horizontal).
      padding: pixels on every side, or ((top, bottom), (left, right)); None: half the kernel, k // 2, on every side.
      groups: of channels; the kernel is [kh, kw, C / groups, features].
      dtype: of the computation; None for that of the input and the parameters.
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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, strides, dilation = _pair(self.kernel_size), _pair(self.strides), _pair(self.dilation)
        padding = self.padding
        if padding is None:
            padding = tuple((d * (k // 2),) * 2 for k, d in zip(size, dilation, strict=True))
        elif isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise UserError(f"convolution {'/'.join(self.path)}: {x.shape[-1]} channels in and {self.features} out "
                            f"cannot be dealt into {self.groups} groups")
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.effective(self.param("kernel", self.kernel_init, shape, self.param_dtype))
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.matmul(x, kernel)
        return y if bias is None else y + bias

"""Convolution and dense layers."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes
from jax import lax

from models.errors import UserError, choice_error
from models.kernels import blocks, fused
from models.kernels.convolution import Padding, Pair, conv2d, pair, pair_of_pairs, product, unfused

OPENED = "opened"  # name of the collection of the kernels of an opened network, see models/compress/skip.py


def same(sizes: Sequence[int], taps: Pair, strides: Pair, dilation: Pair) -> Padding:
    """Returns TensorFlow's padding "SAME" of a map of `sizes`: the output has size / stride pixels, rounded up.

    The padding depends on the size. An odd number of pixels has one more at the bottom and on the right.
    """
    sums = [
        max(0, (-(-size // stride) - 1) * stride + far * (count - 1) + 1 - size)
        for size, count, stride, far in zip(sizes, taps, strides, dilation, strict=True)
    ]
    (top, bottom), (left, right) = [(total // 2, total - total // 2) for total in sums]
    return (top, bottom), (left, right)


def around(
    padding: int | str | Sequence[Sequence[int]] | None, sizes: Sequence[int], taps: Pair, strides: Pair, dilation: Pair
) -> Padding:
    """Returns the pixels of zeros around a map of `sizes` for a value of `Conv.padding`."""
    if padding is None:
        vertical, horizontal = (far * (count // 2) for count, far in zip(taps, dilation, strict=True))
        return (vertical, vertical), (horizontal, horizontal)
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if isinstance(padding, str):
        if padding != "tf":
            raise choice_error("padding", padding, ("tf",))
        return same(sizes, taps, strides, dilation)
    return pair_of_pairs(padding)


def width_of(layer: "Conv | Dense") -> int:
    """Returns the output features of a layer: the entry of `layer.widths` for its path, or `layer.features`."""
    return dict(layer.widths).get("/".join(layer.path), layer.features) if layer.widths else layer.features


class Conv(nn.Module):
    """Convolution of images [N, H, W, C] to [N, H', W', features], by `conv2d`.

    Attributes:
      features: Output channels, a multiple of groups.
      kernel_size, strides, dilation: A number, or (vertical, horizontal).
      padding: Pixels on every side, or ((top, bottom), (left, right)); None pads by half the kernel, k // 2; "tf" pads
        as TensorFlow's "SAME", which depends on the size of the input (see `same`).
      groups: Number of groups; the kernel is [kh, kw, C / groups, features].
      use_bias: Whether to add a bias.
      kernel_init, bias_init: Initializers (key, shape, dtype) -> array.
      dtype: Type of the computation; None uses that of the input and the parameters.
      param_dtype: Type of the parameters.
      widths: Pairs (path of a layer, output features) that override `features`.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: int | str | Sequence[Sequence[int]] | None = None
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
        size, strides, dilation = pair(self.kernel_size), pair(self.strides), pair(self.dilation)
        features = width_of(self)
        if x.shape[-1] % self.groups or features % self.groups:
            raise UserError(
                f"convolution {'/'.join(self.path)}: {x.shape[-1]} input and {features} output channels "
                f"are not divisible into {self.groups} groups"
            )
        shape = (*size, x.shape[-1] // self.groups, features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        padding = around(self.padding, x.shape[1:3], size, strides, dilation)
        y = self.convolve(x, kernel, strides, padding, dilation)
        return y if bias is None or self.has_variable(OPENED, "kernel") else y + bias.astype(y.dtype)

    def effective(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel to convolve with, given the learned kernel."""
        return kernel

    def convolve(self, x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair) -> jax.Array:
        """Convolves x with the learned kernel, in the type of the computation; only an opened one adds its bias."""
        x, kernel = dtypes.promote_dtype(x, self.effective(kernel), dtype=self.dtype)
        opened = self.get_variable(OPENED, "kernel")  # None unless models/compress/skip.py opened the network
        if opened is not None and blocks.supports(x, padding):
            how = (pair(kernel.shape[:2]), strides, padding, dilation, self.groups)
            is_packed = isinstance(opened, fused.Packed)
            return fused.convolve(x, opened, *how) if is_packed else blocks.convolve(x, opened, *how)
        y = conv2d(x, kernel, strides, padding, dilation, self.groups)
        return y if opened is None else y + opened.bias.astype(y.dtype)


class StandardizedConv(Conv):
    """Convolution with weight standardization: kernels have zero mean and unit variance per output feature.

    Qiao et al. 2019, arXiv 1903.10520, eq. 4 to 6, with the epsilon of BiT's published networks.
    """

    epsilon: float = 1e-8

    def effective(self, kernel: jax.Array) -> jax.Array:
        """Standardizes a kernel [kh, kw, C / groups, D] over all axes except D."""
        centered = kernel - kernel.mean((0, 1, 2))
        return centered * lax.rsqrt(jnp.square(centered).mean((0, 1, 2)) + self.epsilon)


class Dense(nn.Module):
    """Matrix product of x [..., inputs] with a kernel [inputs, features], plus a bias; `Conv` explains the fields."""

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
        is_opened = self.has_variable(OPENED, "kernel")
        y = self.multiply(x if is_opened else unfused(x), kernel)
        return y if bias is None or is_opened else y + bias.astype(y.dtype)

    def effective(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel to multiply with, given the learned kernel."""
        return kernel

    def multiply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Multiplies x with the learned kernel, in the type of the computation; only an opened one adds its bias."""
        x, kernel = dtypes.promote_dtype(x, self.effective(kernel), dtype=self.dtype)
        opened = self.get_variable(OPENED, "kernel")
        if opened is not None and blocks.supports(x):
            is_packed = isinstance(opened, fused.Packed)
            return fused.multiply(x, opened) if is_packed else blocks.multiply(x, opened)
        y = product(x, kernel)
        return y if opened is None else y + opened.bias.astype(y.dtype)

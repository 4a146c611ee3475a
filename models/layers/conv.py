"""Convolution and dense layers: ONE convolution, with the lowering picked by backend and shape."""

import contextlib
import contextvars
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

LOWERINGS = ("auto", "plain")
_lowering = contextvars.ContextVar("lowering", default="auto")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@contextlib.contextmanager
def lowering(name: str):
    """Within the context, functions that are traced use this lowering: "auto" or "plain" (lax.conv_general_dilated).

    It acts while tracing: a function that was jitted and traced before keeps what it had.
    """
    if name not in LOWERINGS:
        raise ValueError(f"unknown lowering {name!r}; allowed: {', '.join(LOWERINGS)}")
    token = _lowering.set(name)
    try:
        yield
    finally:
        _lowering.reset(token)


def _plain(x, kernel, strides, padding, dilation, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=_DIMENSIONS
    )


def conv2d(x, kernel, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    """Convolution of x [N, H, W, C] with kernel [kh, kw, C / groups, D]: [N, H', W', D]."""
    return _plain(x, kernel, strides, padding, dilation, groups)


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


class Conv(nn.Module):
    """Convolution of images [N, H, W, C] to [N, H', W', features]; kernel [kh, kw, C / groups, features].

    padding: pixels on every side, ((top, bottom), (left, right)), or None for k // 2 (times the dilation) on both sides.
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
            padding = ((padding, padding),) * 2
        else:
            padding = tuple((int(low), int(high)) for low, high in padding)
        shape = (*size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv2d(x, kernel, strides, padding, dilation, self.groups)
        return y if bias is None else y + bias


class Dense(nn.Module):
    """Matrix product of x [..., in] with the kernel [in, features], plus a bias."""

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
        y = x @ kernel
        return y if bias is None else y + bias

"""Normalization: batch, frozen batch, layer, instance, group, channel and none, which average over different axes.

  y = (x - mean) / sqrt(var + epsilon) * scale + bias                       x [N, ..., C], scale and bias [C]

  batch      over the batch and space, per channel            Ioffe & Szegedy 2015, arXiv 1502.03167
             ("batch:0.6" sets the momentum of the running statistics; the default is 0.9)
  layer      over space and channels, per example             Ba et al. 2016, arXiv 1607.06450, as in Wu & He
  instance   over space, per example and channel              Ulyanov et al. 2016, arXiv 1607.08022
  group      over space and the channels of a group           Wu & He 2018, arXiv 1803.08494, fig. 2
  channel    over the channels, per position                  the LayerNorm of transformers and ConvNeXt
  frozen_batch   like batch at test time, also in training; for fine-tuning pretrained networks with small batches or
             fixed early stages

scale and bias are per channel in all of them, as in Wu & He, so parameters do not depend on the resolution. PyTorch's
LayerNorm([C, H, W]) has one of each per element; the two agree if those are constant over space.

Two passes over x compute the variance as the mean of (x - mean)^2. They keep its digits if the mean is large. One pass
computes mean((x - s)^2) - (mean - s)^2, whose relative error is about 1e-7 (1 + 3 r^2) if s is r spreads from the mean.
CPUs take two passes. Accelerators take one in two cases:

  GPU   s is the mean of an eighth of x, so r^2 is below 8 for any x. The norm "channel" still takes two passes.
  TPU   Norms of bfloat16 take one pass. Because s is known before x, XLA sums within the convolution or product that
        computes x. Batch norm takes the running mean as s, which starts at 0; the others take 0. There, r is the mean
        in spreads, and the error of 3e-7 r^2 is a fraction of the one that x itself has, whose rounding to 8 bits adds
        1e-6 r^2 to 5e-6 r^2.
"""

import contextlib
import contextvars
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models import plugins
from models.errors import UserError, choice_error
from models.kernels.derivatives import custom_vjp
from models.kernels.tracing import plain_wanted, platform

_any_batch = contextvars.ContextVar("any_batch", default=False)
GROUPS = 32  # default of "group" in layers with at least as many channels; Wu & He 2018, section 4.1
_ones, _zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()


def norm(spec: str | Callable, *, train: bool, dtype: Any = None, axis_name: str | None = None) -> Callable:
    """Resolves `spec` to a constructor of layers, `make(name=..., scale_init=..., epsilon=...)`; all are optional.

    Args:
      spec: One of NORMS. "group" has 32 groups, or one group per channel in layers with fewer channels (the first
        stages of CIFAR networks); "group:8" has exactly 8. It can also be FILE.py:NAME, or a callable that takes the
        keywords of `make` and returns a function of x; it also gets train, dtype and axis_name if it takes them.
      train: Whether to use batch statistics and update running ones.
      dtype: Type of the output; None uses that of the input. Statistics are always float32.
      axis_name: Device axis over which batch statistics are averaged, if there is an axis of this name (in a training
        step that is lifted over devices); None uses the statistics of each device.

    Raises:
      UserError: `spec` is unknown, or does not take the keywords of `make`.
    """
    make, options = _resolved(spec)
    needed = ("name", "scale_init", "epsilon")
    for keyword in set(needed) - set(_taken(make, needed)):
        raise UserError(f"norm {spec} takes no {keyword}: a norm must take {', '.join(needed)}")
    offered = {"train": train, "dtype": dtype, "axis_name": axis_name}
    return functools.partial(make, **{keyword: offered[keyword] for keyword in _taken(make, offered)}, **options)


def synchronizes(spec: str | Callable) -> bool:
    """Returns whether a norm takes axis_name, and thus can average statistics over devices."""
    return bool(_taken(_resolved(spec)[0], ["axis_name"]))


def separates_channels(spec: str | Callable, channels: int) -> bool:
    """Returns whether a norm averages each channel of each example separately.

    For such a norm, the mean of the output over space equals the bias, whatever the input is. On a 1x1 map, the output
    itself equals the bias.
    """
    return spec in ("instance", f"group:{channels}") or (spec == "group" and channels <= GROUPS)


def _resolved(spec: str | Callable) -> tuple[Callable, dict[str, Any]]:
    """Returns the constructor of the layers of `norm`, and the field that the text after a name's colon sets."""
    spec = plugins.load(spec)
    if callable(spec):
        return spec, {}
    kind, colon, text = str(spec).partition(":")
    if colon and kind in OPTIONS:
        field, read = OPTIONS[kind]
        value = read(text)
        if value is not None:
            return plugins.imported(NORMS[kind]), {field: value}
    if colon or kind not in NORMS:
        raise choice_error("norm", spec, (*NORMS, "batch:M", "group:G"), own=True)
    return plugins.imported(NORMS[kind]), {}


def _taken(make: Callable, keywords: Iterable[str]) -> list[str]:
    """Returns the keywords that `make` accepts."""
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return list(keywords)
    return [keyword for keyword in keywords if keyword in parameters]


def _momentum(text: str) -> float | None:
    try:
        return float(text) if 0 <= float(text) < 1 else None
    except ValueError:
        return None


def _groups(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _devices(axis_name: str | None) -> int:
    """Returns the size of the device axis, or 0 outside programs that have it."""
    try:
        return lax.axis_size(axis_name) if axis_name else 0
    except NameError:
        return 0


def _mean(x: jax.Array, axes: tuple[int, ...], axis_name: str | None) -> jax.Array:
    mean = x.mean(axes, keepdims=True)
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    axes: tuple[int, ...],
    epsilon: float,
    axis_name: str | None,
    dtype: Any,
    shift: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes x over `axes` (and over the devices of `axis_name`), then scales and shifts.

    The module's docstring says how it computes the variance. The backward pass stores one array of x's size: x.

    Args:
      x: [..., *channels], any floating type; sums are float32.
      scale: float32 [*channels], over the last axes of x.
      bias: float32 [*channels], over the last axes of x.
      axes: Axes to average over.
      epsilon: Added to the variance.
      axis_name: Device axis to average over, or None.
      dtype: Type of the output.
      shift: A value near the mean, of a shape that broadcasts to the mean's; it is known before x, and the same on all
        devices.

    Returns:
      y of x's shape; mean and biased variance, float32, of x's shape with `axes` reduced to 1.
    """
    shifts = () if shift is None else (lax.stop_gradient(shift),)
    return _normalize(x, scale, bias, axes, epsilon, axis_name, dtype, *shifts)


@functools.partial(custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _normalize(x, scale, bias, axes, epsilon, axis_name, dtype, *shift):
    return _forward(x, scale, bias, axes, epsilon, axis_name, dtype, *shift)[0]


def _forward(x, scale, bias, axes, epsilon, axis_name, dtype, *shift):
    mean, var = _moments(x, axes, axis_name, *shift)
    y = (x.astype(jnp.float32) - mean) * (lax.rsqrt(var + epsilon) * scale) + bias
    return (y.astype(dtype), mean, var), (x, scale, mean, var, shift)


def _moments(x, axes, axis_name, shift=None) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance, float32; the arguments are those of `normalize`."""
    if platform() == "tpu" and x.dtype == jnp.bfloat16 and not plain_wanted():
        return _in_one_pass(x, 0.0 if shift is None else jnp.where(jnp.isfinite(shift), shift, 0), axes, axis_name)
    if platform() == "gpu" and axes != (x.ndim - 1,) and not plain_wanted():
        axis = 1 if 1 in axes else axes[0]
        length = -(-x.shape[axis] // 8)
        start = (x.shape[axis] - length) // 2
        part = lax.slice_in_dim(x, start, start + length, axis=axis)
        return _in_one_pass(x, _mean(part.astype(jnp.float32), axes, axis_name), axes, axis_name)
    x = x.astype(jnp.float32)
    mean = _mean(x, axes, axis_name)
    return mean, _mean(jnp.square(x - mean), axes, axis_name)


def _in_one_pass(x, shift, axes, axis_name) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance; the module's docstring says how near the mean `shift` must be."""
    shifted = x.astype(jnp.float32) - shift
    offset, square = (_mean(moment, axes, axis_name) for moment in (shifted, jnp.square(shifted)))
    return shift + offset, jnp.maximum(square - jnp.square(offset), 0)


def _backward(axes, epsilon, axis_name, dtype, residuals, cotangents):
    x, scale, mean, var, shift = residuals
    dy, dmean, dvar = cotangents
    dy = dy.astype(jnp.float32)
    rstd = lax.rsqrt(var + epsilon)
    positions = tuple(range(x.ndim - scale.ndim))
    common = tuple(axis for axis in axes if axis in positions)  # summed once, for the parameters and for the input
    rest = tuple(axis for axis in axes if axis not in positions)
    centered = x.astype(jnp.float32) - mean
    sum_dy = dy.sum(common, keepdims=True)
    sum_dy_x = (dy * centered).sum(common, keepdims=True)
    dscale, dbias = (sum_dy_x * rstd).sum(positions), sum_dy.sum(positions)
    count = math.prod(x.shape[axis] for axis in axes)
    mean_g = (scale * sum_dy).sum(rest, keepdims=True) / count
    mean_g_x = (scale * sum_dy_x).sum(rest, keepdims=True) / count
    dmean, dvar = dmean / count, dvar / count
    if axis_name is not None:  # the input of one device affects the losses of all
        mean_g, mean_g_x, dmean, dvar = lax.pmean((mean_g, mean_g_x, dmean, dvar), axis_name)
    dx = dy * (scale * rstd) - centered * (mean_g_x * rstd**3 - 2 * dvar) - (mean_g * rstd - dmean)
    return dx.astype(x.dtype), dscale, dbias, *map(jnp.zeros_like, shift)


_normalize.defvjp(_forward, _backward)


@contextlib.contextmanager
def example_stands_for_batch() -> Iterator[None]:
    """Allows batch norm of one example in training mode, for programs that are traced for their cost and never run."""
    token = _any_batch.set(True)
    try:
        yield
    finally:
        _any_batch.reset(token)


def _check_several(module: nn.Module, kind: str, values: int, cure: str) -> None:
    """Raises UserError if each mean is over fewer than two values, so that the output does not depend on the input.

    Initialization skips this check, because its images may have any size.
    """
    if values < 2 and not module.is_initializing():
        raise UserError(
            f"norm '{kind}' at {'/'.join(module.path)} erases its input: each of its means "
            f"is over {values} {'value' if values == 1 else 'values'}; {cure}"
        )


# Remedies for a mean over a single value
_PER_EXAMPLE = "use another norm, or larger images"
_PER_BATCH = (
    "use a larger batch_size, fewer parts (accumulate), larger images, sync_norm=True on several devices, or "
    "norm=group, layer or frozen_batch"
)


def _affine(module: nn.Module, channels: int) -> tuple[jax.Array, jax.Array]:
    scale = module.param("scale", module.scale_init, (channels,), jnp.float32)
    return scale, module.param("bias", _zeros, (channels,), jnp.float32)


def _output(dtype: Any, x: jax.Array) -> Any:
    return x.dtype if dtype is None else dtype


class BatchNorm(nn.Module):
    """Batch normalization: averages each channel over the batch and space, or uses running statistics.

    Running statistics are used if `train` is False. The collection "batch_stats" holds them as "mean" and "var",
    float32 [C]. If it is mutable, a training call sets each to momentum * old + (1 - momentum) * the batch's value.
    The variance is unbiased, as in PyTorch. If the collection "batch_moments" is mutable, a training call writes the
    batch's "mean" and biased "var" there, so that running statistics can be recomputed.
    """

    train: bool
    dtype: Any = None
    axis_name: str | None = None
    scale_init: Callable = _ones
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale, bias = _affine(self, channels)
        running_mean = self.variable("batch_stats", "mean", _zeros, None, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", _ones, None, (channels,), jnp.float32)
        dtype = _output(self.dtype, x)
        if not self.train:
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale
            return ((x.astype(jnp.float32) - running_mean.value) * factor + bias).astype(dtype)
        axes = tuple(range(x.ndim - 1))
        devices = _devices(self.axis_name)
        axis_name = self.axis_name if devices else None
        count = x.size // channels * max(devices, 1)  # values of each channel
        if not _any_batch.get():
            _check_several(self, "batch", count, _PER_BATCH)
        y, mean, var = normalize(x, scale, bias, axes, self.epsilon, axis_name, dtype, running_mean.value)
        if not self.is_initializing():
            mean, var = lax.stop_gradient((mean.reshape(channels), var.reshape(channels)))
            if self.is_mutable_collection("batch_stats"):
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * unbiased
            moments: dict[str, Any] = {"mean": mean, "var": var}
            for name, value in moments.items():
                self.sow("batch_moments", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return y


class _ExampleNorm(nn.Module):
    """Base of the norms that average within an example."""

    dtype: Any = None
    scale_init: Callable = _ones
    epsilon: float = 1e-5

    def _normalize(self, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        affine = _affine(self, x.shape[-1])
        return normalize(x, *affine, axes, self.epsilon, None, _output(self.dtype, x))[0]


class GroupNorm(_ExampleNorm):
    """Group normalization: averages each example over space and the channels of a group.

    Attributes:
      groups: Number of groups; None uses GROUPS, or one group per channel if there are fewer channels.
    """

    groups: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        groups = min(GROUPS, channels) if self.groups is None else self.groups
        if channels % groups:
            raise UserError(
                f"norm 'group:{groups}' at {'/'.join(self.path)}: the {channels} channels of this layer "
                f"are not divisible into {groups} groups; use a divisor of {channels}"
            )
        shape = (groups, channels // groups)
        scale, bias = (p.reshape(shape) for p in _affine(self, channels))
        grouped = x.reshape(*x.shape[:-1], *shape)  # [N, ..., C] -> [N, ..., G, C / G]
        axes = (*range(1, x.ndim - 1), x.ndim)
        _check_several(self, f"group:{groups}", math.prod(grouped.shape[axis] for axis in axes), _PER_EXAMPLE)
        return normalize(grouped, scale, bias, axes, self.epsilon, None, _output(self.dtype, x))[0].reshape(x.shape)


class InstanceNorm(_ExampleNorm):
    """Instance normalization: averages each channel of each example over space."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _check_several(self, "instance", math.prod(x.shape[1:-1]), _PER_EXAMPLE)
        return self._normalize(x, tuple(range(1, x.ndim - 1)))


class ChannelNorm(_ExampleNorm):
    """Channel normalization: averages over the channels at each position of each example."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self._normalize(x, (x.ndim - 1,))


class NoNorm(nn.Module):
    """The identity, which ignores scale_init and epsilon."""

    scale_init: Callable | None = None
    epsilon: float | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def _frozen_batch(
    name: str | None = None, scale_init: Callable = _ones, epsilon: float = 1e-5, dtype: Any = None
) -> nn.Module:
    return BatchNorm(False, dtype, scale_init=scale_init, epsilon=epsilon, name=name)


NORMS = {
    "batch": BatchNorm,
    "frozen_batch": _frozen_batch,
    "layer": functools.partial(GroupNorm, groups=1),
    "instance": InstanceNorm,
    "group": GroupNorm,
    "channel": ChannelNorm,
    "none": NoNorm,
}
# {name: (field that follows the name's colon, parser that returns None for bad text)}
OPTIONS = {"batch": ("momentum", _momentum), "group": ("groups", _groups)}

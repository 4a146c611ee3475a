"""Layers whose kernels have one or two bits a weight, in place of Conv and Dense.

  Zhu et al. 2017          Trained ternary quantization, arXiv 1612.01064                  Ternary*
  Rastegari et al. 2016    XNOR-Net: ImageNet classification using binary convolutional
                           neural networks, arXiv 1603.05279                               BinaryWeight*, Xnor*

What learns is a kernel of floats, "kernel", of which each call makes the low-bit one. The names "ternary",
"binary_weight" and "xnor" of the fields `conv` and `dense` (layers/ingredients.py) keep the first layer and the head
in floats, as both papers do; the classes themselves do not.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from models.kernels.tracing import packed_wanted
from models.layers import xnor
from models.layers.conv import Conv, Dense
from models.layers.init import jit_once


class LowBit(nn.Module):
    """Base of the layers here."""

    def stored(self, kernel: jax.Array) -> jax.Array:
        """A kernel of few values, for a file: loaded as this layer's "kernel", it has the effect of `kernel`, to the
        bit.
        """
        raise NotImplementedError


SCALES = ("positive", "negative")  # parameters of ternary layers

# -- ternary ---------------------------------------------------------------------------------------------


def _sides(kernel, threshold):
    """Where a kernel is above and below the threshold, a fraction of its largest magnitude (Zhu 2017, eq. 9)."""
    limit = threshold * jnp.abs(kernel).max(initial=0)
    return kernel > limit, kernel < -limit


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def ternarized(kernel: jax.Array, positive: jax.Array, negative: jax.Array, threshold: float) -> jax.Array:
    """Positive where the kernel is above the threshold, -negative where it is below, else 0 (Zhu 2017, eq. 6).

    The derivatives by the scales are the true ones (eq. 7). The kernel gets the derivative times the scale of its side,
    and as it is in between (eq. 8).

    Args:
      kernel: of any shape.
      positive, negative: scalars.
      threshold: as a fraction of the largest magnitude.
    """
    above, below = _sides(kernel, threshold)
    return jnp.where(above, positive, jnp.where(below, -negative, 0)).astype(kernel.dtype)


@ternarized.defjvp
def _ternarized_derivative(threshold, primals, tangents):
    (kernel, positive, negative), (d_kernel, d_positive, d_negative) = primals, tangents
    above, below = _sides(kernel, threshold)
    beyond = jnp.where(above, positive * d_kernel + d_positive, negative * d_kernel - d_negative)
    return ternarized(*primals, threshold), jnp.where(above | below, beyond, d_kernel).astype(kernel.dtype)


def _scale(kernel, threshold):
    """Mean magnitude of what is beyond the threshold."""
    above, below = _sides(kernel, threshold)
    beyond = above | below
    return (jnp.abs(kernel) * beyond).sum(dtype=jnp.float32) / jnp.maximum(beyond.sum(), 1)


class _Ternary(LowBit):
    """Kernels of -negative, 0 and positive: two trained scales a layer, "positive" and "negative", float32.

    They start at the mean magnitude of what is beyond the threshold. Their gradients are sums over the layer and want a
    smaller learning rate than the weights, config.optimizer.groups = ((".*/(positive|negative)", 0.01), (".*", 1.0)).

    Attributes:
      threshold: below which a weight is 0, as a fraction of the kernel's largest magnitude. The paper's, section 3.2.
    """

    threshold: float = 0.05

    def effective(self, kernel: jax.Array) -> jax.Array:
        scales = [self.param(name, lambda _: _scale(kernel, self.threshold)) for name in SCALES]
        return ternarized(kernel, *scales, self.threshold)

    def stored(self, kernel: jax.Array) -> jax.Array:
        """-1, 0 and 1."""
        above, below = _sides(kernel, self.threshold)
        return above.astype(kernel.dtype) - below.astype(kernel.dtype)


class TernaryConv(_Ternary, Conv):
    __doc__ = _Ternary.__doc__


class TernaryDense(_Ternary, Dense):
    __doc__ = _Ternary.__doc__


# -- binary ----------------------------------------------------------------------------------------------


class _Binary(LowBit):
    """Kernels of one magnitude a filter, the mean of its own: sign(w) mean|w| (Rastegari 2016, section 3.1).

    The derivative goes through the sign where |w| <= 1, and through the mean as it is.
    """

    def effective(self, kernel: jax.Array) -> jax.Array:
        return (xnor.signs(kernel) * xnor.filter_scale(kernel)).astype(kernel.dtype)

    def stored(self, kernel: jax.Array) -> jax.Array:
        """The effective kernel, of which the effective one is itself."""
        return _Binary.effective(self, kernel)


class BinaryWeightConv(_Binary, Conv):
    __doc__ = _Binary.__doc__


class BinaryWeightDense(_Binary, Dense):
    __doc__ = _Binary.__doc__


PACKED = "packed"  # collection of packed kernels


class _Xnor(_Binary):
    """What XNOR layers share."""

    def pack(self, kernel: jax.Array) -> xnor.Packed:
        """Bits and scales of the layer's kernel."""
        return xnor.pack_conv(kernel) if kernel.ndim == 4 else xnor.pack_dense(kernel)

    def packed(self, kernel: jax.Array) -> xnor.Packed:
        """As `pack`, or what the variables have."""
        return self.get_variable(PACKED, "kernel") if self.has_variable(PACKED, "kernel") else self.pack(kernel)


class XnorConv(_Xnor, Conv):
    """Binary kernels and inputs, with the scales of both: xnor.convolve (Rastegari 2016, section 3.2).

    Computed in float32, so that sums of signs are exact, then brought to `dtype`. Inside of `lowering("packed")` by
    packed bits, with the same result to the bit and without gradients; groups remain floats there. The kernel is packed
    in every call, but where the variables have it packed (`packed`).
    """

    def convolve(self, x, kernel, strides, padding, dilation):
        dtype = nn.dtypes.canonicalize_dtype(x, kernel, dtype=self.dtype)
        how = (strides, tuple(map(tuple, padding)), dilation)
        if packed_wanted() and self.groups == 1:
            return xnor.convolve_packed(x.astype(dtype), self.packed(kernel), *how).astype(dtype)
        return xnor.convolve(x.astype(dtype), kernel, *how, self.groups).astype(dtype)


class XnorDense(_Xnor, Dense):
    """Binary kernels and inputs, with the scales of both: xnor.multiply; otherwise as XnorConv."""

    def multiply(self, x, kernel):
        dtype = nn.dtypes.canonicalize_dtype(x, kernel, dtype=self.dtype)
        if packed_wanted():
            return xnor.multiply_packed(x.astype(dtype), self.packed(kernel)).astype(dtype)
        return xnor.multiply(x.astype(dtype), kernel).astype(dtype)


# -- networks --------------------------------------------------------------------------------------------


def layers(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> dict[tuple[str, ...], LowBit]:
    """The low-bit layers of a model, unbound, by path, in the order of the computation.

    Args:
      model, variables, *inputs, **kwargs: as for `model.apply`; shapes and types are enough.
    """
    found: dict[tuple[str, ...], LowBit] = {}

    def read(call, args, call_kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, LowBit):
            found[layer.path] = layer.clone(parent=None, name=None)
        return call(*args, **call_kwargs)

    with nn.intercept_methods(read):
        jax.eval_shape(functools.partial(model.apply, **kwargs), variables, *inputs)
    return found


def with_scales(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of a network in floats with the scales that its ternary layers start from.

    Args:
      arrays: by path.
      names: paths of the network with ternary layers; scales among them that the arrays lack are made of the kernel
        beside them, by the paper's threshold.
    """
    made = dict(arrays)
    for name in names:
        layer, _, leaf = name.rpartition("/")
        if leaf in SCALES and name not in made and (kernel := arrays.get(f"{layer}/kernel")) is not None:
            made[name] = np.asarray(_scale(jnp.asarray(kernel, jnp.float32), _Ternary.threshold))
    return made


def binary(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> list[str]:
    """Paths of the kernels of binary layers. Arguments as of `layers`."""
    return [
        "/".join((*path, "kernel"))
        for path, layer in layers(model, variables, *inputs, **kwargs).items()
        if isinstance(layer, _Binary)
    ]


def packed(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> Any:
    """The variables with the kernels of XNOR layers packed as well, for calls inside of `lowering("packed")`. Arguments
    as of `layers`.
    """
    params = traverse_util.flatten_dict(variables["params"])
    found = {
        (*path, "kernel"): layer
        for path, layer in layers(model, variables, *inputs, **kwargs).items()
        if isinstance(layer, _Xnor) and getattr(layer, "groups", 1) == 1
    }
    bits = jit_once(lambda kernels: {path: found[path].pack(kernel) for path, kernel in kernels.items()})
    return {**variables, PACKED: traverse_util.unflatten_dict(bits({path: params[path] for path in found}))}


def stored(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> Any:
    """The variables with every low-bit layer's kernel as its `stored` has it: few values, and the same outputs to the
    bit. Arguments as of `layers`.
    """
    params = traverse_util.flatten_dict(variables["params"])
    found = {(*path, "kernel"): layer for path, layer in layers(model, variables, *inputs, **kwargs).items()}
    few = jit_once(lambda kernels: {path: found[path].stored(kernel) for path, kernel in kernels.items()})
    params |= few({path: params[path] for path in found})
    return {**variables, "params": traverse_util.unflatten_dict(params)}

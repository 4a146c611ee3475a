"""Low-bit layers: replacements for Conv and Dense whose kernels have one or two bits per weight.

  Zhu et al. 2017          Trained ternary quantization, arXiv 1612.01064                  Ternary*
  Rastegari et al. 2016    XNOR-Net: ImageNet classification using binary convolutional
                           neural networks, arXiv 1603.05279                               BinaryWeight*, Xnor*

The learned "kernel" holds floats, which each call quantizes. The names "ternary", "binary_weight" and "xnor" in the
fields `conv` and `dense` (layers/ingredients.py) leave the first layer and the head in floats, as both papers do; the
classes themselves do not.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.linen import dtypes

from models.kernels.tracing import packed_wanted
from models.layers import xnor
from models.layers.conv import Conv, Dense
from models.layers.init import jit_once


class LowBit(nn.Module):
    """Base of low-bit layers."""

    def stored(self, kernel: jax.Array) -> jax.Array:
        """Returns a kernel of few distinct values, for a file.

        As this layer's "kernel", it has the same effect as `kernel`, to the bit.
        """
        raise NotImplementedError


SCALES = ("positive", "negative")  # names of the scales of ternary layers

# -- ternary ---------------------------------------------------------------------------------------------


def _sides(kernel, threshold):
    """Returns masks of weights above and below the threshold, a fraction of the largest magnitude (Zhu 2017, eq. 9)."""
    limit = threshold * jnp.abs(kernel).max(initial=0)
    return kernel > limit, kernel < -limit


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def ternarized(kernel: jax.Array, positive: jax.Array, negative: jax.Array, threshold: float) -> jax.Array:
    """Returns `positive` for weights above the threshold, -`negative` for weights below it, else 0 (Zhu 2017, eq. 6).

    The derivatives with respect to the scales are exact (eq. 7). The derivative with respect to the kernel is
    multiplied by the scale of its side, and passes unchanged between the thresholds (eq. 8).

    Args:
      kernel: An array of any shape.
      positive: Scalar.
      negative: Scalar.
      threshold: Fraction of the largest magnitude.
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
    """Returns the mean magnitude of the weights beyond the threshold."""
    above, below = _sides(kernel, threshold)
    beyond = above | below
    return (jnp.abs(kernel) * beyond).sum(dtype=jnp.float32) / jnp.maximum(beyond.sum(), 1)


class _Ternary(LowBit):
    """A layer whose weights are -negative, 0 or positive, with two trained scales, "positive" and "negative", float32.

    The scales start at the mean magnitude of the weights beyond the threshold. Their gradients are sums over the layer
    and need a smaller learning rate than the weights:
    config.optimizer.groups = ((".*/(positive|negative)", 0.01), (".*", 1.0)).

    Attributes:
      threshold: Fraction of the kernel's largest magnitude below which a weight is 0 (section 3.2 of the paper).
    """

    threshold: float = 0.05

    def effective(self, kernel: jax.Array) -> jax.Array:
        scales = [self.param(name, lambda _: _scale(kernel, self.threshold)) for name in SCALES]
        return ternarized(kernel, *scales, self.threshold)

    def stored(self, kernel: jax.Array) -> jax.Array:
        """Returns a kernel of -1, 0 and 1."""
        above, below = _sides(kernel, self.threshold)
        return above.astype(kernel.dtype) - below.astype(kernel.dtype)


class TernaryConv(_Ternary, Conv):
    """Convolution with ternary weights; see `_Ternary` for the scales and the threshold."""


class TernaryDense(_Ternary, Dense):
    """Dense layer with ternary weights; see `_Ternary` for the scales and the threshold."""


# -- binary ----------------------------------------------------------------------------------------------


class _Binary(LowBit):
    """A layer whose filters are sign(w) mean|w|, with one magnitude per filter (Rastegari 2016, section 3.1).

    The derivative passes through the sign where |w| <= 1, and that of the mean is exact.
    """

    def effective(self, kernel: jax.Array) -> jax.Array:
        return (xnor.signs(kernel) * xnor.filter_scale(kernel)).astype(kernel.dtype)

    def stored(self, kernel: jax.Array) -> jax.Array:
        """Returns the effective kernel, which does not change if the layer quantizes it again."""
        return _Binary.effective(self, kernel)


class BinaryWeightConv(_Binary, Conv):
    """Convolution with binary weights, of one magnitude per filter."""


class BinaryWeightDense(_Binary, Dense):
    """Dense layer with binary weights, of one magnitude per filter."""


PACKED = "packed"  # name of the collection of packed kernels


class _Xnor(_Binary):
    """Base of XNOR layers."""

    def pack(self, kernel: jax.Array) -> xnor.Packed:
        """Returns the bits and scales of the layer's kernel."""
        return xnor.pack_conv(kernel) if kernel.ndim == 4 else xnor.pack_dense(kernel)

    def packed(self, kernel: jax.Array) -> xnor.Packed:
        """Returns the packed kernel in the variables, or else `pack(kernel)`."""
        return self.get_variable(PACKED, "kernel") if self.has_variable(PACKED, "kernel") else self.pack(kernel)


class XnorConv(_Xnor, Conv):
    """Convolution of binary inputs with binary kernels, with the scales of both (Rastegari 2016, section 3.2).

    It computes in float32, so that sums of signs are exact, and converts the result to `dtype`. Within
    `lowering("packed")` it computes with packed bits, with the same result to the bit and without gradients;
    convolutions with groups still use floats. The kernel is packed in every call unless the variables hold it packed
    (`packed`).
    """

    def convolve(self, x, kernel, strides, padding, dilation):
        dtype = dtypes.canonicalize_dtype(x, kernel, dtype=self.dtype)
        options = (strides, padding, dilation)
        if packed_wanted() and self.groups == 1:
            return xnor.convolve_packed(x.astype(dtype), self.packed(kernel), *options).astype(dtype)
        return xnor.convolve(x.astype(dtype), kernel, *options, self.groups).astype(dtype)


class XnorDense(_Xnor, Dense):
    """Matrix product of binary inputs with binary kernels, with the scales of both; otherwise like XnorConv."""

    def multiply(self, x, kernel):
        dtype = dtypes.canonicalize_dtype(x, kernel, dtype=self.dtype)
        if packed_wanted():
            return xnor.multiply_packed(x.astype(dtype), self.packed(kernel)).astype(dtype)
        return xnor.multiply(x.astype(dtype), kernel).astype(dtype)


# -- networks --------------------------------------------------------------------------------------------


def layers(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> dict[tuple[str, ...], LowBit]:
    """Returns the low-bit layers of a model, unbound, by path, in the order of the computation.

    Args:
      model: The network.
      variables: Its variables, or their shapes and types.
      *inputs: Positional arguments of `model.apply`, or their shapes and types.
      **kwargs: Keyword arguments of `model.apply`.
    """
    low_bit: dict[tuple[str, ...], LowBit] = {}

    def read(call, args, call_kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, LowBit):
            low_bit[layer.path] = layer.clone(parent=None, name=None)
        return call(*args, **call_kwargs)

    with nn.intercept_methods(read):
        jax.eval_shape(functools.partial(model.apply, **kwargs), variables, *inputs)
    return low_bit


def with_scales(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Adds the initial scales of ternary layers to the arrays of a network in floats.

    Args:
      arrays: Arrays by path.
      names: Paths of the arrays of the network with ternary layers. Missing scales are computed from the kernel of the
        same layer, with the paper's threshold.
    """
    extended = dict(arrays)
    for name in names:
        layer, _, leaf = name.rpartition("/")
        if leaf in SCALES and name not in extended and (kernel := arrays.get(f"{layer}/kernel")) is not None:
            extended[name] = np.asarray(_scale(jnp.asarray(kernel, jnp.float32), _Ternary.threshold))
    return extended


def binary(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> list[str]:
    """Returns the paths of the kernels of binary layers; see `layers` for the arguments."""
    return [
        "/".join((*path, "kernel"))
        for path, layer in layers(model, variables, *inputs, **kwargs).items()
        if isinstance(layer, _Binary)
    ]


def packed(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Adds the packed kernels of XNOR layers to the variables, for calls within `lowering("packed")`.

    See `layers` for the arguments.
    """
    params = traverse_util.flatten_dict(variables["params"])
    xnor_layers = {
        (*path, "kernel"): layer
        for path, layer in layers(model, variables, *inputs, **kwargs).items()
        if isinstance(layer, _Xnor) and getattr(layer, "groups", 1) == 1
    }
    bits = jit_once(lambda kernels: {path: xnor_layers[path].pack(kernel) for path, kernel in kernels.items()})
    return {**variables, PACKED: traverse_util.unflatten_dict(bits({path: params[path] for path in xnor_layers}))}


def stored(model: nn.Module, variables: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Replaces the kernel of every low-bit layer by its `stored` one: few values, and the same outputs to the bit.

    See `layers` for the arguments.
    """
    params = traverse_util.flatten_dict(variables["params"])
    low_bit = {(*path, "kernel"): layer for path, layer in layers(model, variables, *inputs, **kwargs).items()}
    few = jit_once(lambda kernels: {path: low_bit[path].stored(kernel) for path, kernel in kernels.items()})
    params |= few({path: params[path] for path in low_bit})
    return {**variables, "params": traverse_util.unflatten_dict(params)}

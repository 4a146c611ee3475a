"""int8 layers: Conv and Dense that round weights and inputs as int8 kernels do, so that training adapts to it.

  Jacob et al. 2018        Quantization and training of neural networks for efficient integer-arithmetic-only inference,
                           arXiv 1712.05877, section 3
  Bengio et al. 2013       Estimating or propagating gradients through stochastic neurons for conditional computation,
                           arXiv 1308.3432: the straight-through estimator

Everything is computed in floats. Weights are whole numbers from -64 to 64 times the largest magnitude of their output
channel / 64 (train/export/onnx_int8.py says why not 127). Inputs are whole numbers from 0 to 255, minus the zero point,
times a scale. Gradients pass through the rounding, and are 0 for inputs beyond the range (Jacob, section 3).

The collection "ranges" has running extremes of each layer's input, and of each channel that a convolution computes. An
export takes the scales from it (train/export/trained_int8.py). A training call, in which the collection is mutable,
updates it. Before the first one, inputs are not rounded.

The paper folds batch normalization into the weights before it rounds them, since a scale per layer depends on it. With
a scale per output channel, rounding and folding commute: both multiply a channel and its scale by the same number.
Therefore these layers need not know which normalization follows.
"""

from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.kernels.convolution import Padding, Pair, unfused
from models.layers.conv import Conv, Dense
from models.layers.low_bit import LowBit

LEVELS = 64  # largest magnitude of a rounded weight
STEPS = 255  # steps of the range of an input
RANGES = "ranges"  # name of the collection
LEAVES = ("input_low", "input_high", "output_low", "output_high")
_zeros = nn.initializers.zeros_init()


def _straight_through(rounded: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `rounded`, with the derivative of x."""
    return lax.stop_gradient(rounded) + (x - lax.stop_gradient(x))  # the difference is 0, so no bit changes


def rounded_kernel(kernel: jax.Array) -> jax.Array:
    """Rounds a kernel [..., D] to multiples of the largest magnitude of each output channel / LEVELS.

    Rounding twice changes nothing, because LEVELS is a power of two.
    """
    scale = lax.stop_gradient(jnp.abs(kernel).max(range(kernel.ndim - 1), initial=0)) / LEVELS
    steps = jnp.round(kernel / jnp.where(scale > 0, scale, 1))
    return _straight_through(steps * scale, kernel)


def rounded_input(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Rounds x to one of STEPS + 1 values from `low` to `high`, one of which is 0; an empty range leaves x as it is.

    The result is that of ONNX's QuantizeLinear and DequantizeLinear in uint8.
    """
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    is_set = high > low
    scale = jnp.where(is_set, high - low, 1) / STEPS
    zero = jnp.round(-low / scale)
    steps = jnp.clip(jnp.round(x / scale) + zero, 0, STEPS)
    clipped = jnp.clip(x, -zero * scale, (STEPS - zero) * scale)
    return jnp.where(is_set, _straight_through((steps - zero) * scale, clipped), x)


class _Int8(LowBit):
    """Base of int8 layers.

    Attributes:
      momentum: Share of the running extremes that a training call keeps; the first call sets them.
    """

    momentum: float = 0.99

    def effective(self, kernel: jax.Array) -> jax.Array:
        return rounded_kernel(kernel)

    def stored(self, kernel: jax.Array) -> jax.Array:
        """Returns the rounded kernel, which does not change if the layer rounds it again."""
        return rounded_kernel(kernel)

    def extremes(self, name: str, x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Returns the running extremes "`name`_low" and "`name`_high" of x over axes, updated in a training call."""
        shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
        low, high = (
            self.variable(RANGES, f"{name}_{side}", _zeros, None, shape, jnp.float32) for side in ("low", "high")
        )
        if self.is_mutable_collection(RANGES) and not self.is_initializing():
            x = lax.stop_gradient(x).astype(jnp.float32)
            is_first = jnp.all(low.value == high.value)
            for running, batch in ((low, x.min(axes)), (high, x.max(axes))):
                mixed = self.momentum * running.value + (1 - self.momentum) * batch
                running.value = jnp.where(is_first, batch, mixed)
        return low.value, high.value

    def rounded(self, x: jax.Array) -> jax.Array:
        """Rounds an input of the layer to its running range."""
        extremes = self.extremes("input", x, tuple(range(x.ndim)))
        # Otherwise XLA rounds again for each tap of a depthwise convolution
        return unfused(rounded_input(x.astype(jnp.float32), *extremes).astype(x.dtype))


class Int8Conv(_Int8, Conv):
    """Convolution with weights and inputs of 8 bits; see the module."""

    def convolve(self, x: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding, dilation: Pair) -> jax.Array:
        y = super().convolve(self.rounded(x), kernel, strides, padding, dilation)
        self.extremes("output", y, (0, 1, 2))
        return y


class Int8Dense(_Int8, Dense):
    """Dense layer with weights and inputs of 8 bits; see the module."""

    def multiply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return super().multiply(self.rounded(x), kernel)


def with_ranges(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns arrays by path for a network whose layers differ in having ranges.

    Args:
      arrays: Arrays by path.
      shapes: Shapes of the network's arrays by path. Missing ranges are empty; ranges of no layer are left out.
    """
    kept = {name: array for name, array in arrays.items() if not _is_range(name) or name in shapes}
    missing: Iterable[str] = (name for name in shapes if _is_range(name) and name not in arrays)
    return kept | {name: np.zeros(shapes[name], np.float32) for name in missing}


def _is_range(name: str) -> bool:
    return name.rpartition("/")[2] in LEAVES

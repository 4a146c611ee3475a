"""Convolutions and matrix products that skip the zero blocks of a kernel, by blocks.cc, for inference on CPUs.

A block is `SIZE` neighboring output features of one tap and one input channel: a vector of the native loops. Only
blocks with a weight that is not 0 are stored and multiplied. Sums have the order of conv.cc, so that without a bias,
results equal those of its dense loops to the bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.kernels import lowerings, native
from models.kernels.convolution import Padding, Pair
from models.kernels.tracing import plain_wanted, platform

SIZE = 16  # kBlock in blocks.cc


class Blocks(NamedTuple):
    """The nonzero blocks of a kernel [kh, kw, C / groups, D] or [C, D], by output features, then taps, then inputs.

    Attributes:
      weights: float32 [M, SIZE].
      indices: int32 [M], tap and input of a block: tap C / groups + input.
      starts: int32 [D / SIZE + 1], the first block of each vector of features, and M.
      bias: float32 [D], added to the result.
    """

    weights: np.ndarray | jax.Array
    indices: np.ndarray | jax.Array
    starts: np.ndarray | jax.Array
    bias: np.ndarray | jax.Array


def nonzero(kernel: np.ndarray) -> np.ndarray:
    """Returns whether blocks have a weight that is not 0: bool [kh, kw, C / groups, D / SIZE] or [C, D / SIZE]."""
    return (kernel.reshape(*kernel.shape[:-1], -1, SIZE) != 0).any(-1)


def pack(kernel: np.ndarray, bias: np.ndarray | None = None) -> Blocks:
    """Returns the nonzero blocks of a kernel, whose last axis must be a multiple of SIZE, with a bias or 0."""
    rows = kernel.reshape(-1, kernel.shape[-1] // SIZE, SIZE).swapaxes(0, 1)  # [D / SIZE, taps inputs, SIZE]
    vectors, indices = np.nonzero((rows != 0).any(-1))
    starts = np.searchsorted(vectors, np.arange(len(rows) + 1))
    weights = np.asarray(rows[vectors, indices], np.float32)
    bias = np.zeros(kernel.shape[-1]) if bias is None else bias
    return Blocks(weights, indices.astype(np.int32), starts.astype(np.int32), np.asarray(bias, np.float32))


def convolve(
    x: jax.Array, blocks: Blocks, size: Pair, strides: Pair, padding: Padding, dilation: Pair, groups: int = 1
) -> jax.Array:
    """Returns the convolution of images, plus the bias; on a CPU with native code only.

    Args:
      x: [N, H, W, C], float32.
      blocks: The nonzero blocks of the kernel.
      size: (kh, kw).
      strides: See `models.kernels.convolution.conv2d`.
      padding: At least 0.
      dilation: See `conv2d`.
      groups: See `conv2d`.

    Returns:
      [N, H', W', D].
    """
    features = (len(blocks.starts) - 1) * SIZE
    shape = (len(x), *lowerings.output_sizes(x.shape[1:3], size, strides, padding, dilation), features)
    run = jax.ffi.ffi_call("ablate_conv_blocks", jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential")
    pairs = {"size": size, "strides": strides, "low": [low for low, _ in padding], "dilation": dilation}
    attributes = {name: np.asarray(pair, np.int64) for name, pair in pairs.items()}
    return run(x, *blocks, groups=np.int64(groups), **attributes)


def multiply(x: jax.Array, blocks: Blocks) -> jax.Array:
    """Returns the product of x [..., C], float32, with a kernel [C, D], plus the bias; see `convolve`."""
    rows = x.reshape(1, 1, -1, x.shape[-1])
    return convolve(rows, blocks, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)).reshape(*x.shape[:-1], -1)


def supports(x: jax.Array, padding: Sequence[Sequence[int]] = ()) -> bool:
    """Returns whether `convolve` takes images of this shape and type, and this padding."""
    whole = min((side for sides in padding for side in sides), default=0) >= 0
    return x.dtype == jnp.float32 and x.size > 0 and whole and platform() == "cpu" and not plain_wanted()


def available() -> bool:
    """Returns whether this process's device runs `convolve`: it is a CPU, with native code."""
    return jax.default_backend() == "cpu" and native.available()

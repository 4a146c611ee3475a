"""Pooling: averages to a given size, whatever the input's; maxima of blocks."""

import jax
import jax.numpy as jnp
from jax import lax

from models.errors import UserError


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages [N, H, W, C] over size x size cells -> [N, size, size, C], as PyTorch's AdaptiveAvgPool2d.

    Along each axis, cell i covers the places from floor(i length / size) up to ceil((i + 1) length / size): cells
    overlap where size does not divide the length, and repeat places where the length is the smaller of the two.

    Raises:
      UserError: there is no place to average.
    """
    if 0 in x.shape[1:3]:
        raise UserError(f"images are too small for this network: a map of {x.shape[1]} x {x.shape[2]} is left of them")
    for axis in (1, 2):  # a mean over a rectangle is the mean over its rows' means
        length = x.shape[axis]
        if length != size:
            bounds = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            x = jnp.stack([lax.slice_in_dim(x, *cell, axis=axis).mean(axis) for cell in bounds], axis)
    return x


def halve(x: jax.Array) -> jax.Array:
    """Maxima of 2x2 blocks: [N, H, W, C] -> [N, H // 2, W // 2, C], an odd last row or column left out.

    As max_pool, but for the gradient of equal maxima, which share it. It is elementwise work that XLA fuses, where that
    of a reduce_window is a scatter.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))

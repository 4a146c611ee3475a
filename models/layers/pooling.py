"""Pooling to a given size, whatever the input's."""

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

"""Pooling: maxima and means over square windows, and means to a fixed output size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.kernels import lowerings
from models.kernels.convolution import unfused
from models.kernels.tracing import onnx_wanted


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """Returns the maxima of size x size windows of [N, H, W, C]; padding never is the maximum.

    Raises:
      EmptyMap: The map is smaller than a window.
    """
    around = ((padding, padding), (padding, padding))
    lowerings.output_sizes(x.shape[1:3], (size, size), (stride, stride), around, (1, 1))
    if padding and onnx_wanted():  # jax2onnx 0.17 drops the padding of a window
        x, padding = jnp.pad(x, ((0, 0), *around, (0, 0)), constant_values=-jnp.inf), 0
    x = unfused(x)  # otherwise YNNPACK computes ReLU within the windows, against an array of zeros
    # jax2onnx takes keywords alone
    return nn.max_pool(
        x,
        window_shape=(size, size),
        strides=(stride, stride),
        padding=around if padding else "VALID",  # pyright: ignore[reportArgumentType]  flax annotates str
    )


def avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Returns the means of size x size windows of [N, H, W, C], which do not overlap.

    Raises:
      EmptyMap: The map is smaller than a window.
    """
    lowerings.output_sizes(x.shape[1:3], (size, size), (size, size), ((0, 0), (0, 0)), (1, 1))
    return nn.avg_pool(x, window_shape=(size, size), strides=(size, size), padding="VALID")


def adaptive_avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Averages [N, H, W, C] over size x size cells to [N, size, size, C], like PyTorch's AdaptiveAvgPool2d.

    Along each axis, cell i covers the positions from floor(i length / size) up to ceil((i + 1) length / size). Cells
    overlap if size does not divide the length, and repeat positions if the length is less than size.

    Raises:
      EmptyMap: The map is empty.
    """
    if 0 in x.shape[1:3]:
        raise lowerings.EmptyMap(x.shape[1:3])
    for axis in (1, 2):  # a mean over a rectangle is the mean over its rows' means
        length = x.shape[axis]
        if length != size:
            bounds = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            x = jnp.stack([lax.slice_in_dim(x, *cell, axis=axis).mean(axis) for cell in bounds], axis)
    return x

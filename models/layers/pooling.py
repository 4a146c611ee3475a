"""Pooling: maxima and means over square windows, and means to a fixed output size."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.kernels import lowerings
from models.kernels.convolution import unfused
from models.kernels.derivatives import custom_vjp
from models.kernels.tracing import onnx_wanted, plain_wanted, platform

_FEW = 5  # size up to which the gradient of a maximum on a GPU is a sum over the positions of a window


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """Returns the maxima of size x size windows of [N, H, W, C]; padding never is the maximum.

    Raises:
      EmptyMap: The map is smaller than a window.
    """
    around = ((padding, padding), (padding, padding))
    lowerings.output_sizes(x.shape[1:3], (size, size), (stride, stride), around, (1, 1))
    if platform() == "gpu" and size <= _FEW and not plain_wanted():
        return _max_pool(x, x.shape[1:3], size, stride, padding)
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


@functools.partial(custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x, lengths, size, stride, padding):
    """Returns `max_pool` of x [N, *lengths, C] with a gradient for GPUs.

    XLA computes its own gradient there by a scatter over the whole map. This one is one loop: the forward pass keeps
    for each window the number of the first position, row by row, that has the maximum, as a byte. It gets the gradient.
    """
    return _max_pool_forward(x, lengths, size, stride, padding)[0]


def _max_pool_forward(x, lengths, size, stride, padding):
    around = ((padding, padding), (padding, padding))
    shape = lowerings.output_sizes(lengths, (size, size), (stride, stride), around, (1, 1))
    border = ((0, 0, 0), *((low, high, 0) for low, high in around), (0, 0, 0))
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), border)
    y = lowerings.window(padded, 0, 0, shape, (stride, stride))
    place = jnp.zeros(y.shape, jnp.uint8)
    for number, (row, column) in enumerate(itertools.product(range(size), repeat=2)):
        new = lowerings.window(padded, row, column, shape, (stride, stride))
        place = jnp.where(new > y, jnp.uint8(number), place)
        y = jnp.maximum(y, new)
    return y, place


def _max_pool_backward(lengths, size, stride, padding, place, dy):
    dx = jnp.zeros((), jnp.promote_types(dy.dtype, jnp.float32))
    for number, tap in enumerate(itertools.product(range(size), repeat=2)):
        part = jnp.where(place == number, dy, jnp.zeros_like(dy)).astype(dx.dtype)
        edges = []  # of the map around the positions that this tap sees
        for offset, length, count in zip(tap, lengths, dy.shape[1:3], strict=True):
            low = offset - padding
            edges.append((low, length - low - (count - 1) * stride - 1, stride - 1))
        dx += lax.pad(part, jnp.zeros((), dx.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return (dx.astype(dy.dtype),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


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

"""Normalization of pixels by the mean and standard deviation of each channel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from models.errors import UserError, has_type


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std, computed in float32.

    Args:
      images: pixels on the scale 0..255, [..., C].
      mean: one value for each channel, or one for all, on the scale 0..1.
      std: standard deviations, as `mean`.

    Raises:
      UserError: `mean` or `std` has another number of values, or `std` is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        check_color(name, values, images.shape[-1])
    if min(std) <= 0:
        raise UserError(f"data.std={tuple(std)} must be positive")
    images = images.astype(jnp.float32) / 255
    return (images - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


def check_color(name: str, values: Sequence[float], channels: int) -> None:
    """Raises UserError unless `values` has one number, or one per channel (3 would turn 1 channel into 3)."""
    numbers = isinstance(values, (tuple, list)) and all(has_type(value, float) for value in values)
    if not numbers or len(values) not in (1, channels):
        raise UserError(f"data.{name}={values}: must be a tuple of 1 number, or of 1 per channel (here {channels})")

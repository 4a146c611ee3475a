"""The parts that all augmentations share: an operation on one image, the images that it receives, its checks."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation on one image.

    Attributes:
      apply: (key, uint8 [H, W, C]) -> uint8 [H, W, C].
      branches: True if it picks one of several operations by the key.
      entry: name of a batch entry. `apply` receives its value for the example instead of a random key. "" for none.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    branches: bool = False
    entry: str = ""


@dataclasses.dataclass(frozen=True)
class Site:
    """The images that an operation receives: their shape, and the color to fill holes with."""

    height: int
    width: int
    channels: int
    color: np.ndarray  # uint8 [C]


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_share(p: float) -> None:
    """Raises ValueError unless `p` is a probability."""
    require(0 <= p <= 1, f"p={p} is not a probability")


def require_color(site: Site) -> None:
    """Raises ValueError unless the images are gray or RGB."""
    require(site.channels in (1, 3), f"needs images with 1 or 3 channels, not {site.channels}")

"""Tables of the operations that a policy draws from, with their strengths by magnitude, as torchvision has them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import operations
from train.data.augment.operations import NAMES, SIGNED


class Space(NamedTuple):
    """Operations with strengths by magnitude.

    Attributes:
      ops: number of each operation in `operations.NAMES`, int32 [ops].
      strengths: float32 [ops, magnitudes]; see `operations.apply`.
      signed: whether an operation has two directions, bool [ops].
    """

    ops: np.ndarray
    strengths: np.ndarray
    signed: np.ndarray

    def apply(
        self, image: jax.Array, which: jax.Array, magnitude: jax.Array | int, sign: jax.Array, smooth: bool = False
    ) -> jax.Array:
        """Applies operation `which` of the space with a magnitude and, where it has two directions, a sign of +-1."""
        strength = jnp.asarray(self.strengths)[which, magnitude]
        strength = jnp.where(jnp.asarray(self.signed)[which], sign * strength, strength)
        return operations.apply(image, jnp.asarray(self.ops)[which], strength, smooth=smooth)


def space(
    names: Sequence[str],
    magnitudes: int,
    *,
    shear: float,
    translate: tuple[float, float],
    rotate: float,
    enhance: float,
    bits: tuple[int, int],
) -> Space:
    """Returns a space whose strengths grow linearly with the magnitude, from nothing to the largest.

    Args:
      names: the operations.
      magnitudes: number of magnitudes.
      shear: the largest shear, in pixels per pixel.
      translate: the largest translations along x and y in pixels, of which whole pixels count.
      rotate: the largest rotation, in degrees.
      enhance: the largest distance of a factor from 1.
      bits: bits that posterize keeps at the first magnitude, and how many fewer at the last.
    """
    largest = {
        "shear_x": shear, "shear_y": shear, "translate_x": translate[0], "translate_y": translate[1], "rotate": rotate,
        "brightness": enhance, "color": enhance, "contrast": enhance, "sharpness": enhance,
    }  # fmt: skip
    rows = []
    for name in names:
        row = linear(0.0, largest.get(name, 0.0), magnitudes)
        if name.startswith("translate"):
            row = np.trunc(row)
        elif name == "solarize":
            row = linear(255.0, 0.0, magnitudes)
        elif name == "posterize":
            row = bits[0] - np.round(np.arange(magnitudes) / ((magnitudes - 1) / bits[1]))
        rows.append(row)
    return Space(
        np.array([NAMES.index(name) for name in names], np.int32),
        np.array(rows, np.float32),
        np.array([name in SIGNED for name in names]),
    )


def linear(start: float, stop: float, count: int) -> np.ndarray:
    """Returns evenly spaced numbers, float32 [count], rounded as torch.linspace rounds: counted from the nearer end.

    The rounding matters where a translation is just a whole number of pixels.
    """
    step, index = float(np.float32(stop - start) / np.float32(count - 1)), np.arange(count)
    # Products and sums are rounded once, together, as by fused instructions
    return np.where(index < count // 2, start + step * index, stop - step * (count - 1 - index)).astype(np.float32)

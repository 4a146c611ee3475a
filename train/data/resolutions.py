"""Sizes of training images over time, from one line of a config: data.resolutions="128@0%|160@40%|224@70%".

Each part is a size in pixels and the duration after which it begins; "160" stands for 160@0%. Evaluation is always at
data.image_size. Small images first make training cheaper (Howard 2018; Tan 2021, arXiv 2104.00298, section 4), and a
network that was trained at a smaller size than it is tested at sees objects of the same apparent size (Touvron 2019,
arXiv 1906.06423).
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.errors import UserError

_PART = re.compile(r"\s*(\d+)\s*(?:@(.+))?", re.ASCII)
LARGEST = 2**14


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a batch's images, which is part of the compiled program instead of an array."""

    pixels: int


class Resolution(NamedTuple):
    """A size, and the steps `start` … `end` - 1 that have it."""

    size: int
    start: int
    end: int


class Resolutions(NamedTuple):
    """The sizes of a whole training; none if data.resolutions is empty."""

    parts: tuple[Resolution, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes, the largest first."""
        return tuple(sorted({part.size for part in self.parts}, reverse=True))

    @property
    def heaviest_step(self) -> int:
        """The first step of the largest size."""
        return max(self.parts, key=lambda part: part.size).start if self.parts else 0

    def at(self, step: int, total: int) -> tuple[dict[str, Size], int]:
        """Returns the entry of items for the size at a step, and the step before `total` at which it ends."""
        for part in self.parts:
            if step < part.end:
                return {"size": Size(part.size)}, min(part.end, total)
        return {}, total


def parse(text: str, to_steps: Callable[[str], int], total: int) -> Resolutions:
    """Parses data.resolutions.

    Args:
      text: the value.
      to_steps: converts durations to steps.
      total: steps of the whole training.

    Raises:
      UserError: the text does not have this form, does not begin at 0, or is not increasing in time.
    """
    if not text.strip():
        return Resolutions()
    name, sizes, starts = f"data.resolutions='{text}'", [], []
    for part in text.split("|"):
        match = _PART.fullmatch(part)
        if not match or not 1 <= int(match[1]) <= LARGEST:
            raise UserError(
                f"cannot read {name} at '{part.strip()}': write SIZE@DURATION, with '|' between several, as in "
                f"128@0%|160@40%, and sizes in [1, {LARGEST:,}]"
            )
        sizes.append(int(match[1]))
        starts.append(to_steps((match[2] or "0%").strip()))
    if starts[0] != 0:
        raise UserError(f"{name}: the first size must begin at 0%, not at step {starts[0]:,}")
    for size, before, after in zip(sizes[1:], starts, starts[1:], strict=False):
        if after <= before:
            raise UserError(f"{name}: {size} begins at step {after:,}, and the size before it at step {before:,}")
    if starts[-1] >= total:
        raise UserError(f"{name}: {sizes[-1]} begins at step {starts[-1]:,}, but the training has {total:,} steps")
    return Resolutions(tuple(map(Resolution, sizes, starts, [*starts[1:], total])))


def resized(images: jax.Array, size: int) -> jax.Array:
    """Returns images uint8 [N, size, size, C], bilinear and antialiased, in the compiled step."""
    if images.shape[1:3] == (size, size):
        return images
    shape = (images.shape[0], size, size, images.shape[3])
    return jnp.round(jax.image.resize(images.astype(jnp.float32), shape, "linear")).astype(jnp.uint8)

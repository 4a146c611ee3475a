"""Images with one of the corruptions of CIFAR-10-C and ImageNet-C, made when they are read."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models import plugins
from models.errors import choice_error
from train.data import classes
from train.data.corruptions.severities import NAMES, SEVERITIES
from train.data.source import Indices, Label, Source, Stored, Wrapped

SMALLEST = 8  # pixels of the shorter side: smaller pictures have no room for pixels, waves and flakes
IN_COLOR = ("saturate",)  # corruptions that leave gray images as they are


def check(name: str, severity: int, shape: Sequence[int]) -> None:
    """Checks that a corruption exists and fits images of a shape (H, W, C).

    Raises:
      UserError: The corruption is unknown.
      ValueError: There is no such severity, the images are too small or have other channels than gray or RGB, or they
        are gray and the corruption only changes colors.
    """
    if name not in NAMES:
        raise choice_error("corruption", name, NAMES)
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity} must be one of {', '.join(map(str, SEVERITIES))}")
    height, width, channels = shape
    if min(height, width) < SMALLEST:
        raise ValueError(f"images of {height}x{width} are too small for corruptions, which need {SMALLEST}x{SMALLEST}")
    if channels not in (1, 3):
        raise ValueError(f"images of {channels} channels cannot be corrupted; allowed: 1 or 3")
    if name in IN_COLOR and channels == 1:
        raise ValueError(f"{name} changes colors, but the images are gray")


def generator(name: str, severity: int, index: int, seed: int = 0) -> np.random.Generator:
    """Returns the generator of one image's corruption, which depends on nothing else."""
    return np.random.default_rng([seed, 74, NAMES.index(name), severity, index])


def numbers_of(source: Source) -> np.ndarray | None:
    """Returns the number of each image in its split, int [N], where `source` is a selection; otherwise None."""
    if isinstance(source, Corrupted):
        return source.numbers
    if isinstance(source, classes.Renumbered) and (numbers := numbers_of(source.source)) is not None:
        return numbers[source.index]
    return getattr(source, "index", None)


class Corrupted(Wrapped):
    """The images of a source with a corruption, which acts on the pixels after decoding and cropping.

    Attributes:
      corruption: (name, severity, seed).
      numbers: Number of each image by which its randomness is keyed, int [N].
    """

    def __init__(
        self, source: Source, name: str, severity: int, seed: int = 0, numbers: Sequence[int] | np.ndarray | None = None
    ):
        """Checks the corruption against the images.

        Args:
          source: The images.
          name: One of `severities.NAMES`.
          severity: 1 to 5.
          seed: Of all randomness, with the images' numbers.
          numbers: Number of each image, by default its index. A part of a set keeps the numbers of the set, so that
            its images are corrupted as in the whole set.

        Raises:
          UserError: The corruption is unknown.
          ValueError: It does not fit the images; see `check`.
        """
        check(name, severity, source.image_shape)
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
        super().__init__(source, len(source))
        self.label_shape = source.label_shape
        self.corruption = name, severity, seed
        self.numbers = np.arange(len(source)) if numbers is None else np.asarray(numbers)
        if files := getattr(source, "files", None):
            self.files = files

    @property
    def how(self) -> Any:
        return *self.corruption, self.numbers.tobytes(), self.source.how

    def fetch(self, indices: Indices) -> Sequence[tuple[Stored, Label]]:
        return self.source.fetch(indices)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def known_labels(self) -> np.ndarray | None:
        return self.source.known_labels()

    def decode(self, index: int, stored: Stored, rng: np.random.Generator | None) -> np.ndarray:
        name, severity, seed = self.corruption
        own = generator(name, severity, int(self.numbers[index]), seed)
        pixels = self.source.decode(index, stored, rng)
        # Imported here, since SciPy is slow to import, and few runs need it
        return plugins.imported("train.data.corruptions.functions:apply")(pixels, name, severity, own)

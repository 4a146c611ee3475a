"""Backgrounds of gray images: whether a training set is light on dark, as digits are, or dark on light, as paper is.

A network that has seen one knows nothing of the other. Files of users are inverted to match (`matched`).
"""

from collections.abc import Mapping

import numpy as np

from models.errors import UserError
from train.data.identity import sample
from train.data.source import Source

_RANGES: Mapping[str, tuple[int, int]] = {"dark": (0, 63), "light": (192, 255)}  # levels of a border
_SHARE = 0.95  # of the training images, to call it the background of all


def border(pixels: np.ndarray) -> float:
    """Returns the median level of the outermost pixels of an image [H, W, 1]."""
    image = pixels[..., 0]
    return float(np.median(np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])))


def of_training(source: Source) -> str:
    """Returns "dark" or "light" if nearly all of 64 training images have such borders, and "" if not.

    Images with colors have none: the inverse of a photograph is no photograph.
    """
    if source.image_shape[2] != 1:
        return ""
    levels = []
    for index in sample(len(source)):
        try:
            levels.append(border(source.example(index, None)["image"]))
        except UserError:  # reading the data in training reports the image, or skips it
            continue
    for name, (low, high) in _RANGES.items():
        if levels and np.mean([low <= level <= high for level in levels]) >= _SHARE:
            return name
    return ""


def matched(pixels: np.ndarray, background: str) -> tuple[np.ndarray, bool]:
    """Returns an image uint8 [H, W, C], inverted if its border is on the other side of gray, and whether it was.

    Args:
      pixels: the image.
      background: of the training images, from `of_training`.
    """
    if not background or (border(pixels) > 127) == (background == "light"):
        return pixels, False
    return 255 - pixels, True

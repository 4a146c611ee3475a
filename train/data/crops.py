"""Boxes of crops: random ones for training, and the central one for evaluation."""

import math

import numpy as np

Crop = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the original image
Range = tuple[float, float]  # low, high


def random_box(width: int, height: int, rng: np.random.Generator, scale: Range, ratio: Range) -> Crop:
    """Returns a crop of random area and aspect ratio (Szegedy 2015, section 6).

    As in torchvision, ten tries are made before it falls back to a central crop.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def part_of_whole(width: int, height: int, rng: np.random.Generator, scale: Range) -> Crop:
    """Returns a crop of random area with the image's aspect ratio: a square once the image is squeezed to a square."""
    share = math.sqrt(rng.uniform(*scale))
    left, top = ((1 - share) * rng.uniform(0, side) for side in (width, height))
    return left, top, left + share * width, top + share * height


def resized(width: int, height: int, size: int, eval_crop: float) -> tuple[int, int]:
    """Returns the width and height of a picture whose shorter side is resized to size / eval_crop."""
    short = int(size / eval_crop)
    return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def center(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Returns the left and top pixel of the central square of `size` in a picture of (width, height)."""
    return round((sides[0] - size) / 2), round((sides[1] - size) / 2)


def central_box(width: int, height: int, size: int, eval_crop: float) -> Crop:
    """Returns the box that is left by resizing the shorter side to size / eval_crop and cropping the center.

    Whole pixels are rounded where torchvision's Resize and CenterCrop round, so that results agree to one level.
    """
    new_width, new_height = resized(width, height, size, eval_crop)
    left, top = center((new_width, new_height), size)
    x, y = width / new_width, height / new_height
    return left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)

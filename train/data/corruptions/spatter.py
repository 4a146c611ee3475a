"""Drops of water or mud on the lens.

The water's relief is made as Hendrycks' code makes it with OpenCV: edges of the drops (Canny 1986), the distance from
them, equalized, and lit from one side.
"""

from typing import Any

import numpy as np
from scipy import ndimage

from train.data.corruptions import filters

WATER, MUD = (175, 238, 238), (63, 42, 20)  # pale turquoise and brown, as RGB levels
LIGHT = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
FARTHEST = 20  # pixels from an edge from which on a drop is flat
LOW, HIGH = 50, 150  # thresholds of the gradient
UNIT = 2**16  # of lengths, per pixel
LENGTHS = {1: 1, 2: 1.4, 5: 2.1969}  # OpenCV's lengths of a step to a neighbor, a diagonal one, and a knight's move
STEPS = {
    (y, x): round(LENGTHS[y * y + x * x] * UNIT) for y in range(-2, 3) for x in range(-2, 3) if y * y + x * x in LENGTHS
}


def spatter(pixels: np.ndarray, values: Any, rng: np.random.Generator) -> np.ndarray:
    """Covers uint8 [H, W, C] with drops; returns float [H, W, C] in [0, 1]."""
    mean, deviation, blur, threshold, strength, is_mud = values
    image = pixels.astype(np.float32) / np.float32(255)
    liquid = filters.gaussian(rng.normal(mean, deviation, pixels.shape[:2]), blur)
    liquid[liquid < threshold] = 0
    if is_mud:
        cover = filters.gaussian((liquid > threshold).astype(np.float32), strength)[..., None]
        cover[cover < 0.8] = 0
        return image * (1 - cover) + _color(MUD, pixels.shape[2]) * cover
    levels = (liquid * 255).astype(np.uint8)
    light = levels * _relief(levels)
    return image + strength * (light / max(light.max(), 1))[..., None] * _color(WATER, pixels.shape[2])


def _color(levels: tuple[int, ...], channels: int) -> np.ndarray:
    color = np.array(levels, np.float32).reshape(1, 1, 3) / 255
    return color if channels == 3 else filters.luma(color)


def _relief(levels: np.ndarray) -> np.ndarray:
    """Returns the light on drops of these thicknesses, float [H, W] on the scale of levels."""
    equal = _equalized(_mean(_distance(_edges(levels))).astype(np.uint8))
    return np.rint(_mean(np.clip(ndimage.correlate(equal.astype(int), LIGHT, mode="mirror"), 0, 255)))


def _edges(levels: np.ndarray) -> np.ndarray:
    """Returns True at edges: ridges of the gradient above LOW that touch one above HIGH."""
    padded = np.pad(levels.astype(int), 1, mode="edge")
    right, down = (ndimage.sobel(padded, axis)[1:-1, 1:-1] for axis in (1, 0))
    size = np.pad(abs(right) + abs(down), 1)

    def neighbor(y: int, x: int) -> np.ndarray:
        return size[1 + y : size.shape[0] - 1 + y, 1 + x : size.shape[1] - 1 + x]

    own, slope = neighbor(0, 0), 13573  # tan(22.5 degrees) in units of 2^-15
    flat, steep = abs(right) * slope, abs(right) * (slope + 2**16)
    across = (own > neighbor(0, -1)) & (own >= neighbor(0, 1))
    along = (own > neighbor(-1, 0)) & (own >= neighbor(1, 0))
    falling = (own > neighbor(-1, -1)) & (own > neighbor(1, 1))
    rising = (own > neighbor(-1, 1)) & (own > neighbor(1, -1))
    diagonal = np.where((right < 0) != (down < 0), rising, falling)
    rate = abs(down) * 2**15
    ridge = (own > LOW) & np.where(rate < flat, across, np.where(rate > steep, along, diagonal))
    labeled: Any = ndimage.label(ridge, np.ones((3, 3)))
    parts = labeled[0]
    return ridge & np.isin(parts, np.unique(parts[ridge & (own > HIGH)]))


def _distance(edges: np.ndarray) -> np.ndarray:
    """Returns OpenCV's distance to the nearest edge, up to FARTHEST: the length of a path of STEPS, float32 [H, W]."""
    height, width = edges.shape
    farthest = FARTHEST * UNIT
    distance = np.where(edges, 0, farthest)
    while True:
        padded, shorter = np.pad(distance, 2, constant_values=farthest), distance
        for (down, right), length in STEPS.items():
            shorter = np.minimum(shorter, padded[2 + down :, 2 + right :][:height, :width] + length)
        if np.array_equal(shorter, distance):
            return (distance / UNIT).astype(np.float32)
        distance = shorter


def _mean(image: np.ndarray) -> np.ndarray:
    """Returns the mean of 3x3 pixels around each, float32 [H, W]."""
    return (ndimage.correlate(image.astype(float), np.ones((3, 3)), mode="mirror") * (1 / 9)).astype(np.float32)


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Spreads uint8 levels so that all are about equally frequent, as `cv2.equalizeHist` does."""
    counts = np.bincount(levels.ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    if counts[first] == levels.size:
        return levels
    above = np.cumsum(counts) - counts[first]
    return np.rint(above * (255 / (levels.size - counts[first]))).clip(0, 255).astype(np.uint8)[levels]

"""Image filters that several corruptions share, on float arrays [H, W, C].

They give what OpenCV, scikit-image and ImageMagick give where Hendrycks' code calls these.
"""

import math

import numpy as np
from scipy import ndimage


def gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs height and width, as `skimage.filters.gaussian` does."""
    return ndimage.gaussian_filter(image, (sigma, sigma, *[0] * (image.ndim - 2)), mode="nearest")


def correlate(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Applies a kernel [h, w] to each channel, as `cv2.filter2D` does."""
    return ndimage.correlate(image, kernel.reshape(*kernel.shape, *[1] * (image.ndim - 2)), mode="mirror")


def disk(radius: float, softness: float) -> np.ndarray:
    """Returns the kernel of a lens out of focus: a disk whose rim is blurred by `softness` pixels, cut to its size."""
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    along = np.arange(-reach, reach + 1)
    inside = (along[:, None] ** 2 + along**2 <= radius**2).astype(np.float32)
    inside /= inside.sum()
    places = np.arange(taps) - taps // 2
    bell = np.exp(-(places**2) / (2 * softness**2))
    bell /= bell.sum()
    for axis in (0, 1):
        inside = ndimage.correlate1d(inside, bell, axis, mode="mirror")
    margin = max(0, reach - math.floor(radius) - taps // 2)  # zeros, which would only cost time
    return inside[margin : len(inside) - margin, margin : len(inside) - margin]


def motion(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blurs by a motion along a line, as ImageMagick's motion blur does; borders are repeated.

    Args:
      image: [H, W, C].
      radius: The line has 2 * radius + 1 pixels.
      sigma: Standard deviation, in pixels, of the half of a bell that weights them.
      angle: Direction in degrees, clockwise from the right.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    direction = math.radians(angle)
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in (math.sin(direction), math.cos(direction)))
    height, width = image.shape[:2]
    blurred = np.zeros_like(image)
    for weight, y, x in zip(weights, down, right, strict=True):
        rows, columns = np.clip(np.arange(height) + y, 0, height - 1), np.clip(np.arange(width) + x, 0, width - 1)
        blurred += weight * image[rows[:, None], columns]
    return blurred


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarges the center of an image [H, W, C] to its whole size, by linear interpolation, as `ndimage.zoom` does."""
    rows, columns = (_places(side, factor) for side in image.shape[:2])
    low, part = np.floor(rows).astype(int), (rows % 1)[:, None, None]
    tall = image[low] * (1 - part) + image[np.minimum(low + 1, len(image) - 1)] * part
    low, part = np.floor(columns).astype(int), (columns % 1)[:, None]
    return (tall[:, low] * (1 - part) + tall[:, np.minimum(low + 1, len(columns) - 1)] * part).astype(image.dtype)


def _places(side: int, factor: float) -> np.ndarray:
    """Returns where in a row of pixels those of its enlarged center lie, float [side]."""
    part = math.ceil(side / factor)
    large = round(part * factor)
    return (np.arange(large) * ((part - 1) / (large - 1)))[(large - side) // 2 :][:side] + (side - part) // 2


def plasma(shape: tuple[int, ...], decay: float, rng: np.random.Generator) -> np.ndarray:
    """Returns clouds in [0, 1], float [H, W], by the diamond-square algorithm (Fournier 1982).

    Args:
      shape: (H, W, …).
      decay: How much smoother each finer level is than the last.
      rng: Generator of the displacements.
    """
    side = step = 2 ** math.ceil(math.log2(max(shape[:2])))
    heights, rough = np.zeros((side, side)), 100.0

    def displaced(total: np.ndarray) -> np.ndarray:
        return total / 4 + rough * rng.uniform(-rough, rough, total.shape)

    while step >= 2:
        corners, half = heights[::step, ::step], step // 2
        rows = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = displaced(rows + np.roll(rows, -1, 1))
        centers = heights[half::step, half::step]
        heights[::step, half::step] = displaced(centers + np.roll(centers, 1, 0) + (corners + np.roll(corners, -1, 1)))
        heights[half::step, ::step] = displaced(centers + np.roll(centers, 1, 1) + rows)
        step, rough = half, rough / decay
    heights -= heights.min()
    return (heights / heights.max())[: shape[0], : shape[1]]


def hsv_of(rgb: np.ndarray) -> np.ndarray:
    """Converts RGB in [0, 1] to hue, saturation and value, all in [0, 1]."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    value, span = rgb.max(-1), np.ptp(rgb, -1)
    divisor = np.where(span == 0, 1, span)
    hue = np.select(
        [span == 0, blue == value, green == value],
        [0.0, 4 + (red - green) / divisor, 2 + (blue - red) / divisor],
        (green - blue) / divisor,
    )
    return np.stack([hue / 6 % 1, np.where(span == 0, 0, span / np.where(value == 0, 1, value)), value], -1)


def rgb_of(hsv: np.ndarray) -> np.ndarray:
    """Converts hue, saturation and value to RGB, all in [0, 1]."""
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    sector = np.floor(hue * 6)
    part = hue * 6 - sector
    low, falling = value * (1 - saturation), value * (1 - part * saturation)
    rising = value * (1 - (1 - part) * saturation)
    choices = (
        (value, rising, low), (falling, value, low), (low, value, rising),
        (low, falling, value), (rising, low, value), (value, low, falling),
    )  # fmt: skip
    number = sector.astype(int) % 6
    return np.stack([np.choose(number, [choice[channel] for choice in choices]) for channel in range(3)], -1)


def luma(image: np.ndarray) -> np.ndarray:
    """Returns the brightness [H, W, 1] of an image [H, W, C] of 1 or 3 channels."""
    return image @ np.array([[0.299], [0.587], [0.114]], image.dtype) if image.shape[2] == 3 else image

"""The corruptions: functions (pixels, values, rng) -> corrupted pixels.

`pixels` are uint8 [H, W, C], of 1 or 3 channels; `values` are an entry of severities.py. The result is uint8, or
float in [0, 1] and possibly beyond, which `apply` clips. Random numbers are drawn in the order of Hendrycks'
code, so that equal draws give equal images.
"""

import io
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from train.data.corruptions import filters
from train.data.corruptions.severities import constants
from train.data.corruptions.spatter import spatter
from train.data.decode import Decoder

Rng = np.random.Generator

# Of the five photographs of frost that Hendrycks' code uses, on the scale 0 to 1: the mean color, the range of their
# means relative to it, and the deviation within a patch (0.08 in 32x32 at a fifth of their size, more in larger ones)
FROST_COLOR, FROST_RANGE, FROST_DEVIATION = (0.57, 0.66, 0.70), (0.75, 1.25), 0.1


def _units(pixels: np.ndarray) -> np.ndarray:
    return pixels / 255.0


def gaussian_noise(pixels: np.ndarray, deviation: float, rng: Rng) -> np.ndarray:
    """Adds noise, as in poor light."""
    return _units(pixels) + rng.normal(size=pixels.shape, scale=deviation)


def shot_noise(pixels: np.ndarray, photons: float, rng: Rng) -> np.ndarray:
    """Counts photons."""
    return rng.poisson(_units(pixels) * photons) / photons


def impulse_noise(pixels: np.ndarray, share: float, rng: Rng) -> np.ndarray:
    """Sets values to black or white: salt and pepper."""
    image = _units(pixels)
    flipped, salted = rng.random(image.shape) <= share, rng.random(image.shape) <= 0.5
    return np.where(flipped, salted.astype(float), image)


def speckle_noise(pixels: np.ndarray, deviation: float, rng: Rng) -> np.ndarray:
    """Adds noise in proportion to the value."""
    image = _units(pixels)
    return image + image * rng.normal(size=image.shape, scale=deviation)


def gaussian_blur(pixels: np.ndarray, sigma: float, rng: Rng) -> np.ndarray:
    """Blurs."""
    del rng
    return filters.gaussian(_units(pixels), sigma)


def defocus_blur(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Puts the lens out of focus."""
    del rng
    return filters.correlate(_units(pixels), filters.disk(*values))


def glass_blur(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Looks through frosted glass: pixels take the colors of random neighbors, between two blurs.

    In the paper, neighbors are swapped. Its code assigns views of one array to each other, so that the color of one
    pixel is copied over the other's; the published images were made by it, and so are these.
    """
    sigma, distance, rounds = values
    image = (filters.gaussian(_units(pixels), sigma) * 255).astype(np.uint8)
    height, width, channels = image.shape
    rows, columns = range(height - distance, distance, -1), range(width - distance, distance, -1)
    origin = list(range(height * width))  # of each pixel; the image itself would be slow to loop over
    for _ in range(rounds):
        moves = rng.integers(-distance, distance, size=(len(rows) * len(columns), 2)).tolist()
        for number, (right, down) in enumerate(moves):
            place = rows[number // len(columns)] * width + columns[number % len(columns)]
            origin[place] = origin[place + down * width + right]
    shuffled = image.reshape(-1, channels)[origin].reshape(image.shape)
    return filters.gaussian(_units(shuffled), sigma)


def motion_blur(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Moves the camera, in a random direction within 45 degrees of the horizontal."""
    radius, sigma = values
    return np.rint(filters.motion(pixels.astype(float), radius, sigma, rng.uniform(-45, 45))).astype(np.uint8)


def zoom_blur(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Moves the camera forward: the mean of the picture and enlargements of its center."""
    del rng
    end, step = values
    image = _units(pixels).astype(np.float32)
    factors = np.arange(1, end, step)
    total = np.zeros_like(image)
    for factor in factors:
        total += filters.zoom(image, factor)
    return (image + total) / (len(factors) + 1)


def snow(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Lets flakes fall over a whitened picture."""
    mean, deviation, factor, threshold, radius, sigma, share = values
    image = _units(pixels).astype(np.float32)
    flakes = filters.zoom(rng.normal(size=(*pixels.shape[:2], 1), loc=mean, scale=deviation), factor)
    flakes[flakes < threshold] = 0
    levels = (np.clip(flakes, 0, 1) * 255).astype(np.uint8).astype(float)
    flakes = np.rint(filters.motion(levels, radius, sigma, rng.uniform(-135, -45))) / 255
    whitened = share * image + (1 - share) * np.maximum(image, filters.luma(image) * 1.5 + 0.5)
    return whitened + flakes + np.rot90(flakes, 2) if _is_square(image) else whitened + flakes + flakes[::-1, ::-1]


def _is_square(image: np.ndarray) -> bool:
    return image.shape[0] == image.shape[1]


def frost(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Lays crystals of ice over the picture.

    The original mixes in photographs of frost, which are not ours to ship. These crystals are drawn: ridges of clouds,
    with the mean color and the contrast of those photographs. So errors under frost are not those of CIFAR-10-C and
    ImageNet-C, though their severities are.
    """
    of_picture, of_frost = values
    clouds = filters.plasma(pixels.shape, 1.6, rng)
    ridges = (1 - abs(2 * filters.plasma(pixels.shape, 2.0, rng) - 1)) ** 4
    ice = ridges + 0.7 * clouds
    ice = (ice - ice.mean()) / max(ice.std(), 1e-6) * FROST_DEVIATION
    color = np.array(FROST_COLOR).reshape(1, 1, 3) * rng.uniform(*FROST_RANGE)
    color = color if pixels.shape[2] == 3 else filters.luma(color)
    return of_picture * _units(pixels) + of_frost * np.clip(color + ice[..., None], 0, 1)


def fog(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Lays clouds over the picture."""
    density, decay = values
    image = _units(pixels)
    highest = image.max()
    return (image + density * filters.plasma(image.shape, decay, rng)[..., None]) * highest / (highest + density)


def brightness(pixels: np.ndarray, added: float, rng: Rng) -> np.ndarray:
    """Brightens."""
    del rng
    image = _units(pixels)
    if image.shape[2] == 1:
        return image + added
    hsv = filters.hsv_of(image)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return filters.rgb_of(hsv)


def saturate(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Makes colors paler or stronger."""
    del rng
    factor, added = values
    hsv = filters.hsv_of(_units(pixels))
    hsv[..., 1] = np.clip(hsv[..., 1] * factor + added, 0, 1)
    return filters.rgb_of(hsv)


def contrast(pixels: np.ndarray, factor: float, rng: Rng) -> np.ndarray:
    """Lowers the contrast of each channel."""
    del rng
    image = _units(pixels)
    means = image.mean((0, 1), keepdims=True)
    return (image - means) * factor + means


def elastic_transform(pixels: np.ndarray, values: Any, rng: Rng) -> np.ndarray:
    """Tilts the picture at random, and stretches small parts of it."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    distance, blur, shift = (side * share for share in values)
    image = _tilted(_units(pixels).astype(np.float32), shift, rng)
    right, down = (
        (
            ndimage.gaussian_filter(rng.uniform(-1, 1, (height, width)), blur, mode="reflect", truncate=3) * distance
        ).astype(np.float32)
        for _ in range(2)
    )
    y, x = np.indices((height, width))
    return _sampled(image, np.stack([y + down, x + right]), "reflect")


def _tilted(image: np.ndarray, shift: float, rng: Rng) -> np.ndarray:
    """Applies the affine map that shifts three corners of a central square by up to `shift` pixels each way."""
    height, width = image.shape[:2]
    x, y, half = width // 2, height // 2, min(height, width) // 3
    corners = np.array([[x + half, y + half], [x + half, y - half], [x - half, y - half]], np.float32)
    moved = corners + rng.uniform(-shift, shift, size=(3, 2)).astype(np.float32)
    # The inverse map, from (x, y, 1) in the result to (x, y) in the image
    origin = np.linalg.solve(np.column_stack([moved, np.ones(3)]).astype(float), corners.astype(float)).T
    along, down = np.arange(width), np.arange(height)[:, None]
    # As in OpenCV, places are multiples of 1/32 pixel, by integers in units of 1/1024
    places = [
        ((np.rint((row[1] * down + row[2]) * 1024) + 16 + np.rint(row[0] * along * 1024)).astype(int) >> 5) / 32
        for row in origin[::-1]
    ]
    return _sampled(image, np.stack(places), "mirror")


def _sampled(image: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    """Returns the colors at places [2, H, W] between the pixels, by linear interpolation."""
    channels = np.moveaxis(image, -1, 0)
    return np.stack([ndimage.map_coordinates(channel, places, order=1, mode=mode) for channel in channels], -1)


def pixelate(pixels: np.ndarray, share: float, rng: Rng) -> np.ndarray:
    """Lowers the resolution."""
    del rng
    height, width = pixels.shape[:2]
    small = _picture(pixels).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)).reshape(pixels.shape)


def jpeg_compression(pixels: np.ndarray, quality: int, rng: Rng) -> np.ndarray:
    """Compresses as JPEG."""
    del rng
    file = io.BytesIO()
    _picture(pixels).save(file, "JPEG", quality=quality)
    return Decoder("none", 0, pixels.shape[2])(file.getvalue())


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


FUNCTIONS = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter,
        saturate,
    )
}  # fmt: skip


def apply(pixels: np.ndarray, name: str, severity: int, rng: Rng) -> np.ndarray:
    """Returns corrupted pixels, uint8 [H, W, C]; fractions of a level are cut off, as in the published sets.

    Args:
      pixels: uint8 [H, W, C].
      name: One of FUNCTIONS.
      severity: 1 to 5.
      rng: Generator of noise, directions and clouds.
    """
    image = FUNCTIONS[name](pixels, constants(name, severity, pixels.shape), rng)
    return image if image.dtype == np.uint8 else (np.clip(image, 0, 1) * 255).astype(np.uint8)

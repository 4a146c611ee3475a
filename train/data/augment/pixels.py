"""Image operations on uint8 pixels [H, W, C], as pure JAX functions, from which augmentations are made.

They equal torchvision.transforms.functional on uint8 tensors, its truncations included, to within one level. Geometry
is equal to the pixel, except where a coordinate is a tie. Tests compare with recorded references.
"""

import jax
import jax.numpy as jnp
import numpy as np

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale (ITU-R 601)


def affine(
    image: jax.Array, matrix: jax.Array, fill: jax.Array | np.ndarray | int = 0, smooth: bool = False
) -> jax.Array:
    """Transforms an image: output pixel (x, y) is the input at matrix @ (x, y, 1), or `fill` outside.

    Args:
      image: uint8 [H, W, C].
      matrix: float [2, 3], for coordinates measured from the center of the image.
      fill: color outside the image, one number or [C].
      smooth: whether levels are interpolated linearly between pixels; if not, the nearest pixel counts.
    """
    height, width = image.shape[:2]
    x, y = jnp.arange(width) - (width - 1) / 2, (jnp.arange(height) - (height - 1) / 2)[:, None]
    column = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] + (width - 1) / 2
    row = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] + (height - 1) / 2
    fill = jnp.asarray(fill, jnp.uint8)
    if not smooth:
        return _pixels(image, jnp.round(row).astype(jnp.int32), jnp.round(column).astype(jnp.int32), fill)
    top, left = jnp.floor(row), jnp.floor(column)
    levels = jnp.zeros(image.shape, jnp.float32)
    for down in (0, 1):
        for right in (0, 1):
            weight = jnp.abs(1 - down - (row - top)) * jnp.abs(1 - right - (column - left))  # [H, W]
            corner = _pixels(image, (top + down).astype(jnp.int32), (left + right).astype(jnp.int32), fill)
            levels = levels + weight[..., None] * corner.astype(jnp.float32)
    return jnp.round(levels).astype(jnp.uint8)


def _pixels(image: jax.Array, row: jax.Array, column: jax.Array, fill: jax.Array) -> jax.Array:
    """Returns the pixels at integer positions [H, W], or `fill` outside."""
    height, width = image.shape[:2]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    flat = jnp.where(inside, row * width + column, 0)
    pixels = jnp.take(image.reshape(height * width, -1), flat, axis=0, mode="clip")  # [H, W, C]
    return jnp.where(inside[..., None], pixels, fill)


def grayscale(image: jax.Array) -> jax.Array:
    """Returns luma truncated to whole levels, [H, W, 3] -> [H, W, 1]; one channel is returned unchanged."""
    if image.shape[-1] == 1:
        return image
    luma = sum(weight * image[..., channel].astype(jnp.float32) for channel, weight in enumerate(_LUMA))
    return jnp.asarray(luma).astype(jnp.uint8)[..., None]


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales all levels: factor 0 gives black, 1 the image."""
    return _blend(image, 0.0, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the mean luma: factor 0 gives flat gray, 1 the image."""
    return _blend(image, jnp.mean(grayscale(image).astype(jnp.float32)), factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the gray image: factor 0 gives gray, 1 the image. One channel stays as it is."""
    return image if image.shape[-1] == 1 else _blend(image, grayscale(image).astype(jnp.float32), factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from a smoothed image: factor 0 gives the smoothed image, 1 the image.

    Smoothing is 3x3, with 5/13 for the center and 1/13 for each neighbor; the border keeps its pixels.
    """
    height, width = image.shape[:2]
    if height <= 2 or width <= 2:
        return image
    pixels = image.astype(jnp.float32)
    window = sum(pixels[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    smooth = jnp.round((window + 4 * pixels[1:-1, 1:-1]) / 13)
    return _blend(image, pixels.at[1:-1, 1:-1].set(smooth), factor)


def posterize(image: jax.Array, bits: jax.Array | int) -> jax.Array:
    """Keeps the highest `bits` (0..8) bits of each level."""
    return image & (256 - jnp.left_shift(1, 8 - bits)).astype(jnp.uint8)


def solarize(image: jax.Array, threshold: jax.Array | float) -> jax.Array:
    """Inverts the levels at or above `threshold`."""
    return jnp.where(image >= threshold, 255 - image, image)


def solarize_add(image: jax.Array, amount: jax.Array | float) -> jax.Array:
    """Adds `amount` to the levels below 128 (timm's solarize_add)."""
    brighter = jnp.clip(image.astype(jnp.float32) + amount, 0, 255).astype(jnp.uint8)
    return jnp.where(image < 128, brighter, image)


def invert(image: jax.Array) -> jax.Array:
    """Inverts all levels."""
    return 255 - image


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel to 0..255; a channel with a single level stays as it is."""
    pixels = image.astype(jnp.float32)
    low, high = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))  # [C]
    flat = low == high
    scale = jnp.where(flat, 1.0, 255.0 / jnp.where(flat, 1.0, high - low))
    return jnp.clip((pixels - jnp.where(flat, 0.0, low)) * scale, 0, 255).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
    """Flattens the histogram of each channel (PIL's ImageOps.equalize)."""
    height, width, channels = image.shape
    return jax.vmap(_equalize)(image.reshape(height * width, channels).T).T.reshape(image.shape)


def _equalize(levels: jax.Array) -> jax.Array:
    # The histogram is a product of one-hot matrices of the high and low four bits: scatters serialize on accelerators.
    high, low = (jax.nn.one_hot(part, 16, dtype=jnp.bfloat16) for part in (levels >> 4, levels & 15))  # [HW, 16]
    histogram = jnp.matmul(high.T, low, preferred_element_type=jnp.float32).astype(jnp.int32).reshape(256)
    last = 255 - jnp.argmax(histogram[::-1] > 0)
    step = (levels.size - histogram[last]) // 255
    below = jnp.cumsum(histogram) - histogram  # pixels with lower levels
    table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255).astype(jnp.uint8)
    return jnp.where(step == 0, levels, jnp.take(table, levels, mode="clip"))


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Rotates the hue of an RGB image by `shift`, -0.5..0.5 of the circle, in HSV."""
    red, green, blue = (image[..., channel].astype(jnp.float32) / 255 for channel in range(3))
    value, least = jnp.maximum(jnp.maximum(red, green), blue), jnp.minimum(jnp.minimum(red, green), blue)
    gray = value == least
    spread = jnp.where(gray, 1.0, value - least)
    strength = jnp.where(gray, 0.0, (value - least) / jnp.where(gray, 1.0, value))
    far_red, far_green, far_blue = ((value - channel) / spread for channel in (red, green, blue))
    turn = jnp.where(
        value == red, far_blue - far_green, jnp.where(value == green, 2 + far_red - far_blue, 4 + far_green - far_red)
    )
    turn = jnp.mod(jnp.mod(turn / 6 + 1, 1) + shift, 1)
    sector = jnp.floor(turn * 6)
    part = turn * 6 - sector
    p, q, t = (jnp.clip(value * (1 - strength * share), 0, 1) for share in (1.0, part, 1 - part))
    index = sector.astype(jnp.int32) % 6
    channels = (
        jnp.select([index == i for i in range(6)], options)
        for options in ((value, q, p, p, t, value), (t, value, value, q, p, p), (p, p, t, value, value, q))
    )
    return (jnp.stack(list(channels), -1) * (256 - 1e-3)).astype(jnp.uint8)


def _blend(image: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    pixels = image.astype(jnp.float32)
    return jnp.clip(factor * pixels + (1 - factor) * other, 0, 255).astype(jnp.uint8)

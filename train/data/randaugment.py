"""RandAugment (Cubuk 2020, arXiv 1909.13719): n operations, drawn uniformly, all with one magnitude."""

import jax
import jax.numpy as jnp

from train.data import pixels

# Strengths at magnitude 30, as in torchvision's RandAugment: shears in pixels per pixel, translations as a share of the
# width (150 of 331, the image size of AutoAugment), rotations in degrees, enhancements as the factor's distance from 1.
_SHEAR, _TRANSLATE, _ROTATE, _ENHANCE = 0.3, 150 / 331, 30.0, 0.9
OPS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_GEOMETRIC = OPS[1:6]
BINS = 30


def apply(image: jax.Array, op: jax.Array, magnitude: int, sign: jax.Array) -> jax.Array:
    """Applies one operation to an image.

    Args:
      image: uint8 [H, W, C].
      op: number of the operation in OPS.
      magnitude: 0..30.
      sign: +1 or -1, the direction of operations that have two.
    """
    strength = magnitude / BINS
    factor = 1 + sign * strength * _ENHANCE
    branches = {
        "identity": lambda: image,
        # Geometric operations share a branch, which chooses a matrix: under vmap every branch is computed
        "geometric": lambda: pixels.affine(image, _matrix(image.shape[0], image.shape[1], op - 1, strength, sign)),
        "brightness": lambda: pixels.brightness(image, factor),
        "color": lambda: pixels.saturation(image, factor),
        "contrast": lambda: pixels.contrast(image, factor),
        "sharpness": lambda: pixels.sharpness(image, factor),
        "posterize": lambda: pixels.posterize(image, 8 - round(magnitude / (BINS / 4))),
        "solarize": lambda: pixels.solarize(image, 255.0 * (1 - strength)),
        "autocontrast": lambda: pixels.autocontrast(image),
        "equalize": lambda: pixels.equalize(image),
    }
    names = list(branches)
    branch = jnp.array([names.index("geometric" if name in _GEOMETRIC else name) for name in OPS])[op]
    return jax.lax.switch(branch, list(branches.values()))


def _matrix(height: int, width: int, which: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
    """Returns the matrix [2, 3] of geometric operation `which`, from output to input coordinates (pixels.affine)."""
    shear = sign * strength * _SHEAR
    angle = jnp.radians(sign * strength * _ROTATE)
    dx, dy = (-sign * int(strength * _TRANSLATE * size) for size in (width, height))  # whole pixels
    one, zero = jnp.ones_like(shear), jnp.zeros_like(shear)
    matrices = [
        [one, shear, shear * height / 2, zero, one, zero],  # shears keep the upper left corner
        [one, zero, zero, shear, one, shear * width / 2],
        [one, zero, dx, zero, one, zero],
        [one, zero, zero, zero, one, dy],
        [jnp.cos(angle), -jnp.sin(angle), zero, jnp.sin(angle), jnp.cos(angle), zero],
    ]
    return jnp.array(matrices, jnp.float32)[which].reshape(2, 3)


def randaugment(key: jax.Array, image: jax.Array, ops: int, magnitude: int) -> jax.Array:
    """Applies `ops` random operations, one after another, to an image, uint8 [H, W, C]."""
    op_key, sign_key = jax.random.split(key)
    op_numbers = jax.random.randint(op_key, (ops,), 0, len(OPS))
    signs = jax.random.rademacher(sign_key, (ops,), jnp.float32)
    image, _ = jax.lax.scan(lambda x, draw: (apply(x, draw[0], magnitude, draw[1]), None), image, (op_numbers, signs))
    return image

"""The sixteen operations that policies choose from, by number, each with one strength."""

import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import pixels

NAMES = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert", "solarize_add",
)  # fmt: skip
GEOMETRIC = NAMES[1:6]
SIGNED = NAMES[1:10]  # operations that have two directions


def apply(
    image: jax.Array,
    op: jax.Array | int,
    strength: jax.Array | float,
    fill: jax.Array | np.ndarray | int = 0,
    smooth: bool = False,
) -> jax.Array:
    """Applies one operation to an image.

    Args:
      image: uint8 [H, W, C].
      op: number of the operation in NAMES.
      strength: of shears in pixels per pixel, of translations in pixels, of rotations in degrees; for brightness,
        color, contrast and sharpness the distance of the factor from 1; for posterize the bits that are kept; for
        solarize the threshold; for solarize_add the amount. The others ignore it.
      fill: color that geometric operations put outside the image, one number or [C].
      smooth: whether geometric operations interpolate linearly; see `pixels.affine`.
    """
    strength = jnp.asarray(strength, jnp.float32)
    branches = {
        "identity": lambda: image,
        # Geometric operations share a branch, which chooses a matrix: under vmap every branch is computed
        "geometric": lambda: pixels.affine(image, _matrix(image.shape[0], image.shape[1], op, strength), fill, smooth),
        "brightness": lambda: pixels.brightness(image, 1 + strength),
        "color": lambda: pixels.saturation(image, 1 + strength),
        "contrast": lambda: pixels.contrast(image, 1 + strength),
        "sharpness": lambda: pixels.sharpness(image, 1 + strength),
        "posterize": lambda: pixels.posterize(image, strength.astype(jnp.int32)),
        "solarize": lambda: pixels.solarize(image, strength),
        "autocontrast": lambda: pixels.autocontrast(image),
        "equalize": lambda: pixels.equalize(image),
        "invert": lambda: pixels.invert(image),
        "solarize_add": lambda: pixels.solarize_add(image, strength),
    }
    names = list(branches)
    branch = jnp.array([names.index("geometric" if name in GEOMETRIC else name) for name in NAMES])[op]
    return jax.lax.switch(branch, list(branches.values()))


def _matrix(height: int, width: int, op: jax.Array | int, strength: jax.Array) -> jax.Array:
    """Returns the matrix [2, 3] of a geometric operation, from output to input coordinates (pixels.affine)."""
    angle = jnp.radians(strength)
    one, zero = jnp.ones_like(strength), jnp.zeros_like(strength)
    matrices = [
        [one, strength, strength * height / 2, zero, one, zero],  # shears keep the upper left corner
        [one, zero, zero, strength, one, strength * width / 2],
        [one, zero, -strength, zero, one, zero],
        [one, zero, zero, zero, one, -strength],
        [jnp.cos(angle), -jnp.sin(angle), zero, jnp.sin(angle), jnp.cos(angle), zero],
    ]
    return jnp.array(matrices, jnp.float32)[jnp.asarray(op) - 1].reshape(2, 3)

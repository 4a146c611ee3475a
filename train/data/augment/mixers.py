"""Mixing the images and labels of pairs of examples: mixup (Zhang 2018) and CutMix (Yun 2019).

Examples 2j and 2j+1 are mixed with each other, with one draw for the pair (as timm's "pair" mode). The order of
examples is random already, so no permutation is needed, and a pair never straddles two devices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from train.data.augment.operation import require


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixes a pair: each example becomes lam * itself + (1 - lam) * the other, with lam from Beta(alpha, alpha).

    Args:
      key: key of the pair.
      images: float [2, H, W, C].
      targets: [2, classes].
      alpha: parameter of the Beta distribution.

    Returns:
      Mixed images and targets.
    """
    # Rounding lam to a multiple of 1/4096 makes its products with integer pixel values exact in float32. So the result
    # does not depend on whether the compiler fuses multiplications and additions.
    lam = jnp.round(jax.random.beta(key, alpha, alpha) * 4096) / 4096
    return lam * images + (1 - lam) * images[::-1], lam * targets + (1 - lam) * targets[::-1]


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Mixes a pair, as `mixup`: each example gets a box of the other, of area 1 - lam around a uniform center.

    Targets are weighted by the area of the box that lies inside the image.
    """
    height, width = images.shape[1:3]
    lam_key, y_key, x_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(lam_key, alpha, alpha))
    inside = []
    for axis_key, size in ((y_key, height), (x_key, width)):
        center, half = jax.random.randint(axis_key, (), 0, size), (side * size).astype(jnp.int32) // 2
        pixel = jnp.arange(size)
        inside.append((pixel >= center - half) & (pixel < center + half))
    box = inside[0][:, None] & inside[1]  # [H, W]
    lam = 1 - jnp.mean(box.astype(jnp.float32))
    return jnp.where(box[..., None], images[::-1], images), lam * targets + (1 - lam) * targets[::-1]


def mixup_cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes a pair by `mixup` or by `cutmix`, with probability 1/2 each (timm's default)."""
    choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    return jax.lax.cond(
        jax.random.bernoulli(choice_key),
        lambda: mixup(mixup_key, images, targets, mixup_alpha),
        lambda: cutmix(cutmix_key, images, targets, cutmix_alpha),
    )


# Functions that make mixers: (key, images [2, H, W, C], targets [2, classes]) -> images, targets


def _positive(**alphas: float) -> None:
    for name, alpha in alphas.items():
        require(alpha > 0, f"{name}={alpha} is not positive")


def _mixup(a: float) -> Callable:
    _positive(a=a)
    return functools.partial(mixup, alpha=a)


def _cutmix(a: float) -> Callable:
    _positive(a=a)
    return functools.partial(cutmix, alpha=a)


def _mixup_cutmix(a: float, b: float) -> Callable:
    _positive(a=a, b=b)
    return functools.partial(mixup_cutmix, mixup_alpha=a, cutmix_alpha=b)


MIXERS = {"mixup": _mixup, "cutmix": _cutmix, "mixup_cutmix": _mixup_cutmix}

"""Augmentations that change colors. Each function takes a `Site`, then its arguments in the config."""

import jax
import jax.numpy as jnp

from train.data.augment import pixels
from train.data.augment.operation import Op, Site, require, require_color, require_share


def jitter(site: Site, b: float, c: float = 0.0, s: float = 0.0, h: float = 0.0) -> Op:
    """Makes random changes of brightness, contrast, saturation and hue, as torchvision's ColorJitter."""
    require(min(b, c, s, h) >= 0 and h <= 0.5, "needs b, c, s >= 0 and 0 <= h <= 0.5")
    require_color(site)
    require(site.channels == 3 or s == h == 0, "saturation and hue need RGB images")
    factor_ops = [(op, r) for op, r in ((pixels.brightness, b), (pixels.contrast, c), (pixels.saturation, s)) if r]
    ops = [op for op, _ in factor_ops] + [pixels.hue] * (h > 0)
    low = [max(0.0, 1 - r) for _, r in factor_ops] + [-h] * (h > 0)
    high = [1 + r for _, r in factor_ops] + [h] * (h > 0)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, strength_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(ops))
        strengths = jax.random.uniform(strength_key, (len(ops),), minval=jnp.array(low), maxval=jnp.array(high))
        return jax.lax.scan(lambda x, i: (jax.lax.switch(i, ops, x, strengths[i]), None), image, order)[0]

    return Op(apply, branches=True) if ops else Op(lambda key, image: image)


def grayscale(site: Site, p: float = 0.1) -> Op:
    """Makes the conversion to luma, with probability `p`."""
    require_share(p)
    require(site.channels == 3, "needs RGB images")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, p), pixels.grayscale(image), image)

    return Op(apply)

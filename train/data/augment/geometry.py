"""Augmentations that move, mirror or cover pixels. Each function takes a `Site`, then its arguments in the config."""

import jax
import jax.numpy as jnp

from train.data.augment.operation import Op, Site, require, require_share


def crop(site: Site, pad: int, mode: str = "zero") -> Op:
    """Makes the padding by `pad` pixels and the random crop to the old size (He 2016, section 4.2)."""
    require(pad >= 0, f"pad={pad} is negative")
    require(mode in ("zero", "reflect"), f"mode '{mode}' is neither zero nor reflect")
    require(mode == "zero" or pad < min(site.height, site.width), f"cannot reflect {pad} pixels of {site.height}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), "reflect" if mode == "reflect" else "constant")
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

    return Op(apply)


def flip(site: Site, p: float = 0.5) -> Op:
    """Makes the mirroring with probability `p`."""
    require_share(p)
    return Op(lambda key, image: jnp.where(jax.random.bernoulli(key, p), image[:, ::-1], image))


def alternate_flip(site: Site) -> Op:
    """Makes the mirroring of the examples that the batch marks."""
    del site
    return Op(lambda mirrored, image: jnp.where(mirrored, image[:, ::-1], image), entry="mirrored")


def cutout(site: Site, size: int) -> Op:
    """Makes the square hole of `size` pixels, in the mean color (DeVries 2017)."""
    require(size >= 1, f"size={size} is not positive")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        row_key, column_key = jax.random.split(key)
        row = jax.random.randint(row_key, (), 0, site.height) - size // 2
        column = jax.random.randint(column_key, (), 0, site.width) - size // 2
        return jnp.where(_rectangle(site, row, column, size, size), site.color, image)

    return Op(apply)


def erase(site: Site, p: float = 0.5) -> Op:
    """Makes the rectangle of noise, with probability `p` (Zhong 2020)."""
    require_share(p)
    area, aspect = (0.02, 0.4), (0.3, 1 / 0.3)  # Zhong 2020, section 4.2: s_l, s_h and r_1, r_2
    tries = 10  # the first whose rectangle lies inside the image counts, as in torchvision

    def erase(key: jax.Array, image: jax.Array) -> jax.Array:
        draw_key, noise_key = jax.random.split(key)
        draws = jax.random.uniform(draw_key, (2 * tries + 2,))  # one call, since each is slow to compile
        areas = site.height * site.width * (area[0] + draws[:tries] * (area[1] - area[0]))
        aspects = aspect[0] * (aspect[1] / aspect[0]) ** draws[tries : 2 * tries]  # log-uniform
        heights = jnp.round(jnp.sqrt(areas * aspects)).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(areas / aspects)).astype(jnp.int32)
        inside = (heights < site.height) & (widths < site.width)
        first = jnp.argmax(inside)
        height, width = heights[first], widths[first]
        # Uniform over the positions at which the rectangle lies inside the image
        row = jnp.floor(draws[-2] * (site.height - height + 1)).astype(jnp.int32)
        column = jnp.floor(draws[-1] * (site.width - width + 1)).astype(jnp.int32)
        erased = inside[first] & _rectangle(site, row, column, height, width)
        words = jax.random.bits(noise_key, (-(-image.size // 4),))  # flat words of 4 bytes are faster to draw
        noise = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: image.size].reshape(image.shape)
        return jnp.where(erased, noise, image)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        apply_key, erase_key = jax.random.split(key)
        return jax.lax.cond(jax.random.bernoulli(apply_key, p), erase, lambda _, same: same, erase_key, image)

    return Op(apply, branches=True)


def _rectangle(
    site: Site, row: jax.Array, column: jax.Array, height: jax.Array | int, width: jax.Array | int
) -> jax.Array:
    """Returns bool [H, W, 1], True inside the rectangle whose upper left pixel (row, column) may lie outside."""
    rows, columns = jnp.arange(site.height)[:, None, None], jnp.arange(site.width)[:, None]
    return (rows >= row) & (rows < row + height) & (columns >= column) & (columns < column + width)

"""RandAugment, AutoAugment, TrivialAugment and AugMix, as in torchvision, and the RandAugment of timm.

Each function that makes an operation takes a `Site`, then its arguments in the config.
"""

import jax
import jax.numpy as jnp
import numpy as np

from train.data.augment import operations
from train.data.augment.autoaugment import POLICIES
from train.data.augment.operation import Op, Site, require, require_color, require_share
from train.data.augment.operations import NAMES
from train.data.augment.spaces import Space, space

MOST = 30  # the highest magnitude of RandAugment
_TRANSLATE = 150 / 331  # share of the width: 150 pixels of the image size in AutoAugment
_DEPTHS = 3  # AugMix: a chain has 1 to 3 operations


def randaugment_space(height: int, width: int) -> Space:
    """Returns RandAugment's operations at magnitudes 0 to 30."""
    sides = (_TRANSLATE * width, _TRANSLATE * height)
    return space(NAMES[:14], MOST + 1, shear=0.3, translate=sides, rotate=30.0, enhance=0.9, bits=(8, 4))


def randaugment(site: Site, ops: int, magnitude: int) -> Op:
    """Makes RandAugment (Cubuk 2020, arXiv 1909.13719): `ops` operations, drawn uniformly, all with one magnitude."""
    require(ops >= 1, f"ops={ops} is not positive")
    require(0 <= magnitude <= MOST, f"magnitude={magnitude} is not in 0..{MOST}")
    require_color(site)
    table = randaugment_space(site.height, site.width)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        op_key, sign_key = jax.random.split(key)
        which = jax.random.randint(op_key, (ops,), 0, len(table.ops))
        signs = jax.random.rademacher(sign_key, (ops,), jnp.float32)
        draws = (which, signs)
        return jax.lax.scan(lambda x, draw: (table.apply(x, draw[0], magnitude, draw[1]), None), image, draws)[0]

    return Op(apply, branches=True)


def autoaugment_space(height: int, width: int) -> Space:
    """Returns AutoAugment's operations, all of `operations.NAMES` but the last, at magnitudes 0 to 9."""
    sides = (_TRANSLATE * width, _TRANSLATE * height)
    return space(NAMES[:15], 10, shear=0.3, translate=sides, rotate=30.0, enhance=0.9, bits=(8, 4))


def autoaugment(site: Site, policy: str) -> Op:
    """Makes AutoAugment (Cubuk 2019, arXiv 1805.09501): one of 25 pairs of operations, each with its probability."""
    require(policy in POLICIES, f"policy '{policy}' is none of {', '.join(POLICIES)}")
    require_color(site)
    table = autoaugment_space(site.height, site.width)
    pairs = POLICIES[policy]
    which = np.array([[NAMES.index(name) for name, _, _ in pair] for pair in pairs])  # [25, 2]
    shares = np.array([[p for _, p, _ in pair] for pair in pairs], np.float32)
    magnitudes = np.array([[magnitude for _, _, magnitude in pair] for pair in pairs])

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        pair_key, share_key, sign_key = jax.random.split(key, 3)
        pair = jax.random.randint(pair_key, (), 0, len(pairs))
        taken = jax.random.uniform(share_key, (2,)) < jnp.asarray(shares)[pair]
        signs = jax.random.rademacher(sign_key, (2,), jnp.float32)
        draws = (jnp.where(taken, jnp.asarray(which)[pair], 0), jnp.asarray(magnitudes)[pair], signs)
        return jax.lax.scan(lambda x, draw: (table.apply(x, *draw), None), image, draws)[0]

    return Op(apply, branches=True)


def trivialaugment_space() -> Space:
    """Returns TrivialAugment's operations in the wide space, at magnitudes 0 to 30."""
    return space(NAMES[:14], MOST + 1, shear=0.99, translate=(32.0, 32.0), rotate=135.0, enhance=0.99, bits=(8, 6))


def trivialaugment(site: Site) -> Op:
    """Makes TrivialAugment (Müller 2021, arXiv 2103.10158): one operation with a random magnitude."""
    require_color(site)
    table = trivialaugment_space()

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        op_key, magnitude_key, sign_key = jax.random.split(key, 3)
        which = jax.random.randint(op_key, (), 0, len(table.ops))
        magnitude = jax.random.randint(magnitude_key, (), 0, MOST + 1)
        return table.apply(image, which, magnitude, jax.random.rademacher(sign_key, (), jnp.float32))

    return Op(apply, branches=True)


def augmix_space(height: int, width: int) -> Space:
    """Returns AugMix's operations, without identity, at magnitudes 0 to 9."""
    return space(NAMES[1:14], 10, shear=0.3, translate=(width / 3, height / 3), rotate=30.0, enhance=0.9, bits=(4, 4))


def augmix(site: Site, severity: int = 3, width: int = 3, depth: int = -1, alpha: float = 1.0) -> Op:
    """Makes AugMix (Hendrycks 2020, arXiv 1912.02781): the image mixed with chains of operations on it.

    Args:
      site: the images.
      severity: magnitudes are drawn below it.
      width: number of chains.
      depth: operations of each chain; -1 draws 1 to 3.
      alpha: parameter of the distributions of the weights.
    """
    require(1 <= severity <= 10, f"severity={severity} is not in 1..10")
    require(width >= 1, f"width={width} is not positive")
    require(depth == -1 or depth >= 1, f"depth={depth} is neither -1 nor positive")
    require(alpha > 0, f"alpha={alpha} is not positive")
    require_color(site)
    table, length = augmix_space(site.height, site.width), depth if depth > 0 else _DEPTHS

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        keys, shape = jax.random.split(key, 6), (width, length)
        kept = jax.random.beta(keys[0], alpha, alpha)
        weights = (1 - kept) * jax.random.dirichlet(keys[1], jnp.full((width,), alpha))
        which = jax.random.randint(keys[2], shape, 0, len(table.ops))
        magnitudes = jax.random.randint(keys[3], shape, 0, severity)
        signs = jax.random.rademacher(keys[4], shape, jnp.float32)
        depths = jax.random.randint(keys[5], (width,), 1, length + 1) if depth < 0 else jnp.full((width,), length)
        return chains(table, image, weights, which, magnitudes, signs, depths)

    return Op(apply, branches=True)


def chains(
    table: Space,
    image: jax.Array,
    weights: jax.Array,
    which: jax.Array,
    magnitudes: jax.Array,
    signs: jax.Array,
    depths: jax.Array,
) -> jax.Array:
    """Returns the sum of an image and of chains of operations on it; the image has the weight that the chains leave.

    Args:
      table: the operations.
      image: uint8 [H, W, C].
      weights: of the chains, [chains].
      which: operations, [chains, longest depth].
      magnitudes: as `which`.
      signs: as `which`.
      depths: number of operations of each chain, [chains].
    """
    # Multiples of 1/4096 make the products with levels, and their sum, exact: see `mixers.mixup`
    weights = jnp.round(weights * 4096) / 4096
    steps = jnp.arange(which.shape[1])

    def one(mixed, chain):
        weight, depth, *draws = chain

        def step(x, draw):
            index, *parameters = draw
            return jax.lax.cond(index < depth, lambda: table.apply(x, *parameters, smooth=True), lambda: x), None

        augmented, _ = jax.lax.scan(step, image, (steps, *draws))
        return mixed + weight * augmented.astype(jnp.float32), None

    start = (1 - jnp.sum(weights)) * image.astype(jnp.float32)
    mixed, _ = jax.lax.scan(one, start, (weights, depths, which, magnitudes, signs))
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


TIMM = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip


def timm_strengths(level: jax.Array | float, sign: jax.Array | float, height: int, width: int) -> jax.Array:
    """Returns the strengths of TIMM at a level of 0..10, float32 [15], as timm's increasing operations have them."""
    share = jnp.asarray(level, jnp.float32) / 10
    strengths = {
        "rotate": sign * 30 * share,
        "posterize": 4 - jnp.floor(4 * share),
        "solarize": 256 - jnp.floor(256 * share),
        "solarize_add": jnp.floor(110 * share),
        **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), sign * 0.9 * share),
        **dict.fromkeys(("shear_x", "shear_y"), sign * 0.3 * share),
        "translate_x": sign * 0.45 * share * width,
        "translate_y": sign * 0.45 * share * height,
    }
    return jnp.stack([jnp.asarray(strengths.get(name, 0.0), jnp.float32) for name in TIMM])


def randaugment_timm(site: Site, magnitude: float, std: float = 0.5, ops: int = 2, p: float = 0.5) -> Op:
    """Makes timm's RandAugment with operations that grow with the magnitude, rand-mMAGNITUDE-mstdSTD-nOPS-pP-inc1.

    Each of `ops` operations is applied with probability p, with a magnitude from a normal distribution around
    `magnitude`, clipped to 0..10. Geometric operations interpolate linearly, and fill with the mean color; timm draws
    linear or cubic interpolation.
    """
    require(0 <= magnitude <= 10, f"magnitude={magnitude} is not in 0..10")
    require(std >= 0, f"std={std} is negative")
    require(ops >= 1, f"ops={ops} is not positive")
    require_share(p)
    require_color(site)
    numbers = np.array([NAMES.index(name) for name in TIMM])

    def one(image: jax.Array, draw: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        which, taken, level, sign = draw
        op = jnp.where(taken, jnp.asarray(numbers)[which], 0)
        strength = timm_strengths(level, sign, site.height, site.width)[which]
        return operations.apply(image, op, strength, site.color, smooth=True), None

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        which = jax.random.randint(keys[0], (ops,), 0, len(TIMM))
        taken = jax.random.bernoulli(keys[1], p, (ops,))
        levels = jnp.clip(magnitude + std * jax.random.normal(keys[2], (ops,)), 0, 10)
        signs = jax.random.rademacher(keys[3], (ops,), jnp.float32)
        return jax.lax.scan(one, image, (which, taken, levels, signs))[0]

    return Op(apply, branches=True)

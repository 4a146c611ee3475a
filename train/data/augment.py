"""Augmentation, inside the compiled step, from one line of a config: "crop(4)|flip|cutout(8)".

Operations are joined by "|" and applied from left to right. Each has its own random key for each example, derived from
the example's position in the global batch, so that results do not depend on how a batch is split over devices.

    crop(pad, mode="zero")       pads, then crops at random to the old size (He 2016, section 4.2); or mode="reflect"
    flip(p=0.5)                  mirrors left to right
    alternate_flip               mirrors each example in every second epoch, where "mirrored" of the batch is True
    cutout(size)                 a square of the mean color around a uniform pixel, cut at the border (DeVries 2017)
    erase(p=0.5)                 a random rectangle of noise (Zhong 2020, "random erasing"; area 2-40%, aspect 0.3-3.3)
    randaugment(ops, magnitude)  Cubuk 2020; operations and magnitudes 0..30 as in torchvision
    jitter(b, c=0, s=0, h=0)     brightness, contrast, saturation, hue, in random order, as torchvision's ColorJitter
    grayscale(p=0.1)             three channels of luma
    mixup(a), cutmix(a), mixup_cutmix(a, b)    once, at the end (mix.py); "image" becomes float, and "target" is added
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models import plugins
from models.errors import UserError, choice_error, has_type
from models.kernels.tracing import platform
from train.data import mix, pixels
from train.data.randaugment import BINS, randaugment
from train.setup import spec


@dataclasses.dataclass(frozen=True)
class Op:
    """An operation on one image.

    Attributes:
      apply: (key, uint8 [H, W, C]) -> uint8 [H, W, C].
      branches: True if it picks one of several operations by the key.
      entry: name of a batch entry. `apply` receives its value for the example instead of a random key. "" for none.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    branches: bool = False
    entry: str = ""


@dataclasses.dataclass(frozen=True)
class Augment:
    """A parsed specification: operations on single images, and at most one that mixes pairs."""

    text: str
    num_classes: int
    ops: tuple[Op, ...]
    mix: Callable | None

    @property
    def entries(self) -> set[str]:
        """Returns the entries of the batch that operations take in place of keys; they are not passed on."""
        return {op.entry for op in self.ops} - {""}

    def __call__(self, key: jax.Array, batch: dict[str, jax.Array], first: jax.Array | int = 0) -> dict[str, jax.Array]:
        """Augments a batch.

        Args:
          key: key of the step.
          batch: {"image": uint8 [B, H, W, C], "label": int32 [B], …}.
          first: position of the batch's first example in the global batch.

        Returns:
          The batch with new images, uint8. With mixup or cutmix they are float32 on the scale 0..255, and "target",
          float32 [B, num_classes], is added.
        """
        images = batch["image"]
        positions = first + jnp.arange(images.shape[0])
        keys = jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)
        for number, op in enumerate(self.ops):
            op_keys = jax.vmap(lambda example_key, n=number: jax.random.fold_in(example_key, n))(keys)
            images = _each(op, batch[op.entry] if op.entry else op_keys, images)
        batch = {name: array for name, array in batch.items() if name not in self.entries} | {"image": images}
        return batch | self._mixed(self.mix, keys, images, batch["label"]) if self.mix else batch

    def _mixed(self, mix: Callable, keys: jax.Array, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        if len(images) % 2:
            raise UserError(f"data.augment='{self.text}' mixes pairs: a device's batch must be even, not {len(images)}")
        pair_keys = jax.vmap(lambda pair_key: jax.random.fold_in(pair_key, len(self.ops)))(keys[::2])
        images = images.astype(jnp.float32).reshape(-1, 2, *images.shape[1:])  # [B, …] -> [B/2, 2, …]
        targets = jax.nn.one_hot(labels, self.num_classes).reshape(-1, 2, self.num_classes)
        images, targets = jax.vmap(mix)(pair_keys, images, targets)
        return {"image": images.reshape(-1, *images.shape[2:]), "target": targets.reshape(-1, self.num_classes)}


def build(
    text: str, num_classes: int, image_shape: tuple[int, int, int], mean: Sequence[float] | None = None
) -> Augment:
    """Parses a specification of augmentations.

    Args:
      text: operations as in the module's docstring; "" for none.
      num_classes: length of a target that mixup and cutmix make.
      image_shape: (H, W, C) of the images, uint8.
      mean: color that cutout fills with, on the scale 0..1; None for black. (DeVries 2017 cuts normalized images, where
        the mean is 0.)

    Raises:
      UserError: an operation is unknown or does not accept its arguments; it names the operation and its signature.
    """
    height, width, channels = image_shape
    if mean is not None:
        check_color("mean", mean, channels)
    color = np.broadcast_to(np.round(255 * np.array(0.0 if mean is None else mean)).astype(np.uint8), (channels,))
    ops, mixer = [], None
    for call in spec.parse("data.augment", text):
        if mixer:
            raise UserError(
                f"data.augment {call.name}: it follows mixup or cutmix in '{text}', which come once, at the end"
            )
        if call.name in _MIXERS:
            mixer = spec.resolve("data.augment", call, _MIXERS)
        elif call.name in _OPS or plugins.split(call.name):
            ops.append(spec.resolve("data.augment", call, _OPS, Site(height, width, channels, color)))
        else:
            raise choice_error("data.augment", call.name, [*_OPS, *_MIXERS], own=True)
    return Augment(text, num_classes, tuple(ops), mixer)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images / 255 - mean) / std, computed in float32.

    Args:
      images: pixels on the scale 0..255, [..., C].
      mean: one value for each channel, or one for all, on the scale 0..1.
      std: standard deviations, as `mean`.

    Raises:
      UserError: `mean` or `std` has another number of values, or `std` is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        check_color(name, values, images.shape[-1])
    if min(std) <= 0:
        raise UserError(f"data.std={tuple(std)} must be positive")
    images = images.astype(jnp.float32) / 255
    return (images - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


def check_color(name: str, values: Sequence[float], channels: int) -> None:
    """Raises UserError unless `values` has one number, or one per channel (3 would turn 1 channel into 3)."""
    numbers = isinstance(values, (tuple, list)) and all(has_type(value, float) for value in values)
    if not numbers or len(values) not in (1, channels):
        raise UserError(f"data.{name}={values}: must be a tuple of 1 number, or of 1 per channel (here {channels})")


def _each(op: Op, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies an operation to each example.

    On a CPU, an operation that branches runs on one example after another, so that only the branch taken costs time.
    Under vmap all branches are computed, which is faster on accelerators.
    """
    if op.branches and platform() == "cpu":
        return jax.lax.map(lambda example: op.apply(*example), (keys, images))
    return jax.vmap(op.apply)(keys, images)


def _want(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _share(p: float) -> None:
    _want(0 <= p <= 1, f"p={p} is not a probability")


# Functions that make operations. Each takes a `Site`, then the arguments in the specification. It raises ValueError if
# an argument is invalid.


@dataclasses.dataclass(frozen=True)
class Site:
    """The images that an operation receives: their shape, and the color to fill holes with."""

    height: int
    width: int
    channels: int
    color: np.ndarray  # uint8 [C]


def _crop(site: Site, pad: int, mode: str = "zero") -> Op:
    _want(pad >= 0, f"pad={pad} is negative")
    _want(mode in ("zero", "reflect"), f"mode '{mode}' is neither zero nor reflect")
    _want(mode == "zero" or pad < min(site.height, site.width), f"cannot reflect {pad} pixels of {site.height}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)), "reflect" if mode == "reflect" else "constant")
        top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

    return Op(apply)


def _flip(site: Site, p: float = 0.5) -> Op:
    _share(p)
    return Op(lambda key, image: jnp.where(jax.random.bernoulli(key, p), image[:, ::-1], image))


def _alternate_flip(site: Site) -> Op:
    del site
    return Op(lambda mirrored, image: jnp.where(mirrored, image[:, ::-1], image), entry="mirrored")


def _cutout(site: Site, size: int) -> Op:
    _want(size >= 1, f"size={size} is not positive")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        row_key, column_key = jax.random.split(key)
        row = jax.random.randint(row_key, (), 0, site.height) - size // 2
        column = jax.random.randint(column_key, (), 0, site.width) - size // 2
        return jnp.where(_rectangle(site, row, column, size, size), site.color, image)

    return Op(apply)


def _erase(site: Site, p: float = 0.5) -> Op:
    _share(p)
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


def _randaugment(site: Site, ops: int, magnitude: int) -> Op:
    _want(ops >= 1, f"ops={ops} is not positive")
    _want(0 <= magnitude <= BINS, f"magnitude={magnitude} is not in 0..{BINS}")
    _want(site.channels in (1, 3), f"needs images with 1 or 3 channels, not {site.channels}")
    return Op(lambda key, image: randaugment(key, image, ops, magnitude), branches=True)


def _jitter(site: Site, b: float, c: float = 0.0, s: float = 0.0, h: float = 0.0) -> Op:
    _want(min(b, c, s, h) >= 0 and h <= 0.5, "needs b, c, s >= 0 and 0 <= h <= 0.5")
    _want(site.channels in (1, 3), f"needs images with 1 or 3 channels, not {site.channels}")
    _want(site.channels == 3 or s == h == 0, "saturation and hue need RGB images")
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


def _grayscale(site: Site, p: float = 0.1) -> Op:
    _share(p)
    _want(site.channels == 3, "needs RGB images")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, p), pixels.grayscale(image), image)

    return Op(apply)


_OPS = {
    "crop": _crop, "flip": _flip, "alternate_flip": _alternate_flip, "cutout": _cutout, "erase": _erase,
    "randaugment": _randaugment, "jitter": _jitter, "grayscale": _grayscale,
}  # fmt: skip


# The mixers: (key, images [2, H, W, C], targets [2, classes]) -> images, targets


def _positive(**alphas: float) -> None:
    for name, alpha in alphas.items():
        _want(alpha > 0, f"{name}={alpha} is not positive")


def _mixup(a: float) -> Callable:
    _positive(a=a)
    return functools.partial(mix.mixup, alpha=a)


def _cutmix(a: float) -> Callable:
    _positive(a=a)
    return functools.partial(mix.cutmix, alpha=a)


def _mixup_cutmix(a: float, b: float) -> Callable:
    _positive(a=a, b=b)
    return functools.partial(mix.mixup_cutmix, mixup_alpha=a, cutmix_alpha=b)


_MIXERS = {"mixup": _mixup, "cutmix": _cutmix, "mixup_cutmix": _mixup_cutmix}

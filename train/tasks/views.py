"""Test-time augmentation: logits averaged over views of an image (task.name="classify(views=mirror_shift)").

one            the image
mirror         the image and its mirror image
mirror_shift   six views (Jordan 2024, arXiv 2404.00498, section 3.5): those of "mirror" with half the weight, and
               those of the image shifted by one pixel up-left and down-right, padded by reflection
five_crops     the image, enlarged to 256/224 of its size, cropped to its size at four corners and the center
ten_crops      those and their mirror images (Krizhevsky 2012, section 4.1; there 224x224 from 256x256)
multi_scale    the image and its mirror image at 7/8, 1 and 9/8 of its size (224, 256 and 288 in Simonyan 2015, section
               4.2); not for networks that take images of one size

Crops are of the evaluation image, whose corners data.eval_crop=1.0 leaves in.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

VIEWS = ("one", "mirror", "mirror_shift", "five_crops", "ten_crops", "multi_scale")
SCALES = (7 / 8, 9 / 8)  # of multi_scale, besides 1
_ENLARGED = 256 / 224

Logits = Callable[[jax.Array], jax.Array]


def averaged(logits: Logits, images: jax.Array, views: str) -> jax.Array:
    """Returns the averaged logits [N, classes] of images [N, H, W, C], by one call of `logits` per size of views."""
    if views == "one":
        return logits(images)
    if views == "multi_scale":
        sizes = [images, *(resized(images, scale) for scale in SCALES)]
        return sum((_mean(logits, [size, size[:, :, ::-1]]) / len(sizes) for size in sizes), jnp.zeros(()))
    if views in ("five_crops", "ten_crops"):
        crops = _five(images)
        return _mean(logits, crops + [crop[:, :, ::-1] for crop in crops] * (views == "ten_crops"))
    shown, weights = [images], [0.5]
    if views == "mirror_shift":
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        shown += [padded[:, i : i + height, i : i + width] for i in (0, 2)]
        weights = [0.25, 0.125, 0.125]
    shown += [view[:, :, ::-1] for view in shown]
    by_view = _by_view(logits, shown)
    return sum((weight * view for weight, view in zip(weights * 2, by_view, strict=True)), jnp.zeros(()))


def resized(images: jax.Array, scale: float) -> jax.Array:
    """Returns images [N, H, W, C] whose sides are scaled, bilinear and antialiased."""
    count, height, width, channels = images.shape
    return jax.image.resize(images, (count, round(scale * height), round(scale * width), channels), "linear")


def _five(images: jax.Array) -> list[jax.Array]:
    """Returns the crops at the corners and the center of the enlarged images."""
    height, width = images.shape[1:3]
    large = resized(images, _ENLARGED)
    down, right = large.shape[1] - height, large.shape[2] - width
    starts = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    return [large[:, top : top + height, left : left + width] for top, left in starts]


def _by_view(logits: Logits, shown: list[jax.Array]) -> jax.Array:
    """Returns the logits of views of one size, [views, N, classes], by one call."""
    return logits(jnp.concatenate(shown)).reshape(len(shown), len(shown[0]), -1)


def _mean(logits: Logits, shown: list[jax.Array]) -> jax.Array:
    return jnp.mean(_by_view(logits, shown), 0)

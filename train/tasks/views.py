"""Test-time augmentation: logits averaged over views of an image (task.name="classify(views=mirror_shift)").

one            the image
mirror         the image and its mirror image
mirror_shift   half of that, and half the same of the image moved by a pixel up and to the left, and down and to the
               right, what comes in reflected (Jordan 2024, arXiv 2404.00498, section 3.5): six views
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

VIEWS = ("one", "mirror", "mirror_shift")


def averaged(logits: Callable[[jax.Array], jax.Array], images: jax.Array, views: str) -> jax.Array:
    """Logits [N, classes] of images [N, H, W, C], by one call of `logits` on the views of all of them."""
    if views == "one":
        return logits(images)
    shown, weights = [images], [0.5]
    if views == "mirror_shift":
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        shown += [padded[:, i : i + height, i : i + width] for i in (0, 2)]
        weights = [0.25, 0.125, 0.125]
    shown += [view[:, :, ::-1] for view in shown]
    found = logits(jnp.concatenate(shown)).reshape(len(shown), len(images), -1)  # [V N, classes] -> [V, N, classes]
    return sum(weight * view for weight, view in zip(weights * 2, found, strict=True))

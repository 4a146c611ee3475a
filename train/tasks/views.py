"""Test-time augmentation: logits averaged over views of an image (task.name="classify(views=mirror_shift)").

one            the image
mirror         the image and its mirror image
mirror_shift   six views (Jordan 2024, arXiv 2404.00498, section 3.5): those of "mirror" with half the weight, and
               those of the image shifted by one pixel up-left and down-right, padded by reflection
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

VIEWS = ("one", "mirror", "mirror_shift")


def averaged(logits: Callable[[jax.Array], jax.Array], images: jax.Array, views: str) -> jax.Array:
    """Returns the averaged logits [N, classes] of images [N, H, W, C], by one call of `logits` on all views."""
    if views == "one":
        return logits(images)
    shown, weights = [images], [0.5]
    if views == "mirror_shift":
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        shown += [padded[:, i : i + height, i : i + width] for i in (0, 2)]
        weights = [0.25, 0.125, 0.125]
    shown += [view[:, :, ::-1] for view in shown]
    by_view = logits(jnp.concatenate(shown)).reshape(len(shown), len(images), -1)  # [V N, classes] -> [V, N, classes]
    return sum((weight * view for weight, view in zip(weights * 2, by_view, strict=True)), jnp.zeros(()))

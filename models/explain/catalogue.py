"""Methods that locate evidence in an image, by name, and their results as heatmaps over its pixels.

`models.explain.names` has the names that papers give them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from models.explain import cam, gradient, rollout
from models.explain.method import resized

MAPS = {
    "cam": cam.cam,
    "grad_cam": cam.grad_cam,
    "grad_cam_plus_plus": cam.grad_cam_plus_plus,
    "counterfactual": functools.partial(cam.grad_cam, counterfactual=True),  # Selvaraju 2017, section 3.3
    "attention_rollout": rollout.attention_rollout,
}
PIXELS = {
    "saliency": gradient.saliency,
    "smooth_grad": gradient.smooth_grad,
    "integrated_gradients": gradient.integrated_gradients,
    "guided_backprop": gradient.guided_backprop,
    "deconvnet": gradient.deconvnet,
    "guided_grad_cam": gradient.guided_grad_cam,
}
METHODS = {**MAPS, **PIXELS}
SIGNED = ("guided_backprop", "deconvnet", "guided_grad_cam")  # the papers show these as pictures, not as magnitudes


def heat(values: Any, size: tuple[int, int]) -> jax.Array:
    """Converts the values of a method to nonnegative heatmaps [N, H, W].

    Maps are resized to the image, and negative values become 0. Values per pixel and channel become the largest
    magnitude over the channels (Simonyan 2014, section 3.1).
    """
    values = jnp.asarray(values)
    if values.ndim == 4:
        return jnp.abs(values).max(-1)
    return jnp.maximum(resized(values, size), 0)

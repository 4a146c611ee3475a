"""Explanations by the gradient of a class's score with respect to the image.

  Simonyan et al. 2014            Deep inside convolutional networks, arXiv 1312.6034                        saliency
  Zeiler & Fergus 2014            Visualizing and understanding convolutional networks, arXiv 1311.2901      deconvnet
  Springenberg et al. 2015        Striving for simplicity, arXiv 1412.6806                           guided_backprop
  Smilkov et al. 2017             SmoothGrad: removing noise by adding noise, arXiv 1706.03825           smooth_grad
  Sundararajan et al. 2017        Axiomatic attribution for deep networks, arXiv 1703.01365     integrated_gradients
  Selvaraju et al. 2017           Grad-CAM, arXiv 1610.02391                                         guided_grad_cam

All methods take images [N, H, W, C] and `target`: one class for all images, a class per image, or None for the most
probable class. Their values are float32 [N, H, W, C], signed and without a fixed scale. The score of a class is its
logit. method.py describes the UserErrors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.errors import UserError
from models.explain.cam import grad_cam
from models.explain.method import Explanation, explains, picked, resized, resolved
from models.explain.rules import with_rule


@explains
def saliency(model: nn.Module, variables: Any, images: jax.Array, target: jax.Array) -> Explanation:
    """Returns the gradient itself; Simonyan 2014, section 3.1, shows its largest magnitude over the channels."""
    return gradient(model, variables, images, target)


@explains
def guided_backprop(model: nn.Module, variables: Any, images: jax.Array, target: jax.Array) -> Explanation:
    """Returns the gradient with the rule "guided" of rules.py (Springenberg 2015, section 3.4)."""
    return gradient(with_rule(model, "guided"), variables, images, target)


@explains
def deconvnet(model: nn.Module, variables: Any, images: jax.Array, target: jax.Array) -> Explanation:
    """Returns the gradient of the score with the rule "deconvnet" of rules.py (Zeiler & Fergus 2014, section 2.1)."""
    return gradient(with_rule(model, "deconvnet"), variables, images, target)


@explains
def guided_grad_cam(
    model: nn.Module, variables: Any, images: jax.Array, target: jax.Array, *, endpoint: str | None = None
) -> Explanation:
    """Returns guided backpropagation times Grad-CAM, resized to the image (Selvaraju 2017, section 3.2).

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      target: See the module.
      endpoint: See `models.explain.cam.grad_cam`.
    """
    maps = grad_cam(model, variables, images, target, endpoint=endpoint)
    guided = guided_backprop(model, variables, images, maps.target)
    size = (images.shape[1], images.shape[2])
    return maps._replace(values=guided.values * resized(maps.values, size)[..., None])


@explains
def smooth_grad(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    target: jax.Array,
    *,
    samples: int = 32,
    noise: float = 0.15,
    seed: int = 0,
) -> Explanation:
    """Returns the mean gradient over images with Gaussian noise (Smilkov 2017, section 3.1).

    The class is that of the image without noise. One noisy batch is in memory at a time. All images of a batch get the
    same noise, scaled by their range, so that results do not depend on the other images.

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      target: See the module.
      samples: Number of samples (the paper's n).
      noise: Standard deviation, as a fraction of an image's range (largest minus smallest value).
      seed: Seed of the noise.

    Raises:
      UserError: `samples` is below 1, or `noise` is below 0.
    """
    if samples < 1:
        raise UserError(f"samples={samples} must be at least 1")
    if noise < 0:
        raise UserError(f"noise={noise} must be at least 0")
    images, logits, target = _scored(model, variables, images, target)
    spread = noise * (images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True))

    def at(key):
        noisy = images + spread * jax.random.normal(key, images.shape[1:])
        return gradient(model, variables, noisy, target).values

    return Explanation(_total(at, jax.random.split(jax.random.key(seed), samples), images) / samples, logits, target)


@explains
def integrated_gradients(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    target: jax.Array,
    *,
    steps: int = 64,
    baseline: float | Sequence[float] = 0.0,
) -> Explanation:
    """Returns (x - baseline) times the mean gradient between the two (Sundararajan 2017, eq. 1).

    The integral uses Gauss-Legendre quadrature. The values of an image sum to its score minus that of the baseline
    (proposition 1: completeness), up to the quadrature error, which is small if the gradient rarely jumps. One step of
    the batch is in memory at a time.

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      target: See the module.
      steps: Number of images between the baseline and x.
      baseline: Value of all pixels in the images' units: a number, or a tuple with one per channel.

    Raises:
      UserError: `steps` is below 1, or `baseline` has the wrong length.
    """
    if steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    start = np.asarray(baseline, np.float32)
    if start.shape not in ((), images.shape[-1:]):
        raise UserError(
            f"baseline={baseline} must be a number, or a tuple of {images.shape[-1]} numbers, one per channel"
        )
    images, logits, target = _scored(model, variables, images, target)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    path = images - start

    def at(node):
        fraction, weight = node
        return weight * gradient(model, variables, start + fraction * path, target).values

    quadrature = jnp.asarray((nodes + 1) / 2, jnp.float32), jnp.asarray(weights / 2, jnp.float32)
    return Explanation(path * _total(at, quadrature, images), logits, target)


def gradient(model: nn.Module, variables: Any, images: jax.Array, target: jax.Array) -> Explanation:
    """Returns d score / d images, float32 [N, H, W, C], for target int32 [N], which may hold `TOP1`."""

    def score(images):
        logits = jnp.asarray(model.apply(variables, images))
        resolved_target = resolved(target, logits)
        return picked(logits, resolved_target).sum(), (logits, resolved_target)

    values, (logits, resolved_target) = jax.grad(score, has_aux=True)(images.astype(jnp.float32))
    return Explanation(values, logits, resolved_target)


def _scored(model, variables, images, target) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns images as float32, their logits, and their classes."""
    images = images.astype(jnp.float32)
    logits = model.apply(variables, images)
    return images, logits, resolved(target, logits)


def _total(function: Callable[[Any], jax.Array], xs: Any, like: jax.Array) -> jax.Array:
    """Returns the sum of the function's values over xs, evaluated one after another."""
    return lax.scan(lambda total, x: (total + function(x), None), jnp.zeros_like(like), xs)[0]

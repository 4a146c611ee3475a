"""Class activation maps: heatmaps, from a feature map of a network, of the evidence for a class.

  Zhou et al. 2016           Learning deep features for discriminative localization, arXiv 1512.04150    cam
  Selvaraju et al. 2017      Grad-CAM, arXiv 1610.02391                                                  grad_cam
  Chattopadhay et al. 2018   Grad-CAM++, arXiv 1710.11063                                      grad_cam_plus_plus

All methods take images [N, H, W, C] and `target`: one class for all images, a class per image, or None for the most
probable class. Their values are float32 [N, h, w], of the size of the map and not scaled. The score of a class is its
logit. method.py describes the UserErrors.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from models.errors import UserError
from models.explain.method import (
    Explanation,
    as_maps,
    explains,
    grid,
    logits_and_activation,
    map_endpoint,
    outline,
    picked,
    resolved,
)
from models.layers.endpoint import capture
from models.layers.ingredients import HEAD

# Largest allowed difference between the network's logits and those computed from the map and the head, relative to the
# largest logit. It allows for rounding: True holds for float32 maps, False for maps in half precision. Networks with
# another operation between map and head exceed it by far.
TOLERANCE = {True: 1e-3, False: 0.05}


def cam(model: nn.Module, variables: Any, images: Any, target: Any = None) -> Explanation:
    """Sums the channels of the map before average pooling, weighted by the head's weights for the class.

    The head's bias is left out. This is eq. 2 of Zhou 2016. The mean over positions is the score minus the head's bias.
    Values are signed.

    Raises:
      UserError: The network does not end in the mean over a map and a linear layer "head". Within a traced function,
        operations between the map and the head are not detected.
    """
    explanation, error, tolerance = _cam(model, variables, images, target)
    if not isinstance(error, Tracer):
        if not np.isfinite(error):
            raise UserError("cam: the logits of these images are not finite numbers")
        if error > tolerance:
            raise _refused(model)
    return explanation


@explains
def _cam(model, variables, images, target) -> tuple[Explanation, jax.Array, jax.Array]:
    """Returns the explanation, the largest difference between the logits and those that it explains, and its limit."""
    head = variables["params"].get(HEAD, {})
    rows, classes = jnp.shape(head.get("kernel", 0)) or (0, 0)
    shapes = outline(model, variables, images)
    names = [name for name, shape in shapes.endpoints.items() if grid(shape) and shape[-1] == rows]
    if not names or classes != shapes.classes:
        raise _refused(model)
    logits, activations = capture(model, variables, images, names=names[-1:])
    maps = as_maps(activations[names[-1]])
    kernel = head["kernel"].astype(jnp.float32)  # [C, classes]
    explained = jnp.dot(maps.mean((1, 2)), kernel, precision="highest") + head.get("bias", 0.0)
    tolerance = TOLERANCE[activations[names[-1]].dtype == jnp.float32] * jnp.abs(logits).max()
    resolved_target = resolved(target, logits)
    return (
        Explanation(_weighted(maps, kernel.T[resolved_target]), logits, resolved_target),
        jnp.abs(explained - logits).max(),
        tolerance,
    )


def _refused(model: nn.Module) -> UserError:
    return UserError(
        "cam needs a network that ends in average pooling and a linear layer; "
        f"{type(model).__name__} with these fields does not: use grad_cam"
    )


@explains
def grad_cam(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    target: jax.Array,
    *,
    endpoint: str | None = None,
    counterfactual: bool = False,
) -> Explanation:
    """Sums the map's channels, weighted by the mean gradient of the score, and drops negative values.

    This is eq. 1 and 2 of Selvaraju 2017. Only the layers after the endpoint are differentiated.

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      target: See the module.
      endpoint: Endpoint with maps [N, h, w, C] or tokens [N, T, C]; None chooses the last one with more than one
        position, see `map_endpoint`.
      counterfactual: Whether to negate gradients, which shows evidence against the class (section 3.3).
    """
    at = _read(model, variables, images, target, endpoint)
    weights = at.gradients.mean((1, 2))  # [N, h, w, C] -> [N, C]
    return Explanation(nn.relu(_weighted(at.maps, -weights if counterfactual else weights)), at.logits, at.target)


@explains
def grad_cam_plus_plus(
    model: nn.Module, variables: Any, images: jax.Array, target: jax.Array, *, endpoint: str | None = None
) -> Explanation:
    """Computes Grad-CAM from positive gradients only, with a weight per position (Chattopadhay 2018, eq. 5).

    The paper's exponential of the score cancels, so higher derivatives are powers of the first (eq. 19). A position of
    gradient g in a channel whose map sums to S has the weight g^2 / (2 g^2 + S g^3), computed as 1 / (2 + S g).

    Args:
      model: The network.
      variables: Its variables.
      images: [N, H, W, C].
      target: See the module.
      endpoint: See `grad_cam`.
    """
    at = _read(model, variables, images, target, endpoint)
    divisor = 2 + at.maps.sum((1, 2), keepdims=True) * at.gradients  # at least 2 for rectified maps
    weights = nn.relu(at.gradients) / jnp.where(divisor == 0, 1, divisor)
    return Explanation(nn.relu(_weighted(at.maps, weights.sum((1, 2)))), at.logits, at.target)


class _Read(NamedTuple):
    """Maps and gradients, float32 [N, h, w, C], with logits and target."""

    maps: jax.Array
    gradients: jax.Array
    logits: jax.Array
    target: jax.Array


def _read(model, variables, images, target, endpoint) -> _Read:
    """Returns the activations of an endpoint and the gradient of the score with respect to them."""
    shapes = outline(model, variables, images)
    name = map_endpoint(shapes, endpoint)

    def score(add):
        logits, x = logits_and_activation(model, variables, images, name, add)
        resolved_target = resolved(target, logits)
        return picked(logits, resolved_target).sum(), (x, logits, resolved_target)

    zeros = jnp.zeros(shapes.shape(name), jnp.float32)
    gradients, (x, logits, resolved_target) = jax.grad(score, has_aux=True)(zeros)
    return _Read(as_maps(x), as_maps(gradients), logits, resolved_target)


def _weighted(maps: jax.Array, weights: jax.Array) -> jax.Array:
    """Sums channels [N, h, w, C] with weights [N, C] to [N, h, w]; a matrix product would be less precise on a GPU."""
    return (maps * weights[:, None, None]).sum(-1)

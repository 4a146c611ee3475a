"""Class activation maps: where in a map of a network's is what speaks for a class.

  Zhou et al. 2016           Learning deep features for discriminative localization, arXiv 1512.04150    cam
  Selvaraju et al. 2017      Grad-CAM, arXiv 1610.02391                                                  grad_cam
  Chattopadhay et al. 2018   Grad-CAM++, arXiv 1710.11063                                      grad_cam_plus_plus

All take images [N, H, W, C], and `target`, a class for all, one for each, or None for the most probable; their values
are float32 [N, h, w], of the size of the map and not scaled. The score is the logit. UserErrors: see method.py.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.explain.method import Explanation, as_maps, explains, grid, map_endpoint, outline, picked, read, resolved
from models.layers.endpoint import capture
from models.layers.ingredients import HEAD

# How far logits may be from those that the map explains, as a part of the largest: rounding in float32, in half
# precision. Networks that do something else between the two are far beyond it.
TOLERANCE = {True: 1e-3, False: 0.05}


def cam(model: nn.Module, variables: Any, images: Any, target: Any = None) -> Explanation:
    """The head's weights of the class times the map that the network averages (Zhou 2016, eq. 2), without the bias.

    The mean over the places is the score less the head's bias. Values are signed.

    Raises:
      UserError: the network does not end in the mean over a map's places and a linear layer "head". Where this is
        called in a traced function, what a network does between an endpoint of the right size and its head cannot be
        compared.
    """
    found, error, tolerance = _cam(model, variables, images, target)
    if not isinstance(error, jax.core.Tracer):
        if not np.isfinite(error):
            raise UserError("cam: the logits of these images are not finite numbers")
        if error > tolerance:
            raise _refused(model)
    return found


@explains
def _cam(model, variables, images, target) -> tuple[Explanation, jax.Array, jax.Array]:
    """And the largest difference between the logits and what they would be, with that which is allowed."""
    head = variables["params"].get(HEAD, {})
    rows, classes = jnp.shape(head.get("kernel", 0)) or (0, 0)
    about = outline(model, variables, images)
    names = [name for name, shape in about.endpoints.items() if grid(shape) and shape[-1] == rows]
    if not names or classes != about.classes:
        raise _refused(model)
    logits, found = capture(model, variables, images, names=names[-1:])
    maps = as_maps(found[names[-1]])
    kernel = head["kernel"].astype(jnp.float32)  # [C, classes]
    explained = jnp.dot(maps.mean((1, 2)), kernel, precision="highest") + head.get("bias", 0.0)
    tolerance = TOLERANCE[found[names[-1]].dtype == jnp.float32] * jnp.abs(logits).max()
    chosen = resolved(target, logits)
    return (
        Explanation(_weighted(maps, kernel.T[chosen]), logits, chosen),
        jnp.abs(explained - logits).max(),
        tolerance,
    )


def _refused(model: nn.Module) -> UserError:
    return UserError(
        "cam is for networks that end in average pooling and a linear layer; "
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
    """The map's channels, each times the mean gradient of the score by it, summed, where positive (Selvaraju 2017,
    eq. 1 and 2).

    Only what follows the endpoint is differentiated.

    Args:
      model, variables, images, target: see above.
      endpoint: maps [N, h, w, C] or tokens [N, T, C]; None: the last with more than one place, see `map_endpoint`.
      counterfactual: whether gradients are negated: what speaks against the class (section 3.3).
    """
    at = _read(model, variables, images, target, endpoint)
    weights = at.gradients.mean((1, 2))  # [N, h, w, C] -> [N, C]
    return Explanation(nn.relu(_weighted(at.maps, -weights if counterfactual else weights)), at.logits, at.target)


@explains
def grad_cam_plus_plus(
    model: nn.Module, variables: Any, images: jax.Array, target: jax.Array, *, endpoint: str | None = None
) -> Explanation:
    """Grad-CAM with the positive gradients alone, each place's by a weight of its own (Chattopadhay 2018, eq. 5).

    As the paper's exponential of the score cancels, its higher derivatives are powers of the first (eq. 19): a place of
    gradient g, in a channel of which the map sums to S, has the weight g^2 / (2 g^2 + S g^3), here 1 / (2 + S g).

    Args:
      model, variables, images, target, endpoint: as of `grad_cam`.
    """
    at = _read(model, variables, images, target, endpoint)
    divisor = 2 + at.maps.sum((1, 2), keepdims=True) * at.gradients  # maps that are rectified leave it at 2 or more
    of_place = nn.relu(at.gradients) / jnp.where(divisor == 0, 1, divisor)
    return Explanation(nn.relu(_weighted(at.maps, of_place.sum((1, 2)))), at.logits, at.target)


class _Read(NamedTuple):
    """maps and gradients, float32 [N, h, w, C]; logits; target."""

    maps: jax.Array
    gradients: jax.Array
    logits: jax.Array
    target: jax.Array


def _read(model, variables, images, target, endpoint) -> _Read:
    """What is at an endpoint, and the gradient of the score by it."""
    about = outline(model, variables, images)
    name = map_endpoint(about, endpoint)

    def score(add):
        logits, x = read(model, variables, images, name, add)
        chosen = resolved(target, logits)
        return picked(logits, chosen).sum(), (x, logits, chosen)

    zeros = jnp.zeros(about.shape(name), jnp.float32)
    gradients, (x, logits, chosen) = jax.grad(score, has_aux=True)(zeros)
    return _Read(as_maps(x), as_maps(gradients), logits, chosen)


def _weighted(maps: jax.Array, weights: jax.Array) -> jax.Array:
    """[N, h, w, C] and [N, C] -> [N, h, w]. No matrix product, which would be rounded to less on a GPU."""
    return (maps * weights[:, None, None]).sum(-1)

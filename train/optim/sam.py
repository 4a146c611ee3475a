"""Sharpness-aware minimization: config.optimizer.sam, e.g. "sam(rho=0.05)" or "asam(rho=0.5)".

  Foret 2021    Sharpness-aware minimization for efficiently improving generalization, arXiv 2010.01412
  Kwon 2021     ASAM: adaptive sharpness-aware minimization, arXiv 2102.11600

Each step computes two gradients: at the weights w, and at w + e, where the first one predicts the highest loss within a
ball of radius rho. The optimizer gets the second gradient, at w. As in the code of the authors
(github.com/google-research/sam), batch-norm statistics and the state of the task are those of the first pass, and both
passes draw the same dropout masks. Metrics are those of the first pass, too, so that the loss is that of w.

By default, e is computed from the gradient of the whole batch, over all devices and accumulated parts, so that their
number does not matter. With per_device=True, each device computes e from its own examples, as in the experiments of the
paper (section 4.1, "m-sharpness").
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from train.optim.parameters import parameter_name
from train.setup import spec

TINY = 1e-12  # keeps a gradient of 0 from dividing by 0


class Sam(NamedTuple):
    """The value of optimizer.sam.

    Attributes:
      rho: radius of the ball.
      adaptive: whether the ball is an ellipsoid with axes |w| + eta (Kwon 2021).
      eta: see `adaptive`.
      per_device: whether each device computes its own perturbation.
      trained: tells by name whether a parameter is trained; frozen ones are not perturbed.
    """

    rho: float
    adaptive: bool = False
    eta: float = 0.0
    per_device: bool = False
    trained: Callable[[str], bool] = lambda name: True

    def perturbed(self, params: Any, grads: Any, squared_norm: Callable[[Any], jax.Array]) -> Any:
        """Returns w + e.

        Args:
          params: the weights w, or shards of them.
          grads: the gradient at w, in the same form.
          squared_norm: returns the sum of squares of a tree, over all shards.
        """

        def select(path, gradient):
            return gradient if self.trained(parameter_name(path)) else jnp.zeros_like(gradient)

        scales = jax.tree.map(self._scale, params)
        scaled = jax.tree.map(jnp.multiply, scales, jax.tree_util.tree_map_with_path(select, grads))
        factor = self.rho / (jnp.sqrt(squared_norm(scaled)) + TINY)
        return jax.tree.map(lambda w, scale, g: w + factor * scale * g, params, scales, scaled)

    def _scale(self, weights: jax.Array) -> jax.Array:
        """Returns the length of each weight's axis; that of biases and of norms is 1, as in the code of Kwon 2021."""
        return jnp.abs(weights) + self.eta if self.adaptive and weights.ndim > 1 else jnp.ones_like(weights)


def squared_norm(tree: Any) -> jax.Array:
    """Returns the sum of squares of whole arrays."""
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


def create(text: str, trained: Callable[[str], bool] = lambda name: True) -> Sam | None:
    """Reads the config's value of `optimizer.sam`; returns None for "".

    Args:
      text: the value.
      trained: tells by name whether a parameter is trained.

    Raises:
      UserError: the name or an argument is unknown, or a value is out of range.
    """

    def sam(rho: float = 0.05, per_device: bool = False) -> Sam:
        return Sam(_positive(rho), per_device=per_device, trained=trained)

    def asam(rho: float = 0.5, eta: float = 0.01, per_device: bool = False) -> Sam:
        if eta < 0:
            raise ValueError(f"eta={eta} must be at least 0")
        return Sam(_positive(rho), True, eta, per_device, trained)

    return spec.resolve_one("optimizer.sam", text, {"sam": sam, "asam": asam}) if text else None


def _positive(rho: float) -> float:
    if not 0 < rho < float("inf"):
        raise ValueError(f"rho={rho} must be positive")
    return rho

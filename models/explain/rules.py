"""Modified gradients of activation functions.

With these rules, the gradient of a unit with respect to the image shows the pattern that the unit responds to.

  Zeiler & Fergus 2014            Visualizing and understanding convolutional networks, arXiv 1311.2901      "deconvnet"
  Springenberg et al. 2015        Striving for simplicity: the all convolutional net, arXiv 1412.6806        "guided"

Other gradients do not change. The gradient of a convolution is the deconvnet's transposed filter. The gradient of
max-pooling goes to the position of the maximum, like the deconvnet's unpooling by switches. A network without
max-pooling has no switches, and the projections of the deconvnet's rule hardly depend on the image (Springenberg 2015).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError, choice_error
from models.layers.activation import activation

RULES = ("guided", "deconvnet")


def with_rule(model: nn.Module, rule: str) -> nn.Module:
    """Returns a network with the same outputs, to the bit, whose activations pass gradients by another rule.

    "guided" applies the activation's gradient to the positive part of dy (Springenberg 2015, fig. 1b). "deconvnet"
    passes the positive part of dy for any activation (Zeiler & Fergus 2014, section 2.1).

    Args:
      model: A network with the field `act`; fields such as "stem_act" are replaced if they are set.
      rule: One of RULES.

    Raises:
      UserError: The rule is unknown, or the network has no field `act`.
    """
    if rule not in RULES:
        raise choice_error("rule", rule, RULES)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.init}
    if "act" not in fields:
        raise UserError(
            f"{type(model).__name__} has no field `act`: rule='{rule}' needs a network whose activation is a field"
        )
    replaced: dict[str, Any] = {
        name: _ruled(rule, activation(value))
        for name, value in fields.items()
        if name == "act" or (name.endswith("_act") and value is not None)
    }
    return model.clone(**replaced)


@functools.cache  # the same function each time, because programs are compiled per function
def _ruled(rule: str, act: Callable) -> Callable:
    @jax.custom_vjp
    def ruled(x):
        return act(x)

    def forward(x):
        return act(x), x if rule == "guided" else None

    def backward(x, dy):
        dy = jnp.maximum(dy, 0)
        return jax.vjp(act, x)[1](dy) if rule == "guided" else (dy,)

    ruled.defvjp(forward, backward)
    return ruled

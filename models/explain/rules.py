"""Other rules by which a gradient passes an activation, so that what reaches the image shows what a unit responds to.

  Zeiler & Fergus 2014            Visualizing and understanding convolutional networks, arXiv 1311.2901      "deconvnet"
  Springenberg et al. 2015        Striving for simplicity: the all convolutional net, arXiv 1412.6806        "guided"

Nothing else of the gradient changes. A convolution's is the deconvnet's transposed filter, and that of max-pooling goes
to the place of the maximum, which is the deconvnet's unpooling by switches. In a network without max-pooling there are
no switches, and what the deconvnet's rule projects hardly depends on the image (Springenberg 2015).
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError, choice_error
from models.layers.activation import activation

RULES = ("guided", "deconvnet")


def with_rule(model: nn.Module, rule: str) -> nn.Module:
    """The same network, to the bit, whose activations pass gradients by another rule.

    "guided" passes the activation's own gradient of what is positive of dy (Springenberg 2015, fig. 1b);
    "deconvnet" passes what is positive of dy, wherever the activation was (Zeiler & Fergus 2014, section 2.1).

    Args:
      model: a network with the field `act`; "stem_act" and the like are replaced where they are set.
      rule: one of RULES.

    Raises:
      UserError: the rule is unknown, or the network has no field `act`.
    """
    if rule not in RULES:
        raise choice_error("rule", rule, RULES)
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.init}
    if "act" not in fields:
        raise UserError(
            f"{type(model).__name__} has no field `act`: rule='{rule}' is for networks whose activation is a field"
        )
    return model.clone(
        **{
            name: _ruled(rule, activation(value))
            for name, value in fields.items()
            if name == "act" or (name.endswith("_act") and value is not None)
        }
    )


@functools.cache  # one function of each, as programs are compiled once for each
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

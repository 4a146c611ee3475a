"""What a network with several exits ends in, at each of them (Huang et al. 2018, arXiv 1703.09844, section 5)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers.ingredients import Ingredients


class Exit(nn.Module):
    """A classifier on intermediate features: [N, H, W, C] -> logits [N, num_classes], float32.

    Two 3x3 convolutions with stride 2, each normalized and activated, the mean over what is left (2x2 in the paper),
    and a dense layer.

    Attributes:
      layers: constructors of the ingredients.
      num_classes: of the logits.
      features: channels of the convolutions; 0: as many as come in.
    """

    layers: Ingredients
    num_classes: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, dense, norm, act = self.layers
        for i in (1, 2):
            x = act(norm(name=f"norm{i}")(conv(self.features or x.shape[-1], 3, 2, name=f"conv{i}")(x)))
        return dense(self.num_classes, name="head")(x.mean((1, 2))).astype(jnp.float32)


def costs(cost: Any, num_exits: int) -> list[int]:
    """Mult-adds until each exit, those of the exits before it included: of what `models.complexity.analyze` found for a
    network whose exits are modules "exit1", "exit2", ...; the last one is the end of the network."""
    found, total = [], 0
    for layer, following in zip(cost.layers, (*cost.layers[1:], None), strict=True):
        total += layer.mult_adds
        name = f"exit{len(found) + 1}"
        if layer.path.startswith(f"{name}/") and not (following and following.path.startswith(name)):
            found.append(total)
    return [*found[:num_exits - 1], cost.mult_adds]


def confidence(logits: jax.Array) -> jax.Array:
    """The probability of the most probable class (section 5, budgeted batch): [..., num_classes] -> [...]."""
    return jnp.max(nn.softmax(logits), -1)

"""Building blocks that families share: a stage of blocks at one resolution, and the MLP of transformer-like blocks."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from models.layers.endpoint import Endpoint
from models.layers.ingredients import Ingredients


def apply_block(block: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns block(x)."""
    return block(x)


class Stage(nn.Module):
    """A sequence of blocks at one resolution, "block0", "block1", ..., each of which is an endpoint.

    Attributes:
      blocks: Constructors of the blocks, block(name=...).
      transition: Function of x that is applied before the blocks, e.g. to halve the resolution; its layers become
        layers of the stage.
    """

    blocks: Sequence[Callable]
    transition: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, visit: Callable[[Callable, jax.Array], jax.Array] = apply_block) -> jax.Array:
        """Returns the output of the last block; `visit(block, x)` computes that of each block."""
        if self.transition is not None:
            x = self.transition(x)
        for i, block in enumerate(self.blocks):
            x = Endpoint(f"block{i}")(visit(block(name=f"block{i}"), x))
        return x


def mlp(
    layers: Ingredients, x: jax.Array, width: int, dropout: Callable[[], Callable[[jax.Array], jax.Array]] | None = None
) -> jax.Array:
    """Applies the layers "expand", activation and "reduce" to the last axis of x, within a module's compact method.

    Args:
      layers: Constructors of the ingredients.
      x: [..., C].
      width: Features of the hidden layer.
      dropout: Constructor of a dropout layer after the activation.

    Returns:
      [..., C].
    """
    y = layers.act(layers.dense(width, name="expand")(x))
    return layers.dense(x.shape[-1], name="reduce")(dropout()(y) if dropout else y)

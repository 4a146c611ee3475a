"""Exits of a network, and the choice of an exit per example (Huang et al. 2018, arXiv 1703.09844)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError
from models.layers.conditional import compacted
from models.layers.endpoint import Endpoint
from models.layers.ingredients import Ingredients


class Exit(nn.Module):
    """A classifier on intermediate features: maps [N, H, W, C] to logits [N, num_classes], float32.

    It has two 3x3 convolutions with stride 2, each normalized and activated, the mean over the remaining map (2x2 in
    the paper), and a dense layer.

    Attributes:
      layers: Constructors of the ingredients.
      num_classes: Number of classes.
      features: Channels of the convolutions; 0 uses those of the input.
      mark: Function that marks the input of the dense layer as an endpoint of the network; None marks nothing.
    """

    layers: Ingredients
    num_classes: int
    features: int
    mark: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, dense, norm, act = self.layers
        features = self.features or x.shape[-1]
        for i in (1, 2):
            x = act(norm(name=f"norm{i}")(conv(features, 3, 2, name=f"conv{i}")(x)))
        x = x.mean((1, 2))  # [N, H, W, C] -> [N, C]
        return dense(self.num_classes, name="head")(self.mark(x) if self.mark else x).astype(jnp.float32)


def confidence(logits: jax.Array) -> jax.Array:
    """Returns the probability of the most probable class (section 4): [..., num_classes] -> [...]."""
    return jnp.max(nn.softmax(logits), -1)


class Leaving:
    """The exits at which examples leave a network during one call.

    Endpoints: "exit1", ..., the logits of each exit; with `leave`, examples that left earlier have the logits of their
    exit. Also "left", int32 [N], the index of the exit of each example, from 0.

    Args:
      module: The network.
      leave: float [exits - 1]; an example leaves at the first exit where its `confidence` is at least this threshold,
        else at the last. With None, all examples go to the last exit.
      exits: Number of exits.
      train: Whether this is a training step.

    Attributes:
      stays: bool [N], the examples that have not left; None for all.

    Raises:
      UserError: The number of thresholds is wrong, there are thresholds in training, or the exits differ in their
        number of classes.
    """

    stays: jax.Array | None

    def __init__(self, module: nn.Module, leave: Any, exits: int, train: bool):
        if train and leave is not None:
            raise UserError("leave must be None with train=True: examples leave early only in evaluation")
        if leave is not None and jnp.shape(leave) != (exits - 1,):
            raise UserError(
                f"leave must have {exits - 1} thresholds, one for each exit except the last, but its shape is "
                f"{jnp.shape(leave)}"
            )
        self._mark, self._leave, self._exits = functools.partial(Endpoint, parent=module), leave, exits
        self._logits: jax.Array | None = None
        self._number, self._left, self.stays = 0, 0, None

    def at(self, logits: jax.Array) -> jax.Array:
        """Records the logits of the next exit for the examples that stay, and returns those of all examples."""
        if self._logits is not None and logits.shape != self._logits.shape:  # `widths` can cause this
            raise UserError(
                f"exit{self._number + 1} has {logits.shape[1]} classes, but earlier exits have {self._logits.shape[1]}"
            )
        if self.stays is not None and self._logits is not None:
            logits = jnp.where(self.stays[:, None], logits, self._logits)
            self._left += self.stays.astype(jnp.int32)
        self._logits = self._mark(f"exit{self._number + 1}")(logits)
        self._number += 1
        if self._leave is not None and self._number < self._exits:
            unsure = ~(confidence(self._logits) >= self._leave[self._number - 1])  # also for NaN
            self.stays = unsure if self.stays is None else self.stays & unsure
        elif self._leave is not None:
            self._mark("left")(self._left + jnp.zeros(len(logits), jnp.int32))
        return self._logits


def run_exits(module: nn.Module, steps: Sequence[Callable], x: Any, leave: Any, train: bool) -> jax.Array:
    """Runs a network from exit to exit, with `leave` only for the examples that have not left; see `Leaving`.

    Args:
      module: The network, whose submodules the steps call.
      steps: One function per exit, step(module, x) -> (x for the next step, logits of this exit). With `leave`, steps
        after the first must not mark endpoints, because they are computed for only some examples.
      x: Input of the first step.
      leave: See `Leaving`.
      train: See `Leaving`.

    Returns:
      Logits [N, num_classes] of the exit where each example left.
    """
    leaving, final = Leaving(module, leave, len(steps), train), None
    for step in steps:
        stays = leaving.stays
        x, logits = step(module, x) if stays is None else compacted(step, module, stays, x)
        final = leaving.at(logits)
    assert final is not None
    return final


def costs(cost: Any, num_exits: int, of: str = "mult_adds") -> list[int]:
    """Returns the costs of an example that leaves at exit 1, ..., exit `num_exits`, including the earlier exits.

    Args:
      cost: Complexity of a network with modules "exit1", ...; the last exit may be the end of the network.
      num_exits: Number of exits.
      of: Field of a layer to sum up, "mult_adds" or "params".
    """
    total, until = 0, {}
    for layer in cost.layers:
        total += getattr(layer, of)
        until[layer.path.split("/")[0]] = total
    return [*(until[f"exit{k}"] for k in range(1, num_exits)), total]


def last_alone(cost: Any, num_exits: int) -> int:
    """Returns the mult-adds of an example for which no earlier exit is computed; see `costs` for the arguments."""
    earlier = {f"exit{k}" for k in range(1, num_exits)}
    return sum(layer.mult_adds for layer in cost.layers if layer.path.split("/")[0] not in earlier)

"""What a network with several exits ends in, at each of them (Huang et al. 2018, arXiv 1703.09844)."""

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
    """A classifier on intermediate features: [N, H, W, C] -> logits [N, num_classes], float32.

    Two 3x3 convolutions with stride 2, each normalized and activated, the mean over what is left (2x2 in the paper),
    and a dense layer.

    Attributes:
      layers: constructors of the ingredients.
      num_classes: of the logits.
      features: channels of the convolutions; 0: as many as come in.
      mark: what the dense layer's input goes through: an Endpoint of the network's, or None.
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
    """The probability of the most probable class (section 4): [..., num_classes] -> [...]."""
    return jnp.max(nn.softmax(logits), -1)


class Leaving:
    """Who leaves at which exit of a network, while it is called.

    Endpoints: "exit1", ..., the logits of each exit; with `leave`, those of earlier exits for who left there, and
    "left", int32 [N], the exit that each example left at, counted from 0.

    Args:
      module: the network.
      leave: float [exits - 1]: an example leaves at the first exit where its `confidence` is at least this, else at
        the last. None: all go to the last.
      exits: how many there are.

    Attributes:
      stays: who is still there, bool [N]; None: all.

    Raises:
      UserError: another number of thresholds; any in training; exits of unlike numbers of classes.
    """

    def __init__(self, module: nn.Module, leave: Any, exits: int, train: bool):
        if train and leave is not None:
            raise UserError("leave: examples leave early in evaluation, in training (train=True) all exits learn")
        if leave is not None and jnp.shape(leave) != (exits - 1,):
            raise UserError(
                f"leave must be {exits - 1} thresholds, one for each exit but the last, not an array of "
                f"shape {jnp.shape(leave)}"
            )
        self._mark, self._leave, self._exits = functools.partial(Endpoint, parent=module), leave, exits
        self._number, self._logits, self._left, self.stays = 0, None, 0, None

    def at(self, logits: jax.Array) -> jax.Array:
        """The next exit says this, of those who stay: logits of all, [N, num_classes]."""
        if self._logits is not None and logits.shape != self._logits.shape:  # as `widths` may have it
            raise UserError(
                f"exit{self._number + 1} gives {logits.shape[1]} classes, and those before it {self._logits.shape[1]}"
            )
        if self.stays is not None:
            logits = jnp.where(self.stays[:, None], logits, self._logits)
            self._left += self.stays.astype(jnp.int32)
        self._logits = self._mark(f"exit{self._number + 1}")(logits)
        self._number += 1
        if self._leave is not None and self._number < self._exits:
            unsure = ~(confidence(self._logits) >= self._leave[self._number - 1])  # NaN is
            self.stays = unsure if self.stays is None else self.stays & unsure
        elif self._leave is not None:
            self._mark("left")(self._left + jnp.zeros(len(logits), jnp.int32))
        return self._logits


def run_exits(module: nn.Module, steps: Sequence[Callable], x: Any, leave: Any, train: bool) -> jax.Array:
    """From exit to exit, for all examples or, with `leave`, for those that have not left: see `Leaving`.

    Args:
      module: the network, whose submodules the steps call.
      steps: one an exit, step(module, x) -> (x for the next step, logits of this exit). Those after the first mark no
        endpoints where there is `leave`: nothing may get out of what is computed for some.
      x: what the first is called with.
      leave, train: see `Leaving`.

    Returns:
      Logits [N, num_classes] of the exit that each example left at.
    """
    leaving = Leaving(module, leave, len(steps), train)
    for step in steps:
        stays = leaving.stays
        x, logits = step(module, x) if stays is None else compacted(step, module, stays, x)
        logits = leaving.at(logits)
    return logits


def costs(cost: Any, num_exits: int, of: str = "mult_adds") -> list[int]:
    """What an example costs that leaves at exit 1, ..., exit `num_exits`, the earlier exits included.

    Args:
      cost: a Complexity of a network with modules "exit1", ...; the last exit may be what the network ends in.
      of: what of each layer is added up, "mult_adds" or "params".
    """
    total, until = 0, {}
    for layer in cost.layers:
        total += getattr(layer, of)
        until[layer.path.split("/")[0]] = total
    return [*(until[f"exit{k}"] for k in range(1, num_exits)), total]


def last_alone(cost: Any, num_exits: int) -> int:
    """Mult-adds of an example for which no earlier exit is computed; arguments as of `costs`."""
    earlier = {f"exit{k}" for k in range(1, num_exits)}
    return sum(layer.mult_adds for layer in cost.layers if layer.path.split("/")[0] not in earlier)

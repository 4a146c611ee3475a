"""Groups of parameters: `config.optimizer.groups`, with learning rates and training times of their own."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from models.errors import UserError
from train.optim.parameters import parameter_name, pattern

ALWAYS = (0, math.inf)  # the steps from which and until which a parameter trains


class Groups(NamedTuple):
    """The settings of each parameter, by name.

    Attributes:
      factors: multiplier of the learning rate; 0 freezes the parameter.
      times: (first step, end step) of training; see `within`.
    """

    factors: dict[str, float]
    times: dict[str, tuple[int, float]]

    @property
    def frozen(self) -> bool:
        """Tells whether any parameter is frozen."""
        return 0 in self.factors.values()


def assign(names: Sequence[str], groups: Sequence[Sequence[Any]], to_steps: Callable[[str], int]) -> Groups:
    """Assigns a group to each parameter: the first one whose expression matches the full name.

    Args:
      names: names of the parameters.
      groups: tuples (regular expression, multiplier), optionally followed by the times at which training of the group
        starts and ends.
      to_steps: converts durations to steps.

    Raises:
      UserError: a group is invalid, a parameter has no group, or a group is the first match of no parameter.
    """

    def steps(start="0 steps", *end):
        return to_steps(start), to_steps(*end) if end else math.inf

    try:
        patterns = [
            (pattern(expression, "optimizer.groups"), float(factor), steps(*durations))
            for expression, factor, *durations in groups
        ]
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"optimizer.groups={groups}: must be tuples (expression, multiplier), e.g. (('.*', 1.0),), optionally "
            "followed by the times at which the group starts and stops training"
        ) from None
    if any(not 0 <= factor < math.inf for _, factor, _ in patterns):
        raise UserError(f"optimizer.groups={groups}: a multiplier must be 0 (frozen) or positive")
    if any(start >= end for _, _, (start, end) in patterns):
        raise UserError(f"optimizer.groups={groups}: a group ends before it starts")
    factors, times, matched = {}, {}, set()
    for name in names:
        match = next((i for i, (expression, *_) in enumerate(patterns) if expression.fullmatch(name)), None)
        if match is None:
            raise UserError(f"optimizer.groups: no group matches the parameter '{name}'; end them with ('.*', 1.0)")
        matched.add(match)
        _, factors[name], times[name] = patterns[match]
    for i, (expression, *_) in enumerate(patterns):
        if i not in matched:
            raise UserError(
                f"optimizer.groups '{expression.pattern}' matches no parameter that earlier groups leave; one "
                f"parameter is named {names[0]}"
            )
    return Groups(factors, times)


def multiply(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of each parameter by its factor."""
    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, update: factors[parameter_name(path)] * update, updates
        )
    )


def within(times: dict[str, tuple[int, float]]) -> optax.GradientTransformation:
    """Sets the updates of each parameter to 0 before its first step and from its end step on."""

    def update(updates, state, params=None):
        del params

        def gate(path, update):
            start, end = times[parameter_name(path)]
            return jnp.where((state >= start) & (state < end), update, 0)

        return jax.tree_util.tree_map_with_path(gate, updates), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def freeze(optimizer: optax.GradientTransformation, factors: dict[str, float]) -> optax.GradientTransformation:
    """Restricts an optimizer to parameters whose factor is not 0; the others do not change and have no state."""
    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()},
        lambda tree: jax.tree_util.tree_map_with_path(
            lambda path, _: "trained" if factors[parameter_name(path)] else "frozen", tree
        ),
    )

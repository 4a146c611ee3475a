"""Lookahead: config.lookahead, e.g. "lookahead(0.95, every=5, start='3 epochs')".

  Zhang 2019     Lookahead optimizer: k steps forward, 1 step back, arXiv 1907.08610
  Jordan 2024    arXiv 2404.00498, section 3.4: a decay that grows with training, running statistics averaged as well

The slow weights are TrainState.ema, which is evaluated and exported.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.setup import spec

Average = Callable[[jax.Array, Any, Any], tuple[Any, Any]]


def create(text: str, to_steps: Callable[[str], int], total: int) -> Average | None:
    """Reads the config's value of `lookahead`.

    Args:
      text: the value; "" for no averaging.
      to_steps: converts durations to steps.
      total: steps of the whole training.

    Returns:
      (number of steps done, fast {"params", "model_state"}, slow) -> (fast, slow) after that step; None for "".

    Raises:
      UserError: the name or an argument is unknown, or a value is out of range.
    """
    return spec.resolve_one("lookahead", text, {"lookahead": lookahead}, to_steps, total) if text else None


def lookahead(
    to_steps: Callable[[str], int], total: int, decay: float, power: float = 0.0, every: int = 1, start: str = "0 steps"
) -> Average:
    """Averages every `every` steps after `start`: slow = r slow + (1 - r) fast, and then fast = slow.

    The rate is r = decay^every (step / total)^power. Up to and including the first average, slow = fast.

    Raises:
      ValueError: a value is out of range.
    """
    begin = to_steps(start)
    if not 0 <= decay < 1 or power < 0 or every < 1 or begin >= total:
        raise ValueError(
            f"decay={decay}, power={power}, every={every}, start='{start}': decay must be in [0, 1), power at "
            "least 0, every at least 1, and start within the training"
        )
    first = (begin // every + 1) * every

    def average(step, fast, slow):
        rate = decay**every * (step / total) ** power
        due = (step > first) & (step % every == 0)
        moved = jax.tree.map(functools.partial(_moved, rate), fast, slow)
        slow = jax.tree.map(lambda a, b, c: jnp.where(step <= first, a, jnp.where(due, b, c)), fast, moved, slow)
        return jax.tree.map(lambda a, b: jnp.where(due, b, a), fast, slow), slow

    return average


def _moved(rate, fast, slow):
    """Returns the new slow leaf; counters are not averaged. In this form, frozen kernels stay the same to the bit."""
    return slow + (1 - rate) * (fast - slow) if jnp.issubdtype(fast.dtype, jnp.inexact) else fast

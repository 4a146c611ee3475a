"""Schedule-free optimizers, whose evaluated weights are an average of those that they train.

  Defazio 2024    The road less scheduled, arXiv 2405.15682

The gradient is taken at y = (1 - b1) z + b1 x. The base optimizer moves z, and x is the average of z, weighted by the
square of the largest learning rate so far. TrainState.params holds y, and the optimizer's state z. TrainState.ema holds
x, which is evaluated, exported and saved as best, as with ema_decay and lookahead. The learning rate may warm up but
must not decrease, because the average takes the place of a schedule.
"""

from typing import Any

import jax
import optax
import optax.contrib
from optax.contrib import ScheduleFreeState

from train.optim.optimizers import DecayMask, Schedule, check_fractions


def sgd(
    learning_rate: Schedule, weight_decay: float, decay_mask: DecayMask, b1: float = 0.9, weight_lr_power: float = 2.0
) -> optax.GradientTransformation:
    """Builds schedule-free SGD; the decay is that of y, added to the gradient."""
    base = optax.chain(optax.add_decayed_weights(weight_decay, decay_mask), optax.sgd(learning_rate))
    return _free(base, learning_rate, b1, weight_lr_power)


def adamw(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_lr_power: float = 2.0,
) -> optax.GradientTransformation:
    """Builds schedule-free AdamW; the decay is that of y, decoupled and multiplied by the learning rate."""
    check_fractions(b2=b2)
    base = optax.chain(
        # Adam without momentum, as optax.contrib.schedule_free_adamw has it
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return _free(base, learning_rate, b1, weight_lr_power)


def _free(
    base: optax.GradientTransformation, learning_rate: Schedule, b1: float, power: float
) -> optax.GradientTransformation:
    if not 0 < b1 < 1:
        raise ValueError(f"b1={b1} must be between 0 and 1")
    return optax.contrib.schedule_free(base, learning_rate, b1, power)


def is_named(text: str) -> bool:
    """Tells whether the config's value of `optimizer.name` is a schedule-free optimizer."""
    return text.startswith("schedule_free_")


def averaged(opt_state: Any, params: Any) -> Any:
    """Returns the parameters to evaluate, x; frozen parameters are as trained.

    Args:
      opt_state: the state of an optimizer, which may be wrapped, e.g. by clipping.
      params: the parameters that it trains, y.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ScheduleFreeState))
    state = next(node for node in nodes if isinstance(node, ScheduleFreeState))

    def evaluated(z, y):
        return y if isinstance(z, optax.MaskedNode) else (y - (1 - state.b1) * z) / state.b1

    return jax.tree.map(evaluated, state.z, params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))

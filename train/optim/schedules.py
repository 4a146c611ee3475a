"""Learning-rate schedules: `config.optimizer.schedule`, e.g. "step(0.1, '32000 steps', '48000 steps')"."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from models.errors import UserError
from train.optim import catalogue
from train.optim.optimizers import Schedule
from train.setup import spec
from train.setup.config import Reader

ToSteps = Callable[[str], int]  # converts a duration of the config to steps


# Each schedule takes (to_steps, warmup, total) and its own arguments from the config. It returns a function from the
# step to a factor of the base learning rate. `warmup` and `total` are numbers of steps.


def constant(to_steps: ToSteps, warmup: int, total: int) -> Schedule:
    """Stays at 1."""
    del to_steps, warmup, total
    return lambda step: jnp.ones(())


def step(to_steps: ToSteps, warmup: int, total: int, factor: float, *boundaries: str) -> Schedule:
    """Multiplies by `factor` at each boundary.

    For example, "step(0.1, '32000 steps', '48000 steps')".
    """
    del warmup, total
    at = jnp.asarray([to_steps(boundary) for boundary in boundaries])
    return lambda step: jnp.asarray(factor, jnp.float32) ** jnp.sum(step >= at)


def cosine(to_steps: ToSteps, warmup: int, total: int, final: float = 0.0) -> Schedule:
    """Follows half a cosine from 1 at the end of the warm-up to `final` at the end of training (Loshchilov 2017)."""
    del to_steps
    return lambda step: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, warmup, total)))


def linear(to_steps: ToSteps, warmup: int, total: int, final: float = 0.0) -> Schedule:
    """Falls linearly from 1 at the end of the warm-up to `final` at the end of training."""
    del to_steps
    return lambda step: 1 + (final - 1) * _progress(step, warmup, total)


def inverse_sqrt(to_steps: ToSteps, warmup: int, total: int) -> Schedule:
    """Falls as the square root of warmup / step after the warm-up (Vaswani 2017, section 5.3)."""
    del to_steps, total
    return lambda step: jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, max(warmup, 1)))


def triangle(to_steps: ToSteps, warmup: int, total: int, start: float, peak: str, final: float) -> Schedule:
    """Rises linearly from `start` to 1 at `peak`, then falls linearly to `final`.

    For example, "triangle(0.2, '23%', 0.07)".
    """
    if warmup:
        raise ValueError("this schedule has its own warm-up; set optimizer.warmup='0 steps'")
    at = [0, to_steps(peak), total]
    if not 0 < at[1] < total:
        raise ValueError(f"peak='{peak}' is not within the training")
    return lambda step: jnp.interp(step, jnp.asarray(at), jnp.asarray([start, 1.0, final]))


def _progress(step, warmup, total):
    return jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)


SCHEDULES = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "triangle": triangle,
}


def create(config: Reader, to_steps: ToSteps, total: int) -> Schedule:
    """Returns the learning rate by step: `config.learning_rate` x a linear warm-up x `config.schedule`.

    A learning rate of 0 stands for the optimizer's usual one (train/optim/catalogue.py). The warm-up rises linearly
    from `warmup_from`, a fraction of the learning rate, and reaches 1 after `warmup`.

    Args:
      config: the section `optimizer`.
      to_steps: converts durations to steps.
      total: steps of the whole training.

    Raises:
      UserError: a value is out of range, or the schedule is unknown.
    """
    check_range("learning_rate", config.learning_rate, 0)
    base, _ = catalogue.usual(config.name, config.learning_rate)
    warmup, start = to_steps(config.warmup), config.warmup_from
    check_range("warmup_from", start, 0, 1)
    if warmup > total:
        raise UserError(f"optimizer.warmup={config.warmup} is longer than the training")
    main = spec.resolve_one("optimizer.schedule", config.schedule, SCHEDULES, to_steps, warmup, total)

    def learning_rate(count):
        ramp = start + (1 - start) * jnp.minimum(1.0, (count + 1) / max(warmup, 1)) if warmup else 1.0
        return jnp.asarray(base * ramp * main(count), jnp.float32)

    return learning_rate


def check_range(key: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UserError if a value of the section `optimizer` is not between `low` and `high`."""
    if not low <= value <= high:
        raise UserError(f"optimizer.{key}={value} must be at least {low}" + (f", at most {high}" * (high < math.inf)))

"""Learning-rate schedules: `config.optimizer.schedule`, e.g. "step(0.1, '32000 steps', '48000 steps')"."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from models.errors import UserError
from train.optim import catalogue
from train.optim.optimizers import Schedule
from train.setup import spec
from train.setup.config import Reader

OWN_WARMUP = "this schedule has its own warm-up; set optimizer.warmup='0 steps'"
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
        raise ValueError(OWN_WARMUP)
    at = [0, to_steps(peak), total]
    if not 0 < at[1] < total:
        raise ValueError(f"peak='{peak}' is not within the training")
    return lambda step: jnp.interp(step, jnp.asarray(at), jnp.asarray([start, 1.0, final]))


def cyclic(to_steps: ToSteps, warmup: int, total: int, half: str, low: float = 0.1, decay: float = 1.0) -> Schedule:
    """Rises from `low` to 1 and falls back, in cycles of twice `half` (Smith 2017, cyclical learning rates).

    The height of each cycle is `decay` times that of the one before: 1 is the policy "triangular", 0.5 "triangular2".
    For example, "cyclic('5 epochs', low=0.1)".
    """
    del total
    length = to_steps(half)
    if warmup:
        raise ValueError(OWN_WARMUP)
    if length < 1 or not 0 <= low <= 1 or not 0 < decay <= 1:
        raise ValueError(
            f"half='{half}', low={low}, decay={decay}: half must be at least a step, low in [0, 1], decay in (0, 1]"
        )

    def factor(step):
        cycle = jnp.floor(step / (2 * length))
        height = 1 - jnp.abs(step / length - 2 * cycle - 1)
        return low + (1 - low) * height * decay**cycle

    return factor


def one_cycle(
    to_steps: ToSteps, warmup: int, total: int, peak: str = "30%", start: float = 0.04, final: float = 4e-6
) -> Schedule:
    """Rises along half a cosine from `start` to 1 at `peak`, and falls along another to `final` (Smith 2019).

    This is the form of PyTorch's and optax's one-cycle schedule, with their defaults. `triangle` is the linear one.
    """
    if warmup:
        raise ValueError(OWN_WARMUP)
    at = to_steps(peak)
    if not 0 < at < total:
        raise ValueError(f"peak='{peak}' is not within the training")

    def factor(step):
        rise, fall = jnp.clip(step / at, 0, 1), jnp.clip((step - at) / (total - at), 0, 1)
        return jnp.where(step < at, _half_cosine(start, 1.0, rise), _half_cosine(1.0, final, fall))

    return factor


def restarts(
    to_steps: ToSteps, warmup: int, total: int, period: str, longer: float = 1.0, final: float = 0.0
) -> Schedule:
    """Falls along half a cosine to `final` and starts again, after each period (Loshchilov 2017, SGDR).

    The first period begins at the end of the warm-up; each is `longer` times as long as the one before. For example,
    "restarts('10 epochs', longer=2)".
    """
    first = to_steps(period)
    if first < 1 or longer < 1:
        raise ValueError(f"period='{period}', longer={longer}: period must be at least a step, longer at least 1")
    starts, length = [warmup], float(first)
    while starts[-1] + length < total:
        starts.append(round(starts[-1] + length))
        length *= longer
    at, ends = jnp.asarray(starts), jnp.asarray([*starts[1:], round(starts[-1] + length)])

    def factor(step):
        period = jnp.maximum(jnp.sum(step >= at) - 1, 0)
        progress = (step - at[period]) / (ends[period] - at[period])
        return _half_cosine(1.0, final, jnp.clip(progress, 0, 1))

    return factor


def _half_cosine(start, end, progress):
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _progress(step, warmup, total):
    return jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)


SCHEDULES = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "linear": linear,
    "inverse_sqrt": inverse_sqrt,
    "triangle": triangle,
    "cyclic": cyclic,
    "one_cycle": one_cycle,
    "restarts": restarts,
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

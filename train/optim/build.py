"""Optimizers from a config, by optax: schedules, and masks by regular expression for decay and learning rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.errors import UserError, choice_error
from train import spec
from train.optim import pruning as prune
from train.optim import weight_sharing
from train.parameters import parameter_name, parameter_names, pattern

Schedule = Callable[[jax.Array], jax.Array]
MULTIPLIED = ("update", "gradient")
ALWAYS = (0, math.inf)  # the steps from and until which a group trains


# Each takes (learning_rate, weight_decay, decay_mask) and its own arguments from the config.


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1)")


def sgd(learning_rate, weight_decay, decay_mask, momentum: float = 0.9, nesterov: bool = False):
    """Stochastic gradient descent; the decay is added to the gradient (coupled), as in He 2016 and Goyal 2017."""
    _check_fractions(momentum=momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask), optax.sgd(learning_rate, momentum or None, nesterov)
    )


def adam(learning_rate, weight_decay, decay_mask, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Adam (Kingma 2015); the decay is added to the gradient (coupled)."""
    _check_fractions(b1=b1, b2=b2)
    return optax.chain(optax.add_decayed_weights(weight_decay, decay_mask), optax.adam(learning_rate, b1, b2, eps))


def adamw(learning_rate, weight_decay, decay_mask, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """AdamW (Loshchilov 2019); the decay is decoupled and multiplied by the learning rate."""
    _check_fractions(b1=b1, b2=b2)
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


def lars(learning_rate, weight_decay, decay_mask, momentum: float = 0.9, nesterov: bool = False, trust: float = 0.001):
    """LARS (You 2017); the trust ratio, too, is applied only where weights decay."""
    _check_fractions(momentum=momentum)
    return optax.lars(
        learning_rate,
        weight_decay,
        decay_mask,
        trust_coefficient=trust,
        trust_ratio_mask=decay_mask,
        momentum=momentum,
        nesterov=nesterov,
    )


def lamb(learning_rate, weight_decay, decay_mask, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6):
    """LAMB (You 2020)."""
    _check_fractions(b1=b1, b2=b2)
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw, "lars": lars, "lamb": lamb}


# Each takes (to_steps, warmup, total) and its own arguments, and returns step -> factor of the base learning rate.


def constant(to_steps, warmup, total):
    """1 throughout."""
    del to_steps, warmup, total
    return lambda step: jnp.ones(())


def step(to_steps, warmup, total, factor: float, *boundaries: str):
    """Multiplied by `factor` at each boundary, e.g. step(0.1, '32000 steps', '48000 steps')."""
    del warmup, total
    at = jnp.asarray([to_steps(boundary) for boundary in boundaries])
    return lambda step: jnp.asarray(factor, jnp.float32) ** jnp.sum(step >= at)


def cosine(to_steps, warmup, total, final: float = 0.0):
    """Half a cosine from 1 to `final` between the end of the warm-up and the end of training (Loshchilov 2017)."""
    del to_steps
    return lambda step: final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, warmup, total)))


def linear(to_steps, warmup, total, final: float = 0.0):
    """A straight line from 1 to `final` between the end of the warm-up and the end of training."""
    del to_steps
    return lambda step: 1 + (final - 1) * _progress(step, warmup, total)


def inverse_sqrt(to_steps, warmup, total):
    """sqrt(warmup / step) after the warm-up (Vaswani 2017, section 5.3)."""
    del to_steps, total
    return lambda step: jnp.sqrt(max(warmup, 1) / jnp.maximum(step + 1, max(warmup, 1)))


def triangle(to_steps, warmup, total, start: float, peak: str, final: float):
    """A straight line from `start` to 1 at `peak`, and one to `final` at the end: triangle(0.2, '23%', 0.07)."""
    if warmup:
        raise ValueError("it rises by itself; set optimizer.warmup='0 steps'")
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


def schedule(config: Any, to_steps: Callable[[str], int], total: int) -> Schedule:
    """Learning rate by step: `config.learning_rate` x a linear warm-up x `config.schedule`.

    The warm-up rises linearly from `warmup_from` (a fraction of the learning rate) and reaches 1 after `warmup`.
    """
    base, warmup, start = config.learning_rate, to_steps(config.warmup), config.warmup_from
    _check_range("learning_rate", base, 0)
    _check_range("warmup_from", start, 0, 1)
    if warmup > total:
        raise UserError(f"optimizer.warmup={config.warmup} is longer than the training")
    main = spec.resolve_one("optimizer.schedule", config.schedule, SCHEDULES, to_steps, warmup, total)

    def learning_rate(count):
        ramp = start + (1 - start) * jnp.minimum(1.0, (count + 1) / max(warmup, 1)) if warmup else 1.0
        return jnp.asarray(base * ramp * main(count), jnp.float32)

    return learning_rate


def create(
    config: Any,
    params: Any,
    to_steps: Callable[[str], int],
    total: int,
    pruning: prune.Plan | None = None,
    sharing: weight_sharing.Plan | None = None,
    coupled: Callable[[list[str]], Mapping[str, Sequence[str]]] | None = None,
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer that `config` (the section `optimizer`) describes, and its learning-rate schedule.

    Every parameter must be covered by `config.groups`, pairs (regular expression, multiplier of the learning rate);
    the first that matches the whole name counts, 0 freezes. `config.decay` is the expression of what decays.
    Frozen parameters have no optimizer state and no part in the gradient norm that `clip_norm` bounds. A third entry is
    the time from which a group trains (gradual unfreezing, Howard & Ruder 2018, section 3.3), a fourth the time until
    which it does: before and after, the optimizer sees its gradients, so that momentum and Adam's averages are right
    when it starts, but does not move it. `config.multiplied` says whether multipliers are of the whole update, decay
    included, or of the gradient: then every parameter decays at the rate of multiplier 1 (of sgd alone).
    `config.l1` pulls what decays to 0 by a constant force. `pruning` cuts weights while all this goes on
    (train/optim/pruning.py; `coupled` gives it, of the kernels whose filters are to go, the vectors that go with them),
    `sharing` lets the weights of a layer have few values (train/optim/weight_sharing.py).

    Raises:
      UserError: a parameter that no group covers, an expression that matches nothing, an unknown name.
    """
    names = parameter_names(params)
    decays = pattern(config.decay, "optimizer.decay")
    weight_decay = config.weight_decay
    _check_range("weight_decay", weight_decay, 0)
    _check_range("l1", config.l1, 0)
    _check_range("clip_norm", config.clip_norm, 0)
    if (weight_decay or config.l1) and not any(decays.fullmatch(name) for name in names):
        raise UserError(f"optimizer.decay '{config.decay}' matches no parameter, e.g. {names[0]}")
    factors, times = assign(names, config.groups, to_steps)
    if config.multiplied not in MULTIPLIED:
        raise choice_error("optimizer.multiplied", config.multiplied, MULTIPLIED)
    of_gradient = config.multiplied == "gradient"
    if of_gradient and not config.name.startswith("sgd"):
        raise UserError(f"optimizer.multiplied=gradient is for sgd; {config.name} undoes a factor of the gradient")
    if late := [start for start, _ in times.values() if start >= max(total, 1)]:
        raise UserError(f"optimizer.groups={config.groups}: a group starts at step {max(late)} of {total}")

    # A callable, because `partition` shows the inner optimizer only the trainable part of the tree.
    def decay_mask(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(decays.fullmatch(parameter_name(path))), tree)

    learning_rate = schedule(config, to_steps, total)
    optimizer = spec.resolve_one("optimizer.name", config.name, OPTIMIZERS, learning_rate, weight_decay, decay_mask)
    multiply = optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, update: factors[parameter_name(path)] * update, updates
        )
    )
    if of_gradient:
        optimizer = optax.chain(multiply, optimizer)
    if config.l1:
        optimizer = optax.chain(optax.masked(_l1(config.l1), decay_mask), optimizer)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if set(factors.values()) != {1.0} and not of_gradient:
        optimizer = optax.chain(optimizer, multiply)
    if set(times.values()) != {ALWAYS}:
        optimizer = optax.chain(optimizer, _within(times))
    if 0 in factors.values():
        optimizer = optax.partition(
            {"trained": optimizer, "frozen": optax.set_to_zero()},
            lambda tree: jax.tree_util.tree_map_with_path(
                lambda path, _: "trained" if factors[parameter_name(path)] else "frozen", tree
            ),
        )
    if pruning:
        with_vectors = pruning.structure == "filters" and coupled
        vectors = coupled([name for name in names if pruning.what.fullmatch(name)]) if with_vectors else {}
        optimizer = prune.wrap(optimizer, pruning, vectors)
    if sharing:
        optimizer = weight_sharing.wrap(optimizer, sharing)
    return optimizer, learning_rate


def _l1(factor: float) -> optax.GradientTransformation:
    """Adds the gradient of `factor` times the sum of absolute values."""
    return optax.stateless(
        lambda gradients, params: jax.tree.map(
            lambda gradient, weight: gradient + factor * jnp.sign(weight), gradients, params
        )
    )


def _within(times: dict[str, tuple[int, float]]) -> optax.GradientTransformation:
    """Updates of a parameter are 0 before its first step and from its last on."""

    def update(updates, count, params=None):
        del params

        def gate(path, update):
            start, end = times[parameter_name(path)]
            return jnp.where((count >= start) & (count < end), update, 0)

        return jax.tree_util.tree_map_with_path(gate, updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _check_range(key: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        raise UserError(f"optimizer.{key}={value} must be at least {low}" + (f", at most {high}" * (high < math.inf)))


def assign(
    names: Sequence[str], groups: Sequence[Sequence[Any]], to_steps: Callable[[str], int]
) -> tuple[dict[str, float], dict[str, tuple[int, float]]]:
    """Multiplier, and the steps from and until which it trains, by parameter name; every name is covered and every
    expression is the first match of some name.
    """

    def steps(start="0 steps", *end):
        return to_steps(start), to_steps(*end) if end else math.inf

    try:
        patterns = [
            (pattern(expression, "optimizer.groups"), float(factor), steps(*given))
            for expression, factor, *given in groups
        ]
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"optimizer.groups={groups}: want pairs (expression, multiplier), or with "
            "the times from and until which it trains as well, as (('.*', 1.0),)"
        ) from None
    if any(not 0 <= factor < math.inf for _, factor, _ in patterns):
        raise UserError(f"optimizer.groups={groups}: a multiplier must be 0 (frozen) or positive")
    if any(start >= end for _, _, (start, end) in patterns):
        raise UserError(f"optimizer.groups={groups}: a group ends before it starts")
    factors, times, used = {}, {}, set()
    for name in names:
        match = next((i for i, (expression, *_) in enumerate(patterns) if expression.fullmatch(name)), None)
        if match is None:
            raise UserError(f"optimizer.groups cover no parameter '{name}'; end them with ('.*', 1.0)")
        used.add(match)
        _, factors[name], times[name] = patterns[match]
    for i, (expression, *_) in enumerate(patterns):
        if i not in used:
            raise UserError(
                f"optimizer.groups '{expression.pattern}' is the first match of no parameter, e.g. {names[0]}"
            )
    return factors, times

"""Optimizers from a config's section `optimizer`, built with optax."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.errors import UserError, choice_error
from train.optim import catalogue, groups, pruning, schedule_free, schedules, weight_sharing
from train.optim.optimizers import DecayMask
from train.optim.parameters import HEADS, parameter_name, parameter_names, pattern
from train.setup.config import Reader

MULTIPLIED = ("update", "gradient")


def create(
    config: Reader,
    params: Any,
    to_steps: schedules.ToSteps,
    total: int,
    plan: pruning.Plan | None = None,
    sharing: weight_sharing.Plan | None = None,
    coupled: Callable[[list[str]], Mapping[str, Sequence[str]]] | None = None,
) -> tuple[optax.GradientTransformation, schedules.Schedule]:
    """Builds an optimizer and its learning-rate schedule.

    `config.groups` assigns a multiplier of the learning rate, and optionally times of training, to each parameter
    (train/optim/groups.py). Frozen parameters have no optimizer state, and `clip_norm` ignores their gradients. Outside
    its times, a group does not move, but the optimizer still sees its gradients, so that momentum and Adam's averages
    are right when its training starts (gradual unfreezing, Howard & Ruder 2018, section 3.3).

    `config.multiplied` is "update" or "gradient". With "update", a multiplier scales the whole update, including weight
    decay. With "gradient", which is for SGD only, it scales the gradient, and weight decay does not depend on it.
    `config.decay` is a regular expression of the parameters that decay. `config.l1` pulls the same parameters to 0 by a
    constant force. `config.adaptive_clip` bounds gradients by their weights, except in classifier heads.

    Args:
      config: the section `optimizer`; see configs/base.py.
      params: the parameters, arrays or shapes.
      to_steps: converts durations to steps.
      total: steps of the whole training.
      plan: which weights are pruned when; None for none.
      sharing: which weights share values; None for none.
      coupled: returns, for kernels whose filters are pruned, the vectors with one entry per filter
        (`train.optim.pruning.vectors`).

    Raises:
      UserError: a value is invalid, a parameter has no group, or an expression matches nothing.
    """
    names = parameter_names(params)
    decay_mask = _decay_mask(config, names)
    by_group = _groups(config, names, to_steps, total)
    learning_rate = schedules.create(config, to_steps, total)
    optimizer = catalogue.create(config.name, learning_rate, config.weight_decay, decay_mask)
    multiply = groups.multiply(by_group.factors)
    of_gradient = config.multiplied == "gradient"
    if of_gradient:
        optimizer = optax.chain(multiply, optimizer)
    if config.l1:
        optimizer = optax.chain(optax.masked(_l1(config.l1), decay_mask), optimizer)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.adaptive_clip:
        optimizer = optax.chain(_adaptive_clip(config.adaptive_clip), optimizer)
    if set(by_group.factors.values()) != {1.0} and not of_gradient:
        optimizer = optax.chain(optimizer, multiply)
    if set(by_group.times.values()) != {groups.ALWAYS}:
        optimizer = optax.chain(optimizer, groups.within(by_group.times))
    if by_group.frozen:
        optimizer = groups.freeze(optimizer, by_group.factors)
    if plan:
        kernels = [name for name in names if plan.what.fullmatch(name)]
        vectors = coupled(kernels) if plan.structure == "filters" and coupled else {}
        optimizer = pruning.wrap(optimizer, plan, vectors)
    if sharing:
        optimizer = weight_sharing.wrap(optimizer, sharing)
    return optimizer, learning_rate


def trained(config: Reader, params: Any, to_steps: schedules.ToSteps) -> Callable[[str], bool]:
    """Returns the function that tells by name whether a parameter is trained, that is, not frozen by its group."""
    factors = groups.assign(parameter_names(params), config.groups, to_steps).factors
    return lambda name: factors[name] > 0


def _decay_mask(config: Reader, names: Sequence[str]) -> DecayMask:
    """Checks the settings of decay; returns the mask of the parameters that decay."""
    decays = pattern(config.decay, "optimizer.decay")
    for key in ("weight_decay", "l1", "clip_norm", "adaptive_clip"):
        schedules.check_range(key, getattr(config, key), 0)
    if (config.weight_decay or config.l1) and not any(decays.fullmatch(name) for name in names):
        raise UserError(f"optimizer.decay '{config.decay}' matches no parameter; one is named {names[0]}")

    # A function rather than a tree, because `partition` shows the inner optimizer only the trainable part of the tree
    def decay_mask(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(decays.fullmatch(parameter_name(path))), tree)

    return decay_mask


def _groups(config: Reader, names: Sequence[str], to_steps: schedules.ToSteps, total: int) -> groups.Groups:
    """Assigns groups to parameters, and checks the settings that depend on them."""
    by_group = groups.assign(names, config.groups, to_steps)
    if config.multiplied not in MULTIPLIED:
        raise choice_error("optimizer.multiplied", config.multiplied, MULTIPLIED)
    if config.multiplied == "gradient" and not config.name.startswith("sgd"):
        raise UserError(
            f"optimizer.multiplied=gradient is for sgd; {config.name} normalizes gradients, which cancels a multiplier"
        )
    if schedule_free.is_named(config.name):
        _check_schedule_free(config, by_group)
    if late := [start for start, _ in by_group.times.values() if start >= max(total, 1)]:
        raise UserError(
            f"optimizer.groups={config.groups}: a group starts training at step {max(late)}, but the training "
            f"ends at step {total}"
        )
    return by_group


def _check_schedule_free(config: Reader, by_group: groups.Groups) -> None:
    """Raises UserError for settings that would move the trained weights apart from the optimizer's own."""
    if config.schedule != "constant":
        raise UserError(
            f"optimizer.schedule={config.schedule}: {config.name} averages instead of lowering the learning rate; set "
            "optimizer.schedule=constant (a warm-up is allowed)"
        )
    if not set(by_group.factors.values()) <= {0.0, 1.0} or set(by_group.times.values()) != {groups.ALWAYS}:
        raise UserError(
            f"optimizer.groups={config.groups}: {config.name} supports multipliers 0 and 1 for the whole training"
        )


def _adaptive_clip(most: float) -> optax.GradientTransformation:
    """Bounds the gradient of each unit by `most` times the norm of its weights (Brock 2021, section 4).

    A unit is an output of a kernel, or a whole vector. The last layer is not clipped, as in the paper.
    """
    heads = re.compile(HEADS)
    return optax.masked(
        optax.adaptive_grad_clip(most),
        lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: not heads.fullmatch(parameter_name(path)), tree),
    )


def _l1(factor: float) -> optax.GradientTransformation:
    """Adds the gradient of `factor` times the sum of absolute values."""
    return optax.stateless(
        lambda gradients, params: jax.tree.map(
            lambda gradient, weight: gradient + factor * jnp.sign(weight), gradients, params
        )
    )

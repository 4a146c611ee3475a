"""Optimizers from a config's section `optimizer`, built with optax."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.errors import UserError, choice_error
from train.optim import groups, pruning, schedules, weight_sharing
from train.optim.parameters import parameter_name, parameter_names, pattern
from train.setup import spec
from train.setup.config import Reader

DecayMask = Callable[[Any], Any]  # parameters -> a tree of bools: which of them decay
MULTIPLIED = ("update", "gradient")


# Each optimizer takes (learning_rate, weight_decay, decay_mask) and its own arguments from the config.


def _check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1)")


def sgd(
    learning_rate: schedules.Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Builds SGD with coupled weight decay, which is added to the gradient (He 2016, Goyal 2017)."""
    _check_fractions(momentum=momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask), optax.sgd(learning_rate, momentum or None, nesterov)
    )


def adam(
    learning_rate: schedules.Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Builds Adam (Kingma 2015) with coupled weight decay, which is added to the gradient."""
    _check_fractions(b1=b1, b2=b2)
    return optax.chain(optax.add_decayed_weights(weight_decay, decay_mask), optax.adam(learning_rate, b1, b2, eps))


def adamw(
    learning_rate: schedules.Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Builds AdamW (Loshchilov 2019); the decay is decoupled and multiplied by the learning rate."""
    _check_fractions(b1=b1, b2=b2)
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


def lars(
    learning_rate: schedules.Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 0.001,
) -> optax.GradientTransformation:
    """Builds LARS (You 2017); the trust ratio is applied only to parameters that decay."""
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


def lamb(
    learning_rate: schedules.Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Builds LAMB (You 2020)."""
    _check_fractions(b1=b1, b2=b2)
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw, "lars": lars, "lamb": lamb}


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
    constant force.

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
    optimizer = spec.resolve_one(
        "optimizer.name", config.name, OPTIMIZERS, learning_rate, config.weight_decay, decay_mask
    )
    multiply = groups.multiply(by_group.factors)
    of_gradient = config.multiplied == "gradient"
    if of_gradient:
        optimizer = optax.chain(multiply, optimizer)
    if config.l1:
        optimizer = optax.chain(optax.masked(_l1(config.l1), decay_mask), optimizer)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
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


def _decay_mask(config: Reader, names: Sequence[str]) -> DecayMask:
    """Checks the settings of decay; returns the mask of the parameters that decay."""
    decays = pattern(config.decay, "optimizer.decay")
    for key in ("weight_decay", "l1", "clip_norm"):
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
    if late := [start for start, _ in by_group.times.values() if start >= max(total, 1)]:
        raise UserError(
            f"optimizer.groups={config.groups}: a group starts training at step {max(late)}, but the training "
            f"ends at step {total}"
        )
    return by_group


def _l1(factor: float) -> optax.GradientTransformation:
    """Adds the gradient of `factor` times the sum of absolute values."""
    return optax.stateless(
        lambda gradients, params: jax.tree.map(
            lambda gradient, weight: gradient + factor * jnp.sign(weight), gradients, params
        )
    )

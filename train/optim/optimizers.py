"""Optimizers that are more than one function of optax: their arguments, decay and wiring.

Each takes (learning_rate, weight_decay, decay_mask) and its own arguments from the config. The table of all names is in
train/optim/catalogue.py; those of optax that need nothing of this kind have only a row there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

Schedule = Callable[[Any], jax.Array]  # step, a number or an array -> learning rate, or its factor
DecayMask = Callable[[Any], Any]  # parameters -> a tree of bools: which of them decay
LARS_FORMS = ("optax", "you")


def check_fractions(**values: float) -> None:
    """Raises ValueError if a value is not in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1)")


def coupled(
    optimizer: optax.GradientTransformation, weight_decay: float, decay_mask: DecayMask
) -> optax.GradientTransformation:
    """Adds coupled weight decay to an optimizer without any: its gradient is increased by decay x w."""
    if not weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(weight_decay, decay_mask), optimizer)


def decoupled(
    optimizer: optax.GradientTransformation, learning_rate: Schedule, weight_decay: float, decay_mask: DecayMask
) -> optax.GradientTransformation:
    """Adds decoupled weight decay to an optimizer without any: w decreases by learning rate x decay x w."""
    if not weight_decay:
        return optimizer
    return optax.chain(
        optimizer, optax.add_decayed_weights(lambda step: -weight_decay * learning_rate(step), decay_mask)
    )


def sgd(
    learning_rate: Schedule, weight_decay: float, decay_mask: DecayMask, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Builds SGD with coupled weight decay, which is added to the gradient (He 2016, Goyal 2017)."""
    check_fractions(momentum=momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask), optax.sgd(learning_rate, momentum or None, nesterov)
    )


def adam(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Builds Adam (Kingma 2015) with coupled weight decay, which is added to the gradient."""
    check_fractions(b1=b1, b2=b2)
    return optax.chain(optax.add_decayed_weights(weight_decay, decay_mask), optax.adam(learning_rate, b1, b2, eps))


def adamw(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Builds AdamW (Loshchilov 2019); the decay is decoupled and multiplied by the learning rate."""
    check_fractions(b1=b1, b2=b2)
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


def lars(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    momentum: float = 0.9,
    nesterov: bool = False,
    trust: float = 0.001,
    form: str = "optax",
) -> optax.GradientTransformation:
    """Builds LARS (You 2017); the trust ratio is applied only to parameters that decay.

    With gradient g, weights w and decay d, the local learning rate of a layer is trust x |w| / |g + d w| in the form
    "optax", and trust x |w| / (|g| + d |w|) in the form "you", algorithm 1 of the paper. They are equal without decay.
    They differ most where |g| = d |w|: by a factor of sqrt(2) if g and w are orthogonal.

    Raises:
      ValueError: the form is unknown, or the momentum is not in [0, 1).
    """
    check_fractions(momentum=momentum)
    if form not in LARS_FORMS:
        raise ValueError(f"form='{form}' must be one of {', '.join(LARS_FORMS)}")
    if form == "you":
        return optax.chain(
            optax.add_decayed_weights(weight_decay, decay_mask),
            optax.masked(_scale_by_you(trust, weight_decay), decay_mask),
            optax.scale_by_learning_rate(learning_rate),
            optax.trace(momentum, nesterov),
        )
    return optax.lars(
        learning_rate,
        weight_decay,
        decay_mask,
        trust_coefficient=trust,
        trust_ratio_mask=decay_mask,
        momentum=momentum,
        nesterov=nesterov,
    )


def _scale_by_you(trust: float, weight_decay: float) -> optax.GradientTransformation:
    """Scales g + d w, which it gets, by trust x |w| / (|g| + d |w|), or by 1 where one of these is 0, as optax does."""

    def scale(update, weights):
        size = jnp.linalg.norm(weights)
        below = jnp.linalg.norm(update - weight_decay * weights) + weight_decay * size
        usable = (size > 0) & (below > 0)
        return update * jnp.where(usable, trust * size / jnp.where(usable, below, 1), 1)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, params))


def lamb(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Builds LAMB (You 2020)."""
    check_fractions(b1=b1, b2=b2)
    return optax.lamb(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=decay_mask)


def novograd(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.25,
    eps: float = 1e-6,
) -> optax.GradientTransformation:
    """Builds NovoGrad (Ginsburg 2019), whose decay is within the momentum.

    optax's has no mask. It works layer by layer, so that layers with and without decay can have one each.
    """
    check_fractions(b1=b1, b2=b2)

    def with_decay(decay):
        return optax.novograd(learning_rate, b1, b2, eps, weight_decay=decay)

    if not weight_decay:
        return with_decay(0.0)
    return optax.partition(
        {"decays": with_decay(weight_decay), "stays": with_decay(0.0)},
        lambda params: jax.tree.map(lambda decays: "decays" if decays else "stays", decay_mask(params)),
    )


def polyak_sgd(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    most: float = 1.0,
    f_min: float = 0.0,
    eps: float = 0.0,
    variant: str = "sps",
) -> optax.GradientTransformation:
    """Builds SGD with Polyak's step, min(most, (loss - f_min) / |gradient|^2) x learning rate (Loizou 2021)."""
    if variant not in ("sps", "sps+"):
        raise ValueError(f"variant='{variant}' must be sps or sps+")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask), optax.polyak_sgd(most, learning_rate, f_min, eps, variant)
    )


def rprop(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    start: float = 1e-3,
    eta_minus: float = 0.5,
    eta_plus: float = 1.2,
    min_step_size: float = 1e-6,
    max_step_size: float = 50.0,
) -> optax.GradientTransformation:
    """Builds Rprop (Riedmiller 1993), whose steps begin at `start`; the learning rate multiplies them."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.rprop(start, eta_minus, eta_plus, min_step_size, max_step_size),
        optax.scale_by_schedule(learning_rate),
    )


def sm3(
    learning_rate: Schedule, weight_decay: float, decay_mask: DecayMask, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Builds SM3 (Anil 2019); optax's own takes no schedule."""
    check_fractions(momentum=momentum)
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_sm3(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def noisy_sgd(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    eta: float = 0.01,
    gamma: float = 0.55,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Builds SGD with Gaussian noise of variance eta / (1 + t)^gamma on the gradient (Neelakantan 2015)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask),
        _storable(optax.noisy_sgd(learning_rate, eta, gamma, key=seed)),
    )


def _storable(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the random keys of a state as arrays of numbers, which checkpoints can hold."""

    def is_key(leaf):
        return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

    def stored(state):
        return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)

    def update(updates, state, params=None):
        kinds = jax.eval_shape(inner.init, params)
        keys = jax.tree.map(lambda kind, leaf: jax.random.wrap_key_data(leaf) if is_key(kind) else leaf, kinds, state)
        updates, state = inner.update(updates, keys, params)
        return updates, stored(state)

    return optax.GradientTransformation(lambda params: stored(inner.init(params)), update)


def prodigy(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    beta3: float = 0.0,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    safeguard_warmup: bool = False,
) -> optax.GradientTransformation:
    """Builds Prodigy (Mishchenko 2023); beta3=0 stands for sqrt(b2). The decay is decoupled; see `_estimating`."""
    check_fractions(b1=b1, b2=b2, beta3=beta3)
    inner = optax.contrib.prodigy(
        learning_rate, (b1, b2), beta3 or None, eps, estim_lr0, estim_lr_coef, 0.0, safeguard_warmup
    )
    return _estimating(inner, learning_rate, weight_decay, decay_mask, b1, b2)


def dadapt_adamw(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
) -> optax.GradientTransformation:
    """Builds AdamW with D-adaptation (Defazio 2023). The decay is decoupled; see `_estimating`."""
    check_fractions(b1=b1, b2=b2)
    inner = optax.contrib.dadapt_adamw(learning_rate, (b1, b2), eps, estim_lr0, 0.0)
    return _estimating(inner, learning_rate, weight_decay, decay_mask, b1, b2)


def _estimating(
    inner: optax.GradientTransformation,
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float,
    b2: float,
) -> optax.GradientTransformation:
    """Adds optax's decay of Prodigy and D-adaptation, which has no mask there: the step that they estimate x decay."""
    if not weight_decay:
        return inner

    def update(updates, state, params=None):
        moves, after = inner.update(updates, state, params)
        correction = jnp.sqrt(1 - b2 ** (state.count + 1)) / (1 - b1 ** (state.count + 1))
        factor = weight_decay * state.estim_lr * learning_rate(state.count) * correction
        return jax.tree.map(
            lambda move, weights, decays: move - factor * weights if decays else move, moves, params, decay_mask(params)
        ), after

    return optax.GradientTransformation(inner.init, update)


def sophia(
    learning_rate: Schedule,
    weight_decay: float,
    decay_mask: DecayMask,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.01,
    clip_threshold: float = 1.0,
    update_interval: int = 10,
) -> optax.GradientTransformation:
    """Builds Sophia-H (Liu 2023): the diagonal of the Hessian by Hutchinson's estimator, every `update_interval` steps.

    The step gives it products of the Hessian and a vector, averaged over the devices (`train.step.hessian_product`).
    """
    check_fractions(b1=b1, b2=b2)
    if update_interval < 1:
        raise ValueError(f"update_interval={update_interval} must be at least 1")
    return optax.contrib.sophia(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        decay_mask,
        gamma,
        clip_threshold,
        update_interval,
        hessian_diagonal_fn=_hutchinson(),
    )


def _hutchinson() -> optax.GradientTransformationExtraArgs:
    """Estimates the diagonal of the Hessian as v x (H v), with signs v that are equal on all devices."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del updates
        key = jax.random.fold_in(jax.random.key(0), state)
        signs = optax.tree.random_like(key, params, jax.random.rademacher, dtype=jnp.float32)
        return jax.tree.map(jnp.multiply, signs, extra["hessian_product"](signs)), state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros((), jnp.int32), update)

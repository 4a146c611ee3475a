"""The training and the evaluation step: pure functions of one device's share of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from train.devices.fsdp import AXIS, LocalShards, Shards
from train.state import TrainState

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight), summed over examples and devices


def gradients(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    task: Any,
    prepare: Callable[..., dict[str, jax.Array]],
    accumulate: int = 1,
    shards: LocalShards | None = None,
) -> tuple[Any, tuple[Metrics, Any, Any]]:
    """What one device computes of a step: its examples' gradients, averaged over the devices.

    Args:
      state: replicated; of shards, its parameters are this device's part.
      batch: this device's examples; leaves [B / D, …].
      task: owner of the loss, see train/tasks.
      prepare: augmentation and normalization: (key, batch, index of the first example in the global batch) -> batch.
      accumulate: the share is cut into so many parts, gradients averaged over them (normalization sees one part).
      shards: how parameters are sharded over the devices; None: they are not.

    Returns:
      Gradients (sharded as the parameters are), and what is equal on all devices: metrics, model_state, task_state.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    augment_key, model_key = jax.random.split(key)
    size = jax.tree.leaves(batch)[0].shape[0]
    # Augmentation is keyed by the place in the global batch, so it does not depend on the number of devices;
    # dropout masks are drawn a device.
    batch = prepare(augment_key, batch, lax.axis_index(AXIS) * size)
    model_key = jax.random.fold_in(model_key, lax.axis_index(AXIS))
    loss = task.loss if shards is None else shards.gathering(task.loss)

    def of_part(carry, part):
        index, part = part
        gradient = jax.value_and_grad(loss, has_aux=True)
        (_, (metrics, model_state, task_state)), grads = gradient(
            state.params, *carry, part, jax.random.fold_in(model_key, index), state.step
        )
        return (model_state, task_state), (grads, metrics)

    carry = (state.model_state, state.task_state)
    if accumulate == 1:
        carry, (grads, metrics) = of_part(carry, (0, batch))
    else:
        parts = jax.tree.map(lambda x: x.reshape(accumulate, size // accumulate, *x.shape[1:]), batch)
        carry, (grads, metrics) = lax.scan(of_part, carry, (jnp.arange(accumulate), parts))
        grads = jax.tree.map(lambda x: jnp.mean(x, 0), grads)
        metrics = jax.tree.map(lambda x: jnp.sum(x, 0), metrics)
    grads = jax.tree.map(_mean_over_devices, grads) if shards is None else shards.mean(grads)
    # Running statistics are averaged here, once a step: what normalizes in training stays a device's own.
    model_state, task_state = jax.tree.map(_mean_over_devices, carry)
    return grads, (lax.psum(metrics, AXIS), model_state, task_state)


def update(
    state: TrainState,
    grads: Any,
    metrics: Metrics,
    model_state: Any,
    task_state: Any,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
    lookahead: Callable[..., tuple[Any, Any]] | None = None,
) -> tuple[TrainState, Metrics]:
    """The optimizer's step with the results of `gradients`.

    Args:
      optimizer: optax transformation over state.params.
      learning_rate: by step, for the record only.
      ema_decay: of the averaged variables; 0 where there are none.
      ema_warmup: whether the decay grows to that, min(ema_decay, (1 + t) / (10 + t)) at the end of step t.
      lookahead: averages them in its own way instead, and sets what is trained back to them (train/optim/lookahead.py).

    Returns:
      The next state, and the metrics with the gradient's norm and the learning rate.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        t = state.step + 1
        decay = jnp.minimum(ema_decay, (1 + t) / (10 + t)) if ema_warmup else ema_decay
        ema = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new if jnp.issubdtype(new, jnp.inexact) else new,
            ema,
            {"params": params, "model_state": model_state},
        )
    if lookahead:
        fast, ema = lookahead(state.step + 1, {"params": params, "model_state": model_state}, ema)
        params, model_state = fast["params"], fast["model_state"]
    one = jnp.ones(())
    metrics |= {"gradient_norm": (optax.tree.norm(grads), one), "learning_rate": (learning_rate(state.step), one)}
    return state.replace(
        step=state.step + 1, params=params, model_state=model_state, task_state=task_state, opt_state=opt_state, ema=ema
    ), metrics


def _mean_over_devices(leaf: jax.Array) -> jax.Array:
    """The mean of numbers; counters and the like are the same on every device already."""
    return lax.pmean(leaf, AXIS) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def train_call(
    state: TrainState,
    data: Any,
    items: Any,
    *,
    gather: Callable,
    task: Any,
    prepare: Callable,
    accumulate: int = 1,
    shards: Shards | None = None,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """K steps in one dispatch: on one device, or, given shards, on all of them with the state sharded.

    Args:
      state: replicated, or sharded.
      data: what lives on the device (a resident data set), or {}.
      items: leaves [k, B / D, …]; `gather(data, item)` makes one step's batch of item. Given shards, [k, B, …].
      gather: see `items`.
      task, prepare, accumulate: of `gradients`.
      shards: which part of a leaf is where.
      **options: of `update`.

    Returns:
      The state after k steps, and metrics with leaves [k].
    """

    def compute(state, data, item, **local):
        return gradients(state, gather(data, item), task=task, prepare=prepare, accumulate=accumulate, **local)

    def one(state, item):
        if shards is None:
            grads, rest = compute(state, data, item)
            return update(state, grads, *rest, **options)
        # Outside the per-device part a norm or a threshold over all weights is what it says
        grads, rest = shards.over_devices(compute)(state, data, item)
        state, metrics = update(state, grads, *rest, **options)
        return shards.constrain(state), metrics

    if jax.tree.leaves(items)[0].shape[0] == 1:  # no loop around a single step: XLA optimizes straight code better
        state, metrics = one(state, jax.tree.map(lambda x: x[0], items))
        return state, jax.tree.map(lambda x: x[None], metrics)
    return lax.scan(one, state, items)


def evaluation_call(
    state: TrainState, data: Any, items: Any, *, task: Any, prepare: Callable, shards: Shards | None = None
) -> Metrics:
    """Metrics {name: (sum, weight)} of one evaluation batch, items [1, B / D, …], summed over the devices; given
    shards, of items [1, B, …] with the state sharded.
    """
    model_state = state.evaluation_variables()
    params = model_state.pop("params")

    def compute(state, data, item, shards=None):
        del data

        def evaluate(params):
            return task.evaluate({"params": params, **state.model_state}, state.task_state, prepare(item))

        return lax.psum((shards.gathering(evaluate) if shards else evaluate)(state.params), AXIS)

    if shards:
        compute = shards.over_devices(compute, with_gradients=False)
    state = state.replace(params=params, model_state=model_state, opt_state={}, ema={})
    return compute(state, data, jax.tree.map(lambda x: x[0], items))

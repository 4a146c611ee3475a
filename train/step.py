"""Training and evaluation steps: pure functions of one device's share of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from train.devices.fsdp import AXIS, LocalShards, Shards
from train.optim.sam import Sam, squared_norm
from train.state import TrainState
from train.tasks.base import Metrics, Task

CONSTANTS = "constants"  # name of `Task.constants` among the arrays that stay on the devices


def gradients(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    task: Task,
    prepare: Callable[..., dict[str, jax.Array]],
    accumulate: int = 1,
    sam: Sam | None = None,
    shards: LocalShards | None = None,
    constants: Any = None,
) -> tuple[Any, tuple[Metrics, Any, Any, jax.Array]]:
    """Computes the gradients of one device's examples and averages them over the devices.

    Args:
      state: replicated; with `shards`, its parameters are this device's shards.
      batch: this device's examples; leaves [B / D, …].
      task: defines the loss; see train/tasks.
      prepare: augmentation and normalization: (key, batch, index of the first example in the global batch) -> batch.
      accumulate: number of parts that the examples are split into; normalization sees one part at a time, and
        gradients are averaged over the parts.
      sam: the perturbation of the weights at which gradients are computed (train/optim/sam.py); None for none.
      shards: how parameters are sharded over the devices; None where they are replicated.
      constants: `Task.constants`, replicated; None where the task has none.

    Returns:
      Gradients, sharded as the parameters are, and (metrics, model_state, task_state, loss), which are equal on all
      devices. The loss is that of which the gradients are.
    """
    model_key, parts = _parts(state, batch, prepare, accumulate)
    loss = task.loss if shards is None else shards.gathering(task.loss)

    def of_examples(params):
        """Returns (model_state, task_state) after all parts, and (gradients, metrics, loss) of this device."""

        def one_part(carry, part):
            index, examples = part
            if constants:
                examples = task.annotated(constants, examples)
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, (metrics, model_state, task_state)), grads = gradient(
                params, *carry, examples, jax.random.fold_in(model_key, index), state.step
            )
            return (model_state, task_state), (grads, metrics, value)

        carry = (state.model_state, state.task_state)
        if accumulate == 1:
            return one_part(carry, (0, parts))
        carry, (grads, metrics, value) = lax.scan(one_part, carry, (jnp.arange(accumulate), parts))
        grads = jax.tree.map(lambda x: jnp.mean(x, 0), grads)
        return carry, (grads, jax.tree.map(lambda x: jnp.sum(x, 0), metrics), jnp.mean(value))

    def mean(grads):
        return jax.tree.map(_mean_over_devices, grads) if shards is None else shards.mean(grads)

    carry, (grads, metrics, value) = of_examples(state.params)
    if sam:
        grads = grads if sam.per_device else mean(grads)
        norm = squared_norm if shards is None else shards.squared_norm
        _, (grads, _, value) = of_examples(sam.perturbed(state.params, grads, norm))
    # Running statistics are averaged once per step. In training, each device normalizes by its own statistics.
    model_state, task_state = jax.tree.map(_mean_over_devices, carry)
    return mean(grads), (lax.psum(metrics, AXIS), model_state, task_state, lax.pmean(value, AXIS))


def _parts(state: TrainState, batch: dict[str, jax.Array], prepare: Callable[..., Any], accumulate: int) -> Any:
    """Returns this device's key of the model, and its prepared examples, [accumulate, …] if that is more than 1."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    augment_key, model_key = jax.random.split(key)
    size = jax.tree.leaves(batch)[0].shape[0]
    # Augmentation is keyed by the position in the global batch, so it does not depend on the number of devices.
    # Dropout masks are drawn per device.
    batch = prepare(augment_key, batch, lax.axis_index(AXIS) * size)
    model_key = jax.random.fold_in(model_key, lax.axis_index(AXIS))
    if accumulate > 1:
        batch = jax.tree.map(lambda x: x.reshape(accumulate, size // accumulate, *x.shape[1:]), batch)
    return model_key, batch


def hessian_product(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    task: Task,
    prepare: Callable[..., dict[str, jax.Array]],
    accumulate: int = 1,
    constants: Any = None,
) -> Callable[[Any], Any]:
    """Returns the function that multiplies the Hessian of a step's loss by a vector, averaged over the devices.

    The vector is a tree like the parameters. It may lack frozen ones, which then count as 0 and are lacking in the
    product. See `gradients` for the arguments.
    """
    model_key, parts = _parts(state, batch, prepare, accumulate)

    def lacks(node):
        return isinstance(node, optax.MaskedNode)

    def product(vector):
        whole = jax.tree.map(lambda v, w: jnp.zeros_like(w) if lacks(v) else v, vector, state.params, is_leaf=lacks)

        def one_part(part):
            index, examples = part
            if constants:
                examples = task.annotated(constants, examples)

            def gradient(params):
                arguments = examples, jax.random.fold_in(model_key, index), state.step
                return jax.grad(lambda p: task.loss(p, state.model_state, state.task_state, *arguments)[0])(params)

            return jax.jvp(gradient, (state.params,), (whole,))[1]

        if accumulate == 1:
            products = one_part((0, parts))
        else:
            stacked = lax.map(one_part, (jnp.arange(accumulate), parts))
            products = jax.tree.map(lambda x: jnp.mean(x, 0), stacked)
        products = lax.pmean(products, AXIS)
        return jax.tree.map(lambda v, p: v if lacks(v) else p, vector, products, is_leaf=lacks)

    return product


def update(
    state: TrainState,
    grads: Any,
    metrics: Metrics,
    model_state: Any,
    task_state: Any,
    value: jax.Array | None = None,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    ema_decay: float = 0.0,
    ema_warmup: bool = False,
    lookahead: Callable[..., tuple[Any, Any]] | None = None,
    averaged: Callable[[Any, Any], Any] | None = None,
    hessian_product: Callable[[Any], Any] | None = None,
) -> tuple[TrainState, Metrics]:
    """Applies the optimizer to the results of `gradients`.

    Args:
      state: the state before the step.
      grads: gradients of state.params.
      metrics: metrics of the batch.
      model_state: the next state of the model.
      task_state: the next state of the task.
      value: the loss of the batch, which some optimizers use.
      optimizer: optax transformation over state.params.
      learning_rate: learning rate by step, for the metrics only.
      ema_decay: decay of the averaged variables; 0 for no average.
      ema_warmup: whether the decay is min(ema_decay, (1 + t) / (10 + t)) at the end of step t.
      lookahead: updates slow weights, which `ema` holds, and at some steps resets the trained variables to them
        (train/optim/lookahead.py).
      averaged: (state of the optimizer, parameters) -> the parameters to evaluate, of optimizers that average
        (train/optim/schedule_free.py).
      hessian_product: the function of that name, for optimizers that use it.

    Returns:
      The next state, and the metrics with the gradient's norm and the learning rate.
    """
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, value=value, hessian_product=hessian_product
    )
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
    if averaged:
        ema = {"params": averaged(opt_state, params), "model_state": model_state}
    if lookahead:
        fast, ema = lookahead(state.step + 1, {"params": params, "model_state": model_state}, ema)
        params, model_state = fast["params"], fast["model_state"]
    one = jnp.ones(())
    metrics |= {"gradient_norm": (optax.tree.norm(grads), one), "learning_rate": (learning_rate(state.step), one)}
    return state.replace(
        step=state.step + 1, params=params, model_state=model_state, task_state=task_state, opt_state=opt_state, ema=ema
    ), metrics


def _mean_over_devices(leaf: jax.Array) -> jax.Array:
    """Averages an array of floats; leaves of other types, such as counters, are equal on all devices already."""
    return lax.pmean(leaf, AXIS) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def train_call(
    state: TrainState,
    data: Any,
    items: Any,
    *,
    gather: Callable[..., dict[str, jax.Array]],
    task: Task,
    prepare: Callable[..., dict[str, jax.Array]],
    accumulate: int = 1,
    sam: Sam | None = None,
    with_hessian: bool = False,
    shards: Shards | None = None,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """Runs k steps in one dispatch: the program of one device or, with `shards`, of all devices.

    Args:
      state: replicated or, with `shards`, sharded.
      data: arrays that stay on the device: those of `Feed.data`, and `Task.constants` as "constants" if there are any.
      items: leaves [k, B / D, …] or, with `shards`, [k, B, …].
      gather: (data, item) -> batch of one step.
      task: see `gradients`.
      prepare: see `gradients`.
      accumulate: see `gradients`.
      sam: see `gradients`.
      with_hessian: whether the optimizer gets `hessian_product`; not with `shards`.
      shards: how leaves of the state are sharded; None where the state is replicated.
      **options: keyword arguments of `update`.

    Returns:
      The state after k steps, and metrics with leaves [k].
    """
    how: dict[str, Any] = {"task": task, "prepare": prepare, "accumulate": accumulate}

    def inputs(data, item):
        batch = gather({name: array for name, array in data.items() if name != CONSTANTS}, item)
        return {"batch": batch, "constants": data.get(CONSTANTS), **how}

    def compute(state, data, item, **local):
        return gradients(state, **inputs(data, item), sam=sam, **local)

    def one(state, item):
        if shards is None:
            grads, rest = compute(state, data, item)
            product = hessian_product(state, **inputs(data, item)) if with_hessian else None
            return update(state, grads, *rest, **options, hessian_product=product)
        # Outside the per-device part, arrays are global, so that norms and thresholds are over all weights.
        grads, rest = shards.over_devices(compute)(state, data, item)
        state, metrics = update(state, grads, *rest, **options)
        return shards.constrain(state), metrics

    if jax.tree.leaves(items)[0].shape[0] == 1:  # XLA optimizes a single step better without a loop around it
        state, metrics = one(state, jax.tree.map(lambda x: x[0], items))
        return state, jax.tree.map(lambda x: x[None], metrics)
    return lax.scan(one, state, items)


def evaluation_call(
    state: TrainState,
    data: Any,
    items: Any,
    *,
    task: Task,
    prepare: Callable[..., dict[str, jax.Array]],
    shards: Shards | None = None,
) -> Metrics:
    """Computes the metrics {name: (sum, weight)} of one evaluation batch, summed over the devices.

    Args:
      state: replicated or, with `shards`, sharded.
      data: unused; lifted programs share one signature.
      items: leaves [1, B / D, …] or, with `shards`, [1, B, …].
      task: defines the metrics.
      prepare: normalization: batch -> batch.
      shards: how leaves of the state are sharded; None where the state is replicated.
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

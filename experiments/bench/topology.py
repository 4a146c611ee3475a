"""Training steps of networks compiled for a topology: ours beside plain Flax networks with as many parameters."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bench import plain
from models.errors import UserError, choice_error
from train.devices import compiled, topology
from train.recording.forecast import not_compiled

_SIZE, _CLASSES, _LENGTH = 224, 1000, 64  # of images, and the number of tokens in a sentence
_TOKENS = 8000
_BATCH = {"transformer_base": 64}
DEFAULT_BATCH = 128
WHAT = "compiled step"  # `what` of the rows


def check(cases: list[str], blocks: int) -> None:
    """Checks the cases and the number of blocks.

    Raises:
      UserError: A case has no plain network, or the number is negative.
    """
    for case in cases:
        if case not in plain.NAMES:
            raise choice_error("network with a plain Flax network beside it", case, plain.NAMES)
    if blocks < 0:
        raise UserError(f"--blocks={blocks} must be at least 1, or 0 for the whole network")


def rows(name: str, target: topology.Topology, batch: int, blocks: int) -> Iterator[dict[str, Any]]:
    """Yields the facts of one training step of ours and of the plain network, on one device.

    Args:
      name: One of `plain.NAMES`.
      target: The topology.
      batch: Images or sentences per step; 0 for the network's usual number.
      blocks: Blocks per stage; 0 for the whole network.

    Raises:
      UserError: A program does not compile.
    """
    batch = batch or _BATCH.get(name, DEFAULT_BATCH)
    depth = f", {blocks} block{'s' * (blocks > 1)} per stage" * bool(blocks)
    case = f"{name}{depth}, batch {batch}, bfloat16, compiled for {target.name}"
    for who, make in (("ours", plain.ours), ("plain Flax", plain.create)):
        classes = _TOKENS if name == "transformer_base" else _CLASSES
        begun = time.monotonic()
        try:
            program = step(make(name, blocks or None, classes), inputs(name, batch), target)
        except jax.errors.JaxRuntimeError as error:
            raise not_compiled(error, target) from error
        facts, costs = compiled.Program(program.as_text() or "").facts(), program.cost_analysis() or {}
        yield {
            "case": case,
            "subject": f"{name}/{target.name}",
            "what": WHAT,
            "who": who,
            "side": "ours" if who == "ours" else "plain",
            "gflop": costs.get("flops", 0) / 1e9,
            "traffic_mib": costs.get("bytes accessed", 0) / 2**20,
            "program_mib": sum(compiled.memory(program).values()) / 2**20,
            "cycles": facts.cycles / 1e6,
            "reductions": facts.reductions,
            "reduction_cycles": facts.reduction_cycles / 1e6,
            "compile_seconds": time.monotonic() - begun,
        }


def inputs(name: str, batch: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of a batch: images, or source and target tokens; the labels are the last."""
    if name == "transformer_base":
        tokens = jax.ShapeDtypeStruct((batch, _LENGTH), jnp.int32)
        return tokens, tokens, tokens
    return jax.ShapeDtypeStruct((batch, _SIZE, _SIZE, 3), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)


def step(model: Any, batch: tuple[jax.ShapeDtypeStruct, ...], target: topology.Topology) -> jax.stages.Compiled:
    """Compiles a training step of a network: cross-entropy, its gradient, and SGD with momentum.

    Args:
      model: A flax module.
      batch: Shapes of its inputs and of the labels.
      target: The topology, of which one device is used.
    """
    optimizer = optax.sgd(0.1, momentum=0.9)

    def begin(key):
        variables = dict(model.init(key, *(jnp.zeros(one.shape, one.dtype) for one in batch[:-1])))
        params = variables.pop("params")
        return params, variables, optimizer.init(params)

    def update(state, *batch):
        params, others, momentum = state

        def loss(params):
            logits, changed = model.apply({"params": params, **others}, *batch[:-1], train=True, mutable=list(others))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[-1]).mean(), changed

        (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(gradients, momentum, params)
        return (optax.apply_updates(params, updates), changed, momentum), value

    sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
    shapes = (jax.eval_shape(begin, jax.random.key(0)), *batch)
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    with target.compiling():
        lowered = jax.jit(update, donate_argnums=0, out_shardings=sharding).lower(*placed)
        return lowered.compile(compiler_options=target.options)

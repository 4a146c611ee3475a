"""Forecasts of a run on accelerators that are not there: its training step, compiled for their topology.

A forecast says whether the step compiles, whether it fits into the memory of the devices, and what they exchange. It
measures nothing, so it gives no speed.
"""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import rich.console
import rich.table

from models.analysis.tables import terminal_table
from models.errors import UserError
from train import run as builders
from train.data.options import Options
from train.data.sources.tfds import NotPrepared, described
from train.devices import compiled, topology
from train.devices.parallel import Parallel
from train.setup.config import Config, Reader
from train.state import TrainState, initial_state

LIMITS = (
    "a forecast checks that the step compiles, its memory, its layout and its communication; cycles are XLA's "
    "estimates, and no speed was measured"
)
_ASSUMED = 1_000_000  # training examples of a TFDS set that is not prepared, whose count TFDS does not know
_SIZE = re.compile(r"(?:temporaries \(|[Uu]sed )([\d.]+)([KMGT])")  # in the compiler's message
_OTHERS_READ = (  # keys that only a run reads
    *("init_from", "init_new", "data_init", "hooks", "keep_checkpoints"),
    *("log_every", "evaluate_every", "checkpoint_every"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(UserError):
    """A step that does not fit into the memory of the devices."""


class Step(NamedTuple):
    """The training step of a run for a topology, before it is compiled.

    Attributes:
      network: the network on its data.
      state: shapes of the training state, with their shardings.
      lowered: the program of one dispatch of one step.
      notes: assumptions about data that are not there.
    """

    network: builders.Network
    state: TrainState
    lowered: jax.stages.Lowered
    notes: tuple[str, ...]


def lower(config: Config, target: topology.Topology) -> Step:
    """Lowers the training step of a config for a topology; draws no variables and reads no weights.

    Args:
      config: complete; see configs/base.py. Its data set need not exist if it is one that TFDS describes.
      target: the topology.

    Raises:
      UserError: the config is wrong.
    """
    # A dispatch of several steps is a loop around one, which would only hide it
    values = {**Reader.of(config).values(), "steps_per_call": 1}
    notes: tuple[str, ...] = ()
    reader = Reader.of(values)
    try:
        network = builders.build_network(reader, None, target.devices)
    except NotPrepared as problem:
        record, notes = _record(values, problem)
        values["data"]["pipeline"] = "stream"
        reader = Reader.of(values)
        network = builders.build_network(reader, record, target.devices)
    builders.examples_of_norm(reader, network.parallel)
    plans = builders.build_plans(reader, network)
    variables, task_state = network.shapes
    optimizer = builders.build_optimizer(reader, network, plans, variables)
    _, train_call = builders.build_programs(reader, network, plans, optimizer)

    def begin(variables, task_state):
        with_average = bool(plans.lookahead or reader.ema_decay)
        return initial_state(variables, task_state, optimizer.transformation, reader.seed, with_average)

    reader.check_all_read(_OTHERS_READ)
    state = network.parallel.place(jax.eval_shape(begin, variables, task_state))
    (items, *_), _ = network.feed.shapes()
    call: Any = train_call
    with target.compiling():
        return Step(network, state, call.lower(state, network.data, items), notes)


def _record(values: Mapping[str, Any], problem: NotPrepared) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns a record of a TFDS set that is not prepared, as `ImageFeed` takes it, and the assumptions in it."""
    options = Options.read(Reader.of(values).data)
    known = described(options.source.partition(":")[2], options)
    if not known:
        raise problem
    classes, shape = known
    record = {
        "classes": [str(label) for label in range(classes)],
        "image_shape": list(shape),
        "label_shape": [],
        "decoder": {"crop": options.crop, "size": shape[0], "channels": shape[2]},
        "identity": {"train": {"images": _ASSUMED}},
    }
    return record, (
        f"{options.source} is not prepared here: shapes are TFDS's, and durations assume {_ASSUMED:,} training images",
    )


def show(config: Config, target: topology.Topology, console: rich.console.Console) -> None:
    """Prints the forecast of a run.

    Args:
      config: complete; see configs/base.py.
      target: the topology.
      console: where to print.

    Raises:
      UserError: the config is wrong, the step does not compile, or it does not fit into the memory (`TooLarge`).
    """

    def line(name: str, text: str) -> None:
        console.print(f"  {name:<12}{text}", highlight=False, soft_wrap=True, markup=False)

    step = lower(config, target)
    network, devices = step.network, _devices(step)
    console.print(f"{network.config['model']['name']} on {network.config['data']['source']}", highlight=False)
    for note in step.notes:
        line("note", note)
    state, batch = network.parallel.bytes_per_device(step.state), network.config["batch_size"]
    line("topology", f"{target.name}: {target}")
    line("step", f"{batch:,} {network.feed.unit}, {batch // devices:,} per device")
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(step.state.params))
    line("state", f"{_size(state)} per device; {parameters:,} parameters")
    begun = time.perf_counter()
    try:
        with target.compiling():
            program = step.lowered.compile(compiler_options=target.options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise not_compiled(error, target) from error
        needed = bytes_needed(str(error))
        line("memory", f"{_size(needed)} of {_size(target.memory)} per device")
        raise _too_large(step, needed, state, target) from None
    line("compiled", f"in {time.perf_counter() - begun:,.0f} s")
    memory = compiled.memory(program)
    peak = sum(memory.values())
    share = ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    line("memory", f"{_size(peak)} of {_size(target.memory)} per device: {share}")
    for text, table in _tables(program):
        line(*text)
        if table:
            console.print(table)
    line("limits", LIMITS)
    if peak > target.memory:
        raise _too_large(step, peak, state, target)


def _tables(program: jax.stages.Compiled) -> list[tuple[tuple[str, str], rich.table.Table | None]]:
    """Returns the lines about a compiled step, each with the table below it."""
    facts, costs = compiled.Program(program.as_text() or "").facts(), program.cost_analysis() or {}
    rows = [(one.kind, f"{one.number:,}", _size(one.bytes), f"{one.overlapping:,}") for one in facts.collectives]
    collectives = terminal_table(("collective", "number", "bytes", "while computing"), rows) if rows else None
    buffers = terminal_table(
        ("array", "layer", "bytes"), [(one.shape, one.layer, _size(one.bytes)) for one in facts.buffers], texts=2
    )
    work = f"{costs.get('flops', 0):,.3g} FLOP, {_size(costs.get('bytes accessed', 0))} of memory traffic per device"
    lines: list[tuple[tuple[str, str], rich.table.Table | None]] = []
    if costs.get("flops"):
        lines.append((("work", work), None))
    if facts.cycles:
        share = facts.reduction_cycles / facts.cycles
        text = f"{facts.cycles / 1e6:,.1f} million, estimated; {share:.0%} in {facts.reductions:,} reductions that "
        lines.append((("cycles", f"{text}stand alone"), None))
    else:
        lines.append((("reductions", f"{facts.reductions:,} stand alone"), None))
    lines.append((("collectives", "per step" if rows else "none"), collectives))
    lines.append((("largest", "arrays in the memory of a device"), buffers))
    return lines


def not_compiled(error: Exception, target: topology.Topology) -> UserError:
    """Returns the error for a program that the compiler refuses: its first line, and the layer that it comes from."""
    first = str(error).strip().splitlines()[0]
    names = [compiled.layer(name) for name in re.findall(r'op_name="([^"]*)"', str(error))]
    where = next((f" (layer {name})" for name in names if name), "")
    return UserError(f"the training step does not compile for {target.name}: {first}{where}")


def bytes_needed(message: str) -> int:
    """Returns the bytes that a program needs by the compiler's message, or 0."""
    sizes = [float(number) * _UNITS[unit] for number, unit in _SIZE.findall(message)]
    return int(max(sizes, default=0))


def _too_large(step: Step, needed: int, state: int, target: topology.Topology) -> TooLarge:
    """Returns the error for a step that does not fit, with what would make it fit, estimated from its parts."""
    network, config = step.network, step.network.config
    sharded = Parallel("fsdp", config["devices"], target.devices).bytes_per_device(step.state)
    other, batch = max(0, needed - state), config["batch_size"] // _devices(step)
    remedies, room = [], target.memory
    if sharded < state and network.parallel.kind != "fsdp":
        verdict = "fits" if sharded + other <= room else "is not enough alone"
        remedies.append(f"--config.parallel=fsdp ({_size(sharded)} of state instead of {_size(state)}: {verdict})")
    divisors = [n for n in range(2, batch + 1) if batch % n == 0 and state + other / n <= room]
    if divisors:
        remedies.append(f"--config.accumulate={config['accumulate'] * divisors[0]}")
        remedies.append(f"--config.batch_size={config['batch_size'] // divisors[0]}")
    if "remat" in {field.name for field in dataclasses.fields(network.model)} and not network.model.remat:
        remedies.append("--config.model.remat=True")
    advice = "; by estimate, this would help: " + ", ".join(remedies) if remedies else ""
    return TooLarge(
        f"the training step does not fit into {target.name}: it needs {_size(needed)} per device, and there are "
        f"{_size(target.memory)}{advice}"
    )


def _devices(step: Step) -> int:
    return len(step.network.parallel.devices)


def _size(count: float) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} bytes"

"""Estimates of a run's memory and time, made by compiling its training step and running it a few times."""

import functools
import time
from typing import Any, NamedTuple

import jax

from models.analysis.cost import analyze
from train.run import Run

DISPATCHES = (2, 20)  # fewest and most that are timed
# The most mult-adds of a dispatch, per device, that is run to be timed: some seconds
MOST = {"cpu": 100_000_000_000}
MOST_ELSEWHERE = 100_000_000_000_000
PASSES = 3  # a training step costs as much as three forward passes: one forward, two in the backward pass


class Measured(NamedTuple):
    """Measurements of the compiled training step.

    Attributes:
      bytes: memory of a dispatch per device, by XLA's account: state, data, batch and temporaries; None if unknown.
      temporary: the part of it that is neither argument nor result; None if unknown.
      first: seconds to compile, and to run the first dispatch.
      step: mean seconds per step of the dispatches after it; None if there is only one dispatch.
      dispatches: number of dispatches of which `step` is the mean.
    """

    bytes: int | None
    temporary: int | None
    first: float
    step: float | None
    dispatches: int


def cost(run: Run, mult_adds: int) -> tuple[int, int]:
    """Returns the mult-adds of a dispatch per device, and those of the whole training on all devices.

    Args:
      run: the run.
      mult_adds: of one forward pass of one example.
    """
    step = (PASSES * mult_adds + of_teacher(run)) * run.config["batch_size"]
    return step * run.config["steps_per_call"] // len(run.parallel.devices), step * run.total


def of_teacher(run: Run) -> int:
    """Returns the mult-adds of one image in the task's teacher, forward; 0 without one."""
    return _forward(run.task.teacher.model, run.feed.inputs) if run.constants and run.task.teacher else 0


@functools.cache
def _forward(model: Any, inputs: Any) -> int:
    return analyze(model, inputs).mult_adds


def is_cheap(run: Run, mult_adds: int) -> bool:
    """Returns whether a dispatch takes no more than some seconds."""
    return cost(run, mult_adds)[0] <= _most(run)


def _most(run: Run) -> int:
    return MOST.get(run.parallel.devices[0].platform, MOST_ELSEWHERE)


def measure(run: Run, mult_adds: int) -> Measured:
    """Compiles the training step, and runs it on the first batches of the run; the run itself stays as it is.

    Args:
      run: the run.
      mult_adds: of one forward pass of one example. They decide how many dispatches are timed, which must be the same
        number in each process.
    """
    fewest, most = DISPATCHES
    timed = max(fewest, min(most, _most(run) // (10 * cost(run, mult_adds)[0] + 1)))
    start = time.perf_counter()
    state = run.parallel.place(run.state)
    steps_per_call = run.config["steps_per_call"]
    first_step = run.feed.heaviest_step
    calls = run.feed.calls(first_step, min(run.total, first_step + (1 + timed) * steps_per_call))
    count, items = next(calls)
    shapes = _shapes(items)
    train_call: Any = run.train_call  # of jit or pmap
    compiled = train_call.lower(state, run.data, items).compile()
    state, metrics = compiled(state, run.data, items)
    jax.block_until_ready(metrics)
    since = time.perf_counter()
    first, steps, dispatches = since - start, 0, 0
    for count, items in calls:
        if _shapes(items) == shapes:  # the others would be compiled anew: a shorter last call, longer sentences
            state, metrics = compiled(state, run.data, items)
            steps, dispatches = steps + count, dispatches + 1
    jax.block_until_ready(metrics)
    mean = (time.perf_counter() - since) / steps if steps else None
    memory = compiled.memory_analysis()
    if memory is None:
        return Measured(None, None, first, mean, dispatches)
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    return Measured(arguments + temporary, temporary, first, mean, dispatches)


def _shapes(items: Any) -> tuple[Any, list[tuple[int, ...]]]:
    return jax.tree.structure(items), [leaf.shape for leaf in jax.tree.leaves(items)]

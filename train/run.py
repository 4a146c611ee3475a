"""A run: what a config describes, built part by part before anything is trained or written.

Each builder works alone. `build_network` is all that predicting, exporting and explaining need.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from models.errors import UserError, choice_error
from train import evaluate, hooks, initial_weights, rules, step, tasks
from train.config import Durations, Reader, plain
from train.data.feed import Feed
from train.data.image_feed import ImageFeed
from train.data.sources import text
from train.data.text_feed import TextFeed
from train.devices.parallel import Parallel
from train.optim import build, lookahead, pruning, weight_sharing
from train.state import TrainState
from train.state import create as create_state
from train.tasks.base import Task

PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}  # of the computation; parameters and statistics are float32
OTHERS_DECIDE = {  # fields of the model that a config cannot set
    "num_classes": "the data set says how many",
    "vocab_size": "the text says how many",
    "dtype": "set precision=bfloat16 or float32",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A config's network on its data; knows nothing of how it is trained.

    Attributes:
      config: the complete config, as JSON holds it.
      parallel: the devices.
      feed: the data.
      task: loss, metrics and prediction, and the flax module.
      durations: turns times of the config into steps.
    """

    config: dict[str, Any]
    parallel: Parallel
    feed: Feed
    task: Task
    durations: Durations

    @property
    def model(self) -> Any:
        """The flax module."""
        return self.task.model

    @property
    def total(self) -> int:
        """Number of steps of the whole training."""
        return self.durations.total or 0

    @functools.cached_property
    def shapes(self) -> tuple[Any, Any]:
        """Shapes of the model's variables, and of the task's state."""
        return jax.eval_shape(lambda key: self.task.init(key, self.feed.inputs), jax.random.key(0))

    @functools.cached_property
    def evaluation_call(self) -> Callable[..., Any]:
        """`train.step.evaluation_call`, lifted over the devices."""
        return self.parallel.lift_evaluation(
            functools.partial(step.evaluation_call, prepare=self.feed.prepare_evaluation, task=self.task)
        )

    def evaluate(self, state: TrainState) -> dict[str, Any]:
        """Returns the metrics of the test set under `state`, which is on the devices."""
        return evaluate.evaluate(self.evaluation_call, state, self.feed.evaluation_calls(), self.feed.test_weight)

    def predictions(
        self, variables: Any, batches: Iterable[Mapping[str, Any]], predict: Callable[..., jax.Array] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns outputs, labels and indices of batches; see `train.evaluate.predictions`.

        Args:
          variables: of the model.
          batches: of `Feed.test_batches` or `ImageFeed.batches`.
          predict: (variables, prepared batch) -> outputs; by default the task's.
        """
        return evaluate.predictions(predict or self.task.predict, variables, self.feed.prepare_evaluation, batches)


@dataclasses.dataclass(frozen=True)
class Run(Network):
    """A network that is ready to be trained.

    Attributes:
      hooks: what happens besides training.
      every: steps between "log", "evaluate" and "checkpoint"; 0: only at the end.
      keep: number of checkpoints.
      program: the training program of one device.
      train_call: the program, lifted over the devices.
      state: before the first step, as numpy.
      prune: when which weights are pruned, or None.
      start: digest of the arrays that the run starts from, or None.
    """

    hooks: "list[Hook]"
    every: dict[str, int]
    keep: int
    program: Callable[..., Any]
    train_call: Callable[..., Any]
    state: TrainState
    prune: pruning.Plan | None
    start: str | None

    def evaluate(self, state: TrainState, last: bool = False) -> dict[str, Any]:
        """Returns the metrics of the test set under `state`, the last time with what the hooks measure."""
        results = super().evaluate(state)
        if last and self.hooks:
            host = self.parallel.fetch(state)
            for hook in self.hooks:
                results |= hook.measure(self, host)
        return results


class Hook(Protocol):
    """What a run does besides training; a hook overrides what it needs."""

    def check(self, run: Run) -> None:
        """Raises UserError, before anything is trained, where the hook cannot do its work on this run."""

    def at_end(self, run: Run, state: TrainState) -> TrainState:
        """Returns the state (on the devices) after the last step, before the last evaluation and checkpoint."""
        del run
        return state

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        """Returns numbers that join the results of the last evaluation; `state` is numpy."""
        del run, state
        return {}

    def finished(self, run: Run, state: TrainState, folder: Path) -> None:
        """Writes into the workdir, after everything else, on the process that writes; `state` is numpy."""


class Plans(NamedTuple):
    """What texts of the config ask for, in steps; None where a text is empty."""

    prune: pruning.Plan | None
    share: weight_sharing.Plan | None
    lookahead: lookahead.Average | None


class Optimizer(NamedTuple):
    """The optax transformation, and the learning rate by step, for the record."""

    transformation: optax.GradientTransformation
    learning_rate: build.Schedule


def build_data(
    config: Mapping[str, Any] | Reader, parallel: Parallel, recorded: Mapping[str, Any] | None = None
) -> Feed:
    """Opens the data set, or describes it from what a run has recorded (`Feed.record`).

    Raises:
      UserError: the data set is not there, or sizes do not fit.
    """
    reader = Reader.of(config)
    for key in ("batch_size", "eval_batch_size"):
        parallel.check_batch(key, getattr(reader, key))
    sizes = {key: getattr(reader, key) for key in ("batch_size", "eval_batch_size", "steps_per_call", "seed")}
    if text.is_text(reader.data.source):
        return TextFeed(reader.data.source, reader.text, parallel, **sizes, recorded=recorded)
    return ImageFeed(reader.data, parallel, **sizes, recorded=recorded)


def build_network(config: Mapping[str, Any] | Reader, recorded: Mapping[str, Any] | None = None) -> Network:
    """Builds the network of a config on its data; draws no variables.

    Args:
      config: complete; see configs/base.py.
      recorded: of a run that is reopened, what it remembers of its data; the data set need not be there then.

    Raises:
      UserError: anything that is wrong with what it reads.
    """
    reader = Reader.of(config)
    if reader.precision not in PRECISIONS:
        raise choice_error("precision", reader.precision, PRECISIONS)
    if not 0 <= reader.seed < 2**32:
        raise UserError(f"seed={reader.seed} must be in [0, 2**32)")
    parallel = Parallel(reader.parallel, reader.devices)
    feed = build_data(reader, parallel, recorded)
    durations = Durations(reader.batch_size, feed.train_count).with_total(reader.duration)
    model = build_model(reader, feed)
    task = tasks.create(
        reader.task, model, len(feed.classes), feed.unit, feed.label_shape, reader.data.source, durations.steps
    )
    return Network(plain(reader.values()), parallel, feed, task, durations)


def build_model(reader: Reader, feed: Feed) -> nn.Module:
    """Returns the flax module of the section `model`, with the fields that the data decide."""
    for field, why in OTHERS_DECIDE.items():
        if field in reader.model.to_dict():
            raise UserError(f"model.{field}: {why}")
    for field in sorted(feed.fields.keys() - set(models.fields(reader.model.name))):
        raise UserError(
            f"model.name={reader.model.name} is not for {feed.unit} (data.source={reader.data.source}): it "
            f"has no field {field}"
        )
    fields = {**feed.fields, "dtype": PRECISIONS[reader.precision], **reader.model.to_dict(without=("name",))}
    return models.create(reader.model.name, **fields)


def build_plans(config: Mapping[str, Any] | Reader, network: Network) -> Plans:
    """Reads what is to be pruned, shared and averaged, and checks all of it against the rules.

    Raises:
      UserError: a text cannot be read, or a rule between features is broken (train/rules.py).
    """
    reader, times = Reader.of(config), network.durations
    if not 0 <= reader.ema_decay < 1:
        raise UserError(f"ema_decay={reader.ema_decay} must be in [0, 1)")
    plans = Plans(
        pruning.plan(reader.optimizer.prune, times.steps, network.total),
        weight_sharing.plan(reader.optimizer.share),
        lookahead.create(reader.lookahead, times.steps, network.total),
    )
    rules.check(rules.Features(reader, network.feed, network.task, *plans))
    return plans


def build_optimizer(config: Mapping[str, Any] | Reader, network: Network, plans: Plans, variables: Any) -> Optimizer:
    """Builds the optimizer of the section `optimizer` for the network's variables (arrays or shapes)."""
    coupled = functools.partial(pruning.vectors, network.model, variables, network.feed.inputs)
    return Optimizer(
        *build.create(
            Reader.of(config).optimizer,
            variables["params"],
            network.durations.steps,
            network.total,
            plans.prune,
            plans.share,
            coupled,
        )
    )


def build_programs(
    config: Mapping[str, Any] | Reader, network: Network, plans: Plans, optimizer: Optimizer
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the training program of one device, and the program lifted over the devices."""
    reader = Reader.of(config)
    program = functools.partial(
        step.train_call,
        gather=network.feed.gather,
        prepare=network.feed.prepare,
        task=network.task,
        optimizer=optimizer.transformation,
        learning_rate=optimizer.learning_rate,
        accumulate=reader.accumulate,
        ema_decay=reader.ema_decay,
        ema_warmup=reader.ema_warmup,
        lookahead=plans.lookahead,
    )
    return program, network.parallel.lift_training(program)


def build_run(config: Mapping[str, Any] | Reader, recorded: Mapping[str, Any] | None = None, fresh: bool = True) -> Run:
    """Builds everything that a config describes.

    Args:
      config: complete; see configs/base.py.
      recorded: see `build_network`.
      fresh: False where the state is read from a checkpoint: no codebooks are made of drawn weights, and nothing is
        traced to see whether it fits together.

    Raises:
      UserError: anything in the config that is unknown, unread, or does not fit.
    """
    reader = Reader.of(config)
    if reader.keep_checkpoints < 1:
        raise UserError(f"keep_checkpoints={reader.keep_checkpoints} must be at least 1")
    network = build_network(reader, recorded)
    part = examples_of_norm(reader, network.parallel)
    plans = build_plans(reader, network)
    with network.parallel.drawing():
        variables, task_state, digest = initial_weights.variables(
            reader, network.task, network.feed, part, plans.share if fresh else None
        )
    optimizer = build_optimizer(reader, network, plans, variables)
    program, train_call = build_programs(reader, network, plans, optimizer)
    with network.parallel.drawing():
        with_average = bool(plans.lookahead or reader.ema_decay)
        state = create_state(variables, task_state, optimizer.transformation, reader.seed, with_average)
    run = Run(
        **{field.name: getattr(network, field.name) for field in dataclasses.fields(network)},
        hooks=hooks.create(reader.hooks),
        every={
            name: network.durations.steps(getattr(reader, f"{name}_every"))
            for name in ("log", "evaluate", "checkpoint")
        },
        keep=reader.keep_checkpoints,
        program=program,
        train_call=train_call,
        state=state,
        prune=plans.prune,
        start=digest,
    )
    reader.check_all_read()
    for hook in run.hooks:
        hook.check(run)
    if fresh:
        _trace(run)
    # As numpy: it goes to the devices when training starts. The parameters were being drawn while that was traced.
    return dataclasses.replace(run, state=jax.tree.map(np.asarray, run.state))


def examples_of_norm(reader: Reader, parallel: Parallel) -> int:
    """Returns the number of examples that batch norm sees at a time; raises UserError where accumulate does not fit."""
    per_device = reader.batch_size // len(parallel.devices)
    if reader.accumulate < 1 or per_device % reader.accumulate:
        raise UserError(f"accumulate={reader.accumulate} must divide the {per_device} examples of a device")
    return per_device // reader.accumulate


def _trace(run: Run) -> None:
    """Traces both programs without computing: what does not fit together is said before anything is written."""
    items, evaluation_items = run.feed.shapes()
    jax.eval_shape(run.train_call, run.state, run.feed.data, items)
    jax.eval_shape(run.evaluation_call, run.state, {}, evaluation_items)

"""A run: everything that a config describes, built part by part before anything is trained or written.

Each builder works alone. Predicting, exporting and explaining only need `build_network`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from models.errors import UserError, choice_error
from train import evaluate, hooks, step, tasks
from train.data.feed import Feed
from train.data.image_feed import ImageFeed, as_images
from train.data.sources import text
from train.data.text_feed import TextFeed
from train.devices.parallel import Parallel
from train.optim import build, catalogue, lookahead, pruning, sam, schedule_free, schedules, weight_sharing
from train.optim.sam import Sam
from train.setup import initial_weights, rules
from train.setup.config import Config, Durations, Reader, plain
from train.state import TrainState, initial_state
from train.tasks.base import Task

PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}  # dtype of computation; parameters and statistics are float32
OTHERS_DECIDE = {  # fields of the model that a config cannot set
    "num_classes": "the data set determines it",
    "vocab_size": "the text determines it",
    "dtype": "set precision=bfloat16 or float32",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A config's network on its data, without what is needed to train it.

    Attributes:
      config: the complete config, as JSON represents it.
      parallel: the devices.
      feed: the data.
      task: loss, metrics and prediction, and the flax module.
      durations: converts durations of the config to steps.
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
    def images(self) -> ImageFeed:
        """The feed, whose examples are images; raises UserError where they are not."""
        return as_images(self.feed, f"this is for networks that take images, not {self.feed.unit}")

    @property
    def total(self) -> int:
        """Number of steps of the whole training."""
        return self.durations.total or 0

    @functools.cached_property
    def shapes(self) -> tuple[Any, Any]:
        """Shapes of the model's variables and of the task's state."""
        return jax.eval_shape(lambda key: self.task.init(key, self.feed.inputs), jax.random.key(0))

    @functools.cached_property
    def constants(self) -> Any:
        """Arrays that the task's loss reads and nothing changes, as numpy arrays; {} for most tasks."""
        return self.task.constants(self.feed)

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """Arrays that stay on the devices during training: a resident data set, and the constants of the task."""
        constants = {step.CONSTANTS: self.parallel.replicate(self.constants)} if self.constants else {}
        return {**self.feed.data, **constants}

    @functools.cached_property
    def evaluation_call(self) -> Callable[..., Any]:
        """`train.step.evaluation_call`, lifted over the devices."""
        return self.parallel.lift_evaluation(
            functools.partial(step.evaluation_call, prepare=self.feed.prepare_evaluation, task=self.task)
        )

    def evaluate(self, state: TrainState) -> dict[str, Any]:
        """Returns the metrics of `state`, which is on the devices, on the test set."""
        return evaluate.evaluate(self.evaluation_call, state, self.feed.evaluation_calls(), self.feed.test_weight)

    def predictions(
        self, variables: Any, batches: Iterable[Mapping[str, Any]], predict: Callable[..., jax.Array] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns outputs, labels and dataset indices of batches; see `train.evaluate.predictions`.

        Args:
          variables: variables of the model.
          batches: from `Feed.test_batches` or `ImageFeed.batches`.
          predict: (variables, prepared batch) -> outputs; by default the task's `predict`.
        """
        return evaluate.predictions(predict or self.task.predict, variables, self.feed.prepare_evaluation, batches)


@dataclasses.dataclass(frozen=True)
class Run(Network):
    """A network that is ready to be trained.

    Attributes:
      hooks: additions to training; see `Hook`.
      every: number of steps between events "log", "evaluate" and "checkpoint"; 0 for only at the end.
      keep: number of checkpoints to keep.
      program: the training program of one device.
      train_call: the program, lifted over the devices.
      state: the state before the first step, as numpy arrays.
      prune: which weights are pruned when, or None.
      start: digest of the arrays of init_from, or None.
      notes: lines to print when the run starts, about the precision, the data and the optimizer.
    """

    hooks: "list[Hook]"
    every: dict[str, int]
    keep: int
    program: Callable[..., Any]
    train_call: Callable[..., Any]
    state: TrainState
    prune: pruning.Plan | None
    start: str | None
    notes: Sequence[str] = ()

    def evaluate(self, state: TrainState, last: bool = False) -> dict[str, Any]:
        """Returns the metrics of `state` on the test set; with `last`, adds what the hooks measure."""
        results = super().evaluate(state)
        if last and self.hooks:
            host = self.parallel.fetch(state)
            for hook in self.hooks:
                results |= hook.measure(self, host)
        return results


class Hook(Protocol):
    """An addition to training; a hook overrides the methods that it needs."""

    def check(self, run: Run) -> None:
        """Raises UserError, before training, if the hook does not support this run."""

    def at_end(self, run: Run, state: TrainState) -> TrainState:
        """Returns the final state, given the state (on the devices) after the last step.

        Called before the last evaluation and the last checkpoint.
        """
        del run
        return state

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        """Returns results to add to those of the last evaluation; `state` holds numpy arrays."""
        del run, state
        return {}

    def finished(self, run: Run, state: TrainState, folder: Path) -> None:
        """Writes files into the workdir at the very end, on the primary process; `state` holds numpy arrays."""


class Plans(NamedTuple):
    """The plans of optimizer.prune, optimizer.share and lookahead; None where the setting is empty."""

    prune: pruning.Plan | None
    share: weight_sharing.Plan | None
    lookahead: lookahead.Average | None


class Optimizer(NamedTuple):
    """The parts of a run that the section `optimizer` describes.

    Attributes:
      transformation: the optax transformation.
      learning_rate: the learning rate by step, which metrics report.
      sam: the perturbation of optimizer.sam, or None.
      averaged: returns the parameters to evaluate, where the optimizer averages; see `train.step.update`.
      with_hessian: whether it needs products of the Hessian and a vector.
      notes: lines to print when the run starts.
    """

    transformation: optax.GradientTransformation
    learning_rate: schedules.Schedule
    sam: Sam | None = None
    averaged: Callable[[Any, Any], Any] | None = None
    with_hessian: bool = False
    notes: Sequence[str] = ()


def build_data(config: Config | Reader, parallel: Parallel, recorded: Mapping[str, Any] | None = None) -> Feed:
    """Opens the data set, or describes it by the record of an earlier run (`Feed.record`).

    Raises:
      UserError: the data set does not exist, or batch sizes do not fit the devices.
    """
    reader = Reader.of(config)
    for key in ("batch_size", "eval_batch_size"):
        parallel.check_batch(key, getattr(reader, key))
    sizes = {key: getattr(reader, key) for key in ("batch_size", "eval_batch_size", "steps_per_call", "seed")}
    if text.is_text(reader.data.source):
        return TextFeed(reader.data.source, reader.text, parallel, **sizes, recorded=recorded)
    return ImageFeed(reader.data, parallel, **sizes, duration=reader.duration, recorded=recorded)


def build_network(
    config: Config | Reader, recorded: Mapping[str, Any] | None = None, described: Sequence[Any] = ()
) -> Network:
    """Builds the network of a config on its data; draws no variables.

    Args:
      config: complete; see configs/base.py.
      recorded: the data's record in a run that is reopened; with it, the data set need not exist.
      described: devices of a topology, for which programs are only compiled; see `Parallel`.

    Raises:
      UserError: a value that it reads is invalid.
    """
    reader = Reader.of(config)
    if reader.precision not in PRECISIONS:
        raise choice_error("precision", reader.precision, PRECISIONS)
    if not 0 <= reader.seed < 2**32:
        raise UserError(f"seed={reader.seed} must be in [0, 2**32)")
    parallel = Parallel(reader.parallel, reader.devices, described)
    feed = build_data(reader, parallel, recorded)
    durations = Durations(reader.batch_size, feed.train_count).with_total(reader.duration)
    model = build_model(reader, feed)
    task = tasks.create(
        reader.task, model, len(feed.classes), feed.unit, feed.label_shape, reader.data.source, durations.steps
    )
    return Network(plain(reader.values()), parallel, feed, task, durations)


def build_model(reader: Reader, feed: Feed) -> nn.Module:
    """Returns the flax module of the section `model`, with the fields that the data determine."""
    for field, why in OTHERS_DECIDE.items():
        if field in reader.model.to_dict():
            raise UserError(f"model.{field}: {why}")
    for field in sorted(feed.fields.keys() - set(models.fields(reader.model.name))):
        raise UserError(
            f"model.name={reader.model.name} does not support {feed.unit} (data.source={reader.data.source}): it "
            f"has no field {field}"
        )
    fields = {**feed.fields, "dtype": PRECISIONS[reader.precision], **reader.model.to_dict(without=("name",))}
    return models.create(reader.model.name, **fields)


def build_plans(config: Config | Reader, network: Network) -> Plans:
    """Reads the plans of pruning, sharing and averaging, and checks the rules between them.

    Raises:
      UserError: a setting cannot be read, or a rule between features is broken (train/setup/rules.py).
    """
    reader, times = Reader.of(config), network.durations
    if not 0 <= reader.ema_decay < 1:
        raise UserError(f"ema_decay={reader.ema_decay} must be in [0, 1)")
    plans = Plans(
        pruning.plan(reader.optimizer.prune, times.steps, network.total),
        weight_sharing.plan(reader.optimizer.share),
        lookahead.create(reader.lookahead, times.steps, network.total),
    )
    rules.check(rules.Features(reader, network.feed, network.task, *plans, shapes=lambda: network.shapes[0]))
    return plans


def build_optimizer(config: Config | Reader, network: Network, plans: Plans, variables: Any) -> Optimizer:
    """Builds the optimizer of the section `optimizer` for the network's variables (arrays or shapes)."""
    section, params = Reader.of(config).optimizer, variables["params"]
    coupled = functools.partial(pruning.vectors, network.model, variables, network.feed.inputs)
    transformation, learning_rate = build.create(
        section, params, network.durations.steps, network.total, plans.prune, plans.share, coupled
    )
    return Optimizer(
        transformation,
        learning_rate,
        sam.create(section.sam, build.trained(section, params, network.durations.steps)),
        schedule_free.averaged if schedule_free.is_named(section.name) else None,
        catalogue.needs_hessian(section.name),
        catalogue.usual(section.name, section.learning_rate)[1],
    )


def build_programs(
    config: Config | Reader, network: Network, plans: Plans, optimizer: Optimizer
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the training program of one device, and the same program lifted over the devices."""
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
        sam=optimizer.sam,
        averaged=optimizer.averaged,
        with_hessian=optimizer.with_hessian,
    )
    return program, network.parallel.lift_training(program)


def build_run(config: Config | Reader, recorded: Mapping[str, Any] | None = None, fresh: bool = True) -> Run:
    """Builds everything that a config describes.

    Args:
      config: complete; see configs/base.py.
      recorded: see `build_network`.
      fresh: False if the state will be read from a checkpoint. Then drawn weights are not quantized to codebooks, and
        the programs are not traced.

    Raises:
      UserError: a key is unknown or unread, or a value is invalid.
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
        with_average = bool(plans.lookahead or reader.ema_decay or optimizer.averaged)
        state = initial_state(variables, task_state, optimizer.transformation, reader.seed, with_average)
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
        notes=(*_precision_notes(network), *network.feed.notes, *optimizer.notes),
    )
    reader.check_all_read()
    for hook in run.hooks:
        hook.check(run)
    if fresh:
        _trace(run)
    # The state is converted to numpy, because the loop places it on the devices. It is converted last, because JAX can
    # draw the parameters in the background while the programs are traced.
    return dataclasses.replace(run, state=jax.tree.map(np.asarray, run.state))


def _precision_notes(network: Network) -> Sequence[str]:
    """Returns a line for runs in bfloat16 on a CPU, where they are slower than in float32."""
    if network.config["precision"] == "float32" or network.parallel.devices[0].platform != "cpu":
        return ()
    return ("precision=bfloat16 is slower than float32 on a CPU: set precision=float32 unless its rounding matters",)


def examples_of_norm(reader: Reader, parallel: Parallel) -> int:
    """Returns the number of examples that batch norm sees at a time; raises UserError if accumulate does not fit."""
    per_device = reader.batch_size // len(parallel.devices)
    if reader.accumulate < 1 or per_device % reader.accumulate:
        raise UserError(f"accumulate={reader.accumulate} must divide the {per_device} examples per device")
    return per_device // reader.accumulate


def _trace(run: Run) -> None:
    """Traces both programs without computing, so that mismatched shapes raise errors before anything is written."""
    training_items, evaluation_items = run.feed.shapes()
    for items in training_items:
        jax.eval_shape(run.train_call, run.state, run.data, items)
    jax.eval_shape(run.evaluation_call, run.state, {}, evaluation_items)

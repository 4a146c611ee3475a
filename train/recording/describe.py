"""The description of a run that --dry_run prints."""

from collections.abc import Mapping
from typing import Any

import jax
import rich.console

import models
from models.analysis.cost import Complexity, analyze, short
from models.analysis.tables import duration
from train.data import imagenet
from train.data.image_feed import ImageFeed
from train.data.source import Options
from train.data.sources.tfds import NotPrepared, described
from train.recording import estimate
from train.recording.summary import device
from train.run import Run, build_run
from train.setup.config import Config, Reader, lines, plain

NAMED = 5  # classes whose names are printed


def describe(config: Config, console: rich.console.Console, layers: bool = False) -> None:
    """Prints what a run would be: data, steps, parameters, cost, memory, time, and the resolved config.

    If a TFDS data set is not prepared, the network is still described before the error that says how to prepare it.

    Args:
      config: complete; see configs/base.py.
      console: where to print.
      layers: whether to print the table of the network's layers, too.

    Raises:
      UserError: the config is wrong, or its data set is not prepared.
    """
    try:
        run = build_run(config)
    except NotPrepared as problem:
        model, inputs = _unprepared(config)
        if model is None:
            raise
        cost = analyze(model, inputs)
        _print(plain(config), cost, _network(cost, "images"), console, layers)
        raise problem
    for note in run.notes:
        console.print(note, soft_wrap=True, highlight=False)
    cost = analyze(run.model, run.feed.inputs)
    facts = {"data": _data(run), **_training(run), **_network(cost, run.feed.unit)}
    _print(run.config, cost, facts | _estimates(run, cost), console, layers)


def _unprepared(config: Config) -> tuple[Any, tuple[int, ...]]:
    """Returns the network and its input shape for a TFDS set that is not prepared; (None, ()) for unknown sets."""
    reader = Reader.of(config)
    options = Options.read(reader.data)
    known = described(options.source.partition(":")[2], options)
    if not known:
        return None, ()
    classes, image_shape = known
    fields = {"num_classes": classes, "image_size": image_shape[0], **reader.model.to_dict(without=("name",))}
    return models.create(reader.model.name, **fields), (1, *image_shape)


def _print(
    config: Mapping[str, Any], cost: Complexity, facts: Mapping[str, str], console: rich.console.Console, layers: bool
) -> None:
    """Prints facts by name, the table of the layers where it is asked for, and the config."""

    def line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    line(f"{config['model']['name']} on {config['data']['source']}")
    for name, text in facts.items():
        line(f"  {name:<12}{text}")
    if layers:
        console.print(cost.table())
    line("config" + " (--layers prints a table of the network's layers)" * (not layers))
    for key in lines(config):
        line(f"  {key}")


def _data(run: Run) -> str:
    """Returns the line about the data: sizes of the splits, shape, and classes."""
    feed = run.feed
    text = f"{feed.train_count:,} training {feed.unit}, {feed.test_size():,} test {feed.unit}"
    if not isinstance(feed, ImageFeed):
        return f"{text}, a vocabulary of {len(feed.classes):,}"
    names = ", ".join(imagenet.shown(feed.classes)[:NAMED]) + ", …" * (len(feed.classes) > NAMED)
    trained_at = ", ".join(map(str, reversed(feed.training_sizes)))
    shape = " x ".join(map(str, feed.image_shape)) + f" (training at {trained_at})" * bool(trained_at)
    return f"{text} of {shape}, {len(feed.classes):,} classes ({names})"


def _training(run: Run) -> dict[str, str]:
    """Returns the lines about steps, devices and intervals."""
    batch = run.config["batch_size"]
    epochs = run.total * batch / run.feed.train_count
    intervals = [
        f"{name} every {steps:,} steps" if steps else f"{name} at the end" for name, steps in run.every.items()
    ]
    return {
        "training": f"{run.total:,} steps of {batch:,} {run.feed.unit} ({epochs:,.4g} epochs) on "
        f"{device(run.parallel.devices)}",
        "intervals": ", ".join(intervals),
    }


def _network(cost: Complexity, unit: str) -> dict[str, str]:
    """Returns the lines about parameters and mult-adds."""
    one = unit.removesuffix("s")
    return {"parameters": f"{cost.params:,}", "mult-adds": f"{short(cost.mult_adds)} per {one}, forward"}


def _estimates(run: Run, cost: Complexity) -> dict[str, str]:
    """Returns the lines about cost, memory and time, which are measured where a step is cheap."""
    dispatch, total = estimate.cost(run, cost.mult_adds)
    one = run.feed.unit.removesuffix("s")
    taught = estimate.of_teacher(run)
    facts = {
        "mult-adds": f"{short(cost.mult_adds)} per {one}, forward; {short(total)} to train "
        f"({estimate.PASSES} times as much per {one}{', and the teacher' * bool(taught)})"
    }
    if taught:
        size = sum(leaf.size for leaf in jax.tree.leaves(run.constants))
        facts["teacher"] = (
            f"{run.task.teacher.name}: {_mebibytes(4 * size)} per device; {short(taught)} mult-adds "
            f"per {one}, forward only"
        )
    state = _mebibytes(run.parallel.bytes_per_device(run.state))
    batch = run.config["batch_size"] // len(run.parallel.devices) // run.config["accumulate"]
    kept = _mebibytes(batch * cost.kept_bytes)
    facts["memory"] = f"{state} of state per device, and about {kept} of activations for the backward pass"
    if not estimate.is_cheap(run, cost.mult_adds):
        return {**facts, "time": f"not measured, since a dispatch computes {short(dispatch)} mult-adds per device"}
    try:
        measured = estimate.measure(run, cost.mult_adds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**facts, "time": "not measured, since a step does not fit into the memory of the device"}
    if measured.bytes and measured.temporary:
        facts["memory"] = (
            f"{_mebibytes(measured.bytes)} per device, of which {state} are state and {_mebibytes(measured.temporary)} "
            "temporaries (XLA's account of the compiled step)"
        )
    facts["time"] = f"{measured.first:,.1f} s to compile and for the first dispatch"
    if measured.step is not None:
        seconds = measured.first + run.total * measured.step
        others = "" if isinstance(run.feed, ImageFeed) else "; batches of other lengths take other times"
        facts["time"] = (
            f"about {duration(seconds)} without evaluation and saving: {facts['time']}, then "
            f"{1e3 * measured.step:,.3g} ms per step (the mean of {measured.dispatches} dispatches, just run){others}"
        )
    return facts


def _mebibytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"

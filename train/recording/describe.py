"""The description of a run that --dry_run prints."""

from typing import Any

import rich.console

import models
from models.analysis.cost import analyze
from train.data.source import Options
from train.data.sources.tfds import NotPrepared, described
from train.recording.summary import device
from train.run import Run, build_run
from train.setup.config import Config, Reader, lines, plain


def describe(config: Config, console: rich.console.Console) -> None:
    """Prints the table of the network, the resolved config, and the durations in steps.

    If a TFDS data set is not prepared, the network is still printed before the error that says how to prepare it.

    Args:
      config: complete; see configs/base.py.
      console: where to print.

    Raises:
      UserError: the config is wrong, or its data set is not prepared.
    """
    try:
        run = build_run(config)
    except NotPrepared as problem:
        model, inputs = _unprepared(config)
        if model is None:
            raise
        _print(model, inputs, config, console)
        raise problem
    _print(run.model, run.feed.inputs, config, console)
    console.print(_steps(run), soft_wrap=True)


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


def _print(model: Any, inputs: Any, config: Config, console: rich.console.Console) -> None:
    console.print(analyze(model, inputs).table())
    console.print("config:")
    for line in lines(plain(config)):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _steps(run: Run) -> str:
    unit = run.feed.unit
    every = ", ".join(f"{name} every {steps}" for name, steps in run.every.items())
    return (
        f"{run.total:,} steps of {run.config['batch_size']} {unit} on {device(run.parallel.devices)}, each of which "
        f"holds {run.parallel.bytes_per_device(run.state) / 2**20:,.1f} MiB of state; {every} steps; "
        f"{run.feed.train_count:,} training {unit}, {run.feed.test_size():,} test {unit}"
    )

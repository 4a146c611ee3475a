"""What a run does besides training, named in the config: hooks="recalibrate(200)|figures"."""

from pathlib import Path
from typing import Any

from models.errors import UserError
from train import calls, evaluate, workdir
from train.recalibrate import recalibrate_batch_norm


class Hook:
    """Called by the loop; a hook overrides what it needs."""

    def check(self, run: Any) -> None:
        """Before anything is trained: raises UserError where the hook cannot do its work on this run."""

    def at_end(self, run: Any, state: Any) -> Any:
        """After the last step, before the last evaluation and checkpoint: may return another state (on the devices)."""
        del run
        return state

    def measure(self, run: Any, state: Any) -> dict[str, Any]:
        """After the last evaluation: numbers that join its results, in metrics.jsonl and in summary.json."""
        del run, state
        return {}

    def finished(self, run: Any, state: Any, folder: Path) -> None:
        """After everything else, on the process that writes: `state` is numpy, `folder` the workdir."""


class Recalibrate(Hook):
    """Recomputes batch-norm statistics over `batches` training batches, by default one epoch of unaugmented images.

    Batch norm sees as many images at a time as it did in training: a device's share of a batch, or a part of it.
    """

    def __init__(self, batches: int = 0):
        if batches < 0:
            raise ValueError(f"batches={batches} must be 0 (an epoch) or more")
        self._batches = batches

    def check(self, run):
        if "batch_stats" not in run.state.model_state:
            raise UserError("hooks: recalibrate is for networks with batch norm (model.norm=batch)")

    def at_end(self, run, state):
        host = run.parallel.fetch(state)
        batch_size = run.config["batch_size"]
        part = batch_size // len(run.parallel.devices) // run.config["accumulate"]
        count = self._batches * (batch_size // part) or -(-len(run.feed.train) // part)

        def recalibrated(variables):
            fresh = recalibrate_batch_norm(run.task.model, variables, run.feed.training_images(count, part))
            return {name: value for name, value in fresh.items() if name != "params"}

        host = host.replace(model_state=recalibrated(host.variables()))
        if host.ema:
            host = host.replace(ema={**host.ema, "model_state": recalibrated(host.evaluation_variables())})
        return run.parallel.replicate(host)


class Figures(Hook):
    """Draws curves.png, and mistakes.png (confusion matrix, most confident errors) for classifiers."""

    def finished(self, run, state, folder):
        from train import figures  # Matplotlib is needed at the end alone, and the first step should not wait for it

        figures.curves(workdir.read_metrics(folder / "metrics.jsonl"), folder / "curves.png")
        feed = run.feed
        logits, labels, index = evaluate.predictions(
            run.task, state.evaluation_variables(), feed.prepare_evaluation, feed.test_batches())
        figures.mistakes(
            logits, labels, feed.classes, folder / "mistakes.png",
            image=lambda row: feed.test.example(int(index[row]), None)["image"])


HOOKS = {"recalibrate": Recalibrate, "figures": Figures}


def create(spec: str) -> list[Hook]:
    """The hooks that a config's text names.

    Raises:
      UserError: for an unknown one.
    """
    return [calls.resolve("hook", call, HOOKS) for call in calls.parse("hooks", spec)]

"""From the metrics of every step to numbers: checked, averaged, shown while training runs, and kept in files."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from models.errors import UserError
from train import evaluate, events, workdir
from train.parameters import parameter_name

SHOWN = ("loss", "accuracy", "hit", "learning_rate")  # what the bar and the log lines show, where it is there


class NonFiniteError(UserError):
    """The loss or the gradient is no longer finite."""


def _not_finite(what: str, value: float, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"the {what} is {value} at step {step}; the checkpoint before it is kept: lower optimizer.learning_rate or set "
        "optimizer.clip_norm, in another --workdir"
    )


def check_finite(step: int, state: Any) -> Any:
    """Returns `state` (numpy leaves), or raises NonFiniteError where a number in it is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise _not_finite(parameter_name(path), leaf[~np.isfinite(leaf)].flat[0], step)
    return state


class Recorder:
    """Checks and averages training metrics; writes metrics.jsonl and event files; shows progress.

    Args:
      folder: the workdir; None on processes that write nothing.
      console: where to; a bar on a terminal, plain lines elsewhere.
      total: steps of the whole training.
      step: where this run starts.
      batch_size: examples a step.
      unit: what an example is, e.g. "images".
      log_every: steps between lines; 0: one at the end.
      before: `state()` at the checkpoint that this run goes on from; None where it starts.
    """

    def __init__(
        self,
        folder: Path | None,
        console: rich.console.Console,
        *,
        total: int,
        step: int,
        batch_size: int,
        unit: str,
        log_every: int,
        before: Mapping[str, Any] | None,
    ):
        self._file = workdir.MetricsFile(folder / "metrics.jsonl", step) if folder else None
        self._events = events.EventFile(folder, workdir.read_metrics(folder / "metrics.jsonl")) if folder else None
        self._console, self._total, self._batch_size, self._log_every = console, total, batch_size, log_every
        self._unit = unit
        before = before or {"sums": None, "logged": 0}
        self._sums = before["sums"] and {name: tuple(pair) for name, pair in before["sums"].items()}
        self._step, self._logged = step, before["logged"]
        self._pending, self._since, self._steps_timed, self._seconds_timed = None, None, 0, 0.0
        self._compiled: set[int] = set()  # numbers of steps of which a call has been dispatched
        self.first_step: float | None = None  # when the first dispatch of this process was through, by time.time()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("[bold]{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[values]}"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=step, values="compiling")
        self._bar.start()

    @property
    def examples_per_second(self) -> float:
        """Over this run, without compilation, evaluation and saving; NaN before the second dispatch is through."""
        return self._steps_timed * self._batch_size / self._seconds_timed if self._steps_timed else float("nan")

    @property
    def training_seconds(self) -> float:
        """That all steps of the training take at `examples_per_second`; NaN where that is."""
        return self._total * self._batch_size / self.examples_per_second

    def resume(self) -> None:
        """Training goes on after something else; the time in between does not count in examples/s."""
        self._since = time.perf_counter()

    def add(self, count: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of the `count` steps just dispatched, leaves [count], and treats those taken before.

        One dispatch late, so that the device never waits for Python.

        Raises:
          NonFiniteError: naming the step.
        """
        self.flush(timed=count in self._compiled)  # else the time until now is that of compiling the new call
        self._compiled.add(count)
        self._pending = (count, metrics)

    def flush(self, timed: bool = True) -> None:
        """Treats what was taken; returns when it is computed. Its time counts in examples/s where `timed`."""
        if self._pending is None:
            return
        count, metrics = self._pending
        self._pending = None
        metrics = jax.tree.map(np.asarray, dict(metrics))
        if self._since is None:  # the first dispatch, which was compiled before it ran
            self.first_step = time.time()
        elif timed:
            self._seconds_timed += time.perf_counter() - self._since
            self._steps_timed += count
        self.resume()
        for name in ("loss", "gradient_norm"):
            values = metrics[name][0]
            if not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values)))
                raise _not_finite(name.replace("_", " "), values[bad], self._step + bad + 1)
        self._sums = evaluate.add(self._sums, jax.tree.map(lambda x: x.sum(0), metrics))
        self._sums["learning_rate"] = (metrics["learning_rate"][0][-1], 1.0)  # where it is, not an average
        self._step += count
        self._bar.update(self._task, completed=self._step, values=self._describe(evaluate.ratios(self._sums)))
        due = self._log_every and self._step // self._log_every > self._logged // self._log_every
        if due or self._step == self._total:
            self._log()

    def state(self) -> dict[str, Any]:
        """What is summed up since the last line, for a checkpoint: lines do not depend on interruptions."""
        sums = self._sums and {name: [float(total), float(weight)] for name, (total, weight) in self._sums.items()}
        return {"sums": sums, "logged": self._logged}

    def _log(self) -> None:
        values = evaluate.ratios(self._sums)
        speed = self.examples_per_second
        known = {f"{self._unit}_per_second": round(speed, 1)} if speed == speed else {}
        self.write(self._step, "train", values | known)
        if not self._console.is_terminal:
            self.say(f"step {self._step}/{self._total}  {self._describe(values)}{self._left()}")
        self._sums, self._logged = None, self._step

    def _describe(self, values: Mapping[str, Any]) -> str:
        text = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        speed = self.examples_per_second
        return text + (f"  {speed:,.0f} {self._unit}/s" if speed == speed else "")

    def _left(self) -> str:
        speed = self.examples_per_second
        return f"  {(self._total - self._step) * self._batch_size / speed:.0f} s left" if speed == speed else ""

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Keeps numbers (and lists) in metrics.jsonl, and the numbers in event files as split/name."""
        if self._file:
            self._file.write(step, split, values)
            self._events.write(step, split, values)

    def evaluated(self, step: int, results: Mapping[str, Any]) -> None:
        """Keeps and shows the metrics of the test set.

        Raises:
          NonFiniteError: where one of them is not finite.
        """
        for name, value in results.items():
            if isinstance(value, float) and not np.isfinite(value):
                raise _not_finite(f"test {name}", value, step)
        self.write(step, "test", results)
        values = ", ".join(f"{name} {value:.4g}" for name, value in results.items() if isinstance(value, float))
        self.say(f"step {step}: test {values}")

    def say(self, text: str) -> None:
        """One line, above the bar."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Ends the bar and closes the files; what is already closed, or cannot be written any more, is let go."""
        self._bar.stop()
        if self._file:
            file, events, self._file = self._file, self._events, None
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                events.close()

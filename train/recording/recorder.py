"""The recorder of training metrics: checks and averages them, shows progress, and writes files."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from models.errors import UserError
from train import evaluate
from train.optim.parameters import named, parameter_name
from train.recording.tracking import Tracking
from train.recording.waiting import Waiting
from train.state import TrainState
from train.storage import events, workdir

T = TypeVar("T")
SHOWN_WAIT = 0.05  # share of the time spent waiting for data from which on they show it, as "data 23%"
SHOWN = ("loss", "accuracy", "hit", "learning_rate")  # metrics that the progress bar and log lines show


class NonFiniteError(UserError):
    """An error of a run whose loss, gradient or state is no longer finite."""


def _not_finite(name: str, value: float, step: int) -> NonFiniteError:
    return NonFiniteError(
        f"the {name} is {value} at step {step}; the last checkpoint before it is kept: lower optimizer.learning_rate "
        "or set optimizer.clip_norm, in another --workdir"
    )


def check_finite(step: int, state: TrainState) -> TrainState:
    """Returns `state` (numpy leaves); raises NonFiniteError if a number in it is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise _not_finite(parameter_name(path), leaf[~np.isfinite(leaf)].flat[0], step)
    return state


def check_finite_shards(step: int, state: TrainState) -> None:
    """Raises NonFiniteError on every process if a number in a state, sharded over processes, is not finite."""
    floats = {name: leaf for name, leaf in named(state).items() if jnp.issubdtype(leaf.dtype, jnp.floating)}
    for name, finite in jax.device_get(_finite(floats)).items():
        if not finite:
            raise _not_finite(name, float("nan"), step)


@jax.jit
def _finite(leaves: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


class Recorder:
    """A recorder that averages training metrics, writes metrics.jsonl and event files, and shows progress.

    Args:
      folder: the workdir; None on processes that write nothing.
      console: shows a progress bar on a terminal, and plain lines elsewhere.
      total: steps of the whole training.
      step: the step from which this process continues.
      batch_size: examples per step.
      unit: what examples are called, e.g. "images".
      peak_mib: returns the peak memory in MiB, or None, for the progress bar.
      log_every: steps between lines; 0 for a single line at the end.
      before: `state()` at the checkpoint from which the run resumes; None for a new run.
      trackers: receive each line, too; whoever starts them closes them.
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
        peak_mib: Callable[[], int | None],
        log_every: int,
        before: Mapping[str, Any] | None,
        trackers: Sequence[Tracking] = (),
    ):
        self._files: list[workdir.MetricsFile | events.EventFile] = []
        self._trackers = trackers
        if folder:
            self._files.append(workdir.MetricsFile(folder / "metrics.jsonl", step))  # cuts it off at `step`
            lines = workdir.read_metrics(folder / "metrics.jsonl")
            self._files.append(events.EventFile(folder, lines))
            for tracker in trackers:
                tracker.catch_up(lines)
        self._console, self._total, self._batch_size, self._log_every = console, total, batch_size, log_every
        self._unit, self._peak_mib = unit, peak_mib
        before = before or {"sums": None, "logged": 0}
        self._sums: dict[str, Any] | None = before["sums"] and {
            name: tuple(pair) for name, pair in before["sums"].items()
        }
        self._step, self._logged = step, before["logged"]
        self._pending, self._since, self._steps_timed, self._seconds_timed = None, None, 0, 0.0
        self._waiting, self._seconds_waited = Waiting(), 0.0
        self._compiled: set[int] = set()  # numbers of steps per dispatch for which a program has been compiled
        self.first_step: float | None = None  # when the first dispatch of this process finished, by time.time()
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
        """Speed of this process without compilation, evaluation and saving; NaN until the second dispatch finishes."""
        return self._steps_timed * self._batch_size / self._seconds_timed if self._steps_timed else float("nan")

    @property
    def training_seconds(self) -> float:
        """Duration of all steps of the training at `examples_per_second`; NaN if that is NaN."""
        return self._total * self._batch_size / self.examples_per_second

    @property
    def data_share(self) -> float:
        """Share of the time of `examples_per_second` in which the devices waited for data; NaN if that is NaN."""
        return self._seconds_waited / self._seconds_timed if self._steps_timed else float("nan")

    def fetching(self, calls: Iterable[T]) -> Iterator[T]:
        """Yields the items of dispatches, and measures for how long the devices wait for them."""
        return self._waiting.fetching(calls)

    def resume(self) -> None:
        """Restarts the clock after evaluation or saving, so that their time does not count in examples/s."""
        self._since = time.perf_counter()

    def add(self, count: int, metrics: Mapping[str, Any]) -> None:
        """Processes the metrics of the previous dispatch, then stores those of the `count` steps just dispatched.

        The leaves of `metrics` are [count]. Metrics are processed one dispatch late, so that the device never waits for
        Python.

        Raises:
          NonFiniteError: a loss or gradient norm is not finite. The message names the step.
        """
        self.flush(timed=count in self._compiled)  # otherwise the time since then includes compiling a new program
        self._compiled.add(count)
        self._pending = (count, metrics)
        self._waiting.dispatched(metrics)

    def flush(self, timed: bool = True) -> None:
        """Waits for the stored metrics and processes them; if `timed`, their time counts in examples/s."""
        if self._pending is None:
            return
        count, metrics = self._pending
        self._pending = None
        metrics = jax.tree.map(np.asarray, dict(metrics))
        waited = self._waiting.take()
        if self._since is None:  # the first dispatch, which was compiled before it ran
            self.first_step = time.time()
        elif timed:
            self._seconds_timed += time.perf_counter() - self._since
            self._steps_timed += count
            self._seconds_waited += waited
        self.resume()
        for name in ("loss", "gradient_norm"):
            values = metrics[name][0]
            if not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values)))
                raise _not_finite(name.replace("_", " "), values[bad], self._step + bad + 1)
        self._sums = evaluate.add(self._sums, jax.tree.map(lambda x: x.sum(0), metrics))
        self._sums["learning_rate"] = (metrics["learning_rate"][0][-1], 1.0)  # the current value, not an average
        self._step += count
        averages = evaluate.ratios(self._sums)
        peak = self._peak_mib()
        values = self._describe(averages) + (f"  {peak:,} MiB" if peak else "")
        self._bar.update(self._task, completed=self._step, values=values)
        due = self._log_every and self._step // self._log_every > self._logged // self._log_every
        if due or self._step == self._total:
            self._log(averages)

    def state(self) -> dict[str, Any]:
        """Returns the sums since the last line, for checkpoints, so that lines do not depend on interruptions."""
        sums = self._sums and {name: [float(total), float(weight)] for name, (total, weight) in self._sums.items()}
        return {"sums": sums, "logged": self._logged}

    def _log(self, values: Mapping[str, Any]) -> None:
        speed = self.examples_per_second
        rate = {f"{self._unit}_per_second": round(speed, 1)} if speed == speed else {}
        self.write(self._step, "train", {**values, **rate})
        if not self._console.is_terminal:
            self.say(f"step {self._step}/{self._total}  {self._describe(values)}{self._left()}")
        self._sums, self._logged = None, self._step

    def _describe(self, values: Mapping[str, Any]) -> str:
        text = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        speed = self.examples_per_second
        text += f"  {speed:,.0f} {self._unit}/s" if speed == speed else ""
        return text + (f"  data {self.data_share:.0%}" if self.data_share >= SHOWN_WAIT else "")

    def _left(self) -> str:
        speed = self.examples_per_second
        return f"  {(self._total - self._step) * self._batch_size / speed:.0f} s left" if speed == speed else ""

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes numbers and lists to metrics.jsonl, and the numbers to the event file and trackers as split/name."""
        for file in (*self._files, *self._trackers):
            file.write(step, split, values)

    def evaluated(self, step: int, results: Mapping[str, Any]) -> None:
        """Writes and shows the metrics of the test set.

        Raises:
          NonFiniteError: a metric is not finite.
        """
        for name, value in results.items():
            if isinstance(value, float) and not np.isfinite(value):
                raise _not_finite(f"test {name}", value, step)
        self.write(step, "test", results)
        values = ", ".join(f"{name} {value:.4g}" for name, value in results.items() if isinstance(value, float))
        self.say(f"step {step}: test {values}")

    def say(self, text: str) -> None:
        """Prints one line above the progress bar."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Stops the progress bar and closes the files, once; ignores errors of the file system."""
        self._bar.stop()
        self._waiting.close()
        files, self._files = self._files, []
        for file in files:
            with contextlib.suppress(OSError):
                file.close()

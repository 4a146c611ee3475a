"""The training loop: every experiment, task, pruning run and study goes through `train`."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import rich.console

from models import weights
from models.errors import UserError
from train.devices import memory, multihost
from train.interruption import Interruption
from train.recording import summary, tracking
from train.recording.recorder import Recorder, check_finite, check_finite_shards
from train.run import Run, build_run
from train.setup import extension, pretrained
from train.setup.config import Config, difference, plain
from train.state import TrainState
from train.storage import checkpoint
from train.storage.files import read_json, sha256, write_json
from train.storage.remote import fetched
from train.storage.workdir import Workdir

if TYPE_CHECKING:  # imports Orbax
    from train.storage.sharded import ShardedCheckpoints


def train(
    config: Config,
    workdir: str | Path,
    console: rich.console.Console | None = None,
    started: float | None = None,
    extend: bool = False,
    until: int = 0,
) -> dict[str, Any]:
    """Trains and evaluates the run that `config` describes, or resumes it where it was interrupted.

    The result is that of an uninterrupted run, whatever ended earlier processes of the same config in `workdir`.

    Args:
      config: complete; see configs/base.py.
      workdir: the folder of this run.
      console: shows progress; None for silence.
      started: when the process started, by time.time(); by default, the call. All seconds of the summary count from it.
      extend: whether the run in `workdir` is trained on to a longer `config.duration`, with its optimizer's state.
      until: step at which the run pauses, or rather the end of the dispatch that reaches it: it is evaluated and saved,
        and a later call goes on to the same bits. 0 for the end of the training.

    Returns:
      The summary, as in summary.json, which a paused run does not write; or {"interrupted": signal, "step": …} if
      SIGTERM or SIGINT ended the run early.

    Raises:
      UserError: the config is invalid, the workdir belongs to another config or process, it is beyond `until`, the loss
        is not finite, or the disk is full.
    """
    started = started or time.time()
    console = console or rich.console.Console(quiet=True)
    with Workdir(workdir) as folder:
        multihost.on_primary(folder.reserve)
        multihost.check_same("config", plain(config))
        run = build_run(config)
        for note in run.notes:
            _say(console, note)
        record = _record(run)
        multihost.check_same("data or start of the run", record)
        opening = multihost.from_primary(
            lambda: (folder.open(run.config, record, run.keep, run.task.headline, extend), ()), ()
        )[0]
        resume = _resume_shards if _share(run, folder, console) else _resume_whole
        (saved, finished), state = resume(run, folder, _Start(record, console, opening))
        end = min(until or run.total, run.total)
        if end < run.total and saved["step"] >= end + run.config["steps_per_call"]:
            raise UserError(f"{folder.path} is at step {saved['step']}, beyond {end}, where it should pause: delete it")
        if finished:
            _say(
                console,
                f"{folder.path} is already finished; its summary is unchanged (--extend with a longer "
                "--config.duration trains on)",
            )
            return finished
        return _Training(run, folder, record, console, saved, state, started, end).finish()


def _say(console: rich.console.Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def _record(run: Run) -> dict[str, Any]:
    """Returns the record of everything outside the config that must not change when a run resumes."""
    record = run.feed.record()
    if run.start:
        record["arrays of init_from"] = run.start
    if run.constants:
        record["arrays that task.name reads"] = pretrained.digest(weights.flatten(run.constants))
    if run.prune and run.prune.file:
        record["file of optimizer.prune"] = sha256(fetched(run.prune.file))[:16]
    return record


def _share(run: Run, folder: Workdir, console: rich.console.Console) -> bool:
    """Returns whether each process writes and reads its shards of the state, and prepares the folder for that."""
    if not run.parallel.is_split:
        return False
    if not multihost.all_see(folder.path):
        _say(
            console,
            f"not all processes see {folder.path}: process 0 gathers the whole state for each checkpoint (a --workdir "
            "that all hosts share lets each process write its shards)",
        )
        return False
    folder.share(run.keep, run.task.headline)
    return True


@dataclasses.dataclass(frozen=True)
class _Start:
    """The start of a run in its folder, new or resumed.

    Attributes:
      record: see `_record`.
      console: shows lines.
      before: the duration of the run in the folder if it is extended, else None.
    """

    record: Mapping[str, Any]
    console: rich.console.Console
    before: str | None

    def say(self, line: str) -> None:
        """Shows a line."""
        _say(self.console, line)

    def warn(self, line: str) -> None:
        """Shows a warning."""
        _say(self.console, f"warning: {line}")


Saved = tuple[dict[str, Any], dict[str, Any] | None]  # the JSON of the newest checkpoint; the summary of a finished run
_NEW: dict[str, Any] = {"step": 0, "seconds": 0.0, "recorder": None}


def _resume_whole(run: Run, folder: Workdir, start: _Start) -> tuple[Saved, TrainState]:
    """Reads the newest checkpoint on process 0, which sends the state to the others.

    Raises:
      UserError: the checkpoints belong to other data or another network, or all of them are damaged.
    """

    def read():
        newest = folder.checkpoints.restore_newest(start.warn)
        if not newest:
            folder.record_paths(run.config)
            return (_NEW, None), run.state
        leaves, saved = newest
        if finished := _check(run, folder, start, saved):
            return (saved, finished), run.state
        state = checkpoint.unflatten(run.state, leaves, f"checkpoint {saved['step']} in {folder.path}")
        start.say(f"resuming from step {saved['step']} of {run.total}")
        return (saved, None), state

    return multihost.from_primary(read, run.state)


def _resume_shards(run: Run, folder: Workdir, start: _Start) -> tuple[Saved, TrainState]:
    """Reads the newest checkpoint, each process its shards; otherwise as `_resume_whole`, with the state placed."""
    checkpoints = cast("ShardedCheckpoints", folder.checkpoints)
    saved = checkpoints.newest_whole(start.warn)
    if not saved:
        multihost.on_primary(lambda: folder.record_paths(run.config))
        return (_NEW, None), run.state
    finished, _ = multihost.from_primary(lambda: (_check(run, folder, start, saved), ()), ())
    if finished:
        return (saved, finished), run.state
    state = checkpoints.read(saved["step"], run.parallel.placed(run.state))
    start.say(f"resuming from step {saved['step']} of {run.total}")
    return (saved, None), state


def _check(run: Run, folder: Workdir, start: _Start, saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """Checks on process 0 that a checkpoint belongs to the run, and extends the run; returns its summary if finished.

    Raises:
      UserError: the checkpoint belongs to other data, or the summary is damaged.
    """
    record = start.record
    implied = {key: record[key] for key in ("background",) if key in record}  # 0.1.0 did not record it
    if changed := difference({**implied, **saved["data"]}, record):
        raise UserError(
            f"the data or the start of the run in {folder.path} have changed ({'; '.join(changed)}): "
            "choose another --workdir"
        )
    folder.record_paths(run.config)
    if start.before is not None:
        line = extension.effect(run.config, run.durations, start.before, saved["step"])
        folder.extend(run.config["duration"], saved["step"])
        start.say(line)
    path = folder.path / "summary.json"
    if saved["step"] == run.total and path.exists():
        try:
            return read_json(path, summary.SCHEMA)
        except UserError as error:
            raise UserError(f"{error}; delete it, and the same command evaluates the run again") from None
    return None


class _Training:
    """The training of a run from its newest checkpoint to its end.

    Args:
      run: the run.
      folder: its workdir.
      record: see `_record`.
      console: shows progress.
      saved: the JSON of the newest checkpoint.
      state: the state of that checkpoint, as numpy arrays.
      started: when the process started, by time.time().
      end: the step at which this process ends; before the last one, the run pauses.
    """

    def __init__(
        self,
        run: Run,
        folder: Workdir,
        record: Mapping[str, Any],
        console: rich.console.Console,
        saved: Mapping[str, Any],
        state: TrainState,
        started: float,
        end: int,
    ):
        self._run, self._folder, self._record = run, folder, record
        self._is_primary = jax.process_index() == 0  # only the primary process reads and writes the workdir
        self._shares = folder.is_shared  # except for the shards of each process in checkpoints
        self._state, self._done = run.parallel.place(state), saved["step"]
        self._results: dict[str, Any] = {}  # results of the evaluation after step `_done`, if there was one
        self._started, self._end = started, end
        self._began = started - saved["seconds"]  # as if earlier, interrupted processes had been part of this one
        self._trackers = tracking.start(run, folder.path, functools.partial(_say, console)) if self._is_primary else []
        self._recorder = Recorder(
            folder.path if self._is_primary else None,
            console,
            total=run.total,
            step=self._done,
            batch_size=run.config["batch_size"],
            unit=run.feed.unit,
            peak_mib=functools.partial(memory.peak_mib, run.parallel.local),
            log_every=run.every["log"],
            before=saved["recorder"],
            trackers=self._trackers,
        )

    def finish(self) -> dict[str, Any]:
        """Trains to the end, or to the pause; returns the result of `train`."""
        run, recorder = self._run, self._recorder
        calls = itertools.takewhile(lambda _: self._done < self._end, run.feed.calls(self._done, run.total))
        metrics = None
        memory.give_back()  # of drawing the network
        try:
            with Interruption() as interruption:
                # The items are read while the last call computes
                for number, (count, items) in enumerate(recorder.fetching(calls)):
                    memory.one_at_a_time(metrics)
                    self._state, metrics = run.train_call(self._state, run.data, items)
                    recorder.add(count, metrics)
                    interrupted = interruption.noted(number)
                    paused = self._after_call(count, bool(interrupted))
                    if interrupted and self._done < run.total:
                        return self._stop(interrupted)
                    if paused:
                        recorder.resume()
            return self._conclude()
        finally:
            self._close("failed")  # unless it is closed already

    def _after_call(self, count: int, interrupted: bool) -> bool:
        """Evaluates and saves if due after a dispatch of `count` steps; returns whether either was due."""
        run, before = self._run, self._done
        self._done, self._results = before + count, {}
        is_last, ends = self._done == run.total, self._done >= self._end
        due = {name: ends or (every > 0 and self._done // every > before // every) for name, every in run.every.items()}
        if not (due["evaluate"] or due["checkpoint"] or interrupted):
            return False
        self._recorder.flush()  # raises if the loss is not finite, before anything is evaluated or saved
        for hook in run.hooks if is_last else ():
            self._state = hook.at_end(run, self._state)
        if due["evaluate"]:
            self._results = run.evaluate(self._state, last=is_last)
            self._recorder.evaluated(self._done, self._results)
        if due["checkpoint"] or interrupted:
            self._save()
        return True

    def _save(self) -> None:
        """Starts to write a checkpoint in the background."""
        if self._shares:
            check_finite_shards(self._done, self._state)
            state = self._state
        else:
            state = check_finite(self._done, self._run.parallel.fetch(self._state))
        if self._is_primary or self._shares:
            saved = {"seconds": time.time() - self._began, "data": self._record, "recorder": self._recorder.state()}
            self._folder.checkpoints.save(self._done, state, saved, self._results)

    def _wait(self) -> None:
        """Waits until the last checkpoint is on disk."""
        if self._is_primary or self._shares:
            self._folder.checkpoints.wait()

    def _stop(self, interrupted: str) -> dict[str, Any]:
        """Waits for the checkpoint of an interrupted run; returns the result of `train`."""
        self._wait()
        self._recorder.say(f"{interrupted}: saved at step {self._done} of {self._run.total}; the same command resumes")
        self._close("stopped")
        return {"interrupted": interrupted, "step": self._done}

    def _conclude(self) -> dict[str, Any]:
        """Writes the summary and the files of the hooks, unless the run pauses; returns the summary."""
        run, recorder, is_last = self._run, self._recorder, self._done == self._run.total
        self._wait()
        # There are no results yet if an earlier process was killed between the last checkpoint and the summary.
        results = self._results or run.evaluate(self._state, last=is_last)
        result = summary.create(
            run, results, steps=self._done, seconds=time.time() - self._began, recorder=recorder, started=self._started
        )
        if not is_last:
            recorder.say(f"paused: saved at step {self._done} of {run.total}")
            self._close("stopped")
            return result
        if skipped := run.feed.skipped_line():
            recorder.say(f"warning: {skipped}")
        recorder.close()
        host = run.parallel.fetch(self._state) if run.hooks else self._state
        if self._is_primary:
            for hook in run.hooks:
                hook.finished(run, host, self._folder.path)
            if extensions := self._folder.extensions():
                result["extended"] = extensions
            write_json(self._folder.path / "summary.json", result)
        self._close("finished", result)
        return result

    def _close(self, state: str, result: Mapping[str, Any] | None = None) -> None:
        """Closes the recorder's files and the trackers, once; see `train.recording.tracking.Tracker.end`."""
        self._recorder.close()
        while self._trackers:
            self._trackers.pop().close(state, result or {})

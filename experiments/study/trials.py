"""Runs trials, each in a folder named after its config; a CPU with several cores runs several at once.

Each finished trial leaves a line in the study's ledger. Its folder, with the checkpoints, is then deleted.
"""

import contextlib
import hashlib
import inspect
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.progress

from experiments import study
from experiments.study import ledger
from models import command, plugins
from models.errors import UserError

LOGGED = {
    "train": ("loss", "accuracy", "gradient_norm"),
    "test": ("loss", "accuracy"),
}  # metrics that outcomes keep from metrics.jsonl
ALL = "all"  # accepts the lines of every commit


class Job(NamedTuple):
    """A trial and everything that its process needs.

    Attributes:
      trial: The trial, with the measures of all trials that have the same config.
      folder: Folder of its run.
      ledger: Ledger file to append its line to; None if no line is needed.
      code: Digest of its code.
    """

    trial: study.Trial
    folder: Path
    ledger: Path | None
    code: str


def address(trial: study.Trial) -> str:
    """Returns the name of the trial's folder: the model and a digest of the config. Equal configs share a folder."""
    from train.storage import workdir

    config = workdir.plain(trial.config)
    start = [address(trial.start)] if trial.start else []
    text = json.dumps([config, trial.train, *start], sort_keys=True)
    return f"{plugins.short(config['model']['name'])}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def code_of(trial: study.Trial) -> str:
    """Returns the digest of the code that a trial runs: the loop, its network, its measures, and files of users."""
    import models

    name = trial.config.model.name
    network = [] if plugins.split(name) else [models.family(name)]
    files = [str(inspect.getsourcefile(measure)) for measure in trial.measures]
    files += re.findall(r"[\w./~-]+\.py(?=:)", trial.config.to_json_best_effort())
    return ledger.code(("train.loop", "train.restore", *network), files)


def run(job: Job) -> dict[str, Any]:
    """Trains and measures in the job's folder, and appends the line to the ledger.

    Returns:
      The line of the ledger, or {"interrupted": signal} if SIGTERM or SIGINT ended training early.
    """
    import jax

    from train import loop, restore
    from train.recording import recorder, summary
    from train.run import build_run
    from train.storage import workdir

    trial, folder, began = job.trial, job.folder, time.time()
    config = trial.config.copy_and_resolve_references()
    config.devices = config.devices or 1  # not all of this host's: batch norm would depend on their number
    if trial.start:
        config.init_from = str((folder.parent / address(trial.start)).resolve())
    outcome: dict[str, Any] = {"summary": None, "diverged": None, "history": {}, "measured": {}}
    if trial.train:
        try:
            outcome["summary"] = loop.train(config, folder)
        except recorder.NonFiniteError as error:
            outcome["diverged"] = str(error).split(";")[0]
        if "interrupted" in (outcome["summary"] or {}):
            return outcome["summary"]
        outcome["history"] = _history(workdir.read_metrics(folder / "metrics.jsonl"))
    if trial.measures and not outcome["diverged"]:
        prepared = build_run(config)
        state = restore.restored(prepared, folder) if trial.train else prepared.state
        for measure in trial.measures:
            outcome["measured"][measure.__name__] = measure(prepared, state)
    line = _line(job, outcome, outcome["summary"] or summary.environment(jax.local_devices()))
    line["seconds"] = round(time.time() - began, 2)
    if job.ledger:
        ledger.append(job.ledger, line)
    return line


def _line(job: Job, outcome: dict[str, Any], environment: Any) -> dict[str, Any]:
    """Returns a line of the ledger."""
    from train.storage import workdir

    outcome = {**outcome, **{name: _short(outcome[name]) for name in ("history", "measured")}}
    line = {"trial": address(job.trial), "labels": dict(job.trial.labels), "outcome": outcome, "code": job.code}
    line |= {name: environment[name] for name in ("commit", "device", "versions")}
    return workdir.plain({**line, "seconds": 0.0})


def _short(value: Any) -> Any:
    """Rounds all numbers of a JSON value to seven digits, about the precision of float32; None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def _history(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, list]]:
    history = {}
    for split, names in LOGGED.items():
        rows = [line for line in lines if line["split"] == split]
        history[split] = {name: [row.get(name) for row in rows] for name in ("step", *names)}
    return history


def _serve(connection: Any, cores: Sequence[int], cache: str) -> None:
    """Runs jobs in a worker process: answers each with (kind, line or text), until None arrives."""
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX reads the number of threads to start
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    while (work := connection.recv()) is not None:
        try:
            connection.send(("done", run(work)))
            jax.clear_caches()  # otherwise compiled programs of hundreds of trials fill the memory
        except UserError as error:
            connection.send(("mistake", str(error)))
        except Exception:
            connection.send(("fault", traceback.format_exc()))


def run_all(
    trials: Sequence[study.Trial],
    lines: ledger.Ledger,
    root: Path,
    jobs: int,
    console: rich.console.Console,
    accept: Collection[str] = (),
    deadline: float | None = None,
    keep: bool = False,
) -> list[study.Outcome]:
    """Runs the trials that the ledger lacks; trials with equal configs run once.

    Args:
      trials: Trials of the study.
      lines: The ledger.
      root: Folder of the trials' folders.
      jobs: Number of trials at once. If it is above 1, they run in separate processes, which divide the cores.
      console: Console for progress: a bar on a terminal, otherwise one line per trial.
      accept: Commits whose lines count although their code differs; ALL for every commit.
      deadline: Time after which no trial starts, as `time.time`.
      keep: Keeps the folders of finished trials, with their checkpoints. Folders that other trials start from always
        stay.

    Returns:
      The outcomes, in the order of the trials.

    Raises:
      UserError: A trial failed, or the deadline came.
      Interrupted: SIGTERM or SIGINT ended it; the same command resumes.
    """
    merged: dict[str, study.Trial] = {}
    for trial in trials:  # trials with equal configs run once, with all of their measures
        name = address(trial)
        measures = dict.fromkeys((*(merged[name].measures if name in merged else ()), *trial.measures))
        merged[name] = trial._replace(measures=tuple(measures))
    codes = {name: code_of(trial) for name, trial in merged.items()}
    finished = {}
    for name, trial in merged.items():
        line = lines.get(name, codes[name], accept)
        if line and (line["outcome"]["diverged"] or _names(trial) <= line["outcome"]["measured"].keys()):
            finished[name] = line
    work: dict[str, Job] = {}
    for name, trial in merged.items():
        if name not in finished:
            for start in _starts(trial):
                _add_start(work, address(start), start, root, finished)
            work[name] = Job(trial, root / name, lines.path, codes[name])
    starts = {address(start) for job in work.values() for start in _starts(job.trial)}
    if work:
        root.mkdir(parents=True, exist_ok=True)
    for name, line in _run_with_progress(work, finished, root, jobs, console, deadline):
        lines.keep(line)
        finished.setdefault(name, line)
        if not keep and name not in starts:
            shutil.rmtree(root / name, ignore_errors=True)
    pairs = [(trial.labels, finished[address(trial)]) for trial in trials]
    return [study.Outcome(labels, **line["outcome"], seconds=line["seconds"]) for labels, line in pairs]


def _names(trial: study.Trial) -> set[str]:
    return {measure.__name__ for measure in trial.measures}


def _starts(trial: study.Trial) -> list[study.Trial]:
    """Returns the trials that must run before this one, in order."""
    return [*_starts(trial.start), trial.start] if trial.start else []


def _add_start(work: dict[str, Job], name: str, start: study.Trial, root: Path, finished: dict[str, Any]) -> None:
    """Adds a trial that another one starts from, unless its network exists, is planned or diverged."""
    diverged = name in finished and finished[name]["outcome"]["diverged"]
    if not (name in work or diverged or (root / name / "summary.json").exists()):
        work[name] = Job(start._replace(measures=()), root / name, None, "")


def _run_with_progress(
    work: dict[str, Job],
    finished: dict[str, Any],
    root: Path,
    jobs: int,
    console: rich.console.Console,
    deadline: float | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the line of each job as it finishes, and shows progress."""
    bar = rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[last]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("trials", total=len(work), last="")
        run_each = _here if jobs == 1 else _in_processes
        for done, (name, line) in enumerate(run_each(work, finished, root, jobs, deadline), 1):
            labels = ", ".join(f"{key} {value}" for key, value in work[name].trial.labels.items())
            outcome = line["outcome"]
            result = outcome["diverged"] or (
                f"accuracy {outcome['summary']['accuracy']:.1%}"
                if "accuracy" in (outcome["summary"] or {})
                else "measured"
            )
            bar.update(task, advance=1, last=labels)
            if not console.is_terminal:
                console.print(f"{done}/{len(work)}  {labels}: {result}", soft_wrap=True, highlight=False)
            yield name, line


class Interrupted(UserError):
    """An interruption of the trials by a signal."""

    def __init__(self, name: str):
        super().__init__(f"{name}: finished work is kept; run the same command to resume")
        self.exit_code = command.INTERRUPTED if name == "SIGINT" else command.PREEMPTED


class OutOfTime(UserError):
    """An end of the time budget before the last trial started."""

    exit_code = command.PREEMPTED

    def __init__(self, left: int):
        super().__init__(f"the time budget ended with {left} trials left to run; run the same command to resume")


def _after_divergence(job: Job, finished: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the line of a job that cannot run because its start diverged; None if it can run."""
    start = finished.get(address(job.trial.start)) if job.trial.start else None
    if not (start and start["outcome"]["diverged"]):
        return None
    text = f"{start['trial']}, that it starts from, diverged"
    line = _line(job, {"summary": None, "diverged": text, "history": {}, "measured": {}}, start)
    if job.ledger:
        ledger.append(job.ledger, line)
    return line


def _here(
    work: dict[str, Job], finished: dict[str, Any], root: Path, jobs: int, deadline: float | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    del root, jobs
    for i, (name, job) in enumerate(work.items()):
        if deadline and time.time() > deadline:
            raise OutOfTime(len(work) - i)
        try:
            line = _after_divergence(job, finished) or run(job)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if "interrupted" in line:
            raise Interrupted(line["interrupted"])
        yield name, line


def _in_processes(
    work: dict[str, Job], finished: dict[str, Any], root: Path, jobs: int, deadline: float | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs `jobs` worker processes; each gets its next trial when it finishes one."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    waiting, busy, workers, done = list(work), {}, [], set()
    for i in range(min(jobs, len(work))):
        parent_end, child_end = context.Pipe()
        process = context.Process(target=_serve, args=(child_end, cores[i::jobs], str(root / "compiled")), daemon=True)
        process.start()
        child_end.close()
        workers.append((process, parent_end))

    def next_job() -> str | None:
        """Returns the first waiting trial that starts from nothing, or from a trial that has finished."""
        starts = ((name, work[name].trial.start) for name in waiting)
        return next(
            (n for n, start in starts if not start or address(start) not in work or address(start) in done), None
        )

    def assign() -> None:
        """Sends every idle worker the next trial."""
        for _, connection in workers:
            is_late = deadline and time.time() > deadline
            if connection not in busy and not is_late and (name := next_job()):
                waiting.remove(name)
                busy[connection] = name
                connection.send(work[name])

    def skip_diverged() -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the lines of trials that cannot run because their start diverged."""
        for name in list(waiting):
            if line := _after_divergence(work[name], finished):
                waiting.remove(name)
                done.add(name)
                yield name, line

    try:
        with _Signals(lambda: [process.terminate() for process, _ in workers]) as signals:
            yield from skip_diverged()
            assign()
            while busy:
                ready: list[Any] = multiprocessing.connection.wait(list(busy))
                for connection in ready:
                    name = busy.pop(connection)
                    try:
                        kind, line = connection.recv()
                    except (EOFError, ConnectionError):
                        if signals.name:
                            continue
                        raise RuntimeError(
                            f"the process that ran {name} died; run the same command to resume"
                        ) from None
                    if kind == "mistake":
                        raise UserError(f"{name}: {line}")
                    if kind == "fault":
                        raise RuntimeError(f"{name}: {line}")
                    if "interrupted" in line:
                        signals.name = signals.name or line["interrupted"]
                        waiting.clear()
                        continue
                    yield name, line
                    done.add(name)
                    yield from skip_diverged()
                    if not signals.name:
                        assign()
    finally:  # after a failed trial, too, so that the workers release the cores
        for _, connection in workers:
            with contextlib.suppress(OSError):  # the worker has already ended
                connection.send(None)
        for process, _ in workers:
            process.join(20)
            process.kill()
    if signals.name:
        raise Interrupted(signals.name)
    if waiting:
        raise OutOfTime(len(waiting))


class _Signals:
    """A context that notes SIGTERM and SIGINT and calls `act`, so that running trials save and end."""

    name: str | None = None

    def __init__(self, act: Callable[[], Any]):
        self._act = act

    def __enter__(self):
        self._handling = command.handling((signal.SIGTERM, signal.SIGINT), self._note)
        self._handling.__enter__()
        return self

    def _note(self, number, frame):
        del frame
        self.name = signal.Signals(number).name
        self._act()

    def __exit__(self, *error):
        self._handling.__exit__(*error)
        if error[0]:
            self._act()

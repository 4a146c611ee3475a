"""Runs trials, each in a folder named by its config; several at once on a CPU with several cores."""

import contextlib
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from experiments import study
from models import command, plugins
from models.errors import UserError
from train.recording import summary
from train.storage.files import read_json, write_json

# Schema of outcome.json; see `run`.
SCHEMA = {
    "type": "object",
    "required": ["summary", "diverged", "history", "measured"],
    "additionalProperties": False,
    "properties": {
        "summary": {"anyOf": [{"type": "null"}, summary.SCHEMA]},
        "diverged": {"type": ["string", "null"]},
        "history": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": ["number", "null"]}},
            },
        },
        "measured": {"type": "object"},
    },
}
KEPT = {
    "train": ("loss", "accuracy", "gradient_norm"),
    "test": ("loss", "accuracy"),
}  # metrics of metrics.jsonl to store


def address(trial: study.Trial) -> str:
    """Returns the name of the trial's folder: the model, and a digest of the config. Equal configs share it."""
    from train.storage import workdir

    config = workdir.plain(trial.config)
    start = [address(trial.start)] if trial.start else []
    text = json.dumps([config, trial.train, *start], sort_keys=True)
    return f"{plugins.short(config['model']['name'])}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run(trial: study.Trial, folder: Path) -> dict[str, Any]:
    """Trains and measures what is missing in `folder`, and returns the content of its outcome.json.

    Returns:
      {"summary", "diverged", "history", "measured"}; {"interrupted": signal} if SIGTERM or SIGINT ended it early.
    """
    from train import loop, restore
    from train.recording import recorder
    from train.run import build_run
    from train.storage import workdir

    config, before = trial.config, None
    if trial.start:
        before = folder.parent / address(trial.start)
        config = config.copy_and_resolve_references()
        config.init_from = str(before.resolve())
    path = folder / "outcome.json"
    outcome = read_json(path, SCHEMA) if path.exists() else None
    if outcome is None:
        outcome = {"summary": None, "diverged": None, "history": {}, "measured": {}}
        if before and read_json(before / "outcome.json", SCHEMA)["diverged"]:
            outcome["diverged"] = f"{before.name}, that it starts from, diverged"
        elif trial.train:
            try:
                outcome["summary"] = loop.train(config, folder)
            except recorder.NonFiniteError as error:
                outcome["diverged"] = str(error).split(";")[0]
            if "interrupted" in (outcome["summary"] or {}):
                return outcome["summary"]
            outcome["history"] = _history(workdir.read_metrics(folder / "metrics.jsonl"))
    missing = [measure for measure in trial.measures if measure.__name__ not in outcome["measured"]]
    if missing and not outcome["diverged"]:
        prepared = build_run(config)
        state = prepared.state
        if trial.train:
            state = restore.restored(prepared, folder)
            if int(state.step) < prepared.total:
                raise UserError(
                    f"{folder}: this trial's newest checkpoint is of step {int(state.step)}, not "
                    f"{prepared.total}: delete its outcome.json to train the remaining steps"
                )
        for measure in missing:
            outcome["measured"][measure.__name__] = measure(prepared, state)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, outcome)
    return outcome


def _history(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, list]]:
    history = {}
    for split, names in KEPT.items():
        rows = [line for line in lines if line["split"] == split]
        history[split] = {name: [row.get(name) for row in rows] for name in ("step", *names)}
    return history


def _serve(connection: Any, cores: Sequence[int], cache: str) -> None:
    """Works in its own process: answers each (trial, folder) with (kind, outcome or text), until None arrives."""
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX reads the number of threads to start
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    while (work := connection.recv()) is not None:
        try:
            connection.send(("done", run(*work)))
        except UserError as error:
            connection.send(("mistake", str(error)))
        except Exception:
            connection.send(("fault", traceback.format_exc()))


def run_all(trials: Sequence[study.Trial], root: Path, jobs: int, console: rich.console.Console) -> list[study.Outcome]:
    """Runs all trials in folders of `root`, those with equal configs once; finished ones are only read.

    Args:
      trials: Trials of the study.
      root: Folder of the trials' folders.
      jobs: Number of trials at once; several run in separate processes, which divide the cores.
      console: Console for progress: a bar on a terminal, otherwise one line per trial.

    Raises:
      UserError: A trial failed.
      Interrupted: SIGTERM or SIGINT ended it; the same command resumes.
    """
    root.mkdir(parents=True, exist_ok=True)
    work = {}
    for trial in (one for planned in trials for one in (*_starts(planned), planned)):
        # Equal trials run once, with the measures of all
        name = address(trial)
        measures = dict.fromkeys((*(work[name].measures if name in work else ()), *trial.measures))
        work[name] = trial._replace(measures=tuple(measures))
    outcomes = {}
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
        for name, outcome in run_each(work, root, jobs):
            outcomes[name] = outcome
            labels = ", ".join(f"{key} {value}" for key, value in work[name].labels.items())
            result = outcome["diverged"] or (
                f"accuracy {outcome['summary']['accuracy']:.1%}"
                if "accuracy" in (outcome["summary"] or {})
                else "measured"
            )
            bar.update(task, advance=1, last=labels)
            if not console.is_terminal:
                console.print(f"{len(outcomes)}/{len(work)}  {labels}: {result}", soft_wrap=True, highlight=False)
    return [study.Outcome(trial.labels, **outcomes[address(trial)]) for trial in trials]


def _starts(trial: study.Trial) -> list[study.Trial]:
    """Returns the trials that have to run before this one, in order."""
    return [*_starts(trial.start), trial.start] if trial.start else []


class Interrupted(UserError):
    """An interruption: a signal has ended the trials."""

    def __init__(self, name: str):
        super().__init__(f"{name}: finished work is kept; run the same command to resume")


def _here(work: dict[str, study.Trial], root: Path, jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    del jobs
    for name, trial in work.items():
        try:
            outcome = run(trial, root / name)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if "interrupted" in outcome:
            raise Interrupted(outcome["interrupted"])
        yield name, outcome


def _in_processes(work: dict[str, study.Trial], root: Path, jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs `jobs` workers; each gets the next trial when it has answered."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    waiting, busy, workers, done = list(work), {}, [], set()
    for i in range(min(jobs, len(work))):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, cores[i::jobs], str(root / "compiled")), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, ours))

    def give():
        """Sends every idle worker the first trial that may start."""
        for _, connection in workers:
            ready = [name for name in waiting if not (start := work[name].start) or address(start) in done]
            if connection not in busy and ready:
                waiting.remove(ready[0])
                busy[connection] = ready[0]
                connection.send((work[ready[0]], root / ready[0]))

    try:
        with _Signals(lambda: [process.terminate() for process, _ in workers]) as signals:
            give()
            while busy:
                ready: list[Any] = multiprocessing.connection.wait(list(busy))
                for connection in ready:
                    name = busy.pop(connection)
                    try:
                        kind, outcome = connection.recv()
                    except (EOFError, ConnectionError):
                        if signals.name:
                            continue
                        raise RuntimeError(
                            f"the process that ran {name} died; run the same command to resume"
                        ) from None
                    if kind == "mistake":
                        raise UserError(f"{name}: {outcome}")
                    if kind == "fault":
                        raise RuntimeError(f"{name}: {outcome}")
                    if "interrupted" in outcome:
                        signals.name = signals.name or outcome["interrupted"]
                        waiting.clear()
                        continue
                    yield name, outcome
                    done.add(name)
                    if not signals.name:
                        give()
    finally:  # also after a failed trial: later work then has the cores to itself
        for _, connection in workers:
            with contextlib.suppress(OSError):  # the worker has already ended
                connection.send(None)
        for process, _ in workers:
            process.join(20)
            process.kill()
    if signals.name:
        raise Interrupted(signals.name)


class _Signals:
    """Notes SIGTERM and SIGINT within the context, and passes them on by `act`; running trials save and end."""

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

"""Runs one trial in a folder named after its config, and finds the trials that a ledger lacks.

A finished trial leaves a line in the study's ledger. Its folder, with the checkpoints, is then deleted.
"""

import hashlib
import inspect
import json
import math
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import study
from experiments.study import ledger
from models import plugins

LOGGED = {
    "train": ("loss", "accuracy", "gradient_norm"),
    "test": ("loss", "accuracy"),
}  # metrics that outcomes keep from metrics.jsonl
CODE = "code.txt"  # in a trial's folder: the digest of the code that trains it


class Job(NamedTuple):
    """A trial and everything that its process needs.

    Attributes:
      trial: The trial, with the measures of all trials that have the same config.
      folder: Folder of its run.
      ledger: Ledger file to append its line to.
      code: Digest of its code.
      keep: Whether its folder stays after it has finished.
      is_start: Whether only its trained network is needed, because others start from it. It then has a line in the
        ledger only if it diverges.
    """

    trial: study.Trial
    folder: Path
    ledger: Path
    code: str
    keep: bool = True
    is_start: bool = False

    @property
    def name(self) -> str:
        """The trial's address."""
        return self.folder.name + _pause(self.trial)


def address(trial: study.Trial) -> str:
    """Returns the name of the trial in the ledger: the model, a digest of the config, and where it pauses."""
    return folder_name(trial) + _pause(trial)


def _pause(trial: study.Trial) -> str:
    return f"@{trial.until}" if trial.until else ""


def folder_name(trial: study.Trial) -> str:
    """Returns the name of the trial's folder. Trials with equal configs share it, also if some of them pause.

    Only values that differ from the defaults count, so that adding a key to configs/base.py keeps ledgers valid.
    """
    from train.setup import config

    values = config.changed(config.plain(trial.config))
    start = [address(trial.start)] if trial.start else []
    text = json.dumps([values, trial.train, *start], sort_keys=True)
    return f"{plugins.short(trial.config.model.name)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def code_of(trial: study.Trial) -> str:
    """Returns the digest of the code that a trial runs: the loop, what its config names, its measures, files of users.

    The defaults in configs/base.py count as code, because the trial's address leaves them out.
    """
    import models
    from train.setup import config

    name = trial.config.model.name
    network = [] if plugins.split(name) else [models.family(name)]
    files = [str(config.BASE), *(str(inspect.getsourcefile(measure)) for measure in trial.measures)]
    files += re.findall(r"[\w./~-]+\.py(?=:)", trial.config.to_json_best_effort())
    return ledger.code(("train.loop", "train.restore", *network, *_named(trial.config)), files)


def _named(config: Any) -> Iterator[str]:
    """Yields the modules that tables import because a config names their entries."""
    from train import hooks
    from train.data import load
    from train.optim import catalogue

    optimizers = {name: entry.where for name, entry in catalogue.ENTRIES.items()}
    tables = ((hooks.HOOKS, config.hooks), (load.KINDS, config.data.source), (optimizers, config.optimizer.name))
    for table, text in tables:
        for name, entry in table.items():
            if isinstance(entry, str) and re.search(rf"\b{name.partition(':')[0]}\b", str(text)):
                yield entry.partition(":")[0]


def training_code(trial: study.Trial) -> str:
    """Returns the digest of the code that trains a trial, without its measures."""
    return code_of(trial._replace(measures=()))


def is_trained(folder: Path, code: str, accept: Collection[str] = ()) -> bool:
    """Returns whether a folder has the network of a trial, as `code` trains it.

    Args:
      folder: Folder of its run.
      code: From `training_code`.
      accept: Commits whose networks count although their code differs; "all" for every commit.
    """
    from train.storage.files import read_json

    summary = folder / "summary.json"
    if not summary.exists():
        return False
    return _code_in(folder) == code or bool({read_json(summary).get("commit"), "all"} & {*accept})


def _code_in(folder: Path) -> str:
    return (folder / CODE).read_text() if (folder / CODE).exists() else ""


def _claim(job: Job) -> None:
    """Empties the job's folder if other code has trained there, so that nothing goes on from its checkpoints."""
    from train.storage.files import write_atomically

    code = training_code(job.trial)
    if job.folder.exists() and _code_in(job.folder) != code:
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(job.folder / CODE, code.encode())


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

    trial, folder, began, trained = job.trial, job.folder, time.time(), 0.0
    config = trial.config.copy_and_resolve_references()
    config.devices = config.devices or 1  # not all of this host's: batch norm would depend on their number
    if trial.start:
        config.init_from = str(folder_of_start(job).resolve())
        quoted = config.init_from.replace("\\", r"\\").replace("'", r"\'")
        config.task.name = config.task.name.replace("{start}", quoted)
    outcome: dict[str, Any] = {"summary": None, "diverged": None, "history": {}, "measured": {}}
    if trial.train:
        _claim(job)
        try:
            outcome["summary"] = loop.train(config, folder, until=trial.until)
        except recorder.NonFiniteError as error:
            outcome["diverged"] = str(error).split(";")[0]
        trained = time.time() - began
        if "interrupted" in (outcome["summary"] or {}):
            return outcome["summary"]
        outcome["history"] = _history(workdir.read_metrics(folder / "metrics.jsonl"))
    if trial.measures and not outcome["diverged"]:
        prepared = build_run(config)
        state = restore.restored(prepared, folder) if trial.train else prepared.state
        for measure in trial.measures:
            outcome["measured"][measure.__name__] = measure(prepared, state)
    line = _line(job, outcome, outcome["summary"] or summary.environment(jax.local_devices()))
    # A process that goes on with a training adds what those before it took
    earlier = (outcome["summary"] or {}).get("seconds", 0.0) - trained
    line["seconds"] = round(time.time() - began + max(0.0, earlier), 2)
    return _append(job, line)


def _append(job: Job, line: dict[str, Any]) -> dict[str, Any]:
    """Appends the job's line to its ledger, and returns it; a network to start from needs one only if it diverged."""
    if not job.is_start or line["outcome"]["diverged"]:
        ledger.append(job.ledger, line)
    return line


def folder_of_start(job: Job) -> Path:
    """Returns the folder of the network that a job starts from."""
    assert job.trial.start is not None
    return job.folder.parent / folder_name(job.trial.start)


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


def after_divergence(job: Job, lines: ledger.Ledger) -> dict[str, Any] | None:
    """Returns the line of a job that cannot run because its start diverged, and appends it; None if it can run."""
    if job.trial.start is None or is_trained(folder_of_start(job), training_code(job.trial.start)):
        return None
    start = lines.get(address(job.trial.start))
    if not (start and start["outcome"]["diverged"]):
        return None
    text = f"{start['trial']}, that it starts from, diverged"
    line = _line(job, {"summary": None, "diverged": text, "history": {}, "measured": {}}, start)
    return _append(job, line)


def merged(trials: Sequence[study.Trial]) -> dict[str, study.Trial]:
    """Returns {address: trial}; trials with equal configs run once, with all of their measures."""
    by_name: dict[str, study.Trial] = {}
    for trial in trials:
        name = address(trial)
        measures = dict.fromkeys((*(by_name[name].measures if name in by_name else ()), *trial.measures))
        by_name[name] = trial._replace(measures=tuple(measures))
    return by_name


def finished(
    trials: Mapping[str, study.Trial], lines: ledger.Ledger, accept: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Returns {address: line} of the trials that the ledger has.

    Args:
      trials: From `merged`.
      lines: The ledger.
      accept: Commits whose lines count although their code differs; "all" for every commit.
    """
    found = {name: lines.get(name, code_of(trial), accept) for name, trial in trials.items()}
    return {name: line for name, line in found.items() if line and is_whole(line, trials[name])}


def is_whole(line: Mapping[str, Any], trial: study.Trial) -> bool:
    """Returns whether a line has all the measures of a trial; a run that diverged has none."""
    names = {measure.__name__ for measure in trial.measures}
    return bool(line["outcome"]["diverged"]) or names <= line["outcome"]["measured"].keys()


def left(
    trials: Mapping[str, study.Trial],
    lines: ledger.Ledger,
    root: Path,
    accept: Collection[str] = (),
    keep: bool = False,
    others: Sequence[study.Trial] = (),
) -> dict[str, Job]:
    """Returns the jobs of the trials that the ledger lacks, and of networks that they start from and that are gone.

    Args:
      trials: From `merged`.
      lines: The ledger.
      root: Folder of the trials' folders.
      accept: Commits whose lines count although their code differs; "all" for every commit.
      keep: Keeps the folders of finished trials. Folders that other trials start from always stay.
      others: Trials that may run later; the folders that they start from stay, too.
    """
    have, work = finished(trials, lines, accept), {}
    for name, trial in trials.items():
        if name not in have:
            for start in starts(trial):
                _add_start(work, start, lines, root, have, accept)
            work[name] = Job(trial, root / folder_name(trial), lines.path, code_of(trial))
    needed = {address(start) for trial in (*others, *(job.trial for job in work.values())) for start in starts(trial)}
    return {name: job._replace(keep=keep or name in needed) for name, job in work.items()}


def starts(trial: study.Trial) -> list[study.Trial]:
    """Returns the trials that must run before this one, in order."""
    return [*starts(trial.start), trial.start] if trial.start else []


def _add_start(
    work: dict[str, Job],
    start: study.Trial,
    lines: ledger.Ledger,
    root: Path,
    have: Mapping[str, Mapping[str, Any]],
    accept: Collection[str],
) -> None:
    """Adds a trial that another one starts from, unless its network exists, is planned or diverged."""
    name, folder, code = address(start), root / folder_name(start), training_code(start)
    diverged = name in have and have[name]["outcome"]["diverged"]
    if not (name in work or diverged or is_trained(folder, code, accept)):
        work[name] = Job(start._replace(measures=()), folder, lines.path, code, is_start=True)

"""Trials of a study or a sweep as runs: the lines of its ledger, and the folders of its trials that were kept."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.comparison import runs
from experiments.comparison.runs import Run, Test, Warn, printable
from experiments.study import Outcome, ledger
from models.errors import UserError

NAME = ledger.NAME
LEDGER = "ledger"  # fact that tells trials of several ledgers apart
TRIALS = "trials"  # folder of a sweep's trials, beside its ledger
OUTCOME = {
    "type": "object",
    "properties": {
        "summary": {"type": ["object", "null"]},
        "diverged": {"type": ["string", "null"]},
        "history": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {}}},
    },
}
METRICS = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": ["number", "null"]}}}


def is_ledger(path: Path) -> bool:
    """Returns whether a path is a ledger, or a folder with one."""
    return path.name == ledger.NAME if os.path.isfile(path) else os.path.isfile(path / ledger.NAME)


def read(path: Path, name: str, place: int, warn: Warn) -> list[Run]:
    """Returns the trained trials of a ledger.

    Where the folders of all of them were kept, their configs are compared; otherwise, their labels.

    Args:
      path: The ledger, or its folder.
      name: The path as the user wrote it.
      place: Number of the argument.
      warn: Is called with a line for what is left out.
    """
    folder, name = path.parent if os.path.isfile(path) else path, printable(name)
    try:
        lines = ledger.Ledger(folder).lines()
    except (UserError, OSError) as error:
        warn(f"{name} is left out: {printable(error)}")
        return []
    whole = [line for line in lines if _is_whole(line)]
    trained = [line for line in whole if line["outcome"].get("summary") or line["outcome"].get("diverged")]
    for count, what in ((len(lines) - len(whole), "damaged"), (len(whole) - len(trained), "without training")):
        if count:
            warn(f"{name}: {count} trial{'s' * (count != 1)} {what}, left out")
    if not trained:
        warn(f"{name} is left out: no trial in its ledger was trained")
        return []
    trials = folder / TRIALS
    kept = {one.name: one.resolve() for one in sorted(trials.glob("*")) if runs.is_run(one)}
    if all(line["trial"] in kept for line in trained):
        return _with_folders(trained, kept, place, warn)
    if unfinished := kept.keys() - {line["trial"] for line in lines}:
        warn(f"{name}: {len(unfinished)} unfinished, left out; name their folders in {TRIALS}/ to compare them")
    return [_trial(line, name, place, kept.get(line["trial"])) for line in trained]


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Returns whether the outcome of a line has the form that trials write."""
    import jsonschema

    outcome = line["outcome"]
    try:
        jsonschema.validate(outcome, OUTCOME)
        for columns in outcome.get("history", {}).values():
            jsonschema.validate(columns, METRICS)
    except jsonschema.ValidationError:
        return False
    return True


def _with_folders(lines: Sequence[Mapping[str, Any]], kept: Mapping[str, Path], place: int, warn: Warn) -> list[Run]:
    """Returns all runs whose folders were kept; those that diverged are so only by their lines."""
    diverged = {line["trial"]: line["outcome"].get("diverged") for line in lines}
    found = []
    for name, folder in kept.items():
        if run := runs.run_of(folder, place, warn):
            found.append(run._replace(outcome=run.outcome._replace(diverged=diverged.get(name))))
    return found


def _trial(line: Mapping[str, Any], name: str, place: int, folder: Path | None) -> Run:
    """Returns the run of a line; its facts are the labels."""
    outcome, labels = line["outcome"], line["labels"]
    summary, seed = outcome.get("summary"), labels.get("seed")
    history = outcome.get("history", {})
    steps = [step for columns in history.values() for step in columns.get("step", ()) if runs.is_number(step)]
    return Run(
        f"{name}, {printable(line['trial'])}",
        place,
        folder,
        {LEDGER: name, **{key: value for key, value in labels.items() if key != "seed"}},
        True,
        seed if isinstance(seed, int) else None,
        Outcome(labels, summary, outcome.get("diverged"), history, {}, line["seconds"]),
        _test(summary),
        int(max(steps, default=0)),
    )


def _test(summary: Mapping[str, Any] | None) -> Test:
    """Returns the test set of a trial by its summary."""
    summary = summary or {}
    count = summary.get("test_examples", 0)
    return Test(str(summary.get("data", "?")), count if isinstance(count, int) else 0)

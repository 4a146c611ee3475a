"""A run to compare: its facts, its summary and its history, read from its folder without its weights."""

import hashlib
import json
import math
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.study import Outcome
from models.errors import UserError

SECTIONS = {"seed", "model", "data", "optimizer"}  # keys of every run's config
# Keys that, besides `workdir.OPERATIONAL`, affect the speed or the output of a run but not its results
NEUTRAL = ("seed", "evaluate_every", "eval_batch_size", "steps_per_call", "data.pipeline")
NEUTRAL_HOOKS = ("figures", "sensitivity", "sparsity", "wandb", "mlflow")
LARGEST = 2**53  # integers that floats hold exactly
_UNPRINTABLE = (
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
)  # Unicode categories: controls, marks of direction, surrogates, separators
Warn = Callable[[str], None]


class Test(NamedTuple):
    """The test set of a run.

    Attributes:
      source: Name of the data.
      examples: Number of its examples; 0 if unknown.
      identity: Digest of examples and classes, from the run's record; "" for trials of a ledger, which have none.
    """

    source: str
    examples: int = 0
    identity: str = ""

    def same(self, other: "Test") -> bool:
        """Returns whether two test sets are the same, as far as their records tell."""
        if self.identity and other.identity:
            return self.identity == other.identity
        return (self.source, self.examples) == (other.source, other.examples)

    def __str__(self) -> str:
        return f"{printable(self.source)} ({self.examples:,} examples)" if self.examples else printable(self.source)


class Run(NamedTuple):
    """A run to compare.

    Attributes:
      name: Its path, or its ledger and address.
      place: Number of the argument that it comes from.
      folder: Its folder; None if only a line in a ledger is left.
      facts: {key of the config, or label of the trial: value}, without keys that do not affect results.
      is_trial: Whether `facts` are labels.
      seed: Its seed; None if unknown.
      outcome: Its summary and history; the summary is None unless it is finished.
      test: Its test set.
      step: Number of steps that it has logged.
      total: Number of steps of its whole training; 0 if unknown.
    """

    name: str
    place: int
    folder: Path | None
    facts: Mapping[str, Any]
    is_trial: bool
    seed: int | None
    outcome: Outcome
    test: Test
    step: int = 0
    total: int = 0

    @property
    def is_finished(self) -> bool:
        """Says whether the run has a summary."""
        return self.outcome.summary is not None

    @property
    def state(self) -> str:
        """Returns "" for a finished run, "diverged", or "unfinished, step 300 of 674"."""
        if self.outcome.diverged:
            return "diverged"
        return "" if self.is_finished else f"unfinished, step {self.step:,}" + f" of {self.total:,}" * bool(self.total)

    def curve(self, split: str, metric: str) -> tuple[list[int], list[float]]:
        """Returns the steps at which a metric was logged, and its values."""
        history = self.outcome.history.get(split, {})
        pairs = zip(history.get("step", ()), history.get(metric, ()), strict=False)
        points = sorted((step, value) for step, value in pairs if is_number(step) and is_number(value))
        return [step for step, _ in points], [value for _, value in points]

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of the summary; those of the last evaluation if the run is not finished."""
        if self.outcome.summary is not None:
            return {name: value for name, value in self.outcome.summary.items() if is_number(value)}
        names = (name for name in self.outcome.history.get("test", {}) if name != "step")
        curves = {name: self.curve("test", name)[1] for name in names}
        return {name: values[-1] for name, values in curves.items() if values}


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, float) and math.isfinite(value)


def printable(text: Any) -> str:
    """Returns a text in one line of UTF-8: controls, marks of direction and surrogates become backslash escapes."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNPRINTABLE else character
        for character in str(text)
    )


def is_run(folder: Path) -> bool:
    """Returns whether a folder is that of a run, which may be damaged."""
    return os.path.isfile(folder / "config.json") and not os.path.exists(folder / "card.json")  # a card: an export


def run_of(folder: Path, place: int, warn: Warn) -> Run | None:
    """Reads a run, without its weights; None, after a warning, if it is damaged."""
    try:
        return _read(folder, place)
    except (UserError, OSError, UserWarning, RecursionError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        warn(f"{relative(folder)} is left out: {printable(text)}")
        return None


def relative(folder: Path) -> str:
    """Returns a folder's path in one line, relative to the working folder if it is in it."""
    text = os.path.relpath(folder)
    return printable(folder if text.startswith("..") else text)


def _read(folder: Path, place: int) -> Run:
    from train.recording import summary
    from train.storage import workdir
    from train.storage.files import read_json

    config = workdir.read_config(folder)
    if missing := sorted(SECTIONS - config.keys()):
        raise UserError(f"{folder / 'config.json'} is not of a run: it has no {missing[0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of damaged lines
        lines = workdir.read_metrics(folder / "metrics.jsonl")
    path = folder / "summary.json"
    finished = read_json(path, summary.SCHEMA) if path.exists() else None
    record = read_json(folder / "data.json") if (folder / "data.json").exists() else {}
    step = max((line["step"] for line in lines), default=0)
    if step > LARGEST:
        raise UserError(f"{folder / 'metrics.jsonl'} is damaged: no run has that many steps")
    outcome = Outcome({}, finished, None, history(lines), {}, finished["seconds"] if finished else 0.0)
    return Run(
        relative(folder),
        place,
        folder,
        facts(config, folder),
        False,
        config["seed"],
        outcome,
        test_of(config, record, finished),
        step,
        total_steps(config, record),
    )


def history(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    """Returns the numbers in the lines of metrics.jsonl: {split: {name: values}}, None where a line has none."""
    columns: dict[str, dict[str, list]] = {}
    for split in ("train", "test"):
        rows = [line for line in lines if line["split"] == split]
        names = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
        columns[split] = {
            name: [value if is_number(value := row.get(name)) else None for row in rows] for name in ("step", *names)
        }
    return columns


def flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (full key, value) for each value of a config."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def facts(config: Mapping[str, Any], folder: Path, depth: int = 8) -> dict[str, Any]:
    """Returns the values of a config that affect results, by full key, without the seed.

    A run that `init_from` names is replaced by a digest of its own facts, because each seed may start from a run of the
    same seed.
    """
    from train.storage.workdir import OPERATIONAL

    values = {key: value for key, value in flat(config) if key not in (*OPERATIONAL, *NEUTRAL)}
    if isinstance(hooks := values.get("hooks"), str):
        values["hooks"] = "|".join(hook for hook in hooks.split("|") if hook.split("(")[0] not in NEUTRAL_HOOKS)
    if depth and (start := _start(config, folder)):
        try:
            before = json.loads((start / "config.json").read_bytes())
            text = json.dumps(facts(before, start, depth - 1), sort_keys=True)
            digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:6]
            values["init_from"] = f"run of {before['model']['name']} ({digest})"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # not a run that can be read: the path stays
    return values


def _start(config: Mapping[str, Any], folder: Path) -> Path | None:
    """Returns the folder of the run that `init_from` names; None if there is none here."""
    from train.storage import paths

    try:
        text = paths.located(config, folder).get("init_from", "") if config.get("init_from") else ""
    except (UserError, KeyError, TypeError):  # paths.json is damaged or of another config
        return None
    return Path(text) if text and os.path.isfile(os.path.join(text, "config.json")) else None


def test_of(config: Mapping[str, Any], record: Mapping[str, Any], finished: Mapping[str, Any] | None) -> Test:
    """Returns the test set of a run by its config, the record of its data, and its summary."""
    source = str(config["data"].get("source", "?"))
    identity = record.get("identity")
    if not isinstance(identity, Mapping):
        return Test(source, finished["test_examples"] if finished else 0)
    of_split = identity.get("test", identity)  # text has one digest for all
    count = of_split.get("images", of_split.get("test sentences", 0)) if isinstance(of_split, Mapping) else 0
    digest = json.dumps([of_split, record.get("classes")], sort_keys=True)
    return Test(source, count if isinstance(count, int) else 0, hashlib.sha256(digest.encode()).hexdigest())


def total_steps(config: Mapping[str, Any], record: Mapping[str, Any]) -> int:
    """Returns the number of steps of a whole training; 0 if the record does not tell."""
    from train.setup.config import steps

    identity = record.get("identity")
    identity = identity if isinstance(identity, Mapping) else {}
    training = identity.get("train")
    count = training.get("images") if isinstance(training, Mapping) else identity.get("training sentences")
    try:
        return steps(config["duration"], batch_size=config["batch_size"], examples=count or 0)
    except (UserError, KeyError, TypeError, ZeroDivisionError):
        return 0

"""The framework of studies: a question, published claims, the trials that decide them, and how each is judged.

A study is a file that defines STUDY. It is listed in STUDIES, or given by its path: `experiments.run my_study.py`.
"""

import functools
import importlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, overload

from experiments.study.verdicts import (  # noqa: F401  (studies of users import them from here)
    AGREES,
    DISAGREES,
    TOO_SMALL,
    VERDICTS,
    Judgement,
    counts,
    deviation,
    finite,
    listed,
    mean,
    missing,
    more,
    overall,
    seeds_text,
    spread,
)
from models import plugins
from models.errors import UserError, choice_error

SCALES = ("digits", "cifar", "cifar10", "imagenet")
STUDIES = {
    name: f"experiments.studies.{name}.study"
    for name in (
        "initialization",
        "normalization",
        "depth",
        "translation",
        "cost",
        "attention",
        "transfer",
        "compression",
        "adaptive",
        "explanation",
    )
}
Measure = Callable[[Any, Any], Any]  # (`train.run.Run`, state as numpy) -> a JSON value


class Trial(NamedTuple):
    """One run of the training loop, and the measures taken on it.

    Attributes:
      labels: Identify the trial within the study, e.g. {"depth": 20, "init": "msra", "seed": 0}.
      config: A complete config of `train.loop.train`; devices=0 means one device here, whatever the host has.
      train: Whether the network is trained; otherwise only the initial state is measured.
      measures: Module-level functions of the run and its last state, or of its first state if it is not trained. Their
        results are stored under their names.
      start: The trial whose trained network this one starts from (config.init_from is set to its folder, which also
        replaces {start} in config.task.name, for a teacher). It runs first, even if it is not among the study's trials.
      until: Step at which training pauses, in the folder in which the trial without it goes on; 0 for its end.
    """

    labels: Mapping[str, Any]
    config: Any
    train: bool = True
    measures: Sequence[Measure] = ()
    start: "Trial | None" = None
    until: int = 0


class Outcome(NamedTuple):
    """The result of a trial.

    Attributes:
      labels: Labels of the trial.
      summary: Content of summary.json; None if nothing was trained or training diverged.
      diverged: A message if the loss became infinite or NaN; otherwise None.
      history: {"train" | "test": {"step": [...], "loss": [...], …}}.
      measured: {name of a measure: its result}.
      seconds: Duration of training and measuring.
    """

    labels: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    diverged: str | None
    history: Mapping[str, Mapping[str, list]]
    measured: Mapping[str, Any]
    seconds: float = 0.0

    def get(self, name: str, diverged: float = math.nan) -> float:
        """Returns a number from the summary, or `diverged` if training diverged."""
        return diverged if self.summary is None else self.summary[name]


def group_of(labels: Mapping[str, Any]) -> str:
    """Returns the group of a trial: its labels without the seed."""
    return json.dumps({name: value for name, value in labels.items() if name != "seed"}, sort_keys=True, default=str)


class Outcomes(Sequence[Outcome]):
    """The outcomes of a study, or a selection of them.

    Attributes:
      used: {group of trials: names of the numbers that a judge read}. Selections share it with the outcomes that they
        come from, so it tells which trials a judge needs.
    """

    def __init__(self, outcomes: Sequence[Outcome], used: dict[str, set[str]] | None = None):
        self._outcomes = list(outcomes)
        self.used: dict[str, set[str]] = {} if used is None else used

    def __len__(self) -> int:
        return len(self._outcomes)

    @overload
    def __getitem__(self, index: int) -> Outcome: ...

    @overload
    def __getitem__(self, index: slice) -> list[Outcome]: ...

    def __getitem__(self, index: int | slice) -> Outcome | list[Outcome]:
        chosen = self._outcomes[index]
        self._use(chosen if isinstance(chosen, list) else [chosen])
        return chosen

    def _use(self, outcomes: Sequence[Outcome], name: str = "") -> Sequence[Outcome]:
        for outcome in outcomes:
            self.used.setdefault(group_of(outcome.labels), set()).add(name)
        return outcomes

    def _part(self, outcomes: Sequence[Outcome]) -> "Outcomes":
        return Outcomes(outcomes, self.used)

    def where(self, **labels: Any) -> "Outcomes":
        """Returns the outcomes with these labels; a list as a value allows any of its members."""

        def fits(outcome: Outcome, name: str, value: Any) -> bool:
            allowed = value if isinstance(value, list) else [value]
            return name in outcome.labels and outcome.labels[name] in allowed

        return self._part([o for o in self._outcomes if all(fits(o, *pair) for pair in labels.items())])

    def all(self) -> list[Outcome]:
        """Returns all outcomes, without recording that they were used."""
        return list(self._outcomes)

    def seeds_below(self, count: int) -> "Outcomes":
        """Returns the outcomes of seeds 0 to count - 1, which record their use separately."""
        return Outcomes([o for o in self._outcomes if o.labels.get("seed", 0) < count])

    def distinct(self, name: str) -> list[Any]:
        """Returns the distinct values of a label, in the order of the trials."""
        return list(dict.fromkeys(o.labels[name] for o in self._outcomes if name in o.labels))

    def groups(self, *names: str) -> Iterator[tuple[tuple[Any, ...], "Outcomes"]]:
        """Yields pairs (values of the labels, outcomes that share them), in the order of the trials."""
        keys = dict.fromkeys(
            tuple(o.labels[name] for name in names) for o in self._outcomes if all(name in o.labels for name in names)
        )
        for key in keys:
            yield key, self.where(**dict(zip(names, key, strict=True)))

    def values(self, name: str, diverged: float = math.nan) -> list[float]:
        """Returns a number from each summary, or `diverged` if training diverged."""
        return [outcome.get(name, diverged) for outcome in self._use(self._outcomes, name)]

    def first(self) -> Mapping[str, Any] | None:
        """Returns the first summary; None if all runs diverged."""
        return next((outcome.summary for outcome in self if outcome.summary), None)

    def having(self, measure: str) -> "Outcomes":
        """Returns the outcomes that have a measure; runs that diverged have none."""
        return self._part([outcome for outcome in self._outcomes if measure in outcome.measured])

    def results(self, measure: str) -> list[Any]:
        """Returns the result of a measure for each outcome that has it."""
        self._use(self._outcomes)
        return [outcome.measured[measure] for outcome in self.having(measure)]

    def measured(self, *path: Any) -> list[float]:
        """Returns one number per outcome: a measure, then keys and indices within its result; NaN if it is missing."""

        def number(value: Any) -> float:
            try:
                for key in path:
                    value = value[key]
            except (KeyError, TypeError):
                return math.nan
            return value if isinstance(value, (int, float)) else math.nan

        return [number(outcome.measured) for outcome in self]

    def losses(self) -> list[list[float]]:
        """Returns the training losses of each run that logged any, in the order of the steps."""
        return [run for outcome in self if (run := _logged(outcome))]

    def early_losses(self) -> list[float]:
        """Returns the mean loss over the first third of each run; it is lower if learning starts earlier.

        A run that diverged counts as one that has learned nothing; see `_by_run`.
        """
        return self._by_run(lambda run: statistics.mean(run[: max(1, len(run) // 3)]))

    def final_losses(self) -> list[float]:
        """Returns the last training loss of each run; a run that diverged counts as in `early_losses`."""
        return self._by_run(lambda run: run[-1])

    def _by_run(self, number: Callable[[list[float]], float]) -> list[float]:
        """Returns a number from the losses of each run that logged any or diverged.

        A run that diverged gets the largest first loss that any run of the selection logged, or the largest number of
        the runs that ended if that is larger. Otherwise diverging would improve a mean. Nothing is returned for it if
        no run of the selection logged a loss.
        """
        ended = {i: number(run) for i, o in enumerate(self) if not o.diverged and (run := _logged(o))}
        worst = max((*(run[0] for run in self.losses()), *ended.values()), default=math.nan)
        every = (ended.get(i, worst if o.diverged else math.nan) for i, o in enumerate(self))
        return [value for value in every if math.isfinite(value)]


def _logged(outcome: Outcome) -> list[float]:
    """Returns the finite training losses that a run logged; a ledger has None for the others."""
    losses = outcome.history.get("train", {}).get("loss", ())
    return [loss for loss in losses if loss is not None and math.isfinite(loss)]


Judge = Callable[[Outcomes], Judgement]


def needs(**labels: Any) -> Callable[[Judge], Judge]:
    """Wraps a judge so that the claim stays undecided, with a reason, if a scale has no trial with these labels."""

    def wrap(judge: Judge) -> Judge:
        @functools.wraps(judge)
        def judge_if_present(outcomes: Outcomes) -> Judgement:
            return judge(outcomes) if outcomes.where(**labels) else missing("not part of this scale")

        return judge_if_present

    return wrap


class Claim(NamedTuple):
    """A published statement and the test by which our trials decide it.

    Attributes:
      statement: The statement, in one sentence.
      published: The published numbers.
      source: The paper and its table.
      expected: The result that agrees with the statement, with its threshold; stated before anything runs.
      judge: Function of the outcomes that returns the evidence.
      effect: Published effect as a number in the units of the judge's estimate, for the forest plot.
    """

    statement: str
    published: str
    source: str
    expected: str
    judge: Judge
    effect: float | None = None


class Table(NamedTuple):
    """A table: rows of strings and numbers under `columns`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """A figure: `draw` fills an empty matplotlib Figure of `size` inches from the outcomes; `caption` describes it."""

    name: str
    caption: str
    draw: Callable[[Outcomes, Any], None]
    size: tuple[float, float] = (9.0, 4.5)


class Study(NamedTuple):
    """A question with its trials, claims, tables and pictures.

    Attributes:
      name: The name in STUDIES.
      title: A title of a few words.
      question: The question, in one sentence.
      cost: The time and data that the study takes, by scale.
      trials: Function of the scale, for each scale that has a `cost`, and of the seeds.
      claims: Published claims.
      tables: Function of the outcomes that returns the tables.
      pictures: Figures drawn from the outcomes.
      would_change: The measurements that could change the verdicts: more seeds, a longer schedule, other data.
    """

    name: str
    title: str
    question: str
    cost: Mapping[str, str]
    trials: Callable[[str, Sequence[int]], list[Trial]]
    claims: Sequence[Claim]
    tables: Callable[[Outcomes], list[Table]]
    pictures: Sequence[Picture]
    would_change: str = ""


def recipe(spec: str) -> Any:
    """Returns the config of "configs/FILE.py:ARGUMENTS", for a trial to change."""
    from train.setup import config

    return config.load(spec)


def module(spec: str) -> ModuleType:
    """Returns the module of a study, by its name in STUDIES or the path of a file.

    Raises:
      UserError: The study does not exist, or its file does not define STUDY.
    """
    if spec in STUDIES:
        return importlib.import_module(STUDIES[spec])
    if not spec.endswith(".py"):
        raise choice_error("study", spec, (*STUDIES, "PATH.py"))
    loaded = plugins.module(spec)
    if not isinstance(getattr(loaded, "STUDY", None), Study):
        raise UserError(f"study {spec}: it does not define STUDY, an experiments.study.Study")
    return loaded

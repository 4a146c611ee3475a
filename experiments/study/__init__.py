"""What a study is: a question, published claims, the trials that decide them, and what each decides by.

A study is a file that defines STUDY. It is named in STUDIES, or asked for by its path: `experiments.run my_study.py`.
"""

import functools
import importlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from models import plugins
from models.errors import UserError, choice_error

SCALES = ("digits", "cifar10", "imagenet")
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
MANY = 200  # seeds: what needs more is not worth counting


class Verdict(str):
    """One of VERDICTS; `seeds`: of "too small to tell", how many a group would decide it at this spread, if known."""

    seeds: int | None = None


AGREES, DISAGREES, TOO_SMALL = VERDICTS = tuple(map(Verdict, ("agrees", "disagrees", "too small to tell")))


class Trial(NamedTuple):
    """One run of the training loop, and what is measured on it.

    Attributes:
      labels: what distinguishes it within the study, e.g. {"depth": 20, "init": "msra", "seed": 0}.
      config: of `train.loop.train`, complete.
      train: False: nothing is trained, only the initial state is measured.
      measures: functions of a file, (run, state) -> what JSON can hold. They see the `train.Run` and the state,
        as numpy: the last one, or without training the first. What they find is kept by their names.
      start: the trial whose trained network this one starts from (config.init_from is set to its folder); it is run
        first, whether it is among the study's trials or not.
    """

    labels: Mapping[str, Any]
    config: Any
    train: bool = True
    measures: Sequence[Callable[[Any, Any], Any]] = ()
    start: "Trial | None" = None


class Outcome(NamedTuple):
    """What came out of a trial.

    Attributes:
      labels: of the trial.
      summary: of the run, as in its summary.json; None where nothing was trained or training diverged.
      diverged: how training ended where the loss was no longer finite; else None.
      history: {"train" | "test": {"step": [...], "loss": [...], …}}.
      measured: {name of a measure: its result}.
    """

    labels: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    diverged: str | None
    history: Mapping[str, Mapping[str, list]]
    measured: Mapping[str, Any]

    def get(self, name: str, diverged: float = math.nan) -> float:
        """A number of the summary; `diverged` where training diverged."""
        return diverged if self.summary is None else self.summary[name]


class Outcomes(Sequence):
    """Those of a study, or some of them."""

    def __init__(self, outcomes: Sequence[Outcome]):
        self._outcomes = list(outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)

    def __getitem__(self, index: int) -> Outcome:
        return self._outcomes[index]

    def where(self, **labels: Any) -> "Outcomes":
        """Those that have these labels; a list allows any of its members."""

        def fits(outcome, name, wanted):
            return name in outcome.labels and outcome.labels[name] in (wanted if isinstance(wanted, list) else [wanted])

        return Outcomes([o for o in self if all(fits(o, *pair) for pair in labels.items())])

    def distinct(self, name: str) -> list[Any]:
        """The values of a label, in the order of the trials."""
        return list(dict.fromkeys(o.labels[name] for o in self if name in o.labels))

    def groups(self, *names: str) -> Iterator[tuple[tuple[Any, ...], "Outcomes"]]:
        """Pairs (values of the labels, outcomes that share them), in the order of the trials."""
        keys = dict.fromkeys(
            tuple(o.labels[name] for name in names) for o in self if all(name in o.labels for name in names)
        )
        for key in keys:
            yield key, self.where(**dict(zip(names, key, strict=True)))

    def values(self, name: str, diverged: float = math.nan) -> list[float]:
        """That number of each summary; `diverged` where training diverged."""
        return [outcome.get(name, diverged) for outcome in self]

    def having(self, measure: str) -> "Outcomes":
        """Those on which it was measured: training did not diverge."""
        return Outcomes([outcome for outcome in self if measure in outcome.measured])

    def results(self, measure: str) -> list[Any]:
        """What a measure found on each that has it."""
        return [outcome.measured[measure] for outcome in self.having(measure)]

    def measured(self, *path: Any) -> list[float]:
        """A number of each: of a measure, by keys and places within what it found; NaN where there is none."""

        def number(value):
            try:
                for key in path:
                    value = value[key]
            except (KeyError, TypeError):
                return math.nan
            return value if isinstance(value, (int, float)) else math.nan

        return [number(outcome.measured) for outcome in self]

    def losses(self) -> list[list[float]]:
        """Losses in training, by run, in the order of the steps; those that logged none left out."""
        return [run for outcome in self if (run := outcome.history.get("train", {}).get("loss"))]

    def early_losses(self) -> list[float]:
        """By run, the mean over the first third of the training: lower where it starts to learn earlier."""
        return [statistics.mean(run[: max(1, len(run) // 3)]) for run in self.losses()]


class Judgement(NamedTuple):
    """A verdict and the numbers that it rests on, in one sentence."""

    verdict: Verdict
    ours: str


Judge = Callable[[Outcomes], Judgement]


def needs(**labels: Any) -> Callable[[Judge], Judge]:
    """Of a judge: what it says of scales without a trial of these labels."""

    def wrap(judge):
        @functools.wraps(judge)
        def judge_where_there_is(outcomes):
            return judge(outcomes) if outcomes.where(**labels) else Judgement(TOO_SMALL, "not part of this scale")

        return judge_where_there_is

    return wrap


class Claim(NamedTuple):
    """Something that was published, and how our trials decide on it.

    Attributes:
      statement: one sentence.
      published: the numbers.
      source: paper and table.
      expected: what ours should show, and from when on it does; said before anything runs.
      judge: decides.
    """

    statement: str
    published: str
    source: str
    expected: str
    judge: Judge


class Table(NamedTuple):
    """Rows of texts and numbers under `columns`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Picture(NamedTuple):
    """`draw` gets the outcomes and an empty matplotlib Figure of `size` inches; `caption` says what is to be seen."""

    name: str
    caption: str
    draw: Callable[[Outcomes, Any], None]
    size: tuple[float, float] = (9.0, 4.5)


class Study(NamedTuple):
    """See the module.

    Attributes:
      name, title, question: the title is a few words, the question a sentence.
      cost: by scale, what running it takes.
      trials: scale -> trials; a `cost` of the scale exists.
      claims: published results.
      tables: outcomes -> tables.
      pictures: drawn from the outcomes.
      would_change: which measurements would turn the verdicts: more seeds, a longer schedule, other data.
    """

    name: str
    title: str
    question: str
    cost: Mapping[str, str]
    trials: Callable[[str], list[Trial]]
    claims: Sequence[Claim]
    tables: Callable[[Outcomes], list[Table]]
    pictures: Sequence[Picture]
    would_change: str = ""


def module(spec: str) -> Any:
    """The module of a study, by its name in STUDIES or the path of a file.

    Raises:
      UserError: there is none.
    """
    if spec in STUDIES:
        return importlib.import_module(STUDIES[spec])
    if not spec.endswith(".py"):
        raise choice_error("study", spec, (*STUDIES, "PATH.py"))
    loaded = plugins.module(spec)
    if not isinstance(getattr(loaded, "STUDY", None), Study):
        raise UserError(f"study {spec}: it does not define STUDY, an experiments.study.Study")
    return loaded


# -- deciding ------------------------------------------------------------------------------------------------------


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    good = finite(values)
    return statistics.mean(good) if good else math.nan


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of those that are numbers, for an error bar; 0 of one."""
    good = finite(values)
    return statistics.stdev(good) if len(good) > 1 else 0.0


def errorbars(axes: Any, x: Sequence[float], runs: Sequence[Sequence[float]], scale: float = 100, **style: Any) -> None:
    """Draws mean and standard deviation of the runs at each x, of those that are numbers; in percent where `scale` is
    100.
    """
    points = [
        (at, statistics.mean(v), deviation(v))
        for at, run in zip(x, runs, strict=True)
        if (v := [scale * value for value in finite(run)])
    ]
    if points:
        at, means, deviations = zip(*points, strict=True)
        axes.errorbar(at, means, deviations, marker="o", markersize=4, capsize=3, linewidth=1.4, **style)


def spread(values: Sequence[float], percent: bool = True, digits: int = 1) -> str:
    """Mean and standard deviation over seeds, e.g. "97.2 ± 0.3 %", with how many diverged."""
    good, scale = finite(values), 100 if percent else 1
    if not good:
        return "diverged" if values else "—"
    text = f"{scale * statistics.mean(good):.{digits}f}"
    if len(good) > 1:
        text += f" ± {scale * deviation(good):.{digits}f}"
    lost = len(values) - len(good)
    return text + (" %" if percent else "") + (f" ({lost} of {len(values)} diverged)" if lost else "")


def seeds_needed(high: Sequence[float], low: Sequence[float], by: float = 0.0) -> int | None:
    """With how many seeds in each group these means and spreads would be more than two standard errors apart.

    None where there are fewer than two in a group, or the difference is `by` itself.
    """
    high, low = finite(high), finite(low)
    if min(len(high), len(low)) < 2 or not (difference := statistics.mean(high) - statistics.mean(low) - by):
        return None
    return math.floor(4 * (statistics.variance(high) + statistics.variance(low)) / difference**2) + 1


def compare(high: Sequence[float], low: Sequence[float], by: float = 0.0) -> Verdict:
    """Whether the mean of `high` is above that of `low` by more than `by`.

    "too small to tell" within two standard errors of the difference (Welch) of `by`.
    """
    verdict = Verdict(TOO_SMALL)
    verdict.seeds = seeds_needed(high, low, by)
    high, low = finite(high), finite(low)
    if min(len(high), len(low)) < 2:
        return verdict
    difference = statistics.mean(high) - statistics.mean(low) - by
    error = math.sqrt(statistics.variance(high) / len(high) + statistics.variance(low) / len(low))
    if abs(difference) <= 2 * error:
        return verdict
    return AGREES if difference > 0 else DISAGREES


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim with several parts: disagrees where one does, else too small to tell where one is."""
    if DISAGREES in verdicts:
        return DISAGREES
    unclear = [verdict for verdict in verdicts if verdict == TOO_SMALL]
    if any(verdict.seeds is None for verdict in unclear):
        return TOO_SMALL
    return max(unclear, key=lambda verdict: verdict.seeds, default=AGREES)


def counts(claims: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many claims, as in results.json, have each of VERDICTS."""
    return [sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS]


def overall(claims: Sequence[Mapping[str, Any]]) -> str:
    """The verdict on a study at a scale, from the claims as in results.json: counts, and what it disagrees with."""
    agree, disagree, unclear = counts(claims)
    text = (
        f"Of {len(claims)} claim{'s' * (len(claims) != 1)} {agree} {'agrees' if agree == 1 else 'agree'}, "
        f"{disagree} {'disagrees' if disagree == 1 else 'disagree'}, {unclear} {'is' if unclear == 1 else 'are'} "
        f"{TOO_SMALL}."
    )
    against = [claim["statement"] for claim in claims if claim["verdict"] == DISAGREES]
    return f"{text} Not found here: {' '.join(against)}" if against else text


def seeds_text(claim: Mapping[str, Any]) -> str:
    """How many seeds a group would tell what is too small to tell, of a claim as in results.json; "" if unknown."""
    seeds = claim.get("seeds")
    return f"{min(seeds, MANY)}{' or more' if seeds > MANY else ''} seeds would tell" if seeds else ""

"""What a study is: a question, published claims, the trials that decide them, and what each decides by.

A study is a file that defines STUDY. It is named in STUDIES, or asked for by its path: `experiments.run my_study.py`.
"""

import importlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from models import own
from models.errors import UserError, choice_error

SCALES = ("digits", "cifar10", "imagenet")
STUDIES = {
    "initialization": "experiments.initialization", "normalization": "experiments.normalization",
    "depth": "experiments.depth",
    "translation": "experiments.translation",
    "cost": "experiments.cost", "attention": "experiments.attention", "transfer": "experiments.transfer",
    "compression": "experiments.compression", "adaptive": "experiments.adaptive",
    "explanation": "experiments.explanation",
}
AGREES, DISAGREES, TOO_SMALL = VERDICTS = ("agrees", "disagrees", "too small to tell")


class Trial(NamedTuple):
    """One run of the training loop, and what is measured on it.

    Attributes:
      labels: what distinguishes it within the study, e.g. {"depth": 20, "init": "msra", "seed": 0}.
      config: of `train.loop.train`, complete.
      train: False: nothing is trained, only the initial state is measured.
      measures: names of functions of the study's file, (run, state) -> what JSON can hold. They see the
        `train.loop.Run` and the state, as numpy: the last one, or without training the first.
      start: the trial whose trained network this one starts from (config.init_from is set to its folder); it is run
        first, whether it is among the study's trials or not.
    """

    labels: Mapping[str, Any]
    config: Any
    train: bool = True
    measures: Sequence[str] = ()
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

    def get(self, name: str) -> float:
        """A number of the summary, NaN where training diverged."""
        return float("nan") if self.summary is None else self.summary[name]


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
        keys = dict.fromkeys(tuple(o.labels[name] for name in names) for o in self
                             if all(name in o.labels for name in names))
        for key in keys:
            yield key, self.where(**dict(zip(names, key, strict=True)))

    def values(self, name: str) -> list[float]:
        """That number of each summary; NaN where training diverged."""
        return [outcome.get(name) for outcome in self]


class Judgement(NamedTuple):
    """A verdict and the numbers that it rests on, in one sentence."""

    verdict: str
    ours: str


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
    judge: Callable[[Outcomes], Judgement]


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
    """

    name: str
    title: str
    question: str
    cost: Mapping[str, str]
    trials: Callable[[str], list[Trial]]
    claims: Sequence[Claim]
    tables: Callable[[Outcomes], list[Table]]
    pictures: Sequence[Picture]


def module(spec: str) -> Any:
    """The module of a study, by its name in STUDIES or the path of a file.

    Raises:
      UserError: there is none.
    """
    if spec in STUDIES:
        return importlib.import_module(STUDIES[spec])
    if not spec.endswith(".py"):
        raise choice_error("study", spec, (*STUDIES, "PATH.py"))
    loaded = own.module(spec)
    if not isinstance(getattr(loaded, "STUDY", None), Study):
        raise UserError(f"study {spec}: it does not define STUDY, an experiments.study.Study")
    return loaded


# -- deciding ------------------------------------------------------------------------------------------------------


def finite(values: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if math.isfinite(value)]


def spread(values: Sequence[float], percent: bool = True, digits: int = 1) -> str:
    """Mean and standard deviation over seeds, e.g. "97.2 ± 0.3 %", with how many diverged."""
    good, scale = finite(values), 100 if percent else 1
    if not good:
        return "diverged" if values else "—"
    text = f"{scale * statistics.mean(good):.{digits}f}"
    if len(good) > 1:
        text += f" ± {scale * statistics.stdev(good):.{digits}f}"
    lost = len(values) - len(good)
    return text + (" %" if percent else "") + (f" ({lost} of {len(values)} diverged)" if lost else "")


def compare(high: Sequence[float], low: Sequence[float], by: float = 0.0) -> str:
    """Whether the mean of `high` is above that of `low` by more than `by`: a verdict.

    "too small to tell" within two standard errors of the difference (Welch) of `by`.
    """
    high, low = finite(high), finite(low)
    if min(len(high), len(low)) < 2:
        return TOO_SMALL
    difference = statistics.mean(high) - statistics.mean(low) - by
    error = math.sqrt(statistics.variance(high) / len(high) + statistics.variance(low) / len(low))
    if abs(difference) <= 2 * error:
        return TOO_SMALL
    return AGREES if difference > 0 else DISAGREES


def all_of(verdicts: Sequence[str]) -> str:
    """Of a claim with several parts: disagrees where one does, else too small to tell where one is."""
    return next((verdict for verdict in (DISAGREES, TOO_SMALL) if verdict in verdicts), AGREES)

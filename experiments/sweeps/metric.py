"""The metric by which the settings of a sweep are compared."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from experiments.study import Outcome
from experiments.study.verdicts import deviation, finite, mean
from models.errors import UserError, choice_error

DEFAULTS = ("accuracy", "bleu", "mean_average_precision", "hit", "loss")  # the first that a summary has
LOWER = ("loss", "seconds", "training_seconds", "seconds_to_first_step", "peak_mib", "parameters", "mult_adds", "steps")
SHARES = ("accuracy", "top5", "hit", "mean_class_accuracy", "mean_average_precision", "sparsity", "exact_match")


class Metric(NamedTuple):
    """A number of summary.json."""

    name: str

    @property
    def lower(self) -> bool:
        """Says whether lower is better."""
        return self.name in LOWER

    @property
    def is_share(self) -> bool:
        """Says whether it is shown in percent."""
        return self.name.startswith(SHARES)

    @property
    def label(self) -> str:
        """The name for people, with the unit."""
        return f"{self.name.replace('_', ' ')}{' (%)' if self.is_share else ''}"

    def values(self, outcomes: Sequence[Outcome]) -> list[float]:
        """Returns the metric of each outcome; NaN if training diverged."""
        return [outcome.get(self.name) for outcome in outcomes]

    def mean(self, outcomes: Sequence[Outcome]) -> float:
        """Returns the mean over seeds; NaN if all of them diverged."""
        return mean(self.values(outcomes))

    def key(self, outcomes: Sequence[Outcome]) -> tuple[int, float]:
        """Returns a key that sorts the best setting first: by the number of diverged seeds, then by the mean."""
        value = self.mean(outcomes)
        diverged = len(outcomes) - len(finite(self.values(outcomes)))
        return diverged, math.inf if math.isnan(value) else value if self.lower else -value

    def text(self, value: float) -> str:
        """Returns a value for people, in the unit of `label`; "—" for NaN."""
        if math.isnan(value):
            return "—"
        return f"{100 * value:.2f}" if self.is_share else f"{value:.4g}"

    def spread(self, outcomes: Sequence[Outcome]) -> str:
        """Returns mean and standard deviation over seeds, for people; the latter only if there are several seeds."""
        values = self.values(outcomes)
        several = len(finite(values)) > 1
        return self.text(mean(values)) + (f" ± {self.text(deviation(values))}" if several else "")


def choose(outcomes: Sequence[Outcome], name: str = "") -> Metric:
    """Returns the metric of a name; without a name, the first of DEFAULTS that the summaries have.

    Raises:
      UserError: The summaries have no such number, or every trial diverged.
    """
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    if not summaries:
        raise UserError(f"all {len(outcomes)} trials diverged: {outcomes[0].diverged}")
    shared = {name for name in summaries[0] if all(name in summary for summary in summaries)}
    numbers = [key for key, value in summaries[0].items() if key in shared and type(value) in (int, float)]
    name = name or next(key for key in DEFAULTS if key in numbers)
    if name not in numbers:
        raise choice_error("--metric", name, numbers)
    return Metric(name)

"""Evidence for and against a claim: p values of stated tests, an estimate with its interval, and rules to combine them.

Each function tests one statement about groups of seeds. `p_for` is the p value under the null hypothesis that the
statement is false, and `p_against` the p value under the null hypothesis that it is true. A statement that one mean is
above another is also refuted if the difference is less than `worth`, the smallest difference that matters.
`verdicts.decide` turns the evidence for all claims of a study into verdicts.

  Welch 1947       the generalization of Student's problem when several different population variances are involved
  Schuirmann 1987  two one-sided tests for equivalence
  Berger 1982      intersection-union tests: a statement with several parts has the largest p value of its parts
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

ALPHA = 0.05  # probability of any false verdict in a study
LEVEL = 0.95  # confidence level of intervals
CLEAR = 0.2  # a p value of Welch's test above this decides nothing, so the permutation test is skipped
PERMUTATIONS = 20_000
POINT = 0.01  # a percentage point of accuracy
TINY = 1e-24  # lower bound on the variance of a group
FIRST = 7  # seeds at the first look: with fewer, no permutation test can decide one of ten claims

Values = Sequence[float] | np.ndarray  # outcomes, one per seed


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence of the outcomes for and against one statement.

    Attributes:
      p_for, p_against: The two p values (see the module's docstring); 1 if nothing can be said.
      estimate: Estimate of the effect, in the units of the outcomes; NaN if the statement has no single effect.
      low, high: Confidence interval of the effect, at LEVEL.
      margin: The value above which the effect agrees with the statement.
      worth: The smallest effect that matters, if one between `margin` and it refutes the statement; else NaN.
      unit: Unit of the effect; "points" are percentage points, stored as fractions.
      test: Name of the test.
      seeds: Seeds per group that would decide the statement at the same means and spreads; None if unknown.
      note: The reason why more seeds cannot decide the statement, if there is one.
    """

    p_for: float
    p_against: float
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float = math.nan
    worth: float = math.nan
    unit: str = ""
    test: str = ""
    seeds: int | None = None
    note: str = ""


NOTHING = Evidence(1.0, 1.0)


def finite(values: Values) -> np.ndarray:
    """Returns the finite values, as float64."""
    array = np.asarray(list(values), np.float64)
    return array[np.isfinite(array)]


def holds(condition: bool) -> Evidence:
    """Returns the evidence for a statement that is counted or computed exactly, not sampled."""
    return Evidence(0.0, 1.0, test="exact") if condition else Evidence(1.0, 0.0, test="exact")


def _welch(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns the standard error of a sum of means, and its degrees of freedom (Satterthwaite's approximation)."""
    parts = [max(float(np.var(group, ddof=1)), TINY) / len(group) for group in groups]
    weights = sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    return math.sqrt(sum(parts)), sum(parts) ** 2 / weights


class _Difference:
    """A difference between the means of two groups of at least two seeds, or of one group and 0."""

    def __init__(self, high: np.ndarray, low: np.ndarray | None):
        self._high, self._low = high, low
        self.estimate = float(high.mean() - (0.0 if low is None else low.mean()))
        self._error, self._freedom = _welch([high] if low is None else [high, low])

    def above(self, margin: float) -> float:
        """Returns the p value of the null hypothesis that the difference is at most `margin`.

        It is the larger p value of Welch's t test and of a permutation test with Welch's t. Welch's test alone is not
        valid for a few seeds whose outcomes have two modes, as when a network either stalls or learns. Where Welch's
        test has no power, the permutation test has none either.
        """
        from scipy import special

        welch = float(special.stdtr(self._freedom, (margin - self.estimate) / self._error))
        if welch > CLEAR:
            return welch
        high = self._high - margin
        return max(welch, _flipped(high) if self._low is None else _permuted(high, self._low))

    def below(self, margin: float) -> float:
        """Returns the p value of the null hypothesis that the difference is at least `margin`."""
        opposite = _Difference(-self._high, None) if self._low is None else _Difference(self._low, self._high)
        return opposite.above(-margin)

    def interval(self) -> tuple[float, float]:
        """Returns Welch's interval at LEVEL."""
        from scipy import special

        half = self._error * float(special.stdtrit(self._freedom, (1 + LEVEL) / 2))
        return self.estimate - half, self.estimate + half

    def seeds(self, distance: float) -> int | None:
        """Returns the seeds per group that decide a distance from the margin with a power of 80%."""
        from scipy import stats

        if not distance:
            return None
        variance = sum(float(np.var(group, ddof=1)) for group in (self._high, self._low) if group is not None)
        normal = float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(0.8))
        return max(FIRST, math.ceil(variance * (normal / distance) ** 2) + 1)


def _permuted(high: np.ndarray, low: np.ndarray) -> float:
    """Returns the share of divisions of all outcomes whose t is at least that of `high` and `low`.

    A division puts the outcomes into two groups of the same sizes. All divisions are enumerated if there are at most
    PERMUTATIONS. Otherwise, a fixed random sample of that many is used.
    """
    values = np.concatenate([high, low])
    values = values - values.mean()  # for the precision of variances
    chosen = _divisions(len(values), len(high))  # [P, N], 0 or 1
    sums, squares = chosen @ values, chosen @ values**2
    parts, means = [], []
    for count, total, square in (
        (len(high), sums, squares),
        (len(low), values.sum() - sums, (values**2).sum() - squares),
    ):
        variance = (square - total**2 / count) / (count - 1)
        parts.append(np.maximum(variance, TINY) / count)
        means.append(total / count)
    t = (means[0] - means[1]) / np.sqrt(parts[0] + parts[1])
    return float(np.mean(t >= t[0] * (1 - 1e-9) - 1e-9))  # the first division is the original


@functools.lru_cache(maxsize=64)
def _divisions(count: int, size: int) -> np.ndarray:
    """Returns divisions [P, count] of outcomes into `size` ones and the rest, zeros; the first is the original."""
    if math.comb(count, size) <= PERMUTATIONS:
        indices = np.array(list(itertools.combinations(range(count), size)))
    else:
        rng = np.random.default_rng(0)
        random = (rng.permutation(count)[:size] for _ in range(PERMUTATIONS - 1))
        indices = np.array([np.arange(size), *random])
    chosen = np.zeros((len(indices), count))
    np.put_along_axis(chosen, indices, 1.0, 1)
    return chosen


def _flipped(values: np.ndarray) -> float:
    """Returns the share of sign flips that give at least the mean of the values (Fisher 1935)."""
    if 2 ** len(values) <= PERMUTATIONS:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    else:
        rng = np.random.default_rng(0)
        signs = np.concatenate([np.ones((1, len(values))), rng.choice((1, -1), (PERMUTATIONS - 1, len(values)))])
    return float(np.mean((signs * values).mean(-1) >= values.mean() - 1e-12))


def _difference(high: Values, low: Values | None) -> _Difference | None:
    """Returns the difference of means; None if a group has fewer than two finite values."""
    groups = [finite(group) for group in (high, low) if group is not None]
    return _Difference(groups[0], groups[1] if len(groups) > 1 else None) if min(map(len, groups)) >= 2 else None


def _above(difference: _Difference | None, by: float, refuted: float, unit: str, test: str) -> Evidence:
    """Returns the evidence that a difference is above `by`; a difference below `refuted` is evidence against it."""
    if difference is None:
        return NOTHING
    distance = max(difference.estimate - by, refuted - difference.estimate)
    return Evidence(
        difference.above(by),
        difference.below(refuted),
        difference.estimate,
        *difference.interval(),
        margin=by,
        worth=refuted if refuted > by else math.nan,
        unit=unit,
        test=test,
        seeds=difference.seeds(distance),
    )


def more(high: Values, low: Values, by: float = 0.0, worth: float = POINT, unit: str = "points") -> Evidence:
    """Tests whether the mean of `high` is above the mean of `low` by more than `by`; see `_Difference.above`.

    Args:
      high: Outcomes, one per seed.
      low: Outcomes of the other group, one per seed.
      by: The margin.
      worth: Smallest difference that matters: the statement is refuted if the difference is below it (and if it is
        below `by`).
      unit: Unit of the outcomes.
    """
    return _above(_difference(high, low), by, max(by, worth), unit, "Welch and permutation")


def worth(published: float, most: float = POINT) -> float:
    """Returns the smallest difference that matters beside a published one: half of it, and at most `most`.

    With more, a faithful replication of a small published effect would count as no difference that matters.
    """
    return min(most, abs(published) / 2)


def contrast(parts: Sequence[tuple[float, Values]], unit: str = "points") -> Evidence:
    """Tests whether a weighted sum of means is above 0 (Welch's t).

    It is for statements whose margin is itself an outcome, such as "loses less than half of what the other gains".

    Args:
      parts: (weight, outcomes by seed) for each group.
      unit: Unit of the outcomes.
    """
    from scipy import special

    groups = [weight * finite(values) for weight, values in parts]
    if min(map(len, groups)) < 2:
        return NOTHING
    estimate, (error, freedom) = sum(float(group.mean()) for group in groups), _welch(groups)
    half = error * float(special.stdtrit(freedom, (1 + LEVEL) / 2))
    p_for, p_against = (float(special.stdtr(freedom, sign * estimate / error)) for sign in (-1, 1))
    ends = estimate - half, estimate + half
    return Evidence(p_for, p_against, estimate, *ends, margin=0.0, unit=unit, test="Welch's t of a contrast")


def above(values: Values, threshold: float, worth: float = 0.0, unit: str = "points") -> Evidence:
    """Tests whether a mean over seeds is above a threshold (t test and sign flips); the effect is the distance to it.

    The statement is refuted if the mean is below threshold + worth.
    """
    distances = finite(values) - threshold
    return _above(_difference(distances, None), 0.0, worth, unit, "t and sign flips")


def within(values: Values, low: float, high: float, unit: str = "points") -> Evidence:
    """Tests whether a mean over seeds is between two thresholds, one of which may be infinite."""
    sides = [(sign, end) for sign, end in ((1, low), (-1, high)) if math.isfinite(end)]
    return all_of(*(above(sign * finite(values), sign * end, unit=unit) for sign, end in sides))


def no_less(good: Values, reference: Values, margin: float = POINT, unit: str = "points") -> Evidence:
    """Tests whether the mean of `good` is at most `margin` below that of `reference` (non-inferiority)."""
    return _above(_difference(good, reference), -margin, -margin, unit, "non-inferiority by Welch and permutation")


def equivalent(first: Values, second: Values, margin: float = POINT, unit: str = "points") -> Evidence:
    """Tests whether two means differ by less than `margin` (two one-sided tests).

    Means with a wide interval are not equivalent, however close they are.
    """
    difference = _difference(first, second)
    if difference is None:
        return NOTHING
    beyond = 2 * min(difference.above(margin), difference.below(-margin))
    return Evidence(
        max(difference.above(-margin), difference.below(margin)),
        min(1.0, beyond),
        difference.estimate,
        *difference.interval(),
        margin=margin,
        unit=unit,
        test="two one-sided tests by Welch and permutation",
        seeds=difference.seeds(abs(abs(difference.estimate) - margin)),
    )


def usual(successes: int, runs: int, share: float = 0.5) -> Evidence:
    """Tests whether more than `share` of all seeds succeed (binomial, exact)."""
    from scipy import stats

    if not runs:
        return NOTHING
    interval = stats.binomtest(successes, runs).proportion_ci(LEVEL, "exact")
    return Evidence(
        float(stats.binomtest(successes, runs, share, alternative="greater").pvalue),
        float(stats.binomtest(successes, runs, share, alternative="less").pvalue),
        successes / runs,
        interval.low,
        interval.high,
        margin=share,
        unit="points",
        test="binomial",
    )


def more_often(first: tuple[int, int], second: tuple[int, int]) -> Evidence:
    """Tests whether the first group succeeds more often than the second (Barnard's exact test).

    Args:
      first: (successes, runs).
      second: (successes, runs) of the other group.
    """
    from scipy import stats

    if not (first[1] and second[1]):
        return NOTHING
    table = [[first[0], second[0]], [first[1] - first[0], second[1] - second[0]]]
    if (
        len({first[0] / first[1], second[0] / second[1]} & {0.0, 1.0}) == 1
        and first[0] * second[1] == second[0] * first[1]
    ):
        return dataclasses.replace(NOTHING, estimate=0.0, margin=0.0, test="Barnard")  # all runs succeed, or none does
    return Evidence(
        float(stats.barnard_exact(table, alternative="greater").pvalue),
        float(stats.barnard_exact(table, alternative="less").pvalue),
        first[0] / first[1] - second[0] / second[1],
        margin=0.0,
        unit="points",
        test="Barnard",
    )


def trend(groups: Sequence[tuple[float, Values]], worth: float = POINT, unit: str = "points") -> Evidence:
    """Tests whether outcomes rise with a setting, over all of its values (slope of a least-squares line).

    The effect is the rise of the line from the smallest setting to the largest. Each p value is the larger of two: that
    of the t test of the slope, and that of a permutation of the outcomes among the settings. To test whether outcomes
    fall, negate them.

    Args:
      groups: (setting, outcomes by seed) for at least three settings; pass the logarithm of a setting that grows by
        factors.
      worth: Smallest rise that matters: the statement is refuted if the rise is below it.
      unit: Unit of the outcomes.
    """
    from scipy import special, stats

    x = np.concatenate([np.full(len(finite(values)), setting) for setting, values in groups])
    y = np.concatenate([finite(values) for _, values in groups])
    if len({*x}) < 3 or len(y) < len({*x}) + 2:
        return NOTHING
    x = (x - x.min()) / (x.max() - x.min())
    line: Any = stats.linregress(x, y)
    error, freedom = max(float(line.stderr), math.sqrt(TINY)), len(y) - 2
    half = error * float(special.stdtrit(freedom, (1 + LEVEL) / 2))

    def p(sign: int, margin: float) -> float:
        student = float(special.stdtr(freedom, sign * (margin - line.slope) / error))
        return student if student > CLEAR else max(student, _rearranged(x, sign * (y - margin * x)))

    return Evidence(
        p(1, 0.0),
        p(-1, worth),
        float(line.slope),
        float(line.slope) - half,
        float(line.slope) + half,
        margin=0.0,
        worth=worth if worth > 0 else math.nan,
        unit=unit,
        test="slope by t and permutation",
    )


def _rearranged(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of random permutations of y whose covariance with x is at least that of x and y."""
    permuted = np.random.default_rng(0).permuted(np.tile(y, (PERMUTATIONS, 1)), axis=1)
    permuted[0] = y
    centered = x - x.mean()
    return float(np.mean(permuted @ centered >= y @ centered - 1e-12))


def all_of(*parts: Evidence) -> Evidence:
    """Combines the evidence for the parts of a statement that is true if every part is.

    `p_for` is the largest of the parts' (Berger's intersection-union test). `p_against` is the smallest, with
    Bonferroni's correction. The estimate is that of the part that decides.
    """
    p_for, p_against = max(part.p_for for part in parts), min(part.p_against for part in parts) * len(parts)
    decisive = (
        min(parts, key=lambda part: part.p_against) if p_against < p_for else max(parts, key=lambda part: part.p_for)
    )
    seeds = [part.seeds for part in parts if part.seeds is not None]
    return dataclasses.replace(
        decisive,
        p_for=p_for,
        p_against=min(1.0, p_against),
        test=" and ".join(dict.fromkeys(part.test for part in parts if part.test)),
        seeds=max(seeds, default=None),
    )


def given(condition: Evidence, statement: Evidence) -> Evidence:
    """Returns the evidence for a statement that is meaningful only if a condition holds."""
    decides = min(statement.p_for, statement.p_against) < condition.p_for
    return dataclasses.replace(
        statement,
        p_for=max(condition.p_for, statement.p_for),
        p_against=max(condition.p_for, statement.p_against),
        test=" and ".join(dict.fromkeys(part.test for part in (condition, statement) if part.test)),
        seeds=max((one.seeds for one in (condition, statement) if one.seeds is not None), default=None),
        note="its premise does not hold here" if decides and condition.p_against <= ALPHA / 2 else statement.note,
    )


def negated(evidence: Evidence) -> Evidence:
    """Returns the evidence for the opposite statement, with the opposite effect."""
    return dataclasses.replace(
        evidence,
        p_for=evidence.p_against,
        p_against=evidence.p_for,
        estimate=-evidence.estimate,
        low=-evidence.high,
        high=-evidence.low,
        margin=-evidence.margin,
        worth=math.nan,
    )

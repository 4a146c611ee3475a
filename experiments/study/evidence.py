"""Evidence for and against a claim: p values of stated tests, an estimate with its interval, and rules to combine them.

Each function tests one statement about groups of seeds. `p_for` is the p value of the null hypothesis that the
statement is false, `p_against` that of the null hypothesis that it is true; at most one of them is small. `decide`
turns the evidence for all claims of a study into verdicts, with Holm's correction for their number.

  Welch 1947       the generalization of Student's problem when several different population variances are involved
  Schuirmann 1987  two one-sided tests for equivalence
  Berger 1982      intersection-union tests: a statement with several parts has the largest p value of its parts
  Holm 1979        a simple sequentially rejective multiple test procedure
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

ALPHA = 0.05  # probability of any false verdict in a study
LEVEL = 0.95  # confidence level of intervals
CLEAR = 0.2  # with a larger p value of Welch's test nothing is decided, whatever the permutation test says
PERMUTATIONS = 20_000
TINY = 1e-24  # variance of a group whose outcomes are all equal, if their resolution is unknown

Values = Sequence[float] | np.ndarray  # outcomes, one per seed


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence of the outcomes for and against one statement.

    Attributes:
      p_for, p_against: The two p values, see the module; 1 if nothing can be said.
      estimate: Estimate of the effect, in the units of the outcomes; NaN if there is no single one.
      low, high: Confidence interval of the effect, at LEVEL.
      margin: The value that the effect is compared with.
      test: Name of the test.
      seeds: Seeds per group that would decide at spreads and means like these; None if unknown.
    """

    p_for: float
    p_against: float
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float = math.nan
    test: str = ""
    seeds: int | None = None


NOTHING = Evidence(1.0, 1.0)


def finite(values: Values) -> np.ndarray:
    """Returns the finite values, as float64."""
    array = np.asarray(list(values), np.float64)
    return array[np.isfinite(array)]


def holds(condition: bool) -> Evidence:
    """Returns the evidence for a statement that is counted or computed exactly, not sampled."""
    return Evidence(0.0, 1.0, test="exact") if condition else Evidence(1.0, 0.0, test="exact")


class _Difference:
    """A difference between the means of two groups of at least two seeds.

    Equal outcomes of a few seeds do not prove that their spread is 0. So the variance of a group is at least the
    rounding variance of the outcome's `resolution`.
    """

    def __init__(self, high: np.ndarray, low: np.ndarray, resolution: float):
        self._high, self._low, self._floor = high, low, max(resolution**2 / 12, TINY)
        parts = [max(float(np.var(group, ddof=1)), self._floor) / len(group) for group in (high, low)]
        self.estimate, self._error = float(high.mean() - low.mean()), math.sqrt(sum(parts))
        weights = sum(part**2 / (len(group) - 1) for part, group in zip(parts, (high, low), strict=True))
        self._freedom = sum(parts) ** 2 / weights

    def above(self, margin: float) -> float:
        """Returns the p value of the null hypothesis that the difference is at most `margin`.

        It is the larger of the p values of Welch's t test and of a permutation test of Welch's t. Welch's is invalid
        for a few seeds of outcomes with two modes, such as networks that stall or learn. The permutation test
        has no power where Welch's has none.
        """
        welch = float(special.stdtr(self._freedom, (margin - self.estimate) / self._error))
        return welch if welch > CLEAR else max(welch, _permuted(self._high - margin, self._low, self._floor))

    def below(self, margin: float) -> float:
        """Returns the p value of the null hypothesis that the difference is at least `margin`."""
        welch = float(special.stdtr(self._freedom, (self.estimate - margin) / self._error))
        return welch if welch > CLEAR else max(welch, _permuted(self._low + margin, self._high, self._floor))

    def interval(self) -> tuple[float, float]:
        """Returns Welch's interval at LEVEL."""
        half = self._error * float(special.stdtrit(self._freedom, (1 + LEVEL) / 2))
        return self.estimate - half, self.estimate + half


def _permuted(high: np.ndarray, low: np.ndarray, floor: float) -> float:
    """Returns the share of divisions of all outcomes into two such groups whose t is at least that of `high` and `low`.

    All divisions are enumerated if there are at most PERMUTATIONS; otherwise a fixed random sample of as many.
    """
    everything, size = np.concatenate([high, low]), len(high)

    def t(groups: np.ndarray, others: np.ndarray) -> np.ndarray:
        parts = [np.maximum(np.var(x, -1, ddof=1), floor) / x.shape[-1] for x in (groups, others)]
        return (groups.mean(-1) - others.mean(-1)) / np.sqrt(parts[0] + parts[1])

    chosen = _divisions(len(everything), size)  # [P, N], bool
    groups = everything[np.nonzero(chosen)[1]].reshape(len(chosen), size)
    others = everything[np.nonzero(~chosen)[1]].reshape(len(chosen), -1)
    return float(np.mean(t(groups, others) >= t(high, low) - 1e-9))


@functools.lru_cache(maxsize=64)
def _divisions(count: int, size: int) -> np.ndarray:
    """Returns divisions of `count` outcomes into `size` and the rest, bool [P, count]; the first is the original."""
    if math.comb(count, size) <= PERMUTATIONS:
        indices = np.array(list(itertools.combinations(range(count), size)))
    else:
        rng = np.random.default_rng(0)
        random = (rng.permutation(count)[:size] for _ in range(PERMUTATIONS - 1))
        indices = np.array([np.arange(size), *random])
    chosen = np.zeros((len(indices), count), bool)
    np.put_along_axis(chosen, indices, True, 1)
    return chosen


def _difference(high: Values, low: Values, resolution: float) -> _Difference | None:
    """Returns the difference of means; None if a group has fewer than two finite values."""
    first, second = finite(high), finite(low)
    return _Difference(first, second, resolution) if min(len(first), len(second)) >= 2 else None


def more(high: Values, low: Values, by: float = 0.0, resolution: float = 0.0) -> Evidence:
    """Tests whether the mean of `high` is above the mean of `low` by more than `by`; see `_Difference.above`.

    Args:
      high: Outcomes, one per seed.
      low: Outcomes of the other group, one per seed.
      by: The margin.
      resolution: The smallest difference that an outcome can show, e.g. 1 / test images for an accuracy.
    """
    difference = _difference(high, low, resolution)
    if difference is None:
        return NOTHING
    return Evidence(
        difference.above(by),
        difference.below(by),
        difference.estimate,
        *difference.interval(),
        margin=by,
        test="Welch and permutation",
        seeds=_seeds(abs(difference.estimate - by), finite(high), finite(low), resolution),
    )


def equivalent(first: Values, second: Values, margin: float, resolution: float = 0.0) -> Evidence:
    """Tests whether two means differ by less than `margin` (two one-sided tests); a wide interval is no agreement."""
    difference = _difference(first, second, resolution)
    if difference is None:
        return NOTHING
    beyond = 2 * min(difference.above(margin), difference.below(-margin))
    return Evidence(
        max(difference.above(-margin), difference.below(margin)),
        min(1.0, beyond),
        difference.estimate,
        *difference.interval(),
        margin=margin,
        test="two one-sided tests by Welch and permutation",
        seeds=_seeds(abs(abs(difference.estimate) - margin), finite(first), finite(second), resolution),
    )


def no_less(good: Values, reference: Values, margin: float, resolution: float = 0.0) -> Evidence:
    """Tests whether the mean of `good` is at most `margin` below that of `reference`."""
    return dataclasses.replace(
        more(good, reference, -margin, resolution), test="non-inferiority by Welch and permutation"
    )


def usual(successes: int, runs: int, share: float = 0.5) -> Evidence:
    """Tests whether more than `share` of all seeds succeed (binomial, exact)."""
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
        test="binomial",
    )


def more_often(first: tuple[int, int], second: tuple[int, int]) -> Evidence:
    """Tests whether the first group succeeds more often than the second (Barnard's exact test).

    Args:
      first: (successes, runs).
      second: (successes, runs) of the other group.
    """
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
        test="Barnard",
    )


def trend(groups: Sequence[tuple[float, Values]], rising: bool = True) -> Evidence:
    """Tests whether outcomes rise (or fall) with a setting, over all of its values (slope of a least-squares line).

    Args:
      groups: (setting, outcomes by seed) for at least three settings; pass the logarithm of a setting that grows by
        factors.
      rising: The direction of the statement.
    """
    x = np.concatenate([np.full(len(finite(values)), setting) for setting, values in groups])
    y = np.concatenate([finite(values) for _, values in groups])
    if len({*x}) < 2 or len(y) < len({*x}) + 2:
        return NOTHING
    line: Any = stats.linregress(x, y)
    if not line.stderr:
        return dataclasses.replace(holds((line.slope > 0) == rising), estimate=float(line.slope), test="slope")
    sign, freedom = (1 if rising else -1), len(y) - 2
    half = float(line.stderr * stats.t.ppf((1 + LEVEL) / 2, freedom))
    return Evidence(
        float(stats.t.sf(sign * line.slope / line.stderr, freedom)),
        float(stats.t.cdf(sign * line.slope / line.stderr, freedom)),
        float(line.slope),
        float(line.slope) - half,
        float(line.slope) + half,
        margin=0.0,
        test="slope",
    )


def all_of(*parts: Evidence) -> Evidence:
    """Combines the parts of a statement, which is true if all of them are.

    `p_for` is that of the weakest part (Berger's intersection-union test), `p_against` that of the strongest, with
    Bonferroni's correction. The estimate is that of the part closest to undecided.
    """
    hardest = max(parts, key=lambda part: min(part.p_for, part.p_against))
    seeds = [part.seeds for part in parts if part.seeds is not None]
    return dataclasses.replace(
        hardest,
        p_for=max(part.p_for for part in parts),
        p_against=min(1.0, len(parts) * min(part.p_against for part in parts)),
        test=" and ".join(dict.fromkeys(part.test for part in parts if part.test)),
        seeds=max(seeds, default=None),
    )


def negated(evidence: Evidence) -> Evidence:
    """Returns the evidence for the opposite statement."""
    return dataclasses.replace(evidence, p_for=evidence.p_against, p_against=evidence.p_for)


def p_value(evidence: Evidence) -> float:
    """Returns the two-sided p value of a verdict either way."""
    return min(1.0, 2 * min(evidence.p_for, evidence.p_against))


def corrected(claims: Sequence[Evidence]) -> list[float]:
    """Returns the p values of a study's claims, corrected for their number (Holm)."""
    return np.asarray(multipletests([p_value(one) for one in claims], ALPHA, "holm")[1]).tolist() if claims else []


def decide(claims: Sequence[Evidence], level: float = ALPHA) -> list[bool | None]:
    """Returns for each claim of a study whether it holds, or None if that is undecided.

    Args:
      claims: Evidence for each claim of the study.
      level: Probability of any false verdict in the study; a sequential look spends a part of ALPHA (`spent`).
    """
    return [
        (one.p_for < one.p_against if p <= level else None) for one, p in zip(claims, corrected(claims), strict=True)
    ]


def spent(fraction: float) -> float:
    """Returns the part of ALPHA that may be spent by the time that a fraction of all seeds has been seen.

    It is the spending function of Lan & DeMets 1983 that resembles Pocock's boundary: early looks get a large share.
    """
    return ALPHA * math.log(1 + (math.e - 1) * min(1.0, fraction))


def looks(most: int, first: int = 3, growth: float = 1.5) -> list[tuple[int, float]]:
    """Returns the group-sequential looks: (seeds per group, level of that look).

    Levels add up to ALPHA. So by Bonferroni's inequality the probability of a false verdict at any look is at most
    ALPHA, whatever the tests are.

    Args:
      most: Seeds per group at the last look.
      first: Seeds per group at the first look.
      growth: Factor from one look to the next.
    """
    counts = [min(first, most)]
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, round(counts[-1] * growth))))
    levels = np.diff([0.0, *(spent(count / most) for count in counts)])
    return [(count, float(level)) for count, level in zip(counts, levels, strict=True)]


def _seeds(distance: float, first: np.ndarray, second: np.ndarray, resolution: float) -> int | None:
    """Returns the seeds per group at which such a difference is decided with a probability of 80%, at ALPHA."""
    if not distance:
        return None
    floor = resolution**2 / 12
    variance = max(float(np.var(first, ddof=1)), floor) + max(float(np.var(second, ddof=1)), floor)
    normal = float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(0.8))
    return max(2, math.ceil(variance * (normal / distance) ** 2) + 1)

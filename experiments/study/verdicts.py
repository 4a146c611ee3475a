"""Verdicts: comparisons of groups of seeds at a stated error rate, and their texts."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MOST_SEEDS = 200  # caps the reported number of seeds


class Verdict(str):
    """One of VERDICTS.

    Attributes:
      seeds: With "too small to tell", the seeds per group that would decide at this spread; None if unknown.
    """

    seeds: int | None = None


AGREES, DISAGREES, TOO_SMALL = VERDICTS = tuple(map(Verdict, ("agrees", "disagrees", "too small to tell")))


class Judgement(NamedTuple):
    """A verdict and its numbers, in one sentence."""

    verdict: Verdict
    ours: str


def finite(values: Iterable[float]) -> list[float]:
    """Returns the finite values."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """Returns the mean of the finite values; NaN if there is none."""
    good = finite(values)
    return statistics.mean(good) if good else math.nan


def deviation(values: Sequence[float]) -> float:
    """Returns the standard deviation of the finite values, for an error bar; 0 for a single one."""
    good = finite(values)
    return statistics.stdev(good) if len(good) > 1 else 0.0


def spread(values: Sequence[float], percent: bool = True, digits: int = 1) -> str:
    """Formats mean and standard deviation over seeds, e.g. "97.2 ± 0.3 %", and the number of diverged runs."""
    good, scale = finite(values), 100 if percent else 1
    if not good:
        return "diverged" if values else "—"
    text = f"{scale * statistics.mean(good):.{digits}f}"
    if len(good) > 1:
        text += f" ± {scale * deviation(good):.{digits}f}"
    lost = len(values) - len(good)
    return text + (" %" if percent else "") + (f" ({lost} of {len(values)} diverged)" if lost else "")


def listed(values: Mapping[Any, Sequence[float]], percent: bool = True, digits: int = 1, separator: str = "; ") -> str:
    """Formats "NAME MEAN ± DEVIATION" for each group."""
    return separator.join(f"{name} {spread(group, percent, digits)}" for name, group in values.items())


def seeds_needed(high: Sequence[float], low: Sequence[float], by: float = 0.0) -> int | None:
    """Returns the seeds per group at which means and spreads like these are over two standard errors apart.

    None if a group has fewer than two values, or the difference equals `by`.
    """
    high, low = finite(high), finite(low)
    if min(len(high), len(low)) < 2 or not (difference := statistics.mean(high) - statistics.mean(low) - by):
        return None
    return math.floor(4 * (statistics.variance(high) + statistics.variance(low)) / difference**2) + 1


def compare(high: Sequence[float], low: Sequence[float], by: float = 0.0) -> Verdict:
    """Decides whether the mean of `high` is above that of `low` by more than `by`.

    It is "too small to tell" within two standard errors of the difference (Welch) of `by`.
    """
    verdict = Verdict(TOO_SMALL)
    verdict.seeds = seeds_needed(high, low, by)
    high, low = finite(high), finite(low)
    if min(len(high), len(low)) < 2:
        return verdict
    difference = statistics.mean(high) - statistics.mean(low) - by
    error = math.sqrt(statistics.variance(high) / len(high) + statistics.variance(low) / len(low))
    return verdict if abs(difference) <= 2 * error else holds(difference > 0)


def holds(condition: bool) -> Verdict:
    """Returns the verdict on a claim that does or does not hold."""
    return AGREES if condition else DISAGREES


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Combines the parts of a claim: it disagrees if one part does, else is too small to tell if one part is."""
    if DISAGREES in verdicts:
        return DISAGREES
    unclear = [verdict for verdict in verdicts if verdict == TOO_SMALL]
    seeds = [verdict.seeds for verdict in unclear if verdict.seeds is not None]
    return TOO_SMALL if len(seeds) < len(unclear) else max(unclear, key=lambda one: one.seeds or 0, default=AGREES)


def more(
    groups: Mapping[Any, Sequence[float]],
    by: float = 0.0,
    start: str = "",
    percent: bool = True,
    digits: int = 1,
    separator: str = "; ",
) -> Judgement:
    """Judges whether the first of some named groups is above the second by more than `by`; lists all groups."""
    high, low, *_ = groups.values()
    return Judgement(compare(high, low, by), start + listed(groups, percent, digits, separator))


def counts(claims: Sequence[Mapping[str, Any]]) -> list[int]:
    """Counts the claims of results.json by verdict, in the order of VERDICTS."""
    return [sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS]


def overall(claims: Sequence[Mapping[str, Any]]) -> str:
    """Returns the verdict on a study from its claims in results.json: counts, and the claims that it disagrees with."""
    agree, disagree, unclear = counts(claims)
    text = (
        f"Of {len(claims)} claim{'s' * (len(claims) != 1)} {agree} {'agrees' if agree == 1 else 'agree'}, "
        f"{disagree} {'disagrees' if disagree == 1 else 'disagree'}, {unclear} {'is' if unclear == 1 else 'are'} "
        f"{TOO_SMALL}."
    )
    against = [claim["statement"] for claim in claims if claim["verdict"] == DISAGREES]
    return f"{text} Not found here: {' '.join(against)}" if against else text


def seeds_text(claim: Mapping[str, Any]) -> str:
    """Formats how many seeds would decide a claim of results.json that is too small to tell; "" if unknown."""
    seeds = claim.get("seeds")
    return f"{min(seeds, MOST_SEEDS)}{' or more' if seeds > MOST_SEEDS else ''} seeds would tell" if seeds else ""

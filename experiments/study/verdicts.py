"""Verdicts: decisions on the claims of a study at a stated error rate, and their texts.

Holm 1979          a simple sequentially rejective multiple test procedure
Lan & DeMets 1983  discrete sequential boundaries for clinical trials
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.study import evidence
from experiments.study.evidence import ALPHA, FIRST, Evidence

MOST_SEEDS = 200  # caps the reported number of seeds
AGREES, DISAGREES, TOO_SMALL = VERDICTS = ("agrees", "disagrees", "too small to tell")
RULE = (
    "Verdicts: the probability of any false verdict in a study is at most 5%, if the outcomes that are compared have "
    "the same shape, or are symmetric about their mean. Each claim has one p value for it and "
    "one against it. The table shows the smaller, two-sided, corrected for the number of claims (Holm) and for the "
    "looks at up to {most} seeds (alpha spending). A claim that one mean is above another is also refuted if the "
    "difference is shown to be too small to matter: less than 1 percentage point, unless the claim says otherwise. "
    "Intervals are not corrected: each is for one claim at one look."
)
UNITS = {"points": (100.0, "points")}  # unit -> (factor, name) in print; other units are printed unchanged


class Judgement(NamedTuple):
    """The evidence for a claim, and its numbers in one sentence."""

    evidence: Evidence
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
    diverged = len(values) - len(good)
    return text + (" %" if percent else "") + (f" ({diverged} of {len(values)} diverged)" if diverged else "")


def listed(values: Mapping[Any, Sequence[float]], percent: bool = True, digits: int = 1, separator: str = "; ") -> str:
    """Formats "NAME MEAN ± DEVIATION" for each group."""
    return separator.join(f"{name} {spread(group, percent, digits)}" for name, group in values.items())


def more(
    groups: Mapping[Any, Sequence[float]],
    by: float = 0.0,
    start: str = "",
    percent: bool = True,
    digits: int = 1,
    separator: str = "; ",
    **test: Any,
) -> Judgement:
    """Judges whether the first of some named groups is above the second by more than `by`; lists all groups.

    `test` holds further arguments of `evidence.more`.
    """
    high, low, *_ = groups.values()
    return Judgement(evidence.more(high, low, by, **test), start + listed(groups, percent, digits, separator))


def missing(note: str) -> Judgement:
    """Returns the judgement of a claim that the outcomes cannot decide; `note` is the reason."""
    return Judgement(dataclasses.replace(evidence.NOTHING, note=note), note)


def sequential(looks: Sequence[tuple[Evidence, float]]) -> Evidence:
    """Combines the evidence of all looks at a claim: (evidence, level of the look), in order.

    Each look's p value is multiplied by ALPHA / level, and the smallest product counts. The levels add up to at most
    ALPHA. So by Bonferroni's inequality the product is a valid p value, whatever the tests are and at whichever look
    one stops. The estimate and its interval are those of the last look.
    """
    p_for, p_against = (
        min(1.0, *(getattr(one, name) * ALPHA / level for one, level in looks)) for name in ("p_for", "p_against")
    )
    return dataclasses.replace(looks[-1][0], p_for=p_for, p_against=p_against)


def p_value(one: Evidence) -> float:
    """Returns the two-sided p value of a verdict for or against the claim."""
    return min(1.0, 2 * min(one.p_for, one.p_against))


def corrected(claims: Sequence[Evidence]) -> list[float]:
    """Returns the p values of a study's claims, corrected for their number (Holm)."""
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests([p_value(one) for one in claims], ALPHA, "holm")[1]).tolist() if claims else []


def decide(claims: Sequence[Evidence]) -> list[bool | None]:
    """Decides each claim of a study: True if it holds, False if it is refuted, None if it is undecided.

    The probability of any false verdict in a study is at most ALPHA. If a difference is shown to be above the margin
    and also to be too small to matter, the claim holds.
    """
    verdicts: list[bool | None] = []
    for one, p in zip(claims, corrected(claims), strict=True):
        factor = p / p_value(one) if p_value(one) else 1.0
        verdicts.append(None if p > ALPHA else min(1.0, 2 * one.p_for) * factor <= ALPHA)
    return verdicts


def spent(fraction: float) -> float:
    """Returns the part of ALPHA that may be spent once a fraction of all seeds has been used.

    This is the spending function of Lan & DeMets 1983 that resembles Pocock's boundary: early looks get a large share.
    """
    return ALPHA * math.log(1 + (math.e - 1) * min(1.0, fraction))


def looks(most: int, first: int = FIRST, growth: float = 1.4) -> list[tuple[int, float]]:
    """Returns the group-sequential looks: (seeds per group, level of that look).

    The levels add up to ALPHA. So by Bonferroni's inequality the probability of a false verdict at any look is at most
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


def amount(value: float, unit: str) -> str:
    """Formats an effect with its sign and unit, e.g. "+1.2 points"."""
    factor, name = UNITS.get(unit, (1.0, unit))
    return f"{factor * value:+.{1 if factor == 100 else 2}f}{' ' * bool(name)}{name}"


def effect(claim: Mapping[str, Any]) -> str:
    """Formats a claim's estimate with its interval, e.g. "+1.2 points [+0.4, +2.0]"; "" if there is none."""
    if claim.get("estimate") is None:
        return ""
    ends = [claim[key] for key in ("low", "high")]
    interval = "" if None in ends else f" [{', '.join(amount(end, claim['unit']).split(' ')[0] for end in ends)}]"
    return amount(claim["estimate"], claim["unit"]) + interval


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
    """Formats the number of seeds that would decide a claim of results.json; "" if it is decided or unknown."""
    seeds = claim.get("seeds")
    return f"{min(seeds, MOST_SEEDS)}{' or more' if seeds > MOST_SEEDS else ''} seeds would tell" if seeds else ""

"""Places of claims in the report's figure, and of effects in the forest plots beside the claims."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.blocks import Claim, Interval, Mark
from experiments.study import forest

EFFECTS = (2.0, 72.0)  # percent of the figure's width: claims that have an interval
OTHERS = (78.0, 98.0)  # the other claims
BAND = 1.0  # clearness at which an interval touches the margin
FARTHEST = 10.0  # clearness that is drawn at the edge
LANES = (17, 7, 27)  # pixels from the top of a row, in the order in which they are filled
APART = 2.7  # percent between two marks of a lane


def clearness(claim: Mapping[str, Any]) -> float | None:
    """Returns how clearly an effect is beyond the margin of its claim, or for equality within the margins.

    The unit is the part of the interval that lies toward the margin: at 1 the interval's end touches it, at 0 the
    effect is equal to it, and negative numbers speak against the claim. None if there is no interval.
    """
    if not forest.drawable([claim]):
        return None
    estimate, low, high, margin = (claim.get(key) or 0.0 for key in ("estimate", "low", "high", "margin"))
    if forest.says_equal(claim):
        estimate, low, high, margin = -abs(estimate), -(high - low) / 2, (high - low) / 2, -abs(margin)
        beyond, half = estimate - margin, high
    else:
        beyond = estimate - margin
        half = estimate - low if beyond > 0 else high - estimate
    return beyond / half if half > 0 else math.copysign(FARTHEST, beyond) if beyond else 0.0


def place(clear: float) -> float:
    """Returns the place of a clearness in percent: even within the band, in powers of two outside."""
    size = abs(clear)
    size = min(size if size <= BAND else BAND + math.log2(size / BAND), BAND + math.log2(FARTHEST / BAND))
    start, end = EFFECTS
    return (start + end) / 2 + (end - start) / 2 * math.copysign(size, clear) / (BAND + math.log2(FARTHEST / BAND))


def row(claims: Sequence[tuple[Claim, Mapping[str, Any]]]) -> list[Mark]:
    """Returns the marks of a study's claims, given with their results; none hides another if there is room."""
    marks, last = [], [-math.inf] * len(LANES)
    clear = [(claim, value) for claim, result in claims if (value := clearness(result)) is not None]
    for claim, value in sorted(clear, key=lambda pair: pair[1]):
        x = place(value)
        lane = next((i for i, before in enumerate(last) if x - before >= APART), last.index(min(last)))
        last[lane] = x
        marks.append(Mark(claim, round(x, 2), LANES[lane]))
    others = [claim for claim, result in claims if clearness(result) is None]
    columns = (len(others) + 1) // 2
    step = min(1.2 * APART, (OTHERS[1] - OTHERS[0]) / max(columns - 1, 1))
    for i, claim in enumerate(others):
        y = LANES[0] if len(others) <= 6 else (LANES[0] - 6, LANES[0] + 6)[i // columns]
        column = i if len(others) <= 6 else i % columns
        marks.append(Mark(claim, round(OTHERS[0] + step * column, 2), y))
    return marks


def interval(claim: Mapping[str, Any]) -> Interval | None:
    """Returns the row of a forest plot for a claim of results.json; each row has its own scale around zero."""
    if not forest.drawable([claim]):
        return None
    ends, ticks, published = (claim["low"], claim["high"]), forest.margins(claim), claim.get("effect")
    largest = max(abs(value) for value in (*ends, claim["estimate"], *ticks, published or 0.0)) or 1.0

    def x(value: float) -> float:
        return round(50 + 46 * value / largest, 2)

    return Interval(
        (x(ends[0]), x(ends[1])),
        x(claim["estimate"]),
        [x(tick) for tick in ticks],
        None if published is None else x(published),
    )

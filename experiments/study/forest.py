"""The forest plot of claims: each effect with its interval, the published effect beside it, colored by verdict."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.study.verdicts import AGREES, DISAGREES, TOO_SMALL, amount, effect
from models.analysis import drawing
from models.analysis.palette import BLACK, GRAY, GREEN, RED

NAME = "forest"
CAPTION = (
    "Each claim's effect with its 95% interval (line), and the published effect where it is a number (diamond). Each "
    "row has its own scale; its numbers are at the right. The vertical tick is the margin of the claim: an effect to "
    "the right of it agrees. Where a claim says that two means are as good as equal, an effect between two ticks does."
)
COLORS = {AGREES: GREEN, DISAGREES: RED, TOO_SMALL: GRAY}
MARKERS = {AGREES: "o", DISAGREES: "X", TOO_SMALL: "o"}
FILLS = {AGREES: GREEN, DISAGREES: RED, TOO_SMALL: "white"}  # a verdict can be told without its color
ROW, WIDTH = 0.42, 11.0  # inches


def drawable(claims: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the claims of results.json that have an effect with an interval."""
    return [claim for claim in claims if all(claim.get(key) is not None for key in ("estimate", "low", "high"))]


def says_equal(claim: Mapping[str, Any]) -> bool:
    """Returns whether a claim of results.json says that two means are as good as equal."""
    return "two one-sided" in claim.get("test", "")


def margins(claim: Mapping[str, Any]) -> list[float]:
    """Returns the margin of a claim of results.json, on both sides where it says that two means are equal."""
    margin = claim.get("margin") or 0.0
    return [margin, -margin] if margin and says_equal(claim) else [margin]


def _marker(verdict: str) -> dict[str, Any]:
    color, fill = COLORS[verdict], FILLS[verdict]
    return {
        "color": color,
        "marker": MARKERS[verdict],
        "markersize": 7,
        "markerfacecolor": fill,
        "markeredgewidth": 1.3,
    }


def write(path: Path, claims: Sequence[Mapping[str, Any]]) -> None:
    """Draws the claims of results.json that have an effect, one per row, into a file."""
    rows = drawable(claims)
    with drawing.figure(path, (WIDTH, 1.1 + ROW * max(len(rows), 1))) as figure:
        draw(figure, rows)


def draw(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws claims that have an effect, one per row."""
    axes = figure.subplots()
    for y, claim in enumerate(rows):
        ends = [claim["low"], claim["high"]]
        ticks, published = margins(claim), claim.get("effect")
        scale = max(abs(v) for v in (*ends, claim["estimate"], *ticks, published or 0.0)) or 1.0
        color = COLORS[claim["verdict"]]
        axes.plot([end / scale for end in ends], [y, y], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.plot(claim["estimate"] / scale, y, **_marker(claim["verdict"]))
        for tick in ticks:
            axes.plot([tick / scale] * 2, [y - 0.3, y + 0.3], color=BLACK, linewidth=1.2)
        texts = [effect(claim)]
        if published is not None:
            axes.plot(published / scale, y, "D", markerfacecolor="none", markeredgecolor=BLACK, markersize=7)
            texts.append(f"published {amount(published, claim['unit'])}")
        axes.text(1.06, y, "\n".join(texts), va="center", fontsize=7.5, color=color)
    axes.axvline(0, color=GRAY, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [textwrap.fill(claim["statement"], 62) for claim in rows], fontsize=8)
    axes.set(xlim=(-1.05, 1.05), ylim=(len(rows) - 0.4, -0.6), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    handles: list[Any] = [Line2D([], [], **_marker(name), label=name) for name in COLORS]
    handles.append(Line2D([], [], color=BLACK, marker="D", markerfacecolor="none", linestyle="", label="published"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)

"""Parts of the report: sections of blocks, which `render` writes in two forms.

A block is a pair (kind, value):

  text      a paragraph
  command   a command line
  missing   (what is not there, the command that makes it)
  verdict   (the verdict on a study at a scale, what would change it or "")
  claims    Claims of a study at a scale
  forest    a Figure of these claims, for the form that does not draw it beside them
  facts     pairs (name, value)
  table     an experiments.study.Table
  figure    a Figure
  page      a Page: Markdown that another command has written
"""

import re
from pathlib import Path
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A PNG; `name` is its own within the report."""

    file: Path
    name: str
    alt: str
    caption: str


class Page(NamedTuple):
    """Markdown without its title, and the folder that its pictures are in; `name` begins their names."""

    text: str
    folder: Path
    name: str


class Interval(NamedTuple):
    """A row of a forest plot: where an effect and its interval are, in percent of the width; zero is at 50.

    Attributes:
      ends: Both ends of the interval.
      estimate: The effect.
      ticks: Margins of the claim.
      published: The published effect; None where it is no number.
    """

    ends: tuple[float, float]
    estimate: float
    ticks: list[float]
    published: float | None


class Claim(NamedTuple):
    """A claim with its verdict, as in results.json, and its anchor in the report.

    Attributes:
      reason: Says why nothing was decided, and how many seeds would decide it; "" where that is unknown.
      interval: Row of the forest plot; None where no interval was measured.
    """

    anchor: str
    study: str
    scale: str
    statement: str
    published: str
    source: str
    expected: str
    ours: str
    verdict: str
    reason: str
    effect: str
    p: str
    interval: Interval | None


class Section(NamedTuple):
    """A heading, its blocks, the sections below it, and blocks after these; `folded` hides all but the heading."""

    anchor: str
    title: str
    blocks: list[tuple[str, Any]]
    children: list["Section"] = []
    rest: list[tuple[str, Any]] = []
    folded: bool = False


class Mark(NamedTuple):
    """A claim in the report's figure: `x` in percent of the width, `y` in pixels."""

    claim: Claim
    x: float
    y: int


class Overview(NamedTuple):
    """A row of the report's figure: a study at a scale, its claims by verdict in the order of `study.VERDICTS`."""

    anchor: str
    study: str
    scale: str
    counts: list[int]
    marks: list[Mark]


class Report(NamedTuple):
    """The whole report; `date` is of the newest result, and `commit` of the code that generated the report.

    Attributes:
      scales: Pairs (scale, what it is) of the scales that have results.
    """

    commit: str
    date: str
    devices: list[str]
    scales: list[tuple[str, str]]
    overview: list[Overview]
    claims: list[Claim]
    sections: list[Section]


def anchor(*parts: Any) -> str:
    """Returns an HTML id for a place in the report."""
    return "-".join(re.sub(r"[\W_]+", "-", str(part).lower()).strip("-") for part in parts)

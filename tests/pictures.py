"""Texts of a figure: where they are drawn, and which of them collide.

with pictures.recorded() as figures:
    results.draw(tmp_path / "x.png")
assert not pictures.collisions(figures[0])
"""

import contextlib
import itertools
from collections.abc import Iterator
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from models.analysis import drawing

SLACK = 1.0  # pixels by which boxes may overlap: they have some empty space around the letters


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Draws a figure and returns its visible texts, each with its box in pixels.

    A text at an angle other than a multiple of 90 degrees has a box that is larger than the text.
    """
    seen: dict[int, Text] = {}
    original = Text.draw

    def draw(self, renderer):
        if self.get_visible() and self.get_text().strip():
            seen[id(self)] = self
        original(self, renderer)

    canvas = FigureCanvasAgg(figure)
    with mock.patch.object(Text, "draw", draw):
        canvas.draw()
    renderer = canvas.get_renderer()
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in seen.values()]


def collisions(figure: Figure) -> list[str]:
    """Returns a line for each two texts that overlap, and for each text that leaves the figure."""
    drawn = texts(figure)
    inside = figure.bbox
    lines = [
        f"{a!r} overlaps {b!r}"
        for (a, one), (b, other) in itertools.combinations(drawn, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > SLACK
        and min(one.y1, other.y1) - max(one.y0, other.y0) > SLACK
    ]
    return lines + [
        f"{text!r} leaves the figure"
        for text, box in drawn
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > inside.x1 + SLACK or box.y1 > inside.y1 + SLACK
    ]


@contextlib.contextmanager
def recorded() -> Iterator[list[Figure]]:
    """Yields a list to which each figure that `drawing.figure` writes is appended."""
    figures: list[Figure] = []
    save = drawing.save

    def remembered(figure, path):
        save(figure, path)
        if not any(figure is earlier for earlier in figures):  # one figure may be written in several formats
            figures.append(figure)

    with mock.patch.object(drawing, "save", remembered):
        yield figures

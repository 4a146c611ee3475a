"""Labels beside points, moved until they hide neither points nor each other."""

from collections.abc import Sequence
from typing import Any

# Directions from a point to its label, as horizontal and vertical steps: the near ones are tried first
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
GAPS = (6.0, 11.0, 20.0, 32.0)  # points between a marker's center and its label
PER_GAP = 12.0  # cost of a longer distance, as an overlap in square pixels
PASSES = 4


def label(axes: Any, points: Sequence[tuple[float, float, str, str]], size: float = 8) -> None:
    """Writes (x, y, text, color) beside each point, where it hides the fewest points, other labels and lines' ends.

    Labels that are not next to their point are joined to it by a line.
    """
    axes.figure.draw_without_rendering()  # fixes the position of the axes
    pixel = axes.figure.dpi / 72
    notes = [axes.text(x, y, text, color=hue, fontsize=size) for x, y, text, hue in points if text]
    named = [point for point in points if point[2]]
    sizes = [(box.width + 4 * pixel, box.height) for box in (note.get_window_extent() for note in notes)]
    for note in notes:
        note.remove()
    inside, centers = axes.get_window_extent(), axes.transData.transform([point[:2] for point in points])
    markers = [(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel) for x, y in centers]
    origins = axes.transData.transform([point[:2] for point in named]) if named else []
    candidates = [
        [(gap, side, _box(origin, extent, side, gap * pixel)) for gap in GAPS for side in SIDES]
        for origin, extent in zip(origins, sizes, strict=True)
    ]
    chosen = [options[0] for options in candidates]
    for _ in range(PASSES):
        for i, options in enumerate(candidates):
            others = [*markers, *(box for n, (_, _, box) in enumerate(chosen) if n != i)]
            chosen[i] = min(options, key=lambda option: _cost(option, others, inside))
    for (x, y, text, hue), (gap, _, box) in zip(named, chosen, strict=True):
        line = {"arrowstyle": "-", "color": hue, "linewidth": 0.6, "alpha": 0.7, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            text,
            (x, y),
            axes.transData.inverted().transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)),
            ha="center",
            va="center",
            color=hue,
            fontsize=size,
            arrowprops=line if gap > GAPS[1] else None,
        )


def _box(origin: Any, size: tuple[float, float], side: tuple[int, int], gap: float) -> tuple[float, ...]:
    """Returns the box (left, bottom, right, top) of a label in pixels, at a side of its point."""
    (x, y), (width, height), (right, up) = origin, size, side
    gap = gap * (0.75 if right and up else 1)
    x += right * (gap + width / 2)
    y += up * (gap + height / 2)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _cost(option: Any, others: Sequence[tuple[float, ...]], inside: Any) -> float:
    """Returns the area that a place of a label shares with others, with a penalty for distance and for leaving."""
    gap, _, (left, bottom, right, top) = option
    shared = sum(
        max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(top, other[3]) - max(bottom, other[1]))
        for other in others
    )
    outside = left < inside.x0 or right > inside.x1 or bottom < inside.y0 or top > inside.y1
    return shared + PER_GAP * GAPS.index(gap) + 1e6 * outside

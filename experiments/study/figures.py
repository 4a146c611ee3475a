"""Drawings that several studies share, on matplotlib axes."""

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullLocator

from experiments.study import Outcomes
from experiments.study.verdicts import deviation, finite, mean
from models.analysis import drawing
from models.analysis.axes import percent_limits, whole_percent
from models.analysis.palette import BLACK
from models.command import FIGURES
from train.plots.figures import tidy

# A legend below its axes, where it covers no data
BELOW: Mapping[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}


class Picture(NamedTuple):
    """A picture: the name of its file, its caption, its size in inches, and the function that draws it."""

    name: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Figure], None]


def write(folder: Path, pictures: Sequence[Picture], earlier: Sequence[str]) -> list[dict[str, str]]:
    """Writes pictures, removes those of an earlier command, and returns their files and captions.

    Args:
      folder: Folder of the files.
      pictures: The pictures.
      earlier: Names that pictures of an earlier command may have.
    """
    for name in earlier:
        for suffix in FIGURES:
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    for picture in pictures:
        with drawing.figure(folder / f"{picture.name}.png", picture.size) as figure:
            picture.draw(figure)
    return [{"file": f"{one.name}.png", "caption": one.caption} for one in pictures]


def finish(
    axes: Axes,
    grid: Literal["major", "minor", "both"] = "major",
    legend: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Sets labels, title and scales, removes unneeded lines, and adds a legend unless its options are None."""
    axes.set(**settings)
    tidy(axes, grid)
    if legend is not None and axes.get_legend_handles_labels()[0]:
        axes.legend(**legend)


def count_of_images(outcomes: Outcomes) -> int:
    """Returns the number of images of the smallest test set; 0 if it is unknown."""
    return min(
        (o.summary["test_examples"] for o in outcomes.all() if o.summary and "test_examples" in o.summary), default=0
    )


def percent_axis(axes: Axes, outcomes: Outcomes, label: str = "test accuracy (%)") -> None:
    """Labels the vertical axis of what has been drawn in percent, and fits it by `percent_limits`."""
    shared = axes.get_shared_y_axes().get_siblings(axes)
    ends = [min(max(end, 0), 100) for one in shared if one.has_data() for end in one.dataLim.intervaly]
    axes.set_ylabel(label)
    axes.set_ylim(percent_limits(ends, count_of_images(outcomes)))
    whole_percent(axes)


def fixed_ticks(axis: Axis, values: Iterable[float], names: Iterable[Any] | None = None) -> None:
    """Writes names, or the values themselves, at these values of an axis, and nothing elsewhere."""
    values = list(values)
    axis.set_ticks(values, [str(name) for name in (values if names is None else names)])
    axis.set_minor_locator(NullLocator())


def number_ticks(axes: Axes, names: Sequence[Any]) -> None:
    """Writes names at 0, 1, … on the horizontal axis."""
    fixed_ticks(axes.xaxis, range(len(names)), names)


def legend_below(figure: Figure | SubFigure, *panels: Axes, ncols: int = 0, **options: Any) -> None:
    """Puts one legend below all panels, with the labels of `panels`, in one row unless `ncols` is set."""
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if handles:
        options = {"loc": "outside lower center", "ncols": ncols or len(handles), **options}
        figure.legend(handles.values(), handles.keys(), **options)


def curves(
    axes: Axes, outcomes: Iterable[Any], split: str, metric: str, label: str, scale: float = 1, **style: Any
) -> None:
    """Draws a metric against the step, one line per run; the first line has the label."""
    histories = [outcome.history.get(split, {}) for outcome in outcomes]
    lines_by(axes, [(h.get("step", []), [scale * v for v in h.get(metric, [])]) for h in histories], label, **style)


def lines_by(axes: Axes, runs: Iterable[tuple[Any, Any]], label: str, *style: str, **styles: Any) -> None:
    """Draws (x, y) of each run in one style; the first line has the label."""
    for i, (x, y) in enumerate(runs):
        axes.plot(x, y, *style, label=label if i == 0 else None, **styles)


def errorbars(
    axes: Axes,
    places: Iterable[float],
    runs: Sequence[Sequence[float]],
    scale: float = 100,
    sideways: bool = False,
    **style: Any,
) -> None:
    """Draws mean and standard deviation of the finite values at each place; in percent if `scale` is 100.

    Places are on the horizontal axis; if `sideways`, on the vertical one.
    """
    points = [(at, [scale * v for v in good]) for at, run in zip(places, runs, strict=True) if (good := finite(run))]
    if points:
        at = [place for place, _ in points]
        means, deviations = ([function(v) for _, v in points] for function in (statistics.mean, deviation))
        x, y = (means, at) if sideways else (at, means)
        axes.errorbar(x, y, **{"xerr" if sideways else "yerr": deviations, "marker": "o", **style})


def band(axes: Axes, x: Sequence[float], runs: Sequence[Sequence[float]], scale: float = 100, **style: Any) -> None:
    """Draws the mean of curves, one curve per run over the same x, in a band of one standard deviation."""
    if runs:
        columns = [[scale * value for value in column] for column in zip(*runs, strict=True)]
        (line,) = axes.plot(x, [mean(column) for column in columns], **style)
        low, high = ([mean(column) + sign * deviation(column) for column in columns] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def history_band(axes: Axes, outcomes: Iterable[Any], split: str, metric: str, scale: float, **style: Any) -> None:
    """Draws a metric against the step as a `band`, over the runs that ended."""
    histories = [outcome.history[split] for outcome in outcomes if outcome.summary and split in outcome.history]
    if histories:
        band(axes, histories[0]["step"], [history[metric] for history in histories], scale, **style)


def bars_by(
    axes: Axes,
    groups: Mapping[str, Sequence[Sequence[float]]],
    colors: Mapping[str, str],
    width: float = 0.8,
    scale: float = 100,
    labels: Mapping[str, str] | None = None,
    **style: Any,
) -> None:
    """Draws means as bars at 0, 1, …, with standard deviations; the groups stand side by side within `width`."""
    bar_width = width / max(len(groups), 1)
    for i, (name, runs) in enumerate(groups.items()):
        bars = [(at, [scale * value for value in finite(run)]) for at, run in enumerate(runs) if finite(run)]
        axes.bar(
            [at + (i - len(groups) / 2 + 0.5) * bar_width for at, _ in bars],
            [statistics.mean(values) for _, values in bars],
            bar_width,
            yerr=[deviation(values) for _, values in bars],
            color=colors[name],
            label=(labels or {}).get(name, name),
            **style,
        )


def dots(axes: Axes, x: float, values: Sequence[float], color: str, half: float = 0.3) -> None:
    """Draws each value in percent around x, equal ones side by side, and their mean as a line of half width `half`."""
    points = [100 * value for value in finite(values)]
    counts = collections.Counter(round(point, 6) for point in points)
    step = min(0.09, 2 * half / max(counts.values(), default=1))
    for point, count in counts.items():
        places = [x + (i - (count - 1) / 2) * step for i in range(count)]
        axes.plot(places, [point] * count, "o", color=color, alpha=0.65, markeredgewidth=0)
    if points:
        axes.hlines(statistics.mean(points), x - half, x + half, color=BLACK, linewidth=1.5)


def heatmap(
    axes: Axes,
    image: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    dark: Callable[[float], bool],
    digits: int = 1,
    texts: Sequence[Sequence[str]] | None = None,
    **style: Any,
) -> AxesImage:
    """Draws a heat map with its numbers, or `texts`, white where `dark(value)`; returns it for a colorbar."""
    heat = axes.imshow(image, aspect="auto", origin="lower", **style)
    for y, row in enumerate(image):
        for x, value in enumerate(row):
            text = texts[y][x] if texts else f"{value:.{digits}f}"
            axes.text(x, y, text, ha="center", va="center", color="white" if dark(value) else "black")
    fixed_ticks(axes.xaxis, range(len(columns)), columns)
    fixed_ticks(axes.yaxis, range(len(rows)), rows)
    return heat


def panels_by(figure: Figure | SubFigure, count: int, **options: Any) -> list[Axes]:
    """Returns the panels of one row: `count` of them, but at least one."""
    return list(figure.subplots(1, max(count, 1), squeeze=False, **options)[0])

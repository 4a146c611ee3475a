"""Drawings that several studies share, on matplotlib axes."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from experiments.study import Outcomes
from experiments.study.verdicts import deviation, finite
from train.plots.figures import tidy


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


def legend_below(figure: Figure | SubFigure, axes: Axes, ncols: int = 0, **options: Any) -> None:
    """Puts one legend below all panels, with the labels of `axes`, in one row unless `ncols` is set."""
    handles, names = axes.get_legend_handles_labels()
    options = {"ncols": ncols or len(names), **options}
    if handles:
        figure.legend(handles, names, loc="outside lower center", **options)


def number_ticks(axes: Axes, names: Sequence[Any], **style: Any) -> None:
    """Writes names at 0, 1, … on the horizontal axis."""
    axes.set_xticks(range(len(names)), [str(name) for name in names], **style)


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
    axes: Axes, x: Iterable[float], runs: Sequence[Sequence[float]], scale: float = 100, **style: Any
) -> None:
    """Draws mean and standard deviation of the finite values at each x; in percent if `scale` is 100."""
    points = [(at, [scale * v for v in good]) for at, run in zip(x, runs, strict=True) if (good := finite(run))]
    if points:
        means, deviations = ([function(v) for _, v in points] for function in (statistics.mean, deviation))
        style = {"marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.4, **style}
        axes.errorbar([at for at, _ in points], means, deviations, **style)


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


def dots(axes: Axes, x: float, values: Sequence[float], color: str, half: float, line: Mapping[str, Any]) -> None:
    """Draws each value in percent at x, and their mean as a line of half width `half`."""
    points = [100 * value for value in finite(values)]
    axes.plot([x] * len(points), points, "o", color=color, alpha=0.6)
    if points:
        axes.hlines(statistics.mean(points), x - half, x + half, **line)


def heatmap(
    axes: Axes,
    image: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    dark: Callable[[float], bool],
    fontsize: float | None = None,
    digits: int = 1,
    **style: Any,
) -> AxesImage:
    """Draws a heat map with its numbers, white where `dark(value)`, and returns it for a colorbar."""
    heat = axes.imshow(image, aspect="auto", origin="lower", **style)
    for y, row in enumerate(image):
        for x, value in enumerate(row):
            color = "white" if dark(value) else "black"
            axes.text(x, y, f"{value:.{digits}f}", ha="center", va="center", fontsize=fontsize, color=color)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    return heat


def panels_by(figure: Figure | SubFigure, count: int, **options: Any) -> list[Axes]:
    """Returns the panels of one row: `count` of them, but at least one."""
    return list(figure.subplots(1, max(count, 1), squeeze=False, **options)[0])


def mean_line(outcomes: Outcomes, split: str, metric: str) -> tuple[list[float], list[float]] | None:
    """Returns the steps and the metric's mean over runs; None if every run diverged."""
    histories = [outcome.history[split] for outcome in outcomes if outcome.summary]
    if not histories:
        return None
    return histories[0]["step"], [statistics.mean(v) for v in zip(*(h[metric] for h in histories), strict=True)]

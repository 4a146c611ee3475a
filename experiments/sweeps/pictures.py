"""Pictures of a sweep: lines, bars, heat maps, scatter plots, and the rungs of successive halving."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.study import figures
from experiments.study.figures import Picture
from experiments.study.verdicts import deviation, finite, mean
from experiments.sweeps import effects
from experiments.sweeps.effects import Point
from experiments.sweeps.halving import Result
from experiments.sweeps.metric import Metric
from models.analysis.axes import percent_limits
from models.analysis.palette import BLUE, COLORS, GRAY, RED

NAMES = ("lines", "bars", "heatmap", "scatter", "halving")  # of files
PANELS = 3  # keys of a scatter plot


def choose(results: Sequence[Result], names: Sequence[str], metric: Metric, is_random: bool) -> list[Picture]:
    """Returns the pictures of a sweep: by its key, or by the two keys that matter most."""
    every, examples = effects.points(results, metric), _examples(results)
    points = [point for point in every if finite(point.values)]
    ordered = effects.by_importance(points, names)
    pictures = []
    if ordered and points:
        pictures += (
            _scatter(points, ordered, metric, examples) if is_random else _of_grid(points, ordered, metric, examples)
        )
    if max(len(result.rungs) for result in results) > 1:
        caption = f"{_first_upper(metric.label)} of each setting at the rungs; the best setting in color."
        pictures.append(
            Picture("halving", caption, (7.0, 4.2), lambda figure: _halving(figure, results, metric, examples))
        )
    diverged = any(len(finite(point.values)) < len(point.values) for point in every)
    return [one._replace(caption=one.caption + " Seeds that diverged are left out." * diverged) for one in pictures]


def _examples(results: Sequence[Result]) -> int:
    """Returns the number of test examples; 0 if the summaries do not tell."""
    summaries = [outcome.summary for result in results for outcome in result.rungs[0] if outcome.summary]
    return min((summary.get("test_examples", 0) for summary in summaries), default=0)


def _limits(values: Sequence[float], metric: Metric, examples: int) -> tuple[float, float] | None:
    """Returns limits of an axis of a metric, which zooms in no further than the test set resolves; None for losses."""
    return percent_limits([100 * value for value in finite(values)], examples) if metric.is_share else None


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_grid(points: Sequence[Point], ordered: Sequence[str], metric: Metric, examples: int) -> list[Picture]:
    """Returns the pictures of a sweep over every combination."""
    what, rest = _first_upper(metric.label), f", over all values of {', '.join(ordered[2:])}" * (len(ordered) > 2)
    over = f"mean and standard deviation over seeds{rest}"
    numeric = [name for name in ordered[:2] if all(map(effects.is_number, effects.distinct(points, name)))]
    if not numeric:
        caption = f"{what} by {' and '.join(ordered[:2])}: {over}. The axis need not begin at 0."

        def draw(figure: Figure) -> None:
            _bars(figure, points, ordered[:2], metric, examples)

        pictures = [Picture("bars", caption, (6.5, 4.2), draw)]
    else:
        x = max(numeric, key=lambda name: len(effects.distinct(points, name)))
        names = [x, *(name for name in ordered[:2] if name != x)]
        caption = f"{what} by {' and '.join(names)}: {over}."

        def draw(figure: Figure) -> None:
            _lines(figure, points, names, metric, examples)

        pictures = [Picture("lines", caption, (6.5, 4.2), draw)]
    if len(ordered) > 1:
        columns, rows = (len(effects.distinct(points, name)) for name in ordered[:2])
        size = (2.8 + 0.9 * columns, 1.6 + 0.6 * rows)
        caption = f"{what} by {ordered[0]} and {ordered[1]}: mean over seeds{rest}."

        def heat(figure: Figure) -> None:
            _heatmap(figure, points, ordered[:2], metric, examples)

        pictures.append(Picture("heatmap", caption, size, heat))
    return pictures


def _values(points: Sequence[Point], **labels: Any) -> list[float]:
    """Returns the values of all seeds of the settings with these labels."""
    chosen = [p for p in points if all(effects.shown(p.labels[name]) == value for name, value in labels.items())]
    return [value for point in chosen for value in point.values]


def _scale(metric: Metric) -> float:
    return 100 if metric.is_share else 1


def _axis(axes: Axes, which: str, points: Sequence[Point], name: str) -> Callable[[Any], float]:
    """Labels an axis by a key, and returns a function that gives a value's place on it."""
    values = effects.distinct(points, name)
    getattr(axes, f"set_{which}label")(name.replace("_", " "))
    if not all(map(effects.is_number, values)):
        getattr(axes, f"set_{which}ticks")(range(len(values)), [str(value) for value in values])
        getattr(axes, f"set_{which}lim")(-0.5, len(values) - 0.5)
        return values.index
    if effects.is_logarithmic(values):
        getattr(axes, f"set_{which}scale")("log")
    if len(values) <= effects.MANY:
        getattr(axes, f"set_{which}ticks")(values, [f"{value:g}" for value in values])
        getattr(axes, f"set_{which}ticks")([], minor=True)
    return float


def _lines(figure: Figure, points: Sequence[Point], names: Sequence[str], metric: Metric, examples: int) -> None:
    """Draws the metric by a numeric key: a line for each value of the other key, its spread, and every seed."""
    axes, (x, *others) = figure.subplots(), names
    places, scale = effects.distinct(points, x), _scale(metric)
    _axis(axes, "x", points, x)
    lines = effects.distinct(points, others[0]) if others else [None]
    for i, line in enumerate(lines):
        color = COLORS[i] if len(lines) <= len(COLORS) else colormaps["viridis"](i / (len(lines) - 1))
        runs = [_values(points, **{x: place, **({others[0]: line} if others else {})}) for place in places]
        if others:  # error bars would cover each other
            _band(axes, places, runs, scale, color, f"{others[0].replace('_', ' ')} {line}")
        else:
            figures.errorbars(axes, places, runs, scale, color=color)
        for place, values in zip(places, runs, strict=True):
            dots = [scale * value for value in finite(values)]
            axes.plot([place] * len(dots), dots, ".", color=color, alpha=0.6, markersize=4)
    values = [value for point in points for value in point.values]
    figures.finish(axes, ylabel=metric.label, ylim=_limits(values, metric, examples))
    if others:
        figures.legend_below(figure, axes, ncols=min(4, len(lines)))


def _band(
    axes: Axes, places: Sequence[float], runs: Sequence[Sequence[float]], scale: float, color: Any, label: str
) -> None:
    """Draws means as a line, and standard deviations as a band around it."""
    kept = [(place, run) for place, run in zip(places, runs, strict=True) if finite(run)]
    x, means = [place for place, _ in kept], [scale * mean(run) for _, run in kept]
    widths = [scale * deviation(run) for _, run in kept]
    axes.plot(x, means, color=color, label=label, marker="o", markersize=4, linewidth=1.4)
    low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)


def _bars(figure: Figure, points: Sequence[Point], names: Sequence[str], metric: Metric, examples: int) -> None:
    """Draws the metric as bars: groups by the first key, colors by the second."""
    axes, (x, *others) = figure.subplots(), names
    places = effects.distinct(points, x)
    bars = effects.distinct(points, others[0]) if others else [""]
    groups = {
        str(bar): [_values(points, **{x: place, **({others[0]: bar} if others else {})}) for place in places]
        for bar in bars
    }
    colors = {str(bar): COLORS[i % len(COLORS)] for i, bar in enumerate(bars)}
    labels = {str(bar): f"{others[0].replace('_', ' ')} {bar}" for bar in bars} if others else None
    figures.bars_by(axes, groups, colors, scale=_scale(metric), labels=labels, capsize=3)
    figures.number_ticks(axes, places)
    every = [value for runs in groups.values() for run in runs for value in finite(run)]
    low, high = _scale(metric) * min(every), _scale(metric) * max(every)
    margin = 0.35 * (high - low) or 0.05 * abs(high) or 1
    limits = (max(0, low - margin) if low >= 0 else low - margin, high + margin)
    limits = _limits(every, metric, examples) or limits
    figures.finish(axes, xlabel=x.replace("_", " "), ylabel=metric.label, ylim=limits)
    if others:
        figures.legend_below(figure, axes, ncols=min(4, len(bars)))


def _heatmap(figure: Figure, points: Sequence[Point], names: Sequence[str], metric: Metric, examples: int) -> None:
    """Draws the mean metric by two keys."""
    axes, (column, row) = figure.subplots(), names
    columns, rows = (effects.distinct(points, name) for name in names)
    image = [[_scale(metric) * mean(_values(points, **{row: r, column: c})) for c in columns] for r in rows]
    cells = finite(value for line in image for value in line)
    low, high = _limits([value / 100 for value in cells], metric, examples) or (min(cells), max(cells))
    heat = figures.heatmap(
        axes,
        image,
        [f"{value:g}" if effects.is_number(value) else value for value in rows],
        [f"{value:g}" if effects.is_number(value) else value for value in columns],
        lambda value: (value < (low + high) / 2) != metric.lower,
        digits=1 if metric.is_share or high <= low else max(0, min(4, 2 - math.floor(math.log10(high - low)))),
        cmap="viridis_r" if metric.lower else "viridis",
        vmin=low,
        vmax=high,
    )
    axes.set(xlabel=column.replace("_", " "), ylabel=row.replace("_", " "))
    figure.colorbar(heat, ax=axes, label=metric.label)


def _scatter(points: Sequence[Point], ordered: Sequence[str], metric: Metric, examples: int) -> list[Picture]:
    """Returns the picture of random draws: a panel for each of the keys that matter most, and one of two keys."""
    keys = ordered[:PANELS]
    panels = len(keys) + (len(keys) > 1)
    caption = (
        f"{_first_upper(metric.label)} of each setting by {', '.join(keys)}: mean and standard deviation over seeds"
    )
    caption += f"; by {keys[0]} and {keys[1]} in color." if len(keys) > 1 else "."

    def draw(figure: Figure) -> None:
        axes = figures.panels_by(figure, panels)
        scale = _scale(metric)
        for panel, name in zip(axes, keys, strict=False):
            place = _axis(panel, "x", points, name)
            places = [place(effects.shown(point.labels[name])) for point in points]
            figures.errorbars(panel, places, [point.values for point in points], scale, linestyle="", color=BLUE)
            limits = _limits([value for point in points for value in point.values], metric, examples)
            figures.finish(panel, ylabel=metric.label, ylim=limits)
        if len(keys) > 1:
            panel = axes[-1]
            x, y = (_axis(panel, which, points, name) for which, name in zip("xy", keys, strict=False))
            low, high = _limits([point.mean for point in points], metric, examples) or (None, None)
            heat = panel.scatter(
                [x(effects.shown(point.labels[keys[0]])) for point in points],
                [y(effects.shown(point.labels[keys[1]])) for point in points],
                c=[scale * point.mean for point in points],
                cmap="viridis_r" if metric.lower else "viridis",
                vmin=low,
                vmax=high,
                s=45,
                edgecolors="white",
                linewidths=0.5,
            )
            figures.finish(panel)
            figure.colorbar(heat, ax=panel, label=metric.label)

    return [Picture("scatter", caption, (4.2 * panels, 3.8), draw)]


def _halving(figure: Figure, results: Sequence[Result], metric: Metric, examples: int) -> None:
    """Draws the mean metric of each setting against the steps at the rungs."""
    axes = figure.subplots()

    def curve(result: Result) -> tuple[list[float], list[float]]:
        reached = [rung for rung in result.rungs if finite(metric.values(rung))]
        steps = [next(outcome.summary["steps"] for outcome in rung if outcome.summary) for rung in reached]
        return steps, [_scale(metric) * metric.mean(rung) for rung in reached]

    best = min(results, key=lambda result: (-len(result.rungs), metric.key(result.last)))
    others = [curve(result) for result in results if result is not best]
    figures.lines_by(axes, others, "the others", color=GRAY, alpha=0.5, marker="o", markersize=4, linewidth=1)
    figures.lines_by(axes, [curve(best)], best.setting.name, color=RED, marker="o", markersize=5)
    ticks = sorted({step for steps, _ in [*others, curve(best)] for step in steps})
    axes.set_xscale("log")
    if len(ticks) <= effects.MANY:
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
    means = [metric.mean(rung) for result in results for rung in result.rungs]
    figures.finish(axes, xlabel="step", ylabel=metric.label, ylim=_limits(means, metric, examples))
    figures.legend_below(figure, axes)

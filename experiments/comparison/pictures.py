"""Pictures of a comparison: curves with their spread over seeds, and the results of every seed."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.comparison.groups import Comparison, Group
from experiments.comparison.results import difference
from experiments.study.figures import Picture
from experiments.sweeps.metric import SHARES, Metric
from models.analysis.axes import percent_limits, whole_percent
from models.analysis.palette import BLACK, BLUE, COLORS, GRAY
from train.plots.figures import tidy

DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))  # of the first eight groups, the next eight, …
MOST_ROWS = 60  # groups in the picture of results
MOST_NAMED = 16  # groups above which only the best are named
BEST = 8  # groups that are named then
Lines = list[tuple[np.ndarray, np.ndarray]]  # steps and values
FILES = ("curves", "results", "disagreement", "disagreements")  # of pictures, by name


class Style(NamedTuple):
    """The look of a group's lines; an empty label for a group that is not named."""

    color: Any
    dash: Any
    label: str


def styles(comparison: Comparison, metric: Metric) -> list[Style]:
    """Returns the look of each group: colors, then dashes; of many groups, only the best ones stand out."""
    groups = comparison.groups
    named = list(range(len(groups)))
    if len(groups) > MOST_NAMED:

        def key(i: int) -> float:
            values = groups[i].values(metric.name)
            return math.inf if not values else float(np.mean(values)) * (1 if metric.lower else -1)

        named = sorted(sorted(named, key=key)[:BEST])
    looks = [Style("0.75", "-", "")] * len(groups)
    for number, i in enumerate(named):
        looks[i] = Style(COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)], groups[i].name)
    return looks


# -- curves --------------------------------------------------------------------------------------------------


def curves(comparison: Comparison, metric: Metric) -> Picture | None:
    """Returns the picture of the curves; None if no run has any."""
    panels = _panels(comparison, metric)
    if not panels:
        return None
    count, looks = len(comparison.groups), styles(comparison, metric)
    several = any(len(group.finished) > 1 for group in comparison.groups)
    caption = (
        "Mean over seeds; the band reaches from the lowest seed to the highest." if several else "One line per run."
    )
    if any(not run.is_finished for run in comparison.runs):
        caption += " Dotted lines that end in a cross are runs that did not finish."
    if count > MOST_NAMED:
        caption += f" The {BEST} best of {count} groups are named, the others gray."
    width = max(4.2 * len(panels), 5.5)
    columns = max(1, int(width / (0.65 + 0.075 * max(len(look.label) for look in looks))))
    rows = -(-sum(bool(look.label) for look in looks) // columns)
    return Picture(
        "curves",
        caption,
        (width, 3.1 + 0.19 * rows),
        lambda figure: draw_curves(figure, comparison, panels, looks, columns),
    )


def _panels(comparison: Comparison, metric: Metric) -> list[tuple[str, Metric]]:
    """Returns (split, metric) of each panel: those that have a curve of at least two points."""
    names = [metric.name, *(name for name in ("accuracy", "hit") if metric.name not in ("accuracy", "hit"))]
    wanted = [("test", Metric(name)) for name in (*dict.fromkeys(names), "loss")] + [("train", Metric("loss"))]
    wanted = [pair for i, pair in enumerate(wanted) if pair not in wanted[:i]]
    return [(split, one) for split, one in wanted if any(len(r.curve(split, one.name)[0]) > 1 for r in comparison.runs)]


def draw_curves(
    figure: Figure, comparison: Comparison, panels: Sequence[tuple[str, Metric]], looks: Sequence[Style], columns: int
) -> None:
    """Draws a panel for each metric, with one color per group, and one legend below."""
    named = sum(bool(look.label) for look in looks)
    band = 0.2 if named <= 4 else 0.12 if named <= 8 else 0.07  # opacity
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (split, metric) in zip(every, panels, strict=True):
        drawn = [
            _draw_group(axes, group, split, metric, look, band)
            for group, look in sorted(zip(comparison.groups, looks, strict=True), key=lambda pair: bool(pair[1].label))
        ]
        lines = [line for whole, _ in drawn for line in whole] or [line for _, rest in drawn for line in rest]
        _finish(axes, split, metric, lines, _examples(comparison.groups))
    handles, labels = every[0].get_legend_handles_labels()
    order = {look.label: i for i, look in enumerate(looks)}
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: order[pair[1]])
    if pairs:
        figure.legend(
            [handle for handle, _ in pairs],
            [label for _, label in pairs],
            loc="outside lower center",
            ncols=min(columns, len(pairs)),
            handlelength=2.8,  # shows dashes
        )


def _draw_group(axes: Axes, group: Group, split: str, metric: Metric, look: Style, band: float) -> tuple[Lines, Lines]:
    """Draws a group's mean and spread, and its unfinished runs; returns the ends of the spread, and these runs."""
    scale, whole = 100 if metric.is_share else 1, group.finished
    line = {"color": look.color, "linewidth": 1.6 if look.label else 0.8, "linestyle": look.dash}
    steps, values = aligned([run.curve(split, metric.name) for run in whole])
    drawn, rest = [], []
    if len(steps):
        values = scale * values
        zorder = 3 if look.label else 1
        axes.plot(steps, values.mean(0), label=look.label or None, zorder=zorder, **line, **_marker(steps))
        if look.label and len(values) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=look.color, alpha=band, linewidth=0, zorder=2)
        drawn = [(steps, values.min(0)), (steps, values.max(0))]
    for number, run in enumerate(run for run in group.runs if run not in whole):
        x, y = (np.asarray(part, float) for part in run.curve(split, metric.name))
        if len(x):
            label = look.label if look.label and not len(steps) and not number else None
            axes.plot(x, scale * y, **{**line, "linestyle": ":", "linewidth": 1.1}, label=label, zorder=3)
            axes.plot(x[-1:], scale * y[-1:], "x", color=look.color, markersize=5, zorder=3)
            rest.append((x, scale * y))
    return drawn, rest


def _marker(steps: np.ndarray) -> dict[str, Any]:
    return {"marker": "o", "markersize": 2.5} if len(steps) <= 12 else {}


def aligned(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps that all runs have reached, and the values there, [runs, steps], by linear interpolation.

    Runs of one config log the same steps, so that nothing is interpolated.

    Args:
      runs: (steps, values) of each run; those without any are left out.
    """
    kept = [(np.asarray(x, float), np.asarray(y, float)) for x, y in runs if len(x)]
    if not kept:
        return np.zeros(0), np.zeros((0, 0))
    low, high = max(x[0] for x, _ in kept), min(x[-1] for x, _ in kept)
    steps = np.unique(np.concatenate([x for x, _ in kept]))
    steps = steps[(steps >= low) & (steps <= high)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in kept])


def _finish(axes: Axes, split: str, metric: Metric, lines: Lines, examples: int) -> None:
    """Labels a panel; a loss is shown on a logarithmic scale, and a share where its later part is.

    Args:
      axes: The panel.
      split: Split of the metric.
      metric: The metric.
      lines: Lines for which there must be room; others may leave the panel.
      examples: Number of test examples, see `percent_limits`.
    """
    name = metric.name.replace("_", " ")
    unit = " (%)" if metric.name.startswith(SHARES) else " (nats)" if metric.name == "loss" else ""
    axes.set(xlabel="step", ylabel=f"{'training' if split == 'train' else 'test'} {name}{unit}")
    values = np.concatenate([y for _, y in lines]) if lines else np.zeros(0)
    if metric.name == "loss" and len(values) and values.min() > 0 and values.max() / values.min() > 4:
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 1.3, values.max() * 1.3)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if values.max() / values.min() < 30 and _leads(value) else "")
        )
    elif metric.is_share and len(values):
        late = [y[x >= x[0] + 0.25 * (x[-1] - x[0])] for x, y in lines]
        low, high = min(float(y.min()) for y in late), float(values.max())
        axes.set_ylim(*percent_limits([low, high], examples))
        whole_percent(axes)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    tidy(axes)


def _examples(groups: Sequence[Group]) -> int:
    """Returns the number of examples of the smallest test set that is known, or 0."""
    return min((group.test.examples for group in groups if group.test.examples), default=0)


def _leads(value: float) -> bool:
    """Returns whether a number begins with 2 or 5, for labels between powers of ten."""
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9)) in (2, 5)


# -- results -------------------------------------------------------------------------------------------------


def results(comparison: Comparison, metric: Metric) -> Picture | None:
    """Returns the picture of each seed's result; None if there are not two groups with results."""
    groups = [group for group in comparison.groups if group.values(metric.name)]
    if len(groups) < 2:
        return None
    first, count = comparison.groups[0], len(groups)
    groups = groups[:MOST_ROWS]
    compared = any(difference(group, first, metric) for group in groups)
    caption = "Each dot is a seed, each bar the mean over seeds."
    caption += " Right: difference of means to the first group, with Welch's 95% interval." * compared
    caption += f" The first {MOST_ROWS} of {count} groups." * (count > MOST_ROWS)
    size = (8.2 if compared else 5.6, 1.0 + 0.27 * len(groups))
    return Picture("results", caption, size, lambda figure: draw_results(figure, groups, first, metric, compared))


def draw_results(figure: Figure, groups: Sequence[Group], first: Group, metric: Metric, compared: bool) -> None:
    """Draws a row per group: its seeds and their mean, and beside them the difference to the first group."""
    scale, (left, *others) = (
        100 if metric.is_share else 1,
        figure.subplots(1, 1 + compared, sharey=True, squeeze=False)[0],
    )
    for row, group in enumerate(groups):
        values = scale * np.asarray(group.values(metric.name))
        left.plot(values, row + swarm(values), "o", color=BLUE, alpha=0.55, markersize=5, markeredgewidth=0)
        left.vlines(values.mean(), row - 0.32, row + 0.32, color=BLACK, linewidth=1.8)
        found = difference(group, first, metric)
        if found and others:
            center, ends = (
                scale * found.estimate,
                [[scale * (found.estimate - found.low)], [scale * (found.high - found.estimate)]],
            )
            others[0].errorbar([center], [row], xerr=ends, fmt="o", color=BLUE, markersize=5, capsize=3, linewidth=1.4)
    left.set_yticks(range(len(groups)), [group.name for group in groups])
    left.set_ylim(len(groups) - 0.4, -0.6)
    left.set_xlabel(f"test {metric.label}")
    if metric.is_share:
        left.set_xlim(*percent_limits([100 * v for g in groups for v in g.values(metric.name)], _examples(groups)))
    for axes in others:
        axes.axvline(0, color=GRAY, linewidth=1, zorder=0)
        axes.set_xlabel("difference to the first" + " (points)" * metric.is_share)
        axes.tick_params(labelleft=False)
    for axes in (left, *others):
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        tidy(axes)
        axes.grid(axis="y", visible=False)


def swarm(values: np.ndarray, step: float = 0.13) -> np.ndarray:
    """Returns vertical offsets that keep equal values apart, around 0."""
    offsets = np.zeros(len(values))
    for value in np.unique(values):
        (equal,) = np.nonzero(values == value)
        offsets[equal] = step * (np.arange(len(equal)) - (len(equal) - 1) / 2)
    return np.clip(offsets, -0.4, 0.4)

"""The figure of a run's training: loss, accuracy and learning rate against the step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from models.analysis import axes as scales
from models.analysis import drawing
from models.analysis.palette import BLUE, GRAY, RED
from train.plots.figures import tidy

PANELS = {  # metric: title of its panel, label of its axis
    "loss": ("loss", "loss (nats)"),
    "accuracy": ("accuracy", "accuracy (%)"),
    "hit": ("hits", "top answer is present (%)"),
    "learning_rate": ("learning rate", "learning rate"),
}
SHARES = ("accuracy", "hit")  # drawn in percent
MANY = 25  # points of a line, from which they get no markers
STYLES: Mapping[str, Mapping[str, Any]] = {
    "train": {"color": BLUE, "linestyle": "-", "marker": "."},
    "test": {"color": RED, "linestyle": "--", "marker": "o", "markerfacecolor": "white", "zorder": 3},
}


def curves(lines: Sequence[Mapping[str, Any]], path: Path, examples: int = 0, epoch: float = 0) -> None:
    """Draws loss, accuracy (or hits) and learning rate against the step, for training and test.

    Args:
      lines: the lines of metrics.jsonl.
      path: PNG to write.
      examples: number of test examples, which limits how far the axis of the accuracy zooms in; 0 if unknown.
      epoch: steps per epoch, for a second axis; 0 for none.
    """
    names = [name for name in PANELS if any(name in line for line in lines)]
    with drawing.figure(path, (3.7 * max(1, len(names)), 3.5)) as figure:
        panels = figure.subplots(1, len(names), squeeze=False)[0] if names else []
        figure.set_layout_engine("constrained", wspace=0.05)
        for axes, name in zip(panels, names, strict=True):
            _draw(axes, name, lines, examples)
            if epoch:
                over = axes.secondary_xaxis("top", functions=(lambda step: step / epoch, lambda number: number * epoch))
                over.set_xlabel("epoch", color=GRAY)
                over.tick_params(colors=GRAY)
                over.spines["top"].set_visible(False)
                scales.thousands(over)
        handles = {
            label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)


def _draw(axes: Axes, name: str, lines: Sequence[Mapping[str, Any]], examples: int) -> None:
    """Draws the panel of one metric."""
    scale, values = 100 if name in SHARES else 1, []
    for split, style in STYLES.items():
        points = [(line["step"], scale * line[name]) for line in lines if line["split"] == split and name in line]
        if not points:
            continue
        values += [value for _, value in points]
        style = {**style, "marker": style["marker"] if len(points) <= MANY else ""}
        if name == "learning_rate":  # belongs to neither split
            axes.plot(*zip(*points, strict=True), color=GRAY, marker=style["marker"])
        else:
            axes.plot(*zip(*points, strict=True), label={"train": "training"}.get(split, split), **style)
    axes.set_title(_title(name, lines), loc="left")
    axes.set(xlabel="step", ylabel=PANELS[name][1], xlim=(0, 1.03 * max(1, *(line["step"] for line in lines))))
    scales.thousands(axes)
    axes.locator_params(axis="x", nbins=5)
    if name in SHARES:
        axes.set_ylim(scales.percent_limits(values, examples))
        scales.whole_percent(axes)
    elif name == "loss" and scales.is_wide(values):
        scales.logarithmic(axes, "y")
    else:
        axes.set_ylim(bottom=min(0, *values, 0), top=1.08 * max(values) if max(values, default=0) > 0 else None)
    tidy(axes)


def _title(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the title of a panel, with the last test value, and the best one if that is another."""
    points = [(line["step"], line[name]) for line in lines if line["split"] == "test" and name in line]
    if not points:
        return PANELS[name][0]
    better = min if name == "loss" else max
    step, best = better(points, key=lambda point: point[1])

    def text(value: float) -> str:
        return f"{100 * value:.1f}%" if name in SHARES else f"{value:.3g}"

    title = f"test {PANELS[name][0]} {text(points[-1][1])}"
    return f"{title}, best {text(best)} at step {step:,}" if text(best) != text(points[-1][1]) else title

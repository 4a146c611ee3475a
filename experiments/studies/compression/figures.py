"""Pictures of the study of compression."""

import collections
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from experiments.studies.compression.measures import CUTS
from experiments.studies.compression.results import curve_at, low_bits, points_of, sparsities_of, stage_of
from experiments.study import Outcomes, deviation
from experiments.study.figures import (
    bars_by,
    errorbars,
    finish,
    fixed_ticks,
    legend_below,
    lines_by,
    number_ticks,
    panels_by,
    percent_axis,
)
from models.analysis.axes import logarithmic
from models.analysis.palette import BLUE, BROWN, CYAN, GRAY, GREEN, LIGHT_BLUE, PINK, RED, YELLOW
from train.plots.figures import sensitivity_lines

PARTS = {
    "values": GRAY,
    "indices": RED,
    "signs": PINK,
    "jumps": BLUE,
    "codebook": YELLOW,
    "scales": CYAN,
    "tables": GREEN,
    "header": BROWN,
}
KINDS = {  # kind of weights -> (name, color)
    "full": ("full precision", GRAY),
    "full, longer": ("full precision, longer", BROWN),
    "ternary": ("ternary weights", BLUE),
    "binary weights": ("binary weights", YELLOW),
    "full, preactivation": ("full precision, pre-activation", LIGHT_BLUE),
    "XNOR": ("XNOR-Net", RED),
}
NAMES = {"cut": "without retraining", "taught": "step by step, with a teacher"}  # of ways to prune
Point = tuple[float, float]


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against the share of kept weights."""
    axes, styles = figure.subplots(), {"cut": ":", "at once": "--", "step by step": "-", "taught": "-."}
    ticks = sorted({s for s in (*CUTS, *sparsities_of(outcomes)) if s})
    for decay, color in (("L2", BLUE), ("L1", RED)):
        for how, style in styles.items():
            sparsities = [s for s in CUTS if s] if how == "cut" else sparsities_of(outcomes)
            runs = [curve_at(outcomes, decay, how, s) for s in sparsities]
            label = f"{decay}, {NAMES.get(how, how)}"
            errorbars(axes, [1 - s for s in sparsities], runs, linestyle=style, color=color, label=label)
    logarithmic(axes, "x")
    axes.invert_xaxis()
    fixed_ticks(axes.xaxis, [1 - s for s in ticks], [f"{100 * (1 - s):.3g}" for s in ticks])
    finish(axes, xlabel="weights that are kept (%)")
    percent_axis(axes, outcomes)
    legend_below(figure, axes, ncols=3)


def draw_bits(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against the size of the file."""
    axes = figure.subplots()
    colors = {"sharing alone": YELLOW, "pruning alone": BLUE, "both": RED}
    for method, seeds in points_of(outcomes).items():
        color = colors[method]
        for points in seeds if method == "both" else ():
            axes.plot(*_lists(points), "o", color=color, alpha=0.25, markersize=3, markeredgewidth=0)
        seeds = [_best(points) if method == "both" else points for points in seeds]
        style = {"marker": None if method == "both" else ".", "color": color, "alpha": 0.8, "linewidth": 1.2}
        lines_by(axes, map(_lists, seeds), f"{method}, best" if method == "both" else method, **style)
    logarithmic(axes, "x")
    finish(axes, xlabel="times smaller than float32")
    percent_axis(axes, outcomes)
    legend_below(figure, axes)


def _lists(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [ratio for ratio, _ in points], [100 * accuracy for _, accuracy in points]


def _best(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no smaller file exceeds in accuracy."""
    return [(ratio, a) for ratio, a in points if a >= max(b for other, b in points if other >= ratio)]


def draw_low_bits(outcomes: Outcomes, figure: Any) -> None:
    """Draws test error by depth and kind of weights."""
    axes = figure.subplots()
    low_bit_runs = outcomes.where(part="low bits")
    depths = low_bit_runs.distinct("depth")
    errors = {
        kind: [[1 - value for value in low_bits(outcomes, depth, kind)] for depth in depths]
        for kind in low_bit_runs.distinct("kind")
    }
    names, colors = ({kind: pair[i] for kind, pair in KINDS.items()} for i in (0, 1))
    bars_by(axes, errors, colors, labels=names)
    number_ticks(axes, [f"ResNet-{depth}" for depth in depths])
    finish(axes)
    percent_axis(axes, outcomes, "test error (%)")
    axes.set_ylim(bottom=0)
    legend_below(figure, axes, ncols=3)


def draw_sensitivity(outcomes: Outcomes, figure: Any) -> None:
    """Draws one panel per network, with one line per layer."""
    networks = outcomes.where(part="stages").distinct("network")
    panels = panels_by(figure, len(networks), sharey=True)
    for axes, network in zip(panels, networks, strict=True):
        seeds = [one["layers"] for one in stage_of(outcomes, network, "dense").results("sensitivity")]
        if seeds:
            sensitivity_lines(axes, {name: _mean_curve(seeds, name) for name in sorted(seeds[0], key=_place)}, named=4)
        finish(axes, legend={"loc": "lower left"}, title=network, xlabel="pruned weights of the layer (%)")
    panels[0].set_ylabel("accuracy on training images (%)")


def _mean_curve(seeds: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    accuracies = zip(*(one[name]["accuracy"] for one in seeds), strict=True)
    return {"sparsity": seeds[0][name]["sparsity"], "accuracy": list(map(statistics.mean, accuracies))}


def _place(layer: str) -> tuple[bool, bool, str]:
    """Returns a key that sorts layers from the image to the logits; a ledger has them in alphabetical order."""
    return layer.startswith("head"), not layer.startswith("stem"), layer


def draw_bytes(outcomes: Outcomes, figure: Any) -> None:
    """Draws the bytes of each file by their purpose: means over seeds, and the standard deviation of the sum."""
    axes: Axes = figure.subplots()
    files = {
        f"{network}, {stage}": seeds
        for network in outcomes.where(part="stages").distinct("network")
        for stage in ("pruned", "shared")
        if (seeds := stage_of(outcomes, network, stage).results("stored"))
    }
    left = [0.0] * len(files)
    shares = [[_shares(stored) for stored in seeds] for seeds in files.values()]
    for part, color in PARTS.items():
        means = [statistics.mean(one[part] for one in seeds) for seeds in shares]
        if any(mean > 0.01 for mean in means):
            axes.barh(range(len(files)), means, left=left, color=color, label=part)
        left = [a + b for a, b in zip(left, means, strict=True)]
    for i, seeds in enumerate(files.values()):
        sums = [100 * stored["bytes"] / stored["float32"] for stored in seeds]
        axes.errorbar(left[i], i, xerr=deviation(sums), color="black")
        ratio = statistics.mean(stored["float32"] / stored["bytes"] for stored in seeds)
        axes.text(left[i] + deviation(sums), i, f"  {ratio:.0f} times smaller", va="center")
    fixed_ticks(axes.yaxis, range(len(files)), files)
    axes.invert_yaxis()
    finish(axes, xlabel="size of the file (% of float32)", xlim=(0, 1.2 * max(left, default=1)))
    legend_below(figure, axes)


def _shares(stored: dict[str, Any]) -> dict[str, float]:
    """Returns the percentage of the size in float32 that each part of a file takes."""
    parts: collections.Counter[str] = collections.Counter()
    for row in stored["layers"]:
        parts.update(row["parts"])
    return {part: 100 * parts[part] / stored["float32"] for part in PARTS}

"""Pictures of the study of compression."""

import collections
import math
from typing import Any

from matplotlib.axes import Axes

from experiments.studies.compression.measures import CUTS
from experiments.studies.compression.results import curve_at, low_bits, points_of, sparsities_of, stage_of
from experiments.study import Outcomes, mean
from experiments.study.figures import bars_by, finish, legend_below, lines_by, number_ticks, panels_by
from models.analysis.palette import BLUE, GRAY, RED, YELLOW
from train.plots.figures import sensitivity_lines

PARTS = {
    "values": GRAY,
    "indices": RED,
    "signs": "#e8a08c",
    "jumps": BLUE,
    "codebook": YELLOW,
    "scales": "#e2d08c",
    "tables": "#6aa56a",
    "header": "#b0b0b0",
}


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against sparsity."""
    axes = figure.subplots()
    styles = {"cut": ":", "at once": "--", "step by step": "-"}
    for decay, color in (("L2", BLUE), ("L1", RED)):
        for how, style in styles.items():
            sparsities = [s for s in CUTS if s] if how == "cut" else sparsities_of(outcomes)
            values = [100 * mean(curve_at(outcomes, decay, how, s)) for s in sparsities]
            if not all(map(math.isnan, values)):
                label = f"{decay}, {how if how != 'cut' else 'without retraining'}"
                axes.plot([100 * s for s in sparsities], values, style, color=color, marker=".", label=label)
    finish(axes, legend={"fontsize": 9}, xlabel="pruned weights (%)", ylabel="test accuracy (%)")


def draw_bits(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against the size of the file."""
    axes = figure.subplots()
    colors = {"sharing alone": YELLOW, "pruning alone": BLUE, "both": RED}
    for method, seeds in points_of(outcomes).items():
        lines = [([ratio for ratio, _ in points], [100 * accuracy for _, accuracy in points]) for points in seeds]
        lines_by(axes, lines, method, "." if method == "both" else ".-", color=colors[method], alpha=0.7)
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    finish(axes, legend={}, xlabel="times smaller than float32", ylabel="test accuracy (%)")


def draw_low_bits(outcomes: Outcomes, figure: Any) -> None:
    """Draws test error by depth and kind of weights."""
    axes = figure.subplots()
    low_bit_runs = outcomes.where(part="low bits")
    depths = low_bit_runs.distinct("depth")
    errors = {
        kind: [[1 - value for value in low_bits(outcomes, depth, kind)] for depth in depths]
        for kind in low_bit_runs.distinct("kind")
    }
    colors = {"full": GRAY, "ternary": BLUE, "binary weights": YELLOW, "full, preactivation": "#b0b0b0", "XNOR": RED}
    bars_by(axes, errors, colors, capsize=3)
    number_ticks(axes, [f"{depth} layers" for depth in depths])
    axes.set_ylim(bottom=0)
    finish(axes, ylabel="test error (%)")
    legend_below(figure, axes, ncols=3)


def draw_sensitivity(outcomes: Outcomes, figure: Any) -> None:
    """Draws one panel per network, with one line per layer."""
    networks = outcomes.where(part="stages").distinct("network")
    panels = panels_by(figure, len(networks), sharey=True)
    for axes, network in zip(panels, networks, strict=True):
        for one in stage_of(outcomes, network, "dense").results("sensitivity")[:1]:
            sensitivity_lines(axes, one["layers"], named=10)
        finish(axes, legend={"fontsize": 8}, title=network, xlabel="pruned weights of the layer (%)")
    panels[0].set_ylabel("accuracy on training images (%)")


def draw_bytes(outcomes: Outcomes, figure: Any) -> None:
    """Draws the bytes of each file by their purpose."""
    axes: Axes = figure.subplots()
    rows = [
        (f"{network}, {stage}", stored)
        for network in outcomes.where(part="stages").distinct("network")
        for stage in ("pruned", "shared")
        for stored in stage_of(outcomes, network, stage).where(seed=0).results("stored")
    ]
    for i, (_, stored) in enumerate(rows):
        left, parts = 0.0, collections.Counter()
        for row in stored["layers"]:
            parts.update(row["parts"])
        for part, color in PARTS.items():
            share = 100 * parts[part] / stored["float32"]
            axes.barh(i, share, left=left, color=color, label=part if i == 0 else None)
            left += share
        axes.text(left, i, f" {stored['float32'] / stored['bytes']:.0f}x", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    legend = {"fontsize": 8, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    finish(axes, legend=legend, xlabel="bytes of the file, % of float32")

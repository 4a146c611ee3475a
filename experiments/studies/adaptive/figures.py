"""Pictures of the study of adaptive inference."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps

from experiments.studies.adaptive.results import WITH_EXITS, accuracies, curve_of, first_seed, name_of, values_of
from experiments.studies.measures import from_png
from experiments.study import Outcomes
from experiments.study.figures import finish, panels_by
from models.analysis.palette import BLUE, GRAY, RED, YELLOW
from train.plots import figures

COLORS = {
    "ResNet": GRAY,
    "ConvNet-AIG": BLUE,
    "BlockDrop": RED,
    "policy alone": "#e8a08c",
    "MSDNet": BLUE,
    "ResNet with exits": YELLOW,
}


def _point(outcomes: Outcomes, costs: Sequence[float], rates: Sequence[float]) -> tuple[float, float] | None:
    good = [(c, a) for c, a in zip(costs, rates, strict=True) if math.isfinite(c) and math.isfinite(a)]
    if not good:
        return None
    return statistics.mean(c for c, _ in good) / 1e6, 100 * statistics.mean(a for _, a in good)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against mult-adds."""
    left, right = figure.subplots(1, 2, sharey=True)
    plain = {
        depth: point
        for (depth,), resnets in outcomes.where(method="ResNet").groups("depth")
        if (point := _point(resnets, resnets.values("mult_adds"), resnets.values("accuracy")))
    }
    label, color = "ResNet-" + ", ".join(map(str, plain)), COLORS["ResNet"]
    for axes in (left, right):
        axes.plot(*zip(*plain.values(), strict=True), "s-", color=color, markersize=4, label=label)
    _draw_deciding(left, outcomes)
    _draw_exits(right, outcomes)
    left.set_ylabel("test accuracy (%)")
    for axes in (left, right):
        finish(axes, legend={"fontsize": 9}, xlabel="mult-adds on average (millions)")


def _draw_deciding(axes: Any, outcomes: Outcomes) -> None:
    for method, label in (("ConvNet-AIG", "target"), ("BlockDrop", "penalty"), ("policy alone", "")):
        of_method, points = outcomes.where(method=method), []
        for value, group in (
            [(v, of_method.where(**{label: v})) for v in of_method.distinct(label)] if label else [(None, of_method)]
        ):
            if point := _point(group, values_of(group, "as decided", "mult_adds"), accuracies(group)):
                points.append(point)
                if label:
                    axes.annotate(f"{value:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=9)
        if points:
            style, name = ("o-", f"{method}, by {label}") if label else ("o", method)
            axes.plot(*zip(*points, strict=True), style, color=COLORS[method], label=name)


def _draw_exits(axes: Any, outcomes: Outcomes) -> None:
    for method in WITH_EXITS:
        of_method = outcomes.where(method=method).having("leaving")
        for batch, style, name in ((False, ".:", "each exit"), (True, ".-", "by image")):
            if curves := [curve_of(o, batch) for o in of_method]:
                points = [
                    (statistics.mean(c for c, _ in same) / 1e6, 100 * statistics.mean(a for _, a in same))
                    for same in zip(*curves, strict=True)
                ]
                axes.plot(*zip(*points, strict=True), style, color=COLORS[method], label=f"{method}, {name}")


def draw_used(outcomes: Outcomes, figure: Any) -> None:
    """Draws how many blocks images use, and at which exits they leave."""
    left, right = figure.subplots(1, 2)
    deciding = [o for o in first_seed(outcomes).having("decided") if o.labels["method"] != "policy alone"]
    for i, outcome in enumerate(deciding):
        used = outcome.measured["decided"]["used"]
        total, whole = sum(used), len(used) - 1
        for count, images in enumerate(used):
            if images:
                color = COLORS[outcome.labels["method"]]
                left.scatter(100 * count / whole, i, s=400 * images / total, color=color, alpha=0.7, linewidths=0)
    left.set_yticks(range(len(deciding)), [name_of(o.labels) for o in deciding])
    xlabel = "blocks computed (% of all); area: share of the images"
    finish(left, xlabel=xlabel, xlim=(-5, 105), ylim=(max(len(deciding), 1) - 0.5, -0.5))
    exits = first_seed(outcomes).where(method="MSDNet").results("leaving")
    rows = [row for row in exits[0]["rows"] if "left" in row] if exits else []
    bottoms = [0.0] * len(rows)
    for k in range(len(rows[0]["left"]) if rows else 0):
        shares = [100 * row["left"][k] for row in rows]
        color = colormaps["viridis"](k / max(1, len(rows[0]["left"]) - 1))
        right.bar(range(len(rows)), shares, 0.8, bottom=bottoms, label=f"exit {k + 1}", color=color)
        bottoms = [a + b for a, b in zip(bottoms, shares, strict=True)]
    right.set_xticks(range(len(rows)), [f"{row['budget'] / 1e6:.2g}" for row in rows], fontsize=8)
    legend = {"fontsize": 9, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    finish(right, legend=legend, xlabel="budget for the average image (millions of mult-adds)", ylabel="images (%)")


def draw_classes(outcomes: Outcomes, figure: Any) -> None:
    """Draws classes by blocks, one panel for the gates with the lowest target and one for the joint training."""
    deciding = first_seed(outcomes).having("decided")
    chosen = [outcome for method in ("ConvNet-AIG", "BlockDrop") for outcome in deciding.where(method=method)[:1]]
    if not chosen:
        return
    panels, image = panels_by(figure, len(chosen)), None
    for axes, outcome in zip(panels, chosen, strict=True):
        decided = outcome.measured["decided"]
        image = figures.classes_by_part(axes, decided["by_class"], decided["classes"], "block")
        axes.set_title(name_of(outcome.labels))
    figure.colorbar(image, ax=panels, label="computed for (% of the class)")


def draw_extremes(outcomes: Outcomes, figure: Any) -> None:
    """Draws two rows per network: easy and hard images."""

    def example(one: dict[str, Any]) -> tuple[Any, str]:
        return from_png(one["image"]), f"{one['label']}\n{one['says']}"

    # The first outcome of each method
    chosen = {o.labels["method"]: o for o in reversed(first_seed(outcomes).having("extremes"))}
    figures.images_in_rows(
        figure,
        [
            (f"{name_of(outcome.labels)}\n{kind}", list(map(example, images)))
            for outcome in chosen.values()
            for kind, images in outcome.measured["extremes"].items()
        ],
    )

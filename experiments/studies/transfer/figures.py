"""Pictures of the study of transfer."""

from typing import Any

from experiments.studies.transfer.measures import ALL
from experiments.studies.transfer.results import axes_of_grid, counts_of, logistic, on_grid, targets_of, values_of
from experiments.study import Outcomes, mean, spread
from experiments.study.figures import (
    bars_by,
    count_of_images,
    errorbars,
    finish,
    heatmap,
    history_band,
    legend_below,
    number_ticks,
    panels_by,
    percent_axis,
)
from models.analysis.axes import percent_limits
from models.analysis.palette import BLUE, COLORS, GRAY, RED, YELLOW

WAYS = {  # way of training -> (name, color)
    "scratch": ("from scratch", GRAY),
    "hand-crafted": ("hand-crafted features", YELLOW),
    "classifier": ("pretrained + classifier", BLUE),
    "fine-tuned": ("fine-tuned", RED),
}
SOURCES = {"any": "any classes", "clean": "unbiased", "cue": "with a cue", "balanced": "balanced,\nas small"}
PARTS = {"relation": "classes of the source", "bias": "biases of the source"}


def draw_labels(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against labels per class."""
    target, axes = targets_of(outcomes)[0], figure.subplots()
    counts = counts_of(outcomes, target)
    for i, (how, (label, color)) in enumerate(WAYS.items()):
        places = [at + 0.05 * (i - 1.5) for at in range(len(counts))]  # error bars side by side
        errorbars(axes, places, [values_of(outcomes, target, how, n) for n in counts], color=color, label=label)
    number_ticks(axes, counts)
    finish(axes, xlabel="labels per class")
    percent_axis(axes, outcomes.where(part="transfer"), f"accuracy on {target} (%)")
    legend_below(figure, axes)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws learning curves with all labels, and with the largest number of labels per class."""
    target = targets_of(outcomes)[0]
    counts = counts_of(outcomes, target)
    largest = sorted(count for count in counts if count != ALL)[-1:]
    panels = panels_by(figure, 1 + len(largest), sharey=True)
    for axes, count in zip(panels, (*largest, ALL), strict=True):
        for how in ("scratch", "fine-tuned"):
            runs = outcomes.where(part="transfer", target=target, how=how, labels=count)
            label, color = WAYS[how]
            history_band(axes, runs, "test", "accuracy", 100, color=color, label=label, marker=".")
        finish(axes, xlabel="step", title="all labels" if count == ALL else f"{count} labels per class")
    percent_axis(panels[0], outcomes.where(part="transfer"), f"test accuracy on {target} (%)")
    legend_below(figure, *panels)


def draw_grid(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy by width and share of the source."""
    axes, (widths, shares) = figure.subplots(), axes_of_grid(outcomes)
    if not widths:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not part of this scale", ha="center")
        return
    runs = [[on_grid(outcomes, width, share) for share in shares] for width in widths]
    means = [[100 * mean(values) for values in line] for line in runs]
    images = count_of_images(outcomes.where(part="grid"))
    low, high = percent_limits([value for line in means for value in line], images)
    image = heatmap(
        axes,
        means,
        list(map(str, widths)),
        [f"{100 * share:.3g}" for share in shares],
        lambda value: value < (low + high) / 2,
        texts=[[spread(values).removesuffix(" %") for values in line] for line in runs],
        vmin=max(low, 0),
        vmax=min(high, 100),
    )
    axes.set(xlabel="part of the source (%)", ylabel="width of the network")
    figure.colorbar(image, label=f"accuracy on {targets_of(outcomes)[0]} (%)")


def draw_sources(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy on the target by source."""
    parts = [part for part in PARTS if len(outcomes.where(part=part))] or ["relation"]
    bars, colors = {"accuracy": "unchanged test images", "painted": "with the cue"}, {"accuracy": BLUE, "painted": RED}
    panels = panels_by(figure, len(parts), sharey=True)
    for axes, part in zip(panels, parts, strict=True):
        names = outcomes.where(part=part).distinct("source")
        keys = [key for key in bars if key == "accuracy" or part == "bias"]
        groups = {key: [logistic(outcomes, part, name, key) for name in names] for key in keys}
        bars_by(axes, groups, colors, 0.36 * len(keys), labels=bars)
        number_ticks(axes, [SOURCES.get(name, name) for name in names])
        finish(axes, title=PARTS[part])
    percent_axis(panels[0], outcomes, "accuracy on the target (%)")
    panels[0].set_ylim(bottom=0)
    legend_below(figure, panels[-1])


def draw_embedding(outcomes: Outcomes, figure: Any) -> None:
    """Draws features in two dimensions, colored by class, with one panel per way of training."""
    titles = {"classifier": "pretrained, unchanged", "scratch": "from scratch", "fine-tuned": "fine-tuned"}
    embedded = outcomes.where(part="transfer").having("embedding")
    ordered = sorted(embedded, key=lambda outcome: list(titles).index(outcome.labels["how"]))
    for axes, outcome in zip(panels_by(figure, len(ordered)), ordered, strict=False):
        embedding = outcome.measured["embedding"]
        for label, name in enumerate(embedding["classes"]):
            points = [point for point, index in zip(embedding["x"], embedding["labels"], strict=True) if index == label]
            if points:
                style = {"color": COLORS[label % len(COLORS)], "marker": "o^s"[label // len(COLORS) % 3]}
                axes.scatter(*zip(*points, strict=True), s=7, label=name, **style)
        axes.set(xticks=[], yticks=[], title=titles[outcome.labels["how"]])
        axes.spines[:].set_visible(True)
    if ordered:
        legend_below(figure, figure.axes[0], ncols=10, markerscale=2)

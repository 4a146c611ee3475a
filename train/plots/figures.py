"""Pictures of how training went."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from models.analysis.chart import save
from train.plots.palette import BLUE, RED


def tidy(axes: Any, grid: str = "major") -> None:
    """The look that all plots share: a faint grid, no frame above and at the right."""
    axes.grid(alpha=0.25, which=grid)
    axes.spines[["top", "right"]].set_visible(False)


def curves(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, accuracy (or hits) and learning rate against the step, training and test.

    Args:
      lines: of metrics.jsonl.
      path: PNG to write.
    """
    names = [name for name in ("loss", "accuracy", "hit", "learning_rate") if any(name in line for line in lines)]
    figure = Figure(figsize=(4.6 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, color in (("train", BLUE), ("test", RED)):
            points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=split, marker="." if len(points) < 40 else "")
        axes.set(xlabel="step", ylabel=name.replace("_", " "))
        if name == "loss":
            axes.set_yscale("log")
            axes.set_ylabel("loss (nats)")
        if name != "learning_rate":
            axes.legend(frameon=False)
        tidy(axes)
    save(figure, path, dpi=120)


def sensitivity_lines(axes: Any, layers: Mapping[str, Mapping[str, Sequence[float]]], named: int) -> None:
    """Accuracy against the sparsity of one layer alone, in percent, a line a layer, the first ones dark.

    Args:
      axes: to draw into.
      layers: of what the hook `sensitivity` measures.
      named: of more layers than these the first and the last alone have a label.
    """
    for i, (name, curve) in enumerate(layers.items()):
        labelled = len(layers) <= named or i in (0, len(layers) - 1)
        axes.plot(
            [100 * share for share in curve["sparsity"]],
            [100 * value for value in curve["accuracy"]],
            marker=".",
            color=colormaps["viridis"](i / max(1, len(layers) - 1)),
            label=name.removesuffix("/kernel") if labelled else None,
        )


def sensitivity(found: Mapping[str, Any], path: Path) -> None:
    """`sensitivity_lines` of all layers as a PNG.

    Args:
      found: what the hook `sensitivity` measures.
      path: PNG to write.
    """
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes, layers = figure.subplots(), found["layers"]
    sensitivity_lines(axes, layers, named=len(layers))
    axes.axhline(100 * found["whole"], color="0.6", linestyle=":")
    axes.set(xlabel="weights of the layer that are gone (%)", ylabel="accuracy on training images (%)")
    axes.legend(
        frameon=False,
        fontsize=7 if len(layers) > 12 else 9,
        ncols=-(-len(layers) // 24),
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    tidy(axes)
    save(figure, path, dpi=120)


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts [true class, predicted class] of logits [N, classes] and labels [N]."""
    matrix = np.zeros((logits.shape[1], logits.shape[1]), np.int64)
    np.add.at(matrix, (labels, logits.argmax(1)), 1)
    return matrix


def most_confident_errors(logits: np.ndarray, labels: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """(row, predicted class, its probability) of the wrong predictions, the most confident first."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    confidence = probabilities[wrong, predicted[wrong]]
    order = wrong[np.argsort(-confidence, kind="stable")][:count]
    return [(int(row), int(predicted[row]), float(probabilities[row, predicted[row]])) for row in order]


def _short(name: str, limit: int = 17) -> str:
    """Names of classes can be longer than the pictures above which they stand."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def mistakes(
    logits: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    path: Path,
    image: Callable[[int], np.ndarray],
    index: Sequence[int],
    count: int = 16,
) -> None:
    """The confusion matrix beside the most confident errors.

    Args:
      logits: [N, classes].
      labels: [N].
      classes: their names.
      path: PNG to write.
      image: from a place in the set to uint8 [H, W, C].
      index: of each row, its place in the set.
      count: errors to show, at most 16.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    left, right = figure.subfigures(1, 2)
    matrix = confusion(logits, labels)
    axes = left.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    few = len(classes) <= 20
    if few:
        axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(len(classes)), classes)
        for true, predicted in zip(*np.nonzero(matrix), strict=True):
            axes.text(
                predicted,
                true,
                matrix[true, predicted],
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[true, predicted] > 0.5 else "black",
            )
    axes.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"Confusion matrix ({np.trace(matrix)} of {matrix.sum()} right)",
    )
    left.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.8)
    errors = most_confident_errors(logits, labels, count)
    right.suptitle("Most confident errors, and their # in the test set" if errors else "No errors")
    side = max(2, math.ceil(len(errors) ** 0.5))
    panels = right.subplots(side, side).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (row, predicted, probability) in zip(panels, errors, strict=False):
        pixels = np.asarray(image(int(index[row])))
        axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
        names = _short(classes[labels[row]]), f"not {_short(classes[predicted])}", f"{probability:.0%}, #{index[row]}"
        axes.set_title("\n".join(names), fontsize=7.5)
    save(figure, path, dpi=110)


def attention(maps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Attention of the decoder to the source, a sentence a panel; see `draw_attention`.

    Args:
      maps: of `train.tasks.translate.attention`.
      path: PNG to write.
    """
    figure = Figure(figsize=(13, 6.5 * math.ceil(len(maps) / 2)), layout="constrained")
    draw_attention(maps, figure)
    save(figure, path, dpi=110)


def draw_attention(maps: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """Draws maps {"source", "ours", "weights"}, the mean over heads of each, two in a row: a row of a panel is the
    token that is written, a column one of the source.
    """
    panels = figure.subplots(math.ceil(len(maps) / 2), min(2, len(maps)), squeeze=False).ravel()
    for axes in panels[len(maps) :]:
        axes.axis("off")
    drawn = None
    for axes, found in zip(panels, maps, strict=False):
        drawn = axes.imshow(np.mean(found["weights"], 0), cmap="Blues", vmin=0, vmax=1)  # [H, T, S] -> [T, S]
        size = min(10, 260 / max(len(found["source"]), len(found["ours"])))
        axes.set_xticks(range(len(found["source"])), found["source"], rotation=90, fontsize=size)
        axes.set_yticks(range(len(found["ours"])), found["ours"], fontsize=size)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set(xlabel="token of the source", ylabel="token that is written")
        axes.xaxis.set_label_position("top")
    figure.colorbar(drawn, ax=list(panels), label="attention, mean of heads", shrink=0.5)


def classes_by_part(axes: Any, shares: Sequence[Sequence[float]], classes: Sequence[str], what: str) -> Any:
    """A class a row, a block or an exit (`what`) a column, percent; returns the image, for a colorbar."""
    parts = max(len(row) for row in shares if row is not None)
    missing = [math.nan] * parts  # a class without images
    image = axes.imshow(
        [[100 * share for share in row or missing] for row in shares], vmin=0, vmax=100, aspect="auto", cmap="viridis"
    )
    axes.set_xlabel(what)
    axes.set_xticks(range(0, parts, 1 + parts // 20), range(1, parts + 1, 1 + parts // 20))
    axes.set_ylabel("class")
    if len(classes) <= 40:
        axes.set_yticks(range(len(classes)), classes)
    return image


def of_classes(shares: Sequence[Sequence[float]], classes: Sequence[str], what: str, path: Path) -> None:
    """`classes_by_part` as a PNG: blocks that are computed, or exits that are right."""
    figure = Figure(figsize=(7.0, 1.5 + 0.25 * min(len(classes), 40)), layout="constrained")
    axes = figure.subplots()
    image = classes_by_part(axes, shares, classes, what)
    label = {"block": "computed for (% of the class)", "exit": "right about (% of the class)"}[what]
    figure.colorbar(image, label=label)
    save(figure, path, dpi=120)


def images_in_rows(figure: Any, rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]]) -> None:
    """Rows of (name, [(pixels [H, W, C] or [H, W], what is said above it)])."""
    columns = max((len(shown) for _, shown in rows), default=0)
    grid = figure.subplots(max(len(rows), 1), max(columns, 1), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for (name, shown), line in zip(rows, grid, strict=False):
        for axes, (pixels, text) in zip(line, shown, strict=False):
            pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
            axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None)
            axes.set_title(text, fontsize=7.5, pad=2)
        if not shown:
            line[0].text(0.5, 0.5, "none", transform=line[0].transAxes, ha="center", va="center", fontsize=9)
        line[0].text(-0.2, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)


def of_images(rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]], path: Path) -> None:
    """`images_in_rows` as a PNG."""
    figure = Figure(figsize=(11.0, 0.4 + 1.3 * len(rows)), layout="constrained")
    images_in_rows(figure, rows)
    save(figure, path, dpi=120)


def predictions(rows: Sequence[tuple[np.ndarray, str, Sequence[tuple[str, float]]]], path: Path | str) -> None:
    """A row an image: its pixels, and bars of its most probable classes.

    Args:
      rows: (pixels uint8 [H, W, C], name, [(class, probability), …]).
      path: PNG to write.
    """
    most = max(len(classes) for _, _, classes in rows)
    figure = Figure(figsize=(7.5, (0.5 + 0.28 * max(most, 4)) * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 2))
    for (pixels, name, classes), (left, right) in zip(rows, grid, strict=True):
        left.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
        left.set_title(_short(name, 30), fontsize=8)
        left.axis("off")
        shares = [100 * share for _, share in classes]
        bars = right.barh(range(len(classes)), shares, color=BLUE)
        right.bar_label(bars, [f"{share:.1f}" for share in shares], padding=3, fontsize=8)
        right.set_yticks(range(len(classes)), [_short(label, 30) for label, _ in classes], fontsize=8)
        right.set_xlim(0, 112)
        right.invert_yaxis()
        tidy(right)
    grid[-1, 1].set_xlabel("probability (%)")
    save(figure, path, dpi=120)

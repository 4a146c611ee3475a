"""The figure of a classifier's mistakes: the confusion matrix, and the most confident errors."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure

from models.analysis import drawing
from models.analysis.palette import BLUE
from train.plots.figures import percent, short

COUNTED = 20  # classes, up to which each cell has its number
NAMED = 40  # classes, up to which each row has its name
PIXELS = 100  # classes, from which single cells are too small to be seen
LISTED = 6  # pairs of classes, named below a matrix without numbers
RIGHT = LinearSegmentedColormap.from_list("right", ["#ffffff", BLUE])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#fbd9c0", "#d55e00", "#7f2704"])  # 1 error is no white cell


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts examples [true class, predicted class], int64, from logits [N, classes] and labels [N]."""
    matrix = np.zeros((logits.shape[1], logits.shape[1]), np.int64)
    np.add.at(matrix, (labels, logits.argmax(1)), 1)
    return matrix


def most_confident_errors(logits: np.ndarray, labels: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """Returns the row, predicted class and its probability of `count` wrong predictions, the most confident first."""
    predicted, confidence = _predictions(logits)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [(int(row), int(predicted[row]), float(confidence[row])) for row in order]


def least_confident(logits: np.ndarray, count: int) -> list[int]:
    """Returns the rows of the `count` predictions with the lowest probability, the lowest first."""
    return np.argsort(_predictions(logits)[1], kind="stable")[:count].tolist()


def _predictions(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted class of each row, and its probability."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    return probabilities.argmax(1), probabilities.max(1)


def mistakes(
    logits: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    path: Path,
    image: Callable[[int], np.ndarray],
    index: Sequence[int],
    count: int = 16,
) -> None:
    """Draws the confusion matrix and the most confident errors; without errors, the matrix alone.

    Args:
      logits: float [N, classes].
      labels: int [N].
      classes: names of the classes.
      path: PNG to write.
      image: maps an index of the set to pixels, uint8 [H, W, C].
      index: index of each row in the set.
      count: errors to show, at most 16.
    """
    matrix, errors = confusion(logits, labels), most_confident_errors(logits, labels, count)
    columns = math.ceil(len(errors) ** 0.5)
    rows = math.ceil(len(errors) / columns) if errors else 0
    height = max(6.0 if len(classes) > COUNTED else 5.2, 1.75 * rows + 0.6)
    wide = max(1.75 * columns, 2.6) if errors else 0.0
    with drawing.figure(path, (6.4 + wide, height)) as figure:
        if not errors:
            _draw_confusion(figure, matrix, classes)
            return
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(6.4, wide))[0]
        _draw_confusion(left, matrix, classes)
        some = "The most confident errors" if len(errors) < matrix.sum() - np.trace(matrix) else "All errors"
        right.suptitle(f"{some} on test images")
        panels = right.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.axis("off")
        for axes, (row, predicted, probability) in zip(panels, errors, strict=False):
            pixels = np.asarray(image(int(index[row])))
            axes.imshow(
                pixels if pixels.shape[-1] == 3 else pixels[..., 0],
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="nearest" if max(pixels.shape) < 100 else None,
            )
            names = (
                f"true {short(classes[int(labels[row])])}",
                f"predicted {short(classes[predicted])}",
                f"probability {percent(probability)}, image {index[row]}",
            )
            axes.set_title("\n".join(names), fontsize=7.5)


def _draw_confusion(figure: Figure | SubFigure, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Draws shares of each true class: right ones in blue, and errors in a scale of their own."""
    axes, count = figure.subplots(), len(classes)
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    diagonal = np.eye(count, dtype=bool)
    wrong = np.ma.masked_where(diagonal | (matrix == 0), share)
    right = np.ma.masked_where(~diagonal | (matrix.sum(1, keepdims=True) == 0), share)
    highest = max(5.0, float(wrong.max())) if wrong.count() else 0.0
    images = [_draw_cells(axes, right, RIGHT, 100.0)]
    if highest:
        images.append(_draw_cells(axes, wrong, WRONG, highest))
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5), xlabel="predicted class", ylabel="true class")
    _name_classes(axes, classes)
    if count <= COUNTED:
        _write_counts(axes, matrix, share, highest)
    elif highest:
        axes.set_xlabel(f"predicted class\n\n{_frequent(matrix, classes)}")
    figure.suptitle(_score(matrix))
    labels = ("right (% of the true class)", "errors (% of the true class)")
    for image, label, bottom in zip(images, labels, (0.54, 0.0), strict=False):
        figure.colorbar(image, cax=axes.inset_axes((1.03, bottom, 0.03, 0.46)), label=label)


def _draw_cells(axes: Axes, share: Any, colors: Any, highest: float) -> Any:
    """Draws the cells of a masked matrix; dots where a cell would be smaller than one, the highest on top."""
    if len(share) <= PIXELS:
        return axes.imshow(share, cmap=colors, vmin=0, vmax=highest, interpolation="nearest")
    rows, columns = np.nonzero(~np.ma.getmaskarray(share))
    order = np.argsort(share.data[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    size = max(1.5, 900 / len(share))
    style = {"s": size, "marker": "s", "linewidths": 0, "cmap": colors, "vmin": 0, "vmax": highest}
    return axes.scatter(columns, rows, c=share.data[rows, columns], **style)


def _score(matrix: np.ndarray) -> str:
    """Returns the title of a confusion matrix."""
    right, total = int(np.trace(matrix)), int(matrix.sum())
    if right == total:
        return f"All {total:,} test images are classified correctly"
    return f"{right:,} of {total:,} test images are classified correctly ({100 * right / total:.4g}%)"


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Writes the names of all classes beside the matrix, or of every few."""
    every = math.ceil(len(classes) / NAMED)
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if step >= every)
    ticks = range(0, len(classes), every)
    names = [short(classes[tick]) for tick in ticks]
    size = 8.5 if len(classes) <= COUNTED else 6.5
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.tick_params(length=0 if every == 1 else 2)


def _write_counts(axes: Axes, matrix: np.ndarray, share: np.ndarray, highest: float) -> None:
    """Writes the number of examples into each cell that has any."""
    size = 9 if len(matrix) <= 12 else 7
    for true, predicted in zip(*np.nonzero(matrix), strict=True):
        shade = share[true, predicted] / (100 if true == predicted else highest)
        axes.text(
            predicted,
            true,
            f"{matrix[true, predicted]:,}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shade > 0.55 else "black",
        )


def _frequent(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Returns a line for each of the most frequent pairs of true and predicted class, in two columns."""
    errors = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    order = np.argsort(-errors, axis=None, kind="stable")[:LISTED]
    lines = []
    for place in order.tolist():
        true, predicted = int(place) // len(matrix), int(place) % len(matrix)
        if errors[true, predicted]:
            lines.append(
                f"{short(classes[true])} taken for {short(classes[predicted])}: "
                f"{errors[true, predicted]:,} of {matrix[true].sum():,}"
            )
    return "\n".join(["Most frequent errors", *lines])

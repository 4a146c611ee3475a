"""Pictures of disagreements: the heat map of all pairs of groups, and the images on which two networks disagree."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.comparison.disagreement import RIGHT, Matrix, Pair
from experiments.study.figures import Picture, heatmap
from models.analysis.palette import BLACK, BLUE, GRAY, RED
from models.analysis.tables import markdown_code

MOST_IMAGES = 24
COLUMNS = 6
LONGEST = 22  # characters of a class


def of_matrix(matrix: Matrix) -> Picture:
    """Returns the heat map of the shares."""
    count = len(matrix.groups)
    caption = (
        "Share of test images on which the predicted classes of two networks differ. In the frames on the diagonal: of "
        "two seeds of one group, which is what chance alone changes."
    )
    longest = max(len(group.name) for group in matrix.groups)
    size = (1.9 + 0.075 * longest + 0.55 * count, 1.2 + 0.05 * longest + 0.42 * count)
    return Picture("disagreement", caption, size, lambda figure: draw_matrix(figure, matrix))


def draw_matrix(figure: Figure, matrix: Matrix) -> None:
    """Draws the heat map, the first group at the top."""
    axes, shares = figure.subplots(), 100 * matrix.shares
    names, high = [group.name for group in matrix.groups], float(np.nanmax(shares))
    axes.set_facecolor("0.93")  # pairs that do not exist
    heat = heatmap(
        axes,
        shares.tolist(),
        names,
        names,
        lambda value: value > 0.6 * high,
        8,
        cmap="Blues",
        vmin=0,
        vmax=max(high, 1e-9),
    )
    for text in axes.texts:
        if text.get_text() == "nan":
            text.set_text("–")
    for i in range(len(names)):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=BLACK, linewidth=1, clip_on=False))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(heat, ax=axes, label="test images (%)", shrink=0.8)


def of_pair(pair: Pair) -> Picture | None:
    """Returns the picture of the images on which two networks disagree; None if there is none."""
    count = min(len(pair.differ), MOST_IMAGES)
    if not count:
        return None
    names = [
        f"{markdown_code(group.name)} ({letter}, seed {answers.run.seed})"
        for letter, group, answers in zip("AB", (pair.first, pair.second), pair.answers, strict=True)
    ]
    caption = (
        f"Test images on which {' and '.join(names)} disagree, the most confident answers first ({count} of "
        f"{len(pair.differ)}), with the probability that each gives to its own answer. ✓ and blue: right; ✗ and "
        f"orange: wrong. Of all {len(pair.answers[0].places):,} images, {counts_text(pair)}."
    )
    rows = -(-count // COLUMNS)
    size = (max(1.55 * min(count, COLUMNS), 3.4) + 0.2, 0.55 + 2.2 * rows)
    return Picture("disagreements", caption, size, lambda figure: draw_images(figure, pair, count))


def counts_text(pair: Pair) -> str:
    """Formats the counts of a pair with McNemar's p value."""
    texts = ("both are right on {}", "only A on {}", "only B on {}", "neither on {}")
    names: dict[str, str] = dict(zip(RIGHT, texts, strict=True))
    return (
        ", ".join(names[key].format(count) for key, count in pair.counts.items()) + f" (McNemar's p = {p_text(pair.p)})"
    )


def p_text(p: float) -> str:
    """Formats a p value."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def draw_images(figure: Figure, pair: Pair, count: int) -> None:
    """Draws a grid of images, each with its true class and both answers."""
    columns = min(count, COLUMNS)
    groups = zip("AB", (pair.first, pair.second), strict=True)
    heading = [
        textwrap.shorten(f"{letter}: {group.name}", 26 * max(columns, 2), placeholder=" …") for letter, group in groups
    ]
    figure.suptitle("\n".join(heading), fontsize=9.5, x=0.01, ha="left")
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.06 * (rows > 1)}).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, row in zip(grid, pair.differ[:count], strict=False):
        _draw_image(axes, pair, int(row))


def _draw_image(axes: Axes, pair: Pair, row: int) -> None:
    first = pair.answers[0]
    pixels = first.image(int(first.places[row]))
    gray = pixels.shape[-1] != 3
    axes.imshow(
        pixels[..., 0] if gray else pixels, cmap="gray" if gray else None, vmin=0, vmax=255, interpolation="nearest"
    )
    axes.set_title(
        f"true: {_cut(first.classes[int(first.labels[row])])}  (#{first.places[row]})", fontsize=8.5, color=BLACK, pad=3
    )
    for place, (letter, answers) in enumerate(zip("AB", pair.answers, strict=True)):
        is_right = answers.predicted[row] == answers.labels[row]
        name = _cut(answers.classes[int(answers.predicted[row])])
        text = f"{letter} {'✓' if is_right else '✗'} {name}  {_percent(answers.confidence[row])}"
        axes.annotate(
            text,
            (0.5, 0),
            (0, -4 - 12 * place),  # in points, so that the layout makes room for it
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8.5,
            color=BLUE if is_right else RED,
        )
    axes.axis("on")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color=GRAY, linewidth=0.5)


def _percent(probability: float) -> str:
    return "100%" if probability > 0.9995 else f"{probability:.1%}" if probability > 0.99 else f"{probability:.0%}"


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"

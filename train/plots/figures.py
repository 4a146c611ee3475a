"""Figures of a run: its predictions, attention, pruned layers, and what adaptive networks compute."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from models.analysis import drawing
from models.analysis.palette import BLUE

Shares = Sequence[Sequence[float] | None]


def tidy(axes: Axes, grid: Literal["major", "minor", "both"] = "major") -> None:
    """Gives axes a faint grid; the style file has the rest of the look."""
    axes.grid(which=grid)


def sensitivity_lines(axes: Axes, layers: Mapping[str, Mapping[str, Sequence[float]]], named: int) -> None:
    """Draws accuracy against the sparsity of a single layer, in percent: one line per layer, the first layers dark.

    Args:
      axes: the axes to draw into.
      layers: "layers" of the results of the hook `sensitivity`.
      named: with more layers than this, only the first and the last get a label.
    """
    for i, (name, curve) in enumerate(layers.items()):
        is_named = len(layers) <= named or i in (0, len(layers) - 1)
        axes.plot(
            [100 * share for share in curve["sparsity"]],
            [100 * value for value in curve["accuracy"]],
            marker=".",
            color=colormaps["viridis"](i / max(1, len(layers) - 1)),
            label=name.removesuffix("/kernel") if is_named else None,
        )


def sensitivity(results: Mapping[str, Any], path: Path) -> None:
    """Draws `sensitivity_lines` of all layers.

    Args:
      results: the results of the hook `sensitivity`.
      path: PNG to write.
    """
    with drawing.figure(path, (7.5, 4.2)) as figure:
        axes, layers = figure.subplots(), results["layers"]
        sensitivity_lines(axes, layers, named=len(layers))
        axes.axhline(100 * results["whole"], color="0.6", linestyle=":")
        axes.set(xlabel="weights of the layer that are pruned (%)", ylabel="accuracy on training images (%)")
        axes.legend(
            fontsize=7 if len(layers) > 12 else 9,
            ncols=-(-len(layers) // 24),
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        tidy(axes)


def short(name: str, limit: int = 17) -> str:
    """Cuts a name, which could be wider than the picture below it."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def percent(share: float) -> str:
    """Returns a share for a caption; one close to 0 or 1 is not said to be 0% or 100%."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 < share < 1 else f"{share:.0%}"


CELL = 0.24  # inches per token, for short and long sentences alike


def attention(maps: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the decoder's attention to the source, one panel per sentence; see `draw_attention`.

    Args:
      maps: results of `train.tasks.translate.attention`.
      path: PNG to write.
    """
    widths, heights = _tokens(maps)
    size = (CELL * max(sum(widths), 12) + 1.3 * len(widths) + 1.2, CELL * sum(heights) + 1.3 * len(heights))
    with drawing.figure(path, size) as figure:
        draw_attention(maps, figure)


def _tokens(maps: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Returns the most source tokens of each column of panels, and the most output tokens of each row of panels."""
    columns = min(2, len(maps))
    widths = [max(len(one["source"]) for one in maps[column::columns]) for column in range(columns)]
    rows = [maps[start : start + columns] for start in range(0, len(maps), columns)]
    return widths, [max(len(one["ours"]) for one in row) for row in rows]


def draw_attention(maps: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """Draws attention, averaged over heads, with two panels per row.

    A row of a panel is an output token, a column is a token of the source. Cells have the same size in all panels.

    Args:
      maps: {"source": tokens, "ours": output tokens, "weights": [heads, output tokens, source tokens]}, at least one.
      figure: the figure to draw into.
    """
    widths, heights = _tokens(maps)
    grid = figure.subplots(len(heights), len(widths), squeeze=False, width_ratios=widths, height_ratios=heights)
    panels, images = grid.ravel(), []
    for axes in panels[len(maps) :]:
        axes.axis("off")
    means = [100 * np.mean(one["weights"], 0) for one in maps]  # [H, T, S] -> [T, S]
    highest = max(20.0, *(float(mean.max()) for mean in means))
    for i, (axes, one, mean) in enumerate(zip(panels, maps, means, strict=False)):
        images.append(axes.imshow(mean, cmap="Blues", vmin=0, vmax=highest, interpolation="nearest"))
        width, height = widths[i % len(widths)], heights[i // len(widths)]
        size = min(9, 260 / max(width, height))
        axes.set_xticks(range(len(one["source"])), one["source"], rotation=90, fontsize=size)
        axes.set_yticks(range(len(one["ours"])), one["ours"], fontsize=size)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), anchor="NW")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("source token", loc="left")
        axes.set_ylabel("output token", loc="top")
        axes.xaxis.set_label_position("top")
    bar = figure.colorbar(images[-1], ax=list(panels), label="attention, mean of heads (%)", shrink=0.5, aspect=25)
    bar.ax.set_anchor("N")


def classes_by_part(axes: Axes, shares: Shares, classes: Sequence[str], what: str) -> AxesImage:
    """Draws shares in percent, one row per class and one column per block or exit; returns the image, for a colorbar.

    Args:
      axes: the axes to draw into.
      shares: for each class, the share of each part; None for a class without images.
      classes: names of the classes.
      what: the name of a part, "block" or "exit".
    """
    parts = max(len(row) for row in shares if row is not None)
    missing = [math.nan] * parts
    image = axes.imshow(
        [[100 * share for share in row or missing] for row in shares], vmin=0, vmax=100, aspect="auto", cmap="viridis"
    )
    axes.set_xlabel(what)
    ticks = range(0, parts, 1 + parts // 20)
    axes.set_xticks(ticks, [str(part + 1) for part in ticks])
    axes.set_ylabel("class")
    if len(classes) <= 40:
        axes.set_yticks(range(len(classes)), classes)
    return image


def of_classes(shares: Shares, classes: Sequence[str], what: str, path: Path) -> None:
    """Writes `classes_by_part` to the PNG `path`: blocks that are computed, or exits that are right."""
    with drawing.figure(path, (7.0, 1.5 + 0.25 * min(len(classes), 40))) as figure:
        axes = figure.subplots()
        image = classes_by_part(axes, shares, classes, what)
        label = {"block": "computed for (% of the class)", "exit": "right for (% of the class)"}[what]
        figure.colorbar(image, label=label)


def images_in_rows(figure: Figure | SubFigure, rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]]) -> None:
    """Draws rows of images; a row is its name and pairs of pixels, [H, W, C] or [H, W], and a title."""
    columns = max((len(images) for _, images in rows), default=0)
    grid = figure.subplots(max(len(rows), 1), max(columns, 1), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for (name, images), line in zip(rows, grid, strict=False):
        for axes, (pixels, text) in zip(line, images, strict=False):
            pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
            axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None)
            axes.set_title(text, fontsize=7.5, pad=2)
        if not images:
            line[0].text(0.5, 0.5, "none", transform=line[0].transAxes, ha="center", va="center", fontsize=9)
        line[0].text(-0.2, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)


def of_images(rows: Sequence[tuple[str, Sequence[tuple[Any, str]]]], path: Path) -> None:
    """Writes `images_in_rows` to the PNG `path`."""
    with drawing.figure(path, (11.0, 0.3 + 1.05 * len(rows))) as figure:
        images_in_rows(figure, rows)


def predictions(rows: Sequence[tuple[np.ndarray, str, Sequence[tuple[str, float]]]], path: Path | str) -> None:
    """Draws one row per image: its pixels, and bars for its most probable classes.

    Args:
      rows: (pixels uint8 [H, W, C], name, [(class, probability), …]) for each image.
      path: PNG to write.
    """
    most = max(len(classes) for _, _, classes in rows)
    with drawing.figure(path, (7.5, (0.5 + 0.28 * max(most, 4)) * len(rows))) as figure:
        grid = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 2))
        for (pixels, name, classes), (left, right) in zip(rows, grid, strict=True):
            left.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
            left.set_title(short(name, 30), fontsize=8)
            left.axis("off")
            shares = [100 * share for _, share in classes]
            bars = right.barh(range(len(classes)), shares, color=BLUE)
            right.bar_label(bars, [f"{share:.1f}" for share in shares], padding=3, fontsize=8)
            right.set_yticks(range(len(classes)), [short(label, 30) for label, _ in classes], fontsize=8)
            right.set_xlim(0, 112)
            right.set_ylim(max(most, 3) - 0.4, -0.6)  # bars are as wide in all rows
            tidy(right)
        grid[-1, 1].set_xlabel("probability (%)")

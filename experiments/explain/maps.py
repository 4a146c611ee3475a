"""Pictures of methods that each have their own: occlusion, receptive fields, grids of patches.

The functions draw into a matplotlib Figure. Images are as in experiments/explain/overlays.py.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from scipy.special import softmax

from experiments.explain import overlays
from experiments.explain.overlays import (
    HEAT,
    SMALL,
    Panel,
    bare,
    draw_box,
    draw_image,
    draw_panel,
    frame,
    headings,
    shown,
)
from models.analysis.palette import COLORS
from train.plots.figures import percent

CHANGE = "RdBu"  # of what a covered part lowers (red) or raises (blue)
LEAST, MOST = 5.0, 100.0  # bounds of the range of colors, so that noise stays pale, in percent
SAME = "#c4c4c4"  # color of the class that is predicted without the square
LISTED = 8  # classes in a legend


def occlusion_size(images: Sequence[Any]) -> tuple[float, float]:
    """Returns the size in inches of a Figure for `draw_occlusion`."""
    return 11.0, 0.5 + sum(min(2.2 * overlays.aspect_of(image), 3.5) + 0.5 for image in images)


def draw_occlusion(
    figure: Any,
    images: Sequence[Any],
    result: Mapping[str, np.ndarray],
    square: tuple[int, int],
    classes: Sequence[str],
    names: Sequence[str],
    color: Any,
) -> None:
    """Draws one row per image, as in figure 7 of Zeiler & Fergus 2014.

    The panels show the image with one square, and three maps over the center of the square: the change of the total
    activation of the strongest feature map, the change of the probability of the class, and the most probable class.
    The two changes share one range of colors, so that they can be compared.

    Args:
      figure: An empty figure.
      images: Images or Pictures, one per row.
      result: The fields of `models.explain.occlusion.Occlusion` as numpy.
      square: Height and width of the square, in pixels.
      classes: Names of the classes.
      names: Names of the images.
      color: Color of the square: [C] in [0, 1], like a pixel.
    """
    edges = _edges(np.asarray(result["columns"]), square[1]), _edges(np.asarray(result["rows"]), square[0])
    ratios = [overlays.aspect_of(image) for image in images]
    grid = figure.subplots(len(images), 4, squeeze=False, height_ratios=ratios)
    headings(grid[0], ("most costly square", "change of activation", "change of probability", "most probable class"))
    for i, (line, image) in enumerate(zip(grid, images, strict=True)):
        one = {name: np.asarray(result[name])[i] for name in ("strongest", "whole", "probability", "logits", "top")}
        target, channel = int(result["target"][i]), int(result["channel"][i])
        before = softmax(one["logits"])
        for axes in line:
            bare(axes)
            overlays.draw_faded(axes, image, darkest=0.9)
        draw_image(line[0], image)
        row, column = np.unravel_index(one["probability"].argmin(), one["probability"].shape)
        _draw_square(line[0], result["columns"][column], result["rows"][row], square, color)
        line[0].set_xlabel(f"{classes[target]}: {percent(one['probability'].min())} with it", fontsize=8)
        line[0].set_ylabel(names[i], fontsize=9)
        activation, probability = changes(one["strongest"], one["whole"], one["probability"], before[target])
        limit = limit_of(activation, probability)
        for axes, values in zip(line[1:3], (activation, probability), strict=True):
            axes.pcolormesh(*edges, values, cmap=CHANGE, vmin=-limit, vmax=limit)
        line[1].set_xlabel(f"channel {channel}, the strongest", fontsize=8)
        line[2].set_xlabel(f"{classes[target]}: {percent(before[target])} without the square", fontsize=8)
        _draw_scale(figure, line[1:3], limit)
        _draw_classes(line[3], edges, one["top"], int(before.argmax()), classes)
        for axes in line:
            frame(axes, image)


def changes(strongest: Any, whole: Any, probability: Any, before: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the changes by a square: of the activation in percent, and of the probability in percentage points."""
    activation = 100 * (np.asarray(strongest, np.float64) - whole) / max(abs(float(whole)), 1e-12)
    return activation, 100 * (np.asarray(probability, np.float64) - before)


def limit_of(*changed: np.ndarray) -> float:
    """Returns the end of the range of colors for all maps of a row: of the data, within LEAST and MOST."""
    return float(np.clip(max(np.abs(values).max() for values in changed), LEAST, MOST))


def _draw_square(axes: Any, left: Any, top: Any, square: tuple[int, int], color: Any) -> None:
    corner, gray = (float(left) - 0.5, float(top) - 0.5), shown(np.reshape(color, (1, 1, -1)))[0, 0]
    axes.add_patch(Rectangle(corner, square[1], square[0], linewidth=1.2, facecolor=gray, edgecolor="#e69f00"))


def _draw_scale(figure: Any, panels: Any, limit: float) -> None:
    """Draws the colorbar of a row."""
    mappable = ScalarMappable(cmap=CHANGE)
    mappable.set_clim(-limit, limit)
    bar = figure.colorbar(
        mappable, ax=panels, pad=0.02, aspect=14, shrink=0.8, extend="both" if limit >= MOST else "neither"
    )
    bar.set_label("activation (%),\nprobability (points)", fontsize=8)
    bar.locator = overlays.ticks(5)
    bar.update_ticks()


def _draw_classes(axes: Any, edges: Any, top: np.ndarray, before: int, classes: Sequence[str]) -> None:
    """Draws the most probable class at each place of the square, the one without a square in gray."""
    kinds = sorted({before, *np.unique(top).tolist()}, key=lambda kind: (kind != before, -(top == kind).sum()))
    hues = [SAME, *(COLORS[n % len(COLORS)] for n in range(len(kinds) - 1))]
    number = np.vectorize({kind: n for n, kind in enumerate(kinds)}.get)(top)
    axes.pcolormesh(*edges, number, cmap=ListedColormap(hues), vmin=-0.5, vmax=len(kinds) - 0.5)
    labels = [f"{classes[kind]}{' (as without it)' * (kind == before)}" for kind in kinds[:LISTED]]
    labels += [f"{len(kinds) - LISTED} more"] * (len(kinds) > LISTED)
    handles = [Rectangle((0, 0), 1, 1, color=hue) for hue in [*hues[:LISTED], "white"]]
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(handles[: len(labels)], labels, fontsize=8, handlelength=1, handleheight=1, **place)


def _edges(corners: np.ndarray, side: int) -> np.ndarray:
    """Returns edges, in pixels, halfway between the centers of the squares, and as far beyond the outer centers."""
    middles = corners + (side - 1) / 2
    if len(middles) == 1:
        return np.array([corners[0] - 0.5, corners[0] + side - 0.5])
    inner = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[2 * middles[0] - inner[0]], inner, [2 * middles[-1] - inner[-1]]])


# -- receptive fields and patches ----------------------------------------------------------------------------------


def receptive_size(images: Sequence[Any]) -> tuple[float, float]:
    """Returns the size in inches of a Figure for `draw_receptive`."""
    return max(6.5, 1.95 * (len(images) + 1) + 0.9), 1.2 + 2 * 1.95 * min(1.6, max(map(overlays.aspect_of, images)))


def draw_receptive(
    figure: Any,
    images: Sequence[Any],
    names: Sequence[str],
    box: Sequence[int] | None,
    effective: Sequence[Any],
    mean: Any,
    says: str,
) -> None:
    """Draws a column per image, the image above its effective field, and then the mean effective field of many images.

    Args:
      figure: An empty figure.
      images: Up to four images or Pictures.
      names: Names of the images.
      box: The theoretical field (top, left, bottom, right), within the image; None if a unit sees all of it.
      effective: Effective field [H, W] of each image.
      mean: Mean effective field [H, W] over many images.
      says: Text above the panels.
    """
    grid = figure.subplots(2, len(images) + 1, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    for (above, below), image, name, field in zip(grid.T[:-1], images, names, effective, strict=True):
        draw_image(above, image)
        above.set_title(name, fontsize=9)
        draw_panel(below, image, Panel(field))
    grid[0, 0].set_ylabel("image", fontsize=9)
    grid[1, 0].set_ylabel("effect of each pixel", fontsize=9)
    grid[0, -1].set_visible(False)
    smooth = "nearest" if max(np.shape(mean)) <= SMALL else "antialiased"
    drawn = grid[1, -1].imshow(overlays.share_of_largest(mean) * 100, cmap=HEAT, vmin=0, vmax=100, interpolation=smooth)
    grid[1, -1].set_title("mean of many images", fontsize=9)
    for axes in [*grid[:, :-1].flat, grid[1, -1]]:
        if box is not None:
            draw_box(axes, box)
    figure.colorbar(drawn, ax=grid[1, -1], shrink=0.9, label="% of the largest effect")
    figure.suptitle(says, fontsize=9)


def montage(patches: Sequence[Any], columns: int) -> np.ndarray:
    """Tiles images of one size into one, [H, W, 3] in [0, 1], with `columns` per row and white gaps."""
    patches = [
        shown(patch).astype(np.float32) / (255 if np.asarray(patch).dtype == np.uint8 else 1) for patch in patches
    ]
    height, width = patches[0].shape[:2]
    gap = max(1, height // 24)
    rows = math.ceil(len(patches) / columns)
    whole = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.float32)
    for i, patch in enumerate(patches):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        whole[top : top + height, left : left + width] = patch
    return whole


def draw_patches(figure: Any, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Draws one row per channel; a row is (name of the channel, one montage per column)."""
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.get_layout_engine().set(wspace=0.03, hspace=0.02)
    headings(grid[0], columns)
    for line, (name, montages) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, montages, strict=True):
            bare(axes)
            axes.imshow(picture, interpolation="nearest" if max(picture.shape) <= 3 * SMALL else "antialiased")
        line[0].set_ylabel(name, fontsize=9)
    figure.supxlabel("Projections: gray is 0, black negative, white positive.", fontsize=8)

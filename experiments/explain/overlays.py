"""Pictures of explanations: heat over images, panels of occlusion, receptive fields, grids of patches.

The functions draw into a matplotlib Figure. Images are uint8 [H, W, C], or numbers in [0, 1] of that shape.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from scipy.special import softmax

HEAT = "turbo"  # over an image
ALPHA = 0.55
BOXES = ("#39ff14", "#ff3df2", "#00e5ff")


class Picture(NamedTuple):
    """A picture to draw beside or below an explanation, in the coordinates of the network's input.

    Attributes:
      pixels: The picture. It may show more than the network sees, and have another aspect ratio.
      extent: (left, right, bottom, top) of the picture, where the pixels of the network's input have whole numbers.
      aspect: Height of a pixel of the network's input divided by its width, both measured on the picture.
    """

    pixels: Any
    extent: tuple[float, float, float, float]
    aspect: float


def placed(pixels: Any, box: Sequence[float], size: Sequence[int]) -> Picture:
    """Places a picture so that its part `box` covers the pixels of the network's input.

    Args:
      pixels: The picture [h, w, C].
      box: (left, top, right, bottom), as fractions of the picture's width and height.
      size: Height and width of the network's input.
    """
    left, top, right, bottom = box
    # Number of input pixels across the picture's width and down its height
    across, down = size[1] / (right - left), size[0] / (bottom - top)
    height, width = np.shape(pixels)[:2]
    extent = (-0.5 - left * across, -0.5 + (1 - left) * across, -0.5 + (1 - top) * down, -0.5 - top * down)
    return Picture(pixels, extent, (height / down) / (width / across))


def _picture(image: Any) -> Picture:
    """Returns an image as a Picture; a plain image has the size of the network's input."""
    return image if isinstance(image, Picture) else placed(image, (0, 0, 1, 1), np.shape(image)[:2])


def draw_image(axes: Any, image: Any, **options: Any) -> None:
    """Draws an image or a Picture; `options` are those of imshow."""
    picture = _picture(image)
    axes.imshow(options.pop("pixels", shown(picture.pixels)), extent=picture.extent, **options)
    _frame(axes, image)


def _frame(axes: Any, image: Any) -> None:
    """Makes the axes show all of an image or a Picture, without changing its aspect ratio."""
    picture = _picture(image)
    axes.set(xlim=picture.extent[:2], ylim=picture.extent[2:], aspect=picture.aspect)


class Panel(NamedTuple):
    """The result of one method for one image.

    Attributes:
      values: Heat [H, W], at least 0; if `signed`, [H, W, C], which is drawn as a picture where gray means 0.
      says: Text above the panel.
      over: Whether the heat covers the image. Otherwise it is drawn alone, bright where it is large.
    """

    values: Any
    says: str = ""
    over: bool = True
    signed: bool = False


def shown(pixels: Any) -> np.ndarray:
    """Returns an image in the form that imshow takes, [H, W, 3]."""
    pixels = np.asarray(pixels)
    return np.repeat(pixels, 3, 2) if pixels.shape[-1] == 1 else pixels


def around_gray(values: Any) -> np.ndarray:
    """Returns signed numbers [H, W, C] as a picture: 0 is gray, the largest magnitudes are black and white.

    The largest 0.5% of the magnitudes are clipped, because otherwise single pixels make the rest gray.
    """
    values = np.asarray(values, np.float32)
    limit = np.quantile(np.abs(values), 0.995)
    return shown(np.clip(0.5 + values / (2 * limit), 0, 1) if limit > 0 else np.full_like(values, 0.5))


def share_of_largest(values: Any, quantile: float = 1.0) -> np.ndarray:
    """Returns heat [H, W] scaled to [0, 1]; zeros stay zeros."""
    values = np.maximum(np.asarray(values, np.float32), 0)
    limit = np.quantile(values, quantile)
    return np.clip(values / limit, 0, 1) if limit > 0 else np.zeros_like(values)


def draw_box(axes: Any, box: Sequence[int], color: str = BOXES[0]) -> None:
    """Draws a box (top, left, bottom, right) around the pixels [top:bottom, left:right]."""
    top, left, bottom, right = box
    axes.add_patch(
        Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.6)
    )


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def draw_panel(axes: Any, image: Any, panel: Panel) -> None:
    """Draws the result of one method over one image."""
    pixels = np.asarray(_picture(image).pixels)
    if isinstance(image, Picture):
        axes.set_facecolor("0.5" if panel.signed else "black")  # the color of the area that the network does not see
    if panel.signed:
        axes.imshow(around_gray(panel.values), interpolation="nearest")
    elif panel.over:
        gray = shown(pixels).mean(-1) / (255 if pixels.dtype == np.uint8 else 1)
        draw_image(axes, image, pixels=gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.imshow(share_of_largest(panel.values), cmap=HEAT, vmin=0, vmax=1, alpha=ALPHA)
    else:
        axes.imshow(share_of_largest(panel.values, 0.995), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _frame(axes, image)
    axes.set_title(panel.says, fontsize=8, pad=3)


class Row(NamedTuple):
    """An image or a Picture, the texts to its left and above it, and a Panel (None if empty) for each column."""

    image: Any
    name: str
    says: str
    panels: Sequence[Panel | None]
    boxes: Sequence[tuple[int, int, int, int]] = ()


def _headings(figure: Any, axes_of_row: Sequence[Any], titles: Sequence[str]) -> None:
    """Writes headings above the first row, above the panels' own titles."""
    lines = max(title.count("\n") for title in titles) + 1
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (0.14 * lines + 0.1) / figure.get_figheight()))
    for axes, title in zip(axes_of_row, titles, strict=True):
        axes.annotate(
            title,
            (0.5, 1),
            (0, 26),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
        )


def size_of(rows: int, columns: int) -> tuple[float, float]:
    """Returns the size in inches of a Figure for `draw_rows`."""
    return max(5.0, 1.75 * (columns + 1) + 1.6), 2.1 * rows + 0.7


def draw_rows(figure: Any, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Draws one row per image, one column per method, and a colorbar if heat lies over images."""
    grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    _headings(figure, grid[0], ("image", *columns))
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            _bare(axes)
        draw_image(line[0], row.image, interpolation="nearest")
        line[0].set_title(row.says, fontsize=8, pad=3)
        line[0].set_ylabel(row.name, fontsize=9)
        for box, color in zip(row.boxes, BOXES, strict=False):
            draw_box(line[0], box, color)
        for axes, panel in zip(line[1:], row.panels, strict=True):
            if panel is None:
                axes.text(
                    0.5,
                    0.5,
                    "not for this\nnetwork",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="0.5",
                    transform=axes.transAxes,
                )
            else:
                draw_panel(axes, row.image, panel)
    if any(panel and panel.over and not panel.signed for row in rows for panel in row.panels):
        figure.colorbar(
            ScalarMappable(cmap=HEAT),
            ax=grid,
            shrink=min(1.0, 2.4 / len(rows) + 0.3),
            aspect=25,
            label="heat, share of the map's largest value",
            alpha=ALPHA,
            pad=0.01,
        )
    if any(panel and (panel.signed or not panel.over) for row in rows for panel in row.panels):
        figure.supxlabel(
            "Without an image below: brightness is the share of the largest value; on a gray background "
            "gray is 0, black negative, white positive.",
            fontsize=7,
            color="0.35",
        )


# -- occlusion -----------------------------------------------------------------------------------------------------


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

    The panels show the image with one square, and three maps over the center of the square: the total activation of the
    strongest feature map, the probability of the class, and the most probable class.

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
    grid = figure.subplots(len(images), 4, squeeze=False)
    _headings(figure, grid[0], ("image, and the square", "strongest feature map", "probability", "most probable class"))
    for i, (line, image) in enumerate(zip(grid, images, strict=True)):
        target, probability = int(result["target"][i]), result["probability"][i]
        for axes in line:
            _bare(axes)
            _frame(axes, image)
        draw_image(line[0], image, interpolation="nearest")
        hardest = np.unravel_index(probability.argmin(), probability.shape)
        corner = result["columns"][hardest[1]], result["rows"][hardest[0]]
        line[0].add_patch(
            Rectangle(
                (float(corner[0]) - 0.5, float(corner[1]) - 0.5),
                square[1],
                square[0],
                linewidth=0.8,
                facecolor=shown(np.reshape(color, (1, 1, -1)))[0, 0],
                edgecolor="white",
            )
        )
        line[0].set_title("most costly square for the class", fontsize=8, pad=3)
        line[0].set_ylabel(names[i], fontsize=9)
        drawn = line[1].pcolormesh(*edges, result["strongest"][i], cmap=HEAT)
        line[1].set_title(f"channel {int(result['channel'][i])}, total activation", fontsize=8, pad=3)
        figure.colorbar(drawn, ax=line[1], shrink=0.8)
        drawn = line[2].pcolormesh(*edges, probability, cmap=HEAT, vmin=0, vmax=1)
        line[2].set_title(
            f"{classes[target]}; {softmax(result['logits'][i])[target]:.0%} without the square", fontsize=8, pad=3
        )
        figure.colorbar(drawn, ax=line[2], shrink=0.8)
        top = result["top"][i]
        kinds = sorted(np.unique(top).tolist(), key=lambda kind: -(top == kind).sum())
        number = np.vectorize({kind: n for n, kind in enumerate(kinds)}.get)(top)
        palette = ListedColormap([colormaps["tab20"](n % 20) for n in range(len(kinds))])
        line[3].pcolormesh(*edges, number, cmap=palette, vmin=-0.5, vmax=len(kinds) - 0.5)
        line[3].legend(
            handles=[Rectangle((0, 0), 1, 1, color=palette(n)) for n in range(min(len(kinds), 10))],
            labels=[classes[kind] for kind in kinds[:10]],
            fontsize=7,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )


def _edges(corners: np.ndarray, side: int) -> np.ndarray:
    """Returns edges, in pixels, halfway between the centers of the squares, and as far beyond the outer centers."""
    middles = corners + (side - 1) / 2
    if len(middles) == 1:
        return np.array([corners[0] - 0.5, corners[0] + side - 0.5])
    inner = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[2 * middles[0] - inner[0]], inner, [2 * middles[-1] - inner[-1]]])


# -- receptive fields and patches ----------------------------------------------------------------------------------


def draw_receptive(
    figure: Any,
    images: Sequence[Any],
    names: Sequence[str],
    box: Sequence[int] | None,
    effective: Sequence[Any],
    mean: Any,
    says: str,
) -> None:
    """Draws two panels per image, the image and its effective field, and then the mean effective field of many images.

    Args:
      figure: An empty figure.
      images: Up to four images or Pictures.
      names: Names of the images.
      box: The theoretical field (top, left, bottom, right), within the image; None if a unit sees all of it.
      effective: Effective field [H, W] of each image.
      mean: Mean effective field [H, W] over many images.
      says: Text above the panels.
    """
    count = len(images)
    grid = figure.subplots(1, 2 * count + 1, squeeze=False)[0]
    for axes in grid:
        _bare(axes)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        left, right = grid[2 * i : 2 * i + 2]
        draw_image(left, image, interpolation="nearest")
        left.set_title(name, fontsize=8, pad=3)
        draw_panel(right, image, Panel(effective[i], "effective, this image"))
    grid[-1].imshow(share_of_largest(mean), cmap="gray", vmin=0, vmax=1)
    grid[-1].set_title("effective, mean", fontsize=8, pad=3)
    for axes in grid:
        if box is not None:
            draw_box(axes, box)
    figure.suptitle(says, fontsize=8)


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
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=9, fontweight="bold")
    for line, (name, montages) in zip(grid, rows, strict=True):
        for axes, picture in zip(line, montages, strict=True):
            _bare(axes)
            axes.imshow(picture, interpolation="nearest")
        line[0].set_ylabel(name, fontsize=9)

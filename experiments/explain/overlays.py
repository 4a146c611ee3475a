"""Pictures of explanations: heat over images, and rows of images beside what methods show of them.

The functions draw into a matplotlib Figure. Images are uint8 [H, W, C], or numbers in [0, 1] of that shape.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

HEAT = "plasma"  # over an image
ALPHA = 0.6
DARKEST = 0.5  # gray of a black pixel below heat, so that the heat above it keeps its color
SMALL = 100  # pixels, up to which images are enlarged without smoothing
BOXES = ("#39ff14", "#ff3df2", "#00e5ff")
LEGENDS = {  # kind of a Panel: its colors, their range, its ticks, what they say
    "over": (HEAT, (0, 1), {0: "0", 1: "max"}, "evidence"),
    "alone": ("gray", (0, 1), {0: "0", 1: "max"}, "magnitude"),
    "signed": ("gray", (-1, 1), {-1: "−", 1: "+"}, "gray is 0"),
}


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


def aspect_of(image: Any) -> float:
    """Returns the height of an image or a Picture divided by its width, as it is drawn."""
    picture = _picture(image)
    left, right, bottom, top = picture.extent
    return picture.aspect * (bottom - top) / (right - left)


def draw_image(axes: Any, image: Any, **options: Any) -> None:
    """Draws an image or a Picture, a small one with crisp pixels; `options` are those of imshow."""
    picture = _picture(image)
    options.setdefault("interpolation", _interpolation(np.shape(picture.pixels)))
    axes.imshow(options.pop("pixels", shown(picture.pixels)), extent=picture.extent, **options)
    frame(axes, image)


def _interpolation(shape: Sequence[int]) -> str:
    return "nearest" if max(shape[:2]) <= SMALL else "antialiased"


def frame(axes: Any, image: Any) -> None:
    """Makes the axes show all of an image or a Picture, without changing its aspect ratio."""
    picture = _picture(image)
    axes.set(xlim=picture.extent[:2], ylim=picture.extent[2:], aspect=picture.aspect)


class Panel(NamedTuple):
    """The result of one method for one image.

    Attributes:
      values: Heat [H, W], at least 0; if `signed`, [H, W, C], which is drawn as a picture where gray means 0.
      says: Text below the panel.
      over: Whether the heat covers the image. Otherwise it is drawn alone, bright where it is large.
      means: What its colors say, if not what LEGENDS has.
    """

    values: Any
    says: str = ""
    over: bool = True
    signed: bool = False
    means: str = ""

    @property
    def kind(self) -> str:
        """The key of its legend in LEGENDS."""
        return "signed" if self.signed else "over" if self.over else "alone"


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


def ticks(count: int) -> Any:
    """Returns a locator of about `count` round numbers."""
    return MaxNLocator(count, steps=[1, 2, 5, 10], symmetric=True)


def bare(axes: Any) -> None:
    """Leaves axes without ticks and spines."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def draw_panel(axes: Any, image: Any, panel: Panel) -> None:
    """Draws the result of one method over one image."""
    if isinstance(image, Picture):
        axes.set_facecolor("0.5" if panel.signed else "black")  # the color of the area that the network does not see
    smooth = _interpolation(np.shape(panel.values))
    if panel.signed:
        axes.imshow(around_gray(panel.values), interpolation=smooth)
    elif panel.over:
        draw_faded(axes, image)
        axes.imshow(share_of_largest(panel.values), cmap=HEAT, vmin=0, vmax=1, alpha=ALPHA, interpolation=smooth)
    else:
        axes.imshow(share_of_largest(panel.values, 0.995), cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    frame(axes, image)
    axes.set_xlabel(panel.says, fontsize=8)


def draw_faded(axes: Any, image: Any, darkest: float = DARKEST) -> None:
    """Draws an image or a Picture in gray, and lighter, as the ground of a map."""
    pixels = np.asarray(_picture(image).pixels)
    gray = shown(pixels).mean(-1) / (255 if pixels.dtype == np.uint8 else 1)
    draw_image(axes, image, pixels=darkest + (1 - darkest) * gray, cmap="gray", vmin=0, vmax=1)


class Row(NamedTuple):
    """An image or a Picture, the texts to its left and below it, and a Panel (None if empty) for each column."""

    image: Any
    name: str
    says: str
    panels: Sequence[Panel | None]
    boxes: Sequence[tuple[int, int, int, int]] = ()


def headings(axes_of_row: Sequence[Any], titles: Sequence[str]) -> None:
    """Writes headings above the first row."""
    for axes, title in zip(axes_of_row, titles, strict=True):
        axes.set_title(title, fontsize=9, fontweight="bold")


def size_of(rows: Sequence[Row], columns: int) -> tuple[float, float]:
    """Returns the size in inches of a Figure for `draw_rows`."""
    heights = [min(1.7 * aspect_of(row.image), 3.0) + 0.22 * (1 + row.says.count("\n")) for row in rows]
    return max(4.0, 1.75 * (columns + 1) + 0.4), sum(heights) + 1.0


def draw_rows(figure: Any, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Draws one row per image, one column per method, and below each column what its colors mean."""
    ratios = [aspect_of(row.image) for row in rows]
    grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False, height_ratios=ratios)
    headings(grid[0], ("image", *columns))
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            bare(axes)
        draw_image(line[0], row.image)
        line[0].set_xlabel(row.says, fontsize=8)
        line[0].set_ylabel(row.name, fontsize=9)
        for box, color in zip(row.boxes, BOXES, strict=False):
            draw_box(line[0], box, color)
        for axes, panel in zip(line[1:], row.panels, strict=True):
            if panel is None:
                axes.set_box_aspect(aspect_of(row.image))
                place = {"ha": "center", "va": "center", "transform": axes.transAxes}
                axes.text(0.5, 0.5, "not for this\nnetwork", fontsize=8, color="0.5", **place)
            else:
                draw_panel(axes, row.image, panel)
    for column in range(len(columns)):
        panels = [panel for row in rows if (panel := row.panels[column])]
        if panels:
            draw_legend(figure, grid[-1, column + 1], rows[-1].image, panels[0])


def draw_legend(figure: Any, axes: Any, image: Any, panel: Panel) -> None:
    """Draws a colorbar below the last panel of a column, which shows a Panel on an image."""
    colors, (low, high), marks, means = LEGENDS[panel.kind]
    mappable = ScalarMappable(cmap=colors)
    mappable.set_clim(low, high)
    height = 1.6 * aspect_of(image)  # inches, about
    place = axes.inset_axes((0.1, -(0.18 + 0.1) / height - 0.12 * bool(panel.says), 0.8, 0.1 / height))
    bar = figure.colorbar(mappable, cax=place, orientation="horizontal", alpha=ALPHA if panel.over else None)
    bar.set_ticks(list(marks), labels=list(marks.values()))
    bar.set_label(panel.means or means, fontsize=8, labelpad=-7)
    bar.ax.tick_params(length=0, labelsize=8)

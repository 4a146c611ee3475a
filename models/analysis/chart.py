"""A chart of a network's cost: mult-adds, parameters and memory, in the order of the computation."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, LogFormatter

from models.analysis.cost import Complexity, Layer, short
from models.errors import UserError

BARS = 60  # maximum number of bars
COLORS = "#4878a8", "#93b5d3"  # of alternating stages
PANELS = (  # field of Layer, title, unit
    ("mult_adds", "mult-adds", ""),
    ("params", "parameters", ""),
    ("output_bytes", "output memory", "B"),
    ("kept_bytes", "kept for backward", "B"),
)


def groups(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Groups layers by the beginning of their path, in the order of the computation.

    The beginnings are as long as possible with at most BARS groups. The network itself, with the images and arrays that
    belong to no layer, comes first.
    """
    ordered = sorted(
        layers, key=lambda layer: layer.path != ""
    )  # stable, so only the network moves, from last to first
    grouped: dict[str, list[Layer]] = {}
    for depth in range(max(layer.path.count("/") for layer in layers) + 1, 0, -1):
        grouped = {}
        for layer in ordered:
            grouped.setdefault("/".join(layer.path.split("/")[:depth]), []).append(layer)
        if len(grouped) <= BARS:
            break
    return grouped


def draw(cost: Complexity, path: str, name: str) -> None:
    """Draws a bar for each layer or block.

    Args:
      cost: Cost of the network.
      path: File to write; its suffix, e.g. .png, determines the format.
      name: Name of the network, for the title.

    Raises:
      UserError: matplotlib does not know the format.
    """
    bars = groups(cost.layers)
    stages = list(dict.fromkeys(bar.split("/")[0] for bar in bars))
    colors = [COLORS[stages.index(bar.split("/")[0]) % 2] for bar in bars]
    figure = Figure(figsize=(13, 1.7 + 0.21 * len(bars)), layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (field, title, unit) in zip(panels, PANELS, strict=True):
        sizes = [sum(getattr(layer, field) for layer in layers) for layers in bars.values()]
        patches = axes.barh(range(len(bars)), sizes, color=colors, height=0.78)
        axes.bar_label(
            patches,
            [short(size) + unit if size > 0.005 * sum(sizes) else "" for size in sizes],
            padding=2,
            fontsize=7,
            color="#444444",
        )
        axes.set_title(f"{title}: {short(sum(sizes))}{unit}", fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(unit))
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.27, y=0.5 / len(bars))
        axes.tick_params(labelsize=8, left=False)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(bars)), [bar or "(model)" for bar in bars])
    panels[0].invert_yaxis()
    figure.suptitle(f"{name}, one example of {' x '.join(map(str, cost.input_shape[1:]))}", fontsize=11)
    try:
        save(figure, path, dpi=110)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def save(figure: Figure, path: str | Path, **options: Any) -> None:
    """Writes a figure with its texts shown literally: a class called `$1` is not mathematics.

    Args:
      figure: Figure to write.
      path: File; its suffix determines the format.
      **options: Options of `Figure.savefig`.

    Raises:
      OSError: The file cannot be written; the error names it.
    """
    powers = set()  # labels such as 10², which Matplotlib writes as mathematics
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, LogFormatter):
                powers |= {*axis.get_ticklabels(which="both"), axis.offsetText}
            elif isinstance(formatter, FuncFormatter):  # formats labels that were set as texts
                axis.set_major_formatter(lambda *position, write=formatter: _printable(str(write(*position))))
    for text in figure.findobj(Text):
        if text not in powers:
            text.set_parse_math(False)
            text.set_text(_printable(text.get_text()))
    with warnings.catch_warnings():
        # Characters that no font of this machine has are drawn as boxes; texts outside the figure show them
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        try:
            figure.savefig(path, **options)
        except OSError as error:  # the error of a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error


def _printable(text: str) -> str:
    """Returns a text in which bytes that are not UTF-8 (surrogates in file names) are escaped."""
    return text.encode(errors="backslashreplace").decode()

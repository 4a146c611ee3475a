"""A chart of a network's cost: mult-adds, parameters and memory, in the order of the computation."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from models.analysis import drawing
from models.analysis.cost import Complexity, Layer, short
from models.analysis.palette import BLUE, LIGHT_BLUE
from models.errors import UserError

BARS = 60  # maximum number of bars
COLORS = BLUE, LIGHT_BLUE  # of alternating stages
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
    try:
        with drawing.figure(path, (13, 1.7 + 0.21 * len(bars))) as figure:
            _draw_bars(figure, bars, colors)
            size = " x ".join(map(str, cost.input_shape[1:]))
            figure.suptitle(f"{name}, one example of {size}; the two blues alternate from stage to stage")
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _draw_bars(figure: Figure, bars: Mapping[str, Sequence[Layer]], colors: Sequence[str]) -> None:
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
        axes.set_title(f"{title}: {short(sum(sizes))}{unit}")
        axes.xaxis.set_major_formatter(EngFormatter(unit))
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.27, y=0.5 / len(bars))
        axes.tick_params(labelsize=8, left=False)
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(bars)), [bar or "(model)" for bar in bars])
    panels[0].invert_yaxis()

"""Pictures of the study of adaptive inference."""

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from experiments.studies.adaptive.results import WITH_EXITS, accuracies, curve_of, first_seed, name_of, values_of
from experiments.studies.measures import from_png
from experiments.study import Outcome, Outcomes, deviation, finite, mean
from experiments.study.figures import BELOW, band, finish, fixed_ticks, percent_axis
from models.analysis.cost import short
from models.analysis.palette import BLUE, GRAY, GREEN, PURPLE, RED, YELLOW
from train.plots import figures

COLORS = {
    "ResNet": GRAY,
    "ConvNet-AIG": BLUE,
    "BlockDrop": RED,
    "policy alone": PURPLE,
    "MSDNet": GREEN,
    "ResNet with exits": YELLOW,
}


def _draw_points(axes: Axes, points: Sequence[tuple[Sequence[float], Sequence[float]]], **style: Any) -> None:
    """Draws means and standard deviations of (costs, accuracies) of each group, joined by a line."""
    groups = [(finite(costs), finite(rates)) for costs, rates in points]
    groups = [(costs, [100 * a for a in rates]) for costs, rates in groups if costs and rates]
    if groups:
        x, y = zip(*groups, strict=True)
        spreads = {"xerr": list(map(deviation, x)), "yerr": list(map(deviation, y))}
        axes.errorbar(list(map(mean, x)), list(map(mean, y)), **spreads, **style)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against mult-adds."""
    left, right = figure.subplots(1, 2, sharey=True)
    resnets = outcomes.where(method="ResNet")
    points = [(group.values("mult_adds"), group.values("accuracy")) for _, group in resnets.groups("depth")]
    depths = _ends(resnets, "depth", "depth")
    for axes in (left, right):
        _draw_points(axes, points, fmt="s-", color=COLORS["ResNet"], label=f"ResNet, {depths}")
    _draw_deciding(left, outcomes)
    _draw_exits(right, outcomes)
    for axes, title in ((left, "networks that skip blocks"), (right, "networks with exits")):
        finish(axes, legend=BELOW, xlabel="mult-adds on average", title=title)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    percent_axis(left, outcomes)


def _ends(outcomes: Outcomes, label: str, name: str) -> str:
    values = outcomes.distinct(label)
    return f"{name} {min(values):g} to {max(values):g}" if len(values) > 1 else name


def _draw_deciding(axes: Axes, outcomes: Outcomes) -> None:
    for method, label in (("ConvNet-AIG", "target"), ("BlockDrop", "penalty"), ("policy alone", "method")):
        of_method = outcomes.where(method=method)
        groups = [of_method.where(**{label: value}) for value in sorted(of_method.distinct(label))]
        points = [(values_of(group, "as decided", "mult_adds"), accuracies(group)) for group in groups]
        name = method if label == "method" else f"{method}, {_ends(of_method, label, label)}"
        _draw_points(axes, points, fmt="o-", color=COLORS[method], label=name)


def _draw_exits(axes: Axes, outcomes: Outcomes) -> None:
    for method in WITH_EXITS:
        of_method, color = outcomes.where(method=method).having("leaving"), COLORS[method]
        for batch, name in ((False, "one exit for all"), (True, "exit by image")):
            curves = [curve_of(outcome, batch) for outcome in of_method]
            costs, rates = ([[point[i] for point in curve] for curve in curves] for i in (0, 1))
            if batch:
                x = [mean(same) for same in zip(*costs, strict=True)]
                band(axes, x, rates, color=color, label=f"{method}, {name}")
            else:
                pairs = list(zip(zip(*costs, strict=True), zip(*rates, strict=True), strict=True))
                _draw_points(axes, pairs, fmt="o:", color=color, label=f"{method}, {name}")


def draw_used(outcomes: Outcomes, figure: Any) -> None:
    """Draws how many blocks images use, and at which exits they leave."""
    left, right = figure.subplots(1, 2)
    deciding = {name_of(o.labels): o.labels for o in outcomes.having("decided") if o.labels["method"] != "policy alone"}
    for i, labels in enumerate(deciding.values()):
        own = {name: value for name, value in labels.items() if name != "seed"}
        seeds = [one["used"] for one in outcomes.where(**own).results("decided")]
        shares = [
            statistics.mean(100 * used / sum(seed) for used, seed in zip(same, seeds, strict=True))
            for same in zip(*seeds, strict=True)
        ]
        x = [100 * count / (len(shares) - 1) for count in range(len(shares))]
        left.scatter(x, [i] * len(x), s=[4 * share for share in shares], color=COLORS[labels["method"]], linewidths=0)
    for share in (1, 10, 50):
        left.scatter([], [], s=4 * share, color=GRAY, linewidths=0, label=f"{share}% of the images")
    fixed_ticks(left.yaxis, range(len(deciding)), deciding)
    limits = {"xlim": (-5, 105), "ylim": (max(len(deciding), 1) - 0.5, -0.5)}
    finish(
        left, legend={**BELOW, "ncols": 3, "columnspacing": 0.8}, xlabel="blocks that are computed (% of all)", **limits
    )
    _draw_left(right, [one["rows"] for one in outcomes.where(method="MSDNet").results("leaving")])


def _draw_left(axes: Axes, seeds: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Draws the share of images that leave at each exit, one bar per budget; mean over seeds."""
    budgets = [[row for row in same if "left" in row] for same in zip(*seeds, strict=True)]
    budgets = [same for same in budgets if same]
    exits = len(budgets[0][0]["left"]) if budgets else 0
    bottoms = [0.0] * len(budgets)
    for k in range(exits):
        shares = [100 * statistics.mean(row["left"][k] for row in same) for same in budgets]
        color = colormaps["viridis"](k / max(1, exits - 1))
        axes.bar(range(len(budgets)), shares, 0.8, bottom=bottoms, label=f"exit {k + 1}", color=color)
        bottoms = [a + b for a, b in zip(bottoms, shares, strict=True)]
    names = [short(float(f"{same[0]['budget']:.2g}")).replace(" ", "") for same in budgets]
    fixed_ticks(axes.xaxis, range(0, len(budgets), 2), names[::2])
    xlabel = "budget for the average image (mult-adds)"
    legend = {**BELOW, "ncols": max(exits, 1), "columnspacing": 0.8}
    finish(axes, legend=legend, title="MSDNet", xlabel=xlabel, ylabel="images that leave at the exit (%)")


def draw_classes(outcomes: Outcomes, figure: Any) -> None:
    """Draws classes by blocks, for the gates with the lowest target and for the joint training."""
    deciding = outcomes.having("decided")
    chosen = [
        next(iter(deciding.where(method=method).groups("method", label)), None)
        for method, label in (("ConvNet-AIG", "target"), ("BlockDrop", "penalty"))
    ]
    chosen = [group for _, group in filter(None, chosen)]
    if not chosen:
        return
    grid, image = figure.subplots(2, len(chosen), squeeze=False, sharey=True), None
    for column, group in zip(grid.T, chosen, strict=True):
        seeds = group.results("decided")
        means = [_mean_row([one["by_class"][i] for one in seeds]) for i in range(len(seeds[0]["classes"]))]
        titles = ("first seed", f"mean of {len(seeds)} seeds")
        for axes, shares, title in zip(column, (seeds[0]["by_class"], means), titles, strict=True):
            image = figures.classes_by_part(axes, shares, seeds[0]["classes"], "block")
            axes.set(title=f"{name_of(group[0].labels)}: {title}", xlabel="", ylabel="")
            stages = [name.split("/")[0] for name in seeds[0]["blocks"]]
            for at, pair in enumerate(itertools.pairwise(stages)):
                if len(set(pair)) > 1:
                    axes.axvline(at + 0.5, color="white", linewidth=2)
        column[1].set_xlabel("block; white lines separate stages")
    for axes in grid[:, 0]:
        axes.set_ylabel("class")
    figure.colorbar(image, ax=grid, label="images of the class for which it is computed (%)")


def _mean_row(rows: Sequence[Sequence[float] | None]) -> list[float] | None:
    whole = [row for row in rows if row is not None]
    return [statistics.mean(same) for same in zip(*whole, strict=True)] if whole else None


def draw_extremes(outcomes: Outcomes, figure: Any) -> None:
    """Draws two rows per network, easy and hard images, if there are such images."""
    # The first outcome of each method
    chosen = {o.labels["method"]: o for o in reversed(first_seed(outcomes).having("extremes"))}
    rows = [
        (f"{name_of(outcome.labels)}:\n{_heading(outcome, kind, images)}", images)
        for outcome in reversed(chosen.values())
        for kind, images in outcome.measured["extremes"].items()
        if images
    ]
    figure.set_figheight(0.3 + 0.85 * max(1, len(rows)))
    grid = figure.subplots(max(1, len(rows)), max((len(images) for _, images in rows), default=1), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for (name, images), line in zip(rows, grid, strict=False):
        for axes, one in zip(line, images, strict=False):
            pixels = from_png(one["image"])
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(one["label"], pad=2)
        place = {"xytext": (-12, 0), "xycoords": "axes fraction", "textcoords": "offset points"}
        line[0].annotate(name, (0, 0.5), **place, ha="right", va="center")


def _heading(outcome: Outcome, kind: str, images: Sequence[dict[str, Any]]) -> str:
    """Returns the meaning of easy or hard, with the range of what `train.adaptive.extremes` says of the images."""
    says = list(dict.fromkeys(image["says"].removeprefix("exit 1: ").removesuffix(" blocks") for image in images))
    span = " to ".join(dict.fromkeys((says[0], says[-1])[:: 1 if kind == "easy" else -1]))
    if outcome.labels["method"] in WITH_EXITS:
        return f"right at exit 1,\nwhich is {span} sure" if kind == "easy" else "right only at\nthe last exit"
    return f"{'fewest' if kind == 'easy' else 'most'} blocks,\n{span}"

"""Results of the study of normalization: judges, tables, pictures."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import Judge, Outcomes, Table, evidence
from experiments.study.figures import errorbars, finish, fixed_ticks, legend_below, number_ticks, percent_axis
from experiments.study.tables import accuracy, table_by
from experiments.study.verdicts import Judgement, finite, listed, more, spread
from models.analysis.axes import logarithmic
from models.analysis.palette import BLUE, CYAN, GRAY, GREEN, LIGHT_BLUE, RED, YELLOW

SIZES = (32, 16, 8, 4, 2)  # numbers of images that are normalized together, as if on one GPU
ALIKE = 0.02  # accuracies that differ by less are alike
NATS, DECADES = 0.01, 0.05  # smallest differences of training losses, and of their logarithms, that matter
POINTS = (1, 2, 4, 8)  # epochs of training after which the smoothness is measured
PUBLISHED = {  # top-1 error (%) of ResNet-50 on ImageNet; Wu & He 2018, tables 1 and 2
    "BN": {32: 23.6, 16: 23.7, 8: 24.8, 4: 27.3, 2: 34.7},
    "GN": {32: 24.1, 16: 24.2, 8: 24.0, 4: 24.2, 2: 24.1},
    "LN": {32: 25.3},
    "IN": {32: 28.4},
}
COLORS = {"BN": BLUE, "BN, same steps": CYAN, "GN": RED, "LN": GREEN, "IN": YELLOW, "none": GRAY}
MODES = {  # key of the measure `gap` -> (legend, color)
    "batch": ("training images, statistics of the batch", LIGHT_BLUE),
    "train": ("training images, running averages", BLUE),
    "test": ("test images, running averages", RED),
    "recalibrated": ("test images, recalibrated statistics", YELLOW),
}
SMOOTHNESS = {  # key of the measure `smoothness` -> heading
    "loss": "range of the loss (nats)",
    "change": "change of the gradient",
    "smoothness": "effective smoothness",
}


# -- judges --------------------------------------------------------------------------------------------------------


def _runs(outcomes: Outcomes, norm: str, images: int) -> Outcomes:
    runs = outcomes.where(part="size", norm=norm, images=images)
    if not len(runs) and norm == "BN, same steps":  # at 32 images, it is the same as BN
        return _runs(outcomes, "BN", images)
    return runs


def _accuracy(outcomes: Outcomes, norm: str, images: int) -> list[float]:
    """Returns accuracies by seed, for verdicts; 0 for a run that diverged."""
    return _runs(outcomes, norm, images).values("accuracy", diverged=0.0)


def _gaps(outcomes: Outcomes, norm: str, images: int, mode: str) -> list[float]:
    return finite(_runs(outcomes, norm, images).measured("gap", mode))


def _differences(outcomes: Outcomes, images: int, first: str, second: str) -> list[float]:
    """Returns by seed the accuracy of BN in one mode minus that in another."""
    pairs = zip(_gaps(outcomes, "BN", images, first), _gaps(outcomes, "BN", images, second), strict=True)
    return [a - b for a, b in pairs]


def _published(norm: str, images: int = 32) -> float:
    """Returns the published accuracy."""
    return 1 - PUBLISHED[norm][images] / 100


def published_rise(norm: str) -> float:
    """Returns the rise of the published accuracies over the logarithm of the number of images, as `evidence.trend`."""
    x = [math.log2(images) for images in SIZES]
    fit = statistics.linear_regression(x, [_published(norm, images) for images in SIZES])
    return fit.slope * (max(x) - min(x))


def _by_size(outcomes: Outcomes, norm: str) -> str:
    return f"{norm} " + ", ".join(spread(_accuracy(outcomes, norm, n)) for n in SIZES) + " at 32, 16, 8, 4, 2"


def bn_small(outcomes: Outcomes) -> Judgement:
    """Tests whether BN's accuracy rises with the logarithm of the number of images."""
    rises = evidence.trend([(math.log2(images), _accuracy(outcomes, "BN", images)) for images in SIZES])
    same_steps = _accuracy(outcomes, "BN, same steps", 2)
    text = f"; with the same steps {spread(same_steps)} at 2" if same_steps else ""
    return Judgement(rises, _by_size(outcomes, "BN") + text)


def gn_flat(outcomes: Outcomes) -> Judgement:
    """Tests whether GN loses less than a quarter of what BN loses, at every number of images, if BN loses accuracy."""
    many, few = (_accuracy(outcomes, "BN", images) for images in (32, 2))
    drop = statistics.mean(many) - statistics.mean(few)
    whole, *fewer = (_accuracy(outcomes, "GN", images) for images in SIZES)
    # (BN at 32 - BN at 2) / 4 - (GN at 32 - GN at fewer) > 0
    flat = evidence.all_of(
        *(evidence.contrast([(0.25, many), (-0.25, few), (-1.0, whole), (1.0, values)]) for values in fewer)
    )
    return Judgement(
        evidence.given(evidence.more(many, few), flat), f"{_by_size(outcomes, 'GN')}; BN loses {100 * drop:.1f} points"
    )


def gn_at_2(outcomes: Outcomes) -> Judgement:
    """Compares GN and BN at 2 images."""
    return more({norm: _accuracy(outcomes, norm, 2) for norm in ("GN", "BN")}, separator=", ")


def order(outcomes: Outcomes) -> Judgement:
    """Compares GN with LN, and LN with IN, at 32 images."""
    values = {norm: _accuracy(outcomes, norm, 32) for norm in ("BN", "GN", "LN", "IN")}
    ordered = evidence.all_of(
        *(
            evidence.more(values[high], values[low], worth=evidence.worth(_published(high) - _published(low)))
            for high, low in (("GN", "LN"), ("LN", "IN"))
        )
    )
    return Judgement(ordered, listed(values, separator=", "))


def discrepancy(outcomes: Outcomes) -> Judgement:
    """Compares how much the accuracies of BN's two modes differ at 2 and at 32 images."""
    many, few = ([abs(d) for d in _differences(outcomes, images, "batch", "train")] for images in (32, 2))
    return Judgement(evidence.more(few, many), f"the two differ by {spread(many)} at 32, {spread(few)} at 2")


def recalibrated(outcomes: Outcomes) -> Judgement:
    """Tests whether recalibrated statistics are better than running averages of the same run."""
    many, few = (_differences(outcomes, images, "recalibrated", "test") for images in (32, 2))
    gain = evidence.above(few, 0.0, worth=evidence.POINT)
    return Judgement(gain, f"recalibration adds {spread(many)} at 32, {spread(few)} at 2")


def groups(outcomes: Outcomes) -> Judgement:
    """Compares one group with each seed's mean over several, and tests whether all several are alike."""
    runs = outcomes.where(part="groups")
    by_groups = {groups: same.values("accuracy", diverged=0.0) for (groups,), same in runs.groups("groups")}
    several = [values for groups, values in by_groups.items() if groups > 1]
    means = [
        statistics.mean(o.get("accuracy", 0.0) for o in same.all() if o.labels["groups"] > 1)
        for _, same in runs.groups("seed")
    ]
    alike = (evidence.equivalent(*pair, ALIKE) for pair in itertools.combinations(several, 2))
    text = "; ".join(f"{groups} groups {spread(values)}" for groups, values in by_groups.items())
    worth = evidence.worth(_published("GN") - _published("LN"))
    return Judgement(evidence.all_of(evidence.more(means, by_groups[1], worth=worth), *alike), text)


def faster(outcomes: Outcomes) -> Judgement:
    """Compares early losses without normalization and with BN."""
    early = {norm: _runs(outcomes, norm, 32).early_losses() for norm in ("none", "BN")}
    return more(early, percent=False, digits=2, worth=NATS, unit="nats")


def _along(outcomes: Outcomes, norm: str, epochs: int, name: str) -> list[float]:
    """Returns by seed the range of the loss along the gradient, or the maximum of "change" or "smoothness".

    NaN stands for a run with a number that is not finite, which the ledger has as None.
    """
    return [
        (max(one[name]) - min(one[name]) if name == "loss" else max(one[name])) if _all_finite(one) else math.nan
        for one in outcomes.where(part="smoothness", norm=norm, epochs=epochs).results("smoothness")
    ]


def _all_finite(smoothness: Mapping[str, Sequence[float | None]]) -> bool:
    return not any(value is None for values in smoothness.values() for value in values)


def smoother(name: str) -> Judge:
    """Returns a judge: the loss along the gradient varies less with BN."""

    def by_seed(outcomes: Outcomes, norm: str) -> list[float]:
        """Returns by seed the mean logarithm over POINTS, without seeds that diverged at one of them."""
        runs = (
            [value for epochs in POINTS for value in _along(group, norm, epochs, name) if value > 0]
            for _, group in outcomes.groups("seed")
        )
        return [statistics.mean(map(math.log10, values)) for values in runs if len(values) == len(POINTS)]

    def judge(outcomes: Outcomes) -> Judgement:
        numbers = (
            f"{norm} "
            + ", ".join(spread(_along(outcomes, norm, epochs, name), percent=False, digits=2) for epochs in POINTS)
            for norm in ("BN", "none")
        )
        return Judgement(
            evidence.more(by_seed(outcomes, "none"), by_seed(outcomes, "BN"), worth=DECADES, unit="decades"),
            f"{'; '.join(numbers)}, after {', '.join(map(str, POINTS))} epochs",
        )

    return judge


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of accuracy by norm and images per device, of accuracy by mode, of groups, and of smoothness."""
    sizes = [
        [
            norm,
            *(spread(_runs(outcomes, norm, n).values("accuracy")) for n in SIZES),
            " / ".join(f"{100 - error:.1f}" for error in PUBLISHED.get(norm, {}).values()) or "—",
        ]
        for norm in outcomes.where(part="size").distinct("norm")
    ]
    gaps = [
        [norm, n, *(spread(_gaps(outcomes, norm, n, mode)) for mode in MODES)]
        for norm in _by_mode(outcomes)
        for n in SIZES
    ]
    smooth = [
        [epochs, norm, *(spread(_along(outcomes, norm, epochs, name), False, 3) for name in SMOOTHNESS)]
        for epochs in POINTS
        for norm in ("BN", "none")
    ]
    published = "published: ResNet-50 on ImageNet, same columns (%)"
    return [
        Table("Test accuracy by images per device", ["norm", *map(str, SIZES), published], sizes),
        Table(
            "Training and test accuracy by mode",
            ["norm", "images per device", *(text for text, _ in MODES.values())],
            gaps,
        ),
        table_by(
            "Test accuracy by number of groups",
            outcomes.where(part="groups"),
            {"groups": "groups (1: LN)"},
            {"test accuracy": accuracy},
        ),
        Table("The loss along the gradient", ["epochs", "norm", *SMOOTHNESS.values()], smooth),
    ]


def draw_sizes(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against the number of images that are normalized together, and against the number of groups."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    norms = outcomes.where(part="size").distinct("norm")
    for i, norm in enumerate(norms):
        runs = [_runs(outcomes, norm, n).values("accuracy") for n in SIZES]
        line = "--" if norm == "BN, same steps" else "-"
        errorbars(left, _beside(SIZES, i, len(norms)), runs, color=COLORS[norm], label=norm, linestyle=line)
    by_groups = {
        groups: group.values("accuracy") for (groups,), group in outcomes.where(part="groups").groups("groups")
    }
    errorbars(right, by_groups, list(by_groups.values()), color=COLORS["GN"])
    for axes, ticks in ((left, SIZES), (right, list(by_groups))):
        logarithmic(axes, "x")
        fixed_ticks(axes.xaxis, ticks)
    left.invert_xaxis()
    finish(left, xlabel="images that are normalized together")
    finish(right, xlabel="groups of GN, 32 images (1: LN)")
    percent_axis(left, outcomes)
    legend_below(figure, left)


def _by_mode(outcomes: Outcomes) -> list[str]:
    """Returns the norms of which the accuracy is measured by mode."""
    norms = outcomes.where(part="size").distinct("norm")
    return [norm for norm in ("BN", "BN, same steps", "GN") if norm in norms]


def _beside(values: Sequence[float], i: int, count: int) -> list[float]:
    """Returns places beside these values on a logarithmic axis for the i-th of `count` series."""
    return [value * 2 ** (0.5 * ((i + 0.5) / count - 0.5)) for value in values]


def draw_gap(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy by mode."""
    norms = _by_mode(outcomes)
    panels = figure.subplots(1, len(norms), sharey=True)
    for axes, norm in zip(panels, norms, strict=True):
        for i, (mode, (label, color)) in enumerate(MODES.items()):
            style: dict[str, Any] = {
                "linestyle": "",
                "marker": "s" if label.startswith("test") else "o",
                "color": color,
            }
            x = [at + 0.7 * ((i + 0.5) / len(MODES) - 0.5) for at in range(len(SIZES))]
            errorbars(axes, x, [_gaps(outcomes, norm, n, mode) for n in SIZES], label=label, **style)
        number_ticks(axes, SIZES)
        finish(axes, title=norm, xlabel="images that are normalized together")
    percent_axis(panels[0], outcomes, "accuracy (%)")
    legend_below(figure, panels[0], ncols=2)


def draw_smoothness(outcomes: Outcomes, figure: Any) -> None:
    """Draws the loss along the gradient during training."""
    panels, smooth = figure.subplots(1, 3), outcomes.where(part="smoothness")
    for i, norm in enumerate(("BN", "none")):
        groups = [smooth.where(norm=norm, epochs=epochs).results("smoothness") for epochs in POINTS]
        for epochs, runs in zip(POINTS, (list(filter(_all_finite, runs)) for runs in groups), strict=True):
            for run, place in zip(runs, range(i * len(runs), 2 * len(runs)), strict=False):
                (x,) = _beside([epochs], place, 2 * len(runs))
                for axes, values in ((panels[0], run["loss"]), (panels[1], run["change"])):
                    axes.vlines(x, min(values), max(values), color=COLORS[norm], linewidth=2, capstyle="round")
        runs = [finite(_along(outcomes, norm, epochs, "smoothness")) for epochs in POINTS]
        means = [(x, statistics.geometric_mean(v)) for x, v in zip(POINTS, runs, strict=True) if v]
        panels[2].plot(*(zip(*means, strict=True) if means else ([], [])), color=COLORS[norm], label=norm)
        for x, values in zip(_beside(POINTS, i, 2), runs, strict=True):
            panels[2].plot([x] * len(values), values, "o", color=COLORS[norm], alpha=0.5, markeredgewidth=0)
    names = ("loss (nats)", "change of the gradient (L2 norm)", "largest change of the gradient / distance")
    for axes, name in zip(panels, names, strict=True):
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        fixed_ticks(axes.xaxis, POINTS)
        finish(axes, xlabel="epochs of training", ylabel=name)
    legend_below(figure, panels[2])

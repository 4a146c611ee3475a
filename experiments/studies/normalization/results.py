"""Results of the study of normalization: judges, tables, pictures."""

import math
import statistics
from typing import Any

from experiments.study import Judge, Outcomes, Table, evidence
from experiments.study.figures import bars_by, errorbars, finish, legend_below, number_ticks
from experiments.study.tables import accuracy, table_by
from experiments.study.verdicts import Judgement, finite, listed, more, spread
from models.analysis.palette import BLUE, CYAN, GRAY, GREEN, RED, YELLOW

SIZES = (32, 16, 8, 4, 2)  # numbers of images that are normalized together, as if on one GPU
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
    "batch": ("training images, statistics of the batch", "#9dbad5"),
    "train": ("training images, running averages", BLUE),
    "test": ("test images, running averages", RED),
    "recalibrated": ("test images, recalibrated statistics", "#e3a597"),
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


def _by_size(outcomes: Outcomes, norm: str) -> str:
    return f"{norm} " + ", ".join(spread(_accuracy(outcomes, norm, n)) for n in SIZES) + " at 32, 16, 8, 4, 2"


def bn_small(outcomes: Outcomes) -> Judgement:
    """Tests whether BN's accuracy rises with the logarithm of the number of images."""
    rises = evidence.trend([(math.log2(images), _accuracy(outcomes, "BN", images)) for images in SIZES])
    same_steps = spread(_accuracy(outcomes, "BN, same steps", 2))
    return Judgement(rises, f"{_by_size(outcomes, 'BN')}; with the same steps {same_steps} at 2")


def gn_flat(outcomes: Outcomes) -> Judgement:
    """Tests whether GN loses less than a quarter of what BN loses, at every number of images, if BN loses accuracy."""
    many, few = (_accuracy(outcomes, "BN", images) for images in (32, 2))
    drop = statistics.mean(many) - statistics.mean(few)
    whole, *fewer = (_accuracy(outcomes, "GN", images) for images in SIZES)
    flat = evidence.all_of(*(evidence.no_less(values, whole, max(drop, 0.0) / 4) for values in fewer))
    return Judgement(
        evidence.given(evidence.more(many, few), flat), f"{_by_size(outcomes, 'GN')}; BN loses {100 * drop:.1f} points"
    )


def gn_at_2(outcomes: Outcomes) -> Judgement:
    """Compares GN and BN at 2 images."""
    return more({norm: _accuracy(outcomes, norm, 2) for norm in ("GN", "BN")}, separator=", ")


def order(outcomes: Outcomes) -> Judgement:
    """Compares GN with LN, and LN with IN, at 32 images."""
    values = {norm: _accuracy(outcomes, norm, 32) for norm in ("BN", "GN", "LN", "IN")}
    ordered = evidence.all_of(evidence.more(values["GN"], values["LN"]), evidence.more(values["LN"], values["IN"]))
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
    """Compares the accuracies of several groups with that of one."""
    by_groups = {
        groups: runs.values("accuracy", diverged=0.0)
        for (groups,), runs in outcomes.where(part="groups").groups("groups")
    }
    others = [value for groups, values in by_groups.items() if groups > 1 for value in values]
    text = "; ".join(f"{groups} groups {spread(values)}" for groups, values in by_groups.items())
    return Judgement(evidence.more(others, by_groups[1]), text)


def faster(outcomes: Outcomes) -> Judgement:
    """Compares early losses without normalization and with BN."""
    early = {norm: _runs(outcomes, norm, 32).early_losses() for norm in ("none", "BN")}
    return more(early, percent=False, digits=2, worth=NATS, unit="nats")


def _along(outcomes: Outcomes, norm: str, epochs: int, name: str) -> list[float]:
    """Returns by seed the range of the loss along the gradient, or the maximum of "change" or "smoothness"."""
    return [
        max(one["loss"]) - min(one["loss"]) if name == "loss" else max(one[name])
        for one in outcomes.where(part="smoothness", norm=norm, epochs=epochs).results("smoothness")
    ]


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
        for norm in ("BN", "BN, same steps", "GN")
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
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for norm in outcomes.where(part="size").distinct("norm"):
        runs = [_runs(outcomes, norm, n).values("accuracy") for n in SIZES]
        line = "--" if norm == "BN, same steps" else "-"
        errorbars(left, SIZES, runs, color=COLORS[norm], label=norm, linestyle=line)
    by_groups = {
        groups: group.values("accuracy") for (groups,), group in outcomes.where(part="groups").groups("groups")
    }
    errorbars(right, by_groups, list(by_groups.values()), color=COLORS["GN"])
    for axes, ticks in ((left, SIZES), (right, list(by_groups))):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ticks)
    left.invert_xaxis()
    finish(left, legend={"ncols": 2}, xlabel="images that are normalized together", ylabel="test accuracy (%)")
    xlabel = "groups (1: layer normalization)"
    finish(right, xlabel=xlabel, ylabel="test accuracy (%)", title="32 images")


def draw_gap(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy by mode."""
    norms, texts = ("BN", "BN, same steps", "GN"), {mode: text for mode, (text, _) in MODES.items()}
    panels = figure.subplots(1, len(norms), sharey=True)
    colors = {mode: color for mode, (_, color) in MODES.items()}
    values = {norm: {mode: [_gaps(outcomes, norm, n, mode) for n in SIZES] for mode in MODES} for norm in norms}
    for axes, norm in zip(panels, norms, strict=True):
        bars_by(axes, values[norm], colors, labels=texts, error_kw={"linewidth": 0.8})
        number_ticks(axes, SIZES)
        finish(axes, title=norm, xlabel="images that are normalized together")
    panels[0].set_ylabel("accuracy (%)")
    every = (value for modes in values.values() for runs in modes.values() for run in runs for value in run)
    panels[-1].set_ylim(max(0, 100 * min(every, default=0) - 10), 100)
    legend_below(figure, panels[0], ncols=2)


def draw_smoothness(outcomes: Outcomes, figure: Any) -> None:
    """Draws the loss along the gradient during training."""
    panels = figure.subplots(1, 3)
    for norm, x_factor in (("BN", 0.94), ("none", 1.06)):
        means = []
        for epochs in POINTS:
            for one in outcomes.where(part="smoothness", norm=norm, epochs=epochs).results("smoothness"):
                for axes, values in ((panels[0], one["loss"]), (panels[1], one["change"])):
                    axes.vlines(
                        epochs * x_factor, min(values), max(values), color=COLORS[norm], alpha=0.35, linewidth=6
                    )
            if values := finite(_along(outcomes, norm, epochs, "smoothness")):
                means.append((epochs, statistics.mean(values)))
        if means:
            panels[2].plot(*zip(*means, strict=True), marker="o", color=COLORS[norm], label=norm)
    names = ("loss (nats)", "change of the gradient (L2)", "largest change of the gradient / distance")
    for axes, name in zip(panels, names, strict=True):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(POINTS, POINTS)
        finish(axes, xlabel="epochs of training", ylabel=name)
    legend_below(figure, panels[2], ncols=2, fontsize=None)

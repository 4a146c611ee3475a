"""Results of the study of depth: judges, tables, pictures."""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

from matplotlib import colormaps

from experiments.study import Judge, Outcomes, Table, evidence
from experiments.study.figures import curves, errorbars, finish, fixed_ticks, legend_below, lines_by, percent_axis
from experiments.study.tables import accuracy, table_by
from experiments.study.verdicts import Judgement, deviation, listed, mean, more, spread
from models.analysis.axes import logarithmic
from models.analysis.palette import BLUE, CYAN, GRAY, RED

NATS = 0.01  # smallest difference of training losses that matters
CONVERGED = 0.5  # smallest test accuracy at which the deletions of a network count
PUBLISHED = {  # test error (%)
    "cifar10": {"residual": {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61}},  # He 2016, table 6; 110: mean of five
    "imagenet": {
        "plain": {18: 27.94, 34: 28.54},
        "residual": {18: 27.88, 34: 25.03},  # He 2016, tables 2 and 3
        "projections where shapes change": {34: 24.52},
        "projections everywhere": {34: 24.19},
    },
}
SHORTCUTS = ("residual", "projections where shapes change", "projections everywhere")
COLORS = {"plain": RED, "residual": BLUE}
DELETED = (("plain", "shallow"), ("residual", "shallow"), ("residual", "deep"))  # networks whose blocks are deleted


# -- judges --------------------------------------------------------------------------------------------------------


def _end(outcomes: Outcomes, network: str, **labels: Any) -> Outcomes:
    return outcomes.where(at="end", network=network, **labels)


def accuracies(outcomes: Outcomes, network: str, **labels: Any) -> list[float]:
    """Returns accuracies by seed, for verdicts; 0 for a run that diverged."""
    return _end(outcomes, network, **labels).values("accuracy", diverged=0.0)


def final_losses(outcomes: Outcomes, network: str, **labels: Any) -> list[float]:
    """Returns final training losses by seed, for verdicts; see `Outcomes.final_losses` for runs that diverged."""
    return _end(outcomes, network, **labels).final_losses()


def _last(outcomes: Outcomes) -> list[float]:
    """Returns the last training loss that each run logged, for tables and pictures."""
    return [run[-1] for run in outcomes.losses()]


def _depth(outcomes: Outcomes, role: str) -> int:
    return outcomes.where(role=role).distinct("depth")[0]


def deeper(network: str, published: float) -> Judge:
    """Returns a judge: the deep network is more accurate than the shallow one, by `published` in the paper."""

    def judge(outcomes: Outcomes) -> Judgement:
        roles = ("deep", "shallow")
        return more(
            {f"{_depth(outcomes, role)} layers": accuracies(outcomes, network, role=role) for role in roles},
            start="accuracy with ",
            separator=", ",
            worth=evidence.worth(published),
        )

    return judge


def degrades(outcomes: Outcomes) -> Judgement:
    """Compares the final training loss of the deep plain network with that of the shallow one."""
    roles = ("deep", "shallow")
    losses = {f"{_depth(outcomes, role)} layers": final_losses(outcomes, "plain", role=role) for role in roles}
    return more(losses, 0.0, "final training loss with ", False, 2, ", ", worth=NATS, unit="nats")


def better(high: str, low: str, name: str, published: float) -> Judge:
    """Returns a judge: one deep network is more accurate than another, called `name`, by `published` in the paper."""

    def judge(outcomes: Outcomes) -> Judgement:
        groups = {label: accuracies(outcomes, network, role="deep") for label, network in ((high, high), (name, low))}
        layers, worth = _depth(outcomes, "deep"), evidence.worth(published)
        return more(groups, start=f"{layers} layers: ", separator=", ", worth=worth)

    return judge


def faster(outcomes: Outcomes) -> Judgement:
    """Compares the accuracies and the early losses of shallow networks with and without shortcuts."""
    residual, plain = (_end(outcomes, network, role="shallow") for network in ("residual", "plain"))
    alike = evidence.equivalent(residual.values("accuracy", 0.0), plain.values("accuracy", 0.0), 2 * evidence.POINT)
    lower = evidence.more(plain.early_losses(), residual.early_losses(), worth=NATS, unit="nats")
    ours = "; ".join(
        f"{name}: accuracy {spread(group.values('accuracy', 0.0))}, training loss over the first third "
        f"{spread(group.early_losses(), False, 2)}"
        for name, group in (("residual", residual), ("plain", plain))
    )
    return Judgement(evidence.all_of(alike, lower), ours)


def shortcuts(outcomes: Outcomes) -> Judgement:
    """Tests whether projections gain less than half of what the simplest shortcut gains on the plain network."""
    depth = _end(outcomes, SHORTCUTS[1]).distinct("depth")[0]
    values = {network: accuracies(outcomes, network, depth=depth) for network in ("plain", *SHORTCUTS)}
    gains = evidence.more(values["residual"], values["plain"])
    # (residual - plain) / 2 - (projection - residual) > 0
    alike = [
        evidence.contrast([(1.5, values["residual"]), (-0.5, values["plain"]), (-1.0, values[name])])
        for name in SHORTCUTS[1:]
    ]
    return Judgement(
        evidence.given(gains, evidence.all_of(*alike)), f"{depth} layers: {listed(values, separator=', ')}"
    )


def _thirds(outcomes: Outcomes, network: str, at: str) -> list[float]:
    """Returns by seed the mean gradient norm of the first third of the layers over that of the last third."""
    ratios = []
    for norms in (one["norms"] for one in outcomes.where(network=network, at=at, role="deep").results("gradients")):
        third = len(norms) // 3
        if third and sum(norms[-third:]) > 0:
            ratios.append(sum(norms[:third]) / sum(norms[-third:]))
    return ratios


def healthy(outcomes: Outcomes) -> Judgement:
    """Tests whether gradients at step 0 stay within an order of magnitude between the first and the last layers."""
    ratios = {network: _thirds(outcomes, network, "step 0") for network in COLORS}
    logarithms = [math.log10(ratio) for ratio in ratios["plain"]]
    inside = evidence.all_of(
        evidence.above(logarithms, -1.0, unit="decades"), evidence.above([-v for v in logarithms], -1.0, unit="decades")
    )
    return Judgement(inside, f"first third over last third at step 0: {listed(ratios, False, 2, ', ')}")


def zero_gamma(outcomes: Outcomes) -> Judgement:
    """Compares early losses with and without zero gamma, that is, scales that start at zero."""
    early = {network: _end(outcomes, network, role="deep").early_losses() for network in ("zero gamma", "residual")}
    ours = (
        f"{network} {spread(v, False, 2)} (accuracy {spread(accuracies(outcomes, network, role='deep'))})"
        for network, v in early.items()
    )
    lower = evidence.more(early["residual"], early["zero gamma"], worth=NATS, unit="nats")
    return Judgement(lower, f"training loss over the first third: {', '.join(ours)}")


def _deleted(outcomes: Outcomes, network: str, role: str, halving: bool = False) -> list[float]:
    """Returns, for each seed that converged, the median over deleted blocks of the accuracy that is left.

    The accuracy is a fraction: 0 is chance, 1 is the whole network. `halving` selects the blocks that halve the
    resolution; otherwise only those that keep it count.
    """
    medians = []
    for d in _end(outcomes, network, role=role).results("deletions"):
        if d["whole"] >= CONVERGED:
            shares = [
                (a - d["chance"]) / (d["whole"] - d["chance"])
                for a, half in zip(d["accuracy"], d["halving"], strict=True)
                if half == halving
            ]
            medians += [statistics.median(shares)] if shares else []
    return medians


def left(network: str, role: str, low: float, high: float) -> Judge:
    """Returns a judge: the mean accuracy that remains without a block is between two thresholds."""

    def judge(outcomes: Outcomes) -> Judgement:
        shares = _deleted(outcomes, network, role)
        return Judgement(
            evidence.within(shares, low, high),
            f"{network}, {_depth(outcomes, role)} layers: {spread(shares)} of what is above chance is left",
        )

    return judge


def halving(outcomes: Outcomes) -> Judgement:
    """Compares deleted blocks that keep the resolution with those that halve it."""
    keeping, halved = (_deleted(outcomes, "residual", "deep", half) for half in (False, True))
    return more(
        {"that keeps the resolution": keeping, "that halves it": halved}, 0.0, "left without a block ", True, 1, ", "
    )


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of accuracy and loss beside the published values, of gradients, and of deletions."""

    def published(scale: str) -> Callable[[Outcomes], str]:
        def cell(group: Outcomes) -> str:
            error = PUBLISHED[scale].get(group[0].labels["network"], {}).get(group[0].labels["depth"])
            return f"{100 - error:.2f}" if error else "—"

        return cell

    def deleted(network: str, role: str) -> list[Any]:
        whole = [one["whole"] for one in _end(outcomes, network, role=role).results("deletions")]
        shares = [spread(_deleted(outcomes, network, role, half)) for half in (False, True)]
        return [network, _depth(outcomes, role), spread(whole), *shares]

    networks = table_by(
        "Test accuracy and final training loss",
        outcomes.where(at="end"),
        {"network": "network", "depth": "layers"},
        {
            "test accuracy": accuracy,
            "training loss (nats)": lambda group: spread(_last(group), False, 3),
            "published: CIFAR-10 (%)": published("cifar10"),
            "published: ImageNet, 10-crop (%)": published("imagenet"),
        },
    )
    ratios = Table(
        f"Gradient norm, first third of the layers over last third, {_depth(outcomes, 'deep')} layers",
        ["network", "step 0", "end of training"],
        [[name, *(spread(_thirds(outcomes, name, at), False, 3) for at in ("step 0", "end"))] for name in COLORS],
    )
    columns = [
        "network",
        "layers",
        "accuracy of the whole network",
        "without a block that keeps the resolution",
        "without a block that halves it",
    ]
    title = "Fraction of the accuracy above chance that is left after one block is deleted, median over blocks"
    return [networks, ratios, Table(title, columns, [deleted(*one) for one in DELETED])]


def draw_depth(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy and final loss against depth."""
    left, right = figure.subplots(1, 2)
    depths = outcomes.distinct("depth")
    for network, color in COLORS.items():
        groups = [_end(outcomes, network, depth=depth) for depth in depths]
        errorbars(left, depths, [group.values("accuracy") for group in groups], color=color, label=network)
        errorbars(right, depths, [_last(group) for group in groups], 1, color=color, label=network)
    logarithmic(right, "y")
    for axes in (left, right):
        fixed_ticks(axes.xaxis, depths)
        finish(axes, xlabel="layers")
    percent_axis(left, outcomes)
    right.set_ylabel("final training loss (nats)")
    legend_below(figure, left)


def draw_training(outcomes: Outcomes, figure: Any) -> None:
    """Draws training losses, one line per run."""
    depths = outcomes.distinct("depth")
    panels = figure.subplots(1, len(COLORS), sharey=True)
    for axes, network in zip(panels, COLORS, strict=True):
        for i, depth in enumerate(depths):
            color = colormaps["viridis"](0.9 * i / max(1, len(depths) - 1))
            group = _end(outcomes, network, depth=depth)
            curves(axes, group, "train", "loss", f"{depth} layers", color=color, linewidth=1.0, alpha=0.8)
        finish(axes, title=network, xlabel="step")
    logarithmic(panels[0], "y")
    panels[0].set_ylabel("training loss (nats)")
    legend_below(figure, *panels)


def draw_gradients(outcomes: Outcomes, figure: Any) -> None:
    """Draws gradient norms by layer."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, at, when in zip(panels, ("step 0", "end"), ("step 0", "end of training"), strict=True):
        for network, color in COLORS.items():
            runs = [one["norms"] for one in outcomes.where(network=network, at=at, role="deep").results("gradients")]
            lines = [(range(1, len(norms) + 1), norms) for norms in runs]
            lines_by(axes, lines, network, color=color, alpha=0.8, linewidth=1.0)
        finish(axes, title=f"{_depth(outcomes, 'deep')} layers, {when}", xlabel="layer", yscale="log")
    panels[0].set_ylabel("gradient norm of the kernel")
    legend_below(figure, *panels)


def draw_deletions(outcomes: Outcomes, figure: Any) -> None:
    """Draws the accuracy that is left without each block."""
    panels = figure.subplots(1, len(DELETED), sharey=True, width_ratios=(1, 1, 2))
    for axes, (network, role) in zip(panels, DELETED, strict=True):
        if runs := _end(outcomes, network, role=role).results("deletions"):
            _draw_deleted_blocks(axes, runs, COLORS[network])
        axes.grid(axis="y")
        axes.set(
            title=f"{network}, {_depth(outcomes, role)} layers", xlabel="stage of the deleted block", ylim=(0, 102)
        )
    panels[0].set_ylabel("test accuracy (%)")
    legend_below(figure, *panels)


def _draw_deleted_blocks(axes: Any, runs: list[dict[str, Any]], color: str) -> None:
    """Draws one point per run and block, and the mean and standard deviation of the whole networks."""
    names, whole = runs[0]["blocks"], [100 * run["whole"] for run in runs]
    axes.axhline(mean(whole), color=GRAY, linewidth=1, label="nothing deleted")
    axes.axhspan(mean(whole) - deviation(whole), mean(whole) + deviation(whole), color=GRAY, alpha=0.2, linewidth=0)
    for run in runs:
        axes.plot([100 * accuracy for accuracy in run["accuracy"]], "o", alpha=0.7, color=color, markeredgewidth=0)
    axes.plot(
        [], [], "o", color=color, label=f"without one block, {'plain' if color == COLORS['plain'] else 'residual'}"
    )
    axes.axhline(100 * runs[0]["chance"], color=GRAY, linewidth=1, linestyle=":", label="chance")
    for at, half in enumerate(runs[0]["halving"]):
        if half:
            axes.axvspan(at - 0.5, at + 0.5, color=CYAN, alpha=0.25, linewidth=0, label="halves the resolution")
    stages = [name.split("/")[0].removeprefix("stage") for name in names]
    fixed_ticks(
        axes.xaxis,
        [statistics.mean(i for i, s in enumerate(stages) if s == stage) for stage in sorted({*stages})],
        sorted({*stages}),
    )
    axes.tick_params(axis="x", length=0)
    for at, pair in enumerate(itertools.pairwise(stages)):
        if len({*pair}) > 1:
            axes.axvline(at + 0.5, color=GRAY, linewidth=0.8, alpha=0.6)

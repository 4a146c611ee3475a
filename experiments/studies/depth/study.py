"""Depth and residual connections: does a deeper network train, and what do its shortcuts do?

  He et al. 2016      Deep residual learning for image recognition, arXiv 1512.03385
  He et al. 2016b     Identity mappings in deep residual networks, arXiv 1603.05027
  Veit et al. 2016    Residual networks behave like ensembles of relatively shallow networks, arXiv 1605.06431
  Goyal et al. 2017   Accurate, large minibatch SGD, arXiv 1706.02677

The curves say whether a network learns, the gradients by layer whether the signal reaches the early ones, and deleting
one block of a trained network how much the others rely on it.
"""

import statistics
from collections.abc import Callable
from typing import Any

from matplotlib import colormaps

from experiments.studies.measures import deletions, gradients
from experiments.study import (
    AGREES,
    TOO_SMALL,
    Claim,
    Judge,
    Judgement,
    Outcomes,
    Picture,
    Study,
    Table,
    Trial,
    all_of,
    compare,
    holds,
    listed,
    more,
    recipe,
    spread,
)
from experiments.study.figures import curves, errorbars, finish, legend_below, lines_by, number_ticks
from experiments.study.tables import accuracy, table_by
from train.plots.palette import BLUE, GRAY, RED

DEPTHS = {"digits": (20, 32, 44, 56), "cifar10": (20, 32, 44, 56, 110), "imagenet": (18, 34)}
SHALLOW = {"digits": 20, "cifar10": 20, "imagenet": 18}  # pairs that the claims compare
DEEP = {"digits": 56, "cifar10": 56, "imagenet": 34}
MIDDLE = {"digits": 32, "cifar10": 56, "imagenet": 34}  # in which the shortcuts are compared
SEEDS = (0, 1, 2)
CONVERGED = 0.5  # test accuracy of a network of which something can be deleted
PUBLISHED = {  # test error (%)
    "cifar10": {"residual": {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61}},  # He 2016, table 6; 110: mean of five
    "imagenet": {
        "plain": {18: 27.94, 34: 28.54},
        "residual": {18: 27.88, 34: 25.03},  # He 2016, tables 2 and 3
        "projections where shapes change": {34: 24.52},
        "projections everywhere": {34: 24.19},
    },
}
VARIANTS = {  # label -> (family, fields)
    "plain": ("plain", {}),
    "residual": ("resnet", {"shortcut": "A"}),
    "projections where shapes change": ("resnet", {"shortcut": "B"}),
    "projections everywhere": ("resnet", {"shortcut": "C"}),
    "pre-activation": ("preresnet", {"shortcut": "A"}),
    "zero gamma": ("resnet", {"shortcut": "A", "zero_gamma": True}),
}
SHORTCUTS = ("residual", "projections where shapes change", "projections everywhere")
COLORS = {"plain": RED, "residual": BLUE}
DELETED = (("plain", "shallow"), ("residual", "shallow"), ("residual", "deep"))  # whose blocks are deleted


def trials(scale: str) -> list[Trial]:
    """Lists plain and residual networks by depth; shortcuts, pre-activation and zero gamma in a deep one."""
    shallow, deep = SHALLOW[scale], DEEP[scale]
    networks = [(network, depth) for depth in DEPTHS[scale] for network in COLORS]
    networks += [(network, MIDDLE[scale]) for network in SHORTCUTS[1:]]
    networks += [(network, deep) for network in ("pre-activation", "zero gamma")]
    planned = []
    for network, depth in networks:
        role = {shallow: "shallow", deep: "deep"}.get(depth, "between")
        measured = (gradients,) if network in COLORS and role == "deep" else ()
        deleted = (deletions,) if (network, role) in DELETED else ()
        for seed in SEEDS:
            labels = {"network": network, "depth": depth, "seed": seed, "role": role}
            config = _config(scale, network, depth, seed)
            if measured:
                planned.append(Trial({**labels, "at": "step 0"}, config, train=False, measures=measured))
            planned.append(Trial({**labels, "at": "end"}, config, measures=(*measured, *deleted)))
    return planned


def _config(scale: str, network: str, depth: int, seed: int) -> Any:
    family, fields = VARIANTS[network]
    config = recipe(f"configs/study.py:{scale},model={family}{depth},seed={seed}")
    config.model.update({"zero_gamma": False, **fields})  # Goyal's recipe has it in every network
    if scale == "cifar10":
        config.optimizer.warmup = "400 steps"  # which ResNet-110 needs; He 2016, section 4.2
    return config


# -- judges --------------------------------------------------------------------------------------------------------


def _end(outcomes: Outcomes, network: str, **labels: Any) -> Outcomes:
    return outcomes.where(at="end", network=network, **labels)


def _accuracy(outcomes: Outcomes, network: str, **labels: Any) -> list[float]:
    """Returns accuracies by seed, to decide by: a run that diverged has 0."""
    return _end(outcomes, network, **labels).values("accuracy", diverged=0.0)


def _final_losses(outcomes: Outcomes, network: str, **labels: Any) -> list[float]:
    return _end(outcomes, network, **labels).final_losses()


def _depth(outcomes: Outcomes, role: str) -> int:
    return outcomes.where(role=role).distinct("depth")[0]


def _deeper(network: str, metric: Callable[..., list[float]], name: str, percent: bool, digits: int) -> Judge:
    """Returns a judge: the metric of the deep network is above that of the shallow one."""

    def judge(outcomes: Outcomes) -> Judgement:
        values = {role: metric(outcomes, network, role=role) for role in ("shallow", "deep")}
        text = ", ".join(
            f"with {_depth(outcomes, role)}{' layers' * (role == 'shallow')} {spread(group, percent, digits)}"
            for role, group in values.items()
        )
        return Judgement(compare(values["deep"], values["shallow"]), f"{name} {text}")

    return judge


def _better(high: str, low: str, name: str) -> Judge:
    """Returns a judge: one deep network is more accurate than another, called `name`."""

    def judge(outcomes: Outcomes) -> Judgement:
        groups = {label: _accuracy(outcomes, network, role="deep") for label, network in ((high, high), (name, low))}
        return more(groups, start=f"{_depth(outcomes, 'deep')} layers: ", separator=", ")

    return judge


def _faster(outcomes: Outcomes) -> Judgement:
    accuracies = {network: _accuracy(outcomes, network, role="shallow") for network in ("residual", "plain")}
    early = {network: _end(outcomes, network, role="shallow").early_losses() for network in accuracies}
    pair = tuple(accuracies.values())
    apart = [compare(*pair, by=0.02), compare(*pair[::-1], by=0.02)]
    alike = TOO_SMALL if TOO_SMALL in apart and AGREES not in apart else holds(AGREES not in apart)
    return Judgement(
        all_of([alike, compare(early["plain"], early["residual"])]),
        "; ".join(
            f"{network}: accuracy {spread(values)}, training loss over the first third "
            f"{spread(early[network], False, 2)}"
            for network, values in accuracies.items()
        ),
    )


def _shortcuts(outcomes: Outcomes) -> Judgement:
    depth = _end(outcomes, SHORTCUTS[1]).distinct("depth")[0]
    values = {network: _accuracy(outcomes, network, depth=depth) for network in ("plain", *SHORTCUTS)}
    means = {network: statistics.mean(v) for network, v in values.items()}
    apart = max(means[s] for s in SHORTCUTS) - min(means[s] for s in SHORTCUTS)
    gains = compare(values["residual"], values["plain"]) == AGREES
    verdict = holds(apart < (means["residual"] - means["plain"]) / 2) if gains else TOO_SMALL
    return Judgement(verdict, f"{depth} layers: {listed(values, separator=', ')}")


def _thirds(outcomes: Outcomes, network: str, at: str) -> list[float]:
    """Returns by seed the mean gradient norm of the first third of the layers over that of the last."""
    ratios = []
    for norms in (one["norms"] for one in outcomes.where(network=network, at=at, role="deep").results("gradients")):
        third = len(norms) // 3
        if third and sum(norms[-third:]) > 0:
            ratios.append(sum(norms[:third]) / sum(norms[-third:]))
    return ratios


def _healthy(outcomes: Outcomes) -> Judgement:
    ratios = {network: _thirds(outcomes, network, "step 0") for network in COLORS}
    inside = {0.1 <= ratio <= 10 for ratio in ratios["plain"]}
    ours = f"first third over last third at step 0: {listed(ratios, False, 2, ', ')}"
    return Judgement(holds(True in inside) if len(inside) == 1 else TOO_SMALL, ours)


def _zero_gamma(outcomes: Outcomes) -> Judgement:
    early = {network: _end(outcomes, network, role="deep").early_losses() for network in ("zero gamma", "residual")}
    ours = (
        f"{network} {spread(v, False, 2)} (accuracy {spread(_accuracy(outcomes, network, role='deep'))})"
        for network, v in early.items()
    )
    return Judgement(
        compare(early["residual"], early["zero gamma"]), f"training loss over the first third: {', '.join(ours)}"
    )


def _deleted(outcomes: Outcomes, network: str, role: str, halving: bool = False) -> list[float]:
    """Returns for each seed that converged the median test accuracy over deletions of blocks, as a fraction.

    The fraction is that of the way from chance (0) to the whole network (1); of blocks that keep, or halve, the
    resolution.
    """
    medians = []
    for d in _end(outcomes, network, role=role).results("deletions"):
        if d["whole"] >= CONVERGED:
            kept = [
                (a - d["chance"]) / (d["whole"] - d["chance"])
                for a, half in zip(d["accuracy"], d["halving"], strict=True)
                if half == halving
            ]
            medians += [statistics.median(kept)] if kept else []
    return medians


def _kept(network: str, role: str, agrees: Callable[[float], bool]) -> Judge:
    def judge(outcomes: Outcomes) -> Judgement:
        kept = _deleted(outcomes, network, role)
        ours = f"{network}, {_depth(outcomes, role)} layers: {spread(kept)} of what is above chance is left"
        sides = {agrees(value) for value in kept}
        return Judgement(holds(True in sides) if len(kept) > 1 and len(sides) == 1 else TOO_SMALL, ours)

    return judge


def _halving(outcomes: Outcomes) -> Judgement:
    keeping, halving = (_deleted(outcomes, "residual", "deep", half) for half in (False, True))
    groups = {"that keeps the resolution": keeping, "that halves it": halving}
    return more(groups, start="left without a block ", separator=", ")


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns accuracy and loss of every network, beside the published; gradients; deletions."""

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
            "training loss (nats)": lambda group: spread(group.final_losses(), False, 3),
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
        "accuracy of the whole",
        "a block that keeps the resolution",
        "a block that halves it",
    ]
    title = "Left of the accuracy above chance after one block is deleted, median over blocks"
    return [networks, ratios, Table(title, columns, [deleted(*one) for one in DELETED])]


def _draw_depth(outcomes: Outcomes, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    depths = outcomes.distinct("depth")
    for network, color in COLORS.items():
        groups = [_end(outcomes, network, depth=depth) for depth in depths]
        errorbars(left, depths, [group.values("accuracy") for group in groups], color=color, label=network)
        errorbars(right, depths, [group.final_losses() for group in groups], 1, color=color, label=network)
    right.set_yscale("log")
    for axes, name in ((left, "test accuracy (%)"), (right, "final training loss (nats)")):
        axes.set_xticks(depths, depths)
        finish(axes, legend={}, xlabel="layers", ylabel=name)


def _draw_training(outcomes: Outcomes, figure: Any) -> None:
    depths = outcomes.distinct("depth")
    panels = figure.subplots(1, len(COLORS), sharey=True)
    for axes, network in zip(panels, COLORS, strict=True):
        for i, depth in enumerate(depths):
            color = colormaps["viridis"](0.15 + 0.7 * i / max(1, len(depths) - 1))
            group = _end(outcomes, network, depth=depth)
            curves(axes, group, "train", "loss", f"{depth} layers", color=color, linewidth=1.2)
        finish(axes, legend={"fontsize": 9}, title=network, xlabel="step", yscale="log")
    panels[0].set_ylabel("training loss (nats)")


def _draw_gradients(outcomes: Outcomes, figure: Any) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, at, when in zip(panels, ("step 0", "end"), ("step 0", "end of training"), strict=True):
        for network, color in COLORS.items():
            runs = [one["norms"] for one in outcomes.where(network=network, at=at, role="deep").results("gradients")]
            lines = [(range(1, len(norms) + 1), norms) for norms in runs]
            lines_by(axes, lines, network, color=color, alpha=0.8, linewidth=1.1)
        finish(axes, title=f"{_depth(outcomes, 'deep')} layers, {when}", xlabel="layer", yscale="log")
    panels[0].set_ylabel("norm of the gradient by the kernel")
    panels[0].legend(frameon=False)


def _draw_deletions(outcomes: Outcomes, figure: Any) -> None:
    panels = figure.subplots(1, len(DELETED), sharey=True, width_ratios=(1, 1, 2))
    for axes, (network, role) in zip(panels, DELETED, strict=True):
        if runs := _end(outcomes, network, role=role).results("deletions"):
            _draw_deleted_blocks(axes, runs, COLORS[network])
        title = f"{network}, {_depth(outcomes, role)} layers"
        finish(axes, title=title, xlabel="deleted block (stage.block)", ylim=(0, 102))
    panels[0].set_ylabel("test accuracy (%)")
    legend_below(figure, panels[-1])


def _draw_deleted_blocks(axes: Any, runs: list[dict[str, Any]], color: str) -> None:
    names = runs[0]["blocks"]
    for i, run in enumerate(runs):
        axes.axhline(100 * run["whole"], color=GRAY, linewidth=1, label="nothing deleted" if i == 0 else None)
        points = [(range(len(names)), [100 * a for a in run["accuracy"]])]
        label = "one block deleted" if i == 0 else ""
        lines_by(axes, points, label, "o", markersize=4, alpha=0.7, color=color)
    axes.axhline(100 * runs[0]["chance"], color=GRAY, linewidth=1, linestyle=":", label="chance")
    for i, at in enumerate(at for at, half in enumerate(runs[0]["halving"]) if half):
        label = "halves the resolution" if i == 0 else None
        axes.axvspan(at - 0.5, at + 0.5, color=GRAY, alpha=0.15, linewidth=0, label=label)
    short = [name.replace("stage", "").replace("/block", ".") for name in names]
    number_ticks(axes, short, rotation=90, fontsize=9)


STUDY = Study(
    name="depth",
    title="Depth and residual connections",
    question="Do plain networks get worse with depth and residual ones better, do gradients explain it, which details "
    "of the shortcuts matter, and how much does a network rely on a single block?",
    would_change="A longer schedule for deep against shallow: the published networks saw over a hundred epochs, those "
    "at digits scale 12, after which the deep ones have not caught up; cifar10 scale has 60. For "
    "gradients of plain networks no number of seeds: they are measured at step 0 and follow from depth "
    "and initialization, so only norms that are healthy later in training could turn it.",
    cost={
        "digits": "about 5 minutes on 2 cores; 110 layers, which take another four, are left to cifar10",
        "cifar10": "42 runs of 60 epochs, 20 to 110 layers: 1e15 mult-adds a run on average, half a day of one GPU",
        "imagenet": "24 runs of 90 epochs of 18 or 34 layers: 6e17 or 1.2e18 mult-adds, 4 to 8 hours of 8 GPUs, each",
    },
    trials=trials,
    claims=(
        Claim(
            "A deeper plain network has a higher training error.",
            "ImageNet: 28.54 % with 34 layers, 27.94 % with 18 (validation)",
            "He 2016, table 2; fig. 1 and 6 for training errors",
            "the final training loss of the deep plain network (56 layers, on ImageNet 34) is "
            "above that of the shallow one (20, 18), by more than two standard errors",
            _deeper("plain", _final_losses, "final training loss", False, 2),
        ),
        Claim(
            "A deeper residual network is better.",
            "CIFAR-10: 8.75 % with 20 layers, 6.97 % with 56",
            "He 2016, table 6",
            "the deep one's test accuracy is above the shallow one's, by more than two standard errors",
            _deeper("residual", _accuracy, "accuracy", True, 1),
        ),
        Claim(
            "In deep networks residual connections are better than none.",
            "ImageNet, 34 layers: 25.03 % against 28.54 %",
            "He 2016, table 2",
            "the deep residual network's accuracy is above the plain one's, by more than two standard errors",
            _better("residual", "plain", "plain"),
        ),
        Claim(
            "In shallow networks residual connections are no more accurate, but converge faster.",
            "ImageNet, 18 layers: 27.88 % against 27.94 %",
            "He 2016, section 4.1",
            "the shallow ones' accuracies differ by less than 2 points, and the training loss over the first third "
            "is lower with them, each by more than two standard errors",
            _faster,
        ),
        Claim(
            "Projections are not essential.",
            "ImageNet, 34 layers, shortcuts A / B / C: 25.03 / 24.52 / 24.19 %",
            "He 2016, table 3",
            "the means with A, B and C span less than half of what A gains on the plain network; "
            "undecided where it gains nothing",
            _shortcuts,
        ),
        Claim(
            "It is not vanishing gradients that plain networks suffer from: with batch norm theirs are healthy.",
            "no number: healthy norms",
            "He 2016, section 4.1",
            "in the deep plain network at step 0, gradient norms of the first third of the layers are between 1/10 "
            "and 10 times those of the last third, for every seed",
            _healthy,
        ),
        Claim(
            "Pre-activation generalizes better in deep networks.",
            "no number: improves generalization",
            "He 2016b, abstract",
            "the deep pre-activation network's accuracy is above the original's, by more than two standard errors",
            _better("pre-activation", "residual", "original"),
        ),
        Claim(
            "Branches that start at zero ease the start of the training.",
            "no number: eases optimization at the start",
            "Goyal 2017, section 5.1",
            "in the deep network the training loss over the first third is lower "
            "with zero gamma, by more than two standard errors",
            _zero_gamma,
        ),
        Claim(
            "Deleting a block of a trained residual network hardly matters.",
            "no number: minimal impact",
            "Veit 2016, section 4.1, fig. 3",
            "of the deep one's accuracy above chance, 95 % or more is left without "
            "a block that keeps the resolution (median over blocks), for every seed",
            _kept("residual", "deep", lambda kept: kept >= 0.95),
        ),
        Claim(
            "Deleting a layer of a trained plain network leaves nothing.",
            "no number: chance (VGG)",
            "Veit 2016, section 4.1, fig. 3",
            "of the shallow one's accuracy above chance, at most 10 % is left "
            "without a block of two layers (median over blocks), for every seed",
            _kept("plain", "shallow", lambda kept: kept <= 0.1),
        ),
        Claim(
            "Blocks that halve the resolution matter more.",
            "no number: slightly higher impact",
            "Veit 2016, fig. 3",
            "in the deep residual network less is left without one that halves it, by more than two standard errors",
            _halving,
        ),
    ),
    tables=tables,
    pictures=(
        Picture(
            "depth",
            "Test accuracy and final training loss by depth; mean and standard deviation of three seeds.",
            _draw_depth,
            (11, 4.2),
        ),
        Picture(
            "training", "Training loss of plain and residual networks; a line is a run.", _draw_training, (11, 4.2)
        ),
        Picture(
            "gradients",
            "Norm of the gradient of the training loss by each layer's kernel; a line is a run.",
            _draw_gradients,
            (11, 4.2),
        ),
        Picture(
            "deletions",
            "Test accuracy of trained networks without one block; a point is a run.",
            _draw_deletions,
            (13, 4.8),
        ),
    ),
)

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
    DISAGREES,
    TOO_SMALL,
    Claim,
    Judgement,
    Outcomes,
    Picture,
    Study,
    Table,
    Trial,
    all_of,
    compare,
    errorbars,
    spread,
)
from train.plots.figures import tidy
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


def trials(scale: str) -> list[Trial]:
    """Plain and residual networks by depth; shortcuts, pre-activation and zero gamma in a deep one."""
    from train import config

    shallow, deep = SHALLOW[scale], DEEP[scale]
    wanted = [(network, depth) for depth in DEPTHS[scale] for network in ("plain", "residual")]
    wanted += [(network, MIDDLE[scale]) for network in SHORTCUTS[1:]]
    wanted += [(network, deep) for network in ("pre-activation", "zero gamma")]
    made = []
    for network, depth in wanted:
        family, fields = VARIANTS[network]
        for seed in SEEDS:
            c = config.load(f"configs/study.py:{scale},model={family}{depth},seed={seed}")
            c.model.update({"zero_gamma": False, **fields})  # Goyal's recipe has it in every network
            if scale == "cifar10":
                c.optimizer.warmup = "400 steps"  # which ResNet-110 needs; He 2016, section 4.2
            labels = {
                "network": network,
                "depth": depth,
                "seed": seed,
                "role": {shallow: "shallow", deep: "deep"}.get(depth, "between"),
            }
            basic = network in ("plain", "residual")
            if basic and depth == deep:
                made.append(Trial({**labels, "at": "step 0"}, c, train=False, measures=(gradients,)))
            deleted = basic and (depth == shallow or (depth == deep and network == "residual"))
            made.append(
                Trial(
                    {**labels, "at": "end"},
                    c,
                    measures=(*((gradients,) if basic and depth == deep else ()), *((deletions,) if deleted else ())),
                )
            )
    return made


# -- what is read off ----------------------------------------------------------------------------------------------


def _end(outcomes: Outcomes, network: str, **labels: Any) -> Outcomes:
    return outcomes.where(at="end", network=network, **labels)


def _accuracy(outcomes: Outcomes, network: str, **labels: Any) -> list[float]:
    """By seed, to decide by: a run that diverged has 0."""
    return _end(outcomes, network, **labels).values("accuracy", diverged=0.0)


def _final_losses(outcomes: Outcomes, network: str, **labels: Any) -> list[float]:
    return [run[-1] for run in _end(outcomes, network, **labels).losses()]


def _depth(outcomes: Outcomes, role: str) -> int:
    return outcomes.where(role=role).distinct("depth")[0]


def _degrades(outcomes: Outcomes) -> Judgement:
    deep, shallow = (_final_losses(outcomes, "plain", role=role) for role in ("deep", "shallow"))
    return Judgement(
        compare(deep, shallow),
        f"final training loss with {_depth(outcomes, 'shallow')} layers "
        f"{spread(shallow, False, 2)}, with {_depth(outcomes, 'deep')} {spread(deep, False, 2)}",
    )


def _deeper(outcomes: Outcomes) -> Judgement:
    deep, shallow = (_accuracy(outcomes, "residual", role=role) for role in ("deep", "shallow"))
    return Judgement(
        compare(deep, shallow),
        f"accuracy with {_depth(outcomes, 'shallow')} layers {spread(shallow)}, "
        f"with {_depth(outcomes, 'deep')} {spread(deep)}",
    )


def _better(outcomes: Outcomes) -> Judgement:
    residual, plain = (_accuracy(outcomes, network, role="deep") for network in ("residual", "plain"))
    return Judgement(
        compare(residual, plain),
        f"{_depth(outcomes, 'deep')} layers: residual {spread(residual)}, plain {spread(plain)}",
    )


def _faster(outcomes: Outcomes) -> Judgement:
    accuracy = {network: _accuracy(outcomes, network, role="shallow") for network in ("residual", "plain")}
    early = {network: _end(outcomes, network, role="shallow").early_losses() for network in accuracy}
    apart = [compare(*pair, by=0.02) for pair in (tuple(accuracy.values()), tuple(accuracy.values())[::-1])]
    alike = DISAGREES if AGREES in apart else TOO_SMALL if TOO_SMALL in apart else AGREES
    return Judgement(
        all_of([alike, compare(early["plain"], early["residual"])]),
        "; ".join(
            f"{network}: accuracy {spread(accuracy[network])}, training loss over the first third "
            f"{spread(early[network], False, 2)}"
            for network in accuracy
        ),
    )


def _shortcuts(outcomes: Outcomes) -> Judgement:
    depth = _end(outcomes, SHORTCUTS[1]).distinct("depth")[0]
    values = {network: _accuracy(outcomes, network, depth=depth) for network in ("plain", *SHORTCUTS)}
    means = {network: statistics.mean(v) for network, v in values.items()}
    gain = means["residual"] - means["plain"]
    apart = max(means[s] for s in SHORTCUTS) - min(means[s] for s in SHORTCUTS)
    ours = f"{depth} layers: " + ", ".join(f"{network} {spread(v)}" for network, v in values.items())
    if compare(values["residual"], values["plain"]) != AGREES:
        return Judgement(TOO_SMALL, ours)
    return Judgement(AGREES if apart < gain / 2 else DISAGREES, ours)


def _thirds(outcomes: Outcomes, network: str, at: str) -> list[float]:
    """By seed: mean gradient norm of the first third of the layers over that of the last."""
    found = []
    for norms in (one["norms"] for one in outcomes.where(network=network, at=at, role="deep").results("gradients")):
        third = len(norms) // 3
        if third and sum(norms[-third:]) > 0:
            found.append(sum(norms[:third]) / sum(norms[-third:]))
    return found


def _healthy(outcomes: Outcomes) -> Judgement:
    ratios = {network: _thirds(outcomes, network, "step 0") for network in ("plain", "residual")}
    ours = "first third over last third at step 0: " + ", ".join(
        f"{network} {spread(v, False, 2)}" for network, v in ratios.items()
    )
    inside = [0.1 <= ratio <= 10 for ratio in ratios["plain"]]
    if any(inside) != all(inside) or not inside:
        return Judgement(TOO_SMALL, ours)
    return Judgement(AGREES if all(inside) else DISAGREES, ours)


def _variant(network: str) -> Callable[[Outcomes], Judgement]:
    def judge(outcomes):
        other, residual = (_accuracy(outcomes, name, role="deep") for name in (network, "residual"))
        return Judgement(
            compare(other, residual),
            f"{_depth(outcomes, 'deep')} layers: {network} {spread(other)}, original {spread(residual)}",
        )

    return judge


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
    """By seed that converged: median test accuracy over the deletions of blocks that keep, or halve, the resolution,
    as a fraction of the way from chance (0) to the whole network (1).
    """
    found = []
    for d in _end(outcomes, network, role=role).results("deletions"):
        if d["whole"] >= CONVERGED:
            kept = [
                (a - d["chance"]) / (d["whole"] - d["chance"])
                for a, half in zip(d["accuracy"], d["halving"], strict=True)
                if half == halving
            ]
            found += [statistics.median(kept)] if kept else []
    return found


def _kept(network: str, role: str, agrees: Callable[[float], bool]) -> Callable[[Outcomes], Judgement]:
    def judge(outcomes):
        kept = _deleted(outcomes, network, role)
        ours = f"{network}, {_depth(outcomes, role)} layers: {spread(kept)} of what is above chance is left"
        if len(kept) < 2 or len({agrees(value) for value in kept}) > 1:
            return Judgement(TOO_SMALL, ours)
        return Judgement(AGREES if agrees(kept[0]) else DISAGREES, ours)

    return judge


def _halving(outcomes: Outcomes) -> Judgement:
    keeping, halving = (_deleted(outcomes, "residual", "deep", half) for half in (False, True))
    return Judgement(
        compare(keeping, halving),
        f"left without a block that keeps the resolution {spread(keeping)}, that halves it {spread(halving)}",
    )


# -- what is shown -------------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Accuracy and training loss of every network, beside the published; gradients; deletions."""
    networks = [
        [
            network,
            depth,
            spread(group.values("accuracy")),
            spread(_final_losses(outcomes, network, depth=depth), False, 3),
            *(
                f"{100 - error:.2f}" if (error := PUBLISHED[scale].get(network, {}).get(depth)) else "—"
                for scale in PUBLISHED
            ),
        ]
        for (network, depth), group in outcomes.where(at="end").groups("network", "depth")
    ]
    ratios = [
        [network, *(spread(_thirds(outcomes, network, at), False, 3) for at in ("step 0", "end"))]
        for network in ("plain", "residual")
    ]
    deleted = [
        [
            network,
            _depth(outcomes, role),
            spread([one["whole"] for one in _end(outcomes, network, role=role).results("deletions")]),
            *(spread(_deleted(outcomes, network, role, half)) for half in (False, True)),
        ]
        for network, role in (("plain", "shallow"), ("residual", "shallow"), ("residual", "deep"))
    ]
    return [
        Table(
            "Test accuracy and final training loss",
            [
                "network",
                "layers",
                "test accuracy",
                "training loss (nats)",
                "published: CIFAR-10 (%)",
                "published: ImageNet, 10-crop (%)",
            ],
            networks,
        ),
        Table(
            f"Gradient norm, first third of the layers over last third, {_depth(outcomes, 'deep')} layers",
            ["network", "step 0", "end of training"],
            ratios,
        ),
        Table(
            "Left of the accuracy above chance after one block is deleted, median over blocks",
            [
                "network",
                "layers",
                "accuracy of the whole",
                "a block that keeps the resolution",
                "a block that halves it",
            ],
            deleted,
        ),
    ]


def _draw_depth(outcomes: Outcomes, figure: Any) -> None:
    panels = figure.subplots(1, 2)
    depths = outcomes.distinct("depth")
    for network, color in COLORS.items():
        style = {"color": color, "label": network}
        errorbars(panels[0], depths, [_end(outcomes, network, depth=n).values("accuracy") for n in depths], **style)
        errorbars(panels[1], depths, [_final_losses(outcomes, network, depth=n) for n in depths], 1, **style)
    panels[1].set_yscale("log")
    for axes, name in zip(panels, ("test accuracy (%)", "final training loss (nats)"), strict=True):
        axes.set_xticks(depths, depths)
        axes.set(xlabel="layers", ylabel=name)
        axes.legend(frameon=False)
        tidy(axes)


def _draw_training(outcomes: Outcomes, figure: Any) -> None:
    depths = outcomes.distinct("depth")
    shades = [(0.15 + 0.7 * i / max(1, len(depths) - 1)) for i in range(len(depths))]
    for axes, network in zip(figure.subplots(1, len(COLORS), sharey=True), COLORS, strict=True):
        for depth, shade in zip(depths, shades, strict=True):
            for i, outcome in enumerate(_end(outcomes, network, depth=depth)):
                history = outcome.history.get("train", {"step": [], "loss": []})
                axes.plot(
                    history["step"],
                    history["loss"],
                    color=colormaps["viridis"](shade),
                    linewidth=1.2,
                    label=f"{depth} layers" if i == 0 else None,
                )
        axes.set(title=network, xlabel="step", yscale="log")
        axes.legend(frameon=False, fontsize=9)
        tidy(axes)
        if network == "plain":
            axes.set_ylabel("training loss (nats)")


def _draw_gradients(outcomes: Outcomes, figure: Any) -> None:
    moments = ("step 0", "end")
    for axes, at in zip(figure.subplots(1, len(moments), sharey=True), moments, strict=True):
        for network, color in COLORS.items():
            runs = outcomes.where(network=network, at=at, role="deep").results("gradients")
            for i, norms in enumerate(run["norms"] for run in runs):
                axes.plot(
                    range(1, len(norms) + 1),
                    norms,
                    color=color,
                    alpha=0.8,
                    linewidth=1.1,
                    label=network if i == 0 else None,
                )
        axes.set(
            title=f"{_depth(outcomes, 'deep')} layers, {at}" + (" of training" if at == "end" else ""),
            xlabel="layer",
            yscale="log",
        )
        tidy(axes)
        if at == moments[0]:
            axes.set_ylabel("norm of the gradient by the kernel")
            axes.legend(frameon=False)


def _draw_deletions(outcomes: Outcomes, figure: Any) -> None:
    panels = (("plain", "shallow"), ("residual", "shallow"), ("residual", "deep"))
    for axes, (network, role) in zip(
        figure.subplots(1, len(panels), sharey=True, width_ratios=(1, 1, 2)), panels, strict=True
    ):
        runs = _end(outcomes, network, role=role).results("deletions")
        if runs:
            names = runs[0]["blocks"]
            for i, run in enumerate(runs):
                axes.axhline(100 * run["whole"], color=GRAY, linewidth=1, label="nothing deleted" if i == 0 else None)
                axes.plot(
                    range(len(names)),
                    [100 * a for a in run["accuracy"]],
                    "o",
                    markersize=4,
                    alpha=0.7,
                    color=COLORS[network],
                    label="one block deleted" if i == 0 else None,
                )
            axes.axhline(100 * runs[0]["chance"], color=GRAY, linewidth=1, linestyle=":", label="chance")
            halving = [at for at, half in enumerate(runs[0]["halving"]) if half]
            for i, at in enumerate(halving):
                axes.axvspan(
                    at - 0.5,
                    at + 0.5,
                    color=GRAY,
                    alpha=0.15,
                    linewidth=0,
                    label="halves the resolution" if i == 0 else None,
                )
            short = [name.replace("stage", "").replace("/block", ".") for name in names]
            axes.set_xticks(range(len(names)), short, rotation=90, fontsize=9)
        axes.set(
            title=f"{network}, {_depth(outcomes, role)} layers", xlabel="deleted block (stage.block)", ylim=(0, 102)
        )
        tidy(axes)
        if role == "shallow" and network == "plain":
            axes.set_ylabel("test accuracy (%)")
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9)


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
            _degrades,
        ),
        Claim(
            "A deeper residual network is better.",
            "CIFAR-10: 8.75 % with 20 layers, 6.97 % with 56",
            "He 2016, table 6",
            "the deep one's test accuracy is above the shallow one's, by more than two standard errors",
            _deeper,
        ),
        Claim(
            "In deep networks residual connections are better than none.",
            "ImageNet, 34 layers: 25.03 % against 28.54 %",
            "He 2016, table 2",
            "the deep residual network's accuracy is above the plain one's, by more than two standard errors",
            _better,
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
            _variant("pre-activation"),
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

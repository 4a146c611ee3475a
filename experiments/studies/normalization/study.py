"""Normalization: what it averages over, how many images that needs, and what it does to the loss.

  Ioffe & Szegedy 2015     Batch normalization, arXiv 1502.03167
  Ba et al. 2016           Layer normalization, arXiv 1607.06450
  Ulyanov et al. 2016      Instance normalization, arXiv 1607.08022
  Ioffe 2017               Batch renormalization, arXiv 1702.03275
  Wu & He 2018             Group normalization, arXiv 1803.08494
  Santurkar et al. 2018    How does batch normalization help optimization?, arXiv 1805.11604

Wu & He train on 8 GPUs with 32 to 2 images on each, and a learning rate in proportion to the batch, for the same
number of epochs. So do we, with PARTS in place of the GPUs: the parts into which one device cuts a batch, which batch
norm sees one at a time. "BN, same steps" leaves batch and learning rate as they are at 32 and cuts smaller parts: the
noise of the statistics is then all that changes.
"""

import math
import statistics
from typing import Any

from experiments.studies.measures import gap, smoothness
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
    finite,
    holds,
    listed,
    more,
    recipe,
    spread,
)
from experiments.study.figures import bars_by, errorbars, finish, legend_below, number_ticks
from experiments.study.tables import accuracy, table_by
from train.plots.palette import BLUE, CYAN, GRAY, GREEN, RED, YELLOW

SIZES = (32, 16, 8, 4, 2)  # images that are normalized together
NETWORKS = {"digits": "resnet8", "cifar10": "resnet20", "imagenet": "resnet50"}
PLAIN = {"digits": "plain14", "cifar10": "plain20", "imagenet": "plain18"}  # of which the smoothness is measured
WIDTHS = {"digits": 8, "cifar10": 16, "imagenet": 64}  # channels of the narrowest layer; GN has half as many groups
PARTS = {"digits": (1, 2), "cifar10": (1, 4), "imagenet": (8, 1)}  # (devices, accumulate)
EPOCHS = {"digits": 6, "cifar10": 60, "imagenet": 90}
POINTS = (1, 2, 4, 8)  # epochs after which the smoothness is measured
SEEDS = (0, 1, 2)
SMOOTH_RATE = 0.02  # learning rate with which networks without normalization survive
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


def trials(scale: str) -> list[Trial]:
    """Lists all norms by images a device; BN in smaller parts of one batch; numbers of groups; smoothness."""
    width, planned = WIDTHS[scale], []
    specs = {"BN": "batch", "GN": f"group:{width // 2}", "LN": "layer", "IN": "instance", "none": "none"}
    for seed in SEEDS:
        for label, spec in specs.items():
            measures = (gap,) if label in ("BN", "GN") else ()
            for images in SIZES:
                labels = {"part": "size", "norm": label, "images": images, "seed": seed}
                planned.append(Trial(labels, _config(scale, spec, images, seed), measures=measures))
        for images in SIZES[1:]:
            labels = {"part": "size", "norm": "BN, same steps", "images": images, "seed": seed}
            planned.append(Trial(labels, _config(scale, "batch", images, seed, same_steps=True), measures=(gap,)))
        for groups in (2**i for i in range(width.bit_length())):
            labels = {"part": "groups", "groups": groups, "images": SIZES[0], "seed": seed}
            planned.append(Trial(labels, _config(scale, f"group:{groups}", SIZES[0], seed)))
        for label in ("BN", "none"):
            for epochs in POINTS:
                labels = {"part": "smoothness", "norm": label, "epochs": epochs, "images": SIZES[0], "seed": seed}
                planned.append(Trial(labels, _smooth(scale, specs[label], epochs, seed), measures=(smoothness,)))
    return planned


def _config(scale: str, norm: str, images: int, seed: int, same_steps: bool = False, model: str = "") -> Any:
    """Returns the config of a network that sees so many images at once."""
    devices, parts = PARTS[scale]
    model = model or NETWORKS[scale]
    c = recipe(f"configs/study.py:{scale},model={model},norm={norm},seed={seed},epochs={EPOCHS[scale]}")
    c.devices, c.batch_size = devices, devices * parts * SIZES[0]
    c.accumulate = parts * SIZES[0] // images if same_steps else parts
    if norm == "none":
        c.optimizer.learning_rate /= 5  # does not survive the recipe's
    if not same_steps:
        c.batch_size = c.batch_size * images // SIZES[0]
        c.optimizer.learning_rate *= images / SIZES[0]
    return c


def _smooth(scale: str, norm: str, epochs: int, seed: int) -> Any:
    """Returns the config of a plain network, whose shorter runs are the beginnings of the longer ones."""
    c = _config(scale, norm, SIZES[0], seed, model=PLAIN[scale])
    c.duration, c.optimizer.learning_rate = f"{epochs} epochs", SMOOTH_RATE
    c.optimizer.schedule, c.optimizer.warmup = "constant", "0 steps"
    if scale == "imagenet":
        c.model.zero_gamma = False  # of the recipe, for networks with shortcuts
    return c


# -- judges --------------------------------------------------------------------------------------------------------


def _runs(outcomes: Outcomes, norm: str, images: int) -> Outcomes:
    own = outcomes.where(part="size", norm=norm, images=images)
    return own if len(own) or norm != "BN, same steps" else _runs(outcomes, "BN", images)  # at 32 they are the same


def _accuracy(outcomes: Outcomes, norm: str, images: int) -> list[float]:
    """Returns accuracies by seed, to decide by: a run that diverged has 0."""
    return _runs(outcomes, norm, images).values("accuracy", diverged=0.0)


def _gaps(outcomes: Outcomes, norm: str, images: int, mode: str) -> list[float]:
    return finite(_runs(outcomes, norm, images).measured("gap", mode))


def _differences(outcomes: Outcomes, images: int, first: str, second: str) -> list[float]:
    """Returns by seed what BN's accuracy in one mode is above that in another."""
    pairs = zip(_gaps(outcomes, "BN", images, first), _gaps(outcomes, "BN", images, second), strict=True)
    return [a - b for a, b in pairs]


def _by_size(outcomes: Outcomes, norm: str) -> str:
    return f"{norm} " + ", ".join(spread(_accuracy(outcomes, norm, n)) for n in SIZES) + " at 32, 16, 8, 4, 2"


def _bn_small(outcomes: Outcomes) -> Judgement:
    verdict = compare(_accuracy(outcomes, "BN", 32), _accuracy(outcomes, "BN", 2))
    same_steps = spread(_accuracy(outcomes, "BN, same steps", 2))
    return Judgement(verdict, f"{_by_size(outcomes, 'BN')}; with the same steps {same_steps} at 2")


def _gn_flat(outcomes: Outcomes) -> Judgement:
    many, few = (_accuracy(outcomes, "BN", images) for images in (32, 2))
    drop = statistics.mean(many) - statistics.mean(few)
    means = [statistics.mean(_accuracy(outcomes, "GN", n)) for n in SIZES]
    span = max(means) - min(means)
    text = f"its means span {100 * span:.1f} points, BN loses {100 * drop:.1f}"
    verdict = holds(span < drop / 4) if compare(many, few) == AGREES else TOO_SMALL
    return Judgement(verdict, f"{_by_size(outcomes, 'GN')}; {text}")


def _gn_at_2(outcomes: Outcomes) -> Judgement:
    return more({norm: _accuracy(outcomes, norm, 2) for norm in ("GN", "BN")}, separator=", ")


def _order(outcomes: Outcomes) -> Judgement:
    values = {norm: _accuracy(outcomes, norm, 32) for norm in ("BN", "GN", "LN", "IN")}
    verdict = all_of([compare(values["GN"], values["LN"]), compare(values["LN"], values["IN"])])
    return Judgement(verdict, listed(values, separator=", "))


def _discrepancy(outcomes: Outcomes) -> Judgement:
    many, few = ([abs(d) for d in _differences(outcomes, images, "batch", "train")] for images in (32, 2))
    return Judgement(compare(few, many), f"the two differ by {spread(many)} at 32, {spread(few)} at 2")


def _recalibrated(outcomes: Outcomes) -> Judgement:
    many, few = (_differences(outcomes, images, "recalibrated", "test") for images in (32, 2))
    verdict = compare(few, [0.0] * len(few))  # each run against itself
    return Judgement(verdict, f"recalibration adds {spread(many)} at 32, {spread(few)} at 2")


def _groups(outcomes: Outcomes) -> Judgement:
    by_groups = {groups: own.values("accuracy") for (groups,), own in outcomes.where(part="groups").groups("groups")}
    others = [value for groups, values in by_groups.items() if groups > 1 for value in values]
    text = "; ".join(f"{groups} groups {spread(values)}" for groups, values in by_groups.items())
    return Judgement(compare(others, by_groups[1]), text)


def _faster(outcomes: Outcomes) -> Judgement:
    early = {norm: _runs(outcomes, norm, 32).early_losses() for norm in ("BN", "none")}
    return Judgement(compare(early["none"], early["BN"]), listed(early, percent=False, digits=2))


def _along(outcomes: Outcomes, norm: str, epochs: int, name: str) -> list[float]:
    """Returns by seed the range of the loss along the gradient, or the largest "change" or "smoothness"."""
    return [
        max(one["loss"]) - min(one["loss"]) if name == "loss" else max(one[name])
        for one in outcomes.where(part="smoothness", norm=norm, epochs=epochs).results("smoothness")
    ]


def _smoother(name: str) -> Judge:
    def by_seed(outcomes: Outcomes, norm: str) -> list[float]:
        """Returns mean logarithms over the points of training, without seeds that diverged at one of them."""
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
            compare(by_seed(outcomes, "none"), by_seed(outcomes, "BN")),
            f"{'; '.join(numbers)}, after {', '.join(map(str, POINTS))} epochs",
        )

    return judge


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns accuracy by norm and images a device, beside the published; BN's gap; groups; smoothness."""
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
        Table("Test accuracy by images a device", ["norm", *map(str, SIZES), published], sizes),
        Table(
            "Training and test accuracy by mode",
            ["norm", "images a device", *(text for text, _ in MODES.values())],
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


def _draw_sizes(outcomes: Outcomes, figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for norm in outcomes.where(part="size").distinct("norm"):
        runs = [_runs(outcomes, norm, n).values("accuracy") for n in SIZES]
        line = "--" if norm == "BN, same steps" else "-"
        errorbars(left, SIZES, runs, color=COLORS[norm], label=norm, linestyle=line)
    by_groups = {groups: own.values("accuracy") for (groups,), own in outcomes.where(part="groups").groups("groups")}
    errorbars(right, by_groups, list(by_groups.values()), color=COLORS["GN"])
    for axes, ticks in ((left, SIZES), (right, list(by_groups))):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ticks)
    left.invert_xaxis()
    finish(left, legend={"ncols": 2}, xlabel="images that are normalized together", ylabel="test accuracy (%)")
    xlabel = "groups (1: layer normalization)"
    finish(right, xlabel=xlabel, ylabel="test accuracy (%)", title="32 images")


def _draw_gap(outcomes: Outcomes, figure: Any) -> None:
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


def _draw_smoothness(outcomes: Outcomes, figure: Any) -> None:
    panels = figure.subplots(1, 3)
    for norm, beside in (("BN", 0.94), ("none", 1.06)):
        means = []
        for epochs in POINTS:
            for one in outcomes.where(part="smoothness", norm=norm, epochs=epochs).results("smoothness"):
                for axes, values in ((panels[0], one["loss"]), (panels[1], one["change"])):
                    axes.vlines(epochs * beside, min(values), max(values), color=COLORS[norm], alpha=0.35, linewidth=6)
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


STUDY = Study(
    name="normalization",
    title="Normalization",
    question="How do batch, layer, instance, group and no normalization depend on the images a device sees, and does "
    "batch normalization make the loss smoother?",
    would_change="More seeds, as many as stand beside the claims, for the small batches and for the order of group, "
    "layer and instance norm: on 360 test images three seeds spread by as much as the norms differ. For "
    "the smoothness of the loss, a depth and a learning rate at which the plain network without "
    "normalization learns: where it has hardly begun, its loss is flat.",
    cost={
        "digits": "about 7 minutes on 2 cores",
        "cifar10": "123 runs, 99 of them 60 epochs of ResNet-20: some 20 hours of one GPU. 0.7 PFLOP a run is little; "
        "it is the small batches, 375,000 steps at 2 images, that take the time",
        "imagenet": "129 runs, 105 of them 90 epochs of ResNet-50 on 8 GPUs: at 2.8e18 FLOP a run some 1,500 GPU hours",
    },
    trials=trials,
    claims=(
        Claim(
            "Batch normalization's accuracy falls as a device sees fewer images.",
            "error 23.6 / 23.7 / 24.8 / 27.3 / 34.7 % at 32 / 16 / 8 / 4 / 2",
            "Wu & He 2018, table 2",
            "BN's accuracy at 2 images is below that at 32, by more than two standard errors",
            _bn_small,
        ),
        Claim(
            "Group normalization is as accurate when a device sees few images.",
            "error 24.1 / 24.2 / 24.0 / 24.2 / 24.1 % at 32 / 16 / 8 / 4 / 2",
            "Wu & He 2018, table 2",
            "GN's means span less than a quarter of what BN loses from 32 to 2; undecided where BN loses nothing",
            _gn_flat,
        ),
        Claim(
            "With 2 images group normalization is far better than batch normalization.",
            "10.6 points lower error",
            "Wu & He 2018, abstract",
            "GN's accuracy at 2 images is above BN's, by more than two standard errors",
            _gn_at_2,
        ),
        Claim(
            "With 32 images group normalization is better than layer, and that than instance normalization.",
            "error: BN 23.6, GN 24.1, LN 25.3, IN 28.4 %",
            "Wu & He 2018, table 1",
            "GN above LN and LN above IN, each by more than two standard errors",
            _order,
        ),
        Claim(
            "Batch normalization computes differently in training and in inference, the more so with small batches.",
            "no number: differences between training and inference",
            "Ioffe 2017, abstract",
            "on the same training images the two modes' accuracies are further apart at 2 images than at 32",
            _discrepancy,
        ),
        Claim(
            "Statistics of the training set, computed after training, serve inference.",
            "no number: algorithm 2, with population statistics",
            "Ioffe & Szegedy 2015, section 3.1",
            "recalibrated, runs with 2 images gain test accuracy over their running averages, by more than two "
            "standard errors",
            _recalibrated,
        ),
        Claim(
            "The number of groups matters little, and one group, which is layer normalization, is the worst.",
            "every G > 1 below the error of G = 1",
            "Wu & He 2018, table 3",
            "the mean over all G > 1 is above G = 1, by more than two standard errors",
            _groups,
        ),
        Claim(
            "Batch normalization speeds training up.",
            "the same accuracy with 14 times fewer steps",
            "Ioffe & Szegedy 2015, abstract",
            "the training loss over the first third is lower with BN than with none, at 32 images",
            _faster,
        ),
        Claim(
            "With batch normalization the loss varies less along the gradient.",
            "no number: narrower bands",
            "Santurkar 2018, fig. 4a",
            "the range of the loss over steps of 1/2 to 4 learning rates along the "
            "gradient, its logarithm averaged over the points of training, is smaller with BN",
            _smoother("loss"),
        ),
        Claim(
            "With batch normalization the gradient changes less over the same distance.",
            "no number: lower effective smoothness",
            "Santurkar 2018, fig. 4c",
            "so averaged, the largest change of the gradient, divided by the distance, is smaller with BN",
            _smoother("smoothness"),
        ),
    ),
    tables=tables,
    pictures=(
        Picture(
            "sizes",
            "Left: test accuracy against the images that are normalized together, learning rate in "
            "proportion to the batch; dashed: batch norm in smaller parts of the same batch. Right: by number of "
            "groups. Mean and standard deviation of three seeds.",
            _draw_sizes,
            (12, 4.5),
        ),
        Picture(
            "gap",
            "Accuracy in training mode and in evaluation mode, on training and test images; mean and "
            "standard deviation of three seeds.",
            _draw_gap,
            (13, 4.8),
        ),
        Picture(
            "smoothness",
            "Along the gradient, over steps of 1/2 to 4 learning rates, at points of the training of "
            "plain networks: range of the loss, range of the change of the gradient (a bar is a run), and largest "
            "change divided by the distance.",
            _draw_smoothness,
            (13, 4.2),
        ),
    ),
)

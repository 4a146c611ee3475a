"""Convolution or attention: what a stem of convolutions does for a Vision Transformer, and ConvNeXt step by step.

  Xiao et al. 2021       Early convolutions help transformers see better, arXiv 2106.14881      ViT_P, ViT_C
  Liu et al. 2022        A ConvNet for the 2020s, arXiv 2201.03545                              ConvNeXt, the ladder
  Liu et al. 2021        Swin Transformer, arXiv 2103.14030
  Touvron et al. 2021    Training data-efficient image transformers, arXiv 2012.12877           DeiT, a ViT

The grid of learning rate and weight decay is one seed a setting, but for the middle weight decay, on which the
comparison of optimizers rests: three seeds. So are all other comparisons.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies import networks
from experiments.studies.networks import Network
from experiments.study import (
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
    spread,
)
from experiments.study.figures import dots, finish, heatmap
from experiments.study.tables import table_by
from train.plots.palette import BLACK, BLUE, RED

SEEDS = (0, 1, 2)
PATCHES, CONVOLUTIONS = STEMS = ("ViT_P", "ViT_C")
TOLERANCE = 0.10  # of mult-adds: costliest over cheapest, less 1
NEAR = 0.05  # error above a network's best that counts as near it
LENGTHS = {"digits": (4, 8, 24), "cifar10": (30, 60, 180), "imagenet": (50, 100, 400)}  # epochs
GRID_EPOCHS = {"digits": 8, "cifar10": 60, "imagenet": 50}
OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd(momentum=0.9)"}
# By scale and optimizer: learning rates, and weight decays, of which three seeds have the middle one.
GRID: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = {
    "digits": {"adamw": ((5e-4, 4e-3, 3.2e-2), (0.01, 0.1, 1.0)), "sgd": ((0.01, 0.08, 0.64), (1e-5, 1e-4, 1e-3))},
    "cifar10": {
        "adamw": ((2.5e-4, 1e-3, 4e-3, 1.6e-2), (0.01, 0.1, 1.0)),
        "sgd": ((0.01, 0.04, 0.16, 0.64), (1e-5, 1e-4, 1e-3)),
    },
    "imagenet": {
        "adamw": ((2.5e-4, 5e-4, 1e-3, 2e-3), (0.12, 0.24, 0.48)),
        "sgd": ((0.64, 1.27, 2.54, 5.08), (1.2e-5, 2.4e-5, 4.8e-5)),
    },
}
FIXED = {"digits": 4e-3, "cifar10": 1e-3, "imagenet": 1e-3}  # AdamW's learning rate outside of the grid

# A standard deviation of 0.02 is for widths of some hundred; that of a kernel's outputs depends on std^2 x width.
_WIDER_INIT = {"init": "truncated_normal:0.07"}
_DIGITS_VIT = {**_WIDER_INIT, "patch_size": 2, "width": 32, "heads": 2, "mlp_width": 96}
_CIFAR_VIT = {"patch_size": 4, "width": 96, "heads": 3, "mlp_width": 288}
VITS: Mapping[str, Mapping[str, Network]] = {  # the stem takes the place of one block
    "digits": {
        PATCHES: Network("vit_p_1gf", {**_DIGITS_VIT, "depth": 3}),
        CONVOLUTIONS: Network("vit_c_1gf", {**_DIGITS_VIT, "depth": 2, "stem_channels": (32, 32)}),
    },
    "cifar10": {
        PATCHES: Network("vit_p_1gf", {**_CIFAR_VIT, "depth": 6}),
        CONVOLUTIONS: Network("vit_c_1gf", {**_CIFAR_VIT, "depth": 5, "stem_channels": (24, 48)}),
    },
    "imagenet": {PATCHES: Network("vit_p_4gf"), CONVOLUTIONS: Network("vit_c_4gf")},
}
_ROWS = {  # name: (row of models/convnext_ladder.py, published top-1 in percent, with the recipe of row 1)
    "0 ResNet": ("00_resnet50", "78.82 ± 0.07"),
    "2 stage ratio": ("02_stage_ratio", "79.36 ± 0.07"),
    "3 patchify": ("03_patchify_stem", "79.51 ± 0.18"),
    "4 depthwise": ("04_depthwise", "78.28 ± 0.08"),
    "5 width": ("05_width96", "80.50 ± 0.02"),
    "6 inverted": ("06_inverted_bottleneck", "80.64 ± 0.03"),
    "7 moved up": ("07_depthwise_first", "79.92 ± 0.08"),
    "8 kernel 5": ("08_kernel5", "80.35 ± 0.08"),
    "9 kernel 7": ("09_kernel7", "80.57 ± 0.14"),
    "10 GELU": ("10_gelu", "80.62 ± 0.14"),
    "11 fewer acts": ("11_fewer_activations", "81.27 ± 0.06"),
    "12 fewer norms": ("12_fewer_norms", "81.41 ± 0.09"),
    "13 layer norm": ("13_layer_norm", "81.47 ± 0.09"),
    "14 ConvNeXt": ("14_separate_downsampling", "81.97 ± 0.06"),
}


def _ladder(size: int, stage_sizes: Sequence[int], width: int) -> dict[str, Network]:
    """Small relatives on images of `size`, in fewer and larger steps; the width grows by half where theirs does."""
    rows = [row for row in _ROWS if int(row.split()[0]) in (0, 3, 4, 5, 14)]
    return {
        row: Network(
            f"convnext_ladder{_ROWS[row][0]}",
            {"stage_sizes": stage_sizes, "width": width * 3 // 2 if int(row.split()[0]) >= 5 else width},
            size,
        )
        for row in rows
    }


LADDER = {
    "digits": _ladder(16, (1, 2), 16),
    "cifar10": _ladder(0, (2, 4), 32),
    "imagenet": {row: Network(f"convnext_ladder{name}") for row, (name, _) in _ROWS.items()},
}
EQUAL = "equal mult-adds"
FAMILIES: Mapping[str, Mapping[str, Network]] = {  # those on digits see images of 16 x 16 as maps of 4 x 4, then 2 x 2
    "digits": {
        "ConvNeXt": Network("convnext_tiny", {**_WIDER_INIT, "stage_sizes": (2, 2), "width": 28}, 16),
        "Swin": Network(
            "swin_t", {**_WIDER_INIT, "stage_sizes": (2, 2), "width": 24, "heads": (2, 4), "window": 2}, 16
        ),
        "ViT": Network(
            "vit_tiny_patch16",
            {**_WIDER_INIT, "patch_size": 4, "width": 26, "depth": 3, "heads": 2, "mlp_width": 104},
            16,
        ),
        "ResNet": Network("resnet18", {"stage_sizes": (1, 1), "width": 28}, 16),
    },
    "cifar10": {
        "ConvNeXt": Network("convnext_tiny", {"stage_sizes": (3, 3), "width": 64}),
        "Swin": Network("swin_t", {"stage_sizes": (2, 2), "width": 64, "heads": (2, 4), "window": 4}),
        "ViT": Network("vit_tiny_patch16", {"patch_size": 4, "width": 72, "depth": 3, "heads": 3, "mlp_width": 288}),
        "ResNet": Network("resnet18", {"stage_sizes": (2, 2), "width": 53}),
    },
    "imagenet": {
        "ConvNeXt": Network("convnext_tiny"),
        "Swin": Network("swin_t"),
        "ViT": Network("vit_small_patch16"),
        "ResNet": Network("resnet50", {"width": 66}),
    },
}
NAMES = {"adamw": "AdamW", "sgd": "SGD"}
COLORS = {PATCHES: RED, CONVOLUTIONS: BLUE}
COSTS = {
    "digits": "about 6 minutes on 2 cores",
    "cifar10": "119 runs, 4e16 mult-adds: half an hour at 3e13 a second, hours at what small networks reach on a GPU",
    "imagenet": "146 runs, 2e20 mult-adds: 1800 GPU hours at 3e13 a second, as ResNet-50 on an A100",
}


def trials(scale: str) -> list[Trial]:
    """Lists the grid, training lengths, the ladder, and families at equal cost."""
    planned, middle = [], LENGTHS[scale][1]

    def add(network: Network, labels: Mapping[str, Any], config: Mapping[str, Any], seeds: Sequence[int] = SEEDS):
        planned.extend(Trial({**labels, "seed": seed}, _config(scale, network, seed, **config)) for seed in seeds)

    for stem, network in VITS[scale].items():
        for optimizer, (rates, decays) in GRID[scale].items():
            for decay in decays:
                for rate in rates:
                    settings = {"optimizer": optimizer, "rate": rate, "decay": decay}
                    seeds = SEEDS if decay == decays[1] else SEEDS[:1]
                    labels = {"set": "grid", "stem": stem, **settings}
                    add(network, labels, {**settings, "epochs": GRID_EPOCHS[scale]}, seeds)
        for epochs in LENGTHS[scale]:
            add(network, {"set": "length", "stem": stem, "epochs": epochs}, {"epochs": epochs})
    for kind, members in (("ladder", LADDER[scale]), (EQUAL, FAMILIES[scale])):
        for name, network in members.items():
            add(network, {"set": kind, "network": name}, {"epochs": middle})
    return planned


def _config(
    scale: str, network: Network, seed: int, epochs: int, optimizer: str = "adamw", rate: float = 0, decay: float = 0
) -> Any:
    """Returns the modern recipe with this network; rate and decay 0: those outside of the grid."""
    c = networks.config(scale, network, seed, epochs)
    c.optimizer.name = OPTIMIZERS[optimizer]
    c.optimizer.learning_rate = rate or FIXED[scale]
    c.optimizer.weight_decay = decay or GRID[scale][optimizer][1][1]
    c.optimizer.schedule, c.optimizer.warmup, c.optimizer.warmup_from = "cosine", "5%", 0.0
    if scale == "imagenet":
        c.batch_size, c.task.label_smoothing = 2048, 0.1
        c.data.augment = "flip|randaugment(2, 9)|mixup_cutmix(0.8, 1.0)"
    return c


# -- judges --------------------------------------------------------------------------------------------------------


def _errors(outcomes: Outcomes) -> list[float]:
    """Returns test errors; a run that diverged has everything wrong."""
    return [1 - accuracy for accuracy in outcomes.values("accuracy", diverged=0.0)]


def _settings(outcomes: Outcomes, stem: str) -> list[float]:
    """Returns the error of each setting of the grid, the first seed's, ascending."""
    return sorted(_errors(outcomes.where(set="grid", stem=stem, seed=SEEDS[0])))


def _best(outcomes: Outcomes, stem: str, optimizer: str) -> tuple[float, list[float]]:
    """Returns the best learning rate, and its errors by seed, at the weight decay that has all seeds."""
    candidates = [
        (rate, _errors(group))
        for (rate, _), group in outcomes.where(set="grid", stem=stem, optimizer=optimizer).groups("rate", "decay")
        if len(group) > 1
    ]
    return min(candidates, key=lambda pair: statistics.mean(pair[1]))


def _optimizers(outcomes: Outcomes) -> Judgement:
    """Compares the gap of each seed, at each optimizer's best learning rate."""
    gaps, texts = {}, []
    for stem in STEMS:
        (fast, adamw), (slow, sgd) = (_best(outcomes, stem, optimizer) for optimizer in OPTIMIZERS)
        gaps[stem] = [b - a for a, b in zip(adamw, sgd, strict=True)]
        texts.append(f"{stem}: error {spread(adamw)} with AdamW ({fast:g}), {spread(sgd)} with SGD ({slow:g})")
    return Judgement(compare(gaps[PATCHES], gaps[CONVOLUTIONS]), "; ".join(texts))


def _near(outcomes: Outcomes) -> Judgement:
    settings = {stem: _settings(outcomes, stem) for stem in STEMS}
    shares = {stem: statistics.mean(error <= errors[0] + NEAR for error in errors) for stem, errors in settings.items()}
    difference = shares[CONVOLUTIONS] - shares[PATCHES]
    return Judgement(
        TOO_SMALL if abs(difference) <= 0.2 else holds(difference > 0),
        "; ".join(f"{stem}: {share:.0%} of {len(settings[stem])} settings" for stem, share in shares.items()),
    )


def _by_length(outcomes: Outcomes, stem: str) -> dict[int, list[float]]:
    return {epochs: _errors(group) for (epochs,), group in outcomes.where(set="length", stem=stem).groups("epochs")}


def _lengths(outcomes: Outcomes) -> Judgement:
    """Compares by how much the error of a seed's short training is above that of its long one."""
    gaps, texts = {}, []
    for stem in STEMS:
        errors = _by_length(outcomes, stem)
        short, long = min(errors), max(errors)
        gaps[stem] = [a - b for a, b in zip(errors[short], errors[long], strict=True)]
        texts.append(f"{stem}: error {spread(errors[short])} after {short} epochs, {spread(errors[long])} after {long}")
    return Judgement(compare(gaps[PATCHES], gaps[CONVOLUTIONS]), "; ".join(texts))


def _stems(outcomes: Outcomes) -> Judgement:
    errors = {stem: _by_length(outcomes, stem) for stem in STEMS}
    middle = sorted(errors[PATCHES])[1]
    return Judgement(
        compare(errors[PATCHES][middle], errors[CONVOLUTIONS][middle]),
        "; ".join(f"{stem}: error {spread(errors[stem][middle])}" for stem in STEMS),
    )


def _rows(*pairs: tuple[str, str]) -> Judge:
    """Returns a judge: in each pair of the ladder's rows the first is more accurate."""

    def judge(outcomes: Outcomes) -> Judgement:
        ladder = outcomes.where(set="ladder")
        names = list(dict.fromkeys(row for pair in pairs for row in pair))
        values = {row: [1 - error for error in _errors(ladder.where(network=row))] for row in names}
        verdicts = [compare(values[first], values[second]) for first, second in pairs]
        return Judgement(all_of(verdicts), networks.accuracies(ladder, *names))

    return judge


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns lengths, the ladder, the families and the grid."""
    lengths = {stem: _by_length(outcomes, stem) for stem in STEMS}
    ladder = {**networks.CELLS, "published, ImageNet, %": lambda group: _ROWS[group[0].labels["network"]][1]}
    by_network = {"network": "network"}
    labels = {"stem": "network", "optimizer": "optimizer", "rate": "learning rate", "decay": "weight decay"}
    grid = table_by(
        "Test error over the grid", outcomes.where(set="grid"), labels, {"test error": lambda g: spread(_errors(g))}
    )
    shown = [[stem, optimizer, f"{rate:g}", f"{decay:g}", *rest] for stem, optimizer, rate, decay, *rest in grid.rows]
    return [
        Table(
            "Test error over training length",
            ["network", *(f"{epochs} epochs" for epochs in lengths[PATCHES])],
            [[stem, *(spread(errors) for errors in by_epochs.values())] for stem, by_epochs in lengths.items()],
        ),
        table_by("From ResNet to ConvNeXt", outcomes.where(set="ladder"), by_network, ladder),
        table_by("Families at equal mult-adds", outcomes.where(set=EQUAL), by_network, networks.CELLS),
        grid._replace(rows=shown),
    ]


def _draw_grid(outcomes: Outcomes, figure: Any) -> None:
    grid, panels, drawn = outcomes.where(set="grid"), list(figure.subplots(1, 4)), None
    for axes, (stem, optimizer) in zip(panels, [(s, o) for s in STEMS for o in OPTIMIZERS], strict=True):
        part = grid.where(stem=stem, optimizer=optimizer)
        rates, decays = part.distinct("rate"), part.distinct("decay")
        image = [
            [100 * statistics.mean(_errors(part.where(rate=rate, decay=decay))) for decay in decays] for rate in rates
        ]
        rows, columns = ([f"{value:g}" for value in values] for values in (rates, decays))
        style = {"vmin": 0, "vmax": 90, "cmap": "viridis_r", "fontsize": 9}
        drawn = heatmap(axes, image, rows, columns, lambda value: value > 45, **style)
        axes.set(title=f"{stem}, {NAMES[optimizer]}", xlabel="weight decay", ylabel="learning rate")
    figure.colorbar(drawn, ax=panels, label="test error, %", shrink=0.9)


def _draw_distributions(outcomes: Outcomes, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    for stem in STEMS:
        for optimizer, style in (("adamw", "-"), ("sgd", "--")):
            part = outcomes.where(set="grid", stem=stem, optimizer=optimizer, seed=SEEDS[0])
            x = [*(100 * error for error in sorted(_errors(part))), 100]
            y = [*((i + 1) / len(part) for i in range(len(part))), 1.0]
            left.step(x, y, style, where="post", color=COLORS[stem], label=f"{stem}, {NAMES[optimizer]}")
        errors = {epochs: [100 * value for value in values] for epochs, values in _by_length(outcomes, stem).items()}
        for epochs, values in errors.items():
            right.plot([epochs] * len(values), values, "o", color=COLORS[stem], alpha=0.5)
        right.plot(list(errors), [statistics.mean(v) for v in errors.values()], color=COLORS[stem], label=stem)
    right.set(xscale="log")
    ticks = list(_by_length(outcomes, PATCHES))
    right.set_xticks(ticks, ticks)
    right.minorticks_off()
    small = {"fontsize": 9}
    ylabel = "share of settings with at most this error"
    finish(left, legend=small, xlabel="test error, %", ylabel=ylabel, ylim=(0, 1.03))
    finish(right, legend=small, xlabel="epochs", ylabel="test error, %")


def _draw_ladder(outcomes: Outcomes, figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for axes, kind, title in ((left, "ladder", "from ResNet to ConvNeXt"), (right, EQUAL, "at equal mult-adds")):
        part = outcomes.where(set=kind)
        names = part.distinct("network")
        for x, name in enumerate(names):
            values = [1 - error for error in _errors(part.where(network=name))]
            dots(axes, x, values, BLUE, 0.3, {"color": BLACK})
        axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names], fontsize=9)
        finish(axes, ylabel="test accuracy, %", title=title)


STUDY = Study(
    name="attention",
    title="Convolution or attention",
    question="Does a stem of convolutions make a Vision Transformer easier to train, and is a convolutional network "
    "built like one as good as one?",
    would_change="More data and a longer schedule for ConvNeXt against a ResNet: the published order is that after "
    "300 epochs of ImageNet with strong augmentation, and neither digits nor cifar10 scale has that. "
    "More seeds for SGD against AdamW, since ViT with patches spreads widely, and a finer grid, all of "
    "its settings with several seeds, for how many of them are good.",
    cost=COSTS,
    trials=trials,
    claims=(
        Claim(
            "With a stem of convolutions SGD reaches almost what AdamW reaches; with patches it does not.",
            "top-1 error with AdamW and SGD: 27.7 and 33.0 % (patches), 24.0 and 24.7 % (convolutions)",
            "Xiao 2021, table 3 (4GF, 50 epochs)",
            "SGD's error minus AdamW's, each at its best learning rate of the grid, is larger for ViT_P than for "
            "ViT_C by two standard errors",
            _optimizers,
        ),
        Claim(
            "With a stem of convolutions more settings of learning rate and weight decay are good.",
            "curves, no numbers printed",
            "Xiao 2021, section 5.3",
            f"of the grid's settings, the share within {100 * NEAR:.0f} points of the "
            "network's best is more than 20 points larger for ViT_C (one seed; up to 20: too small to tell)",
            _near,
        ),
        Claim(
            "With a stem of convolutions training converges in fewer epochs.",
            "error after 50 epochs above that after 400: about 10 points (patches), 6 (convolutions)",
            "Xiao 2021, section 5.1 (1GF)",
            "error after the short training minus that after the long one is larger for ViT_P by two standard errors",
            _lengths,
        ),
        Claim(
            "With a stem of convolutions a ViT is more accurate at the same cost.",
            "top-1 error 23.3 % (patches), 20.9 % (convolutions)",
            "Xiao 2021, table 2 (4GF, 100 epochs)",
            "after the middle length the error of ViT_P is larger by two standard errors",
            _stems,
        ),
        Claim(
            "The ladder's last row is better than its first.",
            "81.97 +- 0.06 %, 78.82 +- 0.07 %",
            "Liu 2022, table 10",
            "with one recipe, ConvNeXt is more accurate than the ResNet by two standard errors",
            _rows(("14 ConvNeXt", "0 ResNet")),
        ),
        Claim(
            "Depthwise convolutions lose accuracy, the width they pay for more than returns it.",
            "79.51 +- 0.18 % before, 78.28 +- 0.08 % depthwise, 80.50 +- 0.02 % wide",
            "Liu 2022, table 10",
            "row 3 is more accurate than row 4, and row 5 than row 3, by two standard errors",
            _rows(("3 patchify", "4 depthwise"), ("5 width", "3 patchify")),
        ),
        Claim(
            "ConvNeXt is more accurate than Swin of the same cost.",
            "82.1 % (4.5e9 mult-adds), 81.3 % (4.5e9)",
            "Liu 2022, table 9; Liu 2021, table 1",
            "at equal mult-adds it is by two standard errors",
            networks.more_accurate(EQUAL, "mult_adds", TOLERANCE, "ConvNeXt", "Swin"),
        ),
        Claim(
            "Swin is more accurate than a ViT of the same cost.",
            "81.3 % (4.5e9 mult-adds), DeiT-S 79.8 % (4.6e9)",
            "Liu 2021, table 1",
            "at equal mult-adds it is by two standard errors",
            networks.more_accurate(EQUAL, "mult_adds", TOLERANCE, "Swin", "ViT"),
        ),
        Claim(
            "With a modern recipe a ResNet is less accurate than ConvNeXt of the same cost.",
            "78.82 +- 0.07 % (4.09e9 mult-adds), 81.97 +- 0.06 % (4.49e9)",
            "Liu 2022, table 10",
            "at equal mult-adds it is by two standard errors",
            networks.more_accurate(EQUAL, "mult_adds", TOLERANCE, "ConvNeXt", "ResNet"),
        ),
    ),
    tables=tables,
    pictures=(
        Picture(
            "grid",
            "Test error by learning rate and weight decay; the mean of three seeds in the middle column, "
            "one seed elsewhere.",
            _draw_grid,
            (13, 4.2),
        ),
        Picture(
            "sensitivity",
            "Left: how many of the grid's settings have at most an error (one seed); the further up "
            "and left, the less the setting matters. Right: error by training length, three seeds.",
            _draw_distributions,
            (12, 4.5),
        ),
        Picture(
            "ladder",
            "Accuracy of the ladder's rows and of families at equal mult-adds, all trained alike; a "
            "point is a run, a line the mean of three seeds.",
            _draw_ladder,
            (13, 4.5),
        ),
    ),
)

"""Convolution or attention: the effect of a convolutional stem on a Vision Transformer, and ConvNeXt step by step.

  Xiao et al. 2021       Early convolutions help transformers see better, arXiv 2106.14881      ViT_P, ViT_C
  Liu et al. 2022        A ConvNet for the 2020s, arXiv 2201.03545                              ConvNeXt, the ladder
  Liu et al. 2021        Swin Transformer, arXiv 2103.14030
  Touvron et al. 2021    Training data-efficient image transformers, arXiv 2012.12877           DeiT, a ViT

The grid of learning rate and weight decay has one seed per setting. Only the middle weight decay has all seeds, because
the comparisons of optimizers and of settings use it. All other comparisons have all seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies import networks
from experiments.studies.attention import results
from experiments.studies.attention.results import CONVOLUTIONS, EQUAL, NEAR, OPTIMIZERS, PATCHES, ROWS
from experiments.studies.networks import Network
from experiments.study import Claim, Picture, Study, Trial

TOLERANCE = 0.10  # largest allowed difference of mult-adds: the costliest over the cheapest, minus 1
LENGTHS = {"digits": (4, 8, 24), "cifar": (2, 4, 12), "cifar10": (30, 60, 180), "imagenet": (50, 100, 400)}  # epochs
GRID_EPOCHS = {"digits": 8, "cifar": 4, "cifar10": 60, "imagenet": 50}
# By scale and optimizer: (learning rates, weight decays). The middle weight decay has all seeds.
GRID: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] = {
    "digits": {"adamw": ((5e-4, 4e-3, 3.2e-2), (0.01, 0.1, 1.0)), "sgd": ((0.01, 0.08, 0.64), (1e-5, 1e-4, 1e-3))},
    "cifar": {"adamw": ((5e-4, 2e-3, 8e-3), (0.01, 0.1, 1.0)), "sgd": ((0.02, 0.08, 0.32), (1e-5, 1e-4, 1e-3))},
    "cifar10": {
        "adamw": ((2.5e-4, 1e-3, 4e-3, 1.6e-2), (0.01, 0.1, 1.0)),
        "sgd": ((0.01, 0.04, 0.16, 0.64), (1e-5, 1e-4, 1e-3)),
    },
    "imagenet": {
        "adamw": ((2.5e-4, 5e-4, 1e-3, 2e-3), (0.12, 0.24, 0.48)),
        "sgd": ((0.64, 1.27, 2.54, 5.08), (1.2e-5, 2.4e-5, 4.8e-5)),
    },
}
FIXED = {"digits": 4e-3, "cifar": 2e-3, "cifar10": 1e-3, "imagenet": 1e-3}  # AdamW's learning rate outside the grid

# The usual standard deviation of 0.02 suits widths of a few hundred. These networks are narrower, and the variance of
# a kernel's outputs is proportional to std^2 x width.
_WIDER_INIT = {"init": "truncated_normal:0.07"}
_DIGITS_VIT = {**_WIDER_INIT, "patch_size": 2, "width": 32, "heads": 2, "mlp_width": 96}
_SMALL_INIT = {"init": "truncated_normal:0.05"}
_SMALL_VIT = {**_SMALL_INIT, "patch_size": 4, "width": 64, "heads": 2, "mlp_width": 192}
_CIFAR_VIT = {"patch_size": 4, "width": 96, "heads": 3, "mlp_width": 288}
VITS: Mapping[str, Mapping[str, Network]] = {  # a stem of convolutions replaces one block
    "digits": {
        PATCHES: Network("vit_p_1gf", {**_DIGITS_VIT, "depth": 3}),
        CONVOLUTIONS: Network("vit_c_1gf", {**_DIGITS_VIT, "depth": 2, "stem_channels": (32, 32)}),
    },
    "cifar": {
        PATCHES: Network("vit_p_1gf", {**_SMALL_VIT, "depth": 4}),
        CONVOLUTIONS: Network("vit_c_1gf", {**_SMALL_VIT, "depth": 3, "stem_channels": (24, 48)}),
    },
    "cifar10": {
        PATCHES: Network("vit_p_1gf", {**_CIFAR_VIT, "depth": 6}),
        CONVOLUTIONS: Network("vit_c_1gf", {**_CIFAR_VIT, "depth": 5, "stem_channels": (24, 48)}),
    },
    "imagenet": {PATCHES: Network("vit_p_4gf"), CONVOLUTIONS: Network("vit_c_4gf")},
}


def _ladder(size: int, stage_sizes: Sequence[int], width: int) -> dict[str, Network]:
    """Returns a small ladder for images of `size`, with fewer, larger steps; row 5 is wider by half, as published."""
    rows = [row for row in ROWS if int(row.split()[0]) in (0, 3, 4, 5, 14)]
    return {
        row: Network(
            f"convnext_ladder{ROWS[row][0]}",
            {"stage_sizes": stage_sizes, "width": width * 3 // 2 if int(row.split()[0]) >= 5 else width},
            size,
        )
        for row in rows
    }


LADDER = {
    "digits": _ladder(16, (1, 2), 16),
    **dict.fromkeys(("cifar", "cifar10"), _ladder(0, (2, 4), 32)),
    "imagenet": {row: Network(f"convnext_ladder{name}") for row, (name, _) in ROWS.items()},
}
_SMALL_FAMILIES = {
    "ConvNeXt": Network("convnext_tiny", {**_SMALL_INIT, "stage_sizes": (3, 3), "width": 64}),
    "Swin": Network("swin_t", {**_SMALL_INIT, "stage_sizes": (2, 2), "width": 64, "heads": (2, 4), "window": 4}),
    "ViT": Network(
        "vit_tiny_patch16", {**_SMALL_INIT, "patch_size": 4, "width": 72, "depth": 3, "heads": 3, "mlp_width": 288}
    ),
    "ResNet": Network("resnet18", {"stage_sizes": (2, 3), "width": 48}),  # CPUs compute multiples of 16 fast
}
_CIFAR_FAMILIES = {
    "ConvNeXt": Network("convnext_tiny", {"stage_sizes": (3, 3), "width": 64}),
    "Swin": Network("swin_t", {"stage_sizes": (2, 2), "width": 64, "heads": (2, 4), "window": 4}),
    "ViT": Network("vit_tiny_patch16", {"patch_size": 4, "width": 72, "depth": 3, "heads": 3, "mlp_width": 288}),
    "ResNet": Network("resnet18", {"stage_sizes": (2, 2), "width": 53}),
}
FAMILIES: Mapping[str, Mapping[str, Network]] = {  # on digits, images of 16 x 16 become maps of 4 x 4, then 2 x 2
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
    "cifar": _SMALL_FAMILIES,
    "cifar10": _CIFAR_FAMILIES,
    "imagenet": {
        "ConvNeXt": Network("convnext_tiny"),
        "Swin": Network("swin_t"),
        "ViT": Network("vit_small_patch16"),
        "ResNet": Network("resnet50", {"width": 66}),
    },
}
COSTS = {
    "digits": "about 6 minutes on 2 cores for 3 seeds",
    "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 25 runs per seed of 2 to 12 epochs, and 24 with one seed",
    "cifar10": "119 runs, 4e16 mult-adds: half an hour of a GPU at 3e13 per second, but hours at the speed that "
    "small networks reach",
    "imagenet": "146 runs, 2e20 mult-adds: 1800 GPU hours at 3e13 per second, the speed of ResNet-50 on an A100",
}


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists the grid, the training lengths, the ladder, and families at equal cost."""
    planned, middle = [], LENGTHS[scale][1]

    def add(network: Network, labels: Mapping[str, Any], config: Mapping[str, Any], seeds: Sequence[int] = seeds):
        planned.extend(Trial({**labels, "seed": seed}, _config(scale, network, seed, **config)) for seed in seeds)

    for stem, network in VITS[scale].items():
        for optimizer, (rates, decays) in GRID[scale].items():
            for decay in decays:
                for rate in rates:
                    settings = {"optimizer": optimizer, "rate": rate, "decay": decay}
                    labels = {"set": "grid", "stem": stem, **settings}
                    add(
                        network,
                        labels,
                        {**settings, "epochs": GRID_EPOCHS[scale]},
                        seeds if decay == decays[1] else (0,),
                    )
        for epochs in LENGTHS[scale]:
            add(network, {"set": "length", "stem": stem, "epochs": epochs}, {"epochs": epochs})
    for kind, members in (("ladder", LADDER[scale]), (EQUAL, FAMILIES[scale])):
        for name, network in members.items():
            add(network, {"set": kind, "network": name}, {"epochs": middle})
    return planned


def _config(
    scale: str, network: Network, seed: int, epochs: int, optimizer: str = "adamw", rate: float = 0, decay: float = 0
) -> Any:
    """Returns the modern recipe with this network; `rate` 0 and `decay` 0 take the values used outside the grid."""
    c = networks.config(scale, network, seed, epochs)
    c.optimizer.name = OPTIMIZERS[optimizer]
    c.optimizer.learning_rate = rate or FIXED[scale]
    c.optimizer.weight_decay = decay or GRID[scale][optimizer][1][1]
    c.optimizer.schedule, c.optimizer.warmup, c.optimizer.warmup_from = "cosine", "5%", 0.0
    c.data.resolutions = ""  # position embeddings are for one size
    if scale == "imagenet":
        c.batch_size, c.task.label_smoothing = 2048, 0.1
        c.data.augment = "flip|randaugment(2, 9)|mixup_cutmix(0.8, 1.0)"
    return c


STUDY = Study(
    name="attention",
    title="Convolution or attention",
    question="Does a stem of convolutions make a Vision Transformer easier to train? Is a convolutional network "
    "that is built like a Transformer as good as one?",
    would_change="For ConvNeXt against a ResNet, more data and a longer schedule: the published order holds after 300 "
    "epochs of ImageNet with strong augmentation, which neither the digits nor the cifar10 scale has. For the number "
    "of good settings, a finer grid with several seeds for all of its settings, also at other weight decays.",
    cost=COSTS,
    trials=trials,
    claims=(
        Claim(
            "With a stem of convolutions SGD reaches almost what AdamW reaches; with patches it does not.",
            "top-1 error with AdamW and SGD: 27.7 and 33.0 % (patches), 24.0 and 24.7 % (convolutions)",
            "Xiao 2021, table 3 (4GF, 50 epochs)",
            "SGD's error minus AdamW's, each at its best learning rate of the grid, is larger for ViT_P than for "
            "ViT_C; the first seed chooses the rates, and the others are judged",
            results.optimizers,
            0.046,
        ),
        Claim(
            "With a stem of convolutions more settings of learning rate and weight decay are good.",
            "curves, no numbers printed",
            "Xiao 2021, section 5.3",
            "of the learning rates of both optimizers at the middle weight decay, the fraction within "
            f"{100 * NEAR:.0f} points of the network's best, by seed, is larger for ViT_C",
            results.near,
        ),
        Claim(
            "With a stem of convolutions training converges in fewer epochs.",
            "error after 50 epochs above that after 400: about 10 points (patches), 6 (convolutions)",
            "Xiao 2021, section 5.1 (1GF)",
            "the error after the short training minus that after the long one is larger for ViT_P than for ViT_C",
            results.lengths,
            0.04,
        ),
        Claim(
            "With a stem of convolutions a ViT is more accurate at the same cost.",
            "top-1 error 23.3 % (patches), 20.9 % (convolutions)",
            "Xiao 2021, table 2 (4GF, 100 epochs)",
            "after the middle one of the training lengths, the error of ViT_P is larger than that of ViT_C",
            results.stems,
            0.024,
        ),
        Claim(
            "The ladder's last row is better than its first.",
            "81.97 +- 0.06 %, 78.82 +- 0.07 %",
            "Liu 2022, table 10",
            "with one recipe, ConvNeXt is more accurate than the ResNet",
            results.rows(("14 ConvNeXt", "0 ResNet", 0.0315)),
            0.0315,
        ),
        Claim(
            "Depthwise convolutions lose accuracy, the width they pay for more than returns it.",
            "79.51 +- 0.18 % before, 78.28 +- 0.08 % depthwise, 80.50 +- 0.02 % wide",
            "Liu 2022, table 10",
            "row 3 of the ladder is more accurate than row 4, and row 5 is more accurate than row 3; differences below "
            "0.61 and 0.49 points, half of the published ones, do not matter",
            results.rows(("3 patchify", "4 depthwise", 0.0123), ("5 width", "3 patchify", 0.0099)),
        ),
        Claim(
            "ConvNeXt is more accurate than Swin of the same cost.",
            "82.1 % (4.5e9 mult-adds), 81.3 % (4.5e9)",
            "Liu 2022, table 9; Liu 2021, table 1",
            "at equal mult-adds, ConvNeXt is more accurate; differences below 0.4 points, half of the published one, "
            "do not matter",
            networks.more_accurate(EQUAL, "mult_adds", TOLERANCE, "ConvNeXt", "Swin", 0.008),
            0.008,
        ),
        Claim(
            "Swin is more accurate than a ViT of the same cost.",
            "81.3 % (4.5e9 mult-adds), DeiT-S 79.8 % (4.6e9)",
            "Liu 2021, table 1",
            "at equal mult-adds, Swin is more accurate; differences below 0.75 points, half of the published one, do "
            "not matter",
            networks.more_accurate(EQUAL, "mult_adds", TOLERANCE, "Swin", "ViT", 0.015),
            0.015,
        ),
        Claim(
            "With a modern recipe a ResNet is less accurate than ConvNeXt of the same cost.",
            "78.82 +- 0.07 % (4.09e9 mult-adds), 81.97 +- 0.06 % (4.49e9)",
            "Liu 2022, table 10",
            "at equal mult-adds, ConvNeXt is more accurate",
            networks.more_accurate(EQUAL, "mult_adds", TOLERANCE, "ConvNeXt", "ResNet", 0.0315),
            0.0315,
        ),
    ),
    tables=results.tables,
    pictures=(
        Picture(
            "grid",
            "Test error (%) by learning rate and weight decay: mean over seeds in the middle column, one seed "
            "elsewhere. Runs that diverged count as 100; a dash means that all did. ViT_P has a stem of patches, ViT_C "
            "one of convolutions.",
            results.draw_grid,
            (10.5, 3.2),
        ),
        Picture(
            "sensitivity",
            "Left: share of the grid's settings with at most this error (one seed). The steeper the line, the less "
            "the setting matters. Right: error by length of training, mean and standard deviation over seeds.",
            results.draw_distributions,
            (10.0, 4.4),
        ),
        Picture(
            "ladder",
            "Test accuracy of the rows of the ladder (Liu 2022, table 10), and of families at equal mult-adds, all "
            "trained in the same way. Points are runs, and lines are means over seeds.",
            results.draw_ladder,
            (10.5, 4.2),
        ),
    ),
)

"""Depth and residual connections: whether deeper networks train, and the effect of their shortcuts.

  He et al. 2016      Deep residual learning for image recognition, arXiv 1512.03385
  He et al. 2016b     Identity mappings in deep residual networks, arXiv 1603.05027
  Veit et al. 2016    Residual networks behave like ensembles of relatively shallow networks, arXiv 1605.06431
  Goyal et al. 2017   Accurate, large minibatch SGD, arXiv 1706.02677

The curves show whether a network learns, and the gradients by layer show whether the signal reaches the early layers.
Deleting one block of a trained network shows how much the other blocks rely on it.
"""

import math
from collections.abc import Sequence
from typing import Any

from experiments.studies.depth import results
from experiments.studies.depth.results import COLORS, DELETED, SHORTCUTS
from experiments.studies.measures import deletions, gradients
from experiments.study import Claim, Picture, Study, Trial, recipe

DEPTHS = {"digits": (20, 32, 44, 56), "cifar": (20, 56), "cifar10": (20, 32, 44, 56, 110), "imagenet": (18, 34)}
# The claims compare these depths with those of DEEP.
SHALLOW = {"digits": 20, "cifar": 20, "cifar10": 20, "imagenet": 18}
DEEP = {"digits": 56, "cifar": 56, "cifar10": 56, "imagenet": 34}
MIDDLE = {"digits": 32, "cifar": 56, "cifar10": 56, "imagenet": 34}  # depth at which the shortcuts are compared
VARIANTS = {  # label -> (family, fields)
    "plain": ("plain", {}),
    "residual": ("resnet", {"shortcut": "A"}),
    "projections where shapes change": ("resnet", {"shortcut": "B"}),
    "projections everywhere": ("resnet", {"shortcut": "C"}),
    "pre-activation": ("preresnet", {"shortcut": "A"}),
    "zero gamma": ("resnet", {"shortcut": "A", "zero_gamma": True}),
}


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists plain and residual networks by depth, and deep ones with other shortcuts, pre-activation and zero gamma."""
    shallow, deep = SHALLOW[scale], DEEP[scale]
    networks = [(network, depth) for depth in DEPTHS[scale] for network in COLORS]
    networks += [(network, MIDDLE[scale]) for network in SHORTCUTS[1:]]
    networks += [(network, deep) for network in ("pre-activation", "zero gamma")]
    planned = []
    for network, depth in networks:
        role = {shallow: "shallow", deep: "deep"}.get(depth, "between")
        measured = (gradients,) if network in COLORS and role == "deep" else ()
        deleted = (deletions,) if (network, role) in DELETED else ()
        for seed in seeds:
            labels = {"network": network, "depth": depth, "seed": seed, "role": role}
            config = _config(scale, network, depth, seed)
            if measured:
                planned.append(Trial({**labels, "at": "step 0"}, config, train=False, measures=measured))
            planned.append(Trial({**labels, "at": "end"}, config, measures=(*measured, *deleted)))
    return planned


def _config(scale: str, network: str, depth: int, seed: int) -> Any:
    family, fields = VARIANTS[network]
    config = recipe(f"configs/study.py:{scale},model={family}{depth},seed={seed}")
    config.model.update({"zero_gamma": False, **fields})  # Goyal's recipe sets zero_gamma for every network
    if scale == "cifar10":
        config.optimizer.warmup = "400 steps"  # ResNet-110 needs a warm-up; He 2016, section 4.2
    return config


STUDY = Study(
    name="depth",
    title="Depth and residual connections",
    question="Do plain networks get worse with depth, and residual networks better? Do gradients explain why? Which "
    "details of the shortcuts matter, and how much does a network rely on a single block?",
    would_change="For deep against shallow networks, a longer schedule: the published ones trained for over a hundred "
    "epochs, ours for 5 (cifar) or 12 (digits). The cifar10 scale has 60. The gradients of "
    "plain networks at step 0 follow from depth and initialization, so a longer training would not change them.",
    cost={
        "digits": "about 5 minutes on 2 cores for 3 seeds; 110 layers would take another four, so only the cifar10 "
        "scale has them",
        "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 8 runs per seed of 5 epochs, 20 or 56 layers",
        "cifar10": "14 runs per seed of 60 epochs, 20 to 110 layers, 1e15 mult-adds each on average: four hours of one "
        "GPU per seed",
        "imagenet": "8 runs per seed of 90 epochs of 18 or 34 layers: 6e17 or 1.2e18 mult-adds and 4 to 8 hours of 8 "
        "GPUs each",
    },
    trials=trials,
    claims=(
        Claim(
            "A deeper plain network has a higher training error.",
            "ImageNet: 28.54 % with 34 layers, 27.94 % with 18 (validation)",
            "He 2016, table 2; fig. 1 and 6 for training errors",
            "the final training loss of the deep plain network (56 layers, on ImageNet 34) is "
            f"above that of the shallow one (20, 18); differences below {results.NATS} nats do not matter",
            results.degrades,
        ),
        Claim(
            "A deeper residual network is better.",
            "CIFAR-10: 8.75 % with 20 layers, 6.97 % with 56",
            "He 2016, table 6",
            "the deep network's test accuracy is above the shallow one's; differences below 0.89 points, half of the "
            "published one, do not matter",
            results.deeper("residual", 0.0178),
            0.0178,
        ),
        Claim(
            "In deep networks residual connections are better than none.",
            "ImageNet, 34 layers: 25.03 % against 28.54 %",
            "He 2016, table 2",
            "the deep residual network's accuracy is above the plain one's",
            results.better("residual", "plain", "plain", 0.0351),
            0.0351,
        ),
        Claim(
            "In shallow networks residual connections are no more accurate, but converge faster.",
            "ImageNet, 18 layers: 27.88 % against 27.94 %",
            "He 2016, section 4.1",
            "the accuracies of the shallow networks are equivalent within 2 points, and the training loss over the "
            f"first third is lower with residual connections; differences below {results.NATS} nats do not matter",
            results.faster,
        ),
        Claim(
            "Projections are not essential.",
            "ImageNet, 34 layers, shortcuts A / B / C: 25.03 / 24.52 / 24.19 %",
            "He 2016, table 3",
            "A is more accurate than the plain network, and B and C are above A by less than half of that gain",
            results.shortcuts,
        ),
        Claim(
            "It is not vanishing gradients that plain networks suffer from: with batch norm theirs are healthy.",
            "no number: healthy norms",
            "He 2016, section 4.1",
            "in the deep plain network at step 0, gradient norms of the first third of the layers are between 1/10 "
            "and 10 times those of the last third (geometric mean over seeds)",
            results.healthy,
        ),
        Claim(
            "Pre-activation generalizes better in deep networks.",
            "CIFAR-10, ResNet-110: 6.37 % with pre-activation, 6.61 % without",
            "He 2016b, abstract; the numbers as in Veit 2018, table 1",
            "the deep pre-activation network's accuracy is above the original's; differences below 0.12 points, half "
            "of the published one, do not matter",
            results.better("pre-activation", "residual", "original", 0.0024),
            0.0024,
        ),
        Claim(
            "Branches that start at zero ease the start of the training.",
            "no number: eases optimization at the start",
            "Goyal 2017, section 5.1",
            "in the deep network the training loss over the first third is lower "
            f"with zero gamma; differences below {results.NATS} nats do not matter",
            results.zero_gamma,
        ),
        Claim(
            "Deleting a block of a trained residual network hardly matters.",
            "no number: minimal impact",
            "Veit 2016, section 4.1, fig. 3",
            "of the deep network's accuracy above chance, 95 % or more is left without "
            "a block that keeps the resolution (median over blocks, mean over seeds)",
            results.left("residual", "deep", 0.95, math.inf),
        ),
        Claim(
            "Deleting a layer of a trained plain network leaves nothing.",
            "no number: chance (VGG)",
            "Veit 2016, section 4.1, fig. 3",
            "of the shallow network's accuracy above chance, at most 10 % is left "
            "without a block of two layers (median over blocks, mean over seeds)",
            results.left("plain", "shallow", -math.inf, 0.1),
        ),
        Claim(
            "Blocks that halve the resolution matter more.",
            "no number: slightly higher impact",
            "Veit 2016, fig. 3",
            "in the deep residual network, less is left without a block that halves the resolution than without one "
            "that keeps it",
            results.halving,
        ),
    ),
    tables=results.tables,
    pictures=(
        Picture(
            "depth",
            "Test accuracy and final training loss by depth; mean and standard deviation over seeds.",
            results.draw_depth,
            (10.0, 4.2),
        ),
        Picture(
            "training",
            "Training loss of plain and residual networks, one line per run.",
            results.draw_training,
            (10.0, 4.2),
        ),
        Picture(
            "gradients",
            "Norm of the gradient of the training loss with respect to the kernel of each layer, one line per run.",
            results.draw_gradients,
            (10.0, 4.2),
        ),
        Picture(
            "deletions",
            "Test accuracy of trained networks without one block, one point per run; blocks in their order, with lines "
            "between stages. Nothing deleted: mean and standard deviation over seeds.",
            results.draw_deletions,
            (10.5, 4.4),
        ),
    ),
)

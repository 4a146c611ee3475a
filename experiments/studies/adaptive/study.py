"""Adaptive inference: networks that decide per image what to compute, and the savings.

  Huang et al. 2018        Multi-scale dense networks for resource efficient image classification, arXiv 1703.09844
  Veit & Belongie 2018     Convolutional networks with adaptive inference graphs, arXiv 1711.11503
  Wu et al. 2018           BlockDrop: dynamic inference paths in residual networks, arXiv 1711.08393

digits     scikit-learn's digits, 8x8; networks at half of their width
cifar      cifar10_jpeg, a lossy TFDS set that $TFDS_DATA_DIR must contain; 4 epochs and no policies, which is as
           much as a CPU can do in three hours

All networks learn from the same images for the same number of epochs. The images that the thresholds of budgets are
fitted on are held out for all of them. A policy is trained after its network, and the joint training after the policy.
So they are compared with a network that trains for twice as long, as in the paper.
"""

from collections.abc import Sequence
from typing import Any

from experiments.studies.adaptive import figures, results
from experiments.studies.adaptive.measures import decided, extremes, heuristics, leaving
from experiments.studies.networks import Network, config
from experiments.study import Claim, Picture, Study, Trial

TRAINED = {"digits": "train_fit", "cifar": "train[:45000]"}
EPOCHS = {"digits": 40, "cifar": 4}
WIDTH = {"digits": 8, "cifar": 16}
DEPTHS = {"digits": (8, 20, 32, 38), "cifar": (8, 14, 38)}  # 38 is compared with gates; a policy starts from 32
TARGETS = {"digits": (0.3, 0.5, 0.7, 0.9), "cifar": (0.5, 0.7, 0.9)}
PENALTIES = {"digits": (1.0, 10.0), "cifar": ()}  # penalties of the joint training; without any, no policy trains


def _with_exits(scale: str) -> dict[str, Network]:
    """Returns networks with exits that cost about as much as a ResNet-38."""
    width, growth = WIDTH[scale], {"digits": 4, "cifar": 6}[scale]
    return {
        "MSDNet": Network("msdnet_cifar_budgeted", {"width": width, "growth": growth, "exit_width": 4 * width}),
        "ResNet with exits": Network(
            "early_exit_resnet62",
            {"width": width, "stage_sizes": (6, 6, 6), "exits": (3, 6, 9, 12), "exit_width": 4 * width},
        ),
    }


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists residual networks; networks with gates; policies, trained alone and jointly; networks with exits."""
    planned = []
    for seed in seeds:
        whole = {}
        for depth in DEPTHS[scale]:
            whole[depth] = Trial(
                {"method": "ResNet", "depth": depth, "seed": seed},
                _config(scale, Network(f"resnet{depth}", {"width": WIDTH[scale]}), seed),
            )
        planned += whole.values()
        for target in TARGETS[scale]:
            c = _config(scale, Network("convnet_aig38", {"width": WIDTH[scale], "target": target}), seed)
            c.task.name = "gated(weight=2.0)"
            planned.append(
                Trial({"method": "ConvNet-AIG", "target": target, "seed": seed}, c, measures=(decided, extremes))
            )
        if PENALTIES[scale]:
            planned += _policies(scale, seed, whole[32])
        for name, network in _with_exits(scale).items():
            c = _config(scale, network, seed)
            c.task.name = "multi_exit"
            planned.append(Trial({"method": name, "seed": seed}, c, measures=(leaving, extremes)))
    return planned


def _config(scale: str, network: Network, seed: int) -> Any:
    c = config(scale, network, seed, EPOCHS[scale])
    c.data.train_split = TRAINED[scale]
    c.optimizer.learning_rate, c.optimizer.weight_decay, c.optimizer.decay = 0.1, 5e-4, ".*/kernel"
    return c


def _policies(scale: str, seed: int, whole: Trial) -> list[Trial]:
    """Lists the policy of a trained network, and the joint training that starts from it."""
    c = _config(scale, Network("blockdrop32", {"width": WIDTH[scale], "policy_width": 4}), seed)
    c.init_new, c.optimizer.groups = "policy", (("policy/.*", 1.0), (".*", 0.0))
    c.optimizer.name, c.optimizer.learning_rate, c.optimizer.weight_decay = "adam", 3e-3, 0.0
    c.optimizer.warmup = "0 steps"
    c.task.name = "policy(penalty=1.0, curriculum='50%')"
    alone = Trial({"method": "policy alone", "seed": seed}, c, measures=(decided, heuristics), start=whole)
    c = _config(scale, Network("resnet32", {"width": WIDTH[scale]}), seed)
    c.duration = f"{2 * EPOCHS[scale]} epochs"
    planned = [Trial({"method": "ResNet-32, twice as long", "seed": seed}, c), alone]
    for penalty in PENALTIES[scale]:
        c = alone.config.copy_and_resolve_references()
        c.init_new, c.optimizer.groups, c.optimizer.learning_rate = "", ((".*", 1.0),), 1e-3
        c.task.name = f"policy(penalty={penalty}, entropy=0.0, joint=True)"
        labels = {"method": "BlockDrop", "penalty": penalty, "seed": seed}
        planned.append(Trial(labels, c, measures=(decided, extremes), start=alone))
    return planned


CLAIMS = [
    Claim(
        "Gates save computation at no loss of accuracy.",
        "ConvNet-AIG 110 5.76 % error with 82 % of its layers, ResNet-110 6.61 %",
        "Veit 2018, table 1",
        "with target 0.7, at most half a point worse than a ResNet-38, with at least a tenth of the mult-adds saved",
        results.gates_save,
    ),
    Claim(
        "With all of its blocks computed, a network with gates is better still.",
        "5.14 % error against 5.76 %",
        "Veit 2018, table 1",
        "higher accuracy than with the blocks that the gates choose, mean over all targets; differences below 0.31 "
        "points, half of the published one, do not matter",
        results.all_better,
        results.ALL_LAYERS,
    ),
    Claim(
        "A lower target rate costs accuracy.",
        "ImageNet, ConvNet-AIG 50: t = 0.4 24.75 %, 0.7 23.83 % error",
        "Veit 2018, figure 3",
        "accuracy rises with the target (slope of a line over all targets); a rise below 0.46 points, half of the "
        "published one, does not matter",
        results.targets,
        results.TARGETS_04_07,
    ),
    Claim(
        "A policy drops blocks at hardly any loss of accuracy.",
        "ResNet-32: 92.3 % with 15 blocks, 91.3 % with 6.9; ResNet-110: 93.2 % with 54, 93.6 % with 16.9",
        "Wu 2018, table 1",
        "with the highest penalty at most one point worse than a ResNet-32 that was trained twice as long, with at "
        "most two thirds of its blocks",
        results.policy_saves,
    ),
    Claim(
        "Training policy and network together recovers what the policy alone loses.",
        "ResNet-32: 88.6 % with 9.4 blocks alone, 91.3 % with 6.9 together",
        "Wu 2018, table 1",
        "with the lowest penalty, more accurate than the policy alone, with at most half a block more",
        results.joint_better,
    ),
    Claim(
        "Penalties for errors trade blocks for accuracy.",
        "a higher penalty keeps more blocks (figure only)",
        "Wu 2018, section 4.3",
        "the highest penalty keeps more blocks than the lowest; differences below half a block do not matter",
        results.penalties,
    ),
    Claim(
        "Multi-scale features make better early exits.",
        "MSDNet is above ResNets with exits at all budgets (figure only)",
        "Huang 2018, section 5, anytime",
        "MSDNet is more accurate, mean over the range of mult-adds that both networks cover",
        results.scales_better,
    ),
    Claim(
        "To spend a budget by image is better than the same for every image.",
        "budgeted batch is above anytime at equal cost (figures only)",
        "Huang 2018, section 5",
        "more accurate in both kinds of network, mean over the range of mult-adds that both ways cover",
        results.batch_better,
    ),
    Claim(
        "An MSDNet is better than residual networks of its cost.",
        "above all ResNets of different depth (figure only)",
        "Huang 2018, section 5, budgeted",
        "more accurate than each ResNet whose cost is in its range, at the cost of that ResNet",
        results.above_resnets,
    ),
]

STUDY = Study(
    name="adaptive",
    title="Adaptive inference",
    question="How much computation does a network save by computing only what each image needs, and how much accuracy "
    "does that cost?",
    would_change="Images that differ more in difficulty: on digits, the shallowest ResNet is within a point of the "
    "deepest, so gates and exits have nothing to choose. The cifar scale may differ. Longer training of the gates, "
    "sometimes with all blocks computed. For BlockDrop, a penalty between the two, at which two thirds of the "
    "blocks remain.",
    cost={
        "digits": "14 runs per seed: about 8 minutes per seed on 2 cores",
        "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 8 runs per seed: about 3 hours per seed on one core",
    },
    trials=trials,
    claims=CLAIMS,
    tables=results.tables,
    pictures=[
        Picture(
            "curves",
            "Test accuracy by average mult-adds per image: mean and standard deviation over seeds, in both directions. "
            "Within each line, depth, target or penalty rises from left to right. Networks with exits: the same exit "
            "for all images (dotted), or thresholds that spend a budget by image (solid).",
            figures.draw_curves,
            (10.0, 4.8),
        ),
        Picture(
            "used",
            "Left: the number of blocks that test images use; areas are shares of the images. Right: the exits at "
            "which images leave an MSDNet, by budget. Means over seeds.",
            figures.draw_used,
            (10.5, 4.4),
        ),
        Picture(
            "classes",
            "Share of each class's test images for which a block is computed: in one network (above), and on average "
            "over the networks of all seeds (below). Classes are in the order of the data set.",
            figures.draw_classes,
            (10.0, 6.4),
        ),
        Picture(
            "easy_and_hard",
            "Test images, below their class, that one network of each kind (first seed) classifies correctly with the "
            "least and with the most computation. For a network with exits, the second row is missing if the last exit "
            "is right about no image that all other exits misclassify.",
            figures.draw_extremes,
            (10.5, 6.0),
        ),
    ],
)

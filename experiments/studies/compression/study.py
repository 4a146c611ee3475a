"""Compression: pruned weights, shared values, weights of one or two bits, and the resulting size of the file.

  Han et al. 2015          Learning both weights and connections, arXiv 1506.02626
  Han et al. 2016          Deep compression, arXiv 1510.00149
  Rastegari et al. 2016    XNOR-Net, arXiv 1603.05279
  Zhu et al. 2017          Trained ternary quantization, arXiv 1612.01064
  Li et al. 2017           Pruning filters for efficient ConvNets, arXiv 1608.08710
  Krishnamoorthi 2018      Quantizing deep convolutional networks for efficient inference, arXiv 1806.08342
  Hinton et al. 2015       Distilling the knowledge in a neural network, arXiv 1503.02531

digits     LeNets (at 28x28, as published: 266,610 and 431,080 numbers), VGG-11 and ResNet-20, on scikit-learn's digits
cifar      VGG-11 and ResNet-20 on cifar10_jpeg, a lossy TFDS set that $TFDS_DATA_DIR must contain; low bits with
           ResNet-20

Networks that are pruned or get ternary weights start from a trained network. On digits, they train for longer than the
networks that they are compared with, as in the papers. On cifar10_jpeg, where training is short, they are compared with
networks that go on for as many epochs at the same rates without pruning or ternary weights.
"""

from collections.abc import Sequence
from typing import Any

from experiments.studies.compression import figures, results, tables
from experiments.studies.compression.measures import bits, centroids, cut, int8, sensitivity, stored
from experiments.studies.networks import Network, config
from experiments.study import Claim, Measure, Picture, Study, Trial, recipe

NETWORKS = {"digits": ("LeNet-300-100", "LeNet-5", "VGG-11", "ResNet-20"), "cifar": ("VGG-11", "ResNet-20")}
FILTERS = {  # network -> (expression of layers, fraction of their filters to remove); that saves a third of the work
    "digits": {"VGG-11": (".*/conv[0-9]/kernel", 0.2), "ResNet-20": (".*/conv1/kernel", 0.35)},
    "cifar": {"ResNet-20": (".*/conv1/kernel", 0.35)},
}
STUDIED = {"digits": "LeNet-300-100", "cifar": "ResNet-20"}  # the network whose curves are measured
SPARSITIES = {"digits": (0.8, 0.9, 0.95, 0.98, 0.99), "cifar": (0.5, 0.7, 0.8, 0.9)}  # sparsities of the curves
TAUGHT = 0.95  # sparsity from which pruned networks are also trained with the dense one as their teacher
L1 = {"digits": 1e-4}  # factor of the penalty
DEPTHS = {"digits": (20, 32, 56), "cifar": (20,)}  # depths that a CPU can train; the paper's are 20, 32, 44, 56
LENGTHS = {"digits": (12, 12), "cifar": (10, 5)}  # epochs from scratch, and epochs of ternary weights after that
# The gradient of a scale is a sum over its layer. With the learning rate of the weights, the scale changes its sign in
# the first epoch, and ResNet-20 does not get beyond 45 % on the digits (commit c47dc5c).
SLOW_SCALES = ((".*/(positive|negative)", 0.01), (".*", 1.0))
KINDS = {  # kind of weights -> (family, fields). In XNOR networks, the sign is the only nonlinearity (Rastegari 2016)
    "full": ("resnet", {}),
    "ternary": ("resnet", {"conv": "ternary"}),
    results.FULL_LONGER: ("resnet", {}),  # as long as ternary weights
    "binary weights": ("resnet", {"conv": "binary_weight"}),
    "full, preactivation": ("preresnet", {}),
    "XNOR": ("preresnet", {"conv": "xnor", "act": "identity"}),
}


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists the three stages of each network, the curves of one of them, removed filters, and low-bit networks."""
    planned = []
    for seed in seeds:
        for name in NETWORKS[scale]:
            planned += _stages(scale, seed, name, name == STUDIED[scale])
        planned += _curves(scale, seed) + _low_bits(scale, seed)
    return planned


def _stages(scale: str, seed: int, name: str, studied: bool) -> list[Trial]:
    """Lists the stages of a network, its int8 version, and the network without some of its filters."""

    def trial(stage: str, measures: Sequence[Measure], start: Trial | None = None) -> Trial:
        labels = {"part": "stages", "network": name, "seed": seed, "stage": stage}
        kind = {"pruned": "prune", "shared": "share", results.LONGER: "prune"}.get(stage, "dense")
        config = _config(scale, seed, name, stage=kind)
        if stage == results.LONGER:
            config.optimizer.prune = ""
        return Trial(labels, config, measures=measures, start=start)

    whole = trial("dense", (stored, sensitivity, *((cut, bits) if studied else ())))
    pruned = trial("pruned", (stored, *((bits, centroids) if studied else ())), whole)
    quantized = trial("int8", (int8,), whole)._replace(train=False)
    quantized.config.init_new = ""
    planned = [whole, pruned, trial("shared", (stored,), pruned), quantized]
    if scale == "cifar":
        planned.append(trial(results.LONGER, (stored,), whole))
    if name in FILTERS[scale]:
        what, share = FILTERS[scale][name]
        options = {"sparsity": share, "by": "layer", "structure": "filters", "what": what}  # as in the paper
        labels = {"part": "filters", "network": name, "seed": seed}
        config = _config(scale, seed, name, stage="prune", **options)
        planned.append(Trial(labels, config, measures=(stored,), start=whole))
    return planned


def _config(scale: str, seed: int, name: str, **options: Any) -> Any:
    texts = (f",{option}={value}" for option, value in options.items())
    return recipe(f"configs/pruning.py:{name},scale={scale},seed={seed}{''.join(texts)}")


def _curves(scale: str, seed: int) -> list[Trial]:
    """Lists one network at several sparsities: L2 and L1, at once and step by step, with and without a teacher."""
    name, planned = STUDIED[scale], []
    for decay in ("L2", "L1") if scale in L1 else ("L2",):
        labels, penalty = {"part": "curves", "decay": decay, "seed": seed}, {"l1": L1[scale]} if decay == "L1" else {}
        config = _config(scale, seed, name, stage="dense", **penalty)
        whole = Trial({**labels, "how": "whole"}, config, measures=(cut,))
        planned.append(whole)
        schedules = ("at once",) if decay == "L1" else ("at once", "step by step") if scale in L1 else ("step by step",)
        measures = (bits,) if decay == "L2" else ()
        for sparsity in SPARSITIES[scale]:
            for how in schedules:
                options = {**penalty, "sparsity": sparsity, "once": how == "at once"}
                config = _config(scale, seed, name, stage="prune", **options)
                at_sparsity = {**labels, "how": how, "sparsity": sparsity}
                planned.append(Trial(at_sparsity, config, measures=measures, start=whole))
                if (decay, how) == ("L2", "step by step") and sparsity >= TAUGHT:
                    taught = config.copy_and_resolve_references()
                    taught.task.name = "distill(teacher='{start}')"
                    planned.append(Trial({**at_sparsity, "how": "taught"}, taught, start=whole))
    return planned


def _low_bits(scale: str, seed: int) -> list[Trial]:
    """Lists ResNets with low-bit weights and XNOR ResNets; ternary ones start from the full-precision network."""
    planned = []
    for depth in DEPTHS[scale]:
        whole = None
        for kind, (family, fields) in KINDS.items():
            if kind == ("full, preactivation" if scale == "cifar" else results.FULL_LONGER):
                continue
            network = Network(f"{family}{depth}", {"width": {"digits": 8, "cifar": 16}[scale], **fields})
            continues = kind in ("ternary", results.FULL_LONGER)
            c = config(scale, network, seed, LENGTHS[scale][continues])
            c.optimizer.learning_rate = 0.1
            if continues:
                c.init_new, c.optimizer.warmup, c.data.resolutions = "", "0 steps", ""
                c.optimizer.learning_rate = 0.05
            if kind == "ternary":
                c.optimizer.groups = SLOW_SCALES
            labels = {"part": "low bits", "depth": depth, "kind": kind, "seed": seed}
            trial = Trial(labels, c, measures=(stored,), start=whole if continues else None)
            whole = trial if kind == "full" else whole
            planned.append(trial)
    return planned


CLAIMS = [
    Claim(
        "LeNet-300-100 is 40 times smaller with no loss.",
        "40x; error 1.64 before, 1.58 % after",
        "Han 2016, table 1",
        "at least 35 times smaller, and at most half a point of accuracy lost",
        results.smaller("LeNet-300-100", 35),
    ),
    Claim(
        "LeNet-5 is 39 times smaller with no loss.",
        "39x; error 0.80 before, 0.74 % after",
        "Han 2016, table 1",
        "at least 35 times smaller, and at most half a point of accuracy lost",
        results.smaller("LeNet-5", 35),
    ),
    Claim(
        "A VGG is tens of times smaller with no loss.",
        "VGG-16 49x, AlexNet 35x (most of both are dense layers)",
        "Han 2016, table 1",
        "a VGG-11 of convolutions alone is at least 20 times smaller, and at most half a point of accuracy is lost "
        "(cifar: of a dense network that trains as long as it is pruned)",
        results.smaller("VGG-11", 20),
    ),
    Claim(
        "What is left has to be trained again.",
        "retraining is what keeps the accuracy (figure only)",
        "Han 2015, figure 5",
        "pruning step by step, with retraining, is more accurate than pruning without it, mean over all sparsities",
        results.retraining,
    ),
    Claim(
        "Without retraining, L1 is better than L2.",
        "L1 gives better accuracy after pruning (figure only)",
        "Han 2015, section 3.1, figure 5",
        "L1 is more accurate, mean over all sparsities",
        results.l1_before,
    ),
    Claim(
        "With retraining, L2 is better than L1.",
        "L2 gives the best pruning results (figure only)",
        "Han 2015, section 3.1, figure 5",
        "L2 is more accurate, mean over all sparsities",
        results.l2_after,
    ),
    Claim(
        "Pruning step by step is better than at once.",
        "5x at once, 9x in steps, of AlexNet",
        "Han 2015, section 3.4",
        "step by step is more accurate, mean over all sparsities",
        results.iterative,
    ),
    Claim(
        "Pruning and sharing together are smaller than either.",
        "accuracy falls below 8 % of the size with either alone, at 3 % with both (figure only)",
        "Han 2016, section 5, figure 6",
        "without training the shared values, the smallest file that loses at most one point is that of both, over at "
        "least three sparsities; "
        f"differences below {results.TIMES:g} between the numbers of times smaller do not matter",
        results.both,
    ),
    Claim(
        "k-means should start from even steps.",
        "linear initialization is better than density and random (figure only)",
        "Han 2016, section 3.2, figure 8",
        "more accurate than density and random, mean over 2, 3 and 4 bits",
        results.linear,
    ),
    Claim(
        "Ternary weights cost nearly nothing.",
        "CIFAR-10, ResNet-20 to 56: 0.64 worse, 0.04, 0.16, 0.36 better",
        "Zhu 2017, table of CIFAR-10",
        "after fine-tuning, at most one point worse than full precision at every depth (cifar: than full precision "
        "that trains as long)",
        results.ternary,
        -0.0064,  # ResNet-20
    ),
    Claim(
        "Binary weights cost little.",
        "AlexNet: full 56.6, binary weights 56.8 %; ResNet-18 69.3, 60.8 %",
        "Rastegari 2016, tables 1 and 2",
        "at most two points worse than full precision at every depth",
        results.binary,
        -0.085,  # ResNet-18
    ),
    Claim(
        "Binary inputs cost more than binary weights.",
        "AlexNet: 56.8 against 44.2 %; ResNet-18 60.8 against 51.2 %",
        "Rastegari 2016, tables 1 and 2",
        "XNOR is worse than binary weights at every depth",
        results.xnor,
        0.096,  # ResNet-18
    ),
    Claim(
        "A third of the work can go with whole filters.",
        "mult-adds of VGG-16 up to 34 %, of ResNet-110 up to 38 % fewer, close to the accuracy",
        "Li 2017, abstract",
        "after as much retraining as in pruning, at most half a point worse (cifar: than a dense network that trains "
        "as long), with over 30 % fewer mult-adds",
        results.filters,
    ),
    Claim(
        "int8 kernels cost little accuracy, without training.",
        "within 2 % of floating point, for a wide variety of convnets",
        "Krishnamoorthi 2018, abstract",
        "calibrated on training images and run by onnxruntime, every network is at most one point worse than in "
        "float32",
        results.int8,
    ),
    Claim(
        "A teacher helps a pruned student.",
        "no number: on MNIST, a narrower network makes fewer errors with soft targets than with labels alone",
        "Hinton 2015, section 3",
        "pruned step by step to at most 5 % of its weights, a network is more accurate if it also learns from the "
        "dense network that it was; mean over sparsities",
        results.taught,
    ),
]

STUDY = Study(
    name="compression",
    title="Compression",
    question="How small can the file of a network be, and how much accuracy does that cost?",
    would_change="For a loss of half a point, more test images: it is less than two of the 360 digits, while MNIST has "
    "10,000 test images. For binary weights, which learn slowly, a longer schedule. For L1 against L2, and for the "
    "initialization of k-means, more seeds than the page states are hardly worth their cost. A larger network with "
    "less redundancy would be more informative.",
    cost={
        "digits": "53 runs per seed: about 12 minutes per seed on 2 cores",
        "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 19 runs per seed: about 3 hours per seed on 2 cores",
    },
    trials=trials,
    claims=CLAIMS,
    tables=tables.tables,
    pictures=[
        Picture(
            "bytes",
            "Size of each file by the purpose of its bytes, after pruning and after sharing; mean over seeds, and "
            "standard deviation of the whole.",
            figures.draw_bytes,
            (9.0, 4.4),
        ),
        Picture(
            "curves",
            "Accuracy by share of kept weights: without retraining, and with retraining after pruning at once or step "
            "by step, also with the dense network as a teacher; with L2 or L1 penalties. Mean and standard deviation "
            "over seeds.",
            figures.draw_curves,
            (7.0, 4.6),
        ),
        Picture(
            "bits",
            "Accuracy by size of the file, one line per seed: sharing alone (1 to 8 bits), pruning alone, and both. "
            "For both, points are files, and the line joins those that no smaller file exceeds. The shared values are "
            "not trained.",
            figures.draw_bits,
            (7.0, 4.4),
        ),
        Picture(
            "low_bits",
            "Test error with full-precision, ternary and binary weights, and with binary inputs (XNOR-Net); mean and "
            "standard deviation over seeds.",
            figures.draw_low_bits,
            (7.0, 4.4),
        ),
        Picture(
            "sensitivity",
            "Accuracy after the smallest weights of a single layer are pruned, mean over seeds. Earlier layers are "
            "darker.",
            figures.draw_sensitivity,
            (10.5, 3.8),
        ),
    ],
)

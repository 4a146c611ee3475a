"""Cost: what bottlenecks, groups, depthwise convolutions, inverted residuals and dense connections buy at equal cost.

  He et al. 2016         Deep residual learning, arXiv 1512.03385                        bottleneck
  Xie et al. 2017        Aggregated residual transformations, arXiv 1611.05431           groups
  Howard et al. 2017     MobileNets, arXiv 1704.04861                                    depthwise separable
  Sandler et al. 2018    MobileNetV2, arXiv 1801.04381                                   inverted residuals
  Huang et al. 2017      Densely connected convolutional networks, arXiv 1608.06993      dense connections

Mult-adds and parameters are counted in the traced programs (models/analysis/cost.py). A claim about equal cost is only
judged if the counted costs are equal within TOLERANCE. experiments/bench/costs.py lists the costs of the papers'
networks beside their published accuracies.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies import networks
from experiments.studies.cost import results
from experiments.studies.cost.measures import REPEATED, TIMED, reuse, step_time
from experiments.studies.cost.networks import (
    BOTTLENECK,
    DENSE,
    EQUAL,
    GROUPED,
    INVERTED,
    PAIRS,
    PLAIN,
    REUSED,
    SEPARABLE,
    SIZES,
)
from experiments.studies.cost.results import KINDS
from experiments.studies.networks import Network
from experiments.study import Claim, Measure, Picture, Study, Trial

# On digits, half of the recipe's epochs, because with all of them networks reach 99 %.
EPOCHS = {"digits": 6, "cifar": 5, "cifar10": 60, "imagenet": 90}

COSTS = {
    "digits": "about 5 minutes on 2 cores for 3 seeds",
    "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 15 runs per seed of 5 epochs",
    "cifar10": "60 runs, 5e16 mult-adds: half an hour of a GPU at 3e13 per second, but hours at the speed that "
    "small networks reach",
    "imagenet": "72 runs, 1.05e20 mult-adds: 1000 GPU hours at 3e13 per second, the speed of ResNet-50 on an A100",
}


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists blocks at equal cost, sizes of networks, early downsampling, whole convolutions, and timed steps."""
    planned, timed = [], {}

    def add(network: Network, labels: Mapping[str, Any], epochs: int = EPOCHS[scale], measures: Sequence[Measure] = ()):
        timed.setdefault(str(network), (network, labels))
        for seed in seeds:
            config = networks.config(scale, network, seed, epochs)
            planned.append(Trial({**labels, "seed": seed}, config, measures=measures))

    for block, equal in EQUAL[scale].items():
        for kind, network in zip(KINDS.values(), equal, strict=True):
            add(network, {"set": kind, "network": block})
    for family, series in SIZES[scale].items():
        for size, network in enumerate(series):
            add(network, {"set": "sizes", "network": family, "size": size})
    for kind, pair in PAIRS[scale].items():
        for label, network in pair.items():
            add(network, {"set": kind, "network": label})
    add(REUSED[scale], {"set": "re-use", "network": DENSE}, 24 if scale == "digits" else 0, (reuse,))
    for network, labels in timed.values():
        labels = {**labels, "of": labels["set"], "set": "step time"}
        config = networks.config(scale, network, 0, EPOCHS[scale])
        config.data.resolutions = ""  # the first steps would be of smaller images than those that are counted
        planned.append(Trial(labels, config, False, (step_time,)))
    return planned


STUDY = Study(
    name="cost",
    title="Cost",
    question="Which block is best at equal mult-adds and at equal parameters? What do dense connections save? Do "
    "mult-adds predict the time of a step?",
    would_change="Harder images: on digits, most blocks are within three points of 100%, so networks of equal cost "
    "differ by less than seeds do. For separable convolutions, wider networks: the published loss of one point is for "
    "up to 1,024 channels and 224x224 pixels. For the weights of dense blocks, longer training, in which they move "
    "further from their initial values. For the times of steps, several processes: on one machine, two measurements "
    "minutes apart gave 1.62 and 1.31 times between the slowest and the fastest network of equal mult-adds.",
    cost=COSTS,
    trials=trials,
    claims=(
        Claim(
            "Depthwise separable convolutions take about an eighth of the work and a seventh of the parameters.",
            "569 M mult-adds and 4.2 M parameters, whole 4866 M and 29.3 M",
            "Howard 2017, table 4",
            "our networks, counted at 224 x 224, have these numbers to the digits printed. They may be with or without "
            "the classifier's 1.02 M, and rounded or cut off, because the paper does not say which",
            results.table_4,
        ),
        Claim(
            "Depthwise separable convolutions cost little accuracy.",
            "70.6 %, whole 71.7 %",
            "Howard 2017, table 4",
            "separable ones lose less than 3 points against whole ones, with at most a fourth of the mult-adds",
            results.cheaper("convolution", "separable", "whole", 0.25, 0.03),
            -0.011,
        ),
        Claim(
            "Bottlenecks are more accurate than pairs of 3x3 convolutions of the same cost.",
            "top-1 error 22.85 % (50 layers, 3.8e9 mult-adds), 24.19 % (34 layers, 3.6e9)",
            "He 2016, tables 1 and 3",
            "at equal mult-adds their accuracy is higher; differences below 0.67 points, half of the published one, do "
            "not matter",
            results.better("mult_adds", BOTTLENECK, PLAIN, 0.0134),
            0.0134,
        ),
        Claim(
            "Grouped bottlenecks are more accurate than whole ones of the same cost.",
            "top-1 error 22.2 % (32x4d), 23.9 % (1x64d)",
            "Xie 2017, table 3",
            "at equal mult-adds their accuracy is higher; differences below 0.85 points, half of the published one, do "
            "not matter",
            results.better("mult_adds", GROUPED, BOTTLENECK, 0.017),
            0.017,
        ),
        Claim(
            "Inverted residuals are more accurate than separable convolutions.",
            "72.0 % with 300 M mult-adds, 70.6 % with 575 M",
            "Sandler 2018, table 4",
            "at equal mult-adds their accuracy is higher; differences below 0.7 points, half of the published one, do "
            "not matter",
            results.better("mult_adds", INVERTED, SEPARABLE, 0.014),
            0.014,
        ),
        Claim(
            "Dense networks need fewer parameters for the accuracy of residual ones.",
            "CIFAR-10, error 4.51 % with 0.8 M (DenseNet-BC), 6.61 % with 1.7 M (ResNet-110)",
            "Huang 2017, table 2; He 2016, table 6",
            "of the dense networks with at most half of the parameters of the largest residual one, the largest is "
            "less than 1 point below it in accuracy",
            results.efficient,
            0.021,
        ),
        Claim(
            "Dense networks are more accurate than residual ones of equal parameters.",
            "the same",
            "the same",
            "at equal parameters their accuracy is higher than that of pairs of 3x3 convolutions",
            results.better("parameters", DENSE, PLAIN, 0.021),
        ),
        Claim(
            "Layers of a dense block use features of early layers directly.",
            "weights are spread over many inputs; no numbers printed",
            "Huang 2017, section 5 and fig. 5",
            "in each block, the earlier half of a layer's inputs has at least half of the later half's mean weight "
            "(undecided if training moved the weights by less than half of their initial size)",
            results.reused,
        ),
        Claim(
            "Downsampling early saves most of the work at little loss.",
            "VGG-19 19.6e9 mult-adds, ResNet-34, with a stem of stride 4, 3.6e9",
            "He 2016, section 4.1 and table 1",
            "a stem that halves the resolution leaves at most half of the mult-adds, and loses less than 3 points",
            results.cheaper("downsampling", "early", "late", 0.5, 0.03),
        ),
        Claim(
            "Mult-adds do not tell the time.",
            "on a phone 75 ms with 300 M (v2), 113 ms with 575 M (v1)",
            "Sandler 2018, table 4",
            f"at equal mult-adds the slowest training step takes more than {results.SLOWER} times as long as the "
            f"fastest; of {REPEATED} medians of {TIMED} steps in one process, the first chooses the two networks, and "
            "the others are compared",
            results.timed,
        ),
    ),
    tables=results.tables,
    pictures=(
        Picture(
            "equal",
            "Test accuracy at equal cost. Points are runs, and lines are means over seeds.",
            results.draw_equal,
            (10.5, 4.2),
        ),
        Picture(
            "sizes",
            "Test accuracy by the number of parameters: mean and standard deviation over seeds.",
            results.draw_sizes,
            (7.0, 4.4),
        ),
        Picture(
            "reuse",
            "For each layer (column), the mean absolute weight of its first convolution on the channels from each "
            "earlier layer (row), relative to the largest of the column; mean over seeds (Huang 2017, fig. 5). The "
            "last column is the transition or the classifier. Before training, all are equal.",
            results.draw_reuse,
            (10.5, 3.6),
        ),
        Picture(
            "step_time",
            f"Median time of {TIMED} compiled training steps by mult-adds, for every network of the study: the middle "
            f"one of {REPEATED} such medians in one process. Widths that are no multiple of 16 run by another lowering "
            "on a CPU. Trials that run at the same time share the machine, so their steps may take longer.",
            results.draw_step_time,
            (9.0, 4.6),
        ),
    ),
)

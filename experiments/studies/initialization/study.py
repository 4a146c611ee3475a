"""Initialization: the scale of initial weights at which a deep network trains, and remedies for a bad scale.

  Glorot & Bengio 2010     Understanding the difficulty of training deep feedforward neural networks
  He et al. 2015           Delving deep into rectifiers, arXiv 1502.01852
  Mishkin & Matas 2016     All you need is a good init, arXiv 1511.06422 (LSUV)

The gradient at an early layer is a product of the Jacobians of all later layers. If each Jacobian shrinks it by a
factor, the gradient vanishes exponentially with depth; if each stretches it, the gradient explodes. The study measures
this layer by layer at step 0.
"""

from collections.abc import Sequence
from typing import Any

from experiments.studies.initialization import results
from experiments.studies.initialization.measures import signal
from experiments.studies.initialization.results import CONVERGED, CONVERGED_BRIEFLY, CURED, INITS, NETWORKS
from experiments.study import Claim, Picture, Study, Trial, recipe

# The first has the role "shallow", the last "deep".
DEPTHS = {"digits": (8, 14, 20), "cifar": (14, 32), "cifar10": (14, 20, 32)}
REACH = f"{CONVERGED:.0%} (cifar: {CONVERGED_BRIEFLY:.0%})"
STEP_0 = 44  # depth of the networks that are measured at step 0


def trials(scale: str, seeds: Sequence[int]) -> list[Trial]:
    """Lists all inits in plain networks by depth, the inits of CURED in deep networks with a remedy, and step 0.

    The cifar scale trains plain networks with the inits of CURED alone.
    """
    depths = DEPTHS[scale]
    roles = {depths[0]: "shallow", depths[-1]: "deep"}

    def trial(network: str, depth: int, init: str, seed: int, **options: Any) -> Trial:
        family, norm = NETWORKS[network]
        first, data_init = INITS[init]
        options_text = f"norm={norm},init={first},data_init={data_init},scale={scale},seed={seed}"
        config = recipe(f"configs/initialization.py:{family}{depth},{options_text}")
        labels = {"network": network, "depth": depth, "role": roles.get(depth, "between"), "init": init, "seed": seed}
        return Trial({**labels, "at": "end" if options.get("train", True) else "step 0"}, config, **options)

    planned = []
    for network in NETWORKS:
        inits = INITS if network == "plain" else CURED
        trained = CURED if scale == "cifar" else inits
        for seed in seeds:
            planned += [trial(network, STEP_0, init, seed, train=False, measures=(signal,)) for init in inits]
            planned += [
                trial(network, depth, init, seed)
                for depth in (depths if network == "plain" else depths[-1:])
                for init in trained
            ]
    return planned


STUDY = Study(
    name="initialization",
    title="Initialization",
    question="Which scale of the initial weights lets a plain network of 8 to 32 layers train? Do batch "
    "normalization and residual connections make up for a bad scale?",
    would_change="For very deep plain networks, more seeds, because only some seeds begin to learn. For the shallowest "
    "ones, a longer schedule: networks with Xavier are behind because they begin to learn later. For residual "
    "connections, a longer warm-up, or blocks whose branches begin at zero.",
    cost={
        "digits": "about 9 minutes on 2 cores for 3 seeds",
        "cifar": "cifar10_jpeg in $TFDS_DATA_DIR; 15 runs per seed of 5 epochs, 14 or 32 layers",
        "cifar10": "46 trials per seed, 30 of them of 60 epochs: four hours of one GPU per seed",
    },
    trials=trials,
    claims=(
        Claim(
            "Behind a ReLU, a variance of 2 / fan-in keeps the signal's scale; Xavier's lowers it by 1/sqrt(2) a "
            "layer.",
            "1/sqrt(2) = 0.707 a layer",
            "He 2015, eq. 10 and the discussion after it",
            f"in the first stage of {STEP_0} layers at step 0 the factor per layer is 0.9 to 1.05 with MSRA (padding "
            "lowers it), and the factor with Xavier is 0.707 of that to within 0.02",
            results.rule,
        ),
        Claim(
            "Very deep plain networks converge with MSRA and stall with Xavier.",
            "30 layers: MSRA converges, Xavier stalls",
            "He 2015, fig. 3",
            "in our deepest networks (digits: 20 layers, cifar and cifar10: 32) more than half of the runs reach "
            f"{REACH} with MSRA, and fewer than half do with Xavier",
            results.deepest,
        ),
        Claim(
            "Moderately deep plain networks converge with Xavier, too, but earlier with MSRA.",
            "22 layers: both converge, MSRA reduces its error earlier",
            "He 2015, fig. 2",
            f"in our shallowest networks (8, 14) more than half of the runs reach {REACH} with each, and the "
            "training loss over the first third is lower with MSRA; differences below "
            f"{results.NATS} nats do not matter",
            results.earlier,
        ),
        Claim(
            "In shallower plain networks MSRA or Xavier makes no clear difference.",
            "14 layers: 33.82 % error with MSRA, 33.90 % with Xavier",
            "He 2015, section 2.2",
            "in our shallowest networks the mean accuracies are equivalent within 1 point",
            results.shallow,
        ),
        Claim(
            "Batch normalization makes training insensitive to the initial scale.",
            "larger learning rates and less careful initialization",
            "Ioffe & Szegedy 2015, abstract",
            "in our deepest networks fewer than half of the plain runs converge with normal 0.01 and with Xavier, and "
            "more than half do with batch norm",
            results.cured("plain, batch norm"),
        ),
        Claim(
            "Residual connections make training insensitive to the initial scale.",
            "gradients reach early layers through the identity",
            "He 2016b, eq. 5",
            "in our deepest networks fewer than half of the plain runs converge with normal 0.01 and with Xavier, and "
            "more than half do with residual connections and no normalization",
            results.cured("residual, no norm"),
        ),
    ),
    tables=results.tables,
    pictures=(
        Picture(
            "signal",
            f"Standard deviation of the output of each layer, and of the gradient with respect to it, in networks of "
            f"{STEP_0} layers at step 0: mean over seeds, in a band from the least to the largest. Straight lines mean "
            "exponential decay. Lines jump where the resolution is halved.",
            results.draw_signal,
            (11, 5.4),
        ),
        Picture(
            "training",
            "Plain networks without normalization. Above: training loss, one line per run, in the colors of the bars. "
            "A network at ln 10 = 2.3 has not begun to learn. Below: runs whose test accuracy is at least "
            f"{REACH}.",
            results.draw_training,
            (10.5, 6.2),
        ),
    ),
)

"""Compression: weights that go, that share values, that have one bit or two, and what is left of the file.

  Han et al. 2015          Learning both weights and connections, arXiv 1506.02626
  Han et al. 2016          Deep compression, arXiv 1510.00149
  Rastegari et al. 2016    XNOR-Net, arXiv 1603.05279
  Zhu et al. 2017          Trained ternary quantization, arXiv 1612.01064
  Li et al. 2017           Pruning filters for efficient ConvNets, arXiv 1608.08710

digits     LeNets (at 28x28, as published: 266,610 and 431,080 numbers), VGG-11 and ResNet-20, on scikit-learn's digits
cifar10    VGG-11 and ResNet-20 on cifar10_jpeg, a TFDS set in $TFDS_DATA_DIR that was made elsewhere (lossy; for
           CIFAR-10 itself change SETS); low bits with ResNet-20

A network that is pruned, or whose weights become ternary, is trained on for longer than the one that it is compared
with, as in the papers.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.studies.compression import results
from experiments.studies.compression.measures import bits, centroids, cut, sensitivity, stored
from experiments.studies.networks import Network, config
from experiments.study import Claim, Picture, Study, Trial

SETS = {"cifar10": "tfds:cifar10_jpeg"}


class Subject(NamedTuple):
    """A network that goes through the three stages of Han 2016; lengths are in epochs.

    Attributes:
      network, rate, dense: what is trained, with which learning rate, how long.
      sparsity, pruned: how much of it goes, in how long, the second half of which only retrains.
      conv, bits, shared: bits of indices of convolutions and of dense layers, and how long their values are trained.
      filters: expression of the layers whose filters go, and the share of each that does.
    """

    network: Network
    rate: float
    dense: int
    sparsity: float
    pruned: int
    conv: int
    bits: int
    shared: int
    filters: tuple[str, float] = ("", 0.0)


VGG_FILTERS, RESNET_FILTERS = (".*/conv[0-9]/kernel", 0.2), (".*/conv1/kernel", 0.35)  # a third of the work of each
# Bits and sparsity of the LeNets as published (sections 4 and 5, tables 2 and 3).
SUBJECTS = {
    "digits": {
        "LeNet-300-100": Subject(Network("lenet_300_100", {}, 28), 0.02, 30, 0.92, 90, 6, 6, 5),
        "LeNet-5": Subject(Network("lenet5", {}, 28), 0.02, 30, 0.92, 90, 8, 5, 5),
        "VGG-11": Subject(Network("vgg11_cifar", {"width": 16}, 32), 0.1, 12, 0.9, 12, 5, 5, 3, VGG_FILTERS),
        "ResNet-20": Subject(Network("resnet20", {"width": 16}), 0.1, 12, 0.8, 12, 5, 5, 3, RESNET_FILTERS),
    },
    "cifar10": {
        "VGG-11": Subject(Network("vgg11_cifar", {"width": 32}), 0.1, 10, 0.86, 8, 5, 5, 1),
        "ResNet-20": Subject(Network("resnet20", {"width": 16}), 0.1, 10, 0.8, 3, 5, 5, 1, RESNET_FILTERS),
    },
}
SEEDS = {"digits": (0, 1, 2), "cifar10": (0,)}
STUDIED = {"digits": "LeNet-300-100", "cifar10": "ResNet-20"}  # network of the curves
SPARSITIES = {"digits": (0.8, 0.9, 0.95, 0.98, 0.99), "cifar10": ()}  # of what is retrained for them
L1 = {"digits": 1e-4}  # its factor
DEPTHS = {"digits": (20, 32, 56), "cifar10": (20,)}  # as many as a CPU can do; the paper's are 20, 32, 44, 56
LENGTHS = {"digits": (12, 12), "cifar10": (10, 5)}  # epochs: from scratch, and of ternary weights from full ones
# A scale's gradient is the sum over its layer: at the rate of the weights it changes its sign in the first epoch, and
# ResNet-20 gets no further than 45 % on the digits (commit c47dc5c).
SLOW_SCALES = ((".*/(positive|negative)", 0.01), (".*", 1.0))
KINDS = {  # of weights; an XNOR network is a preresnet whose only nonlinearity is the sign (Rastegari 2016, fig. 2)
    "full": ("resnet", {}),
    "ternary": ("resnet", {"conv": "ternary"}),
    "binary weights": ("resnet", {"conv": "binary_weight"}),
    "full, preactivation": ("preresnet", {}),
    "XNOR": ("preresnet", {"conv": "xnor", "act": "identity"}),
}


def trials(scale: str) -> list[Trial]:
    """The three stages of each network; curves of one; filters; low bits."""
    found = []
    for seed in SEEDS[scale]:
        for name, subject in SUBJECTS[scale].items():
            labels, studied = {"part": "stages", "network": name, "seed": seed}, name == STUDIED[scale]
            whole = Trial(
                {**labels, "stage": "dense"},
                _config(scale, subject.network, seed, subject.dense, subject.rate),
                measures=(stored, sensitivity, *((cut, bits) if studied else ())),
            )
            gone = _pruned(
                scale,
                subject,
                whole,
                {**labels, "stage": "pruned"},
                measures=(stored, *((bits, centroids) if studied else ())),
            )
            found += [whole, gone, _shared(subject, gone, {**labels, "stage": "shared"})]
            what, share = subject.filters
            if what:  # the same share of each layer, as in the paper
                found.append(
                    _pruned(
                        scale,
                        subject,
                        whole,
                        {**labels, "part": "filters"},
                        share,
                        by="layer",
                        more=f", structure=filters, what='{what}'",
                        measures=(stored,),
                    )
                )
        found += _curves(scale, seed) + (_low_bits(scale, seed) if seed < 2 else [])  # these cost the most
    return found


def _curves(scale: str, seed: int) -> list[Trial]:
    """Sparsities of one network: with decay (L2) and with L1, all at once and step by step."""
    subject, found = SUBJECTS[scale][STUDIED[scale]], []
    for decay in ("L2", "L1") if scale in L1 else ("L2",):
        labels = {"part": "curves", "decay": decay, "seed": seed}
        c = _config(scale, subject.network, seed, subject.dense, subject.rate)
        if decay == "L1":
            c.optimizer.l1, c.optimizer.weight_decay = L1[scale], 0.0
        whole = Trial({**labels, "how": "whole"}, c, measures=(cut,))
        found.append(whole)
        for sparsity in SPARSITIES[scale]:
            hows = ("at once",) if decay == "L1" else ("at once", "step by step") if scale in L1 else ("step by step",)
            for how in hows:
                found.append(
                    _pruned(
                        scale,
                        subject,
                        whole,
                        {**labels, "how": how, "sparsity": sparsity},
                        sparsity,
                        once=how == "at once",
                        measures=(bits,) if decay == "L2" else (),
                    )
                )
    return found


def _low_bits(scale: str, seed: int) -> list[Trial]:
    """Returns ResNets with low-bit weights and XNOR activations; ternary ones start from the full network."""
    found, full = [], None
    for depth in DEPTHS[scale]:
        for kind, (family, fields) in KINDS.items():
            if scale == "cifar10" and kind == "full, preactivation":
                continue
            network = Network(f"{family}{depth}", {"width": {"digits": 8, "cifar10": 16}[scale], **fields})
            trial = Trial(
                {"part": "low bits", "depth": depth, "kind": kind, "seed": seed},
                _config(scale, network, seed, LENGTHS[scale][0], 0.1),
                measures=(stored,),
            )
            full = trial if kind == "full" else full
            if kind == "ternary":
                c = _after(full, LENGTHS[scale][1], 0.05)
                c.model.conv, c.optimizer.groups = fields["conv"], SLOW_SCALES
                trial = trial._replace(config=c, start=full)
            found.append(trial)
    return found


def _config(scale: str, network: Network, seed: int, epochs: int, rate: float) -> Any:
    c = config(scale, network, seed, epochs)
    c.optimizer.learning_rate = rate
    if scale in SETS:
        c.data.source = SETS[scale]
        c.evaluate_every = "2 epochs"
    return c


def _after(start: Trial, epochs: int, rate: float) -> Any:
    """The config of a run that goes on from another's network."""
    c = start.config.copy_and_resolve_references()
    c.init_new, c.optimizer.warmup = "", "0 steps"
    c.duration, c.optimizer.learning_rate = f"{epochs} epochs", rate
    return c


def _pruned(
    scale: str,
    subject: Subject,
    start: Trial,
    labels: dict[str, Any],
    sparsity: float = 0.0,
    once: bool = False,
    more: str = "",
    by: str = "std",
    measures: Sequence[Callable] = (),
) -> Trial:
    """Weights go for half of the time, or all at once; by="std": Han 2015's thresholds."""
    c = _after(start, subject.pruned, subject.rate / 2)
    schedule = "" if once else ", end='50%', every='2%'"
    c.optimizer.prune = f"magnitude({sparsity or subject.sparsity}{schedule}, by={by}{more})"
    return Trial(labels, c, measures=measures, start=start)


def _shared(subject: Subject, start: Trial, labels: dict[str, Any]) -> Trial:
    c = _after(start, subject.shared, 1e-3)
    c.optimizer.prune, c.optimizer.share = "", f"linear(conv={subject.conv}, dense={subject.bits})"
    return Trial(labels, c, measures=(stored,), start=start)


CLAIMS = [
    Claim(
        "LeNet-300-100 is 40 times smaller with no loss.",
        "40x; error 1.64 before, 1.58 % after",
        "Han 2016, table 1",
        "at least 35 times, at most half a point of accuracy lost",
        results.smaller("LeNet-300-100", 35),
    ),
    Claim(
        "LeNet-5 is 39 times smaller with no loss.",
        "39x; error 0.80 before, 0.74 % after",
        "Han 2016, table 1",
        "at least 35 times, at most half a point of accuracy lost",
        results.smaller("LeNet-5", 35),
    ),
    Claim(
        "A VGG is tens of times smaller with no loss.",
        "VGG-16 49x, AlexNet 35x (most of both are dense layers)",
        "Han 2016, table 1",
        "a VGG-11 of convolutions alone: at least 20 times, at most half a point lost",
        results.smaller("VGG-11", 20),
    ),
    Claim(
        "What is left has to be trained again.",
        "retraining is what keeps the accuracy (figure only)",
        "Han 2015, figure 5",
        "over all sparsities, pruning step by step is better than cutting",
        results.retraining,
    ),
    Claim(
        "Without retraining, L1 is better than L2.",
        "L1 gives better accuracy after pruning (figure only)",
        "Han 2015, section 3.1, figure 5",
        "over all sparsities, better",
        results.l1_before,
    ),
    Claim(
        "With retraining, L2 is better than L1.",
        "L2 gives the best pruning results (figure only)",
        "Han 2015, section 3.1, figure 5",
        "over all sparsities, better",
        results.l2_after,
    ),
    Claim(
        "Pruning step by step is better than at once.",
        "5x at once, 9x in steps, of AlexNet",
        "Han 2015, section 3.4",
        "over all sparsities, better",
        results.iterative,
    ),
    Claim(
        "Pruning and sharing together are smaller than either.",
        "accuracy falls below 8 % of the size with either alone, at 3 % with both (figure only)",
        "Han 2016, section 5, figure 6",
        "the smallest file with at most one point lost is that of both, without training the values",
        results.both,
    ),
    Claim(
        "k-means should start from even steps.",
        "linear initialization is better than density and random (figure only)",
        "Han 2016, section 3.2, figure 8",
        "better with 2, 3 and 4 bits together",
        results.linear,
    ),
    Claim(
        "Ternary weights cost nearly nothing.",
        "CIFAR-10, ResNet-20 to 56: 0.64 worse, 0.04, 0.16, 0.36 better",
        "Zhu 2017, table of CIFAR-10",
        "fine-tuned, at most one point worse at every depth",
        results.ternary,
    ),
    Claim(
        "Binary weights cost little.",
        "AlexNet: full 56.6, binary weights 56.8 %; ResNet-18 69.3, 60.8 %",
        "Rastegari 2016, tables 1 and 2",
        "at most two points worse at every depth",
        results.binary,
    ),
    Claim(
        "Binary inputs cost more than binary weights.",
        "AlexNet: 56.8 against 44.2 %; ResNet-18 60.8 against 51.2 %",
        "Rastegari 2016, tables 1 and 2",
        "XNOR is worse at every depth",
        results.xnor,
    ),
    Claim(
        "A third of the work can go with whole filters.",
        "mult-adds of VGG-16 up to 34 %, of ResNet-110 up to 38 % fewer, close to the accuracy",
        "Li 2017, abstract",
        "at most half a point worse, after as much retraining",
        results.filters,
    ),
]

STUDY = Study(
    name="compression",
    title="Compression",
    question="How small can the file of a network be, and what does that cost?",
    would_change="More test images for half a point of loss: of 360 digits it is less than two images, and a whole "
    "MNIST has 10,000. More seeds at cifar10 scale, where one decides nothing. A longer schedule for "
    "binary weights, which learn slowly. For L1 against L2 and for where k-means starts more seeds than "
    "stand beside the claims are hardly worth it: a larger network is, of which less is superfluous.",
    cost={"digits": "20 minutes on 2 cores", "cifar10": "cifar10_jpeg in $TFDS_DATA_DIR; 2 hours on 2 cores"},
    trials=trials,
    claims=CLAIMS,
    tables=results.tables,
    pictures=[
        Picture(
            "bytes",
            "What the bytes of the files are for, after pruning and after sharing; and how many times "
            "smaller than float32 they are.",
            results.draw_bytes,
            (9.0, 4.0),
        ),
        Picture(
            "curves",
            "Accuracy against the weights that are gone: cut, at once and step by step with retraining; "
            "decay by L2 or L1. Mean over seeds.",
            results.draw_curves,
            (6.5, 4.2),
        ),
        Picture(
            "bits",
            "Accuracy against the size of the file: shared values alone (1 to 8 bits), pruning alone, "
            "both; the values are not trained. A line, or of both points, for each seed.",
            results.draw_bits,
            (6.5, 4.2),
        ),
        Picture(
            "low_bits",
            "Test error with full precision, ternary and binary weights, and binary inputs (XNOR): "
            "mean and standard deviation over seeds.",
            results.draw_low_bits,
            (6.5, 4.2),
        ),
        Picture(
            "sensitivity",
            "Accuracy after one layer alone loses its smallest weights; first layers dark.",
            results.draw_sensitivity,
            (12.0, 3.6),
        ),
    ],
)

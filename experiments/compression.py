"""Compression: weights that go, that share values, that have one bit or two, and what is left of the file.

  Han et al. 2015          Learning both weights and connections, arXiv 1506.02626
  Han et al. 2016          Deep compression, arXiv 1510.00149
  Rastegari et al. 2016    XNOR-Net, arXiv 1603.05279
  Zhu et al. 2017          Trained ternary quantization, arXiv 1612.01064
  Li et al. 2017           Pruning filters for efficient ConvNets, arXiv 1608.08710

digits     LeNets (at 28x28, as published: 266,610 and 431,080 parameters), VGG-11 and ResNet-20 on scikit-learn's digits
cifar10    VGG-11 and ResNet-20 on cifar10_jpeg, a TFDS set in $TFDS_DATA_DIR that was made elsewhere (lossy; for
           CIFAR-10 itself change SETS); low bits with ResNet-20
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import compression_results as results
from experiments.compression_measures import bits, centroids, cut, sensitivity, stored  # noqa: F401  trials name them
from experiments.networks import Network, config
from experiments.study import Claim, Picture, Study, Trial

SETS = {"cifar10": "tfds:cifar10_jpeg"}


class Subject(NamedTuple):
    """A network that goes through the three stages of Han 2016; lengths are in epochs.

    Attributes:
      network, rate, dense: what is trained, with which learning rate, how long.
      sparsity, pruned: how much of it goes, in how long, the second half of which only retrains.
      conv, bits, shared: bits of indices of convolutions and of dense layers, and how long their values are trained.
      filters: expression of the layers whose filters may go.
    """

    network: Network
    rate: float
    dense: int
    sparsity: float
    pruned: int
    conv: int
    bits: int
    shared: int
    filters: str = ""


# Bits of the LeNets as published (sections 4 and 5); they keep 8 % there.
SUBJECTS = {
    "digits": {
        "LeNet-300-100": Subject(Network("lenet_300_100", {}, 28), 0.02, 30, 0.92, 30, 6, 6, 5),
        "LeNet-5": Subject(Network("lenet5", {}, 28), 0.02, 30, 0.92, 30, 8, 5, 5),
        "VGG-11": Subject(Network("vgg11_cifar", {"width": 16}, 32), 0.1, 12, 0.9, 12, 5, 5, 3, ".*/conv[0-9]/kernel"),
        "ResNet-20": Subject(Network("resnet20", {"width": 16}), 0.1, 12, 0.8, 12, 5, 5, 3, ".*/conv1/kernel"),
    },
    "cifar10": {
        "VGG-11": Subject(Network("vgg11_cifar", {"width": 32}), 0.1, 10, 0.9, 3, 5, 5, 1, ".*/conv[0-9]/kernel"),
        "ResNet-20": Subject(Network("resnet20", {"width": 16}), 0.1, 10, 0.8, 3, 5, 5, 1, ".*/conv1/kernel"),
    },
}
SEEDS = {"digits": (0, 1, 2), "cifar10": (0,)}
STUDIED = {"digits": "LeNet-300-100", "cifar10": "ResNet-20"}  # network of the curves
SPARSITIES = {"digits": (0.8, 0.9, 0.95, 0.98, 0.99), "cifar10": (0.9, 0.95)}  # of what is retrained for them
L1 = {"digits": 1e-4}  # its factor
FILTERS = 0.35  # share of the filters that go
DEPTHS = {"digits": (20, 32, 44, 56), "cifar10": (20,)}  # on a CPU; the paper's are (20, 32, 44, 56)
KINDS = {  # of weights; an XNOR network is a preresnet whose only nonlinearity is the sign (Rastegari 2016, fig. 2)
    "full": ("resnet", {}), "ternary": ("resnet", {"conv": "ternary"}),
    "binary weights": ("resnet", {"conv": "binary_weight"}),
    "full, preactivation": ("preresnet", {}), "XNOR": ("preresnet", {"conv": "xnor", "act": "identity"}),
}


def trials(scale: str) -> list[Trial]:
    """The three stages of each network; curves of one; filters; low bits."""
    found = []
    for seed in SEEDS[scale]:
        for name, subject in SUBJECTS[scale].items():
            labels, studied = {"part": "stages", "network": name, "seed": seed}, name == STUDIED[scale]
            whole = Trial({**labels, "stage": "dense"}, _config(scale, subject.network, seed, subject.dense,
                                                                subject.rate),
                          measures=("stored", "sensitivity", *(("cut", "bits") if studied else ())))
            gone = _pruned(scale, subject, whole, {**labels, "stage": "pruned"},
                           measures=("stored", *(("bits", "centroids") if studied else ())))
            found += [whole, gone, _shared(subject, gone, {**labels, "stage": "shared"})]
            if subject.filters:
                found.append(_pruned(scale, subject, whole, {**labels, "part": "filters"}, FILTERS,
                                     more=f", structure=filters, what='{subject.filters}'", by="global",
                                     measures=("stored",)))
        found += _curves(scale, seed) + _low_bits(scale, seed)
    return found


def _curves(scale: str, seed: int) -> list[Trial]:
    """Sparsities of one network: with decay (L2) and with L1, all at once and step by step."""
    subject, found = SUBJECTS[scale][STUDIED[scale]], []
    for decay in ("L2", "L1") if scale in L1 else ("L2",):
        labels = {"part": "curves", "decay": decay, "seed": seed}
        c = _config(scale, subject.network, seed, subject.dense, subject.rate)
        if decay == "L1":
            c.optimizer.l1, c.optimizer.weight_decay = L1[scale], 0.0
        whole = Trial({**labels, "how": "whole"}, c, measures=("cut",))
        found.append(whole)
        for sparsity in SPARSITIES[scale]:
            for how in ("at once", "step by step") if decay == "L2" and scale in L1 else ("at once",):
                found.append(_pruned(scale, subject, whole, {**labels, "how": how, "sparsity": sparsity}, sparsity,
                                     once=how == "at once", measures=("bits",) if decay == "L2" else ()))
    return found


def _low_bits(scale: str, seed: int) -> list[Trial]:
    """ResNets whose weights, and XNOR ones whose activations, have few bits."""
    found = []
    for depth in DEPTHS[scale]:
        for kind, (family, fields) in KINDS.items():
            if scale == "cifar10" and kind == "full, preactivation":
                continue
            network = Network(f"{family}{depth}", {"width": {"digits": 8, "cifar10": 16}[scale], **fields})
            found.append(Trial({"part": "low bits", "depth": depth, "kind": kind, "seed": seed},
                               _config(scale, network, seed, {"digits": 12, "cifar10": 10}[scale], 0.1),
                               measures=("stored",)))
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


def _pruned(scale: str, subject: Subject, start: Trial, labels: dict[str, Any], sparsity: float = 0.0,
            once: bool = False, more: str = "", by: str = "std", measures: Sequence[str] = ()) -> Trial:
    """Weights go for half of the time, or all at once; by="std": Han 2015's thresholds."""
    c = _after(start, subject.pruned, subject.rate / 2)
    schedule = "" if once else ", end='50%', every='2%'"
    c.optimizer.prune = f"magnitude({sparsity or subject.sparsity}{schedule}, by={by}{more})"
    return Trial(labels, c, measures=measures, start=start)


def _shared(subject: Subject, start: Trial, labels: dict[str, Any]) -> Trial:
    c = _after(start, subject.shared, 1e-3)
    c.optimizer.prune, c.optimizer.share = "", f"linear(conv={subject.conv}, dense={subject.bits})"
    return Trial(labels, c, measures=("stored",), start=start)

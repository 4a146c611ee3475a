"""Compression."""

from typing import Any, NamedTuple

from experiments.networks import Network, config
from experiments.study import Trial

SEEDS = (0, 1, 2)
SETS = {"cifar10": "tfds:cifar10_jpeg"}


class Subject(NamedTuple):
    """A network, and how long it is trained, pruned and shared (epochs), how far, and in how many bits."""

    scale: str
    network: Network
    dense: int
    rate: float
    sparsity: float
    pruned: int
    conv: int
    bits: int
    shared: int


SUBJECTS = {
    "LeNet-300-100": Subject("digits", Network("lenet_300_100", {}, 28), 30, 0.02, 0.92, 30, 6, 6, 5),
    "LeNet-5": Subject("digits", Network("lenet5", {}, 28), 30, 0.02, 0.92, 30, 8, 5, 5),
    "VGG-11": Subject("digits", Network("vgg11_cifar", {"width": 16}, 32), 12, 0.1, 0.9, 12, 5, 5, 3),
    "ResNet-20": Subject("digits", Network("resnet20", {"width": 16}), 12, 0.1, 0.8, 12, 6, 6, 3),
}
CIFAR = {
    "VGG-11 (cifar)": Subject("cifar10", Network("vgg11_cifar", {"width": 32}), 10, 0.1, 0.9, 5, 5, 5, 1),
    "ResNet-20 (cifar)": Subject("cifar10", Network("resnet20", {"width": 16}), 10, 0.1, 0.8, 5, 6, 6, 1),
}


def dense(subject: Subject, seed: int) -> Any:
    """The run that a compressed one starts from."""
    c = config(subject.scale, subject.network, seed, subject.dense)
    c.optimizer.learning_rate = subject.rate
    if subject.scale in SETS:
        c.data.source = SETS[subject.scale]
        c.evaluate_every = "2 epochs"
    return c


def trials(scale):
    return [Trial({"n": n}, dense(s, 0)) for n, s in {**SUBJECTS, **CIFAR}.items()]

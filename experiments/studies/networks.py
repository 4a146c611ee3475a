"""Networks that studies compare at equal cost: each is a name with fields and an image size."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.study import Judge, Judgement, Outcomes, evidence, listed, missing, recipe
from experiments.study.tables import accuracy, count_of

if TYPE_CHECKING:
    from models.analysis.cost import Complexity

IMAGES = {"digits": (8, 1), "cifar": (32, 3), "cifar10": (32, 3), "imagenet": (224, 3)}  # (height and width, channels)


class Network(NamedTuple):
    """A network as a study trains it.

    Attributes:
      name: One of `models.list_models()`.
      fields: Fields of the model that differ from the defaults of its name.
      size: Height and width to which images are resized; 0 for unchanged images. A network whose stem halves the
        resolution gets images of twice the size if it is compared with one whose stem does not.
    """

    name: str
    fields: Mapping[str, Any] = {}
    size: int = 0


def config(scale: str, network: Network, seed: int, epochs: int = 0) -> Any:
    """Returns the recipe of configs/study.py with this network and its own ingredients; epochs 0 keeps the recipe's."""
    from ml_collections import ConfigDict

    c = recipe(f"configs/study.py:{scale},seed={seed},epochs={epochs},size={network.size}")
    c.model = ConfigDict({"name": network.name, **network.fields})
    return c


def cost(scale: str, network: Network) -> "Complexity":
    """Returns the cost of the network for one image."""
    return _cost(scale, network.name, tuple(sorted(network.fields.items())), network.size)


@functools.cache
def _cost(scale: str, name: str, fields: tuple[tuple[str, Any], ...], size: int) -> "Complexity":
    import models
    from models.analysis.cost import analyze

    size, channels, classes = size or IMAGES[scale][0], IMAGES[scale][1], 1000 if scale == "imagenet" else 10
    model = models.create(name, **{"image_size": size, "num_classes": classes, **dict(fields)})
    return analyze(model, (1, size, size, channels))


# Columns of a table of networks
CELLS = {"mult-adds": count_of("mult_adds"), "parameters": count_of("parameters"), "test accuracy": accuracy}


def unequal(outcomes: Outcomes, field: str) -> float:
    """Returns the fraction by which the costliest network exceeds the cheapest, by a field of the summaries."""
    costs = [outcome.summary[field] for outcome in outcomes if outcome.summary]
    return max(costs) / min(costs) - 1 if costs else 0.0


def accuracies(outcomes: Outcomes, *names: str) -> str:
    """Formats the accuracies of networks by their label."""
    return listed({name: outcomes.where(network=name).values("accuracy") for name in names})


def more_accurate(kind: str, field: str, tolerance: float, high: str, low: str, published: float) -> Judge:
    """Returns a judge: the network `high` is more accurate than `low`, both from the set `kind`.

    `published` is the published difference of accuracies, which decides how small a difference matters.

    Nothing is decided if the costs, `field` of the summaries, differ by more than `tolerance`.
    """

    def judge(outcomes: Outcomes) -> Judgement:
        pair = outcomes.where(set=kind, network=[high, low])
        difference = unequal(pair, field)
        text = f"{accuracies(pair, high, low)}, with {field.replace('_', '-')} {difference:.1%} apart"
        if difference > tolerance:
            return missing(f"no comparison: {text}")
        first, second = (pair.where(network=name).values("accuracy", diverged=0.0) for name in (high, low))
        return Judgement(evidence.more(first, second, worth=evidence.worth(published)), text)

    return judge

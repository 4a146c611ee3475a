"""Rules between features: combinations of settings that exclude each other, each with its error message.

A rule about a single feature is checked where that feature is built.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import models
from models.errors import UserError
from models.gated import GatedResNet
from models.layers import low_bit
from train.data.feed import Feed
from train.data.image_feed import ImageFeed
from train.optim import pruning, sam, schedule_free, weight_sharing
from train.optim.lookahead import Average
from train.setup import sizes
from train.setup.config import Reader
from train.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Features:
    """The parts of a run that rules are about.

    Attributes:
      config: the whole config; see configs/base.py.
      feed: the data.
      task: the task.
      prune: the plan of optimizer.prune, or None.
      share: the plan of optimizer.share, or None.
      lookahead: the average of `lookahead`, or None.
      shapes: returns the shapes of the model's variables; called only by the rules that need them.
    """

    config: Reader
    feed: Feed
    task: Task
    prune: pruning.Plan | None
    share: weight_sharing.Plan | None
    lookahead: Average | None
    shapes: Callable[[], Any]

    @property
    def average(self) -> str:
        """The setting that averages the weights, e.g. "ema_decay=0.999"; "" if there is none."""
        if self.config.ema_decay:
            return f"ema_decay={self.config.ema_decay}"
        if self.lookahead:
            return f"lookahead='{self.config.lookahead}'"
        name = self.config.optimizer.name
        return f"optimizer.name={name}" if schedule_free.is_named(name) else ""

    @property
    def binary(self) -> str:
        """The name of the first kernel of a binary layer; "" if there is none."""
        kernels = low_bit.binary(self.task.model, self.shapes(), *models.abstract(self.feed.inputs))
        return kernels[0] if kernels else ""

    @functools.cached_property
    def of_one_size(self) -> str:
        """The setting that shows the network images of a size that it does not take, and why; "" if there is none."""
        if not isinstance(self.feed, ImageFeed):
            return ""
        views = getattr(self.task, "views", "")
        for setting, sides in (
            (f"data.resolutions='{self.config.data.resolutions}'", self.feed.training_sizes),
            (f"task.name={self.config.task.name}", sizes.of_views(views, self.feed.image_shape[0])),
        ):
            if sides and (reason := sizes.refusal(self.task, self.shapes(), self.feed.inputs, sides)):
                return f"{setting}: model.name={self.config.model.name} does not take {reason}"
        return ""


class Rule(NamedTuple):
    """A combination of features that is an error.

    Attributes:
      broken: returns something true if the features break the rule.
      sentence: the error message, formatted with the features as `f`.
    """

    broken: Callable[[Features], Any]
    sentence: str


RULES = (
    Rule(
        lambda f: f.config.data_init != "none" and f.config.init_from,
        "data_init={f.config.data_init} would undo init_from={f.config.init_from}",
    ),
    Rule(
        lambda f: f.config.data_init == "lsuv" and isinstance(f.task.model, GatedResNet),
        "data_init=lsuv would rescale the kernels of gates, which start near 0 so that all gates are open",
    ),
    Rule(
        lambda f: f.lookahead and f.config.ema_decay,
        "lookahead='{f.config.lookahead}' averages in its own way; set ema_decay=0",
    ),
    Rule(
        lambda f: schedule_free.is_named(f.config.optimizer.name) and (f.lookahead or f.config.ema_decay),
        "optimizer.name={f.config.optimizer.name} averages in its own way; set ema_decay=0 and lookahead=''",
    ),
    Rule(
        lambda f: f.config.optimizer.sam and (f.prune or f.share),
        "optimizer.sam={f.config.optimizer.sam} would move pruned weights (optimizer.prune) and shared values "
        "(optimizer.share) where it computes its second gradient",
    ),
    Rule(
        lambda f: f.config.parallel == "fsdp" and getattr(sam.create(f.config.optimizer.sam), "per_device", False),
        "optimizer.sam={f.config.optimizer.sam}: with parallel=fsdp, no device has a gradient of its own",
    ),
    Rule(
        lambda f: f.config.optimizer.name.startswith("sophia") and f.config.parallel == "fsdp",
        "optimizer.name={f.config.optimizer.name} needs whole parameters for its products with the Hessian: set "
        "parallel=pmap or shard_map",
    ),
    Rule(
        lambda f: f.average and (f.prune or f.share),
        "{f.average}: averaged weights would be neither pruned (optimizer.prune) nor share values (optimizer.share)",
    ),
    Rule(
        lambda f: f.prune and f.share,
        "optimizer.prune and optimizer.share: prune in one run, and share values in a second run that starts from it",
    ),
    Rule(
        lambda f: (f.share or (f.prune and f.prune.structure != "filters")) and f.binary,
        "optimizer.prune and share do not support binary layers, where 0 counts as 1: {f.binary}; "
        "structure=filters does",
    ),
    Rule(
        lambda f: f.share and (f.config.optimizer.clip_norm or f.config.optimizer.name.startswith(("lars", "lamb"))),
        "optimizer.share: each weight holds the whole gradient of its shared value, so clip_norm, lars and lamb would "
        "count it many times; set clip_norm=0 and sgd, adam or adamw",
    ),
    Rule(lambda f: f.of_one_size, "{f.of_one_size}"),
)


def check(features: Features) -> None:
    """Raises UserError with the message of the first broken rule."""
    for rule in RULES:
        if rule.broken(features):
            raise UserError(rule.sentence.format(f=features))

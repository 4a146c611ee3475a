"""Rules between features: which parts of a config exclude each other, each rule with its sentence.

A rule that concerns one feature alone is checked where that feature is built.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import models
from models.errors import UserError
from models.gated import GatedResNet
from models.layers import low_bit
from train.data.feed import Feed
from train.optim import pruning, weight_sharing
from train.optim.lookahead import Average
from train.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Features:
    """What rules look at.

    Attributes:
      config: of the run; see configs/base.py.
      feed, task: of the run.
      prune, share, lookahead: what the texts of the same names ask for, or None.
    """

    config: Any
    feed: Feed
    task: Task
    prune: pruning.Plan | None
    share: weight_sharing.Plan | None
    lookahead: Average | None

    @property
    def average(self) -> str:
        """The setting that averages the weights, "" for none."""
        if self.config.ema_decay:
            return f"ema_decay={self.config.ema_decay}"
        return f"lookahead='{self.config.lookahead}'" if self.lookahead else ""

    @property
    def binary(self) -> str:
        """The first kernel of a binary layer, "" for none."""
        variables = jax.eval_shape(lambda key: self.task.init(key, self.feed.inputs)[0], jax.random.key(0))
        kernels = low_bit.binary(self.task.model, variables, *models.abstract(self.feed.inputs))
        return kernels[0] if kernels else ""


class Rule(NamedTuple):
    """A combination that is refused.

    Attributes:
      broken: tells whether the features break the rule.
      sentence: what is wrong and what helps; formatted with the features as `f`.
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
        "data_init=lsuv would scale the kernels of gates, which start near 0 so that they are open",
    ),
    Rule(
        lambda f: f.lookahead and f.config.ema_decay,
        "lookahead='{f.config.lookahead}' averages in its own way; set ema_decay=0",
    ),
    Rule(
        lambda f: f.average and (f.prune or f.share),
        "{f.average}: averages of weights that optimizer.prune cuts are not pruned, and averages of weights that "
        "optimizer.share lets share values share none",
    ),
    Rule(
        lambda f: f.prune and f.share,
        "optimizer.prune and optimizer.share: prune first, and share in a run that starts from that",
    ),
    Rule(
        lambda f: (f.share or (f.prune and f.prune.structure != "filters")) and f.binary,
        "optimizer.prune and share are not for binary layers, where 0 counts as 1: {f.binary}; structure=filters is",
    ),
    Rule(
        lambda f: f.share and (f.config.optimizer.clip_norm or f.config.optimizer.name.startswith(("lars", "lamb"))),
        "optimizer.share: a value's gradient stands at each of its weights, so clip_norm, lars and lamb would count it "
        "many times; set clip_norm=0 and sgd, adam or adamw",
    ),
)


def check(features: Features) -> None:
    """Raises UserError with the sentence of the first rule that is broken."""
    for rule in RULES:
        if rule.broken(features):
            raise UserError(rule.sentence.format(f=features))

"""Tasks: losses, metrics and predictions; see `train.tasks.base.Task`."""

from collections.abc import Callable

import flax.linen as nn

from models.errors import UserError
from train.setup import spec
from train.setup.config import Reader
from train.tasks.base import Task
from train.tasks.classify import Classify
from train.tasks.distill import Distill
from train.tasks.gated import Gated
from train.tasks.multi_exit import MultiExit
from train.tasks.multi_label import MultiLabel
from train.tasks.policy import Policy
from train.tasks.translate import Translate

TASKS: dict[str, Callable[..., Task]] = {
    "classify": Classify,
    "distill": Distill,
    "multi_label": MultiLabel,
    "gated": Gated,
    "policy": Policy,
    "multi_exit": MultiExit,
}
BY_UNIT: dict[str, dict[str, Callable[..., Task]]] = {"images": TASKS, "sentences": {"translate": Translate}}


def create(
    config: Reader,
    model: nn.Module,
    num_classes: int,
    unit: str = "images",
    label_shape: tuple[int, ...] = (),
    source: str = "",
    to_steps: Callable[[str], int] | None = None,
) -> Task:
    """Returns the task that the section `task` of a config names, with its arguments.

    A name is e.g. "policy(penalty=5.0)" or, for a subclass of a task in a user's file, "my_loss.py:Focal(gamma=2.0)".

    Args:
      config: the section `task`.
      model: the flax module.
      num_classes: number of classes of the data.
      unit: what examples are called, `Feed.unit`.
      label_shape: `Feed.label_shape`.
      source: data.source, for errors.
      to_steps: converts durations to steps.

    Raises:
      UserError: the task or an argument is unknown, or the task does not support the network or the labels.
    """
    task = spec.resolve_one("task.name", config.name, BY_UNIT[unit], model, num_classes, config, to_steps)
    several = bool(label_shape)
    if getattr(task, "multi_label", False) != several:
        kinds = ("one class", "several classes")
        raise UserError(
            f"task.name={config.name} needs {kinds[not several]} per image, but data.source={source} has "
            f"{kinds[several]}" + ("; set task.name=multi_label" if several else "")
        )
    return task

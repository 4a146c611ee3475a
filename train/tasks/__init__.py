"""What is learned. A task owns the loss, the metrics, the prediction and any trained state besides the model's.

A task is an object with
  model                                               the flax module
  init(key, inputs) -> (variables, task_state)        inputs: as `models.initialize` takes them
  loss(params, model_state, task_state, batch, key, step) -> (loss, (metrics, model_state, task_state))
  evaluate(variables, task_state, batch) -> metrics
  predict(variables, batch) -> outputs                one row an example
  headline                                            name of the metric by which "best" is decided (higher is better)
  multi_label                                         whether an image has several classes; absent: one
with metrics {name: (sum over examples, weight)}: never a mean, so that they add up over batches and devices.
"""

from collections.abc import Callable
from typing import Any

from models.errors import UserError
from train import spec
from train.tasks.classify import Classify
from train.tasks.gated import Gated
from train.tasks.multi_exit import MultiExit
from train.tasks.multi_label import MultiLabel
from train.tasks.policy import Policy
from train.tasks.translate import Translate

TASKS = {"classify": Classify, "multi_label": MultiLabel, "gated": Gated, "policy": Policy, "multi_exit": MultiExit}
TEXT_TASKS = {"translate": Translate}


def create(
    config: Any,
    model: Any,
    num_classes: int,
    unit: str = "images",
    label_shape: tuple[int, ...] = (),
    source: str = "",
    to_steps: Callable[[str], int] | None = None,
) -> Any:
    """The task on `unit` that `config` (the section `task`) names, with its arguments: "policy(penalty=5.0)", or
    "my_loss.py:Focal(gamma=2.0)", a subclass of one of these in a file of the user's.

    Args:
      config: the section.
      model: the flax module.
      num_classes: of the data.
      unit: what an example is.
      label_shape: of the data, see `train.data.source.Source`.
      source: data.source, for errors.
      to_steps: durations to steps.

    Raises:
      UserError: for an unknown task or argument, a network or labels that it is not for.
    """
    table = TASKS if unit == "images" else TEXT_TASKS
    task = spec.resolve_one("task.name", config.name, table, model, num_classes, config, to_steps)
    several = bool(label_shape)
    if getattr(task, "multi_label", False) != several:
        kinds = ("one class", "several classes")
        raise UserError(
            f"task.name={config.name} wants {kinds[not several]} an image, but data.source={source} has "
            f"{kinds[several]}" + ("; want task.name=multi_label" if several else "")
        )
    return task

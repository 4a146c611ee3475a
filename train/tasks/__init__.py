"""What is learned. A task owns the loss, the metrics, the prediction and any trained state besides the model's.

A task is an object with
  model                                               the flax module
  init(key, inputs) -> (variables, task_state)        inputs: as `models.initialize` takes them
  loss(params, model_state, task_state, batch, key, step) -> (loss, (metrics, model_state, task_state))
  evaluate(variables, task_state, batch) -> metrics
  predict(variables, batch) -> outputs                one row an example
  headline                                            name of the metric by which "best" is decided (higher is better)
with metrics {name: (sum over examples, weight)}: never a mean, so that they add up over batches and devices.
"""

from typing import Any

from models.errors import choice_error
from train.tasks.classify import Classify
from train.tasks.translate import Translate

TASKS = {"classify": Classify}
TEXT_TASKS = {"translate": Translate}


def create(config: Any, model: Any, num_classes: int, unit: str = "images") -> Any:
    """The task on `unit` that `config` (the section `task`) names; its other keys are the task's arguments.

    Raises:
      UserError: for an unknown task.
    """
    table = TASKS if unit == "images" else TEXT_TASKS
    if config.name not in table:
        raise choice_error("task", config.name, table)
    return table[config.name](model, num_classes, config)

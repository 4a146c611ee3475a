"""The protocol of tasks, and base classes of tasks on images."""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax

import models
from models.errors import UserError
from train.setup.config import Reader

Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum over examples, weight)


class Task(Protocol):
    """A learning task: the loss, the metrics, the prediction, and any state besides the model's.

    Metrics are {name: (sum over examples, weight)} instead of means, so that they add up over batches and devices.

    Attributes:
      model: the flax module.
      headline: name of the metric that decides which checkpoint is best; higher is better.
      multi_label: whether an image can have several classes.
      teacher: a network whose outputs the loss reads, a `train.setup.teacher.Teacher`, once `constants` has opened it.
    """

    model: Any  # nn.Module; families have fields of their own
    headline: str
    multi_label: bool = False
    teacher: Any = None

    def init(self, key: jax.Array, inputs: Any) -> tuple[Any, Any]:
        """Returns the model's variables and the task's state, for `inputs` as `models.initialize` takes them."""
        ...

    def constants(self, feed: Any) -> Any:
        """Returns numpy arrays that the loss reads and nothing changes, such as a teacher's; {} for none.

        They are on every device during training, and in no checkpoint: a run records their digest. Nothing but training
        asks for them.

        Args:
          feed: the data, a `train.data.feed.Feed`.

        Raises:
          UserError: they cannot be read, or do not fit the data.
        """
        del feed
        return {}

    def annotated(self, constants: Any, batch: Any) -> Any:
        """Returns a batch with what the loss reads of the constants, which are not differentiated."""
        del constants
        return batch

    def loss(
        self, params: Any, model_state: Any, task_state: Any, batch: Any, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Any, Any]]:
        """Returns the loss of one device's examples, and (metrics, model_state, task_state) after the step.

        Args:
          params: parameters of the model, float32.
          model_state: other collections of the model, e.g. {"batch_stats": …}.
          task_state: state of the task.
          batch: this device's examples, with "mask" float32 [B], 0 for padding examples.
          key: random key for this device, step, and part of an accumulated batch.
          step: int32 [], number of optimizer steps done.
        """
        ...

    def evaluate(self, variables: Any, task_state: Any, batch: Any) -> Metrics:
        """Returns the metrics of a batch; masked examples do not count."""
        ...

    def predict(self, variables: Any, batch: Any) -> jax.Array:
        """Returns the outputs for a batch, one row per example."""
        ...


class ModelTask(Task):
    """A task that reads label_smoothing from the section `task`, and has no state of its own.

    Keyword arguments of a subclass are the task's arguments in the config; it raises ValueError if they are invalid.

    Args:
      model: the flax module.
      num_classes: number of classes of the data.
      config: the section `task`.
      to_steps: converts durations to steps.
    """

    def __init__(
        self, model: nn.Module, num_classes: int, config: Reader, to_steps: Callable[[str], int] | None = None
    ) -> None:
        del to_steps
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"task.label_smoothing={self.label_smoothing} must be in [0, 1)")

    def init(self, key: jax.Array, inputs: Any) -> tuple[Any, Any]:
        """Returns randomly initialized variables of the model, and the empty state of the task."""
        return models.initialize(self.model, key, inputs), {}


class ImageTask(ModelTask):
    """A task from images to logits."""

    def forward(self, params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        """Returns training logits, float32 [B, num_classes], and the model's next state."""
        return self.model.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )

    def predict(self, variables: Any, batch: Any) -> jax.Array:
        """Returns logits float32 [B, num_classes]."""
        return self.model.apply(variables, batch["image"], train=False)

    def measured(self, logits: jax.Array, batch: Any) -> Metrics:
        """Returns the evaluation metrics of logits."""
        raise NotImplementedError

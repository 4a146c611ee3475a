"""What tasks share: label smoothing, variables; and of those on images, how a batch goes through the network."""

from collections.abc import Callable
from typing import Any

import jax

import models
from models.errors import UserError


class Task:
    """Holds model, num_classes and label_smoothing, for which it reads the section `task`; has no state of its own.

    `to_steps` turns a duration into steps; keywords of a task are its arguments in the config's text.
    """

    def __init__(self, model: Any, num_classes: int, config: Any, to_steps: Callable[[str], int] | None = None):
        del to_steps
        self.model = model
        self.num_classes = num_classes
        self.label_smoothing = config.label_smoothing
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"task.label_smoothing={self.label_smoothing} must be in [0, 1)")

    def init(self, key: jax.Array, inputs: Any) -> tuple[Any, Any]:
        """Variables of the model, and the (empty) state of the task."""
        return models.initialize(self.model, key, inputs), {}


class ImageTask(Task):
    """Images to logits."""

    def forward(self, params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        """Logits float32 [B, num_classes] in training, and the model's next state."""
        return self.model.apply(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )

    def predict(self, variables, batch):
        """Logits float32 [B, num_classes]."""
        return self.model.apply(variables, batch["image"], train=False)

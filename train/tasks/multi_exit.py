"""Classification by networks with several exits (Huang et al. 2018, arXiv 1703.09844)."""

import functools
from typing import Any

import jax.numpy as jnp

from models.analysis import cost
from models.errors import UserError
from models.layers import exit_router
from models.layers.endpoint import capture
from train.setup.config import Reader
from train.tasks.classify import Classify, ranks


@functools.cache
def exit_costs(model: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the multiply-adds up to each exit for one image of this shape."""
    return tuple(exit_router.costs(cost.analyze(model, (1, *shape)), model.num_exits))


class MultiExit(Classify):
    """Classification by every exit; the loss is the sum of the losses of all exits (section 4, "loss functions").

    Metrics are those of the last exit. Training adds "loss_of_exits", the sum; evaluation adds "accuracy_by_exit" and
    "mult_adds_by_exit".
    """

    def __init__(self, model: Any, num_classes: int, config: Reader, to_steps: Any = None):
        if not getattr(model, "num_exits", 0):
            raise UserError(
                "task multi_exit is for networks with exits (msdnet_cifar_anytime, early_exit_resnet62), "
                f"not {type(model).__name__}"
            )
        super().__init__(model, num_classes, config, to_steps)

    def exits(self, variables, images, **options):
        """Returns the output of `model.apply`, and the logits of all exits [B, exits, num_classes]."""
        names = [f"exit{i + 1}" for i in range(self.model.num_exits)]
        output, endpoints = capture(self.model, variables, images, names=names, **options)
        return output, jnp.stack([endpoints[name] for name in names], 1)

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the sum of the losses of all exits; see `Task.loss`."""
        del step
        (_, model_state), logits = self.exits(
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        losses, metrics = zip(*(self.scored(logits[:, i], batch) for i in range(logits.shape[1])), strict=True)
        total = sum(losses, jnp.zeros(()))
        return total, (
            {**metrics[-1], "loss_of_exits": (total * len(logits), metrics[-1]["loss"][1])},
            model_state,
            task_state,
        )

    def evaluate(self, variables, task_state, batch):
        """Returns the metrics of the last exit, and accuracy and cost by exit."""
        del task_state
        _, logits = self.exits(variables, batch["image"])
        right = ranks(logits, jnp.repeat(batch["label"][:, None], logits.shape[1], 1)) == 0  # [B, exits]
        weight = jnp.full(right.shape[1], jnp.sum(batch["mask"]))
        spent = jnp.asarray(exit_costs(self.model, batch["image"].shape[1:]), jnp.float32)
        return {
            **self.measured(logits[:, -1], batch),
            "accuracy_by_exit": (batch["mask"] @ right, weight),
            "mult_adds_by_exit": (spent * weight, weight),
        }

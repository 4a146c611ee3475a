"""Classification: softmax cross-entropy with label smoothing, top-1 and top-5."""

import jax
import jax.numpy as jnp
import optax

from models.errors import choice_error
from train.tasks.base import ImageTask
from train.tasks.views import VIEWS, averaged


class Classify(ImageTask):
    """One label an image; or, where mixup or cutmix made them, a distribution over the classes ("target").

    What it predicts is averaged over `views` of each image (views.py). UserError for others.
    """

    headline = "accuracy"

    def __init__(self, model, num_classes, config, to_steps=None, views: str = "one"):
        super().__init__(model, num_classes, config, to_steps)
        if views not in VIEWS:
            raise choice_error("views of a task", views, VIEWS)
        self.views = views

    def loss(self, params, model_state, task_state, batch, key, step):
        """Mean cross-entropy over this device's examples; see `train.tasks`."""
        del step
        logits, model_state = self.forward(params, model_state, batch, key)
        loss, metrics = self.scored(logits, batch)
        return loss, (metrics, model_state, task_state)

    def scored(self, logits, batch):
        """Of logits in training: the loss, and its metrics."""
        target = batch.get("target")
        if target is None:
            target = jax.nn.one_hot(batch["label"], self.num_classes)
        losses = self.losses(logits, optax.smooth_labels(target, self.label_smoothing))
        total, weight = jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])
        correct = (jnp.argmax(logits, -1) == jnp.argmax(target, -1)) * batch["mask"]
        # Divided by the full share, not by the weight: every device's mean then counts the same in the global mean.
        return total / losses.shape[0], {"loss": (total, weight), "accuracy": (jnp.sum(correct), weight)}

    def losses(self, logits, target):
        """The loss in training of each example, [B]: target [B, num_classes] is a distribution over the classes."""
        return optax.softmax_cross_entropy(logits, target)

    def evaluate(self, variables, task_state, batch):
        """Top-1, top-5 and loss, and by class the examples that are right, [num_classes]; masked rows count nothing."""
        del task_state
        return self.measured(self.predict(variables, batch), batch)

    def predict(self, variables, batch):
        """Logits float32 [B, num_classes]."""

        def logits(images):
            return super(Classify, self).predict(variables, {"image": images})

        return averaged(logits, batch["image"], self.views)

    def measured(self, logits, batch):
        """The metrics of logits in evaluation."""
        mask, label = batch["mask"], batch["label"]
        by_class = jax.nn.one_hot(label, self.num_classes) * mask[:, None]  # [B, num_classes]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        rank, weight = ranks(logits, label), jnp.sum(mask)
        return {
            "loss": (jnp.sum(losses * mask), weight),
            "accuracy": (jnp.sum((rank == 0) * mask), weight),
            "top5": (jnp.sum((rank < 5) * mask), weight),
            "accuracy_by_class": ((rank == 0).astype(jnp.float32) @ by_class, jnp.sum(by_class, 0)),
        }


def ranks(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Of the true class, 0 the first: logits [..., num_classes], label [...]. Ties count against it: a network of equal
    logits is right by no luck of order.
    """
    own = jnp.take_along_axis(logits, label[..., None], -1)
    return jnp.sum(~(logits < own), -1) - 1  # so written that NaN ranks last

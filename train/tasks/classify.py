"""Classification: softmax or binary cross-entropy with label smoothing, top-1 and top-5."""

import jax
import jax.numpy as jnp
import optax

from models.errors import choice_error, has_type
from train.tasks.base import ImageTask
from train.tasks.views import VIEWS, averaged

LOSSES = ("cross_entropy", "bce")


class Classify(ImageTask):
    """Classification with one label per image, or with a distribution over classes ("target", by mixup or cutmix).

    Predictions are averaged over `views` of each image (views.py).

    With loss="bce", each class is a question of its own, and the loss is the mean of the binary cross-entropies over
    the classes (Wightman 2021, "ResNet strikes back", arXiv 2110.00476, section 3). A mixed image has each class whose
    share of it exceeds `threshold`: both of them at 0, as in the paper's text. None takes the shares themselves as
    targets, as timm does without a threshold. Smoothing comes last, so that a threshold does not undo it (in timm, it
    comes first). The loss in evaluation is of the same kind.
    """

    headline = "accuracy"

    def __init__(
        self,
        model,
        num_classes,
        config,
        to_steps=None,
        views: str = "one",
        loss: str = "cross_entropy",
        threshold: float | None = 0.0,
    ):
        super().__init__(model, num_classes, config, to_steps)
        if views not in VIEWS:
            raise choice_error("views of a task", views, VIEWS)
        if loss not in LOSSES:
            raise choice_error("loss of a task", loss, LOSSES)
        if threshold is not None and not (has_type(threshold, float) and 0 <= threshold < 1):
            raise ValueError(f"threshold={threshold} must be in [0, 1), or None")
        if threshold != 0 and loss != "bce":
            raise ValueError(f"threshold={threshold} is for loss=bce")
        self.views = views
        self._binary, self._threshold = loss == "bce", threshold

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the mean cross-entropy over this device's examples; see `Task.loss`."""
        del step
        logits, model_state = self.forward(params, model_state, batch, key)
        loss, metrics = self.scored(logits, batch)
        return loss, (metrics, model_state, task_state)

    def scored(self, logits, batch):
        """Returns the loss of training logits, and its metrics."""
        targets = batch.get("target")
        if targets is None:
            targets = jax.nn.one_hot(batch["label"], self.num_classes)
        present = targets
        if self._binary and self._threshold is not None:
            present = (targets > self._threshold).astype(jnp.float32)
        losses = self.losses(logits, optax.smooth_labels(present, self.label_smoothing))
        total, weight = jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])
        correct = (jnp.argmax(logits, -1) == jnp.argmax(targets, -1)) * batch["mask"]
        # Divided by the number of rows, which is equal on all devices, and not by the weight. So all unmasked examples
        # count equally in the mean over devices.
        return total / losses.shape[0], {"loss": (total, weight), "accuracy": (jnp.sum(correct), weight)}

    def losses(self, logits, targets):
        """Returns the training loss of each example, [B], for targets of the classes [B, num_classes]."""
        if self._binary:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), -1)
        return optax.softmax_cross_entropy(logits, targets)

    def evaluate(self, variables, task_state, batch):
        """Returns loss, top-1, top-5 (of more than five classes), and the accuracy of each class [num_classes].

        Masked rows do not count.
        """
        del task_state
        return self.measured(self.predict(variables, batch), batch)

    def predict(self, variables, batch):
        """Returns logits float32 [B, num_classes], averaged over the views."""

        def logits(images):
            return super(Classify, self).predict(variables, {"image": images})

        return averaged(logits, batch["image"], self.views)

    def measured(self, logits, batch):
        """Returns the evaluation metrics of logits."""
        mask, labels = batch["mask"], batch["label"]
        by_class = jax.nn.one_hot(labels, self.num_classes) * mask[:, None]  # [B, num_classes]
        if self._binary:
            losses = self.losses(logits, jax.nn.one_hot(labels, self.num_classes))
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        rank, weight = ranks(logits, labels), jnp.sum(mask)
        top5 = {"top5": (jnp.sum((rank < 5) * mask), weight)} if self.num_classes > 5 else {}
        return {
            "loss": (jnp.sum(losses * mask), weight),
            "accuracy": (jnp.sum((rank == 0) * mask), weight),
            **top5,
            "accuracy_by_class": ((rank == 0).astype(jnp.float32) @ by_class, jnp.sum(by_class, 0)),
        }


def ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the rank of the true class, 0 for the highest logit: logits [..., num_classes], labels [...].

    Ties count against the true class, so that a network whose logits are all equal is not right by chance.
    """
    own = jnp.take_along_axis(logits, labels[..., None], -1)
    return jnp.sum(~(logits < own), -1) - 1  # in this form, NaN ranks last

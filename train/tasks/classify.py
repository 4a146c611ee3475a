"""Classification: softmax cross-entropy with label smoothing, top-1 and top-5."""

import jax
import jax.numpy as jnp
import optax

from train.tasks.base import ImageTask


class Classify(ImageTask):
    """One label an image; or, where mixup or cutmix made them, a distribution over the classes ("target")."""

    headline = "accuracy"

    def loss(self, params, model_state, task_state, batch, key, step):
        """Mean cross-entropy over this device's examples; see `train.tasks`."""
        del step
        logits, model_state = self.forward(params, model_state, batch, key)
        target = batch.get("target")
        if target is None:
            target = jax.nn.one_hot(batch["label"], self.num_classes)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(target, self.label_smoothing))
        total, weight = jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])
        correct = (jnp.argmax(logits, -1) == jnp.argmax(target, -1)) * batch["mask"]
        metrics = {"loss": (total, weight), "accuracy": (jnp.sum(correct), weight)}
        # Divided by the full share, not by the weight: every device's mean then counts the same in the global mean.
        return total / losses.shape[0], (metrics, model_state, task_state)

    def evaluate(self, variables, task_state, batch):
        """Top-1, top-5 and loss, and by class the examples that are right, [num_classes]; masked rows count nothing."""
        del task_state
        logits = self.predict(variables, batch)
        mask, label = batch["mask"], batch["label"]
        by_class = jax.nn.one_hot(label, self.num_classes) * mask[:, None]  # [B, num_classes]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        # Rank of the true class, ties counted against it: a network of equal logits is right by no luck of order.
        own = jnp.take_along_axis(logits, label[:, None], -1)
        rank = jnp.sum(~(logits < own), -1) - 1  # so written that NaN ranks last
        weight = jnp.sum(mask)
        return {
            "loss": (jnp.sum(losses * mask), weight),
            "accuracy": (jnp.sum((rank == 0) * mask), weight),
            "top5": (jnp.sum((rank < 5) * mask), weight),
            "accuracy_by_class": ((rank == 0).astype(jnp.float32) @ by_class, jnp.sum(by_class, 0)),
        }

"""Several classes an image: a sigmoid and its cross-entropy for every class on its own."""

import jax.numpy as jnp
import optax

from train.tasks.base import ImageTask


class MultiLabel(ImageTask):
    """Labels [B, num_classes] of 1 present, 0 absent, -1 not counted (`train.data.source.Source.label_shape`).

    Label smoothing s makes 1 - s / 2 of a 1 and s / 2 of a 0.
    """

    headline = "hit"
    multi_label = True

    def loss(self, params, model_state, task_state, batch, key, step):
        """Cross-entropy, the mean over an image's counted classes and over this device's images; see `train.tasks`."""
        del step
        logits, model_state = self.forward(params, model_state, batch, key)
        metrics = self.measured(logits, batch, self.label_smoothing)
        # Divided by the full share, not by the weight: every device's mean then counts the same in the global mean.
        return metrics["loss"][0] / len(logits), (metrics, model_state, task_state)

    def evaluate(self, variables, task_state, batch):
        """Loss without smoothing, and "hit", the share of images whose highest score among the counted classes is that
        of a class that is present (an image without any is none); masked rows count nothing.
        """
        del task_state
        return self.measured(self.predict(variables, batch), batch)

    def measured(self, logits, batch, smoothing=0.0):
        """The metrics of logits."""
        label, mask = batch["label"], batch["mask"]
        counted = label >= 0  # [B, C]
        target = (label == 1) * (1 - smoothing) + smoothing / 2
        losses = optax.sigmoid_binary_cross_entropy(logits, target)
        # What is left out is selected away, not multiplied by 0, which keeps what is not finite.
        losses = jnp.sum(jnp.where(counted, losses, 0), -1) / jnp.maximum(jnp.sum(counted, -1), 1)  # [B, C] -> [B]
        # Ties count against it, and so does NaN: a network of equal scores is right by no luck of order.
        present = jnp.max(jnp.where(label == 1, logits, -jnp.inf), -1)
        absent = jnp.max(jnp.where(label == 0, logits, -jnp.inf), -1)
        weight = jnp.sum(mask)
        return {"loss": (jnp.sum(losses * mask), weight), "hit": (jnp.sum((present > absent) * mask), weight)}

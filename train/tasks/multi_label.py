"""Classification with several classes per image: sigmoid cross-entropy of each class."""

import jax.numpy as jnp
import optax

from train.tasks.base import ImageTask


class MultiLabel(ImageTask):
    """Multi-label classification: labels [B, num_classes] are 1 (present), 0 (absent) or -1 (ignored).

    Label smoothing s replaces 1 by 1 - s / 2, and 0 by s / 2.
    """

    headline = "hit"
    multi_label = True

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the cross-entropy, averaged over the counted classes of each image and over images."""
        del step
        logits, model_state = self.forward(params, model_state, batch, key)
        metrics = self.measured(logits, batch, self.label_smoothing)
        # Divided by the number of rows, which is equal on all devices, and not by the weight. So all unmasked examples
        # count equally in the mean over devices.
        return metrics["loss"][0] / len(logits), (metrics, model_state, task_state)

    def evaluate(self, variables, task_state, batch):
        """Returns the loss without smoothing, and "hit"; masked rows do not count.

        "hit" is the share of images whose highest score among counted classes belongs to a class that is present. An
        image without classes is never a hit.
        """
        del task_state
        return self.measured(self.predict(variables, batch), batch)

    def measured(self, logits, batch, smoothing=0.0):
        """Returns the metrics of logits."""
        labels, mask = batch["label"], batch["mask"]
        counted = labels >= 0  # [B, C]
        targets = (labels == 1) * (1 - smoothing) + smoothing / 2
        losses = optax.sigmoid_binary_cross_entropy(logits, targets)
        # Ignored losses are selected away, because multiplying them by 0 would keep NaN and infinity.
        losses = jnp.sum(jnp.where(counted, losses, 0), -1) / jnp.maximum(jnp.sum(counted, -1), 1)  # [B, C] -> [B]
        # Ties count against the network, and so does NaN, so that equal scores are not right by chance.
        present = jnp.max(jnp.where(labels == 1, logits, -jnp.inf), -1)
        absent = jnp.max(jnp.where(labels == 0, logits, -jnp.inf), -1)
        weight = jnp.sum(mask)
        return {"loss": (jnp.sum(losses * mask), weight), "hit": (jnp.sum((present > absent) * mask), weight)}

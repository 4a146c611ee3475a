"""Translation (Vaswani et al. 2017): cross-entropy of each next token with label smoothing; decoded by beam search."""

from typing import Any

import jax
import jax.numpy as jnp

from models.decoding import beam_search, greedy
from models.errors import UserError
from models.transformer import PAD, Transformer
from train.tasks.base import ModelTask

LONGER = 50  # tokens by which a translation may be longer than its source (section 6.1)


class Translate(ModelTask):
    """Pairs of sentences, batches as `train.data.text_feed.TextFeed` makes them."""

    headline = "accuracy"

    def __init__(self, model: Any, num_classes: int, config: Any, to_steps: Any = None):
        if not isinstance(model, Transformer):
            raise UserError(f"task translate is for encoder-decoders (transformer_base), not {type(model).__name__}")
        super().__init__(model, num_classes, config, to_steps)

    def loss(self, params, model_state, task_state, batch, key, step):
        """Cross-entropy over this device's target tokens, by token of the global batch; see `train.tasks`."""
        del step
        logits, model_state = self.model.apply(
            {"params": params, **model_state},
            batch["source"],
            batch["target"][:, :-1],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        losses, metrics = self._measured(logits, batch, self.label_smoothing)
        # Not by this share's own number of tokens: the mean of all shares' losses is then that of all tokens.
        return jnp.sum(losses / batch["tokens"][:, None]) / len(losses), (metrics, model_state, task_state)

    def evaluate(self, variables, task_state, batch):
        """Loss without smoothing (the logarithm of the perplexity) and accuracy, by token of the reference."""
        del task_state
        logits = self.model.apply(variables, batch["source"], batch["target"][:, :-1], train=False)
        return self._measured(logits, batch, 0.0)[1]

    def _measured(self, logits, batch, smoothing):
        """Losses of tokens [B, T], 0 for padding; metrics."""
        label = batch["target"][:, 1:]  # [B, T]
        weight = (label != PAD) * batch["mask"][:, None]
        total = jax.nn.logsumexp(logits, -1)  # [B, T, V] -> [B, T]
        own = jnp.take_along_axis(logits, label[..., None], -1)[..., 0]
        # Against (1 - smoothing) on the label and smoothing / V on every token, without making that distribution.
        losses = (total - (1 - smoothing) * own - smoothing * logits.mean(-1)) * weight
        # Right is what is above all others: a network of equal logits is right by no luck of order.
        right = (jnp.sum(~(logits < own[..., None]), -1) == 1) * weight
        count = jnp.sum(weight)
        return losses, {"loss": (jnp.sum(losses), count), "accuracy": (jnp.sum(right), count)}

    def predict(self, variables, batch):
        """Greedy translations, int32 [B, L], PAD after their EOS."""
        return self.translate(variables, batch["source"])

    def translate(self, variables: Any, source: jax.Array, beams: int = 1) -> jax.Array:
        """Translations of source [N, S]: int32 [N, min(S + LONGER, max_length)]; by beam search where beams > 1."""
        length = min(source.shape[1] + LONGER, self.model.max_length)
        if beams == 1:
            return greedy(self.model, variables, source, length=length)
        return beam_search(self.model, variables, source, length=length, beams=beams)[0][:, 0]

"""Translation (Vaswani et al. 2017): cross-entropy of each next token with label smoothing; decoded by beam search."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import beam_search, greedy
from models.errors import UserError
from models.transformer import PAD, Transformer
from train.setup.config import Reader
from train.tasks.base import ModelTask

LONGER = 50  # tokens by which a translation may be longer than its source (section 6.1)


class Translate(ModelTask):
    """Translation of pairs of sentences, in batches of `train.data.text_feed.TextFeed`."""

    headline = "accuracy"

    def __init__(self, model: Any, num_classes: int, config: Reader, to_steps: Any = None):
        if not isinstance(model, Transformer):
            raise UserError(f"task translate is for encoder-decoders (transformer_base), not {type(model).__name__}")
        super().__init__(model, num_classes, config, to_steps)

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the cross-entropy of this device's target tokens, per token of the global batch; see `Task.loss`."""
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
        # Not divided by this device's number of tokens, so that the mean over devices is the mean over all tokens
        return jnp.sum(losses / batch["tokens"][:, None]) / len(losses), (metrics, model_state, task_state)

    def evaluate(self, variables, task_state, batch):
        """Returns loss without smoothing (the logarithm of the perplexity) and accuracy, per reference token."""
        del task_state
        logits = self.model.apply(variables, batch["source"], batch["target"][:, :-1], train=False)
        return self._measured(logits, batch, 0.0)[1]

    def _measured(self, logits, batch, smoothing):
        """Returns the losses of tokens [B, T], 0 for padding, and the metrics."""
        labels = batch["target"][:, 1:]  # [B, T]
        weight = (labels != PAD) * batch["mask"][:, None]
        total = jax.nn.logsumexp(logits, -1)  # [B, T, V] -> [B, T]
        own = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
        # Cross-entropy with 1 - smoothing on the label plus smoothing / V on every token, without that distribution
        losses = (total - (1 - smoothing) * own - smoothing * logits.mean(-1)) * weight
        # The label's logit must exceed all others, so that a network whose logits are all equal is not right by chance.
        right = (jnp.sum(~(logits < own[..., None]), -1) == 1) * weight
        count = jnp.sum(weight)
        return losses, {"loss": (jnp.sum(losses), count), "accuracy": (jnp.sum(right), count)}

    def predict(self, variables, batch):
        """Returns greedy translations, int32 [B, L], with PAD after EOS."""
        return self.translate(variables, batch["source"])

    def translate(self, variables: Any, source: jax.Array | np.ndarray, beams: int = 1) -> jax.Array:
        """Translates source [N, S] to int32 [N, min(S + LONGER, max_length)], by beam search if beams > 1."""
        source = jnp.asarray(source)
        length = min(source.shape[1] + LONGER, self.model.max_length)
        if beams == 1:
            return greedy(self.model, variables, source, length=length)
        return beam_search(self.model, variables, source, length=length, beams=beams)[0][:, 0]

"""ConvNet-AIG (Veit & Belongie 2018, arXiv 1711.11503): classification with gates that skip blocks for some images."""

import functools
from typing import Any

import jax.numpy as jnp

from models.analysis.cost import analyze
from models.errors import UserError
from models.gated import Adaptive, Costs, GatedResNet, costs, gates
from train.setup.config import Reader
from train.tasks.classify import Classify


@functools.cache
def block_costs(model: Adaptive, shape: tuple[int, ...]) -> Costs:
    """Returns the costs of a network and its blocks for one image of this shape."""
    return costs(model, analyze(model, (1, *shape)))


class Skipping(Classify):
    """Classification by a network that skips blocks.

    It has these metrics besides those of `Classify`:

    blocks              average number of blocks computed per image
    average_mult_adds   average number of multiply-adds per image
    gate_rates          the share of images for which each block is computed, in the order of the blocks
    """

    def used(self, computed, batch):
        """Returns the metrics above of `computed` [B, blocks], 1 where a block was computed for an image."""
        cost = block_costs(self.model, batch["image"].shape[1:])
        spent = cost.always + cost.deciding + jnp.sum(computed * jnp.asarray(cost.blocks, jnp.float32), -1)
        mask, weight = batch["mask"], jnp.sum(batch["mask"])
        return {
            "blocks": (jnp.sum(computed * mask[:, None]), weight),
            "average_mult_adds": (jnp.sum(spent * mask), weight),
            "gate_rates": (jnp.sum(computed * mask[:, None], 0), jnp.full(computed.shape[1], weight)),
        }

    def decided(self, variables, task_state, images):
        """Returns logits [B, num_classes], and which blocks were computed [B, blocks], without sampling."""
        del task_state
        return gates(self.model, variables, images)

    def evaluate(self, variables, task_state, batch):
        """Returns the metrics of `Classify` and of `used`."""
        logits, computed = self.decided(variables, task_state, batch["image"])
        return {**self.measured(logits, batch), **self.used(computed, batch)}


class Gated(Skipping):
    """Classification with a loss for the rates of gates.

    The loss is that of classification plus `weight` times the mean, over blocks, of the squared difference between the
    block's target rate and the share of images for which it is computed (equation 5). The share is over one device's
    images or, with accumulate, over one part of them. The mean and the weight follow the authors' code (2 on CIFAR, 1
    on ImageNet); the paper has a sum without a weight.
    """

    def __init__(self, model: Any, num_classes: int, config: Reader, to_steps: Any = None, *, weight: float = 2.0):
        if not isinstance(model, GatedResNet):
            raise UserError(f"task gated is for networks with gates (convnet_aig110), not {type(model).__name__}")
        if weight < 0:
            raise ValueError(f"weight={weight} must be at least 0")
        super().__init__(model, num_classes, config, to_steps)
        self._weight = weight

    def loss(self, params, model_state, task_state, batch, key, step):
        """Returns the classification loss plus the weighted loss of the gate rates; see `Task.loss`."""
        del step
        (logits, model_state), computed = gates(
            self.model,
            {"params": params, **model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        loss, metrics = self.scored(logits, batch)
        mask, weight = batch["mask"], jnp.sum(batch["mask"])
        shares = mask @ computed / jnp.maximum(weight, 1)  # [blocks]; 1 where there is no gate
        apart = jnp.mean((shares - jnp.asarray(self.model.block_rates)) ** 2)
        metrics |= {"rate_loss": (apart * weight, weight), "blocks": (jnp.sum(shares) * weight, weight)}
        return loss + self._weight * apart, (metrics, model_state, task_state)

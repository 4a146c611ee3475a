"""Batch norm for test time: means and variances recomputed over the training set and stored (Ioffe 2015, alg. 2)."""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import UserError


def recalibrate_batch_norm(model: nn.Module, variables: Any, images: Iterable[jax.Array]) -> Any:
    """Replaces running averages by the moments of the whole of `images` under the final weights.

    Every batch passes through the network as in training (normalized by its own statistics). The moments of its
    activations are averaged over batches by their size, and the variance is that of all values together, the spread
    of the batch means included: mean of squares minus square of the mean.

    Args:
      model: any module with batch norm.
      variables: {"params", "batch_stats", …}.
      images: batches [N, H, W, C], normalized as in training.
    Returns:
      `variables` with new "batch_stats".
    Raises:
      UserError: the network has no batch norm, or there are no images.
    """
    if not jax.tree.leaves(variables.get("batch_stats", {})):
        raise UserError("recalibrate_batch_norm: this network has no batch norm (norm=batch)")

    @jax.jit
    def moments(variables, images):
        _, updated = model.apply(variables, images, train=True, mutable=["batch_moments"],
                                 rngs={"dropout": jax.random.key(0)})
        return updated["batch_moments"]

    total, weight = None, 0
    for batch in images:
        size = batch.shape[0]
        found = jax.tree.map(lambda x: x * size, moments(variables, jnp.asarray(batch)))
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        weight += size
    if total is None:
        raise UserError("recalibrate_batch_norm: no images")
    means = jax.tree.map(lambda x: x / weight, total)

    def stored(moments, old):
        if "mean" in old:
            mean, square = moments["mean"], moments["square"]
            return {"mean": mean, "var": jnp.maximum(square - mean**2, 0)}
        return {name: stored(moments[name], old[name]) for name in old}

    return {**variables, "batch_stats": stored(means, variables["batch_stats"])}

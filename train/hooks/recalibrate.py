"""Recalibration of batch norm: means and variances recomputed over the training set (Ioffe 2015, algorithm 2)."""

from collections.abc import Iterable
from typing import Any, cast

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from models.errors import UserError
from train.data.image_feed import ImageFeed, as_images
from train.run import Hook, Run
from train.state import TrainState


class Recalibrate(Hook):
    """Batch-norm statistics over `batches` training batches, by default one epoch of unaugmented images.

    Batch norm sees as many images at a time as in training: one device's share of a batch (the whole batch with
    model.sync_norm), divided by `accumulate`.
    """

    def __init__(self, batches: int = 0):
        if batches < 0:
            raise ValueError(f"batches={batches} must be 0 (an epoch) or more")
        self._batches = batches

    def check(self, run: Run) -> None:
        if "batch_stats" not in run.state.model_state or not isinstance(run.feed, ImageFeed):
            raise UserError("hooks: recalibrate is for networks with batch norm (model.norm=batch) on images")

    def at_end(self, run: Run, state: TrainState) -> TrainState:
        host, feed = run.parallel.fetch(state), as_images(run.feed)
        batch_size = run.config["batch_size"]
        devices = 1 if getattr(run.model, "sync_norm", False) else len(run.parallel.devices)
        part = batch_size // devices // run.config["accumulate"]
        count = self._batches * (batch_size // part) or -(-len(feed.train) // part)

        def recalibrated(variables):
            fresh = recalibrate_batch_norm(run.model, variables, feed.training_images(count, part))
            return {name: value for name, value in fresh.items() if name != "params"}

        host = host.replace(model_state=recalibrated(host.variables()))
        if host.ema:
            host = host.replace(ema={**host.ema, "model_state": recalibrated(host.evaluation_variables())})
        return run.parallel.place(host)


def recalibrate_batch_norm(model: nn.Module, variables: Any, images: Iterable[jax.Array]) -> Any:
    """Replaces running averages by the moments of all `images` under the final weights.

    Each batch passes through the network as in training, normalized by its own statistics. Means and variances of
    activations are averaged over batches, weighted by their sizes. The variance of the batch means is added, so that
    the result is the variance of all values together.

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
        _, updated = model.apply(
            variables, images, train=True, mutable=["batch_moments"], rngs={"dropout": jax.random.key(0)}
        )
        return updated["batch_moments"]

    mean = variance = between = None
    weight = 0
    for batch in images:
        batch_moments = moments(variables, jnp.asarray(batch))
        means, variances = _named(batch_moments, "mean"), _named(batch_moments, "var")
        weight += batch.shape[0]
        share = batch.shape[0] / weight
        if mean is None:
            mean, variance, between = means, variances, jax.tree.map(jnp.zeros_like, means)
            continue
        # Welford's update with weights, which avoids differences of large numbers
        between = jax.tree.map(lambda b, m, new: (1 - share) * (b + share * (new - m) ** 2), between, mean, means)
        mean = jax.tree.map(lambda m, new: m + share * (new - m), mean, means)
        variance = jax.tree.map(lambda v, new: v + share * (new - v), variance, variances)
    if mean is None:
        raise UserError("recalibrate_batch_norm: there are no images to compute statistics of")
    variance = jax.tree.map(jnp.add, variance, between)
    stats = {
        **{(*path, "mean"): value for path, value in mean.items()},
        **{(*path, "var"): value for path, value in variance.items()},
    }
    return {**variables, "batch_stats": flax.traverse_util.unflatten_dict(stats)}


def _named(tree: Any, name: str) -> dict[tuple[str, ...], jax.Array]:
    """Returns the leaves called `name`, by the path of their module."""
    leaves = cast(dict[tuple[str, ...], jax.Array], flax.traverse_util.flatten_dict(tree))
    return {path[:-1]: leaf for path, leaf in leaves.items() if path[-1] == name}

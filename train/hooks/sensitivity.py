"""Sensitivity of a trained network to pruning, layer by layer (Han 2015, figure 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models.compress.prune import keep, scores
from models.errors import UserError
from models.layers.endpoint import order
from train.data.image_feed import as_images
from train.hooks.figures import picture
from train.optim.parameters import named, put
from train.run import Hook, Network, Run
from train.state import TrainState
from train.storage.files import write_json

SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class Sensitivity(Hook):
    """Accuracy on `images` training images after pruning the smallest weights of a single layer, without retraining.

    Writes sensitivity.json, which optimizer.prune can use to distribute sparsity over the layers, and sensitivity.png.
    """

    def __init__(self, images: int = 1000):
        if images < 1:
            raise ValueError(f"images={images} must be 1 or more")
        self._images = images
        self._results: dict[str, Any] = {}

    def check(self, run: Run) -> None:
        as_images(run.feed, "hooks: sensitivity is for networks that classify images")
        if run.feed.label_shape:
            raise UserError("hooks: sensitivity is for networks that classify images")

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        self._results = measure(run, state.evaluation_variables(), state.task_state, self._images, SPARSITIES)
        return {}

    def finished(self, run: Run, state: TrainState, folder: Path) -> None:
        from train.plots import figures

        write_json(folder / "sensitivity.json", self._results)
        with picture(folder / "sensitivity.png"):
            figures.sensitivity(self._results, folder / "sensitivity.png")


def measure(
    network: Network, variables: Any, task_state: Any, images: int, sparsities: Sequence[float]
) -> dict[str, Any]:
    """Measures accuracy on training images while the smallest weights of one kernel at a time are pruned.

    Args:
      network: a network that classifies images.
      variables: variables of the model.
      task_state: state of the task.
      images: number of training images.
      sparsities: shares of a kernel's weights to prune.

    Returns:
      {"whole": accuracy of the unpruned network, "layers": {kernel: {"sparsity": […], "accuracy": […]}}}.
    """
    batch, params = as_images(network.feed).examples(images), variables["params"]
    size, count = network.config["eval_batch_size"], len(batch["label"])
    parts = [jax.tree.map(lambda x, i=i: x[i : i + size], batch) for i in range(0, count, size)]
    leaves = named(params)

    @jax.jit
    def correct(params, batch):
        return network.task.evaluate({**variables, "params": params}, task_state, batch)["accuracy"][0]

    def accuracy(params):
        return sum(float(correct(params, part)) for part in parts) / count

    def without(name, share):
        mask = keep(scores("magnitude", {name: leaves[name]}, {}, {}), share)[name]
        return accuracy(put(params, {name: np.where(mask, leaves[name], 0)}))

    layers = (f"{layer}/kernel" for layer in order(network.model, variables, parts[0]["image"]))
    return {
        "whole": accuracy(params),
        "layers": {
            name: {"sparsity": list(sparsities), "accuracy": [without(name, share) for share in sparsities]}
            for name in layers
            if name in leaves
        },
    }

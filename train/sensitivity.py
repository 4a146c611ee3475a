"""How much each layer can spare: measured on a trained network, and read back where pruning goes by it.

{"whole": accuracy of the network as it is, "layers": {kernel: {"sparsity": […], "accuracy": […]}}}
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from models.compress.prune import keep, scores
from models.errors import UserError, has_type
from models.layers.endpoint import order
from train.parameters import named, put


def measure(run: Any, variables: Any, task_state: Any, images: int, sparsities: Sequence[float]) -> dict[str, Any]:
    """Accuracy without the smallest weights of one kernel after another, on training images, as above."""
    batch, params = run.feed.examples(images), variables["params"]
    size, count = run.config["eval_batch_size"], len(batch["label"])
    parts = [jax.tree.map(lambda x, i=i: x[i:i + size], batch) for i in range(0, count, size)]
    leaves = named(params)

    @jax.jit
    def correct(params, batch):
        return run.task.evaluate({**variables, "params": params}, task_state, batch)["accuracy"][0]

    def accuracy(params):
        return sum(float(correct(params, part)) for part in parts) / count

    def without(name, share):
        mask = keep(scores("magnitude", {name: leaves[name]}, {}, {}), share)[name]
        return accuracy(put(params, {name: np.where(mask, leaves[name], 0)}))

    layers = (f"{layer}/kernel" for layer in order(run.task.model, variables, parts[0]["image"]))
    return {"whole": accuracy(params), "layers": {
        name: {"sparsity": list(sparsities), "accuracy": [without(name, share) for share in sparsities]}
        for name in layers if name in leaves}}


def read(path: str) -> dict[str, Any]:
    """What a file holds; UserError where it cannot be read or is none."""
    try:
        with open(path) as file:
            found = json.load(file)
    except OSError as error:
        raise UserError(f"optimizer.prune: by='{path}' cannot be read: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("layers"), dict) or not has_type(
            found.get("whole"), float):
        raise UserError(f"optimizer.prune: by='{path}' is no file of the hook sensitivity, with 'layers' and 'whole'")
    return found

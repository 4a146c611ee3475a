"""How much each layer can spare: measured on a trained network, and read back where pruning goes by it.

{"whole": accuracy of the network as it is, "layers": {kernel: {"sparsity": […], "accuracy": […]}}}
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from models.compress.prune import keep, scores
from models.errors import UserError
from models.layers.endpoint import order
from train.files import expanded, read_json
from train.parameters import named, put

_NUMBERS = {"type": "array", "items": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["whole", "layers"],
    "properties": {
        "whole": {"type": "number"},
        "layers": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["sparsity", "accuracy"],
                "properties": {"sparsity": _NUMBERS, "accuracy": _NUMBERS},
            },
        },
    },
}


def measure(run: Any, variables: Any, task_state: Any, images: int, sparsities: Sequence[float]) -> dict[str, Any]:
    """Accuracy without the smallest weights of one kernel after another, on training images, as above."""
    batch, params = run.feed.examples(images), variables["params"]
    size, count = run.config["eval_batch_size"], len(batch["label"])
    parts = [jax.tree.map(lambda x, i=i: x[i : i + size], batch) for i in range(0, count, size)]
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
    return {
        "whole": accuracy(params),
        "layers": {
            name: {"sparsity": list(sparsities), "accuracy": [without(name, share) for share in sparsities]}
            for name in layers
            if name in leaves
        },
    }


def read(path: str) -> dict[str, Any]:
    """Returns what a file of the hook sensitivity holds; raises UserError where it is damaged or something else."""
    try:
        return read_json(expanded(path), SCHEMA)
    except UserError as error:
        raise UserError(f"optimizer.prune: by='{path}' is not a file of the hook sensitivity: {error}") from None

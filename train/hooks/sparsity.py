"""Sparsity of a pruned network."""

from typing import Any

from models.compress.prune import sparsity
from models.errors import UserError
from train.optim import pruning
from train.optim.parameters import KERNELS, named, pattern
from train.run import Hook, Run
from train.state import TrainState


class Sparsity(Hook):
    """The sparsity that optimizer.prune has reached.

    "sparsity" is the share of zeros among the weights that may be pruned, "sparsity_by_layer" the same per layer, with
    0 for kernels that stay dense.
    """

    def check(self, run: Run) -> None:
        if not pruning.masks_of(run.state.opt_state):
            raise UserError("hooks: sparsity is for runs with optimizer.prune")

    def measure(self, run: Run, state: TrainState) -> dict[str, Any]:
        by_layer = sparsity(pruning.masks_of(state.opt_state))
        dense = dict.fromkeys(named(state.params, pattern(KERNELS)), 0.0)
        return {"sparsity": by_layer.pop("all"), "sparsity_by_layer": dense | by_layer}

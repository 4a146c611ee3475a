"""A training state sharded over the devices that share a batch: ZeRO stage 3 (Rajbhandari 2020, arXiv 1910.02054), also
known as fully sharded data parallelism.

Every large leaf of the state (parameters, their average, the optimizer's) is cut along one axis, a part a device. In
the per-device part of a step a parameter is gathered just before use, and the transpose of that is a reduce-scatter of
its gradient; the backward pass gathers again rather than keep whole parameters. The optimizer works on global arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"
SMALLEST = 1024  # elements of a leaf that is worth cutting: below, a message costs more than the memory
_WHOLE = "whole parameter"


class Shards:
    """Which part of a leaf is on which device of a mesh with the one axis "batch"."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh

    def axis(self, leaf: Any) -> int:
        """The longest axis that the devices divide, by which `leaf` is cut; -1: every device has the whole of it."""
        if self._mesh.size == 1 or math.prod(leaf.shape) < SMALLEST:
            return -1
        axes = [axis for axis, length in enumerate(leaf.shape) if length % self._mesh.size == 0]
        return max(axes, key=lambda axis: leaf.shape[axis], default=-1)

    def sharding(self, leaf: Any) -> NamedSharding:
        """Of a leaf of the state."""
        return NamedSharding(self._mesh, _spec(self.axis(leaf)))

    def constrain(self, state: Any) -> Any:
        """The state, within a compiled program, with every part where it belongs."""
        return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, self.sharding(leaf)), state)

    def over_devices(self, compute: Callable) -> Callable:
        """Runs `compute(state, data, item, shards=LocalShards) -> (gradients, replicated)` on every device.

        The state that it sees has this device's part of the parameters, the whole model_state and task_state, and
        neither opt_state nor ema; of item [B, …] it sees its share.
        """
        def call(state, data, item):
            local = LocalShards(jax.tree.map(self.axis, state.params))
            whole, specs = PartitionSpec(), jax.tree.map(_spec, local.axes)
            state = state.replace(opt_state={}, ema={})
            state_specs = jax.tree.map(lambda leaf: whole, state).replace(params=specs)
            return jax.shard_map(
                lambda *arguments: compute(*arguments, shards=local), mesh=self._mesh,
                in_specs=(state_specs, whole, PartitionSpec(AXIS)), out_specs=(specs, whole), check_vma=False,
            )(state, data, item)

        return call


class LocalShards:
    """The same within the per-device part: `axes` is a tree like the parameters, -1 for whole leaves."""

    def __init__(self, axes: Any):
        self.axes = axes

    def loss(self, loss: Callable) -> Callable:
        """`loss` as a function of this device's parts of the parameters, its first argument."""
        def gather(part, axis):
            if axis < 0:
                return part
            return checkpoint_name(lax.all_gather(part, AXIS, axis=axis, tiled=True), _WHOLE)

        return jax.checkpoint(
            lambda parts, *arguments: loss(jax.tree.map(gather, parts, self.axes), *arguments),
            policy=jax.checkpoint_policies.save_anything_except_these_names(_WHOLE))

    def mean(self, grads: Any) -> Any:
        """Over the devices; those of parts are summed already, by the reduce-scatter."""
        return jax.tree.map(lambda grad, axis: lax.pmean(grad, AXIS) if axis < 0 else grad / lax.axis_size(AXIS),
                            grads, self.axes)


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS) if axis >= 0 else PartitionSpec()

"""Fully sharded data parallelism, also known as ZeRO stage 3 (Rajbhandari 2020, arXiv 1910.02054).

Every large leaf of the state (parameters, their average, the optimizer's state) is sharded along one axis over the
devices. In the per-device part of a step, the parameters of a layer are gathered shortly before they are used. They are
gathered again when its gradient is computed, and the gradient is reduce-scattered into shards. A device only needs
memory for its shards of all layers and the whole parameters of a few. The optimizer works on global arrays.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.errors import UserError
from models.kernels.tracing import platform
from train.optim.parameters import parameter_name

AXIS = "batch"
# Elements; sharding a smaller leaf costs more in messages than it saves in memory. Vectors, such as biases, are small
# beside the kernels of their layers, and each would need collectives of its own.
SMALLEST, SMALLEST_VECTOR = 1024, 2**16


class Shards:
    """The sharding of a state over a mesh whose only axis is "batch"."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh

    def axis(self, leaf: Any) -> int:
        """Returns the axis along which a leaf is sharded, the longest divisible one; -1 if it is replicated."""
        smallest = SMALLEST if len(leaf.shape) > 1 else SMALLEST_VECTOR
        if self._mesh.size == 1 or math.prod(leaf.shape) < smallest:
            return -1
        axes = [axis for axis, length in enumerate(leaf.shape) if length % self._mesh.size == 0]
        return max(axes, key=lambda axis: leaf.shape[axis], default=-1)

    def sharding(self, leaf: Any) -> NamedSharding:
        """Returns the sharding of a leaf of the state."""
        return NamedSharding(self._mesh, _spec(self.axis(leaf)))

    def constrain(self, state: Any) -> Any:
        """Constrains the leaves of a state to their shardings within a compiled program."""
        return jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, self.sharding(leaf)), state)

    def over_devices(self, compute: Callable[..., Any], with_gradients: bool = True) -> Callable[..., Any]:
        """Lifts the per-device part of a step over the devices.

        Per device, it sees its shards of the parameters, the whole model_state and task_state, an empty opt_state and
        ema, and its share of item [B, …].

        Args:
          compute: (state, data, item, shards=LocalShards) -> (gradients, replicated outputs).
          with_gradients: False for a function that only returns replicated outputs.

        Returns:
          (state, data, item) -> the outputs of `compute`, with sharded gradients.
        """

        def call(state, data, item):
            local = LocalShards(jax.tree.map(self.axis, state.params))
            whole, specs = PartitionSpec(), jax.tree.map(_spec, local.axes)
            state = state.replace(opt_state={}, ema={})
            state_specs = jax.tree.map(lambda leaf: whole, state).replace(params=specs)
            return jax.shard_map(
                lambda *arguments: compute(*arguments, shards=local),
                mesh=self._mesh,
                in_specs=(state_specs, whole, PartitionSpec(AXIS)),
                out_specs=(specs, whole) if with_gradients else whole,
                check_vma=False,
            )(state, data, item)

        return call


class LocalShards:
    """The sharding of the parameters, as the per-device part of a step uses it.

    Args:
      axes: a tree like the parameters, with the axis of each sharded leaf and -1 for replicated leaves.
    """

    def __init__(self, axes: Any):
        self.axes = axes

    def gathering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Turns a function of whole parameters, its first argument, into a function of this device's shards.

        The parameters of a layer are not kept, but gathered again when its gradient is computed. The transpose of
        gathering is the reduce-scatter of the gradient.
        """

        @functools.wraps(function)
        def gathered(shards, *arguments):
            table = {
                parameter_name(path): (leaf.shape, axis)
                for (path, leaf), axis in zip(
                    jax.tree_util.tree_leaves_with_path(shards), jax.tree.leaves(self.axes), strict=True
                )
            }
            with nn.intercept_methods(functools.partial(_layer_by_layer, table, set())):
                return function(shards, *arguments)

        return gathered

    def mean(self, grads: Any) -> Any:
        """Averages gradients over the devices; those of shards have already been summed by the reduce-scatter."""
        return jax.tree.map(
            lambda grad, axis: lax.pmean(grad, AXIS) if axis < 0 else grad / lax.axis_size(AXIS), grads, self.axes
        )

    def squared_norm(self, tree: Any) -> jax.Array:
        """Returns the sum of squares of a tree like the parameters, over the shards of all devices."""
        total = jnp.zeros(())
        for leaf, axis in zip(jax.tree.leaves(tree), jax.tree.leaves(self.axes), strict=True):
            own = jnp.sum(jnp.square(leaf))
            total += own if axis < 0 else lax.psum(own, AXIS)
        return total


def _layer_by_layer(
    table: Mapping[str, tuple[tuple[int, ...], int]],
    running: set[int],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Any,
) -> Any:
    """Calls a module's method with the module's own parameters gathered; an interceptor of flax.

    Args:
      table: (shape of the shard, axis of sharding) of each parameter, by name.
      running: ids of the scopes whose parameters are gathered at the moment.
      call: the method.
      args: its arguments.
      kwargs: its keyword arguments.
      context: flax's InterceptorContext, which holds the module.
    """
    scope = context.module.scope
    if scope is None or id(scope) in running or "params" not in scope.root._variables:
        return call(*args, **kwargs)
    own = dict(scope._collection("params"))
    axes = {
        name: _axis(table, "/".join((*scope.path, name)), leaf.shape)
        for name, leaf in own.items()
        if not isinstance(leaf, Mapping)
    }
    if max(axes.values(), default=-1) < 0:
        return call(*args, **kwargs)
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

    def compute(shards, arrays):
        whole = {
            name: shard if axes[name] < 0 else lax.all_gather(shard, AXIS, axis=axes[name], tiled=True)
            for name, shard in shards.items()
        }
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        scope._variables["params"] = {**own, **whole}
        running.add(id(scope))
        try:
            return call(*args, **kwargs)
        finally:
            running.discard(id(scope))
            scope._variables["params"] = own

    shards = {name: own[name] for name in axes}
    # Rematerializing a module with submodules or statistics would leak tracers into them.
    if len(axes) < len(own) or set(context.module.variables) != {"params"}:
        return compute(_for_forward(shards, arrays), arrays)
    return _rematerialized(compute, shards, arrays)


def _rematerialized(method: Callable[..., Any], shards: Any, arrays: Any) -> Any:
    """Calls `method(shards, arrays)` so that shards are gathered again, instead of kept, for its gradient.

    In the backward pass, they are gathered once the gradient of the result is ready.
    """
    # Traced here, because a module's method cannot be called after it has returned
    traced, result = jax.make_jaxpr(method, return_shape=True)(shards, arrays)

    def compute(*arguments):
        leaves = jaxpr_as_fun(traced)(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(result), leaves)

    @jax.custom_vjp
    def layer(shards, arrays):
        return compute(_for_forward(shards, arrays), arrays)

    def backward(residuals, gradient):
        shards, arrays = residuals
        return jax.vjp(compute, _after(shards, gradient), arrays)[1](gradient)

    layer.defvjp(lambda shards, arrays: (layer(shards, arrays), (shards, arrays)), backward)
    return layer(shards, arrays)


def _for_forward(shards: Any, arrays: Any) -> Any:
    """Returns the shards as the forward pass gathers them.

    Compilers for accelerators start a gather while the layers before it compute, but not much earlier. Compiled for a
    TPU v5e of 2x4, a ViT of 4 blocks of width 1536 needs 354 MiB of temporaries, and 32 of its 36 gathers overlap with
    computation. If they wait for the arrays, it needs 372 MiB, and 21 overlap. A CPU's compiler would gather all first.
    """
    return _after(shards, arrays) if platform() == "cpu" else shards


def _after(shards: Any, arrays: Any) -> Any:
    """Returns the shards, but not before the arrays are computed."""
    shards, arrays = lax.optimization_barrier((shards, arrays))
    if platform() == "cpu" and jax.tree.leaves(arrays):
        # XLA's CPU compiler drops barriers before it merges equal computations, hence a condition that is never true.
        first = jax.tree.leaves(arrays)[0].ravel()[0]
        never = (first > 0) & (first < 0)
        shards = jax.tree.map(lambda shard: jnp.where(never, -shard, shard), shards)
    return shards


def _axis(table: Mapping[str, tuple[tuple[int, ...], int]], path: str, shape: tuple[int, ...]) -> int:
    """Returns the axis along which the parameter at `path` is sharded, or -1.

    If only a part of the network is called, its paths are suffixes of those in the table.
    """
    shard, axis = table.get(path, ((), -1))
    if shard == shape:
        return axis
    axes = {axis for name, (shard, axis) in table.items() if shard == shape and f"/{name}".endswith(f"/{path}")}
    if len(axes) > 1:
        raise UserError(
            f"parallel=fsdp: {path} is the name of several parameters of shape {list(shape)}; set parallel=shard_map"
        )
    return axes.pop() if axes else -1


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS) if axis >= 0 else PartitionSpec()

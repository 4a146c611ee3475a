"""A training state sharded over the devices that share a batch: ZeRO stage 3 (Rajbhandari 2020, arXiv 1910.02054), also
known as fully sharded data parallelism.

Every large leaf of the state (parameters, their average, the optimizer's) is cut along one axis, a part a device. In
the per-device part of a step a layer's parameters are gathered when its inputs are there, and again for its gradient,
which is reduced into the parts: a device has room for its part of all and the whole of a few. The optimizer works on
global arrays.
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
from train.parameters import parameter_name

AXIS = "batch"
SMALLEST = 1024  # elements of a leaf that is worth cutting: below, a message costs more than the memory


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

    def over_devices(self, compute: Callable, with_gradients: bool = True) -> Callable:
        """Runs `compute(state, data, item, shards=LocalShards) -> (gradients, replicated)`, or -> replicated alone, on
        every device.

        The state that it sees has this device's part of the parameters, the whole model_state and task_state, and
        neither opt_state nor ema; of item [B, …] it sees its share.
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
    """The same within the per-device part: `axes` is a tree like the parameters, -1 for whole leaves."""

    def __init__(self, axes: Any):
        self.axes = axes

    def gathering(self, function: Callable) -> Callable:
        """`function` with networks of whole parameters, as one of this device's parts of them, its first argument.

        A layer's parameters are gathered when its inputs are there, and again, rather than kept, when its gradient is
        to be computed: a device has room for its part of all and the whole of a few. The transpose of gathering is the
        reduce-scatter of the gradient.
        """

        @functools.wraps(function)
        def gathered(parts, *arguments):
            table = {
                parameter_name(path): (leaf.shape, axis)
                for (path, leaf), axis in zip(
                    jax.tree_util.tree_leaves_with_path(parts), jax.tree.leaves(self.axes), strict=True
                )
            }
            with nn.intercept_methods(functools.partial(_layer_by_layer, table, set())):
                return function(parts, *arguments)

        return gathered

    def mean(self, grads: Any) -> Any:
        """Over the devices; those of parts are summed already, by the reduce-scatter."""
        return jax.tree.map(
            lambda grad, axis: lax.pmean(grad, AXIS) if axis < 0 else grad / lax.axis_size(AXIS), grads, self.axes
        )


def _layer_by_layer(table, running, call, args, kwargs, context):
    """Calls a module's method with the whole of the parameters that are the module's own."""
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
    given, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(given) if isinstance(leaf, jax.Array)}

    def compute(parts, arrays):
        whole = {
            name: part if axes[name] < 0 else lax.all_gather(part, AXIS, axis=axes[name], tiled=True)
            for name, part in parts.items()
        }
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(given)])
        scope._variables["params"] = {**own, **whole}
        running.add(id(scope))
        try:
            return call(*args, **kwargs)
        finally:
            running.discard(id(scope))
            scope._variables["params"] = own

    parts = {name: own[name] for name in axes}
    # What has modules or statistics within would leave tracers in them
    if len(axes) < len(own) or context.module.variables.get("batch_stats"):
        return compute(_after(parts, arrays), arrays)
    return _once_more_for_the_gradient(compute, parts, arrays)


def _once_more_for_the_gradient(method: Callable, parts: Any, arrays: Any) -> Any:
    """`method(parts, arrays)`, begun when the arrays are there; its gradient begins when that of the result is, and
    gathers the parts again.
    """
    # Traced now, as a module's method cannot be called once it has returned
    traced, result = jax.make_jaxpr(method, return_shape=True)(parts, arrays)

    def compute(*given):
        leaves = jaxpr_as_fun(traced)(*jax.tree.leaves(given))
        return jax.tree.unflatten(jax.tree.structure(result), leaves)

    @jax.custom_vjp
    def layer(parts, arrays):
        return compute(_after(parts, arrays), arrays)

    def backward(given, gradient):
        parts, arrays = given
        return jax.vjp(compute, _after(parts, gradient), arrays)[1](gradient)

    layer.defvjp(lambda parts, arrays: (layer(parts, arrays), (parts, arrays)), backward)
    return layer(parts, arrays)


def _after(parts: Any, arrays: Any) -> Any:
    """The parts, once the arrays are there."""
    parts, arrays = lax.optimization_barrier((parts, arrays))
    if jax.default_backend() == "cpu" and jax.tree.leaves(arrays):
        # XLA's compiler for CPUs drops barriers before it merges what is alike; no number is on both sides of 0
        first = jax.tree.leaves(arrays)[0].ravel()[0]
        never = (first > 0) & (first < 0)
        parts = jax.tree.map(lambda part: jnp.where(never, -part, part), parts)
    return parts


def _axis(table: Mapping[str, tuple[tuple[int, ...], int]], path: str, shape: tuple[int, ...]) -> int:
    """Along which axis the parameter at `path` is cut; of a part of a network that is called alone, paths lack their
    beginning.
    """
    part, axis = table.get(path, ((), -1))
    if part == shape:
        return axis
    found = {axis for name, (part, axis) in table.items() if part == shape and f"/{name}".endswith(f"/{path}")}
    if len(found) > 1:
        raise UserError(
            f"parallel=fsdp: {path} is the name of several parameters of shape {list(shape)}; set parallel=shard_map"
        )
    return found.pop() if found else -1


def _spec(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS) if axis >= 0 else PartitionSpec()

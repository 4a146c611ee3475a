"""Data parallelism: lifts a step, which is written for one device with the axis name "batch", over all devices.

There are three ways with the same result: `jax.pmap` (the default), `jax.shard_map` under `jax.jit`, and "fsdp", which
is the second with the state sharded over the devices (train/devices/fsdp.py). Leaves of the state have no leading
device axis, so that code outside this file does not depend on the way.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.errors import UserError, choice_error
from models.kernels import runtime
from train.devices.fsdp import AXIS, Shards

KINDS = ("pmap", "shard_map", "fsdp")


def by_slice(devices: Sequence[Any]) -> list[Any]:
    """Returns devices so that those of one TPU slice are neighbors, and few messages cross the network of hosts."""
    return sorted(devices, key=lambda device: getattr(device, "slice_index", 0))


class Parallel:
    """The devices of a run, and the transformation of per-device programs to programs for all of them.

    Args:
      kind: "pmap", "shard_map" or "fsdp".
      count: number of devices to use, over all processes; 0 for all.
      described: devices of a topology (train/devices/topology.py), for which programs are only compiled. They take the
        place of JAX's devices, and arrays that would be placed on them are shapes.

    Raises:
      UserError: the kind is unknown, or there are fewer devices.
    """

    def __init__(self, kind: str = "pmap", count: int = 0, described: Sequence[Any] = ()):
        if kind not in KINDS:
            raise choice_error("parallel", kind, KINDS)
        if described and kind == "pmap":
            kind = "shard_map"  # the same program per device, and pmap only lowers for hosts that are there
        self._is_described = bool(described)
        present = by_slice(described or jax.devices())
        if count > len(present) or count < 0:
            raise UserError(f"devices={count}: there are {len(present)} ({present[0].platform}); set 0 to use all")
        processes = 1 if described else jax.process_count()
        if count and processes > 1 and count != len(present):
            raise UserError(f"devices={count}: with several processes, all {len(present)} devices are used; set 0")
        self.kind = kind
        self.devices = present[: count or len(present)]
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.local = [d for d in self.devices if described or d.process_index == jax.process_index()]
        if len(self.local) * processes != len(self.devices):
            raise UserError(
                f"process {jax.process_index()} has {len(self.local)} of the {len(self.devices)} devices "
                f"of {processes} processes; all must have the same number"
            )
        # pmap takes and returns arrays on this process's devices; the others take arrays over all devices.
        mesh = Mesh(np.array(self.local), (AXIS,)) if kind == "pmap" else self.mesh
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._shards = Shards(self.mesh)
        # pmap has a separate device axis, [k, D, B / D, …]; shard_map shards the batch axis, [k, B, …].
        self._split = NamedSharding(mesh, PartitionSpec(None, AXIS))

    @property
    def is_split(self) -> bool:
        """True if a process holds only its shards of the state, and no whole state."""
        return self.kind == "fsdp" and jax.process_count() > 1

    def check_batch(self, name: str, size: int) -> None:
        """Raises UserError if `size` examples, the config's value of `name`, are not divisible among the devices."""
        if size <= 0 or size % len(self.devices):
            raise UserError(f"{name}={size} must be a positive multiple of the number of devices, {len(self.devices)}")

    def lift(self, function: Callable[..., Any], donate: bool = False) -> Callable[..., Any]:
        """Lifts a per-device program over the devices.

        Each device sees the whole state and data, and its share [k, B / D, …] of items [k, B, …].

        Args:
          function: (state, data, items) -> outputs, which must be the same on every device, that is, averaged or summed
            over the axis "batch".
          donate: whether the state's buffers are reused for the result.
        """
        donated = (0,) if donate else ()
        # jit caches the trace, so that it is not repeated by eval_shape and pmap; inline leaves no call in the program.
        function = jax.jit(function, inline=True)
        if self.kind == "pmap":
            return jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=(None, None, 1),
                out_axes=None,
                devices=self.devices,
                donate_argnums=donated,
            )
        mapped = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(None, AXIS)),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=donated)

    def lift_training(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Lifts `train.step.train_call` over the devices; the buffers of its state are reused for the result."""
        if self.kind == "fsdp":
            return jax.jit(functools.partial(program, shards=self._shards), donate_argnums=0)
        return self.lift(program, donate=True)

    def lift_evaluation(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """Lifts `train.step.evaluation_call` over the devices."""
        return jax.jit(functools.partial(program, shards=self._shards)) if self.kind == "fsdp" else self.lift(program)

    def drawing(self) -> contextlib.AbstractContextManager:
        """Returns a context in which to draw a state; under "fsdp", in host memory, as it may not fit one device."""
        return runtime.on_host() if self.kind == "fsdp" else contextlib.nullcontext()

    def replicate(self, tree: Any) -> Any:
        """Copies every leaf to every device."""
        return jax.tree.map(lambda leaf: self._put(leaf, self._replicated), tree)

    def _put(self, leaf: Any, sharding: NamedSharding) -> Any:
        """Places a leaf of which every process holds all; for described devices, returns its shape."""
        if self._is_described:
            return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
        leaf = np.asarray(leaf)
        if sharding.is_fully_replicated:
            return jax.make_array_from_process_local_data(sharding, leaf, leaf.shape)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])

    def place(self, state: Any) -> Any:
        """Places a state, of which every process holds all, on the devices: replicated or, under "fsdp", sharded."""
        if self.kind != "fsdp":
            return self.replicate(state)

        def put(leaf):
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # placed already
                return leaf
            return self._put(leaf, self._shards.sharding(leaf))

        return jax.tree.map(put, state)

    def placed(self, state: Any) -> Any:
        """Returns the shapes and shardings of the leaves of a state, placed under "fsdp"."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._shards.sharding(leaf)), state
        )

    def bytes_per_device(self, state: Any) -> int:
        """Returns the number of bytes per device of a placed state."""

        def size(leaf):
            shape = self._shards.sharding(leaf).shard_shape(leaf.shape) if self.kind == "fsdp" else leaf.shape
            return math.prod(shape) * leaf.dtype.itemsize

        return sum(size(leaf) for leaf in jax.tree.leaves(state))

    def shard(self, items: Any) -> Any:
        """Distributes this process's rows of items [k, B / P, …] over its devices, as `lift` expects them."""

        def put(leaf):
            leaf = np.asarray(leaf)
            if self.kind == "pmap":
                leaf = leaf.reshape(leaf.shape[0], len(self.local), -1, *leaf.shape[2:])
            return jax.make_array_from_process_local_data(self._split, leaf)

        return jax.tree.map(put, items)

    def shapes(self, items: Any) -> Any:
        """Returns the shapes that `lift` expects for items [k, B, …], where B is over all processes."""

        def shape(leaf):
            split = (len(self.local), leaf.shape[1] // len(self.devices)) if self.kind == "pmap" else leaf.shape[1:2]
            sharding = self._split if self._is_described else None
            return jax.ShapeDtypeStruct((leaf.shape[0], *split, *leaf.shape[2:]), leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, items)

    def fetch(self, state: Any) -> Any:
        """Copies a placed state to unsharded numpy arrays, which later donation cannot change.

        All processes must call it.
        """

        def whole(leaf):
            if self.kind != "fsdp" or leaf.is_fully_replicated:
                return np.array(leaf.addressable_data(0))
            return np.array(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)

        return jax.tree.map(whole, state)

"""A step is written for one device, with the axis name "batch", and lifted over all devices here.

Three ways, same step, same result: `jax.pmap` (the default), `jax.shard_map` under `jax.jit`, and "fsdp", which is the
second with the state sharded over the devices (train/devices/fsdp.py). The state is one array a leaf, without a
leading device axis, so nothing outside this file knows which one is used.
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


class Parallel:
    """The devices, and how a per-device program runs on all of them.

    Args:
      kind: "pmap", "shard_map" or "fsdp".
      count: devices to use over all processes; 0 for all.

    Raises:
      UserError: unknown kind, or more devices than there are.
    """

    def __init__(self, kind: str = "pmap", count: int = 0):
        if kind not in KINDS:
            raise choice_error("parallel", kind, KINDS)
        present = jax.devices()
        if count > len(present) or count < 0:
            raise UserError(f"devices={count} asked for, but there are {len(present)} ({present[0].platform})")
        if count and jax.process_count() > 1 and count != len(present):
            raise UserError(f"devices={count}: with several processes all {len(present)} devices are used; set 0")
        self.kind = kind
        self.devices: Sequence[jax.Device] = present[: count or len(present)]
        self.mesh = Mesh(np.array(self.devices), (AXIS,))
        self.local = [d for d in self.devices if d.process_index == jax.process_index()]
        if len(self.local) * jax.process_count() != len(self.devices):
            raise UserError(
                f"process {jax.process_index()} has {len(self.local)} of the {len(self.devices)} devices "
                f"of {jax.process_count()} processes: all must have as many"
            )
        # pmap takes and returns what this process's devices hold; the others take arrays over all devices.
        mesh = Mesh(np.array(self.local), (AXIS,)) if kind == "pmap" else self.mesh
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._shards = Shards(self.mesh)
        # pmap splits a device axis off, [k, D, B / D, …]; shard_map cuts the batch axis in place, [k, B, …].
        self._split = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def check_batch(self, name: str, size: int) -> None:
        """Raises UserError where `size` examples cannot be dealt out evenly."""
        if size <= 0 or size % len(self.devices):
            raise UserError(f"{name}={size} must be a positive multiple of the number of devices, {len(self.devices)}")

    def lift(self, function: Callable, donate: bool = False) -> Callable:
        """Lifts `function(state, data, items) -> replicated outputs` over the devices.

        Per device it sees the state and the data whole, and its share [k, B / D, …] of items [k, B, …]; what it
        returns must be the same on every device (averaged or summed over the axis "batch").

        Args:
          function: the per-device program.
          donate: whether the state's buffers are reused for the result.
        """
        donated = (0,) if donate else ()
        # Whatever shapes it is asked for first: jit keeps what it traced, and inline leaves no call in the program.
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

    def lift_training(self, program: Callable) -> Callable:
        """Lifts `train.step.train_call` over the devices; the buffers of its state are reused for the result."""
        if self.kind == "fsdp":
            return jax.jit(functools.partial(program, shards=self._shards), donate_argnums=0)
        return self.lift(program, donate=True)

    def lift_evaluation(self, program: Callable) -> Callable:
        """Lifts `train.step.evaluation_call` over the devices."""
        return jax.jit(functools.partial(program, shards=self._shards)) if self.kind == "fsdp" else self.lift(program)

    def drawing(self) -> contextlib.AbstractContextManager:
        """Within it a state is drawn: one that may be too large for a device, in the host's memory."""
        return runtime.on_host() if self.kind == "fsdp" else contextlib.nullcontext()

    def replicate(self, tree: Any) -> Any:
        """Puts one copy of every leaf on every device."""
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(self._replicated, np.asarray(leaf), np.shape(leaf)),
            tree,
        )

    def place(self, state: Any) -> Any:
        """Puts a state, whole on every process, on the devices: a copy on each, or under "fsdp" a part on each."""
        if self.kind != "fsdp":
            return self.replicate(state)

        def put(leaf):
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, self._shards.sharding(leaf), lambda at: leaf[at])

        return jax.tree.map(put, state)

    def bytes_per_device(self, state: Any) -> int:
        """What a device holds of a state that is placed."""

        def size(leaf):
            shape = self._shards.sharding(leaf).shard_shape(leaf.shape) if self.kind == "fsdp" else leaf.shape
            return math.prod(shape) * leaf.dtype.itemsize

        return sum(size(leaf) for leaf in jax.tree.leaves(state))

    def shard(self, items: Any) -> Any:
        """Deals this process's rows of items [k, B / P, …] out to its devices, as `lift` expects them."""

        def put(leaf):
            leaf = np.asarray(leaf)
            if self.kind == "pmap":
                leaf = leaf.reshape(leaf.shape[0], len(self.local), -1, *leaf.shape[2:])
            return jax.make_array_from_process_local_data(self._split, leaf)

        return jax.tree.map(put, items)

    def shapes(self, items: Any) -> Any:
        """Shapes of items [k, B, …] as `lift` takes them, B being that of all processes."""

        def shape(leaf):
            split = (len(self.local), leaf.shape[1] // len(self.devices)) if self.kind == "pmap" else leaf.shape[1:2]
            return jax.ShapeDtypeStruct((leaf.shape[0], *split, *leaf.shape[2:]), leaf.dtype)

        return jax.tree.map(shape, items)

    def fetch(self, state: Any) -> Any:
        """The whole of every leaf of a placed state as numpy, safe from later donation; all processes call it."""

        def whole(leaf):
            if self.kind != "fsdp" or leaf.is_fully_replicated:
                return np.array(leaf.addressable_data(0))
            return np.array(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)

        return jax.tree.map(whole, state)

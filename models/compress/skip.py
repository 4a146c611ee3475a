"""Inference that skips the zero blocks of pruned convolutions and dense layers, on CPUs.

A block is 16 neighboring output features of one tap and one input channel (models/kernels/blocks.py). The nonzero
blocks of a network are collected once, when it is opened; its layers then multiply only those. Batch normalization is
folded into the layers (models/compress/fold.py), because without most of the products it would take half of the time.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from models.compress import fold
from models.kernels import blocks
from models.layers.conv import BLOCKS, Conv, Dense, width_of

LEAST = 0.4  # share of zero blocks from which a kernel is surely faster by its nonzero ones


class Opened(NamedTuple):
    """A network for inference.

    Attributes:
      apply: (variables, *inputs, **options) -> outputs, as `model.apply`, without gradients.
      variables: The variables that it takes.
      skipping: Share of zero blocks of the kernels whose zero blocks are skipped, by name of the kernel.
    """

    apply: Callable[..., Any]
    variables: dict[str, Any]
    skipping: dict[str, float]


def zeros(kernel: Any) -> float:
    """Returns the share of blocks that are zero; 0 for a kernel that is not divisible into blocks."""
    shape = np.shape(kernel)
    if len(shape) not in (2, 4) or 0 in shape or shape[-1] % blocks.SIZE:
        return 0.0
    return 1.0 - float(blocks.nonzero(np.asarray(kernel)).mean())


def opened(model: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> Opened:
    """Prepares a network for inference; it skips the zero blocks of kernels of which at least LEAST are zero.

    The network is unchanged if it has no such kernel, or if this process's device is not a CPU with native code.

    Args:
      model: The network, which is called as `model.apply(variables, *inputs)`.
      variables: Its variables, as arrays in memory.
      *inputs: Inputs, or their shapes and types.
    """
    kernels = traverse_util.flatten_dict(variables["params"])
    shares = {path: zeros(leaf) for path, leaf in kernels.items() if path[-1] == "kernel"}
    sparse = {path for path, share in shares.items() if share >= LEAST}
    if sparse and blocks.available():
        sparse &= _layers(model, variables, *inputs)
    if not sparse or not blocks.available():
        return Opened(model.apply, dict(variables), {})
    folded = fold.fold(model, variables, *inputs)
    shifts, packed = dict(folded.shifts), {}
    for path in sorted(sparse):
        kernel = _at(folded.variables["params"], path)
        packed[path] = blocks.pack(kernel, shifts.pop(path[:-1], None))
    result = {**folded.variables, BLOCKS: traverse_util.unflatten_dict(packed)}
    skipping = {"/".join(path): shares[path] for path in sorted(sparse)}
    return Opened(folded._replace(shifts=shifts).apply(model), result, skipping)


def _layers(model: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> set[tuple[str, ...]]:
    """Returns the paths of the kernels of layers that take blocks; layers that compute their kernel do not."""
    paths = set()

    def read(call, args, kwargs, context):
        layer = context.module
        is_plain = context.method_name == "__call__" and type(layer) in (Conv, Dense)
        if is_plain and width_of(layer) % (blocks.SIZE * getattr(layer, "groups", 1)) == 0:
            paths.add((*layer.path, "kernel"))
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        jax.eval_shape(model.apply, variables, *inputs)
    return paths


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree

"""Inference of trained networks on CPUs: kernels are prepared once, when a network is opened, and without gradients.

Batch normalization is folded into the layers (models/compress/fold.py). Kernels are packed for loops that end with a
bias, a shortcut and ReLU (models/kernels/fused.py). Of pruned kernels, only the nonzero blocks are multiplied. A block
is 16 neighboring output features of one tap and one input channel (models/kernels/blocks.py).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from models.compress import fold
from models.kernels import blocks, fused
from models.layers.conv import OPENED, Conv, Dense

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

    The logits are within 1e-5 of the largest one. The network is unchanged if this process's device is not a CPU with
    native code.

    Args:
      model: The network, which is called as `model.apply(variables, *inputs)`.
      variables: Its variables, as arrays in memory.
      *inputs: Inputs, or their shapes and types.
    """
    layers = _layers(model, variables, *inputs) if blocks.available() else {}
    folded = fold.fold(model, variables, *inputs) if layers else None
    if folded is None:
        return Opened(model.apply, dict(variables), {})
    shifts, kernels, skipping = dict(folded.shifts), {}, {}
    for path, groups in sorted(layers.items()):
        layer, share = _at(folded.variables["params"], path), 0.0
        kernel, bias = layer["kernel"], shifts.get(path, layer.get("bias"))
        if kernel.shape[-1] % (blocks.SIZE * groups) == 0:
            share = zeros(kernel)
        if share >= LEAST:
            skipping["/".join((*path, "kernel"))] = share
        elif not fused.fits(kernel.shape, groups):
            continue
        kernels[(*path, "kernel")] = (blocks if share >= LEAST else fused).pack(kernel, bias)
        shifts.pop(path, None)
    result = {**folded.variables, OPENED: traverse_util.unflatten_dict(kernels)}
    return Opened(fused.merged(folded._replace(shifts=shifts).apply(model)), result, skipping)


def _layers(model: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> dict[tuple[str, ...], int]:
    """Returns the groups of the layers that can be opened, by path; those that compute their kernel cannot."""
    groups = {}

    def read(call, args, kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and type(layer) in (Conv, Dense):
            groups[layer.path] = getattr(layer, "groups", 1)
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        jax.eval_shape(model.apply, variables, *inputs)
    return groups


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree

"""Removal of pruned filters: a smaller network of the same family that computes the same function.

  Li et al. 2017     Pruning filters for efficient ConvNets, arXiv 1608.08710

A filter is the slice of a kernel that computes one output feature of a convolution or a dense layer. Shapes show which
arrays hold a slice for each filter: those that change when the layer has one feature less. Therefore no family needs
its own code. Filters before a residual sum cannot be removed, because the other side keeps its channels. Comparing
logits detects what shapes do not show: normalization that mixes channels, and sums that pad one side with zeros.

After batch normalization, a filter whose kernel is 0 still outputs the constant bias - mean scale / std. It has no
effect only if its bias, and the scale and bias of its normalization, are 0 as well; `Coupling.own` marks them.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, traverse_util

import models
from models.errors import UserError, nearest
from models.layers.init import jit_once

# Tolerance of logits relative to the largest; several times the difference of float32 sums in another order
TOLERANCE = 1e-4

# Exceptions for shapes that do not fit: JAX's, the project's (UserError is a ValueError), and flax's.
MISFITS = (TypeError, ValueError, errors.FlaxError)

Shapes = Mapping[str, tuple[int, ...]]


class Coupling(NamedTuple):
    """An array that holds a slice of each filter of a layer.

    Attributes:
      array: Name of the array, "params/stage1/block0/norm1/scale".
      axis: Axis along which the filters are.
      repeat: Number of slices per filter. A dense layer that sees a flattened [H, W, C] has H W of them, C apart.
      own: Whether a filter outputs 0 only if this slice is 0 as well: the kernel, and vectors with one entry per filter
        (biases, and scales and biases of normalizations).
    """

    array: str
    axis: int
    repeat: int
    own: bool

    def indices(self, stays: np.ndarray) -> np.ndarray:
        """Returns the indices along the axis that stay, for bool [D] per filter."""
        return np.flatnonzero(np.tile(stays, self.repeat))


def coupled(model: nn.Module, inputs: Sequence[Any], kernels: Iterable[str]) -> dict[str, list[Coupling]]:
    """Finds the arrays that hold a slice of each filter of the kernels, from shapes alone.

    Args:
      model: A network with the field `widths`.
      inputs: Shapes of the inputs, as for `models.initialize`.
      kernels: Names of kernels, "stage1/block0/conv1/kernel".

    Returns:
      {kernel: couplings, the kernel's own first}.

    Raises:
      UserError: A name is not a kernel, or its filters cannot be removed, with the reason.
    """
    shapes, logits = _shapes(model, inputs)
    return {kernel: _couplings(model, inputs, kernel, shapes, logits) for kernel in kernels}


def _shapes(model: nn.Module, inputs: Sequence[Any]) -> tuple[Shapes, tuple[int, ...]]:
    """Returns the shapes of the variables by name, and of the output."""
    if not hasattr(model, "widths"):
        raise UserError(
            f"{type(model).__name__} has no field widths; filters can be removed only from networks that have it"
        )
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), *models.abstract(inputs))
    return {name: leaf.shape for name, leaf in _flat(variables).items()}, output.shape


def _flat(variables: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(variables, sep="/")


def _couplings(model, inputs, kernel: str, shapes: Shapes, logits: tuple[int, ...]) -> list[Coupling]:
    own, layer = f"params/{kernel}", kernel.removesuffix("/kernel")
    if own not in shapes or layer == kernel:
        kernels = [name.removeprefix("params/") for name in shapes if name.endswith("/kernel")]
        raise UserError(f"{kernel} is not the kernel of a layer{nearest(kernel, kernels)}")

    def refuse(reason: object) -> UserError:
        return UserError(f"filters of {layer} cannot be removed: {str(reason).splitlines()[0]}")

    features = shapes[own][-1]
    if features == 1:
        raise refuse("it has only one")
    try:
        fewer, reduced = _shapes(_with(model, {layer: features - 1}), inputs)
    except MISFITS as error:
        raise refuse(error) from None
    if reduced != logits:
        raise refuse("they are the outputs of the network")
    if changed := sorted(fewer.keys() ^ shapes.keys()):
        raise refuse(f"with one less, {changed[0].split('/', 1)[1]} is {'gone' if changed[0] in shapes else 'new'}")
    couplings = []
    for name in (own, *(name for name in shapes if name != own)):
        for axis, (size, less) in enumerate(zip(shapes[name], fewer[name], strict=True)):
            if size == less:
                continue
            if size != (size - less) * features:
                raise refuse(f"{name.split('/', 1)[1]} sees them together with those of other layers")
            vector = name.startswith("params/") and len(shapes[name]) == 1
            couplings.append(Coupling(name, axis, size - less, own=name == own or vector))
    if not couplings or couplings[0][:3] != (own, len(shapes[own]) - 1, 1):
        raise refuse("its layer does not take widths")
    return couplings


def _with(model: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    return model.clone(widths=tuple({**dict(model.widths), **widths}.items()))


def shrink(
    model: nn.Module, variables: Any, masks: Mapping[str, Any], inputs: Sequence[Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Removes filters.

    Args:
      model: A network with the field `widths`.
      variables: Its variables; vector entries that belong to a removed filter count as 0.
      masks: {kernel: bool in the kernel's shape, or [D]}, False for the filters to remove.
      inputs: Shapes of the inputs, as for `models.initialize`.

    Returns:
      The model with other `widths`, and its variables as NumPy arrays.

    Raises:
      UserError: The variables belong to another network; a mask prunes filters in part, or removes all of them; or
        filters cannot be removed, possibly because the logits of random inputs change.
    """
    shapes, _ = _shapes(model, inputs)
    for name, leaf in _flat(variables).items():
        if shapes.get(name) != np.shape(leaf):
            raise UserError(
                f"{name} has the shape {[*np.shape(leaf)]}, but the network for these inputs has "
                f"{[*shapes[name]] if name in shapes else 'no such array'}"
            )
    stays = {kernel: _stays(kernel, np.asarray(mask)) for kernel, mask in masks.items()}
    stays = {kernel: mask for kernel, mask in stays.items() if not mask.all()}
    couplings = coupled(model, inputs, stays)
    for kernel, mask in stays.items():
        if mask.size != (size := shapes[f"params/{kernel}"][-1]):
            raise UserError(f"mask of {kernel}: it has {mask.size} entries, but there are {size} filters")
    smaller, fewer, apart = _cut(model, variables, stays, couplings, inputs)
    if not apart <= TOLERANCE:
        raise UserError(
            f"filters of {', '.join(map(_layer, stays))} cannot be removed: the logits would change "
            f"by {apart:.1g} of the largest, because something mixes channels, e.g. the normalization"
        )
    return smaller, fewer


def _layer(kernel: str) -> str:
    return kernel.removesuffix("/kernel")


def _stays(kernel: str, mask: np.ndarray) -> np.ndarray:
    """Returns bool [D] for a mask."""
    rows = mask.astype(bool).reshape(-1, mask.shape[-1])
    if (rows != rows[0]).any():
        raise UserError(f"mask of {kernel}: it prunes parts of filters; train with structure='filters'")
    if not rows[0].any():
        raise UserError(f"mask of {kernel}: it removes all filters; keep at least one")
    return rows[0]


def _cut(model, variables, stays, couplings, inputs) -> tuple[nn.Module, dict[str, Any], float]:
    """Returns the smaller model, its variables, and the largest difference of logits relative to the largest logit."""
    masked = {name: np.array(leaf) for name, leaf in _flat(variables).items()}
    fewer, cut = dict(masked), {}
    for kernel, mask in stays.items():
        for coupling in couplings[kernel]:
            name, axis = coupling.array, coupling.axis
            if cut.setdefault((name, axis), kernel) != kernel:
                raise UserError(
                    f"filters of {_layer(kernel)} cannot be removed together with those of "
                    f"{_layer(cut[name, axis])}: {name} depends on both"
                )
            fewer[name] = np.take(fewer[name], coupling.indices(mask), axis)
            if coupling.own:
                masked[name] = np.where(np.tile(mask, coupling.repeat), masked[name], 0)  # the last axis
    smaller = _with(model, {_layer(kernel): int(mask.sum()) for kernel, mask in stays.items()})
    fewer = traverse_util.unflatten_dict(fewer, sep="/")
    rng = np.random.default_rng(0)
    images = [jnp.asarray(rng.normal(size=(2, *x.shape[1:])), x.dtype) for x in models.abstract(inputs)]
    try:
        a, b = (
            np.asarray(jit_once(network.clone(dtype=None).apply)(leaves, *images))
            for network, leaves in ((model, traverse_util.unflatten_dict(masked, sep="/")), (smaller, fewer))
        )
    except MISFITS as error:
        raise UserError(
            f"filters of {', '.join(map(_layer, stays))} cannot be removed together: {str(error).splitlines()[0]}"
        ) from None
    return smaller, fewer, float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(np.float32).tiny))


def removable(
    model: nn.Module, variables: Any, inputs: Sequence[Any], kernels: Iterable[str]
) -> tuple[dict[str, list[Coupling]], dict[str, str]]:
    """Finds the kernels whose filters can be removed without changing the output.

    Filters may be removed from all of these kernels at once, and any number from each except all. It tries this on
    perturbed parameters, because parameters that start at 0 would hide an effect.

    Args:
      model: See `shrink`.
      variables: See `shrink`.
      inputs: See `shrink`.
      kernels: See `coupled`.

    Returns:
      {kernel: couplings} for these kernels, and {kernel: reason} for the others.
    """
    shapes, logits = _shapes(model, inputs)
    accepted, refused = {}, {}
    for kernel in kernels:
        try:
            accepted[kernel] = _couplings(model, inputs, kernel, shapes, logits)
        except UserError as error:
            refused[kernel] = str(error)
    near = jax.tree.map(functools.partial(_moved, np.random.default_rng(0)), variables)

    def exact(kernels: Iterable[str]) -> bool:
        """Returns whether the network computes the same function without filters 0, 2, 4, ... of each kernel."""
        stays = {kernel: np.arange(shapes[f"params/{kernel}"][-1]) % 2 == 1 for kernel in kernels}
        try:
            return _cut(model, near, stays, accepted, inputs)[2] <= TOLERANCE
        except UserError:
            return False

    for kernel in _failing(exact, list(accepted)):
        del accepted[kernel]
        refused[kernel] = (
            f"filters of {_layer(kernel)} cannot be removed: without them the network computes something else"
        )
    return accepted, refused


def _failing(passes: Callable[[list[str]], bool], kernels: list[str]) -> list[str]:
    """Finds the kernels for which `passes` fails by bisection, because a trial of a deep network takes seconds."""
    if not kernels or passes(kernels):
        return []
    if len(kernels) == 1:
        return kernels
    middle = len(kernels) // 2
    return _failing(passes, kernels[:middle]) + _failing(passes, kernels[middle:])


def _moved(rng: np.random.Generator, leaf: jax.Array) -> np.ndarray:
    """Perturbs an array.

    Vectors, which may be scales or variances, grow by about a tenth. Kernels change so that activations keep their
    scale.
    """
    noise = rng.standard_normal(leaf.shape, np.float32)
    return np.asarray(leaf) + (0.1 * np.abs(noise) if leaf.ndim < 2 else noise / np.sqrt(np.prod(leaf.shape[:-1])) / 3)


def expression(names: Iterable[str], others: Iterable[str]) -> str:
    """Returns a regular expression that matches the names and none of the others.

    It matches any number in the names of modules before the layer, if possible.
    """
    others, parts = list(others), []
    for name in names:
        *modules, layer, leaf = name.split("/")
        part = "/".join((*(re.sub("[0-9]+", "[0-9]+", module) for module in modules), layer, leaf))
        if any(re.fullmatch(part, other) for other in others):
            part = name
        if part not in parts:
            parts.append(part)
    return "|".join(parts)

"""Batch-norm folding for inference: normalization becomes part of the preceding layer, with the same result.

norm(layer(x)) = ((x * kernel + b) - mean) g + bias,  g = scale / sqrt(var + epsilon)
               = x * (kernel g) + ((b - mean) g + bias)                  (Jacob et al. 2018, arXiv 1712.05877, 3.2)
"""

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from models.kernels.tracing import lowering
from models.layers.conv import Conv, Dense
from models.layers.norm import BatchNorm

Path = tuple[str, ...]


class Pair(NamedTuple):
    """A batch normalization and the layer whose output it normalizes."""

    norm: Path
    layer: Path
    epsilon: float


def pairs(model: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> list[Pair]:
    """Finds the pairs in which only the normalization uses the output of a convolution or dense layer in inference.

    Networks that normalize before their convolutions, such as pre-activation networks, have pairs only inside blocks.
    Layers that compute their kernels from others (standardized, low-bit) are excluded.

    Args:
      model: The network.
      variables: Its variables.
      *inputs: Inputs, or their shapes and types.
    """
    layers, norms = [], []  # paths; labels in the traced program hold their indices

    def label(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if type(module) is BatchNorm:
            norms.append((module.path, module.epsilon))
            return call(checkpoint_name(args[0], f"norm {len(norms) - 1}"))
        y = call(*args, **kwargs)
        if type(module) in (Conv, Dense):
            layers.append(module.path)
            y = checkpoint_name(y, f"layer {len(layers) - 1}")
        return y

    with lowering("plain"), nn.intercept_methods(label):
        program = jax.make_jaxpr(lambda variables, *inputs: model.apply(variables, *inputs))(variables, *inputs)
    result = []
    for layer, norm in _only_uses(program.jaxpr):
        path, epsilon = norms[norm]
        if layers.count(layers[layer]) == 1 and [norm_path for norm_path, _ in norms].count(path) == 1:  # called once
            result.append(Pair(path, layers[layer], epsilon))
    return result


def _only_uses(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """Yields (index of a layer, index of a norm) if the only use of the layer's output is the norm's input."""
    uses = collections.defaultdict(list)
    for eqn in jaxpr.eqns:
        for variable in {id(variable): variable for variable in eqn.invars}:
            uses[variable].append(eqn)
    for variable in jaxpr.outvars:
        uses[id(variable)].append(None)
    for eqn in jaxpr.eqns:
        kind, number = _label(eqn)
        while kind != "norm" and eqn and eqn.primitive.name == "name":  # other labels may be in between
            users = uses[id(eqn.outvars[0])]
            eqn = users[0] if len(users) == 1 else None
            if kind == "layer" and _label(eqn)[0] == "norm":
                yield number, _label(eqn)[1]
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _only_uses(inner)


def _label(eqn: Any) -> tuple[str, int]:
    """Returns "layer" or "norm" and the index for an equation that is a label, else ("", 0)."""
    text = str(eqn.params.get("name", "")) if eqn and eqn.primitive.name == "name" else ""
    kind, _, number = text.partition(" ")
    return (kind, int(number)) if kind in ("layer", "norm") and number.isdecimal() else ("", 0)


class Folded(NamedTuple):
    """A network without the batch normalizations that are folded into its layers.

    Attributes:
      variables: The variables, NumPy, float32; kernels and biases contain the normalizations.
      shifts: What is added to the outputs of layers without a bias, float32 [D] by path.
      pairs: The folded pairs.
    """

    variables: dict[str, Any]
    shifts: dict[Path, np.ndarray]
    pairs: list[Pair]

    def apply(self, model: nn.Module) -> Callable[..., Any]:
        """Returns the network as a function (variables, *inputs, **options), for these or equally shaped variables."""
        removed = {pair.norm for pair in self.pairs}

        def without(call, args, kwargs, context):
            if type(context.module) is BatchNorm and context.module.path in removed:
                return args[0]
            y = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.path in self.shifts:
                y = y + self.shifts[context.module.path].astype(y.dtype)
            return y

        def apply(variables, *inputs, **options):
            with nn.intercept_methods(without):
                return model.apply(variables, *inputs, **options)

        return apply


def fold(model: nn.Module, variables: Mapping[str, Any], *inputs: Any) -> Folded:
    """Folds the batch normalizations of a network.

    Args:
      model: The network, which is called as `model.apply(variables, *inputs)` in inference.
      variables: Its variables, NumPy or JAX arrays.
      *inputs: Inputs, or their shapes and types.
    """
    foldable = pairs(model, variables, *inputs)
    folded = jax.tree.map(np.asarray, dict(variables))  # copies the dictionaries
    shifts = {}
    for pair in foldable:
        norm, layer = _at(folded["params"], pair.norm), _at(folded["params"], pair.layer)
        running = {name: value.astype(np.float64) for name, value in _at(folded["batch_stats"], pair.norm).items()}
        gain = norm["scale"] / np.sqrt(running["var"] + pair.epsilon)
        before = layer.get("bias", 0.0)
        layer["kernel"] = (layer["kernel"] * gain).astype(np.float32)
        shift = ((before - running["mean"]) * gain + norm["bias"]).astype(np.float32)
        if "bias" in layer:
            layer["bias"] = shift
        else:
            shifts[pair.layer] = shift
    return Folded(folded, shifts, foldable)


def _at(tree: Any, path: Path) -> Any:
    for name in path:
        tree = tree[name]
    return tree

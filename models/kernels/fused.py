"""Layers of trained networks on CPUs, by fused.cc: convolutions and products that end with what follows them.

XLA packs the kernels of its fast products in each call, and computes biases, sums and activations in passes over memory
of their own. Here, kernels are packed once, when a network is opened (models/compress/skip.py), and `merged` makes
additions and limits (ReLU, ReLU6) part of the loop that writes an output. There are no gradients.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Literal, Primitive
from jax.interpreters import mlir

from models.kernels import lowerings
from models.kernels.convolution import Padding, Pair

SIZE = 16  # kBlock in fused.cc
_MOST_TAPS = 25  # of depthwise kernels: most places of small maps see other taps of larger ones than their neighbors


class Packed(NamedTuple):
    """A kernel [kh, kw, C / groups, D] or [C, D] by blocks of output features, and a bias.

    Attributes:
      weights: float32 [D / SIZE, rounded up, kh kw C / groups, SIZE]; the last block begins at feature D - SIZE.
      bias: float32 [D], added to the result.
    """

    weights: np.ndarray | jax.Array
    bias: np.ndarray | jax.Array


def fits(shape: Sequence[int], groups: int = 1) -> bool:
    """Returns whether fused.cc has a loop for a kernel of this shape, in this number of groups."""
    inputs, features = shape[-2:]
    depthwise = groups > 1 and inputs == 1 and features == groups and math.prod(shape[:-2]) <= _MOST_TAPS
    return 0 not in shape and features >= SIZE and (groups == 1 or depthwise or features // groups % SIZE == 0)


def pack(kernel: np.ndarray, bias: np.ndarray | None = None) -> Packed:
    """Packs a kernel of at least SIZE features, with a bias or 0."""
    rows, features = kernel.reshape(-1, kernel.shape[-1]), kernel.shape[-1]
    starts = [min(start, features - SIZE) for start in range(0, features, SIZE)]
    weights = np.stack([rows[:, start : start + SIZE] for start in starts])
    bias = np.zeros(features) if bias is None else bias
    return Packed(np.asarray(weights, np.float32), np.asarray(bias, np.float32))


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The parameters of `_layer`, an operation (x, weights, bias, array to add or an empty one) -> y."""

    shape: tuple[int, ...]
    size: Pair
    strides: Pair
    padding: Padding
    dilation: Pair
    groups: int
    least: float = -np.inf
    most: float = np.inf


def _call(x: jax.Array, weights: jax.Array, bias: jax.Array, add: jax.Array, layer: _Layer) -> jax.Array:
    run = jax.ffi.ffi_call("ablate_conv_fused", jax.ShapeDtypeStruct(layer.shape, jnp.float32))
    low = [low for low, _ in layer.padding]
    pairs = {"size": layer.size, "strides": layer.strides, "low": low, "dilation": layer.dilation}
    attributes = {name: np.asarray(pair, np.int64) for name, pair in pairs.items()}
    limits = {"least": np.float32(layer.least), "most": np.float32(layer.most)}
    return run(x, weights, bias, add, groups=np.int64(layer.groups), **attributes, **limits)


_layer = Primitive("layer_fused")
_layer.def_impl(jax.jit(_call, static_argnames="layer"))
_layer.def_abstract_eval(lambda x, *_, layer: ShapedArray(layer.shape, x.dtype))
mlir.register_lowering(_layer, mlir.lower_fun(_call, multiple_results=False), platform="cpu")


def convolve(
    x: jax.Array, packed: Packed, size: Pair, strides: Pair, padding: Padding, dilation: Pair, groups: int = 1
) -> jax.Array:
    """Returns the convolution of images, plus the bias; the arguments are those of `models.kernels.blocks.convolve`."""
    features = packed.bias.shape[0]
    shape = (len(x), *lowerings.output_sizes(x.shape[1:3], size, strides, padding, dilation), features)
    return _layer.bind(x, *packed, _nothing(), layer=_Layer(shape, size, strides, padding, dilation, groups))


def multiply(x: jax.Array, packed: Packed) -> jax.Array:
    """Returns the product of x [..., C], float32, with a kernel [C, D], plus the bias."""
    rows = x.reshape(1, 1, -1, x.shape[-1])
    return convolve(rows, packed, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)).reshape(*x.shape[:-1], -1)


def _nothing() -> jax.Array:
    return jnp.zeros((0,), jnp.float32)


class _Pending(NamedTuple):
    """A layer that is not part of the program yet, because what follows may become part of it."""

    operands: tuple[Any, ...]
    layer: _Layer
    add: Any = None

    def bound(self) -> jax.Array:
        return _layer.bind(*self.operands, _nothing() if self.add is None else self.add, layer=self.layer)

    def then(self, name: str, other: Any) -> "_Pending | None":
        """Returns the layer with an operation as its end, or None if that must stay an operation."""
        layer, is_number = self.layer, np.ndim(other) == 0 and not isinstance(other, Tracer)
        if name == "add" and np.shape(other) == layer.shape and self.add is None:
            if other.dtype == jnp.float32 and (layer.least, layer.most) == (-np.inf, np.inf):
                return self._replace(add=other)
        elif name == "max" and is_number and layer.most == np.inf:
            return self._replace(layer=dataclasses.replace(layer, least=max(layer.least, float(other))))
        elif name == "min" and is_number:
            return self._replace(layer=dataclasses.replace(layer, most=min(layer.most, float(other))))
        return None


def merged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of arrays with the same results, whose layers of this module end with what follows them."""

    def call(*args: Any, **options: Any) -> Any:
        program, shapes = jax.make_jaxpr(lambda *args: function(*args, **options), return_shape=True)(*args)
        outputs = _evaluated(program, jax.tree.leaves(args))
        outputs = [output.bound() if isinstance(output, _Pending) else output for output in outputs]
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return call


def _evaluated(program: Any, args: Sequence[Any]) -> list[Any]:
    """Evaluates a program, some of whose arguments and results are `_Pending`."""
    jaxpr = program.jaxpr
    operands = [x for eqn in jaxpr.eqns for x in eqn.invars] + list(jaxpr.outvars)
    uses = collections.Counter(x for x in operands if not isinstance(x, Literal))
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *args], strict=True))

    def read(x: Any, pending: bool) -> Any:
        if isinstance(x, Literal):
            return x.val
        if isinstance(values[x], _Pending) and not (pending and uses[x] == 1):
            values[x] = values[x].bound()
        return values[x]

    for eqn in jaxpr.eqns:
        name, results = eqn.primitive.name, None
        inner = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}.get(name)
        if inner:
            results = _evaluated(eqn.params[inner], [read(x, True) for x in eqn.invars])
        elif name == "layer_fused":
            results = [_Pending(tuple(read(x, False) for x in eqn.invars[:3]), eqn.params["layer"])]
        elif name in ("add", "max", "min"):
            first, last = (read(x, True) for x in eqn.invars)
            pairs = ((first, eqn.invars[1]), (last, eqn.invars[0]))
            ends = (one.then(name, read(other, False)) for one, other in pairs if isinstance(one, _Pending))
            results = next(([end] for end in ends if end), None)
        if results is None:
            params = eqn.primitive.get_bind_params(eqn.params)
            results = eqn.primitive.bind(*(read(x, False) for x in eqn.invars), **params)
            results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(x, True) for x in jaxpr.outvars]

"""Operations with gradients of their own, which JAX can still differentiate in any mode and order.

jax.custom_vjp knows only reverse mode. The two kinds of operations here also support forward mode, second derivatives,
`jax.linearize` and `jax.vmap`:

  custom_vjp   a function with a gradient of its own. Its tangent is an operation that forward mode evaluates by JAX's
               derivative of the function, and that reverse mode transposes to the function's own gradient.
  Bilinear     a function that is linear in each of two arrays, such as a convolution. Its derivatives are the same
               function and its two transposes, which are derivatives of each other.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from models.kernels.tracing import onnx_wanted


class custom_vjp:
    """A function with a gradient of its own, like `jax.custom_vjp`, that also has derivatives of other modes.

    Args:
      function: Function of arrays.
      nondiff_argnums: Indices of the arguments that are not arrays.
      plain: The same function, by operations that JAX differentiates in forward mode; None if `function` is such.
    """

    def __init__(self, function: Callable, nondiff_argnums: tuple[int, ...] = (), plain: Callable | None = None):
        functools.update_wrapper(self, function)
        self._function, self._plain, self._nondiff_argnums = function, plain or function, nondiff_argnums

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """Sets the forward and backward pass, as `jax.custom_vjp.defvjp` does."""
        self._forward, self._backward = forward, backward

    def __call__(self, *args: Any) -> Any:
        if onnx_wanted():  # jax2onnx knows only JAX's own operations
            return self._function(*args)
        options = [args[i] for i in self._nondiff_argnums]
        leaves, tree = jax.tree.flatten([arg for i, arg in enumerate(args) if i not in self._nondiff_argnums])

        def of_leaves(function: Callable) -> Callable:
            def call(*leaves: Any) -> Any:
                arrays, settings = iter(jax.tree.unflatten(tree, leaves)), iter(options)
                return function(*(next(settings if i in self._nondiff_argnums else arrays) for i in range(len(args))))

            return call

        function = jax.custom_jvp(of_leaves(self._function))

        @functools.partial(function.defjvp, symbolic_zeros=True)
        def _(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
            y, residuals = of_leaves(self._forward)(*primals)
            outputs, output_tree = jax.tree.flatten(y)
            kept, kept_tree = jax.tree.flatten(residuals)

            def backward(kept: Sequence[Any], gradients: Sequence[Any]) -> list[Any]:
                residuals = jax.tree.unflatten(kept_tree, kept)
                return jax.tree.leaves(self._backward(*options, residuals, jax.tree.unflatten(output_tree, gradients)))

            moving = tuple(not isinstance(tangent, SymbolicZero) for tangent in tangents)
            rule = _Rule(
                lambda *leaves: jax.tree.leaves(of_leaves(self._plain)(*leaves)),
                backward,
                moving,
                tuple(jax.ShapeDtypeStruct(output.shape, output.dtype) for output in outputs),
            )
            result = _tangents.bind(*primals, *kept, *itertools.compress(tangents, moving), rule=rule)
            return y, jax.tree.unflatten(output_tree, result)

        return function(*leaves)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rule:
    """A function whose tangents `_tangents` computes from its arguments, the residuals, and the arguments' tangents.

    Attributes:
      function: Arguments -> list of outputs.
      backward: (residuals, gradients of the outputs) -> list of the gradients of all arguments.
      moving: Tells of each argument whether it has a tangent.
      outputs: Shapes and types of the outputs.
    """

    function: Callable
    backward: Callable
    moving: tuple[bool, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the arguments, residuals and tangents among the operands, or among any values per operand."""
        first, last = len(self.moving), len(operands) - sum(self.moving)
        return list(operands[:first]), list(operands[first:last]), list(operands[last:])


def _evaluate(*operands: Any, rule: _Rule) -> list[Any]:
    """Returns the tangents of the outputs, by JAX's derivative of the function."""
    arguments, _, tangents = rule.split(operands)

    def of_moving(*moving: Any) -> list[Any]:
        values = iter(moving)
        return rule.function(
            *(next(values) if moves else arg for moves, arg in zip(rule.moving, arguments, strict=True))
        )

    return jax.jvp(of_moving, tuple(itertools.compress(arguments, rule.moving)), tuple(tangents))[1]


def _transposed(gradients: Sequence[Any], *operands: Any, rule: _Rule) -> list[Any]:
    arguments, kept, tangents = rule.split(operands)
    by_argument = rule.backward(kept, [ad.instantiate_zeros(gradient) for gradient in gradients])
    wanted = itertools.compress(by_argument, rule.moving)
    return [None] * len([*arguments, *kept]) + [
        gradient if ad.is_undefined_primal(tangent) else None
        for gradient, tangent in zip(wanted, tangents, strict=True)
    ]


def _differentiated(operands: Sequence[Any], tangents: Sequence[Any], *, rule: _Rule) -> tuple[Any, Any]:
    """Returns the tangents and theirs: the second derivative, by JAX from `_evaluate`, which ignores the residuals."""
    of_arguments, of_kept, of_tangents = rule.split(tangents)
    if all(isinstance(tangent, ad.Zero) for tangent in of_arguments):  # linear in the tangents
        y = _tangents.bind(*operands, rule=rule)
        given = [ad.instantiate_zeros(tangent) for tangent in of_tangents]
        return y, _tangents.bind(*operands[: len(operands) - len(given)], *given, rule=rule)
    first, last = len(of_arguments), len(of_arguments) + len(of_kept)
    moves = [not isinstance(x, ad.Zero) and not first <= i < last for i, x in enumerate(tangents)]

    def of_moving(*moving: Any) -> list[Any]:
        values = iter(moving)
        return _evaluate(*(next(values) if move else x for move, x in zip(moves, operands, strict=True)), rule=rule)

    return jax.jvp(of_moving, tuple(itertools.compress(operands, moves)), tuple(itertools.compress(tangents, moves)))


def _batched(axis: Any, operands: Sequence[Any], places: Sequence[int | None], *, rule: _Rule) -> tuple[Any, Any]:
    named = {"axis_name": axis.name} if isinstance(axis.name, str) else {}
    lift = functools.partial(jax.vmap, axis_size=axis.size, spmd_axis_name=axis.spmd_name, **named)
    operands = [batching.bdim_at_front(x, place, axis.size) for x, place in zip(operands, places, strict=True)]
    outputs = tuple(jax.ShapeDtypeStruct((axis.size, *output.shape), output.dtype) for output in rule.outputs)
    rule = dataclasses.replace(rule, function=lift(rule.function), backward=lift(rule.backward), outputs=outputs)
    return _tangents.bind(*operands, rule=rule), [0] * len(outputs)


_tangents = Primitive("custom_vjp_tangents")
_tangents.multiple_results = True
_tangents.def_impl(_evaluate)
_tangents.def_abstract_eval(lambda *_, rule: [ShapedArray(output.shape, output.dtype) for output in rule.outputs])
ad.primitive_transposes[_tangents] = _transposed
ad.primitive_jvps[_tangents] = _differentiated
batching.fancy_primitive_batchers[_tangents] = _batched
mlir.register_lowering(_tangents, mlir.lower_fun(_evaluate, multiple_results=True))


class Bilinear:
    """A function y(x, kernel) that is linear in each array; a batch of x can be joined with x's first axis.

    Its two transposes, to x and to the kernel, are operations as well, and all derivatives of the three are among the
    three. The functions below are for programs for a CPU; those for other platforms use `plain` and its transposes.

    Args:
      name: Name of the operation in a program.
      shape: (shape of x, shape of the kernel, *options) -> shape of y.
      plain: (x, kernel, *options) -> y, by operations that JAX can transpose.
      forward: (x, kernel, *options) -> y.
      to_x: (dy, kernel, shape of x, *options) -> gradient of x.
      to_kernel: (x, dy, shape of kernel, *options) -> gradient of the kernel.
      stored: Replaces `forward` in programs with derivatives, which keep x in memory in any case.
    """

    def __init__(
        self,
        name: str,
        shape: Callable,
        plain: Callable,
        forward: Callable,
        to_x: Callable,
        to_kernel: Callable,
        stored: Callable | None = None,
    ):
        y, x, kernel = (Primitive(name + end) for end in ("", "_to_x", "_to_kernel"))
        self._shape, self._y = shape, y
        # operands: of y (x, kernel), of x (dy, kernel), of the kernel (x, dy)
        _define(
            y,
            lambda x, kernel, shape, *options: plain(x, kernel, *options),
            lambda x, kernel, shape, *options: forward(x, kernel, *options),
            [lambda dy, _, k, **to: x.bind(dy, k, **to), lambda dy, x, _, **to: kernel.bind(x, dy, **to)],
            stored=stored and (lambda x, kernel, shape, *options: stored(x, kernel, *options)),
        )
        _define(
            x,
            lambda dy, kernel, shape, *options: _transpose(lambda x: plain(x, kernel, *options), shape, dy),
            to_x,
            [lambda dx, _, k, **to: y.bind(dx, k, **to), lambda dx, dy, _, **to: kernel.bind(dx, dy, **to)],
        )
        _define(
            kernel,
            lambda x, dy, shape, *options: _transpose(lambda kernel: plain(x, kernel, *options), shape, dy),
            to_kernel,
            [lambda dk, _, dy, **to: x.bind(dy, dk, **to), lambda dk, x, _, **to: y.bind(x, dk, **to)],
            joins=False,
        )

    def __call__(self, x: jax.Array, kernel: jax.Array, *options: Any) -> jax.Array:
        """Returns y; the options are hashable."""
        shape = self._shape(x.shape, kernel.shape, *options)
        return self._y.bind(x, kernel, shape=shape, options=options, stored=False)


def _transpose(function: Callable, shape: Sequence[int], dy: jax.Array) -> jax.Array:
    """Returns the transpose of a linear function of an array of this shape, applied to dy."""
    return jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, dy.dtype))(dy)[0]


def _define(
    operation: Primitive,
    plain: Callable,
    on_cpu: Callable,
    transposes: Sequence[Callable],
    joins: bool = True,
    stored: Callable | None = None,
) -> None:
    """Defines an operation (a, b, shape of the result, *options) that is linear in a and in b.

    Its parameters are `shape` and `options` of its functions, and `stored`, which chooses the function `stored`.

    Args:
      operation: The operation.
      plain: What it computes.
      on_cpu: What it computes in programs for a CPU.
      transposes: For each of a and b, (gradient of the result, a, b, **parameters) -> its gradient.
      joins: Whether a batch of a can be joined with a's first axis, which is the result's.
      stored: Replaces `on_cpu` in programs with derivatives.
    """
    functions = {False: on_cpu, True: stored or on_cpu}

    def plainly(a: Any, b: Any, *, shape: Any, options: Any, stored: bool) -> Any:
        return plain(a, b, shape, *options)

    def compute(a: Any, b: Any, *, shape: Any, options: Any, stored: bool) -> Any:
        return functions[stored](a, b, shape, *options)

    def differentiate(values: Any, tangents: Any, **parameters: Any) -> tuple[Any, Any]:
        parameters["stored"] = True
        y, (a, b), (da, db) = operation.bind(*values, **parameters), values, tangents
        parts = [
            operation.bind(*pair, **parameters)
            for tangent, pair in ((da, (da, b)), (db, (a, db)))
            if not isinstance(tangent, ad.Zero)
        ]
        return y, functools.reduce(ad.add_tangents, parts)

    def transpose(gradient: Any, a: Any, b: Any, *, shape: Any, options: Any, stored: bool) -> list[Any]:
        results = [None, None]
        for i, operand in enumerate((a, b)):
            if ad.is_undefined_primal(operand) and not isinstance(gradient, ad.Zero):
                results[i] = transposes[i](gradient, a, b, shape=operand.aval.shape, options=options, stored=True)
        return results

    def batch(values: Any, places: Any, *, shape: Any, **parameters: Any) -> tuple[Any, int]:
        size = next(x.shape[place] for x, place in zip(values, places, strict=True) if place is not None)
        a, b = (x if place is None else jnp.moveaxis(x, place, 0) for x, place in zip(values, places, strict=True))
        if places[1] is None and joins:  # [size, N, ...] -> [size N, ...]
            a = a.reshape(size * a.shape[1], *a.shape[2:])
            return operation.bind(a, b, shape=(size * shape[0], *shape[1:]), **parameters).reshape(size, *shape), 0
        one = functools.partial(operation.bind, shape=shape, **parameters)
        moving = [x for x, place in zip((a, b), places, strict=True) if place is not None]
        if len(moving) == 2:
            return lax.map(lambda pair: one(*pair), (a, b)), 0
        return lax.map((lambda b: one(a, b)) if places[0] is None else (lambda a: one(a, b)), moving[0]), 0

    operation.def_impl(lambda a, b, **to: (compute if jax.default_backend() == "cpu" else plainly)(a, b, **to))
    operation.def_abstract_eval(lambda a, b, *, shape, **_: ShapedArray(shape, a.dtype))
    ad.primitive_jvps[operation] = differentiate
    ad.primitive_transposes[operation] = transpose
    batching.primitive_batchers[operation] = batch
    mlir.register_lowering(operation, mlir.lower_fun(plainly, multiple_results=False))
    mlir.register_lowering(operation, mlir.lower_fun(compute, multiple_results=False), platform="cpu")

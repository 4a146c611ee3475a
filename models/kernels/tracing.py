"""How a program is traced: by which formulations of its layers, and with which gradients.

Layers have gradients of their own for speed and memory (`custom_vjp`). JAX takes these for reverse mode alone, so that
`jax.jvp` and `jax.hessian` need programs that are traced within `lowering("forward_mode")`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from models.errors import UserError, choice_error

LOWERINGS = ("auto", "plain", "packed", "onnx", "forward_mode")
_lowering = jax.make_user_context("auto")


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Chooses the formulations of the layers that are traced within the context.

    It acts while tracing, and functions that are jitted are traced once for each name.

    Args:
      name: "auto" for the fastest; "plain" for lax.conv_general_dilated and its like, for programs that are traced here
        to run on another backend (export); "forward_mode", as plain, with JAX's own derivatives of any mode and order;
        "packed", as auto, but XNOR layers (models/layers/low_bit.py) compute with packed bits, and have no gradients;
        "onnx", as plain, in operations that jax2onnx converts right.

    Raises:
      UserError: unknown name.
    """
    if name not in LOWERINGS:
        raise choice_error("lowering", name, LOWERINGS)
    with _lowering(name):
        yield


def plain_wanted() -> bool:
    """Returns whether the program that is being traced is inside of `lowering("plain")`, "onnx" or "forward_mode"."""
    return _lowering.value in ("plain", "onnx", "forward_mode")


def onnx_wanted() -> bool:
    """Returns whether the program that is being traced is inside of `lowering("onnx")`."""
    return _lowering.value == "onnx"


def packed_wanted() -> bool:
    """Returns whether the program that is being traced is inside of `lowering("packed")`."""
    return _lowering.value == "packed"


def custom_vjp(function: Callable, nondiff_argnums: tuple[int, ...] = ()) -> Callable:
    """Returns what `jax.custom_vjp` makes, of which forward mode is a UserError that names the cure.

    Args:
      function: of arrays; traced as it is within `lowering("forward_mode")`.
      nondiff_argnums: arguments that are no arrays.
    """
    reverse = jax.custom_vjp(function, nondiff_argnums)

    @functools.wraps(function)
    def call(*args):
        if _lowering.value == "forward_mode":
            return function(*args)
        return reverse(*(arg if i in nondiff_argnums else reverse_only(arg) for i, arg in enumerate(args)))

    call.defvjp = reverse.defvjp
    return call


def no_derivative(function: Callable) -> Callable:
    """Returns `function` of arrays, of which any derivative is a UserError that names the cure."""
    function = jax.custom_jvp(function)
    function.defjvp(_refuse)
    return function


def reverse_only(x: jax.Array) -> jax.Array:
    """Returns x. Reverse mode passes through; forward mode raises a UserError that names the cure."""
    return x if onnx_wanted() else _value.bind(x)  # jax2onnx knows JAX's own operations alone


def _refuse(*_: Any, **__: Any) -> Any:
    raise UserError(
        "this network's layers have fast gradients for reverse mode and the first derivative alone; for "
        "jax.jvp, jax.jacfwd or jax.hessian, trace the whole computation within "
        "`with models.lowering('forward_mode'):`"
    )


# An identity of which nothing is left in a compiled program. Its derivative is an identity as well, which reverse mode
# transposes and never evaluates, while forward mode evaluates, batches or compiles it.
_value, _tangent = Primitive("reverse_only"), Primitive("reverse_only_tangent")
_value.def_impl(lambda x: x)
_value.def_abstract_eval(lambda x: x)
batching.primitive_batchers[_value] = lambda args, axes: (_value.bind(*args), *axes)
mlir.register_lowering(_value, lambda _, x: [x])
ad.primitive_jvps[_value] = lambda values, tangents: (
    values[0],
    tangents[0] if isinstance(tangents[0], ad.Zero) else _tangent.bind(tangents[0]),
)
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda x: x)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
batching.primitive_batchers[_tangent] = _refuse
mlir.register_lowering(_tangent, _refuse)

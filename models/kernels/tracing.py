"""Settings for tracing a program: its platform, the lowerings of its layers, and which derivatives they have.

Layers have custom gradients for speed and memory (`custom_vjp`), which JAX uses only in reverse mode. `jax.jvp` and
`jax.hessian` need programs that are traced within `lowering("forward_mode")`.
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
PLATFORMS = ("cpu", "gpu", "tpu")
_lowering = jax.make_user_context("auto")
_platform = jax.make_user_context("")


@contextlib.contextmanager
def for_platform(name: str) -> Iterator[None]:
    """Traces programs for another platform than JAX's backend, within the context: they are compiled, but not run.

    Args:
      name: "cpu", "gpu" or "tpu".

    Raises:
      UserError: The name is unknown.
    """
    if name not in PLATFORMS:
        raise choice_error("platform", name, PLATFORMS)
    with _platform(name):
        yield


def platform() -> str:
    """Returns the platform for which a program is traced: "cpu", "gpu" or "tpu"; JAX's backend by default."""
    return _platform.value or jax.default_backend()


@contextlib.contextmanager
def lowering(name: str) -> Iterator[None]:
    """Chooses the lowerings of the layers that are traced within the context.

    It takes effect while tracing; jitted functions are traced once for each name.

    Args:
      name: "auto" chooses the fastest lowerings. "plain" uses lax.conv_general_dilated and similar operations, for
        programs that run on another backend (export). "forward_mode" is like plain, with JAX's own derivatives of any
        mode and order. "packed" is like auto, but XNOR layers (models/layers/low_bit.py) compute with packed bits and
        have no gradients. "onnx" is like plain, with operations that jax2onnx converts correctly.

    Raises:
      UserError: The name is unknown.
    """
    if name not in LOWERINGS:
        raise choice_error("lowering", name, LOWERINGS)
    with _lowering(name):
        yield


def plain_wanted() -> bool:
    """Returns whether tracing happens within `lowering("plain")`, "onnx" or "forward_mode"."""
    return _lowering.value in ("plain", "onnx", "forward_mode")


def onnx_wanted() -> bool:
    """Returns whether tracing happens within `lowering("onnx")`."""
    return _lowering.value == "onnx"


def packed_wanted() -> bool:
    """Returns whether tracing happens within `lowering("packed")`."""
    return _lowering.value == "packed"


class custom_vjp:
    """A function like those of `jax.custom_vjp`, for which forward mode raises a UserError with a remedy.

    Args:
      function: Function of arrays; within `lowering("forward_mode")` it is traced as it is.
      nondiff_argnums: Indices of the arguments that are not arrays.
    """

    def __init__(self, function: Callable, nondiff_argnums: tuple[int, ...] = ()):
        functools.update_wrapper(self, function)
        self._function, self._nondiff_argnums = function, nondiff_argnums
        self._reverse = jax.custom_vjp(function, nondiff_argnums)

    def __call__(self, *args: Any) -> Any:
        if _lowering.value == "forward_mode":
            return self._function(*args)
        return self._reverse(*(arg if i in self._nondiff_argnums else reverse_only(arg) for i, arg in enumerate(args)))

    def defvjp(self, forward: Callable, backward: Callable) -> None:
        """Sets the forward and backward pass, as `jax.custom_vjp.defvjp` does."""
        self._reverse.defvjp(forward, backward)


def no_derivative(function: Callable) -> Callable:
    """Returns a function of arrays whose derivatives raise a UserError with a remedy."""
    function = jax.custom_jvp(function)
    function.defjvp(_refuse)
    return function


def reverse_only(x: jax.Array) -> jax.Array:
    """Returns x. Reverse mode passes through; forward mode raises a UserError with a remedy."""
    return x if onnx_wanted() else _value.bind(x)  # jax2onnx knows only JAX's own operations


def _refuse(*_: Any, **__: Any) -> Any:
    raise UserError(
        "this network's layers have fast gradients only for reverse mode and the first derivative; for "
        "jax.jvp, jax.jacfwd or jax.hessian, trace the whole computation within "
        "`with models.lowering('forward_mode'):`"
    )


# `_value` is an identity that adds nothing to a compiled program. Its derivative is another identity, `_tangent`.
# Reverse mode only transposes `_tangent`. Forward mode evaluates, batches or compiles it, which raises a UserError.
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

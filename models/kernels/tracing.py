"""Settings for tracing a program: its platform and the lowerings of its layers."""

import contextlib
from collections.abc import Iterator

import jax

from models.errors import choice_error

LOWERINGS = ("auto", "plain", "packed", "onnx")
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
        programs that run on another backend (export). "packed" is like auto, but XNOR layers (models/layers/low_bit.py)
        compute with packed bits and have no gradients. "onnx" is like plain, with operations that jax2onnx converts
        correctly.

    Raises:
      UserError: The name is unknown.
    """
    if name not in LOWERINGS:
        raise choice_error("lowering", name, LOWERINGS)
    with _lowering(name):
        yield


def plain_wanted() -> bool:
    """Returns whether tracing happens within `lowering("plain")` or "onnx"."""
    return _lowering.value in ("plain", "onnx")


def onnx_wanted() -> bool:
    """Returns whether tracing happens within `lowering("onnx")`."""
    return _lowering.value == "onnx"


def packed_wanted() -> bool:
    """Returns whether tracing happens within `lowering("packed")`."""
    return _lowering.value == "packed"

"""Endpoints: named activations of a network that can be read and differentiated from outside.

A model marks one with `x = Endpoint("stage1")(x)`, which has no other effect. Inside a submodule, the submodule's path
comes first: "stage2/block3". `capture` reads endpoints, also under jit and grad.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from models.errors import choice_error


class Endpoint(nn.Module):
    """The identity, with a label that `capture` looks for. It must be outside rematerialized blocks."""

    label: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return x

    def full_name(self) -> str:
        """Returns the path of the enclosing module and the label, joined by slashes."""
        return "/".join((*self.path[:-1], self.label))


def capture(
    model: nn.Module,
    variables: Any,
    *inputs: jax.Array,
    names: Iterable[str] | None = None,
    add: Mapping[str, jax.Array] | None = None,
    layers: bool = False,
    **kwargs: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """Applies a model and returns activations as well.

    Args:
      model: The network.
      variables: Its variables.
      *inputs: Positional arguments of `model.apply`.
      names: Endpoints to return; None for all.
      add: {name: array} to add to these activations before the network continues. The gradient with respect to such an
        array of zeros is the gradient with respect to the activation. Returned activations include it.
      layers: Whether the output of every layer with a kernel is an endpoint as well, named by the layer's path, e.g.
        "stage2/block3/conv1".
      **kwargs: Keyword arguments of `model.apply`, e.g. `mutable`.

    Returns:
      The result of `model.apply`, and {name: activation} in the order of the computation.

    Raises:
      UserError: The model lacks a requested endpoint.
    """
    add = dict(add or {})
    requested = None if names is None else set(names)
    activations: dict[str, jax.Array] = {}

    def read(call, args, call_kwargs, context):
        x = call(*args, **call_kwargs)
        module = context.module
        marked = isinstance(module, Endpoint)
        if context.method_name == "__call__" and (marked or (layers and module.has_variable("params", "kernel"))):
            name = module.full_name() if marked else "/".join(module.path)
            if name in add:
                x = x + add[name].astype(x.dtype)
            activations[name] = x
        return x

    with nn.intercept_methods(read):
        output = model.apply(variables, *inputs, **kwargs)
    for name in (*(requested or ()), *add):
        if name not in activations:
            raise choice_error("endpoint", name, activations)
    return output, {name: x for name, x in activations.items() if requested is None or name in requested}


def order(model: nn.Module, variables: Any, *inputs: Any) -> list[str]:
    """Returns paths of layers with a kernel and names of endpoints, in the order of the computation."""
    names = []

    def trace(variables, *inputs):  # the result of eval_shape would be sorted alphabetically
        names.extend(capture(model, variables, *inputs, layers=True)[1])

    jax.eval_shape(trace, variables, *inputs)
    return names

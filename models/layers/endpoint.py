"""Named places in a network whose activations can be read, and differentiated, from outside.

A model marks them with `x = Endpoint("stage1")(x)`; nothing else about the model changes. Where the mark is inside a
submodule, that one's path comes first: "stage2/block3". `capture` reads them, under jit and grad as well.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax

from models.errors import choice_error


class Endpoint(nn.Module):
    """The identity, with a label by which `capture` finds it. Belongs outside of rematerialized blocks."""

    label: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return x

    def full_name(self) -> str:
        """The path of the enclosing module and the label, joined by slashes."""
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
    """Applies a model and returns its activations as well.

    Args:
      model, variables, *inputs, **kwargs: as for `model.apply`; with `mutable`, the first result is what that returns.
      names: the endpoints to return; None for all.
      add: {name: array} added to these activations before the network goes on, so that the gradient by such an array
        of zeros is the gradient by the activation. What is returned has it added.
      layers: whether the output of every layer with a kernel is an endpoint, too, by the layer's path:
        "stage2/block3/conv1".

    Returns:
      What `model.apply` returns, and {name: activation} in the order of the computation.

    Raises:
      UserError: an endpoint asked for is not in this model.
    """
    add = dict(add or {})
    wanted = None if names is None else set(names)
    found: dict[str, jax.Array] = {}

    def read(call, args, call_kwargs, context):
        x = call(*args, **call_kwargs)
        module = context.module
        marked = isinstance(module, Endpoint)
        if context.method_name == "__call__" and (marked or (layers and module.has_variable("params", "kernel"))):
            name = module.full_name() if marked else "/".join(module.path)
            if name in add:
                x = x + add[name].astype(x.dtype)
            found[name] = x
        return x

    with nn.intercept_methods(read):
        output = model.apply(variables, *inputs, **kwargs)
    for name in (*(wanted or ()), *add):
        if name not in found:
            raise choice_error("endpoint", name, found)
    return output, {name: x for name, x in found.items() if wanted is None or name in wanted}


def order(model: nn.Module, variables: Any, *inputs: Any) -> list[str]:
    """Paths of the layers with a kernel, and names of the endpoints, in the order of the computation."""
    found = []

    def trace(variables, *inputs):  # what eval_shape returned would be in the order of the alphabet
        found.extend(capture(model, variables, *inputs, layers=True)[1])

    jax.eval_shape(trace, variables, *inputs)
    return found

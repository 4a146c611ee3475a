"""Networks: pure functions of fields, variables and images, which know nothing of training.

model = models.create("resnet50", norm="group", num_classes=10)
variables = models.initialize(model, jax.random.key(0), (1, 224, 224, 3))
logits = model.apply(variables, images)
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import plugins
from models.errors import UserError, choice_error, has_type
from models.kernels import runtime
from models.kernels.tracing import lowering
from models.layers.init import jit_once

__version__ = "0.1.0"

runtime.tune()
runtime.keep_programs()

# Beginning of a name: the module of its family, imported when it is needed. Such a module has a table VARIANTS of
# partial applications of module classes to fields.
FAMILIES = {
    "airbench": "models.airbench",
    "alexnet": "models.alexnet",
    "blockdrop": "models.gated",
    "convnet_aig": "models.gated",
    "convnext": "models.convnext",
    "convnext_ladder": "models.convnext_ladder",
    "densenet": "models.densenet",
    "early_exit": "models.early_exit",
    "lenet": "models.lenet",
    "mobilenet": "models.mobilenet",
    "msdnet": "models.msdnet",
    "plain": "models.resnet",
    "preresnet": "models.resnet",
    "resnet": "models.resnet",
    "resnext": "models.resnet",
    "swin": "models.swin",
    "transformer": "models.transformer",
    "vgg": "models.vgg",
    "vit": "models.vit",
    "wide_resnet": "models.resnet",
}
# A field by the name that users give it, where flax has taken that name.
_FIELD_OF = {"init": "kernel_init"}


def names() -> list[str]:
    """Every registered name, sorted."""
    return sorted({name for module in set(FAMILIES.values()) for name in importlib.import_module(module).VARIANTS})


def fields(name: str) -> list[str]:
    """The fields of the network `name` that `create` takes; UserError where there is no such network."""
    users = {field: user for user, field in _FIELD_OF.items()}
    return [
        users.get(field.name, field.name)
        for field in dataclasses.fields(_variant(name).func)
        if field.name not in ("parent", "name")
    ]


def create(name: str, /, **overrides: Any) -> nn.Module:
    """Makes the network `name`: apply(variables, images [N, H, W, C], train=False) gives logits [N, num_classes].

    Its layers have gradients of their own, for reverse mode and the first derivative. Forward mode (jax.jvp,
    jax.jacfwd, jax.hessian) needs JAX's derivatives, which the network has within a context:

      with models.lowering("forward_mode"):
          logits, tangents = jax.jvp(lambda x: model.apply(variables, x), (images,), (directions,))

    Args:
      name: one of `names()`, or FILE.py:NAME, with NAME in a table VARIANTS of that file (plugins.py).
      **overrides: other values for some of `fields(name)`; `init` is the initialization of kernels.

    Raises:
      UserError: unknown name, field, or value of a field; `widths` of a layer that there is not, or that cannot have
        them.
    """
    factory, allowed = _variant(name), fields(name)
    types = {field.name: field.type for field in dataclasses.fields(factory.func)}
    for field, value in overrides.items():
        if field not in allowed:
            raise choice_error(f"field of {name}", field, allowed)
        wanted = types[_FIELD_OF.get(field, field)]
        if wanted in (int, float, bool, str) and not has_type(value, wanted):
            raise UserError(f"model field {field}={value!r} must be of type {wanted.__name__}")
    model = factory(**{_FIELD_OF.get(field, field): _tuples(value) for field, value in overrides.items()})
    if getattr(model, "widths", ()):
        _check_widths(model)
    return model


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, as tuples: fields of flax modules have to be hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_widths(model: nn.Module) -> None:
    """UserError where `model.widths` names no layer, or features that its layer does not get or cannot have."""
    try:
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), *model.example())
    except (TypeError, ValueError) as error:  # what JAX raises for shapes that do not fit, and UserError
        raise UserError(f"widths={model.widths} do not fit the network: {str(error).splitlines()[0]}") from None
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    kernels = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/"): leaf.shape
        for path, leaf in leaves
        if path[-1].key == "kernel"
    }
    for path, features in model.widths:
        if path not in kernels:
            raise choice_error("layer in widths", path, kernels)
        if kernels[path][-1] != features:
            raise UserError(f"widths: {path} has {kernels[path][-1]} features whatever is asked for, not {features}")
    if logits.shape[-1] != model.num_classes:
        raise UserError(f"widths={model.widths} leave {logits.shape[-1]} of {model.num_classes} classes")


def _variant(name: str) -> functools.partial:
    if plugins.split(name):
        return _partial(name, plugins.load(name, "VARIANTS"))
    families = [start for start in FAMILIES if name.startswith(start)]
    variants = importlib.import_module(FAMILIES[max(families, key=len)]).VARIANTS if families else {}
    if name not in variants:
        raise choice_error("model", name, names())
    return _partial(name, variants[name])


def _partial(name: str, found: Any) -> functools.partial:
    """A class or a partial application, as the latter; UserError where `found` is neither."""
    made = functools.partial(found) if callable(found) else None
    if made is None or not isinstance(made.func, type) or not issubclass(made.func, nn.Module):
        raise UserError(f"model {name} is {found!r}, not a flax module or a functools.partial of one")
    return made


def initialize(
    model: nn.Module, rng: jax.Array, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Draws a model's variables in one jitted call: {"params": ..., "batch_stats": ... where there is batch norm}.

    Args:
      model: from `create`, or any module that takes images.
      rng: a key; each parameter's draw depends on it and on the parameter's path alone.
      inputs: [N, H, W, C] of float32 images, of which only C matters to most networks; or shapes and types of
        everything the model is called with, as `model.example()` gives them.

    Raises:
      UserError: the variables are more than this machine's memory.
    """
    with lowering("plain"):

        def init(rng):
            return model.init(rng, *(jnp.zeros(x.shape, x.dtype) for x in abstract(inputs)))

        if isinstance(rng, jax.core.Tracer):  # for shapes alone
            return init(rng)
        draw = jit_once(init)
        _check_memory(model, draw, rng)
        return draw(rng)


def _check_memory(model: nn.Module, draw: Any, rng: jax.Array) -> None:
    """Raises UserError where the variables that `draw` makes are more than this machine's memory."""
    try:
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(draw.trace(rng).out_info))
    except (NotImplementedError, OverflowError):  # sizes that JAX cannot count
        size = math.inf
    if size > runtime.memory():
        sizes = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        raise UserError(
            f"the variables of this {type(model).__name__} take {size / 2**30:,.0f} GiB, and this machine "
            f"has {runtime.memory() / 2**30:,.0f} GiB of memory; its sizes are "
            + ", ".join(f"{name}={value}" for name, value in sizes.items() if type(value) is int)
        )


def abstract(inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and types of a model's inputs; a plain shape is one of float32 images."""
    if all(isinstance(x, jax.ShapeDtypeStruct) for x in inputs) and inputs:
        return tuple(inputs)
    return (jax.ShapeDtypeStruct(tuple(inputs), jnp.float32),)

"""Networks: pure functions of fields, variables and images, independent of training.

model = models.create("resnet50", norm="group", num_classes=10)
variables = models.initialize(model, jax.random.key(0), (1, 224, 224, 3))
logits = model.apply(variables, images)
"""

import dataclasses
import fnmatch
import functools
import importlib
import math
import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any, cast

if (
    sys.argv[:1] == ["-m"]
    and any(name.split(".")[0] == "models" for name in sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Python is importing the module of `python -m models…`. Until the command starts (command.py), ctrl-C has nothing
    # to clean up, and a KeyboardInterrupt inside an import would print a traceback, crash native code, or get lost.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

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

# {beginning of a name: module of the family}. Modules are imported on demand and have a table VARIANTS of module
# classes with fields, as partial applications.
FAMILIES = {
    "airbench": "models.airbench",
    "alexnet": "models.alexnet",
    "blockdrop": "models.gated",
    "convnet_aig": "models.gated",
    "convnext": "models.convnext",
    "convnext_ladder": "models.convnext_ladder",
    "densenet": "models.densenet",
    "early_exit": "models.early_exit",
    "efficientnet_lite": "models.efficientnet_lite",
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
# {name for users: field of the module}, for names that flax modules already use themselves.
_FIELD_OF = {"init": "kernel_init"}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the registered names that match a pattern such as "*resnet*" (as in file names), sorted; all by default.

    An empty list says that none matches.
    """
    every = {name for module in set(FAMILIES.values()) for name in importlib.import_module(module).VARIANTS}
    return sorted(name for name in every if fnmatch.fnmatchcase(name, pattern))


def fields(name: str) -> list[str]:
    """Returns the fields of the network `name` that `create` takes; raises UserError for an unknown name."""
    users = {field: user for user, field in _FIELD_OF.items()}
    return [
        users.get(field.name, field.name)
        for field in dataclasses.fields(cast(Any, _variant(name).func))
        if field.name not in ("parent", "name")
    ]


def create(name: str, /, **overrides: Any) -> nn.Module:
    """Creates the network `name`: apply(variables, images [N, H, W, C], train=False) returns logits [N, num_classes].

    It is differentiable in every mode and order: jax.grad, jax.jvp, jax.linearize, jax.hessian, also under jax.vmap.

    Args:
      name: One of `list_models()`, or FILE.py:NAME, with NAME in a table VARIANTS of this file (plugins.py).
      **overrides: Values for some of `fields(name)`; `init` is the initialization of kernels.

    Raises:
      UserError: The name, a field, or the value of a field is wrong, or `widths` do not fit the network.
    """
    factory, allowed = _variant(name), fields(name)
    types = {field.name: field.type for field in dataclasses.fields(cast(Any, factory.func))}
    for field, value in overrides.items():
        if field not in allowed:
            raise choice_error(f"field of {name}", field, allowed)
        expected = types[_FIELD_OF.get(field, field)]
        if isinstance(expected, type) and expected in (int, float, bool, str) and not has_type(value, expected):
            raise UserError(f"model field {field}={value!r} must be of type {expected.__name__}")
    model = factory(**{_FIELD_OF.get(field, field): _tuples(value) for field, value in overrides.items()})
    if getattr(model, "widths", ()):
        _check_widths(model)
    return model


def _tuples(value: Any) -> Any:
    """Converts lists, as in JSON, to tuples, because fields of flax modules must be hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_widths(model: Any) -> None:
    """Raises UserError if `model.widths` names an unknown layer, or features that its layer cannot have."""
    try:
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), *model.example())
    except (TypeError, ValueError) as error:  # UserError, and JAX's errors for shapes that do not fit
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
            raise UserError(f"widths: {path} always has {kernels[path][-1]} features, not {features}")
    if logits.shape[-1] != model.num_classes:
        raise UserError(
            f"widths={model.widths} cut the head to {logits.shape[-1]} of {model.num_classes} classes; "
            "remove the head from widths"
        )


def family(name: str) -> str:
    """Returns the name of the module that defines a network, e.g. "models.resnet" for "resnet50"."""
    return FAMILIES[max((start for start in FAMILIES if name.startswith(start)), key=len)]


def _variant(name: str) -> functools.partial:
    """Returns the network `name` as a partial application of its class; raises UserError for an unknown name."""
    if plugins.split(name):
        return _partial(name, plugins.load(name, "VARIANTS"))
    families = [start for start in FAMILIES if name.startswith(start)]
    variants = importlib.import_module(FAMILIES[max(families, key=len)]).VARIANTS if families else {}
    if name not in variants:
        raise choice_error("model", name, list_models(), own=True)
    return _partial(name, variants[name])


def _partial(name: str, entry: Any) -> functools.partial:
    """Converts a class or a partial application of one to the latter; raises UserError for anything else."""
    factory = functools.partial(entry) if callable(entry) else None
    if factory is None or not isinstance(factory.func, type) or not issubclass(factory.func, nn.Module):
        raise UserError(f"model {name} is {entry!r}, not a flax module or a functools.partial of one")
    return factory


def initialize(
    model: nn.Module, rng: jax.Array, inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """Initializes a model's variables in one jitted call: {"params": ...}, and "batch_stats" with batch norm.

    Args:
      model: A network from `create`, or any module that takes images.
      rng: Key; each parameter depends only on the key and its path.
      inputs: [N, H, W, C], the shape of float32 images, of which only C matters to most networks; or shapes and types
        of all inputs, as from `model.example()`.

    Raises:
      UserError: The variables exceed the memory of this machine.
    """
    with lowering("plain"):

        def init(rng):
            return model.init(rng, *(jnp.zeros(x.shape, x.dtype) for x in abstract(inputs)))

        if isinstance(rng, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]  JAX imports it lazily
            return dict(init(rng))
        draw = jit_once(init)
        _check_memory(model, draw, rng)
        return draw(rng)


def _check_memory(model: nn.Module, draw: Any, rng: jax.Array) -> None:
    """Raises UserError if the variables that `draw` returns exceed the memory of this machine."""
    try:
        size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(draw.trace(rng).out_info))
    except (NotImplementedError, OverflowError):  # sizes that JAX cannot count
        size = math.inf
    if size > runtime.memory():
        sizes = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        raise UserError(
            f"the variables of this {type(model).__name__} take {size / 2**30:,.0f} GiB, but this machine "
            f"has {runtime.memory() / 2**30:,.0f} GiB of memory; the network has "
            + ", ".join(f"{name}={value}" for name, value in sizes.items() if type(value) is int)
        )


def load(
    where: str, /, *, new: Collection[str] = (), seed: int = 0, **fields: Any
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Returns a pretrained network, (model, variables, card); card["preprocessing"] says how to prepare images.

      model, variables, card = models.load("hf:timm/resnet50.a1_in1k")

    Args:
      where: "hf:ORGANIZATION/NAME", with @REVISION if not the newest; "torchvision:NAME/WEIGHTS"; the URL of an .npz
        file of BiT or of JAX's Vision Transformers; or a .safetensors file of `python -m models.weights import`.
      new: Parts to draw anew, such as "head" for other classes.
      seed: Seed of what is drawn.
      **fields: Values for some of `fields(name)`.

    Raises:
      UserError: There are no such weights, they cannot be downloaded, or their network is not one of ours.
    """
    hub = importlib.import_module("models.weights.hub")  # it imports this module
    return hub.load(where, new=new, seed=seed, **fields)


def pyramid(model: nn.Module) -> Any:
    """Returns the maps of a network that detection and segmentation read, one for each stride, from fine to coarse.

      pyramid = models.pyramid(models.create("resnet50"))
      pyramid.strides, pyramid.channels, pyramid.names   # (4, 8, 16, 32), (256, 512, 1024, 2048), ("stage1", …)
      maps = pyramid.features(variables, images)         # {"stage1": [N, H / 4, W / 4, 256], …}

    Each is the last endpoint of its stride, before a convolution that widens it for the head alone. A Vision
    Transformer has one stride; its tokens become a map. Nothing is computed.

    Args:
      model: A network from `create`.

    Returns:
      A `models.feature_pyramid.Pyramid`.

    Raises:
      UserError: The network does not take images, or none of its endpoints has positions.
    """
    from models import feature_pyramid  # it is seldom needed

    return feature_pyramid.of(model)


def abstract(inputs: Sequence[int] | Sequence[jax.ShapeDtypeStruct]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns shapes and types of a model's inputs; a plain shape stands for float32 images."""
    if all(isinstance(x, jax.ShapeDtypeStruct) for x in inputs) and inputs:
        return cast(tuple[jax.ShapeDtypeStruct, ...], tuple(inputs))
    return (jax.ShapeDtypeStruct(cast(tuple[int, ...], tuple(inputs)), jnp.float32),)

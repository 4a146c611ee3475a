"""Weights of other libraries in, and out in their layouts.

  variables = weights.from_arrays(model, weights.read("resnet50.pth"), "torchvision")
  weights.write("resnet50.safetensors", weights.to_arrays(model, variables, "timm"))

and the same by command, `python -m models.weights --help`.
"""

import ast
import fnmatch
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import models
from models.errors import UserError, choice_error
from models.kernels.tracing import lowering
from models.weights import unwrap
from models.weights.files import metadata, read, write
from models.weights.foreign import Damaged, reading
from models.weights.layouts import Layout, flatten

__all__ = [
    "Mismatch",
    "about",
    "flatten",
    "from_arrays",
    "layout",
    "layouts",
    "load",
    "read",
    "save",
    "to_arrays",
    "write",
]

# Our own names and shapes: "stage1/block0/conv1/kernel".
OWN = Layout(rules=[(r".*", lambda match: match[0])], extra=lambda names: {})


def layouts(model: nn.Module) -> dict[str, Layout]:
    """The layouts that the model's arrays have, by the library's name; "ablate" is our own."""
    return {"ablate": OWN, **getattr(_family(model), "layouts", lambda model: {})(model)}


def layout(model: nn.Module, name: str) -> Layout:
    """The one called `name`; UserError where the model has none of that name."""
    known = layouts(model)
    if name not in known:
        raise choice_error(f"layout of {type(model).__name__}", name, known)
    return known[name]


def _family(model: nn.Module) -> Any:
    return sys.modules[type(model).__module__]


class Mismatch(UserError):
    """Weights that do not fit a model; `lines` has one for each array: "- missing", "+ unexpected", "! shape"."""

    def __init__(self, summary: str, lines: Collection[str]):
        super().__init__("\n".join((summary, *lines)))
        self.summary, self.lines = summary, list(lines)


def to_arrays(model: nn.Module, variables: Mapping[str, Any], to: str) -> dict[str, np.ndarray]:
    """The model's variables as the library `to` names and shapes them: {"layer1.0.conv1.weight": array}.

    Raises:
      UserError: the library has no such model.
    """
    how, arrays = layout(model, to), {}
    for path, array in flatten(variables).items():
        name, conversion = how.place(path)
        arrays[name] = conversion.out(np.asarray(array))
    return arrays | dict(how.extra(list(arrays)))


def from_arrays(
    model: nn.Module,
    arrays: Mapping[str, np.ndarray],
    source: str,
    *,
    new: Collection[str] = (),
    seed: int = 0,
    drawn: Mapping[str, Any] | None = None,
    inputs: Any = None,
) -> dict[str, Any]:
    """Returns the model's variables from arrays that are named and shaped as the library `source` has them.

    Args:
      model: from `models.create`.
      arrays: by the library's names, which may all have prefixes of unwrap.ATTRIBUTES; counters of training beside them
        are ignored.
      source: one of `layouts(model)`.
      new: beginnings of our paths, as "head" or "*/gate", whose arrays are drawn anew (by `seed`) whatever `arrays` has
        for them: a new head for other classes.
      seed: of these.
      drawn: variables of the model that have them already; None draws them.
      inputs: what the model is called with, as `models.initialize` takes it; None for `model.example()`, with as many
        channels as the arrays are for.

    Returns:
      Variables as `models.initialize` gives them, float32.

    Raises:
      Mismatch: arrays are missing, unexpected or of another shape; the list names each.
      UserError: unknown layout, arrays that are no finite floating-point numbers, or `new` names nothing of the model.
    """
    how, template = layout(model, source), drawn or _template(model, inputs)
    leaves = flatten(template)
    for start in new:
        if not any(_within(path, start) for path in leaves):
            raise choice_error("part of the network", start, dict.fromkeys(path.split("/")[0] for path in leaves))
    arrays = unwrap.without_prefixes(arrays, unwrap.ATTRIBUTES, {how.place(path)[0] for path in leaves})
    if adapt := getattr(_family(model), "adapt", None):
        arrays = adapt(model, arrays, source)
    kept = [path for path in leaves if not any(_within(path, start) for start in new)]
    if inputs is None and drawn is None and (inputs := _other_channels(model, how, arrays, leaves, kept)):
        template = _template(model, inputs)
        leaves = flatten(template)
    values, misfits = {}, []  # misfits: (our path or "", sign, what)
    for path in kept:
        (name, wanted), leaf = _theirs(how, path, leaves[path]), leaves[path]
        if name not in arrays:
            misfits.append((path, "-", f"{name}: missing, for {path} {leaf.shape}"))
        elif arrays[name].shape != wanted:
            misfits.append((path, "!", f"{name}: {arrays[name].shape}, not {wanted}, for {path} {leaf.shape}"))
        else:
            values[path] = _converted(how, path, np.asarray(arrays[name]))
    known = {how.place(path)[0] for path in leaves}
    known |= set(how.extra(sorted(known)))
    misfits += [
        ("", "+", f"{name}: {array.shape}, unexpected")
        for name, array in arrays.items()
        if name not in known and not unwrap.is_counter(name, array)
    ]
    if misfits:
        summary = f"{len(misfits)} arrays of these {source} weights do not fit this {type(model).__name__}"
        raise Mismatch(f"{summary}{_hint(model, misfits, arrays)}:", [f"{sign} {what}" for _, sign, what in misfits])
    if new:
        drawn = flatten(drawn or models.initialize(model, jax.random.key(seed), inputs or model.example()))
        values = {path: values.get(path, np.asarray(drawn[path])) for path in leaves}
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: values["/".join(key.key for key in keys[1:])], template)


def _template(model: nn.Module, inputs: Any = None) -> dict[str, Any]:
    """Shapes of the model's variables."""
    with lowering("plain"):
        return dict(jax.eval_shape(model.init, jax.random.key(0), *models.abstract(inputs or model.example())))


def _theirs(how: Layout, path: str, leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Name and shape that an array of ours has in a layout."""
    name, conversion = how.place(path)
    return name, conversion.out(np.broadcast_to(np.float32(0), leaf.shape)).shape


def _converted(how: Layout, path: str, array: np.ndarray) -> np.ndarray:
    """Returns an array of a layout as ours, float32.

    Raises:
      UserError: the integers of a quantized network; values that are not finite, as of a training that diverged.
    """
    name, conversion = how.place(path)
    if array.dtype.kind != "f":
        raise UserError(
            f"'{name}' holds {array.dtype}, not floating-point numbers: weights of a quantized network are "
            "not read; save them before they are quantized"
        )
    with np.errstate(over="ignore"):  # of float64, which is said below
        ours = np.asarray(conversion.into(array), np.float32, order="C")
    if not np.isfinite(ours).all():
        raise UserError(
            f"'{name}' holds numbers that are not finite: want other weights, from before the training diverged"
        )
    return ours


def _other_channels(
    model: nn.Module, how: Layout, arrays: Mapping[str, Any], leaves: Mapping[str, Any], kept: Collection[str]
) -> tuple[jax.ShapeDtypeStruct, ...] | None:
    """The model's example with as many channels as the arrays are for; None where it fits, or they do not say.

    The axis of channels is found by comparing the shapes of arrays with those for one channel more.
    """
    images, *others = model.example()
    misfits = [
        path
        for path in kept
        if (theirs := _theirs(how, path, leaves[path]))[0] in arrays and arrays[theirs[0]].shape != theirs[1]
    ]
    if others or len(images.shape) != 4 or not misfits:
        return None
    channels = images.shape[3]
    more = flatten(_template(model, (*images.shape[:3], channels + 1)))
    for path in misfits:
        (name, shape), (_, larger) = _theirs(how, path, leaves[path]), _theirs(how, path, more[path])
        if arrays[name].ndim == len(shape):
            for length, one, other in zip(arrays[name].shape, shape, larger, strict=True):
                places = other - one  # of which each has the channels; more than one where a map is flattened
                if places > 0 and one == places * channels and length % places == 0 and length not in (0, one):
                    return models.abstract((*images.shape[:3], length // places))
    return None


def _within(path: str, start: str) -> bool:
    return fnmatch.fnmatchcase(f"{path}/", f"{start}/*")


def _hint(model: nn.Module, misfits: list[tuple[str, str, str]], arrays: Mapping[str, Any]) -> str:
    """What the user may have meant, or "": a new head, or another of the model's layouts."""
    parts, signs = {path.split("/")[0] for path, _, _ in misfits}, {sign for _, sign, _ in misfits}
    if len(parts) == 1 and signs == {"!"}:
        (part,) = parts
        keep = "num_classes=N" if part == "head" else "FIELD=VALUE"
        return (
            f", by the shape of '{part}' alone: --new {part} draws it anew, and --set {keep} gives the network "
            "the file's"
        )
    for name, how in layouts(model).items():
        if "-" in signs and {how.place(path)[0] for path in flatten(_template(model))} <= set(arrays):
            return f"; their names are those of the layout '{name}'"
    return ""


def save(
    path: str | os.PathLike, model: nn.Module, variables: Mapping[str, Any], about: Mapping[str, Any] | None = None
) -> None:
    """Writes variables in our own layout, a .safetensors file, with Python literals `about` them.

    They are one entry of its metadata, since the order of several is not kept, and the same goes in as comes out.
    """
    write(path, to_arrays(model, variables, "ablate"), {"ablate": repr(dict(about or {}))})


def load(path: str | os.PathLike, model: nn.Module) -> dict[str, Any]:
    """Variables of the model from a file in our own layout; Mismatch where they do not fit."""
    return from_arrays(model, read(path), "ablate")


def about(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the literals that `save` was given with the variables; {} for files that it did not write.

    Raises:
      UserError: they are damaged, or name no network: "model" must be a text, "fields" a dictionary by name.
    """
    text = metadata(path).get("ablate", "{}")
    with reading(path, ".safetensors"):
        try:
            literals = dict(ast.literal_eval(text))
        except Exception:  # literal_eval also raises what the parser and the interpreter's stack raise
            raise Damaged(f"its metadata 'ablate' is no dictionary of literals: {text}") from None
        fields = literals.get("fields", {})
        if (
            not isinstance(literals.get("model", ""), str)
            or not isinstance(fields, dict)
            or not all(isinstance(name, str) for name in fields)
        ):
            raise Damaged(f"its metadata 'ablate' name no network: {text}")
    return literals

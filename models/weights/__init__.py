"""Import and export of weights in the layouts of other libraries.

  variables = weights.from_arrays(model, weights.read("resnet50.pth"), "torchvision")
  weights.write("resnet50.safetensors", weights.to_arrays(model, variables, "timm"))

`python -m models.weights --help` describes the command that does the same.
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
from models.weights import preprocessing, renamed, unwrap
from models.weights.files import metadata, read, write
from models.weights.foreign import Damaged, reading
from models.weights.layouts import Layout, flatten

__all__ = [
    "Mismatch",
    "description",
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

# The layout of this project: "stage1/block0/conv1/kernel".
OWN = Layout(rules=[(r".*", lambda match: match[0])], extra=lambda names: {})


def layouts(model: nn.Module) -> dict[str, Layout]:
    """Returns the layouts of the model by library; "ablate" is the layout of this project."""
    return {"ablate": OWN, **getattr(_family(model), "layouts", lambda model: {})(model)}


def layout(model: nn.Module, name: str) -> Layout:
    """Returns the layout called `name`; raises UserError if the model has none of this name."""
    choices = layouts(model)
    if name not in choices:
        raise choice_error(f"layout of {type(model).__name__}", name, choices)
    return choices[name]


def _family(model: nn.Module) -> Any:
    return sys.modules[type(model).__module__]


class Mismatch(UserError):
    """Weights do not fit a model; `lines` has one per array: "- missing", "+ unexpected", "! shape"."""

    def __init__(self, summary: str, lines: Collection[str]):
        super().__init__("\n".join((summary, *lines)))
        self.summary, self.lines = summary, list(lines)


def to_arrays(model: nn.Module, variables: Mapping[str, Any], to: str) -> dict[str, np.ndarray]:
    """Returns the model's variables with names and shapes of the library `to`: {"layer1.0.conv1.weight": array}.

    Raises:
      UserError: The model has no layout of this library.
    """
    target, arrays = layout(model, to), {}
    for path, array in flatten(variables).items():
        name, conversion = target.place(path)
        arrays[name] = conversion.out(np.asarray(array))
    return {**renamed.stored(_family(model).__name__, to, arrays, model), **target.extra(list(arrays))}


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
    """Returns the model's variables from arrays with names and shapes of the library `source`.

    Args:
      model: A network from `models.create`.
      arrays: Arrays by the library's names. All names may have prefixes of unwrap.ATTRIBUTES; counters of training are
        ignored.
      source: One of `layouts(model)`.
      new: Beginnings of paths in the project's layout, such as "head" or "*/gate". Their arrays are initialized,
        regardless of `arrays`, e.g. for a head with other classes.
      seed: Seed of the initialization.
      drawn: Variables of the model with initial values for `new`; None draws them.
      inputs: Inputs of the model, as for `models.initialize`; None uses `model.example()` with the number of channels
        that the arrays need.

    Returns:
      Variables like those of `models.initialize`, float32.

    Raises:
      Mismatch: Arrays are missing, unexpected or of another shape; the error lists them.
      UserError: The layout is unknown, arrays are not finite floating-point numbers, or `new` matches nothing.
    """
    foreign_layout, template = layout(model, source), drawn or _template(model, inputs)
    leaves = flatten(template)
    for start in new:
        if not any(_within(path, start) for path in leaves):
            raise choice_error("part of the network", start, dict.fromkeys(path.split("/")[0] for path in leaves))
    arrays = unwrap.without_prefixes(arrays, unwrap.ATTRIBUTES, {foreign_layout.place(path)[0] for path in leaves})
    arrays = renamed.current(_family(model).__name__, source, arrays)
    if adapt := getattr(_family(model), "adapt", None):
        arrays = adapt(model, arrays, source)
    imported = [path for path in leaves if not any(_within(path, start) for start in new)]
    if (
        inputs is None
        and drawn is None
        and (inputs := _other_channels(model, foreign_layout, arrays, leaves, imported))
    ):
        template = _template(model, inputs)
        leaves = flatten(template)
    values, misfits = {}, []  # misfits: (path or "", sign, text)
    for path in imported:
        (name, shape), leaf = _theirs(foreign_layout, path, leaves[path]), leaves[path]
        if name not in arrays:
            misfits.append((path, "-", f"{name}: missing, for {path} {leaf.shape}"))
        elif arrays[name].shape != shape:
            misfits.append((path, "!", f"{name}: {arrays[name].shape}, not {shape}, for {path} {leaf.shape}"))
        else:
            values[path] = _converted(foreign_layout, path, np.asarray(arrays[name]))
    expected = {foreign_layout.place(path)[0] for path in leaves}
    expected |= set(foreign_layout.extra(sorted(expected)))
    misfits += [
        ("", "+", f"{name}: {array.shape}, unexpected")
        for name, array in arrays.items()
        if name not in expected and not unwrap.is_counter(name, array)
    ]
    if misfits:
        summary = f"{len(misfits)} arrays of these {source} weights do not fit this {type(model).__name__}"
        raise Mismatch(f"{summary}{_hint(model, misfits, arrays)}:", [f"{sign} {text}" for _, sign, text in misfits])
    if new:
        drawn = flatten(drawn or models.initialize(model, jax.random.key(seed), inputs or model.example()))
        values = {path: values.get(path, np.asarray(drawn[path])) for path in leaves}
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: values["/".join(key.key for key in keys[1:])], template)


def _template(model: nn.Module, inputs: Any = None) -> dict[str, Any]:
    """Returns shapes and types of the model's variables."""
    with lowering("plain"):
        return dict(jax.eval_shape(model.init, jax.random.key(0), *models.abstract(inputs or model.example())))


def _theirs(foreign_layout: Layout, path: str, leaf: Any) -> tuple[str, tuple[int, ...]]:
    """Returns the name and shape of an array in a layout."""
    name, conversion = foreign_layout.place(path)
    return name, conversion.out(np.broadcast_to(np.float32(0), leaf.shape)).shape


def _converted(foreign_layout: Layout, path: str, array: np.ndarray) -> np.ndarray:
    """Converts an array of a layout to the project's, float32.

    Raises:
      UserError: The array holds integers of a quantized network, or values that are not finite, e.g. after training
        diverged.
    """
    name, conversion = foreign_layout.place(path)
    if array.dtype.kind != "f":
        raise UserError(
            f"'{name}' holds {array.dtype}, not floating-point numbers: weights of a quantized network cannot be "
            "read; save them before quantization"
        )
    with np.errstate(over="ignore"):  # of float64; reported below
        ours = np.asarray(conversion.into(array), np.float32, order="C")
    if not np.isfinite(ours).all():
        raise UserError(f"'{name}' holds numbers that are not finite: use weights from before the training diverged")
    return ours


def _other_channels(
    model: nn.Module,
    foreign_layout: Layout,
    arrays: Mapping[str, Any],
    leaves: Mapping[str, Any],
    paths: Collection[str],
) -> tuple[jax.ShapeDtypeStruct, ...] | None:
    """Returns the model's example with the number of channels that the arrays need.

    None means that the example fits or that the number is unknown. Comparing the shapes of arrays with those for one
    more channel shows which axis depends on the channels.
    """
    images, *others = model.example()
    misfits = [
        path
        for path in paths
        if (theirs := _theirs(foreign_layout, path, leaves[path]))[0] in arrays and arrays[theirs[0]].shape != theirs[1]
    ]
    if others or len(images.shape) != 4 or not misfits:
        return None
    channels = images.shape[3]
    more = flatten(_template(model, (*images.shape[:3], channels + 1)))
    for path in misfits:
        (name, shape), (_, larger) = (
            _theirs(foreign_layout, path, leaves[path]),
            _theirs(foreign_layout, path, more[path]),
        )
        if arrays[name].ndim == len(shape):
            for length, one, other in zip(arrays[name].shape, shape, larger, strict=True):
                repeats = other - one  # entries per channel; more than one after a flattened map
                if repeats > 0 and one == repeats * channels and length % repeats == 0 and length not in (0, one):
                    return models.abstract((*images.shape[:3], length // repeats))
    return None


def _within(path: str, start: str) -> bool:
    return fnmatch.fnmatchcase(f"{path}/", f"{start}/*")


def _hint(model: nn.Module, misfits: list[tuple[str, str, str]], arrays: Mapping[str, Any]) -> str:
    """Returns a suggestion, a new head or another layout of the model, or ""."""
    parts, signs = {path.split("/")[0] for path, _, _ in misfits}, {sign for _, sign, _ in misfits}
    if len(parts) == 1 and signs == {"!"}:
        (part,) = parts
        keep = "num_classes=N" if part == "head" else "FIELD=VALUE"
        return (
            f", by the shape of '{part}' alone: --new {part} draws it anew, and --set {keep} gives the network "
            "the file's"
        )
    for name, foreign_layout in layouts(model).items():
        if "-" in signs and {foreign_layout.place(path)[0] for path in flatten(_template(model))} <= set(arrays):
            return f"; their names are those of the layout '{name}'"
    return ""


def save(
    path: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    description: Mapping[str, Any] | None = None,
) -> None:
    """Writes variables in the project's layout to a .safetensors file, with `description` in its metadata.

    The description consists of Python literals, in one entry: safetensors does not preserve the order of entries.
    """
    write(path, to_arrays(model, variables, "ablate"), {"ablate": repr(dict(description or {}))})


def load(path: str | os.PathLike, model: nn.Module) -> dict[str, Any]:
    """Reads variables of the model from a file in the project's layout; raises Mismatch if they do not fit."""
    return from_arrays(model, read(path), "ablate")


def description(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the description that `save` wrote to a file, or {} for other files.

    Raises:
      UserError: They are damaged, or "model" is not a text, or "fields" is not a dictionary with names as keys.
    """
    text = metadata(path).get("ablate", "{}")
    with reading(path, ".safetensors"):
        try:
            literals = dict(ast.literal_eval(text))
        except Exception:  # literal_eval also raises errors of the parser and the interpreter's stack
            raise Damaged(f"its metadata 'ablate' is no dictionary of literals: {text}") from None
        fields = literals.get("fields", {})
        if (
            not isinstance(literals.get("model", ""), str)
            or not isinstance(fields, dict)
            or not all(isinstance(name, str) for name in fields)
        ):
            raise Damaged(f"its metadata 'ablate' name no network: {text}")
        _check_texts(literals)
    return literals


def _check_texts(literals: Mapping[str, Any]) -> None:
    """Raises Damaged unless what a file says about its images and classes can be used."""
    if "preprocessing" in literals:
        preprocessing.checked(literals["preprocessing"])
    labels = literals.get("labels", ())
    if not isinstance(labels, (list, tuple)) or not all(isinstance(label, str) for label in labels):
        raise Damaged("its labels are no texts")
    for name in ("license", "source", "head"):
        if not isinstance(literals.get(name, ""), str):
            raise Damaged(f"its {name} is no text")

"""Weights of other libraries in, and out in their layouts.

  arrays = weights.read("resnet50.safetensors")
  variables = weights.from_arrays(model, arrays, "torchvision")
  weights.write("out.safetensors", weights.to_arrays(model, variables, "torchvision"))
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import models
from models.errors import UserError, choice_error
from models.weights.layouts import Layout, flatten

# Our own names and shapes: "stage1/block0/conv1/kernel".
OWN = Layout(rules=[(r".*", lambda match: match[0])], extra=lambda names: {})


def layouts(model: nn.Module) -> dict[str, Layout]:
    """The layouts that the model's arrays have, by the library's name; "ablate" is our own."""
    family = sys.modules[type(model).__module__]
    return {"ablate": OWN, **getattr(family, "layouts", lambda model: {})(model)}


def layout(model: nn.Module, name: str) -> Layout:
    """The one called `name`; UserError where the model has none of that name."""
    known = layouts(model)
    if name not in known:
        raise choice_error(f"layout of {type(model).__name__}", name, known)
    return known[name]


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
    model: nn.Module, arrays: Mapping[str, np.ndarray], source: str, *, new: Collection[str] = (), seed: int = 0
) -> dict[str, Any]:
    """The model's variables from arrays that are named and shaped as the library `source` has them.

    Args:
      model: from `models.create`.
      arrays: by the library's names.
      source: one of `layouts(model)`.
      new: beginnings of our paths, as "head", whose arrays are drawn anew (by `seed`) whatever `arrays` has for them: a
        new head for other classes.

    Returns:
      Variables as `models.initialize` gives them, float32.

    Raises:
      Mismatch: arrays are missing, unexpected or of another shape; the list names each.
      UserError: unknown layout, or `new` names nothing of the model.
    """
    how = layout(model, source)
    template = flatten(jax.eval_shape(model.init, jax.random.key(0), *model.example()))
    fresh = {path for path in template if any(f"{path}/".startswith(f"{start}/") for start in new)}
    for start in new:
        if not any(f"{path}/".startswith(f"{start}/") for path in template):
            raise choice_error("part", start, sorted({path.split("/")[0] for path in template}))
    values, lines, known = {}, [], set()
    for path, leaf in template.items():
        name, conversion = how.place(path)
        known.add(name)
        if path in fresh:
            continue
        if name not in arrays:
            lines.append(f"- {name}: missing, for {path} {leaf.shape}")
            continue
        wanted = conversion.out(np.broadcast_to(np.float32(0), leaf.shape)).shape
        if arrays[name].shape != wanted:
            lines.append(f"! {name}: {arrays[name].shape}, not {wanted}, for {path} {leaf.shape}")
            continue
        values[path] = np.ascontiguousarray(conversion.into(np.asarray(arrays[name])), np.float32)
    known |= set(how.extra(sorted(known)))
    lines += [f"+ {name}: {array.shape}, unexpected" for name, array in arrays.items() if name not in known]
    if lines:
        raise Mismatch(f"{len(lines)} arrays of these {source} weights do not fit this {type(model).__name__}:", lines)
    if fresh:
        drawn = flatten(models.initialize(model, jax.random.key(seed), model.example()))
        values |= {path: np.asarray(drawn[path]) for path in fresh}
    return _nested(jax.eval_shape(model.init, jax.random.key(0), *model.example()), values)


def _nested(tree: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def fill(keys, leaf):
        return values["/".join(key.key for key in keys[1:])]

    return jax.tree_util.tree_map_with_path(fill, dict(tree))

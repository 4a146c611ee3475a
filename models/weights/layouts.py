r"""Layouts: names and shapes of a network's arrays in other libraries.

A family's module has `layouts(model) -> {"torchvision": Layout(...), "timm": ...}`. The rules of a Layout are tried in
order on the path of each array, and the first match determines the name in the library. Most rules match a layer:

  (r"stage(\d)/block(\d+)/conv(\d)", lambda m: f"layer{m[1]}.{m[2]}.conv{m[3]}")
  (r"stage(\d)/block(\d+)/conv(\d)", r"layer\1.\2.conv\3")

The arrays of the layer then follow the library's convention (kernel -> weight, transposed). A rule that matches a whole
path, including the name of the array, determines the whole name. The optional third item of a rule converts the shape
of the kernel (or of the array, if the rule matches a whole path).

A family's module may define `adapt(model, arrays, source) -> arrays` for changes that depend on the arrays. It takes
the arrays in the layout called `source`, before they are checked, and returns arrays that fit the model, e.g. with
positions for another image size.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.errors import UserError

Template = str | Callable[[re.Match], str]


class Conversion(NamedTuple):
    """Functions between an array of the project (`out` converts it) and one of a library (`into` converts it)."""

    out: Callable[[np.ndarray], np.ndarray]
    into: Callable[[np.ndarray], np.ndarray]


SAME = Conversion(lambda ours: ours, lambda theirs: theirs)
# [kh, kw, C / groups, D] <-> [D, C / groups, kh, kw]; [C, D] <-> [D, C]
TRANSPOSED = Conversion(
    lambda ours: ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T,
    lambda theirs: theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T,
)
# A dense layer stored as a 1x1 convolution: [C, D] <-> [D, C, 1, 1]
DENSE_AS_CONV = Conversion(lambda ours: ours.T[:, :, None, None], lambda theirs: theirs[:, :, 0, 0].T)
# A vector stored with two trailing axes of length 1: [C] <-> [C, 1, 1]
TRAILING_ONES = Conversion(lambda ours: ours[:, None, None], lambda theirs: theirs[:, 0, 0])


def flattened(height: int, width: int) -> Conversion:
    """Returns the conversion of a dense layer after a flattened map of [H, W, C] to one of [C, H, W].

    The kernels are [H W C, D] in the project and [D, C H W] in the library.
    """

    def out(ours):
        return ours.reshape(height, width, -1, ours.shape[-1]).transpose(3, 2, 0, 1).reshape(ours.shape[-1], -1)

    def into(theirs):
        kernel = theirs.reshape(theirs.shape[0], -1, height, width)
        return kernel.transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])

    return Conversion(out, into)


TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def count_batches(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns PyTorch's counter for every batch norm; no network computes with it."""
    end = ".running_var"
    return {
        f"{name.removesuffix(end)}.num_batches_tracked": np.zeros((), np.int64) for name in names if name.endswith(end)
    }


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and shapes of a network's arrays in a library.

    Attributes:
      rules: (pattern, template[, conversion]), see the module's docstring. Patterns match whole paths (joined by "/",
        without the collection). Templates are those of `re.Match.expand`, or functions of the match.
      leaves: The library's names for the arrays of a layer.
      separator: Separator between the names of a layer and its array.
      kernels: Conversion of arrays called "kernel" if the rule has none.
      extra: Function from all exported names to further arrays of the library that no network computes with. They are
        written, and may be present when reading.
    """

    rules: Sequence[tuple]
    leaves: Mapping[str, str] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
    separator: str = "."
    kernels: Conversion = TRANSPOSED
    extra: Callable[[Sequence[str]], Mapping[str, np.ndarray]] = count_batches

    def place(self, path: str) -> tuple[str, Conversion]:
        """Returns the library's name and the conversion for the array at `path`; raises UserError without a rule."""
        layer, _, leaf = path.rpartition("/")
        for pattern, template, *conversion in self.rules:
            if match := re.fullmatch(pattern, path):
                return _expand(match, template), conversion[0] if conversion else SAME
            match = re.fullmatch(pattern, layer)
            if match and leaf in self.leaves:
                kernels = conversion[0] if conversion else self.kernels
                name = f"{_expand(match, template)}{self.separator}{self.leaves[leaf]}"
                return name, kernels if leaf == "kernel" else SAME
        raise UserError(f"no array of this layout corresponds to '{path}'")


def _expand(match: re.Match, template: Template) -> str:
    return template(match) if callable(template) else match.expand(template)


def with_own(layouts: Mapping[str, Layout], own: str) -> dict[str, Layout]:
    """Extends layouts to further layers: those whose paths match `own` keep their paths as names."""
    return {
        name: dataclasses.replace(layout, rules=[(f"({own})", r"\1"), *layout.rules])
        for name, layout in layouts.items()
    }


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"stage1/block0/conv1/kernel": array} of all collections, whose paths never coincide."""
    flat: dict[str, Any] = {}

    def walk(tree, path):
        for name, value in tree.items():
            if isinstance(value, Mapping):
                walk(value, (*path, name))
            else:
                flat["/".join((*path, name))] = value

    for tree in variables.values():
        walk(tree, ())
    return flat

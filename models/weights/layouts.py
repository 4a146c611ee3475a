"""Layouts: under which names and in which shapes a library keeps the arrays that are ours.

A family's module has `layouts(model) -> {"torchvision": Layout(...), "timm": ...}`. A Layout's rules are tried in order
on the path of each of our arrays; the first that matches gives the name on the other side. Most rules match a layer:

  (r"stage(\\d)/block(\\d+)/conv(\\d)", lambda m: f"layer{m[1]}.{m[2]}.conv{m[3]}")
  (r"stage(\\d)/block(\\d+)/conv(\\d)", r"layer\\1.\\2.conv\\3")

and the arrays in it follow by the library's own convention (kernel -> weight, transposed). A rule that matches a whole
path, with the array's name in it, gives the whole name. A rule's third item, if any, says how the shapes of the kernel
(of the array, where the rule matches a whole path) differ.

What the rules cannot say, because it depends on what is read, a family's module may do in
`adapt(model, arrays, source) -> arrays`: it gets the arrays as they were read in the layout called `source`, before
they are checked, and returns those that the model of this size takes, as with positions of another image size.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.errors import UserError

Template = str | Callable[[re.Match], str]


class Conversion(NamedTuple):
    """Between one of our arrays and theirs."""

    out: Callable[[np.ndarray], np.ndarray]
    into: Callable[[np.ndarray], np.ndarray]


SAME = Conversion(lambda ours: ours, lambda theirs: theirs)
# [kh, kw, C / groups, D] <-> [D, C / groups, kh, kw]; [C, D] <-> [D, C]
TRANSPOSED = Conversion(
    lambda ours: ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T,
    lambda theirs: theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T,
)
# A dense layer kept as a 1x1 convolution: [C, D] <-> [D, C, 1, 1]
DENSE_AS_CONV = Conversion(lambda ours: ours.T[:, :, None, None], lambda theirs: theirs[:, :, 0, 0].T)
# A vector kept with two axes of one: [C] <-> [C, 1, 1]
TRAILING_ONES = Conversion(lambda ours: ours[:, None, None], lambda theirs: theirs[:, 0, 0])


def flattened(height: int, width: int) -> Conversion:
    """A dense layer after a flattened map: ours [H W C, D] flattens [H, W, C], theirs [D, C H W] flattens [C, H, W]."""

    def out(ours):
        return ours.reshape(height, width, -1, ours.shape[-1]).transpose(3, 2, 0, 1).reshape(ours.shape[-1], -1)

    def into(theirs):
        kernel = theirs.reshape(theirs.shape[0], -1, height, width)
        return kernel.transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])

    return Conversion(out, into)


TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def count_batches(names: Sequence[str]) -> dict[str, np.ndarray]:
    """PyTorch's counter beside every batch norm; nothing is computed from it."""
    end = ".running_var"
    return {
        f"{name.removesuffix(end)}.num_batches_tracked": np.zeros((), np.int64) for name in names if name.endswith(end)
    }


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a library keeps a network's arrays.

    Attributes:
      rules: (pattern, template[, conversion]), see the module's docstring; patterns match whole paths ("/"-joined,
        without the collection); templates are as for `re.Match.expand`, or functions of the match.
      leaves: the library's name for the arrays of a layer.
      separator: between a layer's name and its array's.
      kernels: the conversion of arrays called "kernel", where the rule has none.
      extra: from all exported names, further arrays that the library keeps and nothing is computed from; they are
        written, and may be in what is read.
    """

    rules: Sequence[tuple]
    leaves: Mapping[str, str] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
    separator: str = "."
    kernels: Conversion = TRANSPOSED
    extra: Callable[[Sequence[str]], Mapping[str, np.ndarray]] = count_batches

    def place(self, path: str) -> tuple[str, Conversion]:
        """The other side's name, and the conversion, of our array at `path`; UserError where no rule names it."""
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
    """The same for networks that have more: layers whose paths `own` matches keep them as names."""
    return {
        name: dataclasses.replace(layout, rules=[(f"({own})", r"\1"), *layout.rules])
        for name, layout in layouts.items()
    }


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"stage1/block0/conv1/kernel": array} of all collections; paths of different collections never coincide."""
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

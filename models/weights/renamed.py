"""Other forms of a library's weights: names and shapes in older files and in the files of the networks' authors.

`current` converts them to the library's names of today, which the layouts have. timm and torchvision do the same while
they load a file.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.weights import jax_vit

Arrays = Mapping[str, np.ndarray]


def _each(*replacements: tuple[str, str]) -> Callable[[Arrays], Arrays]:
    """Returns a function that substitutes regular expressions in each name."""

    def rename(arrays: Arrays) -> Arrays:
        result = {}
        for name, array in arrays.items():
            for pattern, replacement in replacements:
                name = re.sub(pattern, replacement, name)
            result[name] = array
        return result

    return rename


def _swin(arrays: Arrays) -> Arrays:
    """Converts Swin's own files, whose stages end with what timm's begin with, and leaves out what is computed."""
    arrays = {name: array for name, array in arrays.items() if not name.endswith(("position_index", "attn_mask"))}
    if "layers.0.downsample.reduction.weight" not in arrays:
        return arrays

    def later(match: re.Match) -> str:
        return f"layers.{int(match[1]) + 1}.downsample"

    return {
        re.sub(r"^head\.(?!fc\.)", "head.fc.", re.sub(r"^layers\.(\d+)\.downsample", later, name)): array
        for name, array in arrays.items()
    }


_CONVNEXT = _each(
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(?!fc\.|norm\.)", "head.fc."),
)


def _convnext(arrays: Arrays) -> Arrays:
    """Converts ConvNeXt's own files, and timm's 1x1 convolutions in place of dense layers."""
    if "downsample_layers.0.0.weight" in arrays:
        # EUPE's files also have heads for its teachers
        arrays = _CONVNEXT({name: a for name, a in arrays.items() if not name.startswith(("projectors.", "norms."))})
    return {
        name: array[:, :, 0, 0]
        if name.endswith(("mlp.fc1.weight", "mlp.fc2.weight")) and array.shape[2:] == (1, 1)
        else array
        for name, array in arrays.items()
    }


def _vgg(arrays: Arrays) -> Arrays:
    """Converts torchvision's files, whose dense layers are timm's convolutions."""
    if "classifier.0.weight" not in arrays:
        return arrays
    named = dict(_each((r"^classifier\.0\.", "pre_logits.fc1."), (r"^classifier\.3\.", "pre_logits.fc2."))(arrays))
    named = dict(_each((r"^classifier\.6\.", "head.fc."))(named))
    for name, size in (("pre_logits.fc1.weight", 7), ("pre_logits.fc2.weight", 1)):
        weight = named.get(name, np.zeros(0))
        if weight.ndim == 2 and weight.shape[1] % size**2 == 0:
            named[name] = weight.reshape(len(weight), -1, size, size)
    return named


_DENSENET = _each((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."))  # of PyTorch before 0.4.1
# By the module of the family and the name of the layout
_FORMS: dict[tuple[str, str], Callable[[Arrays], Arrays]] = {
    ("models.densenet", "torchvision"): _DENSENET,
    ("models.densenet", "timm"): _DENSENET,
    ("models.vit", "torchvision"): _each((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    ("models.vit", "jax"): jax_vit.fused,
    ("models.swin", "timm"): _swin,
    ("models.convnext", "timm"): _convnext,
    ("models.vgg", "timm"): _vgg,
}


def current(family: str, layout: str, arrays: Arrays) -> Arrays:
    """Returns arrays of any form of a library's file with the names and shapes of its layout.

    Args:
      family: The module of the network's family, such as "models.swin".
      layout: The name of the layout.
      arrays: Arrays by name.
    """
    return _FORMS.get((family, layout), lambda same: same)(arrays)


def stored(family: str, layout: str, arrays: Arrays, model: Any) -> Arrays:
    """Returns arrays of a layout as the library's own files have them, where these differ."""
    return jax_vit.split(arrays, model.heads) if (family, layout) == ("models.vit", "jax") else arrays

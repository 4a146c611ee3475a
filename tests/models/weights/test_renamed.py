"""Older files of libraries, and files of the networks' authors, give what today's names give."""

import re

import jax
import numpy as np
import pytest

import models
from models import weights
from tests.golden import drawn

SWIN = ("swin_t", {"stage_sizes": (1, 2, 1), "heads": (1, 2, 2), "width": 8, "window": 4, "image_size": 64})
CONVNEXT = ("convnext_tiny", {"stage_sizes": (1, 2, 1), "width": 8})
VGG = ("vgg11", {"stage_sizes": (1, 2), "width": 4, "classifier": (16, 16)})
DENSENET = ("densenet121", {"stage_sizes": (2, 1), "growth": 4, "width": 8})
VIT = ("vit_tiny_patch16", {"depth": 2, "width": 32, "heads": 4, "mlp_width": 48, "image_size": 32})


def swin_of_the_authors(arrays):
    """Stages end with what timm's begin with, the head has no `fc`, and masks are stored."""
    result = {"layers.0.blocks.1.attn_mask": np.zeros((4, 16, 16), np.float32)}
    for name, array in arrays.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        result[name.replace("head.fc.", "head.")] = array
    return result | {"layers.0.blocks.0.attn.relative_position_index": np.zeros((16, 16), np.int64)}


def convnext_of_the_authors(arrays):
    result = {"norms.0.weight": np.zeros(3, np.float32)}
    for name, array in arrays.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = re.sub(r"mlp\.fc(\d)", r"pwconv\1", name).replace("conv_dw", "dwconv")
        result[name.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = array
    return result


def convolutions(arrays):
    """timm's smallest ConvNeXts have 1x1 convolutions in place of dense layers."""
    return {name: a[:, :, None, None] if re.search(r"fc\d\.weight", name) else a for name, a in arrays.items()}


def densenet_of_2017(arrays):
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): array for name, array in arrays.items()}


def vit_of_2022(arrays):
    return {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): array
        for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    ("network", "layout", "change"),
    [
        (SWIN, "timm", swin_of_the_authors),
        (CONVNEXT, "timm", convnext_of_the_authors),
        (CONVNEXT, "timm", convolutions),
        (DENSENET, "torchvision", densenet_of_2017),
        (DENSENET, "timm", densenet_of_2017),
        (VIT, "torchvision", vit_of_2022),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_other_forms(network, layout, change):
    name, fields = network
    model = models.create(name, **fields, num_classes=5)
    variables = drawn.variables(model)
    arrays = weights.to_arrays(model, variables, layout)
    changed = change(arrays)
    assert changed.keys() != arrays.keys() or change is convolutions
    jax.tree.map(np.testing.assert_array_equal, weights.from_arrays(model, changed, layout), variables)


def test_torchvisions_vgg_in_timm_s_layout():
    model = models.create(VGG[0], **VGG[1], num_classes=5)
    variables = drawn.variables(model)
    arrays = weights.to_arrays(model, variables, "torchvision")
    jax.tree.map(np.testing.assert_array_equal, weights.from_arrays(model, arrays, "timm"), variables)

"""Tests of models/efficientnet_lite.py against the authors' numbers; test_parity.py compares with timm."""

import json

import numpy as np
import pytest

import models
from models.analysis.cost import analyze
from models.weights import torch_names
from tests.golden import FOLDER
from tests.tiers import keep_first

ABOUT = json.loads(str(np.load(FOLDER / "efficientnet_lite.npz")["about"]))
COSTS = [(name, *row) for name, rows in ABOUT["costs"].items() for row in rows]


@pytest.mark.parametrize("name,size,parameters,mult_adds", keep_first(1, COSTS))
def test_parameters_and_mult_adds_of_timm(name, size, parameters, mult_adds):
    """timm runs the two largest at other image sizes than the authors; both sizes were counted."""
    cost = analyze(models.create(name), (1, size, size, 3))
    assert (cost.params, cost.mult_adds) == (parameters, mult_adds)


def _shape(layer):
    """Returns the kernel size of a depthwise layer and the height of its output, from its counts."""
    side = round((layer.mult_adds / layer.params) ** 0.5)
    channels = layer.output_bytes // 4 // side**2
    return round((layer.params / channels) ** 0.5), side


def test_lite_has_the_stages_of_the_paper():
    """Tan & Le, table 1, without squeeze-and-excitation: kernel size, channels, layers and resolution per stage."""
    cost = analyze(models.create("efficientnet_lite0"), (1, 224, 224, 3))
    depthwise = [layer for layer in cost.layers if layer.path.endswith("/depthwise")]
    stages = [int(layer.path.split("/")[0].removeprefix("stage")) for layer in depthwise]
    assert [stages.count(stage) for stage in range(1, 8)] == [1, 2, 2, 3, 3, 4, 1]
    shapes = [_shape(layer) for layer in depthwise]
    last = [shapes[stages.index(stage) + stages.count(stage) - 1] for stage in range(1, 8)]
    assert last == [(3, 112), (3, 56), (5, 28), (3, 14), (5, 14), (5, 7), (3, 7)]


@pytest.mark.parametrize(
    "name,fields,expected",
    [
        ("efficientnet_lite0", {}, ("tf_efficientnet_lite0", {})),
        ("efficientnet_lite2", {"padding": "symmetric"}, ("tf_efficientnet_lite2", {"pad_type": ""})),
        ("mobilenet_v2", {}, ("mobilenetv2_100", {})),
        (
            "mobilenet_v1",
            {"padding": "tf", "norm_epsilon": 1e-3},
            ("mobilenetv1_100", {"pad_type": "same", "bn_eps": 1e-3}),
        ),
    ],
)
def test_timm_creates_the_same_padding_and_epsilon(name, fields, expected):
    theirs, arguments = expected
    assert torch_names.constructor(name, models.create(name, **fields), "timm") == (
        "timm", theirs, {"num_classes": 1000, **arguments}
    )  # fmt: skip


def test_torchvision_has_no_padding_of_tensorflow():
    layouts = [
        set(models.weights.layouts(models.create("mobilenet_v2", padding=padding))) for padding in ("symmetric", "tf")
    ]
    assert layouts == [{"ablate", "torchvision", "timm"}, {"ablate", "timm"}]

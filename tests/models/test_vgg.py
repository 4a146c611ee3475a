"""Tests of models/vgg.py: the pattern and the classifier. test_parity.py compares with torchvision and timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import weights
from models.layers.endpoint import capture
from tests.golden import drawn


def endpoints(name, size=None, **fields):
    model = models.create(name, **fields)
    activations = jax.eval_shape(
        lambda variables, x: capture(model, variables, x)[1], drawn.abstract(model), *model.example(size)
    )
    return {key: value.shape[1:] for key, value in activations.items()}


def test_the_pattern():
    """Checks Simonyan & Zisserman 2015, table 1, column D: half the resolution and twice the channels, up to 512."""
    shapes = endpoints("vgg16")
    assert [shapes[f"stage{i}"] for i in range(1, 6)] == [
        (112, 112, 64),
        (56, 56, 128),
        (28, 28, 256),
        (14, 14, 512),
        (7, 7, 512),
    ]
    assert shapes["stage3/conv3"] == (56, 56, 256) and shapes["pre_logits"] == (4096,)
    kernels = [
        leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(drawn.abstract(models.create("vgg16"))["params"])
        if path[-1].key == "kernel" and len(leaf.shape) == 4
    ]
    assert len(kernels) == 13 and {shape[:2] for shape in kernels} == {(3, 3)}


@pytest.mark.parametrize("depth,layers", [(11, 8), (13, 10), (16, 13), (19, 16)])
def test_depth_counts_layers_with_kernels(depth, layers):
    shapes = endpoints(f"vgg{depth}")
    assert sum("/conv" in name for name in shapes) == layers == depth - 3  # and three dense layers


def test_convolutions_have_biases_beside_any_norm():
    for norm in ("none", "batch", "group"):
        stage = drawn.abstract(models.create("vgg11", norm=norm))["params"]["stage1"]
        assert set(stage["conv1"]) == {"kernel", "bias"} and ("norm1" in stage) == (norm != "none")


def test_the_cifar_variant_averages_and_has_no_hidden_layers():
    params = drawn.abstract(models.create("vgg16_cifar"))["params"]
    assert params["head"]["kernel"].shape == (512, 10) and not any("hidden" in name for name in params)
    assert endpoints("vgg16_cifar")["stage5"] == (1, 1, 512)
    assert endpoints("vgg16_cifar", 64)["stage5"] == (2, 2, 512)
    model = models.create("vgg11_cifar", width=4, stage_sizes=(1,))
    activations = capture(model, drawn.variables(model), jnp.asarray(drawn.images("vgg", (2, 8, 8, 3))))[1]
    np.testing.assert_allclose(activations["pre_logits"], activations["stage1"].mean((1, 2)), rtol=1e-5)


def test_weights_survive_a_round_trip_through_torchvisions_layout():
    model = models.create("vgg11_bn", width=2, stage_sizes=(1, 2), classifier=(6, 5), num_classes=3)
    variables = drawn.variables(model)
    for layout in ("torchvision", "timm"):
        arrays = weights.to_arrays(model, variables, layout)
        jax.tree.map(np.testing.assert_array_equal, weights.from_arrays(model, arrays, layout), variables)
    assert set(weights.layouts(models.create("vgg11_cifar"))) == {"ablate"}

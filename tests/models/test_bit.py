"""BiT, of models/resnet.py: how it differs from other preact networks. test_parity.py compares it with timm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import weights
from models.layers.endpoint import capture
from models.weights.layouts import flatten
from tests.golden import drawn

SMALL = {"stage_sizes": (2, 1), "width": 8, "norm": "group:4", "num_classes": 10}
IMAGES = jnp.asarray(drawn.images("bit", (2, 32, 32, 3)))


def bit(**fields):
    return models.create("resnetv2_50x1_bit", **{**SMALL, **fields})


@pytest.mark.full
def test_normalization_is_by_32_groups_and_kernels_are_standardized():
    for name in models.list_models():
        if name.endswith("_bit"):
            model = models.create(name)
            assert (model.norm, model.conv, model.preact) == ("group:32", "standardized", True)
    assert set(drawn.abstract(bit())) == {"params"}
    variables = drawn.variables(bit())
    params = variables["params"]
    moved = {"params": {**params, "stem_conv": {"kernel": 3 * params["stem_conv"]["kernel"] + 5}}}
    np.testing.assert_allclose(bit().apply(moved, IMAGES), bit().apply(variables, IMAGES), rtol=1e-4, atol=1e-5)


def test_the_factor_widens_every_layer():
    shapes = [
        {path: leaf.shape for path, leaf in flatten(drawn.abstract(models.create(name))).items()}
        for name in ("resnetv2_50x1_bit", "resnetv2_50x3_bit")
    ]
    assert set(shapes[0]) == set(shapes[1])
    for path, narrow in shapes[0].items():
        ends = {"stem_conv/kernel": (1, 1, 1, 3), "head/kernel": (3, 1), "head/bias": (1,)}
        factors = ends.get(path, (1, 1, 3, 3)[-len(narrow) :])
        assert shapes[1][path] == tuple(n * f for n, f in zip(narrow, factors, strict=True)), path


def test_the_first_block_has_a_normalization_and_the_stem_has_none():
    params = drawn.abstract(bit())["params"]
    assert set(params) == {"stem_conv", "stage1", "stage2", "final_norm", "head"}
    layers = {f"{kind}{i}" for kind in ("conv", "norm") for i in (1, 2, 3)}
    assert set(params["stage1"]["block0"]) == layers | {"downsample_conv"}
    assert set(params["stage1"]["block1"]) == layers


def test_zeros_count_in_the_maximum_of_the_stem():
    """Tests a stem that gives -1 everywhere: windows over the border have a padding zero as their maximum."""
    model = bit(conv="standard", norm="none")
    variables = jax.tree.map(jnp.zeros_like, drawn.variables(model))
    variables["params"]["stem_conv"]["bias"] = -jnp.ones(8)
    stem = capture(model, variables, IMAGES)[1]["stem"]
    assert stem.shape == (2, 8, 8, 8)
    border = np.ones((8, 8), bool)
    border[1:, 1:] = False  # padding below and on the right is beyond the last windows of an even height and width
    np.testing.assert_array_equal(stem, np.broadcast_to(np.where(border, 0.0, -1.0)[..., None], stem.shape))


def test_projections_start_from_the_activated_input():
    """Checks that, with branches of zero, the first block gives its projection of act(norm1(x))."""
    model = bit(zero_gamma=True, stage_sizes=(1,))
    variables = models.initialize(model, jax.random.key(0), IMAGES.shape)
    _, activations = capture(model, variables, IMAGES)
    block = variables["params"]["stage1"]["block0"]
    grouped = activations["stem"].reshape(2, 8, 8, 4, 2)
    centered = grouped - grouped.mean((1, 2, 4), keepdims=True)
    normed = centered / jnp.sqrt(jnp.square(centered).mean((1, 2, 4), keepdims=True) + 1e-5)
    kernel = block["downsample_conv"]["kernel"][0, 0]
    kernel = (kernel - kernel.mean(0)) / kernel.std(0)
    expected = jax.nn.relu(normed.reshape(2, 8, 8, 8)) @ kernel
    np.testing.assert_allclose(activations["stage1"], expected, rtol=1e-4, atol=1e-5)


def test_names_in_the_files_of_the_authors():
    """Checks the names that timm's loader of these files expects, with TensorFlow's shapes: [kh, kw, C, D]."""
    model = bit(stage_sizes=(1,))
    arrays = weights.to_arrays(model, drawn.variables(model), "bit")
    unit = "resnet/block1/unit01"
    assert {name: array.shape for name, array in arrays.items()} == {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 8), f"{unit}/a/group_norm/gamma": (8,),
        f"{unit}/a/group_norm/beta": (8,), f"{unit}/a/standardized_conv2d/kernel": (1, 1, 8, 8),
        f"{unit}/a/proj/standardized_conv2d/kernel": (1, 1, 8, 32), f"{unit}/b/group_norm/gamma": (8,),
        f"{unit}/b/group_norm/beta": (8,), f"{unit}/b/standardized_conv2d/kernel": (3, 3, 8, 8),
        f"{unit}/c/group_norm/gamma": (8,), f"{unit}/c/group_norm/beta": (8,),
        f"{unit}/c/standardized_conv2d/kernel": (1, 1, 8, 32), "resnet/group_norm/gamma": (32,),
        "resnet/group_norm/beta": (32,), "resnet/head/conv2d/kernel": (1, 1, 32, 10),
        "resnet/head/conv2d/bias": (10,),
    }  # fmt: skip
    names = set(weights.to_arrays(bit(stage_sizes=(1, 12)), drawn.zeros(bit(stage_sizes=(1, 12))), "bit"))
    assert "resnet/block2/unit12/c/standardized_conv2d/kernel" in names


def test_only_bottlenecks_have_layouts():
    assert set(weights.layouts(bit())) == {"ablate", "timm", "bit"}
    assert set(weights.layouts(bit(bottleneck=False))) == {"ablate"}
    assert set(weights.layouts(models.create("preresnet50"))) == {"ablate"}  # timm's resnetv2_50 has another stem

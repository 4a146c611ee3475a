"""Tests of models/resnet.py: the effect of each field. test_parity.py compares with torchvision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.layers.conv import Conv
from models.layers.endpoint import capture
from models.layers.regularize import StochasticDepth
from tests.golden import drawn
from tests.tiers import keep_first


def test_parameters_have_the_names_that_weights_are_mapped_by():
    params = drawn.abstract(models.create("resnet50"))["params"]
    assert set(params) == {"stem_conv", "stem_norm", "stage1", "stage2", "stage3", "stage4", "head"}
    assert set(params["stage2"]) == {"block0", "block1", "block2", "block3"}
    block = {"conv1", "norm1", "conv2", "norm2", "conv3", "norm3"}
    assert set(params["stage2"]["block0"]) == block | {"downsample_conv", "downsample_norm"}
    assert set(params["stage2"]["block1"]) == block


def projections(name, **fields):
    leaves = jax.tree_util.tree_leaves_with_path(drawn.abstract(models.create(name, **fields))["params"])
    return sum("downsample_conv" in jax.tree_util.keystr(path) for path, _ in leaves)


def test_shortcuts_project_where_the_paper_does():
    assert [projections("resnet20", shortcut=s) for s in ("A", "B", "C", "none")] == [0, 2, 9, 0]
    assert [projections("resnet50", shortcut=s) for s in ("A", "B", "C", "none")] == [0, 4, 16, 0]
    assert projections("plain20") == projections("plain34") == 0
    assert projections("wide_resnet16_4") == 3


TINY = jnp.asarray(drawn.images("tiny", (4, 8, 8, 3)))


def test_shortcut_a_both_pads_before_and_after():
    model = models.create("resnet8", width=4, shortcut="A_both", zero_gamma=True, stage_sizes=(1, 1))
    activations = capture(model, models.initialize(model, jax.random.key(0), TINY.shape), TINY)[1]
    zeros = jnp.zeros((4, 4, 4, 2))
    expected = jnp.concatenate([zeros, activations["stage1"][:, ::2, ::2], zeros], -1)
    np.testing.assert_array_equal(activations["stage2"], expected)


def test_shortcut_a_subsamples_and_pads_with_zeros():
    """Checks shortcuts alone: with branches that are zero, a stage adds nothing else."""
    model = models.create("resnet8", width=4, zero_gamma=True, stage_sizes=(1, 1))
    activations = capture(model, models.initialize(model, jax.random.key(0), TINY.shape), TINY)[1]
    expected = jnp.concatenate([activations["stage1"][:, ::2, ::2], jnp.zeros((4, 4, 4, 4))], -1)
    np.testing.assert_array_equal(activations["stage2"], expected)


@pytest.mark.parametrize(
    "name,fields",
    keep_first(
        2,
        [
            ("resnet8", {}),
            ("preresnet20", {"stage_sizes": (1, 1, 1)}),
            ("resnet8", {"norm": "none"}),
            ("resnet50", {"stage_sizes": (1, 1), "stem": "cifar"}),
        ],
    ),
)
def test_zero_gamma_makes_branches_start_at_zero(name, fields):
    model = models.create(name, width=4, zero_gamma=True, shortcut="A", act=lambda x: x, **fields)
    variables = models.initialize(model, jax.random.key(0), TINY.shape)
    activations = capture(model, variables, TINY)[1]
    width = activations["stem"].shape[-1]
    np.testing.assert_array_equal(activations["stage1/block0"][..., :width], activations["stem"])
    assert (activations["stage1/block0"][..., width:] == 0).all()


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    x = jnp.asarray(drawn.images("depth", (4096, 2, 2)))
    layer = StochasticDepth(0.3, deterministic=False)
    y = layer.apply({}, x, rngs={"dropout": jax.random.key(0)})
    mask = np.asarray(y != 0).all((1, 2))
    assert mask.mean() == pytest.approx(0.7, abs=0.03)
    np.testing.assert_allclose(y, np.where(mask[:, None, None], x / 0.7, 0), rtol=1e-6)
    np.testing.assert_array_equal(StochasticDepth(0.3, deterministic=True).apply({}, x), x)


def test_preactivation_is_that_of_the_paper():
    """Checks He 2016b, fig. 1b and appendix: an identity path from the stem's activation to the final normalization."""
    model = models.create("preresnet20", width=4, zero_gamma=True, shortcut="A", stage_sizes=(2,))
    params = drawn.abstract(model)["params"]
    assert set(params["stage1"]["block0"]) == {"conv1", "norm2", "conv2"}  # the stem contains its first normalization
    assert set(params["stage1"]["block1"]) == {"norm1", "conv1", "norm2", "conv2"}
    assert "final_norm" in params
    activations = capture(model, models.initialize(model, jax.random.key(0), TINY.shape), TINY - 1)[1]
    np.testing.assert_array_equal(activations["stage1"], activations["stem"])
    assert float(activations["stem"].min()) == 0  # after the activation
    activations = capture(model, drawn.variables(model), TINY)[1]
    assert float(activations["stage1"].min()) < 0  # no activation after the sum


@pytest.mark.parametrize("where,strides", [("3x3", [1, 2, 1]), ("1x1", [2, 1, 1])])
def test_the_stride_of_a_bottleneck_is_that_of_the_convolution_named(where, strides):
    seen = {}

    def read(call, args, kwargs, context):
        if isinstance(context.module, Conv):
            seen["/".join(context.module.path)] = context.module.strides
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        drawn.abstract(models.create("resnet50", stride_in=where, stage_sizes=(1, 1), width=8))
    assert [seen[f"stage2/block0/conv{i}"] for i in (1, 2, 3)] == strides

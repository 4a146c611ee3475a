"""Tests of models/mobilenet.py against the papers' tables. test_parity.py compares with timm and torchvision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.analysis.cost import analyze
from models.layers.conv import Conv
from models.layers.endpoint import capture
from models.mobilenet import make_divisible
from tests.golden import drawn
from tests.tiers import keep_first


@pytest.mark.parametrize(
    "name,size,millions",
    keep_first(
        2,
        [
            ("mobilenet_v1", 160, 290),
            ("mobilenet_v1", 192, 418),
            ("mobilenet_v1", 128, 186),  # table 7
            ("mobilenet_v1", 224, 569),
            ("mobilenet_v1_075", 224, 325),
            ("mobilenet_v1_050", 224, 149),  # table 6
            ("mobilenet_v1_025", 224, 41),
            ("mobilenet_v1_conv", 224, 4866),
            ("mobilenet_v1_shallow", 224, 307),  # tables 4 and 5
        ],
    ),
)
def test_mult_adds_of_howard(name, size, millions):
    """Allows the head's 1024 x 1000 to be included or not, and rounding or truncation: the tables do not say."""
    mult_adds = analyze(models.create(name), (1, size, size, 3)).mult_adds / 1e6
    assert mult_adds == pytest.approx(millions, abs=1.5)


@pytest.mark.parametrize(
    "name,millions",
    [
        ("mobilenet_v1", 4.2),
        ("mobilenet_v1_075", 2.6),
        ("mobilenet_v1_050", 1.3),
        ("mobilenet_v1_025", 0.5),
        ("mobilenet_v1_conv", 29.3),
        ("mobilenet_v1_shallow", 2.9),
    ],
)
def test_parameters_of_howard(name, millions):
    leaves = jax.tree.leaves(drawn.abstract(models.create(name))["params"])
    assert round(sum(leaf.size for leaf in leaves) / 1e6, 1) == millions


def test_make_divisible():
    assert [make_divisible(c) for c in (32, 11.2, 5.6, 134.4, 44.8, 1792)] == [32, 16, 8, 136, 48, 1792]
    assert make_divisible(11.2, 4) == 12 and make_divisible(1) == 8


def layers(name, kind=Conv, **fields):
    """Returns (features, kernel size, stride, groups) of the convolutions, in order."""
    convolutions = []

    def read(call, args, kwargs, context):
        m = context.module
        if isinstance(m, kind) and context.method_name == "__call__":
            convolutions.append((m.features, m.kernel_size, m.strides, m.groups))
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        drawn.abstract(models.create(name, **fields))
    return convolutions


def test_first_version_is_table_1():
    channels = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]  # the last: table 1 says 2, but its sizes imply 1
    inputs = [32, *channels[:-1]]
    expected = [(32, 3, 2, 1)]
    for c_in, c_out, stride in zip(inputs, channels, strides, strict=True):
        expected += [(c_in, 3, stride, c_in), (c_out, 1, 1, 1)]
    assert layers("mobilenet_v1") == expected
    whole = [(32, 3, 2, 1), *((c, 3, stride, 1) for c, stride in zip(channels, strides, strict=True))]
    assert layers("mobilenet_v1_conv") == whole


def test_second_version_is_table_2():
    convolutions = layers("mobilenet_v2", stage_sizes=(1, 2))
    assert convolutions == [
        (32, 3, 2, 1),
        (32, 3, 1, 32),
        (16, 1, 1, 1),  # stage 1: no expansion
        (96, 1, 1, 1),
        (96, 3, 2, 96),
        (24, 1, 1, 1),
        (144, 1, 1, 1),
        (144, 3, 1, 144),
        (24, 1, 1, 1),
        (1280, 1, 1, 1),
    ]
    assert layers("mobilenet_v2_140")[-1][0] == 1792 and layers("mobilenet_v2_050")[-1][0] == 1280


IMAGES = jnp.asarray(drawn.images("mobilenet", (2, 16, 16, 3)))


def test_shortcuts_are_where_shapes_stay():
    """Checks that, with a last normalization of zero, a block gives its input where it has a shortcut, else zeros."""
    model = models.create("mobilenet_v2", stage_sizes=(1, 2), width_multiplier=0.5)
    variables = models.initialize(model, jax.random.key(0), IMAGES.shape)

    def zero(path, leaf):
        keys = [key.key for key in path]
        return leaf * 0 if keys[-3:-1] == ["block1", "project_norm"] else leaf

    variables = jax.tree_util.tree_map_with_path(zero, variables)
    for shortcut in (True, False):
        activations = capture(model.clone(shortcut=shortcut), variables, IMAGES)[1]
        expected = activations["stage2/block0"] if shortcut else jnp.zeros_like(activations["stage2/block0"])
        np.testing.assert_array_equal(activations["stage2/block1"], expected)


def test_bottlenecks_are_linear():
    model = models.create("mobilenet_v2", stage_sizes=(1, 1), width_multiplier=0.5)
    variables = drawn.variables(model)
    lowest = {
        linear: float(capture(model.clone(linear=linear), variables, IMAGES)[1]["stage2"].min())
        for linear in (True, False)
    }
    assert lowest[True] < 0 == lowest[False]

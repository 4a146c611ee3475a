"""Tests of models/explain/receptive.py: fields against changed pixels, published lists and convolutions of boxes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.explain.receptive import Field, effective, effective_size, fields, theoretical
from models.layers.conv import Conv
from models.layers.endpoint import Endpoint, capture
from tests.golden import drawn
from tests.networks import SMALL

BOTTLENECK = {**SMALL["bottleneck"][1], "groups": 1}
# Networks without spatial statistics. With positive weights, their units grow with every pixel that they see.
NETWORKS = {
    **{
        kind: (*SMALL[kind], 32)
        for kind in ("basic", "preact", "dense", "dense_imagenet", "ladder_start", "vit_c", "multi_scale")
    },
    **{kind: (SMALL[kind][0], {**SMALL[kind][1], "act": "relu"}, 32) for kind in ("separable", "inverted", "lite")},
    **{
        kind: (SMALL[kind][0], {**SMALL[kind][1], "norm": "none"}, 32)
        for kind in ("vgg", "lenet", "convnext", "ladder_inverted", "swin")
    },
    "bit": (SMALL["bit"][0], {**SMALL["bit"][1], "norm": "batch", "conv": "standard"}, 32),
    "stride in 1x1": ("resnet50", {**BOTTLENECK, "stride_in": "1x1"}, 32),
    "stride in 3x3": ("resnet50", BOTTLENECK, 32),
    "alexnet": (
        SMALL["alexnet"][0],
        {**SMALL["alexnet"][1], "norm": "none", "stem": (5, 2, 1), "local_response": None},
        63,
    ),
}


def positive(path, shape):
    """Returns positive weights whose averages neither grow nor shrink."""
    drawn_here = 0.5 + np.abs(drawn.weight(path, shape))
    kind = path.rsplit("/", 1)[-1]
    return (
        drawn_here / drawn_here.sum(tuple(range(len(shape) - 1)))
        if kind == "kernel"
        else (np.zeros if kind in ("mean", "bias") else np.ones)(shape, np.float32)
    )


def test_box():
    field = Field((7, 5), (4, 2), (-3, 1))
    assert field.box(0, 0) == (-3, 1, 4, 6) and field.box(2, 3) == (5, 7, 12, 12)
    assert field.clipped(0, 0, (32, 32, 3)) == (0, 1, 4, 6) and field.clipped(2, 3, (10, 8)) == (5, 7, 10, 8)


FULL = ("dense_imagenet", "ladder_start", "ladder_inverted", "multi_scale", "vit_c", "bit", "lenet")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.full] * (kind in FULL)) for kind in NETWORKS])
def test_units_see_the_pixels_of_their_box(kind):
    """Checks that a bright row (or column) changes exactly the units whose box contains it, also at the border."""
    name, changed, size = NETWORKS[kind]
    model = models.create(name, **changed)
    channels, lines = model.example()[0].shape[-1], np.eye(size, dtype=bool)
    bright = np.concatenate(
        [
            np.zeros((1, size, size), bool),
            np.broadcast_to(lines[:, :, None], (size,) * 3),
            np.broadcast_to(lines[:, None, :], (size,) * 3),
        ]
    )  # none, each row, each column
    images = np.where(bright, 1e5, 1.0).astype(np.float32)[..., None].repeat(channels, 3)
    activations = jax.jit(lambda *args: capture(model, *args)[1])(drawn.filled(drawn.abstract(model), positive), images)
    field_of = {name: field for name, field in fields(model, (1, size, size, channels)).items() if field}
    assert len(field_of) >= {"swin": 1, "vit_c": 1}.get(kind, 2)
    for endpoint, field in field_of.items():
        maps = np.asarray(activations[endpoint], np.float64)
        changes = (np.abs(maps[1:] - maps[0]) > 1e-4 * np.abs(maps[0])).any(-1)  # [2 size, h, w]
        for axis, seen in ((0, changes[:size].any(2)), (1, changes[size:].any(1))):  # [size, places]
            expected = np.zeros_like(seen)
            for i in range(seen.shape[1]):
                box = field.clipped(i, i, (size, size))
                expected[box[axis] : box[axis + 2], i] = True
            np.testing.assert_array_equal(seen, expected, err_msg=endpoint)


# Araujo 2019's table: receptive field, stride and padding before the first pixel of TF-Slim's networks. Positions here
# agree where the padding does. Slim pads strided layers "SAME": on even images, one pixel less before the first than
# after the last. Here the padding is k // 2 on both sides, except with padding="tf".
@pytest.mark.parametrize(
    "name,changed,size,endpoint,published,less",
    [
        ("alexnet_original", {}, 227, "pool5", (195, 32, 64), 0),
        ("vgg16", {}, 224, "stage5", (212, 32, 90), 0),
        ("resnet50", {"stride_in": "1x1"}, 224, "stage4", (483, 32, 239), 2),  # its max-pooling, at stride 2
        pytest.param("resnet101", {"stride_in": "1x1"}, 224, "stage4", (1027, 32, 511), 2, marks=pytest.mark.full),
        ("mobilenet_v1", {}, 224, "stage5", (315, 32, 126), 1 + 2 + 4 + 8 + 16),  # five 3x3 convolutions of stride 2
        ("mobilenet_v1", {"padding": "tf"}, 224, "stage5", (315, 32, 126), 0),
    ],
)
def test_published(name, changed, size, endpoint, published, less):
    field, stride, padding = published
    result = theoretical(models.create(name, **changed), (1, size, size, 3), endpoint)
    assert result == Field((field,) * 2, (stride,) * 2, (-padding - less,) * 2)


def test_endpoints_and_layers():
    model = models.create("resnet8", width=4)
    by_endpoint = fields(model, model.example())
    assert list(by_endpoint)[:3] == ["stem", "stage1/block0", "stage1"] and by_endpoint["pre_logits"] is None
    assert theoretical(model, model.example()) == by_endpoint["stage3"]
    assert theoretical(model, model.example(), "stage2/block0/conv1") == Field((9, 9), (2, 2), (-4, -4))
    assert theoretical(models.create(*SMALL["vit"][:1], **SMALL["vit"][1]), (1, 32, 32, 3)) is None
    with pytest.raises(UserError, match="unknown endpoint 'stage9'; did you mean 'stage"):
        theoretical(model, model.example(), "stage9")


class Boxes(nn.Module):
    """Convolutions with kernels of ones, whose effective field is a box convolved with itself."""

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(4):
            x = Endpoint(f"conv{i}")(Conv(1, 3, name=f"conv{i}")(x))
        return x.mean((1, 2))


def test_effective_is_the_box_convolved():
    model, images = Boxes(), jnp.ones((2, 17, 17, 1))
    variables = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), images))
    line = np.ones(3)
    for _ in range(3):
        line = np.convolve(line, np.ones(3))  # [9]
    expected = np.zeros((17, 17))
    expected[4:13, 4:13] = line[:, None] * line
    map_of_effects = effective(model, variables, images)
    np.testing.assert_allclose(map_of_effects, expected, rtol=1e-6)
    assert effective_size(map_of_effects) == np.sqrt((expected > 0.0455 * expected.max()).sum()) < 9
    moved = effective(model, variables, images, place=(5, 11), endpoint="conv3")
    np.testing.assert_allclose(moved, np.roll(expected, (-3, 3), (0, 1)), rtol=1e-6)


def test_effective_is_the_mean_gradient():
    """Compares with each image's gradient, for one channel and for all, inside the theoretical box; tokens as well."""
    model = models.create(SMALL["basic"][0], **SMALL["basic"][1])
    variables, images = drawn.variables(model), drawn.images("effective", (3, 16, 16, 3))
    for channel in (None, 2):

        def unit(image, channel=channel):
            maps = capture(model, variables, image[None])[1]["stage1"][0, 3, 5]
            return maps.sum() if channel is None else maps[channel]

        gradient = jax.jit(jax.grad(unit))
        expected = np.mean([np.abs(gradient(image)) for image in images], 0).mean(-1)
        map_of_effects = effective(model, variables, images, endpoint="stage1", channel=channel, place=(3, 5))
        np.testing.assert_allclose(map_of_effects, expected, rtol=2e-4, atol=1e-6 * expected.max())
        top, left, bottom, right = fields(model, images.shape)["stage1"].clipped(3, 5, (16, 16))
        outside = np.ones(map_of_effects.shape, bool)
        outside[top:bottom, left:right] = False
        assert not np.asarray(map_of_effects)[outside].any()
    layer = effective(model, variables, images, endpoint="stage1/block0/conv1", place=(3, 5))
    assert (np.asarray(layer) > 0).sum() == 5 * 5  # two 3x3 convolutions from the image
    vit = models.create(SMALL["vit"][0], **SMALL["vit"][1])
    seen = effective(vit, drawn.variables(vit), drawn.images("vit", (1, 32, 32, 3)), endpoint="block0", place=(1, 2))
    assert seen.shape == (32, 32) and seen[8:16, 16:24].mean() > 2 * seen.mean() and (seen > 0).all()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"place": (0, 9)}, "column=9 is out of range: stage2 has columns 0 to 7"),
        ({"channel": 16}, "channel=16 is out of range: stage2 has channels 0 to 15"),
        ({"endpoint": "stage3"}, "unknown endpoint 'stage3'"),
        ({"endpoint": "pre_logits"}, "unknown endpoint with positions 'pre_logits'"),
    ],
)
def test_errors(options, message):
    model = models.create(SMALL["basic"][0], **SMALL["basic"][1])
    options = {"endpoint": "stage2", **options}
    with pytest.raises(UserError, match=message):
        effective(model, drawn.variables(model), np.zeros((1, 16, 16, 3), np.float32), **options)

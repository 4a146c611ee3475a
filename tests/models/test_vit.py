"""Tests of models/vit.py against the papers. test_parity.py compares with torchvision and timm."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import weights
from models.analysis.cost import analyze
from models.errors import UserError
from models.kernels import tracing
from models.layers.attention import attend
from models.layers.conv import Conv
from models.layers.endpoint import capture
from models.layers.init import jit_once
from models.layers.norm import BatchNorm, ChannelNorm
from models.vit import resize_positions, sincos2d
from tests.golden import drawn
from tests.golden.make_vit import RESIZED
from tests.models.test_parity import GOLDEN, close
from tests.tiers import keep_first

TINY = {"patch_size": 4, "depth": 2, "width": 8, "heads": 2, "mlp_width": 16, "image_size": 16, "num_classes": 5}
IMAGES = jnp.asarray(drawn.images("vit", (2, 16, 16, 3)))


def tiny(name="vit_tiny_patch16", **fields):
    return models.create(name, **{**TINY, **fields})


# Xiao 2021, table 1: parameters in 1e6 and mult-adds in 1e9.
TABLE_1 = {
    "vit_p_1gf": (4.8, 1.1), "vit_p_4gf": (18.5, 3.9), "vit_p_18gf": (86.7, 17.5), "vit_p_36gf": (178.4, 35.9),
    "vit_c_1gf": (4.6, 1.1), "vit_c_4gf": (17.8, 4.0), "vit_c_18gf": (81.6, 17.7), "vit_c_36gf": (167.8, 35.0),
}  # fmt: skip
# The paper calls ViT_P-18GF the same as ViT-B, with 86.6M in its table 2; torchvision counts 17.56e9 for it, as we do.
OFF_BY_A_DIGIT = {"vit_p_18gf": (86.6, 17.6), "vit_p_36gf": (178.4, 36.0)}


@pytest.mark.parametrize("name", keep_first(1, TABLE_1))
def test_costs_are_those_of_xiao(name):
    model = models.create(name)
    cost = analyze(model, model.example())
    ours = (round(cost.params / 1e6, 1), round(cost.mult_adds / 1e9, 1))
    assert ours == OFF_BY_A_DIGIT.get(name, TABLE_1[name])
    assert ours == pytest.approx(TABLE_1[name], abs=0.101)


@pytest.mark.parametrize("name,mult_adds,params", [("vit_p_4gf", 58e6, 0.3e6), ("vit_c_4gf", 435e6, 1.0e6)])
def test_costs_of_stems_are_those_of_xiao(name, mult_adds, params):
    """Compares with table 3; a stem of convolutions replaces one transformer block."""
    model = models.create(name)
    stem = [layer for layer in analyze(model, model.example()).layers if layer.path.startswith("stem")]
    assert sum(layer.mult_adds for layer in stem) == pytest.approx(mult_adds, rel=0.01)
    assert round(sum(layer.params for layer in stem) / 1e6, 1) == params / 1e6


@pytest.mark.parametrize("size", ["1gf", "18gf"])
def test_stem_of_convolutions_is_that_of_xiao(size):
    """Checks section 3: 3x3 convolutions, each with batch norm and ReLU, one 1x1; 14 x 14 positions; one block less."""
    model = models.create(f"vit_c_{size}")
    modules = {}

    def read(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, (Conv, BatchNorm)):
            modules.setdefault("/".join(context.module.path), context.module)
        return call(*args, **kwargs)

    def run():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        return variables, capture(model, variables, jnp.zeros((1, 224, 224, 3)), names=["stem"])[1]["stem"]

    with nn.intercept_methods(read):
        params, stem = jax.eval_shape(run)
    assert stem.shape == (1, 14, 14, model.width)
    channels = {"1gf": (24, 48, 96, 192), "18gf": (64, 128, 128, 256, 256, 512)}[size]
    count = len(channels)
    assert list(modules) == [f"stem_{k}{i}" for i in range(1, count + 1) for k in ("conv", "norm")] + ["stem_out"]
    assert [modules[f"stem_conv{i}"].features for i in range(1, count + 1)] == list(channels)
    strides = {"1gf": [2, 2, 2, 2], "18gf": [2, 2, 1, 2, 1, 2]}[size]
    assert [modules[f"stem_conv{i}"].strides for i in range(1, count + 1)] == strides
    assert modules["stem_out"].kernel_size == 1 and modules["stem_out"].use_bias
    blocks = [name for name in params["params"] if name.startswith("block")]
    assert len(blocks) == models.create(f"vit_p_{size}").depth - 1


@pytest.mark.parametrize(
    "fields,stem,body",
    [
        ({}, BatchNorm, ChannelNorm),
        ({"stem_norm": None}, ChannelNorm, ChannelNorm),
        ({"stem_norm": None, "norm": "batch"}, BatchNorm, BatchNorm),
        ({"stem_norm": "none"}, None, ChannelNorm),
        ({"norm": "none"}, BatchNorm, None),
    ],
)
def test_stem_and_body_have_their_own_norm(fields, stem, body):
    model = tiny("vit_c_1gf", stem_channels=(4, 8), **fields)
    kinds = {"stem": set(), "body": set()}

    def read(call, args, kwargs, context):
        if isinstance(context.module, (BatchNorm, ChannelNorm)) and context.method_name == "__call__":
            kinds["stem" if context.module.path[0].startswith("stem") else "body"].add(type(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        params = drawn.abstract(model)["params"]
    assert kinds == {"stem": {stem} - {None}, "body": {body} - {None}}
    assert ("bias" in params["stem_conv1"]) == (stem is None)


def test_sincos_is_that_of_moco_v3():
    positions = sincos2d(3, 5, 8)
    assert positions.shape == (15, 8) and positions.dtype == np.float32
    for row, column in ((0, 0), (1, 0), (2, 4)):
        expected = [
            f(place * frequency) for place in (row, column) for f in (np.sin, np.cos) for frequency in (1, 0.01)
        ]  # 10000^(-i / 2)
        np.testing.assert_allclose(positions[row * 5 + column], expected, rtol=1e-6)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_fixed_positions_are_no_parameters_and_leave_the_class_token(pool):
    model = tiny(positions="sincos2d", pool=pool)
    assert "positions" not in drawn.abstract(model)["params"]
    assert ("class_token" in drawn.abstract(model)["params"]) == (pool == "token")
    positions = model.fixed_positions()[0]
    assert positions.shape == (16 + (pool == "token"), 8)
    np.testing.assert_array_equal(positions[-16:], sincos2d(4, 4, 8))
    assert pool == "mean" or not positions[0].any()
    for name in weights.layouts(model).keys() - {"ablate"}:
        arrays = weights.to_arrays(model, drawn.variables(model), name)
        again = weights.from_arrays(model, arrays, name)
        jax.tree.map(np.testing.assert_array_equal, again, drawn.variables(model))


@pytest.mark.parametrize("i", range(len(RESIZED)))
def test_positions_are_resized_as_timm_does(i):
    old, new, prefix = RESIZED[i]
    positions = drawn.images(f"resized{i}", (1, prefix + old[0] * old[1], 8))
    resized = resize_positions(positions, old, new)
    close(resized, GOLDEN["vit"][f"resized{i}"], f"{old} to {new}")
    np.testing.assert_array_equal(resized[:, :prefix], positions[:, :prefix])
    assert resize_positions(positions, old, old) is positions
    with pytest.raises(UserError, match="positions are too few for 9 x 9 patches"):
        resize_positions(positions, (9, 9), new)


@pytest.mark.parametrize("layout", keep_first(1, ["ablate", "timm"]))
@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
def test_weights_serve_images_of_another_size(positions, layout):
    """Checks that, with constant positions and images, the network does not depend on the size."""
    model, larger = (tiny(positions=positions, pool="mean", image_size=size) for size in (16, 24))
    variables = drawn.variables(model)
    if positions == "learned":
        variables["params"]["positions"] = np.broadcast_to(variables["params"]["positions"][:, :1], (1, 16, 8))
    resized = weights.from_arrays(larger, weights.to_arrays(model, variables, layout), layout)
    logits = larger.apply(resized, jnp.ones((1, 24, 24, 3)))
    if positions == "learned":
        np.testing.assert_allclose(logits, model.apply(variables, jnp.ones((1, 16, 16, 3))), rtol=1e-4, atol=1e-5)
    else:
        assert resized["params"].keys() == variables["params"].keys()


def test_without_positions_patches_are_a_set():
    """Checks that images with permuted patches differ by positions alone."""
    model = tiny(pool="mean")
    variables = drawn.variables(model)
    shuffled = IMAGES.reshape(2, 4, 4, 16, 3)[:, jnp.array([2, 0, 3, 1])].reshape(2, 16, 16, 3)  # rows of patches
    run = jit_once(model.apply)
    assert not np.allclose(run(variables, IMAGES), run(variables, shuffled), atol=1e-2)
    variables["params"]["positions"] = jnp.zeros((1, 16, 8))
    np.testing.assert_allclose(run(variables, IMAGES), run(variables, shuffled), rtol=1e-4, atol=1e-5)


def test_only_the_class_token_is_classified():
    """Checks that the gradient of the logits by the last block's output is zero at all tokens but the first."""
    model = tiny()
    variables = drawn.variables(model)
    zeros = jnp.zeros((2, 17, 8))
    gradient = jax.grad(lambda add: jnp.square(capture(model, variables, IMAGES, add={"block1": add})[0]).sum())(zeros)
    assert np.abs(gradient[:, 0]).max() > 0 and not gradient[:, 1:].any()


def test_attention_by_hand():
    q, k, v = (drawn.images(name, (2, length, 3, 4)) for name, length in (("q", 5), ("k", 6), ("v", 6)))
    bias, mask = drawn.images("bias", (1, 3, 5, 6)), drawn.images("mask", (2, 1, 1, 6)) > -1
    logits = np.einsum("nthd,nshd->nhts", q, k) / 2 + bias
    attention = np.where(mask, np.exp(logits), 0)
    attention /= attention.sum(-1, keepdims=True)
    expected = np.einsum("nhts,nshd->nthd", attention, v)
    np.testing.assert_allclose(attend(*map(jnp.asarray, (q, k, v, bias, mask))), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])  # both run here
@pytest.mark.parametrize("biased,masked", [(True, True), (True, False), (False, True), (False, False)])
def test_attention_and_its_gradients_are_those_of_jax(biased, masked, platform):
    q, k, v = (jnp.asarray(drawn.images(name, (2, length, 3, 4))) for name, length in (("q", 5), ("k", 6), ("v", 6)))
    bias = jnp.asarray(drawn.images("bias", (1, 3, 5, 6))) if biased else None
    mask = jnp.asarray(drawn.images("mask", (2, 1, 5, 6)) > 0).at[1, 0, 2].set(False) if masked else None
    assert mask is None or mask.any()  # except for one query, which sees no key and therefore all of them
    weights = drawn.images("towards", q.shape)

    def of(attention):
        def project(q, k, v, bias):
            y = attention(q, k, v, bias, mask)
            return (y * weights).sum(), y

        (_, y), gradients = jax.value_and_grad(project, range(4 if biased else 3), has_aux=True)(q, k, v, bias)
        return y, *gradients

    with tracing.for_platform(platform):
        arrays = of(attend)
    for array, expected in zip(arrays, of(jax.nn.dot_product_attention), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


def test_attention_in_half_precision_is_as_exact_as_that_of_jax():
    """Compares values and gradients in bfloat16, as an accelerator computes them, with float32."""
    q, k, v = (jnp.asarray(drawn.images(name, (2, 50, 3, 16))) for name in "qkv")
    weights = drawn.images("towards", q.shape)

    def of(attention, dtype):
        def project(q, k, v):
            y = attention(q.astype(dtype), k.astype(dtype), v.astype(dtype)).astype(jnp.float32)
            return (y * weights).sum(), y

        (_, y), gradients = jax.value_and_grad(project, (0, 1, 2), has_aux=True)(q, k, v)
        return y, *gradients

    exact = of(jax.nn.dot_product_attention, jnp.float32)
    with tracing.for_platform("tpu"):
        ours = of(attend, jnp.bfloat16)
    theirs = of(jax.nn.dot_product_attention, jnp.bfloat16)
    for one, other, expected in zip(ours, theirs, exact, strict=True):
        error, limit = (jnp.abs(x - expected).mean() for x in (one, other))
        assert error < 1.5 * limit < 0.02 * jnp.abs(expected).mean() * 1.5


def test_images_of_another_size_are_refused():
    model = tiny()
    for shape in ((1, 24, 24, 3), (1, 16, 20, 3)):
        with pytest.raises(UserError, match=r"images of \d+ x \d+: image_size=16 fixes the positions") as error:
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
        assert "\n" not in str(error.value)

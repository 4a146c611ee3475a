"""Tests of models/layers/low_bit.py: kernels and gradients against NumPy, and the layers that are quantized."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models.errors import UserError
from models.kernels.tracing import lowering
from models.layers import low_bit
from models.layers.conv import Conv, Dense, StandardizedConv
from models.layers.init import jit_once
from tests.golden import drawn as golden
from tests.networks import SMALL
from tests.tiers import keep_first

LAYERS = {
    "ternary": (low_bit.TernaryConv, low_bit.TernaryDense),
    "xnor": (low_bit.XnorConv, low_bit.XnorDense),
    "binary_weight": (low_bit.BinaryWeightConv, low_bit.BinaryWeightDense),
}
# name, fields, quantizing fields, layers in floats, number of quantized layers
NETWORKS = {
    "resnet8": ("resnet8", {"width": 8}, ("conv",), {"stem_conv", "head"}, 6),
    "projections": (
        "resnet18",
        {"width": 8, "stage_sizes": (1, 1), "num_classes": 10},
        ("conv",),
        {"stem_conv", "head"},
        5,
    ),
    "remat": (
        "preresnet20",
        {"width": 8, "stage_sizes": (1, 1), "remat": True, "act": "identity"},
        ("conv",),
        {"stem_conv", "head"},
        4,
    ),
    "vgg": ("vgg11_cifar", {"width": 8}, ("conv",), {"stage1/conv1", "head"}, 7),
    "lenet": ("lenet5", {"convs": (4, 6), "hidden": (16,), "image_size": 32}, ("conv", "dense"), {"conv1", "head"}, 2),
    "lenet_dense": (
        "lenet5",
        {"convs": (4, 6), "hidden": (16,), "image_size": 32},
        ("dense",),
        {"conv1", "conv2", "head"},
        1,
    ),
    "lenet_300_100": ("lenet_300_100", {"hidden": (16, 12, 8), "image_size": 32}, ("dense",), {"hidden1", "head"}, 2),
    "mobilenet": (
        "mobilenet_v2",
        {"stage_sizes": (1, 1), "width_multiplier": 0.25, "num_classes": 10},
        ("conv",),
        {"stem_conv", "head"},
        6,
    ),
    "vit": ("vit_tiny_patch16", {**SMALL["vit"][1], "depth": 1, "remat": True}, ("dense",), {"stem_conv", "head"}, 4),
    "vit_c": (*SMALL["vit_c"], ("conv", "dense"), {"stem_conv1", "head"}, 7),
}
IMAGES = jnp.asarray(golden.images("lowbit", (2, 32, 32, 3)))


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def network(key, kind):
    name, fields, low, floats, count = NETWORKS[key]
    return models.create(name, **fields, **dict.fromkeys(low, kind)), floats, count


def layers_of(model, variables):
    """Returns {path: class} of the convolutions and dense layers of a call."""
    layers = {}

    def read(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, (Conv, Dense)):
            layers["/".join(context.module.path)] = type(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        jax.eval_shape(model.apply, variables, IMAGES)
    return layers


# -- kernels ---------------------------------------------------------------------------------------------


def test_ternary_values_and_gradients():
    """Compares with Zhu 2017, eq. 6 to 8; the derivatives by the scales are exact."""
    kernel, dy = drawn((3, 3, 4, 5), (3, 3, 4, 5))
    kernel[0, 0, 0, :2] = 0.0, np.abs(kernel).max() * 0.049
    limit = 0.05 * np.abs(kernel).max()
    above, below = kernel > limit, kernel < -limit
    assert 0 < (~above & ~below).sum() < above.sum()
    ternary = functools.partial(low_bit.ternarized, threshold=0.05)
    effective, pull = jax.vjp(ternary, kernel, jnp.float32(0.7), jnp.float32(1.3))
    np.testing.assert_array_equal(effective, np.where(above, np.float32(0.7), np.where(below, np.float32(-1.3), 0)))
    by_kernel, by_positive, by_negative = pull(dy)
    np.testing.assert_allclose(by_kernel, dy * np.where(above, 0.7, np.where(below, 1.3, 1)), rtol=1e-6)
    np.testing.assert_allclose(by_positive, dy[above].sum(), rtol=1e-5)
    np.testing.assert_allclose(by_negative, -dy[below].sum(), rtol=1e-5)

    def loss(positive, negative):
        return (np.asarray(ternary(kernel, positive, negative), np.float64) * dy).sum()

    np.testing.assert_allclose(by_positive, (loss(1.5, 1.3) - loss(0.5, 1.3)), rtol=1e-4)
    np.testing.assert_allclose(by_negative, (loss(0.7, 1.5) - loss(0.7, 0.5)), rtol=1e-4)


@pytest.mark.parametrize(
    "layer,shape",
    [
        (low_bit.TernaryConv(6, 3), (2, 5, 5, 4)),
        (low_bit.TernaryDense(6), (3, 40)),
        (low_bit.TernaryDense(6, threshold=0.5), (3, 40)),
    ],
    ids=str,
)
def test_ternary_layers_start_at_the_mean_beyond_their_threshold(layer, shape):
    (x,) = drawn(shape)
    y, variables = jit_once(layer.init_with_output)(jax.random.key(0), x)
    params = variables["params"]
    standard = Conv(6, 3) if x.ndim == 4 else Dense(6)
    of_standard = jit_once(standard.init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(params["kernel"], of_standard["kernel"], rtol=1e-5)
    kernel = np.asarray(params["kernel"])
    beyond = np.abs(kernel) > layer.threshold * np.abs(kernel).max()
    assert not beyond.all() and params["positive"].shape == () and params["positive"].dtype == jnp.float32
    for name in ("positive", "negative"):
        np.testing.assert_allclose(params[name], np.abs(kernel)[beyond].mean(), rtol=1e-5)
    params = {**params, "negative": jnp.float32(0.3)}
    by_hand = {**params, "kernel": np.where(beyond, np.where(kernel > 0, params["positive"], -0.3), 0)}
    of_standard = {name: by_hand[name] for name in by_hand if name in ("kernel", "bias")}
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), standard.apply({"params": of_standard}, x), rtol=1e-4, atol=1e-5
    )


def test_zero_kernels_stay_finite():
    """Tests zero kernels: the last convolution of a branch starts that way in some networks."""
    for layer in (
        low_bit.TernaryDense(3, kernel_init=nn.initializers.zeros_init()),
        low_bit.BinaryWeightDense(3, kernel_init=nn.initializers.zeros_init()),
        low_bit.XnorDense(3, kernel_init=nn.initializers.zeros_init()),
    ):
        variables = jit_once(layer.init)(jax.random.key(0), jnp.ones((2, 4)))
        output, gradient = jit_once(jax.value_and_grad(lambda v, layer=layer: layer.apply(v, jnp.ones((2, 4))).sum()))(
            variables
        )
        assert output == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "layer,shape", [(low_bit.BinaryWeightConv(6, 3), (3, 3, 4, 6)), (low_bit.BinaryWeightDense(6), (40, 6))], ids=str
)
def test_binary_values_and_gradients(layer, shape):
    """Compares with sign(w) alpha.

    The derivative by w is exact through alpha, and that of the identity through the sign.
    """
    kernel, dy = drawn(shape, shape)
    axes, size = tuple(range(len(shape) - 1)), kernel[..., 0].size
    effective, pull = jax.vjp(layer.effective, kernel)
    sign, alpha = np.where(kernel >= 0, 1, -1), np.abs(kernel).mean(axes)
    np.testing.assert_allclose(effective, sign * alpha, rtol=1e-6)
    by_hand = dy * alpha * (np.abs(kernel) <= 1) + sign * (dy * sign).sum(axes) / size
    np.testing.assert_allclose(pull(dy)[0], by_hand, rtol=1e-4, atol=1e-5)
    # Where |w| > 1, no gradient goes through the sign, and the rest is a true derivative.
    place = np.unravel_index(np.argmax(np.abs(kernel)), shape)
    step = np.zeros(shape, np.float32)
    step[place] = 0.5 * np.sign(kernel[place])
    loss = [(np.asarray(layer.effective(kernel + s), np.float64) * dy).sum() for s in (0 * step, step)]
    np.testing.assert_allclose(pull(dy)[0][place] * step[place], loss[1] - loss[0], rtol=1e-3)


def test_binarizing_twice_changes_nothing():
    for shape in ((3, 3, 4, 6), (7, 7, 1, 40), (1000, 30)):
        (kernel,) = drawn(shape)
        effective = low_bit.BinaryWeightDense(shape[-1]).effective
        once = jax.jit(effective)(kernel)
        np.testing.assert_array_equal(jit_once(effective)(kernel), once)  # in every program
        np.testing.assert_array_equal(jax.jit(effective)(once), once)


# -- networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("key", keep_first(2, NETWORKS))
def test_all_but_the_first_and_the_head(key, kind):
    model, floats, count = network(key, kind)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    for _ in range(2):  # the first call leaves nothing behind
        layers = layers_of(model, variables)
        assert {path for path, layer in layers.items() if layer in (Conv, Dense)} == floats
        assert sum(layer in LAYERS[kind] for layer in layers.values()) == count == len(layers) - len(floats)
    again = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    assert ["/".join(path) for path in low_bit.layers(model, variables, IMAGES)] == [
        path for path in layers if path not in floats
    ]


@pytest.mark.parametrize(
    "key,kind",
    keep_first(
        len(LAYERS),
        [  # tests/models/test_any_network.py trains every family
            *(("lenet", kind) for kind in LAYERS),
            ("resnet8", "xnor"),
            ("mobilenet", "binary_weight"),
            ("vit", "ternary"),
        ],
    ),
)
def test_a_step_moves_every_kernel_and_the_stored_network_is_the_same(key, kind):
    model, floats, _ = network(key, kind)
    variables = models.initialize(model, jax.random.key(0), IMAGES.shape)

    @jit_once
    def step(variables):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            return -jax.nn.log_softmax(logits)[:, 3].mean()

        gradient = jax.grad(loss)(variables["params"])
        return {**variables, "params": jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradient)}

    trained = step(variables)
    before, after = (traverse_util.flatten_dict(v["params"], sep="/") for v in (variables, trained))
    moving = [name for name in before if name.split("/")[-1] in ("kernel", "positive", "negative")]
    assert all(np.isfinite(after[name]).all() and (after[name] != before[name]).any() for name in moving)

    packed = low_bit.stored(model, trained, IMAGES)
    few = traverse_util.flatten_dict(packed["params"], sep="/")
    for name in moving:
        if name.rsplit("/", 1)[0] in floats or not name.endswith("kernel"):
            np.testing.assert_array_equal(few[name], after[name])
        elif kind == "ternary":
            assert set(np.unique(few[name])) <= {-1, 0, 1}
        else:
            assert all(len(np.unique(np.abs(few[name][..., i]))) == 1 for i in range(few[name].shape[-1]))
    run = jit_once(model.apply)
    logits = run(trained, IMAGES)
    assert np.ptp(logits) > 0
    np.testing.assert_array_equal(run(packed, IMAGES), logits)
    np.testing.assert_array_equal(
        low_bit.stored(model, packed, IMAGES)["params"][min(floats)]["kernel"], after[f"{min(floats)}/kernel"]
    )


@pytest.mark.parametrize("key", keep_first(1, ["resnet8", "vit"]))
def test_packed_networks_agree_with_float_ones(key):
    """Compares networks: layers agree to the bit, but operations that XLA fuses around them may round differently."""
    model, *_ = network(key, "xnor")
    variables = models.initialize(model, jax.random.key(0), IMAGES.shape)
    with lowering("packed"):
        packed = jit_once(lambda v, x: model.apply(v, x))(variables, IMAGES)
    np.testing.assert_allclose(packed, jit_once(model.apply)(variables, IMAGES), rtol=1e-4, atol=1e-5)


def test_names_mean_sites_and_classes_mean_every_layer():
    fields = {"width": 8, "stage_sizes": (1,)}
    model = models.create("resnet8", **fields, conv=low_bit.XnorConv, dense=low_bit.TernaryDense)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert set(layers_of(model, variables).values()) == {low_bit.XnorConv, low_bit.TernaryDense}
    # the first layer counts as the first whatever its class is
    model = models.create("lenet5", convs=(4,), hidden=(16,), image_size=32, conv="standardized", dense="xnor")
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert list(layers_of(model, variables).values()) == [StandardizedConv, low_bit.XnorDense, Dense]


def test_every_dense_layer_of_a_transformer_is_quantized():
    """Checks that every dense layer is quantized: the first and last layer of a transformer is the embedding."""
    model = models.create(
        "transformer_base", vocab_size=11, width=8, heads=2, layers=1, ff_width=12, max_length=5, dense="ternary"
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), *model.example())
    kernels, scales = (
        [path for path in traverse_util.flatten_dict(variables["params"]) if path[-1] == leaf]
        for leaf in ("kernel", "positive")
    )
    assert len(kernels) == len(scales) == 11


@pytest.mark.parametrize(
    "name,fields,message",
    [
        ("resnet8", {"dense": "xnor"}, "dense='xnor' has no effect"),
        ("lenet_300_100", {"conv": "ternary"}, "conv='ternary' has no effect"),
        ("vit_tiny_patch16", {"conv": "binary_weight", "dense": "xnor"}, "conv='binary_weight' has no effect"),
    ],
)
def test_low_bits_without_effect_are_an_error(name, fields, message):
    model = models.create(name, **fields)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *model.example())


def test_ternary_layers_start_from_full_ones(tmp_path):
    from tests import tiny
    from train import loop
    from train.run import build_run

    loop.train(tiny.config(duration="4 steps"), tmp_path / "full")
    full = build_run(tiny.config(init_from=str(tmp_path / "full"), init_new="")).state.params
    params = build_run(tiny.config(init_from=str(tmp_path / "full"), init_new="", model__conv="ternary")).state.params
    layer, kernel = params["stage2"]["block0"]["conv1"], full["stage2"]["block0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(layer["kernel"], kernel)
    magnitude = np.abs(kernel)
    mean = magnitude[magnitude > 0.05 * magnitude.max()].mean()
    np.testing.assert_allclose([layer["positive"], layer["negative"]], [mean, mean], rtol=1e-5)


@pytest.mark.full
def test_a_network_packed_beforehand_computes_the_same_as_one_packed_in_the_call():
    model = models.create("preresnet20", width=4, conv="xnor", act="identity")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    variables = models.initialize(model, jax.random.key(0), images.shape)
    packed = low_bit.packed(model, variables, images)
    assert len(traverse_util.flatten_dict(packed["packed"])) == 18  # all except the stem and the head
    with lowering("packed"):
        once, again = (np.asarray(jax.jit(model.apply)(v, images)) for v in (variables, packed))
    np.testing.assert_allclose(again, once, rtol=1e-5, atol=1e-6)
    flipped = {**packed, "packed": jax.tree.map(lambda x: ~x if x.dtype == jnp.uint32 else x, packed["packed"])}
    with lowering("packed"):
        assert np.abs(np.asarray(jax.jit(model.apply)(flipped, images)) - once).max() > 0.01  # the packed bits are used

"""Removal of filters: in every family, the smaller network computes the same as the masked one."""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models.analysis.cost import analyze
from models.compress import shrink
from models.compress.shrink import Coupling
from models.errors import UserError
from models.layers.init import jit_once
from tests.golden import drawn
from tests.tiers import keep

IMAGES = jnp.asarray(drawn.images("shrink", (2, 32, 32, 3)))
TEN = {"num_classes": 10}
LENET = ("lenet5", {"convs": (4, 6), "hidden": (12,), "image_size": 32})
VGG_CIFAR = ("vgg11_cifar", {"stage_sizes": (1, 2), "width": 8})
# Small networks, and the kernels whose filters are removed.
CASES = {
    "lenet": (*LENET, "conv1|conv2|hidden1"),
    "lenet_batch": (LENET[0], {**LENET[1], "norm": "batch"}, "conv1|conv2|hidden1"),
    "vgg": ("vgg11", {"stage_sizes": (1, 1), "width": 4, "classifier": (12, 8), **TEN}, "stage./conv.|hidden."),
    "vgg_bn": ("vgg11_bn", {"stage_sizes": (1, 1), "width": 4, "classifier": (12,), **TEN}, "stage./conv.|hidden."),
    "vgg_cifar": (*VGG_CIFAR, "stage./conv."),
    "alexnet": ("alexnet", {"stem": (3, 1, 1), "convs": (6,) * 5, "classifier": (12,), **TEN}, "conv.|hidden1"),
    "basic": ("resnet8", {"stage_sizes": (1, 1), "width": 8}, "stage./block0/conv1"),
    "instance": ("resnet8", {"stage_sizes": (1, 1), "width": 8, "norm": "instance"}, "stage./block0/conv1"),
    "bottleneck": ("resnet50", {"stage_sizes": (1, 1), "width": 8, **TEN}, "stem_conv|stage./block0/conv[12]"),
    "plain": ("plain8", {"stage_sizes": (1, 1), "width": 8}, "stem_conv|stage./block0/conv."),
    "preact": ("preresnet20", {"stage_sizes": (1, 1), "width": 8, "remat": True}, "stage./block0/conv1"),
    "separable": ("mobilenet_v1", {"stage_sizes": (1, 2), "width_multiplier": 0.25, **TEN}, "stem_conv|.*/pointwise"),
    "inverted": ("mobilenet_v2", {"stage_sizes": (1, 2), "width_multiplier": 0.25, **TEN}, ".*/expand|last_conv"),
    "dense": ("densenet_bc100_k12", {"stage_sizes": (2, 1), "growth": 4, "width": 8}, ".*/conv1"),
    "convnext": ("convnext_tiny", {"stage_sizes": (1, 1), "width": 8, "layer_scale": 0.5, **TEN}, ".*/expand"),
    "ladder": ("convnext_ladder05_width96", {"stage_sizes": (1, 1), "width": 8, **TEN}, "stage./block0/conv1"),
    "vit": (
        "vit_tiny_patch16",
        {"patch_size": 8, "depth": 2, "width": 16, "heads": 2, "mlp_width": 24, "image_size": 32, **TEN},
        ".*/expand",
    ),
}


def network(name, fields, images=IMAGES):
    model = models.create(name, **fields)
    variables = drawn.filled(jax.eval_shape(model.init, jax.random.key(0), images), drawn.weight)
    return model, jax.tree.map(np.asarray, variables)


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def kernels_of(variables, what):
    return [name.removeprefix("params/") for name in flat(variables) if re.fullmatch(f"params/({what})/kernel", name)]


def some_masks(variables, kernels, seed=0):
    """Returns random masks that keep at least one filter of each kernel, and not all."""
    rng, masks = np.random.default_rng(seed), {}
    for kernel in kernels:
        features = flat(variables)[f"params/{kernel}"].shape[-1]
        masks[kernel] = np.ones(features, bool)
        masks[kernel][rng.choice(features, rng.integers(1, features), replace=False)] = False
    return masks


def zeroed(variables, couplings, masks, own=lambda coupling: coupling.own):
    """Returns the variables with zeros in every slice that belongs to a removed filter."""
    leaves = {name: np.array(leaf) for name, leaf in flat(variables).items()}
    for kernel, mask in masks.items():
        for coupling in couplings[kernel]:
            if own(coupling):
                assert coupling.axis == leaves[coupling.array].ndim - 1 and coupling.repeat == 1
                leaves[coupling.array] *= mask
    return traverse_util.unflatten_dict(leaves, sep="/")


def logits(model, *several):
    """Returns the logits of IMAGES under each of several variables."""
    run = jit_once(model.apply)
    return [np.asarray(run(variables, IMAGES)) for variables in several]


def assert_near(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def size(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    "case",
    keep(  # tests/models/test_any_network.py removes filters of every family
        ("lenet", "vgg_bn", "bottleneck", "instance", "inverted", "vit"), CASES
    ),
)
def test_the_smaller_network_computes_what_the_masked_one_does(case):
    name, fields, what = CASES[case]
    model, variables = network(name, fields)
    kernels = kernels_of(variables, what)
    assert len(kernels) >= 2
    masks = some_masks(variables, kernels)
    smaller, fewer = shrink.shrink(model, variables, masks, IMAGES.shape)
    assert dict(smaller.widths) == {kernel.removesuffix("/kernel"): mask.sum() for kernel, mask in masks.items()}
    couplings = shrink.coupled(model, IMAGES.shape, kernels)
    masked, whole = logits(model, zeroed(variables, couplings, masks), variables)
    assert_near(*logits(smaller, fewer), masked)
    assert np.abs(masked - whole).max() > 1e-3 * np.abs(masked).max()  # the masks have an effect
    shapes = jax.tree.map(np.shape, jax.eval_shape(smaller.init, jax.random.key(0), IMAGES))
    assert jax.tree.map(np.shape, fewer) == shapes
    before, after = (analyze(net, (1, *IMAGES.shape[1:])) for net in (model, smaller))
    assert after.mult_adds < before.mult_adds and after.params == size(fewer) < before.params


def test_couplings_of_a_lenet_by_hand():
    model, variables = network(LENET[0], {**LENET[1], "norm": "batch"})
    couplings_of = shrink.coupled(model, IMAGES.shape, kernels_of(variables, "conv1|conv2"))
    places = 5 * 5
    assert {kernel: set(couplings) for kernel, couplings in couplings_of.items()} == {
        "conv1/kernel": {
            Coupling("params/conv1/kernel", 3, 1, True),
            Coupling("params/conv1_norm/scale", 0, 1, True),
            Coupling("params/conv1_norm/bias", 0, 1, True),
            Coupling("batch_stats/conv1_norm/mean", 0, 1, False),
            Coupling("batch_stats/conv1_norm/var", 0, 1, False),
            Coupling("params/conv2/kernel", 2, 1, False),
        },
        "conv2/kernel": {
            Coupling("params/conv2/kernel", 3, 1, True),
            Coupling("params/conv2_norm/scale", 0, 1, True),
            Coupling("params/conv2_norm/bias", 0, 1, True),
            Coupling("batch_stats/conv2_norm/mean", 0, 1, False),
            Coupling("batch_stats/conv2_norm/var", 0, 1, False),
            Coupling("params/hidden1/kernel", 0, places, False),
        },
    }
    assert couplings_of["conv1/kernel"][0].array == "params/conv1/kernel"


def test_parameters_by_hand():
    lenet, variables = network("lenet5", {"image_size": 28}, IMAGES[:, :28, :28])
    masks = {
        "conv1/kernel": np.arange(20) < 8,
        "conv2/kernel": np.arange(50) % 2 == 0,
        "hidden1/kernel": np.arange(500) >= 400,
    }
    smaller, fewer = shrink.shrink(lenet, variables, masks, (1, 28, 28, 3))
    conv1, conv2 = 8 * (5 * 5 * 3 + 1), 25 * (5 * 5 * 8 + 1)
    assert size(fewer) == conv1 + conv2 + 100 * (4 * 4 * 25 + 1) + 10 * (100 + 1)
    vgg, variables = network(*VGG_CIFAR)
    masks = {"stage1/conv1/kernel": np.arange(8) != 3, "stage2/conv2/kernel": np.arange(16) < 5}
    smaller, fewer = shrink.shrink(vgg, variables, masks, IMAGES.shape)
    a, b, c = 7, 16, 5  # convolutions have biases here; scale and bias of each normalization
    assert size(fewer) == 9 * (3 * a + a * b + b * c) + 3 * (a + b + c) + 10 * (c + 1)
    assert smaller.widths == (("stage1/conv1", 7), ("stage2/conv2", 5))


def test_remaining_parameters_are_unchanged():
    """Removes all but the first and third map of LeNet's second convolution, and compares with slices taken by hand.

    The hidden layer loses the other maps at each position of the flattened map.
    """
    model, variables = network(*LENET)
    mask = np.array([1, 0, 1, 0, 0, 0], bool)
    _, fewer = shrink.shrink(model, variables, {"conv2/kernel": mask}, IMAGES.shape)
    before, after = variables["params"], fewer["params"]
    np.testing.assert_array_equal(after["conv2"]["kernel"], before["conv2"]["kernel"][..., [0, 2]])
    np.testing.assert_array_equal(after["conv2"]["bias"], before["conv2"]["bias"][[0, 2]])
    expected = before["hidden1"]["kernel"].reshape(25, 6, 12)[:, [0, 2]].reshape(50, 12)
    np.testing.assert_array_equal(after["hidden1"]["kernel"], expected)
    np.testing.assert_array_equal(after["conv1"]["kernel"], before["conv1"]["kernel"])


def test_a_zero_kernel_alone_does_not_remove_a_filter():
    """Checks that a zero kernel before a batch normalization still gives a constant; its vectors count as well."""
    model, variables = network(*VGG_CIFAR)
    masks = some_masks(variables, ["stage1/conv1/kernel"])
    couplings = shrink.coupled(model, IMAGES.shape, masks)
    smaller, fewer = shrink.shrink(model, variables, masks, IMAGES.shape)
    kernels_alone = zeroed(
        variables, couplings, masks, own=lambda coupling: coupling.array.endswith("kernel") and coupling.own
    )
    assert np.abs(logits(model, kernels_alone)[0] - logits(smaller, fewer)[0]).max() > 0.01


def test_shrinking_can_be_repeated():
    model, variables = network(*VGG_CIFAR)
    once = shrink.shrink(model, variables, {"stage1/conv1/kernel": np.arange(8) != 3}, IMAGES.shape)
    twice, fewer = shrink.shrink(
        *once, {"stage1/conv1/kernel": np.arange(7) != 0, "stage2/conv1/kernel": np.arange(16) > 2}, IMAGES.shape
    )
    assert twice.widths == (("stage1/conv1", 6), ("stage2/conv1", 13))
    both, expected = shrink.shrink(
        model,
        variables,
        {"stage1/conv1/kernel": ~np.isin(np.arange(8), (0, 3)), "stage2/conv1/kernel": np.arange(16) > 2},
        IMAGES.shape,
    )
    assert both == twice
    jax.tree.map(np.testing.assert_array_equal, fewer, expected)


def test_pruning_nothing_changes_nothing():
    model, variables = network(*LENET)
    same, leaves = shrink.shrink(model, variables, {"conv1/kernel": np.ones((5, 5, 3, 4), bool)}, IMAGES.shape)
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, leaves, variables)


RESNET = ("resnet8", {"stage_sizes": (1, 1), "width": 8})


@pytest.mark.parametrize(
    ("net", "kernel", "message"),
    [
        (
            RESNET,
            "stage1/block0/conv2",
            "filters of stage1/block0/conv2 cannot be removed: add got incompatible shapes",
        ),
        (RESNET, "head", "filters of head cannot be removed: they are the outputs of the network"),
        (
            RESNET,
            "stage1/block0/cov2",
            "stage1/block0/cov2/kernel is not the kernel.*did you mean 'stage1/block0/conv2/kernel'",
        ),
        (
            ("densenet_bc100_k12", {"stage_sizes": (2, 1), "growth": 4, "width": 8}),
            "stage1/layer0/conv2",
            "stage1/layer0/conv2 cannot be removed: stage1/layer1/norm1/.* sees them together with those of other",
        ),
        (("vit_tiny_patch16", CASES["vit"][1]), "block0/attention/qkv", "attention/qkv cannot be removed: array split"),
        (
            ("convnext_ladder12_fewer_norms", {"stage_sizes": (1, 1), "width": 8, **TEN}),
            "stem_conv",
            "stem_conv cannot be removed: with one less, stage1/block0/downsample_conv/bias is new",
        ),
        (("lenet5", {**LENET[1], "convs": (1, 6)}), "conv1", "filters of conv1 cannot be removed: it has only one"),
        (("mobilenet_v1", CASES["separable"][1]), "stage1/block0/depthwise", "not divisible into 8 groups"),
    ],
)
def test_filters_that_cannot_be_removed(net, kernel, message):
    model = models.create(net[0], **net[1])
    with pytest.raises(UserError, match=message) as error:
        shrink.coupled(model, IMAGES.shape, [f"{kernel}/kernel"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("net", "kernel"),
    [
        (RESNET, "stem_conv"),  # its shortcut pads missing channels with zeros, at the end
        (
            ("vgg11", {"stage_sizes": (1, 1), "width": 4, "classifier": (), "dropout": 0.0, "norm": "layer", **TEN}),
            "stage1/conv1",
        ),
        (("mobilenet_v2", CASES["inverted"][1]), "stage2/block0/project"),  # block1 would lose its shortcut
    ],
)
def test_logits_reveal_couplings_that_shapes_do_not_show(net, kernel):
    model, variables = network(*net)
    mask = np.arange(flat(variables)[f"params/{kernel}/kernel"].shape[-1]) != 1
    with pytest.raises(UserError, match=f"filters of {kernel} cannot be removed: the logits would change .* mixes"):
        shrink.shrink(model, variables, {f"{kernel}/kernel": mask}, IMAGES.shape)
    removable, refused = shrink.removable(model, variables, IMAGES.shape, [f"{kernel}/kernel"])
    assert not removable and "computes something else" in refused[f"{kernel}/kernel"]


def test_a_branch_that_starts_at_zero_hides_nothing():
    """Checks that filters are tried with drawn parameters.

    With its initial scale of 0, the branch would give 0 whichever filter is removed.
    """
    model, variables = network("convnext_tiny", {**CASES["convnext"][1], "norm": "layer"})
    stage = variables["params"]["stage1"]["block0"]
    stage["layer_scale"] = 0 * stage["layer_scale"]
    kernels = kernels_of(variables, "stage1/downsample_conv|stem_conv|stage1/block0/expand")
    removable, refused = shrink.removable(model, variables, IMAGES.shape, kernels)
    assert list(removable) == ["stage1/block0/expand/kernel"] and list(refused) == ["stem_conv/kernel"]
    assert "computes something else" in refused["stem_conv/kernel"]


def test_variables_of_another_network_are_refused():
    model, variables = network(*LENET)
    with pytest.raises(UserError, match=r"params/hidden1/kernel has the shape \[150, 12\], but .* has \[96, 12\]"):
        shrink.shrink(model, variables, {"conv1/kernel": np.arange(4) > 0}, (1, 28, 28, 3))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(4, bool), "mask of conv1/kernel: it removes all filters; keep at least one"),
        (np.arange(300).reshape(5, 5, 3, 4) > 5, "mask of conv1/kernel: it prunes parts of filters"),
        (np.arange(5) > 2, "mask of conv1/kernel: it has 5 entries, but there are 4 filters"),
    ],
)
def test_impossible_masks_are_refused(mask, message):
    model, variables = network(*LENET)
    with pytest.raises(UserError, match=message):
        shrink.shrink(model, variables, {"conv1/kernel": mask}, IMAGES.shape)


def test_expressions_are_open_in_their_counters_where_that_is_right():
    good = ["stage1/block0/conv1/kernel", "stage1/block1/conv1/kernel", "stage2/block0/conv1/kernel", "stem/kernel"]
    bad = ["stage1/block0/conv2/kernel", "head/kernel"]
    text = shrink.expression(good, bad)
    assert text == "stage[0-9]+/block[0-9]+/conv1/kernel|stem/kernel"
    mixed = shrink.expression(good[:2], good[2:])
    assert [bool(re.fullmatch(mixed, name)) for name in good] == [True, True, False, False]


# -- the field -----------------------------------------------------------------------------------------------------


def test_widths_are_a_config_value():
    text = json.dumps({"widths": (("stage1/block0/conv1", 5), ("stage2/block0/conv1", 3))})
    model = models.create(*RESNET[:1], **RESNET[1], **json.loads(text))
    assert model == models.create(
        *RESNET[:1], **RESNET[1], widths=(("stage1/block0/conv1", 5), ("stage2/block0/conv1", 3))
    )
    hash(model)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    assert params["stage1"]["block0"]["conv1"]["kernel"].shape == (3, 3, 8, 5)
    assert params["stage2"]["block0"]["conv2"]["kernel"].shape == (3, 3, 3, 16)


class Bare(nn.Module):
    """A user's dense layer, which does not know the field `widths`."""

    features: int
    kernel_init: object = None
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"widths": (("stage1/block0/cov1", 5),)},
            "unknown layer in widths 'stage1/block0/cov1'; did you mean 'stage1",
        ),
        (
            {"widths": (("stage1/block0/conv2", 5),)},
            "widths=.*conv2', 5.* do not fit the network: add got incompatible",
        ),
        ({"widths": (("head", 5),)}, "widths=.* cut the head to 5 of 10 classes"),
        ({"widths": (("stage1/block0/conv1", 0),)}, r"widths=.* must be pairs \(layer, number of features\)"),
        ({"widths": (("stage1/block0/conv1", 5), ("stage1/block0/conv1", 4))}, "widths=.* must be pairs"),
        ({"widths": "stem_conv"}, "widths=stem_conv must be pairs"),
        ({"widths": (("stage1/block0/conv1", 5),), "dense": Bare}, "do not fit the network: .*widths"),
    ],
)
def test_impossible_widths_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        models.create(*RESNET[:1], **RESNET[1], **fields)


def test_layers_of_users_need_no_widths():
    model = models.create(*RESNET[:1], **RESNET[1], dense=Bare)
    assert jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]["head"]["kernel"].shape == (16, 10)

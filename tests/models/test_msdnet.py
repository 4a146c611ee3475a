"""Tests of models/msdnet.py: the plan, exits and leaving at them. test_parity.py compares with the authors' code."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.analysis.cost import analyze
from models.compress import shrink
from models.errors import UserError
from models.layers.conditional import skipping
from models.layers.conv import Conv, Dense
from models.layers.endpoint import capture
from models.layers.exit_router import confidence, costs
from models.layers.ingredients import CONVS
from models.layers.init import jit_once
from models.weights.layouts import flatten
from tests.golden import FOLDER, drawn
from tests.models.layers.test_low_bit import layers_of
from tests.networks import SMALL
from tests.tiers import keep_first

COUNTS = json.loads(str(np.load(FOLDER / "msdnet.npz")["about"]))["counts"]
# For each exit, in 1e6, as printed by the authors' code: operations (including ReLU, pooling and biases) and
# parameters. The first is a published table for CIFAR-100, with growth 16 instead of the code's default. The others are
# for ImageNet, the last from issue 10 of the authors' repository.
PUBLISHED = {
    "anytime_growth16": (
        [56.43, 101.00, 155.31, 198.10, 249.53, 298.05, 340.64],
        [0.90, 1.84, 2.80, 3.76, 4.92, 6.10, 7.36],
    ),
    "imagenet_step4": ([340, 690, 1010, 1250, 1360], [4.24, 8.77, 13.07, 16.75, 23.96]),
    "imagenet_step7": ([615.69, 1436.39, 2283.21, 2967.42, 3253.79], [8.76, 20.15, 31.73, 41.86, 62.31]),
}
IMAGES = jnp.asarray(drawn.images("msdnet", (13, 32, 32, 3)))
EXITS = 3


def steps_of(name, **fields):
    return list(itertools.chain(*models.create(name, **fields).plan()))


def tiny(**fields):
    name, own = SMALL["multi_scale"]
    return models.create(name, **{**own, "num_exits": EXITS, **fields})


@functools.cache
def network():
    """Returns a network, its variables, its exits' logits for IMAGES, and thresholds that some pass at each exit."""
    model = tiny()
    variables = drawn.variables(model)
    run = jit_once(lambda variables, images: capture(model, variables, images))
    _, activations = run(variables, IMAGES)
    logits = np.stack([activations[f"exit{i + 1}"] for i in range(EXITS)])
    first, second = confidence(logits[0]), confidence(logits[1])
    leave = jnp.stack([jnp.quantile(first, 0.7), jnp.quantile(second[first < jnp.quantile(first, 0.7)], 0.5)])
    return model, variables, logits, leave


# -- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", PUBLISHED)
def test_recorded_costs_equal_the_published_ones(label):
    operations, params = PUBLISHED[label]
    digits = -1 if label == "imagenet_step4" else 2  # printed as 0.34 G
    assert [round(n / 1e6, 2) for n in COUNTS[label]["params"]] == params
    assert [round(n / 1e6, digits) for n in COUNTS[label]["operations"]] == pytest.approx(operations, abs=1e-9)


@pytest.mark.parametrize(
    "label", keep_first(1, ["budgeted", "anytime", "imagenet_step4", "anytime_growth16", "imagenet_step7"])
)
def test_each_exit_costs_the_same_as_in_the_authors_code(label):
    """Checks products of convolutions and dense layers, and parameters, exactly."""
    counts = COUNTS[label]
    model = models.create(counts["name"], **counts["fields"])
    cost = analyze(model, model.example())
    assert costs(cost, model.num_exits) == counts["products"]
    assert costs(cost, model.num_exits, "params") == counts["params"]


def test_the_plan_of_cifar():
    """Checks 16 layers over 3 scales: 6, 6 and 4; channels 16 + 7 x 6 = 58 and 29 + 6 x 6 = 65 are halved."""
    assert [len(steps) for steps in models.create("msdnet_cifar_anytime").plan()] == [4, 2, 2, 2, 2, 2, 2]
    steps = steps_of("msdnet_cifar_anytime")
    assert [step.scales for step in steps] == [3] * 6 + [2] * 6 + [1] * 4
    assert {i: step.transition for i, step in enumerate(steps, 1) if step.transition} == {7: 29, 13: 32}


def test_the_plans_of_other_variants():
    assert [len(steps) for steps in models.create("msdnet_cifar_budgeted").plan()] == [1, 2, 3, 4, 5]
    steps = steps_of("msdnet_imagenet_step4")
    assert [step.scales for step in steps] == [4] * 5 + [3] * 5 + [2] * 5 + [1] * 5
    assert {i: step.transition for i, step in enumerate(steps, 1) if step.transition} == {6: 64, 11: 72, 16: 76}


def test_the_plan_that_keeps_scales_as_long_as_it_can():
    """Checks 7 layers: the last needs one scale, the previous one two; transitions follow layers 2 and 4."""
    steps = steps_of("msdnet_cifar_anytime", num_exits=3, base=3, prune="min")
    assert [step.scales for step in steps] == [3, 3, 3, 3, 3, 2, 1]
    assert [step.transition for step in steps] == [None, 14, None, 13, None, None, None]


def test_only_coarse_scales_remain():
    params = drawn.abstract(models.create("msdnet_cifar_anytime"))["params"]
    assert set(params) == {f"{kind}{i}" for kind in ("block", "exit") for i in range(1, 8)}
    assert set(params["block1"]["stem"]) == {f"{kind}{scale}" for kind in ("conv", "norm") for scale in (1, 2, 3)}
    layer = functools.partial(lambda block, i: set(params[f"block{block}"][f"layer{i}"]))
    assert layer(1, 3) == {"same1", "down2", "same2", "down3", "same3"}
    assert layer(3, 0) == {"down2", "same2", "down3", "same3"}  # scale 1 is read once more
    assert set(params["block3"]["transition0"]) == {"conv2", "norm2", "conv3", "norm3"}
    assert layer(3, 1) == {"same2", "down3", "same3"} and layer(6, 0) == {"down3", "same3"}
    assert layer(7, 1) == {"same3"}
    assert params["block6"]["layer0"]["down3"]["conv1"]["kernel"].shape == (1, 1, (29 + 5 * 6) * 2, 2 * 12)
    assert params["block7"]["layer0"]["same3"]["conv1"]["kernel"].shape == (1, 1, (32 + 6) * 4, 4 * 24)
    assert params["exit7"]["conv1"]["kernel"].shape == (3, 3, (32 + 18) * 4, 128)
    assert params["exit7"]["head"]["kernel"].shape == (128, 10)


def test_units_never_widen():
    """Checks 4 channels: a factor of 4 would expand them to 8."""
    params = drawn.abstract(tiny(bottleneck_factors=(4, 1)))["params"]["block1"]
    assert params["layer0"]["same1"]["conv1"]["kernel"].shape == (1, 1, 4, 4)
    assert params["layer1"]["same1"]["conv1"]["kernel"].shape == (1, 1, 6, 6)


@pytest.mark.full
def test_kernels_start_with_the_variance_of_their_outputs_and_the_stem_has_a_bias():
    model = tiny(stem="imagenet", exit_width=64)
    params = flatten(models.initialize(model, jax.random.key(0), (1, 64, 64, 3)))
    for path in ("exit1/conv1", "exit3/conv2"):
        assert np.std(params[f"{path}/kernel"]) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    biases = {path for path in params if path.endswith("bias") and "norm" not in path}
    assert biases == {"block1/stem/conv1/bias", *(f"exit{i}/head/bias" for i in (1, 2, 3))}


def test_endpoints_are_the_inputs_and_outputs_of_exits():
    model, variables, *_ = network()
    images = IMAGES[:2]
    logits, activations = capture(model, variables, images)
    assert list(activations) == ["stem", "block1", "exit1", "block2", "exit2", "block3", "pre_logits", "exit3"]
    assert activations["stem"].shape == (2, 32, 32, 4) and activations["block1"].shape == (2, 16, 16, 16)
    head = variables["params"]["exit3"]["head"]
    np.testing.assert_allclose(activations["pre_logits"] @ head["kernel"] + head["bias"], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(activations["exit3"], logits)
    more = {"block2": jnp.ones_like(activations["block2"])}
    _, moved = capture(model, variables, images, add=more)
    np.testing.assert_array_equal(moved["exit1"], activations["exit1"])
    assert not np.allclose(moved["exit2"], activations["exit2"]) and not np.allclose(
        moved["exit3"], activations["exit3"]
    )


# -- early exits ---------------------------------------------------------------------------------------------


def by_hand(logits, leave):
    """Returns, for each example, the exit and its logits."""
    sure = [np.asarray(confidence(at)) >= threshold for at, threshold in zip(logits, leave, strict=False)]
    left = np.argmax([*sure, np.ones(logits.shape[1], bool)], 0)
    return left, logits[left, np.arange(len(left))]


@pytest.mark.parametrize("parts,count", keep_first(1, [(4, 13), (4, 1), (0, 13), (0, 1)]))
def test_examples_leave_where_they_are_confident(count, parts):
    model, variables, logits, leave = network()
    left, expected = by_hand(logits[:, :count], leave)
    assert count == 1 or set(left) == {0, 1, 2}

    @jax.jit
    def run(variables, images, leave):
        return capture(model, variables, images, names=["left", "exit1", "exit2", "exit3"], leave=leave)

    if parts:
        with skipping(parts):
            run.lower(variables, IMAGES[:count], leave)
            output, at = run(variables, IMAGES[:count], leave)
    else:
        output, at = run(variables, IMAGES[:count], leave)

    def check(left, expected, output, at):
        assert at["left"].dtype == jnp.int32 and list(at["left"]) == list(left)
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(at["exit3"], output)

    check(left, expected, output, at)
    # All at one exit: none or all of the images, for every size
    for thresholds in ([0.0, 0.0], [2.0, 0.0], [2.0, 2.0]):
        check(*by_hand(logits[:, :count], thresholds), *run(variables, IMAGES[:count], jnp.asarray(thresholds)))


def test_skipped_computation_is_a_branch():
    model, variables, _, leave = network()

    def branches():
        program = jax.make_jaxpr(lambda images: model.apply(variables, images, leave=leave))(IMAGES)
        return [len(eqn.params["branches"]) for eqn in program.jaxpr.eqns if eqn.primitive.name == "cond"]

    assert branches() == []
    with skipping(parts=4):
        assert branches() == [5] * (EXITS - 1)


def test_early_exits_work_with_narrower_layers():
    model = tiny(widths=(("block2/layer0/same2/conv2", 1),))
    variables = drawn.variables(model)
    with skipping(parts=2):
        logits = jit_once(lambda images: model.apply(variables, images, leave=jnp.asarray([2.0, 2.0])))(IMAGES[:3])
    np.testing.assert_allclose(logits, jit_once(lambda images: model.apply(variables, images))(IMAGES[:3]), rtol=1e-4)


@pytest.mark.parametrize(
    "call,message",
    [
        ({"leave": jnp.zeros(2), "train": True}, "leave must be None with train=True"),
        ({"leave": jnp.zeros(3)}, r"leave must have 2 thresholds, .* its shape is \(3,\)"),
        ({"leave": 0.5}, r"leave must have 2 thresholds, .* its shape is \(\)"),
    ],
)
def test_meaningless_calls_are_refused(call, message):
    model, variables, *_ = network()
    with pytest.raises(UserError, match=message) as error:
        model.apply(variables, IMAGES[:1], mutable=["batch_stats"], **call)
    assert "\n" not in str(error.value)


# -- with other methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["ternary", "binary_weight", "xnor"])
def test_the_first_layer_and_all_heads_stay_standard(spec):
    model = tiny(conv=spec)
    layers = layers_of(model, drawn.abstract(model))
    standard = {path for path, kind in layers.items() if kind in (Conv, Dense)}
    assert standard == {"block1/stem/conv1", "exit1/head", "exit2/head", "exit3/head"}
    assert {kind for path, kind in layers.items() if path not in standard} == {CONVS[spec]}


def test_low_bit_heads_alone_are_refused():
    with pytest.raises(UserError, match="dense='ternary' has no effect"):
        drawn.abstract(tiny(dense="ternary"))


def test_filters_without_other_consumers_can_be_removed():
    model = tiny()
    couplings_of = shrink.coupled(model, model.example(), ["exit1/conv1/kernel", "block1/layer0/same1/conv1/kernel"])
    for kernel, couplings in couplings_of.items():
        unit = kernel.removesuffix("/conv1/kernel")
        assert {coupling.array for coupling in couplings} == {
            f"params/{unit}/conv1/kernel",
            f"params/{unit}/norm1/scale",
            f"params/{unit}/norm1/bias",
            f"params/{unit}/conv2/kernel",
            f"batch_stats/{unit}/norm1/mean",
            f"batch_stats/{unit}/norm1/var",
        }
    for kernel in ("block1/layer0/same1/conv2/kernel", "block1/stem/conv1/kernel", "exit1/head/kernel"):
        with pytest.raises(UserError, match="cannot be removed") as error:
            shrink.coupled(model, model.example(), [kernel])
        assert "\n" not in str(error.value)

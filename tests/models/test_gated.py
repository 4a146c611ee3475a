"""Tests of models/gated.py and layers/conditional.py: decisions of gates and policies, their costs, and skipping."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import weights
from models.analysis.cost import analyze
from models.errors import UserError
from models.gated import Gate, costs, gates, straight_through
from models.layers.conditional import compacted, sizes, skipping
from tests.golden import drawn, make_gated
from tests.tiers import keep_first

KINDS = {  # two blocks each, one of which has a projection, or both
    "basic": ("convnet_aig38", {"width": 4}),
    "bottleneck": ("convnet_aig50", {"width": 4, "stem": "cifar", "rates": (0.5, None), "num_classes": 10}),
    "preact": ("convnet_aig38", {"width": 4, "preact": True}),
    "policy": ("blockdrop32", {"width": 4, "policy_sizes": (1,), "policy_width": 4}),
}


def colored(count, name="gated"):
    """Returns images [count, 8, 8, 3] of different means, which is what gates see."""
    return jnp.asarray(drawn.images(name, (count, 8, 8, 3)) + 2 * drawn.images(f"{name} colors", (count, 1, 1, 3)))


def small(kind, **fields):
    name, own = KINDS[kind]
    model = models.create(name, **{"stage_sizes": (1, 1), **own, **fields})
    return model, drawn.variables(model)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "mutable"))
def decided(model, variables, images, **options):
    return gates(model, variables, images, **options)


# -- gates ---------------------------------------------------------------------------------------------------------


def test_blocks_that_are_always_computed_have_no_gate():
    model, variables = small("basic", stage_sizes=(1, 2), rates=(1, 0.5, None), target=0.3)
    assert model.gated == ("stage2/block0", "stage2/block1") and model.block_rates == (1, 0.5, 0.3)
    params = variables["params"]
    assert "gate" not in params["stage1"]["block0"]
    assert set(params["stage2"]["block1"]["gate"]) == {"dense1", "norm", "dense2"}
    computed = decided(model, variables, colored(13))[1]
    assert (computed[:, 0] == 1).all() and set(np.unique(computed)) == {0, 1}


def test_in_evaluation_nothing_is_drawn_and_in_training_it_is():
    model, variables = small("basic")
    (one, first), (two, again) = (decided(model, variables, colored(13)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(first, again)
    draws = [
        gates(
            model, variables, colored(13), train=True, mutable=("batch_stats",), rngs={"dropout": jax.random.key(seed)}
        )[1]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def without_gates(params):
    return {
        name: without_gates(leaf) if isinstance(leaf, dict) else leaf
        for name, leaf in params.items()
        if name not in ("gate", "policy")
    }


@pytest.mark.parametrize("kind", ["basic", "policy"])
def test_keep_overrides_the_gates(kind):
    model, variables = small(kind)
    images, ones = colored(5), jnp.ones((5, 2))
    whole, computed = decided(model, variables, images, keep=ones)
    np.testing.assert_array_equal(computed, ones)
    plain = models.create("resnet38", stage_sizes=(1, 1), width=4, shortcut=model.shortcut)
    bare = {name: without_gates(tree) for name, tree in variables.items()}
    np.testing.assert_allclose(whole, plain.apply(bare, images), rtol=1e-5, atol=1e-5)
    keep = jnp.asarray([[1, 0], [0, 1], [0, 0], [1, 1], [1, 0]], jnp.float32)
    some, computed = decided(model, variables, images, keep=keep)
    np.testing.assert_array_equal(computed, keep)
    np.testing.assert_allclose(some[3], whole[3], rtol=1e-5, atol=1e-5)
    assert all(np.abs(some[i] - whole[i]).max() > 1e-3 for i in (0, 1, 2, 4))
    other = jax.tree_util.tree_map_with_path(  # blocks that no image keeps see nothing
        lambda path, leaf: (
            leaf
            + (
                "conv" in str(path)
                and "stage2" in str(path)
                and "policy" not in str(path)
                and "downsample" not in str(path)
            )
        ),
        variables,
    )
    np.testing.assert_array_equal(decided(model, other, images, keep=keep)[0][0], some[0])


def test_keep_covers_blocks_without_a_gate_too():
    model, variables = small("basic", rates=(1, 0.5))
    np.testing.assert_array_equal(decided(model, variables, colored(3), keep=jnp.zeros((3, 2)))[1], jnp.zeros((3, 2)))


def test_gates_start_open_for_87_percent():
    model = models.create("convnet_aig38")
    gate = Gate(model.ingredients(train=True), 16, 1.0, train=True)
    x, keys = jnp.abs(jnp.asarray(drawn.images("gate", (8192, 1, 1, 16)))), jax.random.split(jax.random.key(0))
    computed = jax.jit(gate.init_with_output)({"params": keys[0], "dropout": keys[1]}, x)[0]
    assert computed.shape == (8192,) and float(computed.mean()) == pytest.approx(0.87, abs=0.01)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_samples_are_0_or_1_and_gradients_those_of_the_soft_sample(temperature):
    logits, key = jnp.asarray(drawn.images("logits", (64, 2))), jax.random.key(3)
    weight = jnp.asarray(drawn.images("weight", (64,)))

    def soft(logits):
        noisy = logits - jnp.log(-jnp.log(jax.random.uniform(key, logits.shape, minval=jnp.finfo("float32").tiny)))
        return 1 / (1 + jnp.exp((noisy[:, 0] - noisy[:, 1]) / temperature))

    hard = straight_through(logits, key, temperature)
    assert set(np.unique(hard)) == {0, 1}
    np.testing.assert_array_equal(hard, soft(logits) > 0.5)
    ours, theirs = (
        jax.jit(jax.grad(lambda logits, f=f: f(logits) @ weight))(logits)
        for f in (lambda logits: straight_through(logits, key, temperature), soft)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_policy_alone_equals_the_one_inside_the_network():
    """Compares the policy alone with the one inside; where other layers have widths, only the policy's own apply."""
    widths = (("policy/stage1/block0/conv1", 3), ("stage1/block0/conv1", 5))
    model, variables = small("policy", widths=widths, policy_pool=2)
    own = {name: tree["policy"] for name, tree in variables.items()}
    assert own["params"]["stage1"]["block0"]["conv1"]["kernel"].shape[-1] == 3
    logits = model.policy(parent=None).apply(own, model.pooled(colored(13)))
    np.testing.assert_array_equal(logits >= 0, decided(model, variables, colored(13))[1])
    pooled = colored(13).reshape(13, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(model.pooled(colored(13)), pooled, rtol=1e-5, atol=1e-6)


def test_decisions_and_logits_equal_those_of_the_authors_network():
    """Compares with golden/make_gated.py; all gates decide by a margin on every image."""
    golden = np.load(Path(make_gated.__file__).with_name("gated.npz"))
    name, fields = json.loads(str(golden["network"]))
    model = models.create(name, **fields)
    logits, computed = decided(model, drawn.variables(model), jnp.asarray(make_gated.images()))
    assert golden["margin"] > 1e-3 and len(np.unique(golden["gates"], axis=0)) > 4
    np.testing.assert_array_equal(computed, golden["gates"])
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4 * np.abs(golden["logits"]).max())
    count = sum(leaf.size for leaf in jax.tree.leaves(drawn.abstract(models.create("convnet_aig110"))["params"]))
    assert count == golden["resnet110_params"]


# -- skipping ------------------------------------------------------------------------------------------------------


@functools.cache
def programs(kind):
    """Returns programs of a small network with and without skipping: gates(variables, images, keep)."""
    model, variables = small(kind)

    def skipped(variables, images, keep=None):
        with skipping(parts=4):
            return gates(model, variables, images, keep=keep)

    def masked(variables, images, keep=None):
        return gates(model, variables, images, keep=keep)

    return jax.jit(skipped), jax.jit(masked), variables


def assert_agree(a, b):
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(a[0], b[0], rtol=0, atol=1e-6 * np.abs(b[0]).max())


@pytest.mark.parametrize("count", [1, 13])
@pytest.mark.parametrize("kind", keep_first(2, KINDS))
def test_skipping_changes_no_logits_and_compiles_nothing_again(kind, count):
    skipped, masked, variables = programs(kind)
    before, images = skipped._cache_size(), colored(count)
    some = jnp.asarray(np.random.default_rng(0).integers(0, 2, (count, 2)), jnp.float32)
    for keep in (jnp.ones((count, 2)), jnp.zeros((count, 2)), some, 1 - some, some[::-1]):
        assert_agree(skipped(variables, images, keep), masked(variables, images, keep))
    assert_agree(skipped(variables, colored(count, "others"), some), masked(variables, colored(count, "others"), some))
    assert skipped._cache_size() == before + 1


@pytest.mark.parametrize("kind", ["basic", "policy"])
def test_decisions_of_the_network_skip_blocks_too(kind):
    skipped, masked, variables = programs(kind)
    for name in ("gated", "others"):
        assert_agree(skipped(variables, colored(13, name)), masked(variables, colored(13, name)))


@pytest.fixture
def executed():
    """Counts computed rows: x = executed.mark(x) within a program, executed.rows(output) after it.

    Operations that the compiler drops are not counted.
    """

    class Executed:
        def __init__(self):
            self.seen = []

        def mark(self, x):
            def seen(x):
                self.seen.append(len(x))
                return x

            return jax.pure_callback(seen, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

        def rows(self, output):
            jax.block_until_ready(output)
            rows, self.seen[:] = sorted(self.seen), []
            return rows

    return Executed()


def test_sizes():
    assert sizes(13, 4) == [0, 4, 7, 10, 13] and sizes(1, 8) == [0, 1] and sizes(8, 8) == list(range(9))
    assert sizes(6, 1) == [0, 6]


class Doubling(nn.Module):
    """A layer that gives, for some rows of a tree {"a" [N, 2], "b" [N]}, the doubled "a" and the sum of both."""

    mark: object
    otherwise: bool

    @nn.compact
    def __call__(self, x, keep):
        layer = nn.Dense(2, use_bias=False, kernel_init=lambda *_: 2 * jnp.eye(2), name="double")

        def function(module, x):
            return layer(x["a"]), x["a"].sum(-1) + self.mark(x["b"])

        return compacted(function, self, keep, x, (-x["a"], -x["b"]) if self.otherwise else None)


@pytest.mark.parametrize("otherwise", [False, True])
def test_only_the_rows_of_a_size_are_computed(executed, otherwise):
    module = Doubling(executed.mark, otherwise)
    x = {"a": jnp.asarray(drawn.images("a", (13, 2))), "b": jnp.asarray(drawn.images("b", (13,)))}
    variables = module.init(jax.random.key(0), x, jnp.ones(13, bool))
    executed.rows(variables)

    @jax.jit
    def run(keep):
        with skipping(parts=4):
            return module.apply(variables, x, keep)

    for count, computed in ((0, 0), (1, 4), (4, 4), (5, 7), (10, 10), (11, 13), (13, 13)):
        keep = np.zeros(13, bool)
        keep[np.random.default_rng(count).permutation(13)[:count]] = True
        output = run(jnp.asarray(keep))
        assert sum(executed.rows(output)) == computed
        rest = (-x["a"], -x["b"]) if otherwise else (0, 0)
        np.testing.assert_allclose(output[0], np.where(keep[:, None], 2 * x["a"], rest[0]), rtol=1e-6)
        np.testing.assert_allclose(output[1], np.where(keep, x["a"].sum(-1) + x["b"], rest[1]), rtol=1e-6)
        masked = module.apply(variables, x, jnp.asarray(keep))
        assert executed.rows(masked) == [13]  # all
        np.testing.assert_array_equal(masked[0], output[0])


def test_a_network_computes_a_branch_for_no_more_than_a_size(executed):
    def act(x):
        return nn.relu(executed.mark(x))

    model, variables = small("policy", act=act)

    @jax.jit
    def run(keep):
        with skipping(parts=4):
            return model.apply(variables, colored(13), keep=keep)

    always = [13] * 3  # the stem's activation, and the one after the sum of each block
    for first, second, rows in ((0, 0, [0, 0]), (13, 13, [13, 13]), (3, 9, [4, 10])):
        keep = jnp.stack([jnp.arange(13) < first, jnp.arange(13) >= 13 - second], -1).astype(jnp.float32)
        assert executed.rows(run(keep)) == sorted(always + [row for row in rows if row])
    assert run._cache_size() == 1


def test_skipping_ends_with_its_context():
    with pytest.raises(ValueError, match="out"), skipping(3):
        raise ValueError("out")
    model, variables = small("policy")
    assert "cond" not in str(jax.make_jaxpr(lambda images: model.apply(variables, images))(colored(3)))


# -- costs ---------------------------------------------------------------------------------------------------------


def test_costs_by_hand():
    model, _ = small("basic", gate_width=6)
    cost = costs(model, analyze(model, (1, 8, 8, 3)))
    assert cost.blocks == (2 * 9 * 4 * 4 * 64, 9 * 4 * 8 * 16 + 9 * 8 * 8 * 16)
    assert cost.deciding == 2 * (4 * 6 + 6 * 2)
    assert cost.always == 9 * 3 * 4 * 64 + 4 * 8 * 16 + 8 * 10  # stem, projection, head
    model, _ = small("policy", policy_pool=2)
    cost = costs(model, analyze(model, (1, 8, 8, 3)))
    assert cost.blocks == (2 * 9 * 4 * 4 * 64, 9 * 4 * 8 * 16 + 9 * 8 * 8 * 16)
    assert cost.deciding == 9 * 3 * 4 * 16 + 2 * 9 * 4 * 4 * 16 + 4 * 2
    assert cost.always == 9 * 3 * 4 * 64 + 8 * 10


@pytest.mark.parametrize("kind", KINDS)
def test_all_blocks_cost_what_the_network_costs(kind):
    model, _ = small(kind)
    cost = analyze(model, (1, 32, 32, 3))
    always, deciding, each = costs(model, cost)
    assert always + deciding + sum(each) == cost.mult_adds and len(each) == len(model.blocks) and min(each) > 0
    fields = {field: getattr(model, field) for field in ("shortcut", "bottleneck", "preact", "stage_sizes", "width")}
    bare = analyze(models.create("resnet38", **fields), (1, 32, 32, 3))
    assert always + sum(each) == bare.mult_adds


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_zero_parts_are_refused():
    with pytest.raises(UserError, match="parts=0 must be at least 1"), skipping(0):
        pass


def test_keep_of_another_shape():
    model, variables = small("policy")
    with pytest.raises(UserError, match=r"keep must be of shape \[N, 2\], one column per block, not \[3, 5\]"):
        model.apply(variables, colored(3), keep=jnp.ones((3, 5)))


# -- weights of residual networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "new"), [("basic", "*/gate"), ("policy", "policy")])
def test_weights_of_a_residual_network_are_taken(kind, new):
    model, variables = small(kind, shortcut="A", stem="imagenet")
    plain = models.create("resnet38", stage_sizes=model.stage_sizes, width=model.width, stem="imagenet")
    own = models.initialize(plain, jax.random.key(3), (1, 32, 32, 3))
    theirs = weights.to_arrays(plain, own, "torchvision")
    arrays = weights.flatten(weights.from_arrays(model, theirs, "torchvision", new=[new], drawn=variables))
    for path, leaf in weights.flatten(own).items():
        np.testing.assert_array_equal(arrays[path], leaf)
    drawn_anew = set(arrays) - set(weights.flatten(own))
    assert drawn_anew and all("gate/" in path or path.startswith("policy/") for path in drawn_anew)
    again = weights.from_arrays(model, weights.to_arrays(model, variables, "torchvision"), "torchvision")
    for path, leaf in weights.flatten(variables).items():
        np.testing.assert_array_equal(weights.flatten(again)[path], leaf)


def test_gates_have_low_bits_too():
    _, variables = small("basic", dense="ternary")
    assert {"positive", "negative"} < set(variables["params"]["stage1"]["block0"]["gate"]["dense1"])

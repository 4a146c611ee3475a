"""Tests of models/transformer.py: equal to PyTorch's layers, the effect of each field, and what attention sees."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.analysis.cost import analyze
from models.errors import UserError
from models.layers.conv import Dense
from models.layers.endpoint import capture
from models.layers.init import jit_once
from models.layers.norm import BatchNorm, ChannelNorm
from models.layers.regularize import Dropout
from models.transformer import sine
from tests.golden import FOLDER, drawn
from tests.golden.make_transformer import CASES, SOURCE, TARGET, TINY
from tests.models.test_registry import ELSEWHERE, SPIES, count
from tests.tiers import keep_first

GOLDEN = dict(np.load(FOLDER / "transformer.npz"))


def tiny(**fields):
    return models.create("transformer_base", **{**TINY, **fields})


def small(**fields):
    return tiny(**{"layers": 1, **fields})


@pytest.mark.parametrize("label", keep_first(1, CASES))
def test_equal_to_pytorch(label):
    """Compares both stacks, with padding and the causal mask, including padded positions."""
    model = tiny(**CASES[label])
    variables = drawn.variables(model)
    encoded = jit_once(functools.partial(model.apply, method="encode"))(variables, SOURCE)
    logits = jit_once(model.apply)(variables, SOURCE, TARGET)
    for ours, theirs in ((encoded, GOLDEN[f"{label}|encoded"]), (logits, GOLDEN[f"{label}|logits"])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    apart = model.apply(variables, TARGET, encoded, SOURCE, method="decode")
    np.testing.assert_allclose(apart, logits, rtol=1e-5, atol=1e-5)


# Millions of parameters with 41,000 tokens: Vaswani 2017, table 3, base and (C), and big, which fits 36,000.
@pytest.mark.parametrize(
    "name,fields,millions",
    [
        ("transformer_base", {}, 65),
        ("transformer_base", {"layers": 2}, 36),
        ("transformer_base", {"layers": 4}, 50),
        ("transformer_base", {"layers": 8}, 80),
        ("transformer_big", {"vocab_size": 36_000}, 213),
    ],
)
def test_parameters_are_those_of_table_3(name, fields, millions):
    model = models.create(name, **{"vocab_size": 41_000, **fields})
    assert round(count(drawn.abstract(model)["params"]) / 1e6) == millions


def test_sine_positions_are_those_of_the_paper():
    positions = sine(50, 8)
    assert positions.shape == (50, 8) and positions.dtype == np.float32
    for place in (0, 1, 49):
        for i in range(4):
            angle = place / 10000 ** (2 * i / 8)
            np.testing.assert_allclose(positions[place, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-6)


@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("positions", ["none", "sine"])
def test_self_attention_is_an_operation_on_sets(positions, prenorm):
    """Checks that the encoder is permutation-equivariant without positions, and not with them."""
    model = tiny(positions=positions, prenorm=prenorm)
    variables = drawn.variables(model)
    encode = jit_once(functools.partial(model.apply, method="encode"))
    order = np.array([3, 1, 4, 0, 8, 5, 2, 7, 6])
    here, there = encode(variables, SOURCE)[:, order], encode(variables, SOURCE[:, order])
    if positions == "none":
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-5)
    else:
        assert np.abs(here - there).max() > 0.1


def test_learned_positions_are_a_vector_per_position():
    model = small(positions="learned")
    variables = drawn.variables(model)
    table = variables["params"]["positions"]
    assert table.shape == (12, 16)
    variables["params"]["positions"] = sine(12, 16)
    np.testing.assert_allclose(
        model.apply(variables, SOURCE, TARGET),
        small().apply(drawn.variables(small()), SOURCE, TARGET),
        rtol=1e-5,
        atol=1e-5,
    )


def test_no_position_sees_later_ones_or_padding():
    model = tiny()
    variables, run = drawn.variables(model), jit_once(model.apply)
    logits = run(variables, SOURCE, TARGET)
    changed = run(variables, SOURCE, np.concatenate([TARGET[:, :4], TARGET[:, 4:] % 7 + 9], 1))
    np.testing.assert_allclose(changed[:, :4], logits[:, :4], atol=1e-5)
    assert np.abs(changed[:, 4:] - logits[:, 4:]).max() > 0.1
    longer = run(variables, np.pad(SOURCE, ((0, 0), (0, 3))), TARGET)
    np.testing.assert_allclose(longer, logits, rtol=1e-5, atol=1e-5)
    alone = run(variables, SOURCE[1:2, :5], TARGET[1:2])  # without its padding
    np.testing.assert_allclose(alone, logits[1:2], rtol=1e-5, atol=1e-5)
    nothing = run(variables, np.zeros_like(SOURCE), TARGET)  # the padding of a batch
    assert np.isfinite(nothing).all()


@pytest.mark.full
def test_every_parameter_learns_and_dropout_is_training_s():
    model = small()
    variables = drawn.variables(model)

    def loss(params, train):
        logits = model.apply({"params": params}, SOURCE, TARGET, train=train, rngs={"dropout": jax.random.key(0)})
        return jnp.square(jax.nn.log_softmax(logits)).mean()

    gradient = jit_once(jax.grad(functools.partial(loss, train=True)))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)
    trained, tested = (
        float(jit_once(functools.partial(loss, train=train))(variables["params"])) for train in (True, False)
    )
    assert trained != tested
    without = jnp.square(jax.nn.log_softmax(small(dropout=0.0).apply(variables, SOURCE, TARGET, train=True))).mean()
    assert tested == pytest.approx(float(without), rel=1e-5)


def test_dropout_is_on_embeddings_and_on_every_sublayer():
    places = []

    def read(call, args, kwargs, context):
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            places.append(
                (context.module.path[0], context.module.rate, kwargs.get("deterministic", context.module.deterministic))
            )
        return call(*args, **kwargs)

    model = small(dropout=0.3)
    variables = drawn.variables(model)
    with nn.intercept_methods(read):
        model.apply(variables, SOURCE, TARGET, train=True, rngs={"dropout": jax.random.key(0)})
    embedding = ("embedding_dropout", 0.3, False)
    assert places == [embedding] + [("encoder", 0.3, False)] * 2 + [embedding] + [("decoder", 0.3, False)] * 3


# A changed value for each field; each must change the parameters' shapes, their values or the training output.
PERTURBED = {
    "norm": "batch", "act": "silu", "init": "msra", "dense": SPIES["dense"], "dtype": "bfloat16", "vocab_size": 31,
    "width": 8, "heads": 4, "layers": 2, "ff_width": 16, "dropout": 0.5, "positions": "none", "prenorm": True,
}  # fmt: skip


@functools.cache
def trained_output(**fields):
    model = small(**fields)
    variables = models.initialize(model, jax.random.key(0), model.example())
    return variables, jit_once(functools.partial(model.apply, train=True, mutable=["batch_stats"]))(
        variables, SOURCE, TARGET, rngs={"dropout": jax.random.key(1)}
    )[0]


@pytest.mark.parametrize("field", keep_first(2, PERTURBED))
def test_every_field_changes_something(field):
    (base, base_logits), (changed, logits) = trained_output(), trained_output(**{field: PERTURBED[field]})
    assert logits.dtype == jnp.float32
    if jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, changed):
        assert not np.allclose(logits, base_logits, rtol=1e-4, atol=1e-5)


def test_every_field_is_perturbed():
    """Checks all fields except max_length, which limits the input; see below."""
    assert set(models.fields("transformer_base")) - ELSEWHERE - {"max_length"} == set(PERTURBED)


def operations(model):
    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for body in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from walk(body)

    program = jax.make_jaxpr(functools.partial(model.apply, mutable=["batch_stats"]))
    return list(walk(program(drawn.abstract(model), SOURCE, TARGET).jaxpr))


@pytest.mark.parametrize("prenorm", [False, True])
def test_there_are_no_operations_besides_the_ingredients(prenorm):
    """Checks with spies that the only standard operation left is the product with the embedding."""
    calls = dict.fromkeys(("dense", "norm", "act"), 0)

    def read(call, args, kwargs, context):
        if context.method_name == "__call__":
            calls["dense"] += isinstance(context.module, Dense)
            calls["norm"] += isinstance(context.module, ChannelNorm)
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        drawn.abstract(tiny(prenorm=prenorm))
    assert calls["dense"] == 2 * 4 + 2 * 7 and calls["norm"] == 2 * 2 + 2 * 3 + 2 * prenorm
    spied = operations(tiny(prenorm=prenorm, **{field: SPIES[field] for field in calls}))
    names = [eqn.primitive.name for eqn in spied]
    assert (names.count("sin"), names.count("cos"), names.count("atan")) == (calls["dense"], calls["norm"], 4)
    products = [eqn for eqn in spied if eqn.primitive.name == "dot_general"]
    assert "product" not in names and sum(not eqn.params["dimension_numbers"][1][0] for eqn in products) == 1


def test_norm_none_and_batch():
    variables = drawn.abstract(small(norm="none"))
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert set(variables) == {"params"} and leaves == {"kernel", "bias", "embedding"}
    kinds = []

    def read(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            kinds.append(context.module.train)
        return call(*args, **kwargs)

    model = small(norm="batch")
    variables = drawn.variables(model)
    with nn.intercept_methods(read):
        _, updated = model.apply(
            variables, SOURCE, TARGET, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
    assert kinds == [True] * 5 and set(updated) == {"batch_stats"}


def test_every_kernel_is_drawn_by_init():
    def spy(key, shape, dtype):
        return jnp.full(shape, 0.5, dtype)

    model = small(init=spy)
    params = models.initialize(model, jax.random.key(0), model.example())["params"]
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) == 4 + 7 and all((kernel == 0.5).all() for kernel in kernels)
    assert float(params["embedding"].std()) == pytest.approx(16**-0.5, rel=0.1)


def test_dtype_reaches_every_product():
    products = [eqn for eqn in operations(small(dtype="bfloat16")) if eqn.primitive.name in ("dot_general", "product")]
    assert products and all(atom.aval.dtype == jnp.bfloat16 for eqn in products for atom in eqn.invars)


def test_endpoints_and_cost():
    model = small()
    variables = drawn.variables(model)
    logits, activations = capture(model, variables, SOURCE, TARGET)
    assert list(activations) == ["encoder/block0", "decoder/block0", "pre_logits"]
    np.testing.assert_allclose(
        activations["pre_logits"] @ variables["params"]["embedding"].T, logits, rtol=1e-5, atol=1e-5
    )
    cost = analyze(model, model.example())
    length, width, ff, vocabulary = 12, 16, 24, 30
    attention = 4 * length * width**2 + 2 * length**2 * width
    assert cost.mult_adds == 3 * attention + 2 * 2 * length * width * ff + length * width * vocabulary
    assert cost.params == count(variables["params"])


def test_longer_sequences_are_refused():
    model = small(max_length=8)
    with pytest.raises(UserError, match="a sequence of 9 tokens is longer than max_length=8"):
        jax.eval_shape(model.init, jax.random.key(0), SOURCE, TARGET)

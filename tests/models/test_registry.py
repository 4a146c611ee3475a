"""Every registered network: its exact number of parameters, and that it honors each ingredient everywhere."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.kernels import tracing
from models.kernels.tracing import lowering
from models.layers.conv import Conv, Dense
from models.layers.endpoint import capture
from models.layers.ingredients import Classifier
from models.layers.init import jit_once
from models.layers.norm import BatchNorm, ChannelNorm, GroupNorm, InstanceNorm, NoNorm
from tests.golden import drawn
from tests.networks import ELSEWHERE, NO_GRADIENT, OWN_START, PARAMETERS, PERTURBED, SMALL, deep_in_full

IMAGES = jnp.asarray(drawn.images("models", (4, 32, 32, 3)))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def small(kind, **fields):
    name, own = SMALL[kind]
    return models.create(name, **{**own, **fields})


def abstract(model, images=IMAGES):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, images.dtype))


def test_the_table_holds_every_registered_name():
    assert set(models.list_models()) == set(PARAMETERS)


@pytest.mark.parametrize("name", deep_in_full(PARAMETERS))
def test_parameters_and_logits_of_every_network(name):
    """Checks the count, the collections, and the logits' shape and type, abstractly, for the network's own example."""
    model = models.create(name)
    with lowering("plain"):
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), *model.example())
    assert count(variables["params"]) == PARAMETERS[name]
    assert set(variables) <= {"params", "batch_stats"}
    assert logits.dtype == jnp.float32
    if isinstance(model, Classifier):
        assert logits.shape == (1, model.num_classes)


def test_initialize_gives_the_variables_and_nothing_else():
    variables = models.initialize(small("basic"), jax.random.key(0), (1, 8, 8, 1))
    assert set(variables) == {"params", "batch_stats"}
    assert variables["params"]["stem_conv"]["kernel"].shape == (3, 3, 1, 8)
    assert set(models.initialize(small("basic", norm="group"), jax.random.key(0), (1, 8, 8, 1))) == {"params"}
    again = models.initialize(small("basic"), jax.random.key(0), (2, 16, 8, 1))
    jax.tree.map(np.testing.assert_array_equal, variables, again)


@pytest.mark.full  # every family learns in tests/models/test_any_network.py
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", SMALL)
def test_every_parameter_learns_and_statistics_change_in_training_alone(kind, dtype):
    regularized = {field: 0.1 for field in ("stochastic_depth", "dropout") if field in models.fields(SMALL[kind][0])}
    model = small(kind, dtype=dtype, num_classes=10, **regularized)
    variables = models.initialize(model, jax.random.key(0), IMAGES.shape)
    params, state = variables["params"], variables.get("batch_stats", {})
    if "policy" in params:  # computes every block, so that all have a gradient
        params["policy"]["head"]["bias"] += 100

    def loss(params, train):
        (logits, updated), activations = capture(
            model,
            {"params": params, "batch_stats": state},
            IMAGES,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        exits = [at for name, at in activations.items() if re.fullmatch(r"exit\d+", name)] or [logits]
        losses = [-jax.nn.log_softmax(at)[:, 3].mean() for at in exits]
        return sum(losses), (logits, updated.get("batch_stats", {}))

    gradient_of = jit_once(jax.value_and_grad(functools.partial(loss, train=True), has_aux=True))
    (_, (logits, updated)), gradient = gradient_of(params)
    assert logits.dtype == jnp.float32 and logits.shape == (4, 10)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert leaf.dtype == jnp.float32
        learns = not NO_GRADIENT.match(name(path))
        assert np.isfinite(leaf).all() and np.any(leaf != 0) == learns, name(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updated):
        old = functools.reduce(lambda tree, key: tree[key.key], path, state)
        assert leaf.dtype == jnp.float32 and np.any(leaf != old), jax.tree_util.keystr(path)
    same = jit_once(functools.partial(loss, train=False))(params)[1][1]
    jax.tree.map(np.testing.assert_array_equal, same, state)


def operations(model, train=False):
    """Returns all operations of the forward pass; calls of programs are listed beside their content."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for body in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from walk(body)

    def forward(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"])

    with lowering("plain"):
        return list(walk(jax.make_jaxpr(forward)(abstract(model), IMAGES).jaxpr))


def layer_calls(model):
    """Returns how often the model calls a Conv, a Dense, a norm and `act`."""
    calls = dict.fromkeys(("conv", "dense", "norm", "act"), 0)
    kinds = {"conv": Conv, "dense": Dense, "norm": (BatchNorm, GroupNorm, InstanceNorm, ChannelNorm)}

    def read(call, args, kwargs, context):
        for field, kind in kinds.items():
            calls[field] += isinstance(context.module, kind) and context.method_name == "__call__"
        return call(*args, **kwargs)

    def act(x):
        calls["act"] += 1
        return x

    variables = abstract(model)
    with nn.intercept_methods(read):
        jax.eval_shape(model.clone(act=act).apply, variables, IMAGES)
    return calls


class SpyConv(nn.Module):
    """A replacement for Conv: a convolution by a different operation, identified by its name."""

    features: int
    kernel_size: int
    strides: int = 1
    padding: int | str | None = None
    groups: int = 1
    use_bias: bool = False
    kernel_init: object = None
    bias_init: object = None
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        size, padding = self.kernel_size, self.kernel_size // 2 if self.padding is None else self.padding
        around = "SAME" if padding == "tf" else ((padding, padding), (padding, padding))
        x = nn.avg_pool(x, (size, size), (self.strides, self.strides), around)
        return jnp.tanh((x[..., None] * kernel).sum(-2))


class SpyDense(nn.Module):
    features: int
    use_bias: bool = True
    kernel_init: object = None
    bias_init: object = None
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        return jnp.sin((x[..., None] * kernel).sum(-2))


class SpyNorm(nn.Module):
    train: bool
    dtype: object = None
    axis_name: str | None = None
    scale_init: object = None
    epsilon: float = 0.0

    def __call__(self, x):
        return jnp.cos(x)


def softmax_guard(eqn):
    """Returns whether the operation is softmax's maximum with minus infinity, which belongs to attention."""
    return eqn.primitive.name == "max" and any(getattr(atom, "val", 0) == -math.inf for atom in eqn.invars)


SPIES = {"conv": SpyConv, "dense": SpyDense, "norm": SpyNorm, "act": jnp.arctan}


@pytest.mark.parametrize("kind", SMALL)
def test_there_are_no_operations_besides_the_ingredients(kind):
    """Checks with a spy for each ingredient that no standard operation is left and that all spies are used."""
    calls = layer_calls(small(kind))
    assert calls["conv"] + calls["dense"] and calls["act"]
    spied = operations(small(kind, **SPIES))
    names = [eqn.primitive.name for eqn in spied if not softmax_guard(eqn)]
    assert not {"conv_general_dilated", "max", "erf", "erfc", "logistic", "custom_vjp_call"} & set(names)
    for eqn in spied:  # products belong to attention: activations times activations, for each example
        if eqn.primitive.name == "dot_general":
            assert all(eqn.params["dimension_numbers"][1])
    spy_ops = {"conv": "tanh", "dense": "sin", "norm": "cos", "act": "atan"}
    assert {field: names.count(op) for field, op in spy_ops.items()} == calls


@pytest.mark.parametrize("kind", SMALL)
def test_networks_without_norm_normalize_nothing(kind):
    model = small(kind, norm="none")
    variables = abstract(model)
    assert set(variables) == {"params"}
    assert layer_calls(model)["norm"] == 0
    paths = [tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    kernels, biases = ({path[:-1] for path in paths if path[-1] == leaf} for leaf in ("kernel", "bias"))
    assert biases == kernels  # nothing else could shift the output of a convolution


@pytest.mark.parametrize("kind", SMALL)
def test_every_kernel_is_drawn_by_init(kind):
    seen = []

    def spy(key, shape, dtype):
        seen.append(shape)
        return jnp.full(shape, 0.5, dtype)

    variables = jax.jit(small(kind, init=spy).init)(jax.random.key(0), IMAGES)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "kernel" and not OWN_START.search(name(path))
    ]
    assert kernels and all((kernel == 0.5).all() for kernel in kernels)
    assert sorted(seen) == sorted(kernel.shape for kernel in kernels)


@pytest.mark.parametrize("kind", SMALL)
def test_dtype_reaches_every_convolution_and_product(kind):
    products = [
        eqn
        for eqn in operations(small(kind, dtype="bfloat16"))
        if eqn.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert products and all(atom.aval.dtype == jnp.bfloat16 for eqn in products for atom in eqn.invars)


ATTENTION = ("swin", "vit", "vit_c")  # their heads are transposed; on a GPU, tests/models/test_derivatives.py


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("kind", SMALL)
def test_the_training_pass_for_an_accelerator_is_that_of_no_cpu(kind, platform):
    """Lowers value and gradient in bfloat16: no transposed activations, no float32 products, no calls of our code."""
    if kind in ATTENTION and platform == "gpu":
        pytest.skip("a cuDNN kernel")
    model, images = small(kind, dtype="bfloat16"), jax.ShapeDtypeStruct((11, 32, 32, 3), jnp.bfloat16)

    def loss(params, state, images):
        logits, _ = model.apply(
            {"params": params, **state}, images, train=True, mutable=list(state), rngs={"dropout": jax.random.key(0)}
        )
        return logits.mean()

    with tracing.for_platform(platform):
        state = dict(jax.eval_shape(model.init, jax.random.key(0), images))
        traced = jax.jit(jax.value_and_grad(loss)).trace(state.pop("params"), state, images)
        lowered = traced.lower(lowering_platforms=({"gpu": "cuda"}.get(platform, platform),))
    lines = lowered.as_text().splitlines()
    of_examples = [line for line in lines if "stablehlo.transpose" in line and re.search("[<x]11x", line)]
    assert kind in ATTENTION or not of_examples
    products = [line for line in lines if "stablehlo.convolution" in line or "stablehlo.dot_general" in line]
    assert products and not any("f32" in line.split("->")[-2] for line in products)
    assert not any("custom_call" in line for line in lines)
    convolutions = sum("stablehlo.convolution" in line for line in products)
    assert (convolutions > 0) == (layer_calls(model)["conv"] > 0)


@pytest.mark.parametrize("family", PERTURBED)
def test_every_field_is_perturbed(family):
    kinds = {kind for kind, _ in PERTURBED[family].values()}
    for kind in kinds:
        assert type(small(kind)).__name__ == family
    fields = models.fields(SMALL[min(kinds)][0])
    assert set(fields) - ELSEWHERE <= set(PERTURBED[family]) <= set(fields)


def test_every_class_of_networks_is_perturbed():
    assert {type(small(kind)).__name__ for kind in SMALL} == set(PERTURBED)


# Fields of all families, which test_any_network.py and the spies above set in each; and the networks that share almost
# all fields with ResNet (tests/models/test_convnext.py tests the ladder's steps).
COMMON = ("num_classes", "norm", "act", "widths", "init", "conv", "dense", "dtype")
SHARED = {family: {*COMMON, *PERTURBED["ResNet"]} for family in ("GatedResNet", "BlockDrop", "EarlyExitResNet")}
SHARED["Ladder"] = PERTURBED["Ladder"]


@functools.cache
def trained_output(kind, **fields):
    """Returns training-mode logits of a small network with drawn parameters."""
    model = small(kind, **fields)
    variables = drawn.filled(abstract(model), drawn.weight)
    run = jit_once(
        lambda variables: model.apply(
            variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )[0]
    )
    return run(variables)


@pytest.mark.parametrize(
    "family,field",
    [
        pytest.param(
            family, field, marks=[pytest.mark.full] * (family != "ResNet" and field in SHARED.get(family, COMMON))
        )
        for family in PERTURBED
        for field in PERTURBED[family]
    ],
)
def test_every_field_changes_something(family, field):
    """Checks that a field changes the parameters' shapes, the outputs, or the initial values."""
    kind, value = PERTURBED[family][field]
    fields = {field: SPIES[field] if value == "spy" else value}
    base, changed = small(kind), small(kind, **fields)
    shapes = [
        jax.tree.map(jnp.shape, jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES))
        for model in (base, changed)
    ]
    if shapes[0] == shapes[1] and np.allclose(trained_output(kind), trained_output(kind, **fields), 1e-4, 1e-5):
        starts = [
            jax.tree.leaves(models.initialize(model, jax.random.key(0), IMAGES.shape)) for model in (base, changed)
        ]
        assert not all(np.array_equal(a, b) for a, b in zip(*starts, strict=True))


@pytest.mark.parametrize(
    "name,fields,message",
    [
        ("resnet5", {}, "unknown model 'resnet5'; did you mean 'resnet56'.*the nearest of 1..: resnet56, "),
        ("nothing", {}, "unknown model 'nothing'"),
        ("resnet50", {"nrom": "group"}, "unknown field of resnet50 'nrom'; did you mean 'norm'.*stage_sizes"),
        ("resnet50", {"kernel_init": "msra"}, "unknown field of resnet50 'kernel_init'; allowed: .* init,"),
        ("resnet50", {"name": "x"}, "unknown field of resnet50 'name'"),
        ("resnet50", {"norm": "grop"}, "unknown norm 'grop'; did you mean 'group'"),
        ("resnet50", {"act": "rleu"}, "unknown act 'rleu'; did you mean 'relu'"),
        ("resnet50", {"init": "msr"}, "unknown init 'msr'; did you mean 'msra'"),
        ("resnet50", {"conv": "fast"}, "unknown conv 'fast'.*standard"),
        ("resnet50", {"dense": "fast"}, "unknown dense 'fast'.*standard"),
        ("resnet50", {"dtype": "bf16"}, "unknown dtype 'bf16'.*bfloat16"),
        ("resnet50", {"dtype": "int32"}, "unknown dtype 'int32'"),
        ("resnet50", {"norm": "group", "sync_norm": True}, "sync_norm=True needs norm 'batch'"),
    ],
)
def test_mistakes_are_one_line(name, fields, message):
    with pytest.raises(UserError, match=message) as error:
        models.create(name, **fields)
    assert "\n" not in str(error.value)


def test_a_stem_of_batch_norm_can_be_synchronized():
    assert models.create("vit_c_1gf", sync_norm=True).sync_norm
    with pytest.raises(UserError, match="nothing to synchronize"):
        models.create("vit_p_1gf", sync_norm=True)


def test_custom_layers_are_accepted():
    """Checks that a class with the fields of Conv, Dense or a norm is used as it is."""
    base, same = (abstract(small("basic", **fields)) for fields in ({}, {"conv": Conv, "dense": Dense}))
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, same)

    def nothing(*, train, dtype, axis_name, **kwargs):
        return NoNorm(**kwargs)

    assert set(abstract(small("basic", norm=nothing))) == {"params"}

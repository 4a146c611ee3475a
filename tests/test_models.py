"""Every registered network: its exact parameters, and that each ingredient is honoured everywhere."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.conv import Conv, Dense, lowering
from models.layers.init import jit_once
from models.layers.norm import NoNorm
from tests.golden import drawn

IMAGES = jnp.asarray(drawn.images("models", (4, 32, 32, 3)))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def small(family, **fields):
    name, own = FAMILIES[family]
    return models.create(name, **{**own, **fields})


def abstract(model, images=IMAGES):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(images.shape, images.dtype))


def test_the_table_holds_every_registered_name():
    assert set(models.names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_logits_of_every_network(name):
    """Abstractly, at the network's own resolution: the count, the collections, shape and type of the logits."""
    model = models.create(name)
    images = jax.ShapeDtypeStruct((1, model.resolution, model.resolution, 3), jnp.float32)
    with lowering("plain"):
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert count(variables["params"]) == PARAMETERS[name]
    assert set(variables) <= {"params", "batch_stats"}
    assert logits.shape == (1, model.num_classes) and logits.dtype == jnp.float32


def test_initialize_gives_the_variables_and_nothing_else():
    variables = models.initialize(small("basic"), jax.random.key(0), (1, 8, 8, 1))
    assert set(variables) == {"params", "batch_stats"}
    assert variables["params"]["stem_conv"]["kernel"].shape == (3, 3, 1, 8)
    assert set(models.initialize(small("basic", norm="group"), jax.random.key(0), (1, 8, 8, 1))) == {"params"}
    again = models.initialize(small("basic"), jax.random.key(0), (2, 16, 8, 1))
    jax.tree.map(np.testing.assert_array_equal, variables, again)


@pytest.mark.parametrize("family,dtype", [("basic", "bfloat16"), ("bottleneck", None), ("preact", "bfloat16")])
def test_every_parameter_learns_and_statistics_change_in_training_alone(family, dtype):
    model = small(family, dtype=dtype, stochastic_depth=0.1, dropout=0.1)
    variables = models.initialize(model, jax.random.key(0), IMAGES.shape)
    params, state = variables["params"], variables["batch_stats"]

    def loss(params, train):
        logits, updated = model.apply({"params": params, "batch_stats": state}, IMAGES, train=train,
                                      mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})
        return -jax.nn.log_softmax(logits)[:, 3].mean(), (logits, updated["batch_stats"])

    gradient_of = jit_once(jax.value_and_grad(functools.partial(loss, train=True), has_aux=True))
    (_, (logits, updated)), gradient = gradient_of(params)
    assert logits.dtype == jnp.float32 and logits.shape == (4, 10)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all() and np.any(leaf != 0), jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updated):
        old = functools.reduce(lambda tree, key: tree[key.key], path, state)
        assert leaf.dtype == jnp.float32 and np.any(leaf != old), jax.tree_util.keystr(path)
    same = jit_once(functools.partial(loss, train=False))(params)[1][1]
    jax.tree.map(np.testing.assert_array_equal, same, state)


def primitives(model, train=False):
    """Names of all operations of the forward pass with the names of the modules they are in."""
    found = []

    def walk(jaxpr, outer):
        for eqn in jaxpr.eqns:
            stack = f"{outer}/{eqn.source_info.name_stack}"
            bodies = list(jax.extend.core.jaxprs_in_params(eqn.params))
            found.append((eqn.primitive.name, stack))
            for body in bodies:
                walk(body, stack)

    def forward(variables, images):
        return model.apply(variables, images, train=train, mutable=["batch_stats"])

    with lowering("plain"):
        walk(jax.make_jaxpr(forward)(abstract(model), IMAGES).jaxpr, "")
    return found


class SpyConv(nn.Module):
    """In place of Conv: a convolution by another operation, counted by its name."""

    features: int
    kernel_size: int
    strides: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: object = None
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        x = x[:, :: self.strides, :: self.strides]
        return jnp.tanh((x[..., None] * kernel).sum(-2))


class SpyDense(nn.Module):
    features: int
    kernel_init: object = None
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

    def __call__(self, x):
        return jnp.cos(x)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_op_than_the_ingredients(family):
    """With a spy for each ingredient, none of the operations of the standard ones is left, and all spies are used."""
    names = [name for name, _ in primitives(small(family))]
    assert {"conv_general_dilated", "dot_general", "max", "rsqrt"} <= set(names)
    convolutions = names.count("conv_general_dilated")
    activations = names.count("max")
    norms = names.count("rsqrt")

    spied = [name for name, _ in primitives(
        small(family, norm=SpyNorm, act=jnp.exp, conv=SpyConv, dense=SpyDense))]
    assert not {"conv_general_dilated", "dot_general", "max", "rsqrt", "custom_vjp_call"} & set(spied)
    assert spied.count("tanh") == convolutions
    assert spied.count("sin") == 1
    assert spied.count("exp") == activations
    assert spied.count("cos") == norms


@pytest.mark.parametrize("family", FAMILIES)
def test_without_norm_there_is_none(family):
    model = small(family, norm="none")
    variables = abstract(model)
    assert set(variables) == {"params"}
    assert "rsqrt" not in [name for name, _ in primitives(model, train=True)]
    convolutions = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
                    if path[-1].key == "kernel"]
    biases = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]) if path[-1].key == "bias"]
    assert len(biases) == len(convolutions)  # nothing else could shift what a convolution gives


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_is_drawn_by_init(family):
    seen = []

    def spy(key, shape, dtype):
        seen.append(shape)
        return jnp.full(shape, 0.5, dtype)

    variables = jax.jit(small(family, init=spy).init)(jax.random.key(0), IMAGES)
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
               if path[-1].key == "kernel"]
    assert kernels and all((kernel == 0.5).all() for kernel in kernels)
    assert sorted(seen) == sorted(kernel.shape for kernel in kernels)


@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_reaches_every_convolution_and_product(family):
    model = small(family, dtype="bfloat16")
    with lowering("plain"):
        text = str(jax.make_jaxpr(lambda v: model.apply(v, IMAGES))(abstract(model)))
    lines = [line for line in text.splitlines() if "= conv_general_dilated[" in line or "= dot_general[" in line]
    assert lines and all(":bf16[" in line for line in lines)


# One other value for each field of ResNet; each must change the parameters' shapes, their values or the output.
PERTURBED = {
    "num_classes": ("basic", 7), "norm": ("basic", "group:2"), "act": ("basic", "silu"),
    "init": ("basic", "xavier_normal"), "conv": ("basic", SpyConv), "dense": ("basic", SpyDense),
    "dtype": ("basic", "bfloat16"),
    "stage_sizes": ("basic", (1, 2, 1)), "bottleneck": ("basic", True), "stem": ("basic", "imagenet"),
    "width": ("basic", 4), "widen": ("basic", 2), "groups": ("bottleneck", 2), "base_width": ("bottleneck", 32),
    "stride_in": ("bottleneck", "1x1"), "shortcut": ("basic", "B"), "preact": ("basic", True),
    "zero_gamma": ("basic", True), "stochastic_depth": ("basic", 0.5), "dropout": ("basic", 0.5),
}
ELSEWHERE = {"sync_norm", "remat"}  # act on several devices and on memory: test_norm, test_resnet


def test_every_field_is_perturbed():
    assert set(models.fields("resnet8")) == set(PERTURBED) | ELSEWHERE


@functools.cache
def trained_output(family, **fields):
    """Training-mode logits, as a function of the parameters' shapes and values, of a small network."""
    model = small(family, **{"stage_sizes": (1, 1), **fields})
    variables = models.initialize(model, jax.random.key(0), (1, 8, 8, 3))
    run = jit_once(lambda variables: model.apply(variables, IMAGES[:, :8, :8], train=True, mutable=["batch_stats"],
                                                 rngs={"dropout": jax.random.key(1)})[0])
    return variables, run(variables)


@pytest.mark.parametrize("field", PERTURBED)
def test_every_field_changes_something(field):
    family, value = PERTURBED[field]
    (base, base_logits), (changed, logits) = trained_output(family), trained_output(family, **{field: value})
    if jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, changed) and base_logits.shape == logits.shape:
        assert not np.allclose(logits, base_logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name,fields,message", [
    ("resnet5", {}, "unknown model 'resnet5'; did you mean 'resnet56'.*allowed: plain110"),
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
    ("resnet50", {"norm": "group", "sync_norm": True}, "sync_norm=True is for norm 'batch'"),
])
def test_mistakes_are_one_line(name, fields, message):
    with pytest.raises(UserError, match=message) as error:
        models.create(name, **fields)
    assert "\n" not in str(error.value)


def test_layers_of_ones_own_are_taken():
    """A class with the fields of Conv, Dense or a norm goes in as it is."""
    base, same = (abstract(small("basic", **fields)) for fields in ({}, {"conv": Conv, "dense": Dense}))
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(jnp.shape, same)

    def nothing(*, train, dtype, axis_name, **kwargs):
        return NoNorm(**kwargs)

    assert set(abstract(small("basic", norm=nothing))) == {"params"}

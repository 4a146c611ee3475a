"""Derivatives beyond reverse mode: of attention for an absent GPU, in forward mode, and of second order."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import models
from models.errors import UserError
from models.kernels.tracing import for_platform
from models.layers import attention, conv
from models.layers.init import jit_once
from tests.models.test_hostile import TRANSFORMER, images, shapes, small, some_in_full
from tests.networks import SMALL

# -- attention on an absent GPU ---------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    with for_platform("gpu"):
        yield


def for_cuda(gradient, *inputs):
    """Returns the number of calls of cuDNN's attention in a program for NVIDIA's GPUs."""
    text = jax.jit(gradient).trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(r"@__cudnn\$fmha", text))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("lengths", [(197, 197), (198, 198), (197, 50), (50, 197), (49, 49), (1, 1)])
@pytest.mark.parametrize("kind", ["none", "mask", "bias", "both"])
def test_gradients_of_attention_are_compiled_for_cuda(gpu, dtype, lengths, kind):
    q, k = (images(2, length, 2, 64, dtype=dtype) for length in lengths)
    arguments = {"mask": jnp.ones((1, 1, *lengths), bool)} if kind in ("mask", "both") else {}
    arguments |= {"bias": jnp.ones((1, 2, *lengths))} if kind in ("bias", "both") else {}

    def loss(q, k, v):
        return attention.attend(q, k, v, **arguments).astype(jnp.float32).sum()

    flash = dtype != "float32" and (kind == "none" or max(length % 2 for length in lengths) == 0)
    assert for_cuda(jax.grad(loss, (0, 1, 2)), q, k, k) == (2 if flash else 0)


@pytest.mark.parametrize(
    ("capability", "flash"),
    [("7.5", False), ("8.0", True), ("9.0", True), ("12.1", True), ("gfx90a", False), (None, False)],
)
def test_cudnn_is_asked_only_on_a_gpu_that_it_supports(monkeypatch, capability, flash):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    q = images(2, 16, 2, 64, dtype="bfloat16")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    assert (for_cuda(lambda q: attention.attend(q, q, q), q) > 0) == flash


FAMILIES = {
    "vit, 17 tokens": ("vit", {}, True),
    "vit, 16 tokens": ("vit", {"pool": "mean"}, True),
    "vit, 5 tokens": ("vit", {"patch_size": 16}, True),
    "vit, remat": ("vit", {"remat": True}, True),
    "vit_c, 65 tokens": ("vit_c", {}, True),
    "swin, 4x4": ("swin", {}, True),
    "swin, 3x3": ("swin", {"window": 3}, False),
}


@pytest.mark.parametrize("dtype", some_in_full(["bfloat16", "float16", "float32"], ("bfloat16",)))
@pytest.mark.parametrize("case", FAMILIES)
def test_networks_with_attention_are_differentiated_for_cuda(gpu, case, dtype):
    kind, fields, flash = FAMILIES[case]
    model = small(kind, dtype=dtype, **fields)
    variables = shapes(model, images(1, 32, 32, 3))
    calls = for_cuda(jax.grad(lambda v, x: model.apply(v, x).sum()), variables, images(2, 32, 32, 3))
    assert (calls > 0) == (flash and dtype != "float32")


@pytest.mark.parametrize("dtype", some_in_full(["bfloat16", "float16", "float32"], ("bfloat16",)))
@pytest.mark.parametrize("lengths", [(8, 8), (7, 7), (7, 8), (6, 5)])
def test_the_transformer_is_differentiated_for_cuda(gpu, dtype, lengths):
    model = models.create("transformer_base", dtype=dtype, **TRANSFORMER)
    variables = shapes(model, *model.example())
    inputs = [images(2, length, dtype="int32") for length in lengths]
    calls = for_cuda(jax.grad(lambda v, *x: model.apply(v, *x).sum()), variables, *inputs)
    assert (calls > 0) == (dtype != "float32" and any(length % 2 == 0 for length in lengths))


@pytest.mark.parametrize("lengths", [(5, 5), (5, 8), (4, 6)])
def test_a_token_that_nothing_attends_to_changes_nothing(lengths):
    q, k, v = (
        jax.random.normal(key, (2, length, 2, 8))
        for key, length in zip(jax.random.split(jax.random.key(0), 3), (*lengths, lengths[1]), strict=True)
    )

    def both(attend):
        y, pull = jax.vjp(attend, q, k, v)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    even = both(lambda q, k, v: attention._even(q, k, v, None, None, implementation="xla"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), even, both(jax.nn.dot_product_attention))


# -- forward mode ----------------------------------------------------------------------------------------------------

CURE = r"within `with models.lowering\('forward_mode'\):`"


def training_loss(kind):
    """Returns a function of images, through a training call, and images."""
    model = small(kind)
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = models.initialize(model, jax.random.key(0), x.shape)
    weights = jnp.cos(jnp.arange(2 * model.num_classes)).reshape(2, -1)

    def loss(x):
        logits, _ = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
        return (logits * weights).sum()

    return loss, x


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("basic", "gated", "dense", "convnext", "swin", "lenet", "vit_c")))
def test_errors_of_forward_mode_name_the_remedy(kind):
    """Checks that every family is refused in one line by default and compiles within the recommended context."""
    model = small(kind)
    variables = shapes(model, images(1, 32, 32, 3))

    def derivative(variables, x):
        return jax.jvp(
            lambda x: model.apply(
                variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
            ),
            (x,),
            (x,),
        )[1]

    with pytest.raises(UserError, match=CURE):
        jax.jit(derivative).lower(variables, images(2, 32, 32, 3))
    with models.lowering("forward_mode"):
        jax.jit(derivative).lower(variables, images(2, 32, 32, 3))


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("basic", "alexnet", "vit")))
def test_forward_mode_agrees_with_reverse_mode_within_the_context(kind):
    loss, x = training_loss(kind)
    direction = jax.random.normal(jax.random.key(2), x.shape)
    reverse = jnp.vdot(jit_once(jax.grad(loss))(x), direction)
    with models.lowering("forward_mode"):
        value, forward = jit_once(lambda x, d: jax.jvp(loss, (x,), (d,)))(x, direction)
    np.testing.assert_allclose(forward, reverse, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(value, jit_once(loss)(x), rtol=1e-4, atol=1e-4)


def test_forward_mode_of_the_transformer():
    model = models.create("transformer_base", **{**TRANSFORMER, "dropout": 0.0})
    tokens = jnp.arange(12).reshape(2, 6) % 11
    params = models.initialize(model, jax.random.key(0), model.example())["params"]
    loss = jax.jit(lambda params: jnp.cos(model.apply({"params": params}, tokens, tokens)).sum())
    with pytest.raises(UserError, match=CURE):
        jax.jvp(loss, (params,), (params,))
    gradient = jax.grad(loss)(params)
    with models.lowering("forward_mode"):
        forward = jax.jvp(loss, (params,), (params,))[1]  # jitted before
    reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, params)))
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


DERIVATIVES = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "hessian": lambda f, x: jax.hessian(f)(x),
    "jvp of jit": lambda f, x: jax.jvp(jax.jit(f), (x,), (x,)),
    "jit of jvp": lambda f, x: jax.jit(lambda x: jax.jvp(f, (x,), (x,)))(x),
    "vmap of jvp": lambda f, x: jax.vmap(lambda x: jax.jvp(f, (x,), (x,)))(x[None]),
    "hessian-vector product": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
    "grad of grad": lambda f, x: jax.grad(lambda x: jax.grad(f)(x).sum())(x),
    "jvp of remat": lambda f, x: jax.jvp(jax.checkpoint(f), (x,), (x,)),
    "jvp of scan": lambda f, x: jax.jvp(
        lambda x: jax.lax.scan(lambda total, _: (total + f(x), None), 0.0, None, 2)[0], (x,), (x,)
    ),
}
LAYERS = {
    "conv": lambda x: jnp.sin(conv.Conv(16, 3).apply({"params": {"kernel": jnp.ones((3, 3, 16, 16)) / 50}}, x)).sum(),
    "product": lambda x: jnp.sin(conv.product(x, jnp.ones((16, 16)) / 9)).sum(),
    "norm": lambda x: jnp.sin(
        models.layers.norm.GroupNorm(groups=4).apply({"params": {"scale": jnp.ones(16), "bias": jnp.ones(16)}}, x)
    ).sum(),
    "attention": lambda x: jnp.sin(attention.attend(*[x[:, :, 0, None]] * 3)).sum(),
}


FIRST_ORDER = ("jvp", "linearize", "jacfwd", "jvp of jit", "jit of jvp", "vmap of jvp", "jvp of remat", "jvp of scan")


@pytest.mark.parametrize("way", FIRST_ORDER)
@pytest.mark.parametrize("layer", LAYERS)
def test_forward_mode_of_a_layer_is_refused_in_every_way(layer, way):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 16))
    with pytest.raises(UserError, match=CURE):
        DERIVATIVES[way](LAYERS[layer], x)


@pytest.mark.parametrize("way", [way for way in DERIVATIVES if way not in FIRST_ORDER])
@pytest.mark.parametrize("layer", LAYERS)
def test_second_order_is_right_or_refused(layer, way):
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 16))
    with models.lowering("forward_mode"):
        right = DERIVATIVES[way](LAYERS[layer], x)
    try:
        derivative = DERIVATIVES[way](LAYERS[layer], x)
    except UserError as error:
        assert re.search(CURE, str(error))
    else:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), derivative, right)


@pytest.mark.parametrize("layer", LAYERS)
def test_second_derivatives_within_the_context(layer):
    """Compares with differences of the reverse-mode gradient taken outside the context."""
    x, d = jax.random.normal(jax.random.key(0), (2, 2, 2, 2, 16))
    step_size = 1e-2
    gradient = jax.grad(LAYERS[layer])
    differences = (gradient(x + step_size * d) - gradient(x - step_size * d)) / (2 * step_size)
    with models.lowering("forward_mode"):
        product = jax.jvp(jax.grad(LAYERS[layer]), (x,), (d,))[1]
        hessian = jax.hessian(LAYERS[layer])(x)
    np.testing.assert_allclose(product, differences, rtol=2e-2, atol=5e-3)
    np.testing.assert_allclose(jnp.einsum("abcdefgh,efgh->abcd", hessian, d), product, rtol=1e-3, atol=1e-3)


def test_the_check_of_reverse_mode_leaves_no_trace_in_a_program():
    model = small("basic")
    variables = shapes(model, images(1, 8, 8, 3))
    text = jax.jit(jax.grad(lambda v, x: model.apply(v, x).sum())).lower(variables, images(2, 8, 8, 3)).as_text()
    assert "reverse_only" not in text
    assert "reverse_only" in str(jax.make_jaxpr(model.apply)(variables, images(2, 8, 8, 3)))

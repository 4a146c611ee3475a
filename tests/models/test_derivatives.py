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
from models.kernels import derivatives
from models.kernels.tracing import for_platform
from models.layers import attention, conv, norm
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


# -- forward mode and second order -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("basic", "swin")))
def test_forward_mode_agrees_with_reverse_mode(kind):
    loss, x = training_loss(kind)
    direction = jax.random.normal(jax.random.key(2), x.shape)
    reverse = jnp.vdot(jit_once(jax.grad(loss))(x), direction)
    value, forward = jit_once(lambda x, d: jax.jvp(loss, (x,), (d,)))(x, direction)
    np.testing.assert_allclose(forward, reverse, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(value, jit_once(loss)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", some_in_full(SMALL, ("basic", "convnext", "vit")))
def test_second_derivatives_agree_with_those_of_the_plain_program(kind):
    loss, x = training_loss(kind)
    direction = jax.random.normal(jax.random.key(2), x.shape)

    def product(x, d):  # of the Hessian and a direction
        return jax.jvp(jax.grad(loss), (x,), (d,))[1]

    ours = jit_once(product)(x, direction)
    with models.lowering("plain"):
        plain = jit_once(lambda x, d: product(x, d))(x, direction)
    np.testing.assert_allclose(ours, plain, rtol=2e-2, atol=2e-3 * np.abs(plain).max())


def test_forward_mode_of_the_transformer():
    model = models.create("transformer_base", **{**TRANSFORMER, "dropout": 0.0})
    tokens = jnp.arange(12).reshape(2, 6) % 11
    params = models.initialize(model, jax.random.key(0), model.example())["params"]
    loss = jax.jit(lambda params: jnp.cos(model.apply({"params": params}, tokens, tokens)).sum())
    forward = jax.jvp(loss, (params,), (params,))[1]
    reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(loss)(params), params)))
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


def test_attention_by_cudnn_has_every_derivative(gpu):
    """Checks that programs are made: JAX's own function for cuDNN has only reverse mode."""
    q = images(2, 16, 2, 64, dtype="bfloat16")

    def loss(q):
        return attention.attend(q, q, q, mask=jnp.ones((1, 1, 16, 16), bool)).astype(jnp.float32).sum()

    assert for_cuda(loss, q) == 1
    assert for_cuda(jax.grad(loss), q) == 2
    assert for_cuda(lambda q: jax.jvp(loss, (q,), (q,)), q) == 1  # the value; the tangent is of plain operations
    assert for_cuda(lambda q: jax.vmap(jax.grad(loss))(q[None]), q) == 2


CONVOLUTIONS = {  # channels of the input, groups, kernel size, features, strides
    "native": (16, 1, 3, 16, 1),
    "native, depthwise": (16, 16, 3, 16, 2),
    "dense": (6, 1, 3, 5, 2),
    "depthwise": (6, 6, 3, 6, 2),
    "grouped": (12, 4, 3, 12, 1),
    "matmul": (8, 1, 1, 8, 1),
}


def convolution_loss(case):
    """Returns a function of images and a kernel, and both."""
    channels, groups, size, features, stride = CONVOLUTIONS[case]
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, channels))
    kernel = jax.random.normal(jax.random.key(1), (size, size, channels // groups, features)) / size
    pad = (size // 2, size // 2), (size // 2, size // 2)

    def loss(x, kernel):
        return jnp.sin(conv.conv2d(x, kernel, (stride, stride), pad, (1, 1), groups)).sum()

    return loss, x, kernel


def directional(f, *values):
    return jax.jvp(f, values, tuple(map(jnp.cos, values)))[1]


def gradient(f):
    return jax.grad(f, (0, 1))


WAYS = {
    "linearize": lambda f, *v: jax.linearize(f, *v)[1](*map(jnp.cos, v)),
    "jacfwd": lambda f, *v: jax.jacfwd(f)(*v),
    "jvp of jit": lambda f, *v: directional(jax.jit(f), *v),
    "jit of jvp": lambda f, *v: jax.jit(functools.partial(directional, f))(*v),
    "jvp of remat": lambda f, *v: directional(jax.checkpoint(f), *v),
    "grad of remat": lambda f, *v: gradient(jax.checkpoint(f))(*v),
    "grad of scan": lambda f, *v: gradient(
        lambda x, k: jax.lax.scan(lambda total, i: (total + f(i * x, k), None), 0.0, jnp.arange(2.0))[0]
    )(*v),
    "Hessian times a direction": lambda f, *v: directional(gradient(f), *v),
    "grad of jvp": lambda f, *v: gradient(functools.partial(directional, f))(*v),
    "grad of grad": lambda f, *v: gradient(lambda *v: sum(jnp.sum(g**2) for g in gradient(f)(*v)))(*v),
    "jvp of jvp": lambda f, *v: directional(functools.partial(directional, f), *v),
    "vmap over images": lambda f, x, k: jax.vmap(gradient(f), (0, None))(jnp.stack([x, 2 * x]), k),
    "vmap over kernels": lambda f, x, k: jax.vmap(gradient(f), (None, 2), (0, 2))(x, jnp.stack([k, 2 * k], 2)),
    "vmap over both": lambda f, *v: jax.vmap(gradient(f))(*(jnp.stack([a, 2 * a]) for a in v)),
    "vmap of vmap": lambda f, x, k: jax.vmap(jax.vmap(gradient(f), (0, None)), (None, 0))(
        jnp.stack([x, 2 * x]), jnp.stack([k, 2 * k])
    ),
}


def all_ways(loss, x, kernel, names=tuple(WAYS)):
    """Returns the derivatives of all ways, from one program."""
    return jit_once(lambda x, kernel: {name: WAYS[name](loss, x, kernel) for name in names})(x, kernel)


def assert_equal_derivatives(ours, right, rtol, atol):
    for name, values in right.items():
        for a, b in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(values), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * np.abs(b).max(), err_msg=name)


@pytest.mark.parametrize("case", some_in_full(CONVOLUTIONS, ("native", "depthwise", "matmul")))
def test_every_derivative_of_a_convolution_is_that_of_lax(case):
    loss, *values = convolution_loss(case)
    ours = all_ways(loss, *values)
    with models.lowering("plain"):
        right = all_ways(lambda *v: loss(*v), *values)
    assert_equal_derivatives(ours, right, rtol=1e-4, atol=2e-5)


LAYERS = {
    "norm": lambda x, s: jnp.sin(norm.GroupNorm(groups=4).apply({"params": {"scale": s, "bias": s}}, x)).sum(),
    "attention": lambda x, s: jnp.sin(attention.attend(*[(x * s)[:, :, 0, None]] * 3)).sum(),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_derivative_of_other_layers_is_that_of_jax(layer):
    x, scale = jax.random.normal(jax.random.key(0), (2, 2, 2, 16)), jnp.linspace(1.0, 2.0, 16)
    names = [name for name in WAYS if name != "vmap over kernels"]
    ours = all_ways(LAYERS[layer], x, scale, names)
    with models.lowering("plain"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivatives.custom_vjp, "__call__", lambda self, *args: self._plain(*args))
        right = all_ways(lambda *v: LAYERS[layer](*v), x, scale, names)
    assert_equal_derivatives(ours, right, rtol=1e-3, atol=1e-4)


def test_derivatives_of_a_bilinear_operation_are_the_operation_and_its_transposes():
    loss, x, kernel = convolution_loss("native")
    text = str(jax.make_jaxpr(lambda x, k: directional(gradient(loss), x, k))(x, kernel))
    names = set(re.findall(r"= (conv_\w+|dot_general)\[", text))
    assert names == {"conv_native", "conv_native_to_x", "conv_native_to_kernel"}


def test_a_dense_layer_on_one_row_is_batched():
    kernel = jax.random.normal(jax.random.key(1), (16, 8))
    x = jax.random.normal(jax.random.key(0), (3, 16))
    gradients = jax.vmap(jax.grad(lambda x, k: jnp.sin(conv.product(x, k)).sum(), 1), (0, None))(x, kernel)
    right = jnp.einsum("bi,bo->bio", x, jnp.cos(x @ kernel))
    np.testing.assert_allclose(gradients, right, rtol=1e-5, atol=1e-5)


def test_programs_for_other_platforms_have_plain_convolutions():
    """Checks a program that was traced on a CPU: what it calls on the machine is only in its version for a CPU."""
    loss, x, kernel = convolution_loss("native")
    for platform, calls in (("cpu", 2), ("tpu", 0)):
        traced = jax.jit(jax.grad(loss)).trace(x, kernel)
        assert traced.lower(lowering_platforms=(platform,)).as_text().count("ablate_conv") == calls


def test_packed_layers_have_no_derivatives():
    model = models.create("preresnet20", conv="xnor")
    x = images(1, 32, 32, 3)
    variables = shapes(model, x)
    with models.lowering("packed"), pytest.raises(UserError, match="packed XNOR layers have no gradients"):
        jax.jit(jax.grad(lambda x, v: model.apply(v, x).sum())).lower(x, variables)

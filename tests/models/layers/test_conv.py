"""Every lowering of models.kernels.convolution against lax.conv_general_dilated: value and both gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.errors import UserError
from models.kernels import convolution
from models.kernels.tracing import lowering
from models.layers import conv

# x shape, kernel size, features, strides, padding, dilation, groups, CPU lowering with and without the library
CASES = [
    ((2, 8, 8, 16), (3, 3), 16, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((2, 7, 10, 3), (3, 3), 5, (1, 1), ((0, 2), (1, 1)), (1, 1), 1, "dense", "dense"),
    ((2, 8, 12, 16), (3, 3), 32, (2, 2), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((3, 9, 11, 32), (3, 3), 48, (2, 2), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((2, 9, 11, 24), (3, 3), 20, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "dense", "dense"),
    ((1, 23, 23, 3), (7, 7), 32, (2, 2), ((3, 3), (3, 3)), (1, 1), 1, "native", "dense"),
    ((1, 27, 27, 3), (11, 11), 16, (4, 4), ((2, 2), (2, 2)), (1, 1), 1, "native", "dense"),
    ((2, 13, 12, 21), (5, 3), 16, (3, 2), ((2, 1), (0, 2)), (1, 2), 1, "native", "dense"),
    ((2, 8, 8, 16), (3, 3), 16, (1, 1), ((2, 2), (2, 2)), (2, 2), 1, "native", "dense"),
    ((2, 5, 5, 16), (3, 3), 64, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((18, 4, 3, 16), (2, 2), 16, (3, 3), ((0, 0), (0, 0)), (1, 1), 1, "native", "dense"),
    ((3, 6, 6, 128), (3, 3), 160, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((1, 5, 5, 256), (3, 3), 256, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((2, 5, 7, 12), (1, 1), 9, (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "matmul", "matmul"),
    ((2, 5, 8, 12), (1, 1), 9, (2, 2), ((0, 0), (0, 0)), (1, 1), 1, "matmul", "matmul"),
    ((2, 5, 7, 12), (1, 1), 32, (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "matmul", "matmul"),
    ((3, 6, 8, 48), (1, 1), 24, (2, 2), ((0, 0), (0, 0)), (1, 1), 1, "matmul", "matmul"),
    ((2, 8, 12, 3), (4, 4), 16, (4, 4), ((0, 0), (0, 0)), (1, 1), 1, "matmul", "matmul"),
    ((2, 9, 12, 3), (4, 4), 16, (4, 4), ((0, 0), (0, 0)), (1, 1), 1, "native", "dense"),
    ((3, 9, 8, 6), (3, 3), 6, (1, 1), ((1, 1), (1, 1)), (1, 1), 6, "depthwise", "depthwise"),
    ((3, 9, 8, 16), (3, 3), 16, (1, 1), ((1, 1), (1, 1)), (1, 1), 16, "native", "depthwise"),
    ((3, 9, 8, 40), (3, 3), 40, (2, 2), ((1, 1), (1, 1)), (1, 1), 40, "native", "depthwise"),
    ((2, 10, 7, 4), (5, 5), 12, (2, 1), ((2, 2), (2, 2)), (1, 1), 4, "depthwise", "depthwise"),
    ((2, 8, 10, 48), (5, 5), 48, (2, 2), ((1, 2), (1, 2)), (1, 1), 48, "native", "depthwise"),  # TensorFlow's padding
    ((2, 8, 10, 6), (3, 3), 6, (2, 2), ((0, 1), (0, 1)), (1, 1), 6, "depthwise", "depthwise"),
    ((2, 8, 10, 3), (3, 3), 32, (2, 2), ((0, 1), (0, 1)), (1, 1), 1, "native", "dense"),
    ((2, 9, 9, 17), (7, 7), 17, (1, 1), ((3, 3), (3, 3)), (1, 1), 17, "native", "depthwise"),
    ((2, 1, 2, 48), (7, 7), 48, (1, 1), ((3, 3), (3, 3)), (1, 1), 48, "native", "depthwise"),
    ((2, 2, 1, 16), (5, 3), 16, (1, 1), ((2, 2), (1, 1)), (1, 1), 1, "native", "dense"),
    ((2, 2, 2, 16), (3, 3), 16, (2, 2), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),
    ((2, 11, 12, 20), (3, 3), 20, (2, 2), ((2, 1), (0, 3)), (2, 2), 20, "native", "depthwise"),
    ((2, 8, 8, 4), (2, 2), 4, (3, 3), ((0, 0), (0, 0)), (1, 1), 4, "depthwise", "depthwise"),
    ((2, 8, 8, 64), (3, 3), 64, (1, 1), ((1, 1), (1, 1)), (1, 1), 16, "native", "grouped"),
    ((2, 7, 8, 32), (3, 3), 32, (2, 2), ((1, 1), (1, 1)), (1, 1), 4, "native", "grouped"),
    ((2, 8, 7, 64), (3, 3), 96, (2, 1), ((1, 1), (1, 1)), (1, 1), 2, "native", "grouped"),
    ((2, 8, 9, 12), (3, 3), 24, (2, 2), ((1, 1), (1, 1)), (1, 1), 3, "grouped", "grouped"),
    ((2, 7, 7, 96), (5, 5), 80, (1, 1), ((2, 2), (2, 2)), (1, 1), 2, "grouped", "grouped"),
    ((2, 4, 6, 64), (1, 1), 32, (1, 1), ((0, 0), (0, 0)), (1, 1), 8, "grouped", "grouped"),
    ((2, 3, 4, 256), (3, 3), 256, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "patches", "patches"),
    ((2, 9, 8, 256), (3, 2), 272, (2, 3), ((0, 1), (2, 1)), (2, 1), 1, "patches", "patches"),
    ((2, 9, 11, 128), (3, 3), 80, (2, 2), ((1, 1), (1, 1)), (1, 1), 1, "native", "dense"),  # weights are copied
    ((2, 5, 7, 192), (3, 3), 192, (1, 1), ((1, 1), (1, 1)), (1, 1), 2, "native", "grouped"),
]
# one of each lowering: these tests spend their time on compilation
SMALL = [CASES[i] for i in (0, 4, 15, 16, 19, 21, 32, 35, 38)]


def _inputs(case, dtype=np.float32):
    x_shape, size, features, *_, groups, _, _ = case
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=(*size, x_shape[-1] // groups, features))
    return x.astype(dtype), kernel.astype(dtype)


def _value_and_gradients(case, x, kernel):
    """Returns y, and the gradients of sum(y * c) for a fixed, irregular c."""
    y, pull = jax.vjp(lambda x, k: convolution.conv2d(x, k, *case[3:7]), x, kernel)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


def _plain_value_and_gradients(case, x, kernel):
    with lowering("plain"):
        return _value_and_gradients(case, x, kernel)


def _assert_close(ours, reference, tolerance):
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.fixture(autouse=True)
def _cpu():
    if jax.default_backend() != "cpu":
        pytest.skip("other backends have the plain lowering alone")


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_plain_convolution(case, compiled, monkeypatch):
    x, kernel = _inputs(case)
    names = [convolution.chosen_lowering(x.shape, kernel.shape, *case[3:7], "cpu", compiled=c) for c in (True, False)]
    assert names == list(case[-2:])
    assert convolution.chosen_lowering(x.shape, kernel.shape, *case[3:7], "tpu") == "plain"
    if not compiled and names[0] == names[1]:
        pytest.skip("the same without the library")
    if compiled and names[0] == "native" and not convolution.native.available():
        pytest.skip("no C++ compiler here")
    if not compiled:
        monkeypatch.setattr(convolution.native, "available", lambda: False)
    both = jax.jit(lambda *a: (_value_and_gradients(case, *a), _plain_value_and_gradients(case, *a)))
    _assert_close(*both(x, kernel), 1e-5)


@pytest.mark.parametrize("strides,dilation", [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((2, 3), (1, 1)), ((1, 2), (2, 2))])
@pytest.mark.parametrize("taps", [(3, 3), (5, 5), (1, 1), (2, 7)])
def test_padding_of_tensorflow_is_that_of_xla(taps, strides, dilation):
    """Compares with XLA's own "SAME", for even and odd sizes, and checks that the layer uses it."""
    for sizes in ((8, 7), (11, 16), (1, 2)):
        padding = conv.same(sizes, taps, strides, dilation)
        reach = [far * (count - 1) + 1 for count, far in zip(taps, dilation, strict=True)]
        assert padding == tuple(lax.padtype_to_pads(sizes, reach, strides, "SAME"))
    layer = conv.Conv(4, taps, strides, padding="tf", dilation=dilation)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, 3)), jnp.float32)
    with lowering("plain"):
        y, variables = layer.init_with_output(jax.random.key(0), x)
    expected = lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        strides,
        "SAME",
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "size,kernel,stride,padding,dilation,left,padding_left",
    [
        (1, 7, 1, (3, 3), 1, [3], (0, 0)),
        (2, 7, 1, (3, 3), 1, [2, 3, 4], (1, 1)),
        (4, 7, 1, (3, 3), 1, [0, 1, 2, 3, 4, 5, 6], (3, 3)),
        (2, 3, 2, (1, 1), 1, [1, 2], (0, 1)),  # the bottom row is never read: one output position
        (3, 3, 1, (4, 4), 4, [1], (0, 0)),
        (5, 3, 1, (4, 4), 4, [0, 1, 2], (4, 4)),
        (1, 3, 1, (0, 3), 1, [0], (0, 1)),
    ],
)
def test_taps_that_meet_padding_alone_are_left_out(size, kernel, stride, padding, dilation, left, padding_left):
    taps = np.arange(kernel, dtype=np.float32).reshape(1, kernel, 1, 1)
    taps_left, rest = convolution._without_dead_taps(
        (1, 1, size, 1), taps, (1, stride), ((0, 0), padding), (1, dilation)
    )
    assert taps_left.ravel().tolist() == left and rest == ((0, 0), padding_left)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_under_vmap_scan_and_remat(case):
    x, kernel = _inputs(case)
    run = functools.partial(_value_and_gradients, case)

    @jax.jit
    def ways(xs, kernel):
        convolve = jax.checkpoint(lambda x: jnp.sin(convolution.conv2d(x, kernel, *case[3:7])))
        plain = functools.partial(_plain_value_and_gradients, case)
        reference = jax.vmap(plain, (0, None))(xs, kernel)
        remat = jax.grad(lambda x: convolve(x).sum())(xs[0])
        with lowering("plain"):
            without_remat = jax.grad(lambda x: jnp.sin(convolution.conv2d(x, kernel, *case[3:7])).sum())(xs[0])
        scanned = jax.lax.map(lambda x: run(x, kernel), xs)
        return (*jax.vmap(run, (0, None))(xs, kernel), *scanned, remat), (*reference, *reference, without_remat)

    # the sine doubles rounding errors, so the tolerance is larger
    _assert_close(*ways(np.stack([x, 2 * x + 1]), kernel / kernel[..., 0].size), 3e-5)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_bfloat16(case):
    x, kernel = _inputs(case, jnp.bfloat16)

    @jax.jit
    def both(x, kernel):
        exact = _plain_value_and_gradients(case, x.astype(jnp.float32), kernel.astype(jnp.float32))
        return _value_and_gradients(case, x, kernel), [value.astype(jnp.bfloat16) for value in exact]

    _assert_close(*both(x, kernel), 0.03)


@pytest.mark.parametrize("case", [case for case in CASES if case[-2] == "native"], ids=str)
def test_the_same_bits_every_time(case):
    """Checks that sums are split by shape, not by the number of free threads."""
    inputs = _inputs(case)
    run = jax.jit(functools.partial(_value_and_gradients, case))
    first = run(*inputs)
    for _ in range(3):
        assert all(np.array_equal(a, b) for a, b in zip(first, run(*inputs), strict=True))


@pytest.mark.parametrize("dtype,lowering", [("float32", "native"), ("bfloat16", "dense"), ("float16", "dense")])
def test_the_library_is_for_float32(dtype, lowering):
    shape = ((2, 8, 8, 16), (3, 3, 16, 16), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, "cpu")
    assert convolution.chosen_lowering(*shape, dtype=jnp.dtype(dtype)) == lowering
    negative = (*shape[:3], ((-1, 1), (1, 1)), *shape[4:])
    assert convolution.chosen_lowering(*negative) == "dense"


def test_on_several_devices():
    """Checks several devices whose programs call the library at the same time, as in the training loop."""
    case = CASES[0]
    x, kernel = _inputs(case)
    xs = np.stack([x * (i + 1) for i in range(4)])
    lifted = jax.pmap(lambda x: _value_and_gradients(case, x, kernel))(xs)
    _assert_close(lifted, jax.vmap(lambda x: _plain_value_and_gradients(case, x, kernel))(xs), 1e-5)


def test_lowering_is_named_and_restored():
    with pytest.raises(UserError, match="unknown lowering 'plan'; did you mean 'plain'"), lowering("plan"):
        pass
    case = CASES[0]
    with lowering("plain"), lowering("auto"):
        inner = jax.make_jaxpr(lambda *a: convolution.conv2d(*a, *case[3:7]))(*_inputs(case))
    with lowering("plain"):
        plain = jax.make_jaxpr(lambda *a: convolution.conv2d(*a, *case[3:7]))(*_inputs(case))
    assert "conv_native" in str(inner) and "conv_native" not in str(plain)


def test_layers():
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 6)).astype(np.float32)
    layer = conv.Conv(12, (5, 3), strides=2, groups=3, use_bias=True)
    y, variables = layer.init_with_output(jax.random.key(1), x)
    assert y.shape == (2, 5, 5, 12)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (5, 3, 2, 12), "bias": (12,)}}

    def shape(**fields):
        return jax.eval_shape(conv.Conv(4, 3, **fields).init_with_output, jax.random.key(1), x)[0].shape

    assert shape(padding=0) == (2, 7, 7, 4)
    assert shape(padding=((1, 0), (2, 0))) == (2, 8, 9, 4)
    assert shape(dilation=2) == (2, 9, 9, 4)
    half = conv.Conv(4, 3, dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(half.init_with_output, jax.random.key(1), x)
    assert y.dtype == jnp.bfloat16 and variables["params"]["kernel"].dtype == jnp.float32
    y, variables = conv.Dense(4).init_with_output(jax.random.key(1), x)
    params = variables["params"]
    np.testing.assert_allclose(y, x @ params["kernel"] + params["bias"], rtol=1e-5, atol=1e-5)
    tokens = x.reshape(2, 81, 6)
    layer, variables = conv.Dense(32), {"params": {"kernel": jnp.sin(jnp.arange(192.0)).reshape(6, 32)}}
    ways = [jax.grad(lambda v: jnp.cos(layer.clone(use_bias=False).apply(v, tokens)).sum())(variables)]
    with lowering("plain"):
        ways.append(jax.grad(lambda v: jnp.cos(layer.clone(use_bias=False).apply(v, tokens)).sum())(variables))
    _assert_close(*map(jax.tree.leaves, ways), 1e-5)
    with pytest.raises(UserError, match="6 input and 10 output channels are not divisible into 4 groups"):
        conv.Conv(10, 3, groups=4).init(jax.random.key(0), x)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_gradients_in_a_loop_are_convolutions_that_xla_has_kernels_for(strides):
    """Checks gradients in loops, where XLA's CPU compiler keeps permuted dimensions and takes 50 times as long."""

    def step(kernel, x):
        y, pull = jax.vjp(lambda k, x: convolution.conv2d(x, k, strides, ((1, 1), (1, 1))), kernel, x)
        dk, dx = pull(jnp.cos(y))
        return kernel + dk, dx

    program = jax.jit(lambda k, xs: jax.lax.scan(step, k, xs))
    text = program.lower(jnp.zeros((3, 3, 24, 24)), jnp.zeros((2, 4, 9, 9, 24))).compile().as_text()
    layouts = re.findall(r"dim_labels=(\w+->\w+)", text)
    assert layouts and set(layouts) == {"b01f_01io->b01f"}

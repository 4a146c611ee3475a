"""Tests of models/layers/norm.py: against PyTorch (golden/make_norm.py), stable, and the same on several devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from models.kernels.tracing import for_platform
from models.layers.init import jit_once
from models.layers.norm import BatchNorm, norm, normalize
from tests.golden import FOLDER, drawn

GOLDEN = np.load(FOLDER / "norm.npz")
SHAPE = (3, 5, 4, 8)
SPECS = {
    "batch": "batch",
    "layer": "layer",
    "instance": "instance",
    "group:4": "group:4",
    "group:1": "layer",
    "channel": "channel",
}  # PyTorch's LayerNorm over C, H, W equals its GroupNorm with one group
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def layer(spec, train=True, **kwargs):
    return norm(spec, train=train, **kwargs)()


def drawn_params():
    return {kind: jnp.asarray(drawn.weight(f"norm/{kind}", (8,))) for kind in ("scale", "bias")}


@pytest.mark.parametrize("recorded,spec", SPECS.items())
def test_equals_pytorch_in_output_gradients_and_statistics(recorded, spec):
    params = drawn_params()
    state = {"batch_stats": {"mean": jnp.zeros(8), "var": jnp.ones(8)}} if spec == "batch" else {}

    @jit_once
    def step(params, x, dy, state):
        def run(params, x):
            return layer(spec).apply({"params": params, **state}, x, mutable=list(state))

        y, backward, updated = jax.vjp(run, params, x, has_aux=True)
        return y, backward(dy), updated

    for i in (1, 2):
        x = jnp.asarray(drawn.images(f"norm/x{i}", SHAPE) + i)
        dy = jnp.asarray(drawn.images(f"norm/dy{i}", SHAPE))
        y, (dparams, dx), state = step(params, x, dy, state)
        ours = {"y": y, "dx": dx, "dscale": dparams["scale"], "dbias": dparams["bias"]}
        for key, value in ours.items():
            np.testing.assert_allclose(value, GOLDEN[f"{recorded}/{key}{i}"], **CLOSE, err_msg=f"{key}{i}")
    if spec == "batch":
        for key in ("mean", "var"):
            np.testing.assert_allclose(state["batch_stats"][key], GOLDEN[f"batch/{key}"], **CLOSE)
        evaluated = layer(spec, train=False).apply({"params": params, **state}, x)
        np.testing.assert_allclose(evaluated, GOLDEN["batch/y_eval"], **CLOSE)


@pytest.mark.parametrize("spec", ["batch", "group:4", "channel"])
def test_gradient_is_that_of_the_formula(spec):
    """Compares the gradient of every output of `normalize`, the statistics included, with that of the plain formula."""
    x = jnp.asarray(drawn.images("formula", (2, 3, 3, 2, 4)))
    axes = {"batch": (0, 1, 2), "group:4": (1, 2, 4), "channel": (3, 4)}[spec]
    scale, bias = (jnp.asarray(drawn.weight(f"formula/{kind}", (2, 4))) for kind in ("scale", "bias"))

    def formula(x, scale, bias):
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias, mean, var

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, x, scale, bias):
        y, backward = jax.vjp(function, x, scale, bias)
        return y, backward(jax.tree.map(lambda a: jnp.asarray(drawn.images(f"{a.shape}", a.shape)), y))

    ours = both(lambda *args: normalize(*args, axes, 1e-5, None, jnp.float32), x, scale, bias)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), ours, both(formula, x, scale, bias))


def test_variance_survives_a_large_mean():
    """Tests a large mean.

    Mean of squares minus square of the mean would fail: 1e4 squared has no digit left for a variance of 1.
    """
    x = drawn.images("large mean", (8, 16, 16, 4))
    y = layer("batch").init_with_output(jax.random.key(0), jnp.asarray(x + np.float32(1e4)))[0]
    np.testing.assert_allclose(np.var(y, (0, 1, 2)), 1, atol=1e-3)


def variance_error(x, platform, dtype, shift=None):
    """Returns the largest relative error of the variance, against two passes in float64 over float64 x [N, H, W, C]."""
    with for_platform(platform):
        scale, bias = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
        axes = (0, 1, 2)
        var = jax.jit(lambda x: normalize(x, scale, bias, axes, 1e-5, None, dtype, shift)[2])(jnp.asarray(x, dtype))
    return np.abs(np.asarray(var, np.float64).reshape(-1) / x.var(axes) - 1).max()


@pytest.mark.parametrize("spreads", [0, 1, 10, 100, 1e3, 1e4])
@pytest.mark.parametrize("spread", [1e-1, 10])
def test_accelerators_compute_variances_as_exactly_as_two_passes(spread, spreads):
    """Tests one pass on a GPU for any mean, and on a TPU from the first step, when the running mean is still 0."""
    x = np.random.default_rng(0).standard_normal((16, 14, 14, 16))
    x[:, :7] += 3 * np.arange(16)[:, None, None, None] % 5  # examples differ, and so do the halves of an image
    x = spread * (x / x.std((0, 1, 2)) + spreads)
    exact = x.astype(np.float32).astype(np.float64)  # what all of them get in float32
    two = variance_error(exact, "cpu", jnp.float32)
    assert variance_error(exact, "gpu", jnp.float32) < max(2 * two, 1e-6)
    assert variance_error(exact, "tpu", jnp.float32, jnp.zeros(16)) <= two
    two, start = variance_error(x, "cpu", jnp.bfloat16), variance_error(x, "tpu", jnp.bfloat16, jnp.zeros(16))
    assert start < 1.3 * two + 1e-6
    assert variance_error(x, "tpu", jnp.bfloat16) == start  # the norms without a running mean
    shift = jnp.asarray(x.mean((0, 1, 2)) + spread, jnp.float32)
    assert variance_error(x, "tpu", jnp.bfloat16, shift) < 1.01 * two + 1e-6


@pytest.mark.parametrize(
    ("spec", "platform", "dtype", "passes"),
    [
        ("batch", "cpu", "float32", 2),
        ("batch", "tpu", "float32", 2),
        ("batch", "tpu", "bfloat16", 1),
        ("batch", "gpu", "float32", 1),
        ("batch", "gpu", "bfloat16", 1),
        ("channel", "tpu", "float32", 2),
        ("channel", "tpu", "bfloat16", 1),
    ],
)
def test_statistics_wait_for_no_other_pass(spec, platform, dtype, passes):
    """Counts the whole passes: sums over x that need an earlier sum over all of x."""
    x = jax.ShapeDtypeStruct((4, 16, 16, 8), dtype)
    with for_platform(platform):
        module = layer(spec, dtype=dtype)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        jaxpr = jax.make_jaxpr(lambda v, x: module.apply(v, x, mutable=["batch_stats"]))(variables, x)

    def visit(jaxpr, given):
        depths = dict(zip(jaxpr.invars, given, strict=True))
        for equation in jaxpr.eqns:
            inputs = [depths.get(v, 0) if not hasattr(v, "val") else 0 for v in equation.invars]
            inner = equation.params.get("call_jaxpr") or equation.params.get("jaxpr")
            if inner is not None:
                outputs = visit(getattr(inner, "jaxpr", inner), inputs)
            else:
                whole = equation.primitive.name == "reduce_sum" and equation.invars[0].aval.shape == x.shape
                outputs = [max(inputs, default=0) + whole] * len(equation.outvars)
            depths |= zip(equation.outvars, outputs, strict=True)
        return [depths.get(v, 0) if not hasattr(v, "val") else 0 for v in jaxpr.outvars]

    assert max(visit(jaxpr.jaxpr, [0] * len(jaxpr.jaxpr.invars))) == passes


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("spec", ["batch", "group:4", "instance", "channel"])
def test_accelerators_have_the_outputs_and_gradients_of_a_cpu(platform, spec):
    params, x, dy = drawn_params(), drawn.images("x", SHAPE) + 1, drawn.images("dy", SHAPE)
    stats = {"batch_stats": {"mean": jnp.full(8, 0.7), "var": jnp.ones(8)}} if spec == "batch" else {}
    dtype = jnp.bfloat16 if platform == "tpu" else jnp.float32

    def step(params, x):
        def run(params, x):
            return layer(spec, dtype=jnp.float32).apply({"params": params, **stats}, x, mutable=list(stats))

        y, backward, updated = jax.vjp(run, params, x.astype(dtype), has_aux=True)
        return y, backward(jnp.asarray(dy)), updated

    expected = jax.jit(step)(params, x)
    with for_platform(platform):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), jax.jit(step)(params, x), expected
        )


def test_a_running_mean_that_is_not_finite_changes_no_output():
    def output(mean):
        stats = {"mean": jnp.full(8, mean), "var": jnp.ones(8)}
        variables = {"params": drawn_params(), "batch_stats": stats}
        return layer("batch").apply(variables, x, mutable=["batch_stats"])[0]

    x = jnp.asarray(drawn.images("x", SHAPE), jnp.bfloat16)
    with for_platform("tpu"):
        for mean in (np.nan, np.inf):
            np.testing.assert_array_equal(output(mean), output(0.0))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("sync", [False, True])
def test_statistics_per_device_or_synchronized(sync, platform):
    """Compares devices with the whole batch.

    vmap over an axis of 4 gives the same collectives as pmap. Synchronized statistics equal those of the whole batch,
    gradients included; otherwise each part has its own.
    """
    x, dy = (jnp.asarray(drawn.images(name, (8, 3, 3, 8))) for name in ("x", "dy"))
    x = x.astype(jnp.bfloat16 if platform == "tpu" else jnp.float32)
    close = {"rtol": 1e-2, "atol": 1e-2} if platform == "tpu" else CLOSE
    params, state = drawn_params(), {"mean": jnp.zeros(8), "var": jnp.ones(8)}

    def step(params, x, dy, axis_name):
        def run(params, x):
            return layer("batch", dtype=jnp.float32, axis_name=axis_name).apply(
                {"params": params, "batch_stats": state}, x, mutable=["batch_stats"]
            )

        y, backward, updated = jax.vjp(run, params, x, has_aux=True)
        return y, backward(dy), updated["batch_stats"]

    def parts(a):
        return a.reshape(4, 2, *a.shape[1:])

    lifted = jax.vmap(functools.partial(step, params, axis_name="batch" if sync else None), axis_name="batch")
    with for_platform(platform):
        y, (dparams, dx), stats = jit_once(lifted)(parts(x), parts(dy))
    if sync:
        expected, (expected_dparams, expected_dx), expected_stats = step(params, x, dy, None)
        np.testing.assert_allclose(y, parts(expected), **CLOSE)
        np.testing.assert_allclose(dx, parts(expected_dx), **close)
        for key in ("scale", "bias"):
            np.testing.assert_allclose(dparams[key].sum(0), expected_dparams[key], **CLOSE)
        for key in ("mean", "var"):  # the same on all four
            np.testing.assert_allclose(stats[key], np.broadcast_to(expected_stats[key], (4, 8)), **CLOSE)
    else:
        for i in range(4):
            expected, (_, expected_dx), expected_stats = step(params, parts(x)[i], parts(dy)[i], None)
            np.testing.assert_allclose(y[i], expected, **CLOSE)
            np.testing.assert_allclose(dx[i], expected_dx, **close)
            np.testing.assert_allclose(stats["var"][i], expected_stats["var"], **CLOSE)


def test_synchronized_layer_works_outside_of_a_device_axis():
    x = jnp.asarray(drawn.images("x", SHAPE))
    alone = layer("batch", axis_name="batch").init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_array_equal(alone, layer("batch").init_with_output(jax.random.key(0), x)[0])


@pytest.mark.parametrize("spec", ["batch", "layer", "instance", "group:4", "channel"])
@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_has_float32_statistics_and_parameters(spec, train):
    x = jnp.asarray(drawn.images("x", (4, 16, 16, 8)) + 8, jnp.bfloat16)
    y, variables = layer(spec, train, dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    exact = layer(spec, train).init_with_output(jax.random.key(0), x.astype(jnp.float32))[0]
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2e-2, rtol=1e-2)  # only the output is rounded


def test_only_the_input_is_kept_for_the_gradient():
    x = jax.ShapeDtypeStruct((4, 16, 16, 8), jnp.bfloat16)
    module = layer("batch", dtype=jnp.bfloat16)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def residuals(variables, x):
        return jax.tree.leaves(jax.vjp(lambda v, x: module.apply(v, x, mutable=["batch_stats"])[0], variables, x)[1])

    big = [leaf for leaf in jax.eval_shape(residuals, variables, x) if leaf.size == x.size]
    assert [leaf.dtype for leaf in big] == [jnp.bfloat16]


def test_moments_are_left_for_recalibration_only_when_asked():
    x = jnp.asarray(drawn.images("x", SHAPE)) + 2
    variables = layer("batch").init(jax.random.key(0), x)
    assert set(variables) == {"params", "batch_stats"}
    moments = layer("batch").apply(variables, x, mutable=["batch_moments"])[1]["batch_moments"]
    for key, expected in (("mean", x.mean((0, 1, 2))), ("var", x.var((0, 1, 2)))):
        np.testing.assert_allclose(moments[key], expected, rtol=1e-5)


def test_group_has_32_groups_or_one_a_channel():
    x = jnp.asarray(drawn.images("wide", (2, 4, 4, 64)))
    np.testing.assert_array_equal(
        layer("group").init_with_output(jax.random.key(0), x)[0],
        layer("group:32").init_with_output(jax.random.key(0), x)[0],
    )
    narrow = x[..., :16]
    np.testing.assert_allclose(
        layer("group").init_with_output(jax.random.key(0), narrow)[0],
        layer("instance").init_with_output(jax.random.key(0), narrow)[0],
        **CLOSE,
    )


def test_none_is_the_identity_without_parameters():
    x = jnp.asarray(drawn.images("x", SHAPE))
    y, variables = norm("none", train=True)(name="n", scale_init=nn.initializers.zeros).init_with_output(
        jax.random.key(0), x
    )
    assert y is x and not variables


def test_callable_gets_everything():
    def spy(**kwargs):
        return kwargs

    assert norm(spy, train=True, dtype="float32", axis_name="batch")(name="n", epsilon=1e-6) == {
        "train": True,
        "dtype": "float32",
        "axis_name": "batch",
        "name": "n",
        "epsilon": 1e-6,
    }


@pytest.mark.parametrize("spec", ["grop", "group:", "group:0", "group:x", "batch:2", "", None, 3])
def test_unknown_norm_is_refused(spec):
    with pytest.raises(UserError, match="unknown norm"):
        norm(spec, train=True)


def test_groups_that_do_not_divide_name_the_layer():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return norm("group:3", train=True)(name="norm1")(x)

    with pytest.raises(UserError, match=r"group:3.*norm1.*8 channels"):
        Net().init(jax.random.key(0), jnp.ones(SHAPE))


def test_momentum_of_running_statistics():
    x = jnp.asarray([[1.0], [3.0]])
    module = layer("batch:0.6")
    _, updated = module.apply(module.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.4 * 2)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.6 * 1 + 0.4 * 2)


def test_evaluation_divides_by_the_root_of_variance_and_epsilon():
    x, (mean, scale, bias) = drawn.images("evaluated", (2, 3, 3, 4)), drawn.images("channels", (3, 4))
    var = np.float32([0, 1e-3, 1, 4])
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    output = BatchNorm(train=False, epsilon=1e-3).apply(variables, x)
    np.testing.assert_allclose(output, (x - mean) / np.sqrt(var + 1e-3) * scale + bias, rtol=1e-5, atol=1e-5)

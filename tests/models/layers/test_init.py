"""Tests of models/layers/init.py: the statistics of drawn values, and LSUV."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.init import INITS, init, jit_once, lsuv, whiten
from tests.golden import drawn
from tests.tiers import keep_first

CONV, GROUPED, DENSE = (3, 3, 64, 128), (3, 3, 4, 128), (256, 512)
FAN_IN = {CONV: 9 * 64, GROUPED: 9 * 4, DENSE: 256}
FAN_OUT = {CONV: 9 * 128, GROUPED: 9 * 128, DENSE: 512}
VARIANCES = {
    "msra": lambda shape: 2 / FAN_IN[shape],
    "msra_fan_in": lambda shape: 2 / FAN_IN[shape],
    "msra_fan_out": lambda shape: 2 / FAN_OUT[shape],
    "xavier_normal": lambda shape: 2 / (FAN_IN[shape] + FAN_OUT[shape]),
    "xavier_uniform": lambda shape: 2 / (FAN_IN[shape] + FAN_OUT[shape]),
    "lecun": lambda shape: 1 / FAN_IN[shape],
    "normal": lambda shape: 0.01**2,
    "normal:0.3": lambda shape: 0.3**2,
    "truncated_normal": lambda shape: 0.02**2,
    "truncated_normal:0.5": lambda shape: 0.5**2,
}
# The largest value drawn, in standard deviations: the bound of a distribution, or None for a Gaussian (beyond 3).
ENDS = {"xavier_uniform": 3**0.5, "truncated_normal": 2 / 0.8796, "truncated_normal:0.5": 2 / 0.8796}


@pytest.mark.parametrize("spec", VARIANCES)
def test_statistics(spec):
    shapes = (CONV, GROUPED, DENSE)
    draw = jit_once(lambda key: [init(spec)(key, shape, jnp.float32) for shape in shapes])
    for shape, kernel in zip(shapes, map(np.asarray, draw(jax.random.key(1))), strict=True):
        std = VARIANCES[spec](shape) ** 0.5
        assert abs(kernel.mean()) < 5 * std / kernel.size**0.5
        assert kernel.std() == pytest.approx(std, rel=0.03)
        largest = np.abs(kernel).max() / std
        if spec in ENDS:
            assert ENDS[spec] * 0.97 < largest < ENDS[spec] * 1.001
        else:  # not truncated: 4608 draws or more reach beyond 3
            assert largest > 3


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (3, 3, 2, 64), (64, 10), (10, 64)])
def test_orthogonal(shape):
    kernel = np.asarray(init("orthogonal")(jax.random.key(0), shape, jnp.float32)).reshape(-1, shape[-1])
    gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_every_name_is_checked():
    assert set(INITS) - {"orthogonal", "dirac"} <= set(VARIANCES)


def test_callable_is_taken_as_it_is():
    assert init(nn.initializers.ones) is nn.initializers.ones


@pytest.mark.parametrize(
    "spec,message",
    [
        ("msr", "unknown init 'msr'; did you mean 'msra'"),
        ("normal:", "not a positive"),
        ("normal:-1", "not a positive"),
        ("normal:x", "'x' is not a positive"),
        ("msra:2", "unknown init"),
        (7, "unknown init"),
        ("normal:nan", "not a positive"),
    ],
)
def test_mistakes_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        init(spec)


@pytest.mark.parametrize(
    "fields",
    keep_first(
        1,
        [
            {"norm": "none", "shortcut": "none", "act": "gelu"},
            {"norm": "batch", "remat": True, "stochastic_depth": 0.5, "dropout": 0.2, "shortcut": "B"},
        ],
    ),
)
def test_lsuv_gives_every_layer_unit_variance(fields):
    model = models.create("resnet8", width=4, **fields)
    images = jnp.asarray(drawn.images("lsuv", (16, 16, 16, 3))) * 3 + 1
    variables = models.initialize(model, jax.random.key(0), images.shape)
    rng = jax.random.key(1)
    changed = lsuv(model, variables, images, rng)
    assert jax.tree.structure(changed) == jax.tree.structure(variables)

    # So that variances may drift between blocks
    plain = models.create("resnet8", width=4, **{**fields, "remat": False})
    variances = {}

    def read(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if type(context.module).__name__ in ("Conv", "Dense"):
            variances["/".join(context.module.path)] = jnp.var(y)
        return y

    @jit_once
    def forward(variables):
        with nn.intercept_methods(read):
            plain.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.split(rng)[1]}
            )
        return dict(variances)

    variance_of = forward(changed)
    assert len(variance_of) == (8 if fields["shortcut"] == "none" else 10)  # convolutions, projections, the head
    for path, variance in variance_of.items():
        assert 0.9 <= variance <= 1.1, path

    for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(changed), jax.tree.leaves(variables), strict=True):
        if path[-1].key != "kernel":
            np.testing.assert_array_equal(new, old)
            continue
        matrix = new.reshape(-1, new.shape[-1])  # orthonormal up to one factor
        gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        np.testing.assert_allclose(gram / gram[0, 0], np.eye(len(gram)), atol=1e-4)


def test_dirac_passes_its_channels_on():
    kernel = np.asarray(init("dirac")(jax.random.key(0), (3, 3, 4, 64), jnp.float32))
    expected = np.zeros((3, 3, 4, 4))
    expected[1, 1] = np.eye(4)
    np.testing.assert_array_equal(kernel[..., :4], expected)
    x = jnp.asarray(drawn.images("dirac", (1, 5, 5, 4)))
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(y[..., :4], x, rtol=1e-6)
    bound = 1 / 36**0.5  # as torch.nn.Conv2d draws
    assert 0.98 * bound < np.abs(kernel[..., 4:]).max() <= bound
    assert kernel[..., 4:].std() == pytest.approx(bound / 3**0.5, rel=0.03)
    narrow = np.asarray(init("dirac")(jax.random.key(0), (2, 2, 4, 3), jnp.float32))
    np.testing.assert_array_equal(narrow[1, 1], np.eye(4, 3))
    dense = np.asarray(init("dirac")(jax.random.key(0), (256, 64), jnp.float32))
    assert np.abs(dense).max() <= 1 / 16 and dense.std() == pytest.approx(1 / 16 / 3**0.5, rel=0.03)


def test_whitened_patches_are_white():
    images = drawn.images("whiten", (32, 12, 12, 3)).cumsum(1).cumsum(2) * [1, 2, 3]
    images = jnp.asarray(images, jnp.float32)
    model = models.create("airbench94", width=4)
    variables = models.initialize(model, jax.random.key(0), images.shape)
    changed = whiten(model, variables, images, epsilon=1e-6)
    kernel = np.asarray(changed["params"]["stem_conv"]["kernel"], np.float64)
    patches = np.stack([np.asarray(images[:, i : i + 11, j : j + 11], np.float64) for i in (0, 1) for j in (0, 1)], -2)
    features = patches.reshape(-1, 12) @ kernel.reshape(12, 24)
    np.testing.assert_allclose(features[:, :12].T @ features[:, :12] / len(features), np.eye(12), atol=2e-2)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    norms = np.linalg.norm(kernel.reshape(12, 24)[:, :12], axis=0)
    assert (np.diff(norms) > 0).all()  # the largest eigenvalue first
    jax.tree.map(
        np.testing.assert_array_equal, {**changed["params"], "stem_conv": 0}, {**variables["params"], "stem_conv": 0}
    )
    with pytest.raises(UserError, match="stem_conv has 64 output features and sees 3 of 3 channels; it must"):
        wide = models.create("resnet8", width=64)
        whiten(wide, models.initialize(wide, jax.random.key(0), images.shape), images)

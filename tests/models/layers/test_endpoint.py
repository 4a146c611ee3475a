"""Tests of models/layers/endpoint.py: reading and differentiating activations from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.errors import UserError
from models.layers.endpoint import capture
from tests.golden import drawn
from tests.tiers import keep_first

IMAGES = jnp.asarray(drawn.images("endpoints", (2, 16, 16, 3)))
NAMES = [
    "stem", "stage1/block0", "stage1", "stage2/block0", "stage2", "stage3/block0", "stage3", "last_map", "pre_logits",
]  # fmt: skip


@pytest.fixture(scope="module", params=keep_first(1, [False, True]), ids=["kept", "remat"])
def network(request):
    model = models.create("resnet8", width=4, remat=request.param)
    return model, models.initialize(model, jax.random.key(0), IMAGES.shape)


def test_reads_every_endpoint_in_order(network):
    model, variables = network
    logits, activations = capture(model, variables, IMAGES)
    assert list(activations) == NAMES
    assert [activations[name].shape for name in ("stem", "stage2", "pre_logits")] == [
        (2, 16, 16, 4),
        (2, 8, 8, 8),
        (2, 16),
    ]
    np.testing.assert_array_equal(logits, model.apply(variables, IMAGES))
    np.testing.assert_array_equal(activations["stage3"], activations["stage3/block0"])
    head = variables["params"]["head"]
    np.testing.assert_allclose(activations["pre_logits"] @ head["kernel"] + head["bias"], logits, rtol=1e-5, atol=1e-5)


def test_gradient_by_an_activation_under_jit(network):
    model, variables = network

    @jax.jit
    def gradient(variables, images):
        def score(add):
            logits, activations = capture(model, variables, images, names=["stage3"], add=add)
            return logits[:, 1].sum(), activations

        return jax.grad(score, has_aux=True)({"stage3": jnp.zeros((2, 4, 4, 16)), "pre_logits": jnp.zeros((2, 16))})

    gradients, activations = gradient(variables, IMAGES)
    assert list(activations) == ["stage3"]
    weight = variables["params"]["head"]["kernel"][:, 1]  # after stage3: the spatial mean, then the head
    np.testing.assert_allclose(gradients["pre_logits"], np.broadcast_to(weight, (2, 16)), rtol=1e-5)
    np.testing.assert_allclose(gradients["stage3"], np.broadcast_to(weight / 16, (2, 4, 4, 16)), rtol=1e-5)


def test_an_added_term_is_returned_and_propagates(network):
    model, variables = network
    logits, activations = capture(model, variables, IMAGES, names=["stem"], add={"stem": jnp.ones((2, 16, 16, 4))})
    plain, without = capture(model, variables, IMAGES, names=["stem"])
    np.testing.assert_allclose(activations["stem"], without["stem"] + 1, rtol=1e-6)
    assert not np.allclose(logits, plain)


def test_training_mode_returns_what_apply_returns(network):
    model, variables = network
    (logits, updated), activations = capture(model, variables, IMAGES, train=True, mutable=["batch_stats"])
    assert logits.shape == (2, 10) and set(updated) == {"batch_stats"} and list(activations) == NAMES


@pytest.mark.parametrize("kwargs", [{"names": ["stage9"]}, {"add": {"stage9": jnp.zeros(())}}])
def test_unknown_endpoint_is_refused(network, kwargs):
    with pytest.raises(UserError, match="unknown endpoint 'stage9'; did you mean 'stage"):
        capture(*network, IMAGES, **kwargs)

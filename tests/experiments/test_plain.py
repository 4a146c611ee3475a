"""Tests of experiments/bench/plain.py: each plain network is the one of ours, by parameters and by layers' sizes."""

import collections

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import plain
from models.errors import UserError


def shapes(make, name, blocks):
    """Returns the shapes of a network's output and of its parameters."""
    inputs = [jax.ShapeDtypeStruct((2, *a.shape[1:]), a.dtype) for a in plain.ours(name, 1).example()]
    model = make(name, blocks, num_classes=50)
    output, variables = jax.eval_shape(lambda *inputs: model.init_with_output(jax.random.key(0), *inputs), *inputs)
    return output, variables["params"]


def sizes(params):
    """Returns how often each number of parameters of an array occurs, with queries, keys and values as one array."""
    return collections.Counter(a.size for a in jax.tree.leaves(params))


@pytest.mark.parametrize("blocks", [1, 2, None])
@pytest.mark.parametrize("name", plain.NAMES)
def test_plain_networks_have_the_parameters_of_ours(name, blocks):
    (our_output, our_params), (output, params) = (shapes(make, name, blocks) for make in (plain.ours, plain.create))
    assert output == our_output and output.dtype == jnp.float32
    total = sum(a.size for a in jax.tree.leaves(params))
    assert total == sum(a.size for a in jax.tree.leaves(our_params)) > 10**5
    if name not in ("vit_base_patch16", "transformer_base"):  # Flax keeps queries, keys and values apart
        assert sizes(params) == sizes(our_params)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="plain network 'resnet51'.*resnet50"):
        plain.create("resnet51")

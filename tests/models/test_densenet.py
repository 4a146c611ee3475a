"""Tests of models/densenet.py: the effect of each field. test_parity.py compares with torchvision and timm."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import weights
from models.analysis.cost import analyze
from models.layers.endpoint import capture
from models.layers.regularize import Dropout
from models.weights.layouts import flatten
from tests.golden import drawn
from tests.networks import PARAMETERS
from tests.tiers import keep_first

# Huang 2017, table 2: parameters in 1e6, printed with one decimal.
TABLE_2 = {
    "densenet40_k12": 1.0,
    "densenet100_k12": 7.0,
    "densenet100_k24": 27.2,
    "densenet_bc100_k12": 0.8,
    "densenet_bc250_k24": 15.3,
    "densenet_bc190_k40": 25.6,
}
TINY = jnp.asarray(drawn.images("dense", (2, 8, 8, 3)))


def params(name, **fields):
    return drawn.abstract(models.create(name, **fields))["params"]


@pytest.mark.parametrize("name", keep_first(2, TABLE_2))
def test_networks_are_those_of_table_2(name):
    """Compares parameters and the depth L: convolutions of the stem, the layers and the transitions, and the head."""
    assert round(PARAMETERS[name] / 1e6, 1) == TABLE_2[name]
    kernels = [path for path in flatten({"params": params(name)}) if path.endswith("kernel")]
    assert len(kernels) == int(re.search(r"\d+", name)[0])


def test_parameters_have_the_names_that_weights_are_mapped_by():
    tree = params("densenet121")
    assert set(tree) == {
        "stem_conv", "stem_norm", "stage1", "stage2", "stage3", "stage4", "transition1", "transition2", "transition3",
        "final_norm", "head",
    }  # fmt: skip
    assert set(tree["stage1"]) == {f"layer{i}" for i in range(6)}
    assert set(tree["stage1"]["layer0"]) == {"norm1", "conv1", "norm2", "conv2"}
    assert set(tree["transition1"]) == {"norm", "conv"}
    tree = params("densenet40_k12")
    assert "stem_norm" not in tree and set(tree["stage1"]["layer0"]) == {"norm1", "conv1"}


def test_channels_grow_and_are_compressed():
    def kernels(name, **fields):
        flat = flatten({"params": params(name, **fields)})
        return {path.removesuffix("/kernel"): leaf.shape for path, leaf in flat.items() if path.endswith("kernel")}

    shapes = kernels("densenet121")
    assert shapes["stem_conv"] == (7, 7, 3, 64)
    assert shapes["stage1/layer5/conv1"] == (1, 1, 64 + 5 * 32, 128)
    assert shapes["stage1/layer5/conv2"] == (3, 3, 128, 32)
    assert shapes["transition1/conv"] == (1, 1, 256, 128) and shapes["head"] == (1024, 1000)
    shapes = kernels("densenet40_k12")
    assert shapes["stem_conv"] == (3, 3, 3, 16) and shapes["stage1/layer1/conv1"] == (3, 3, 28, 12)
    assert shapes["transition1/conv"] == (1, 1, 160, 160)
    shapes = kernels("densenet_bc100_k12", stage_sizes=(1, 1), width=7)
    assert shapes["transition1/conv"] == (1, 1, 19, 9)  # rounded down


def test_every_layer_reads_all_earlier_ones():
    """Checks that a block's output begins with its input and that each layer's new channels follow, in order."""
    model = models.create("densenet_bc100_k12", stage_sizes=(3, 1), growth=2, width=4)
    _, activations = capture(model, drawn.variables(model), TINY)
    parts = [activations["stem"], *(activations[f"stage1/layer{i}"] for i in range(3))]
    assert [part.shape[-1] for part in parts] == [4, 2, 2, 2]
    np.testing.assert_array_equal(activations["stage1"], jnp.concatenate(parts, -1))
    assert activations["stage2/layer0"].shape == (2, 4, 4, 2) and activations["pre_logits"].shape == (2, 7)


def test_transitions_average_over_2_by_2():
    """Checks that a transition equals the mean over each window of its outputs for the four positions alone."""
    model = models.create("densenet_bc100_k12", stage_sizes=(1, 1), growth=2, width=4)
    variables = drawn.variables(model)

    def after(stage1):
        _, activations = capture(model, variables, TINY)
        return capture(model, variables, TINY, add={"stage1": stage1 - activations["stage1"]})[1]["stage2"][..., :3]

    maps = jnp.asarray(drawn.images("maps", (2, 8, 8, 6)))
    repeated = [maps[:, i::2, j::2].repeat(2, 1).repeat(2, 2) for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(after(maps), sum(map(after, repeated)) / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name,layers", [("densenet40_k12", 3 * 12 + 2), ("densenet_bc100_k12", 2 * 3 * 16 + 2)])
def test_dropout_follows_every_convolution_but_the_first(name, layers):
    rates = []

    def read(call, args, kwargs, context):
        if isinstance(context.module, Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(read):
        drawn.abstract(models.create(name, dropout=0.2))
    assert rates == [0.2] * layers


@pytest.mark.full
def test_remat_keeps_memory_linear_in_the_layers():
    """Checks Pleiss 2017: O(L) instead of O(L^2) memory for a block of L layers."""

    def kept_bytes(size, remat):
        model = models.create("densenet_bc100_k12", stage_sizes=(size,), remat=remat)
        return analyze(model, model.example()).kept_bytes

    small, large = (kept_bytes(size, remat=True) for size in (8, 16))
    assert large < 2 * small
    assert kept_bytes(16, remat=False) > 2.5 * kept_bytes(8, remat=False) and kept_bytes(16, remat=False) > 4 * large


def test_remat_keeps_the_outputs_of_convolutions():
    """Checks the memory of one more layer: its bottleneck (4k channels), new channels (k) and channel statistics."""

    def kept_bytes(size):
        model = models.create("densenet_bc100_k12", stage_sizes=(size,), remat=True)
        return analyze(model, model.example()).kept_bytes

    maps = 5 * 12 * 32 * 32 * 4
    # The last concatenation, its normalization, its activation and their mask are kept as well, and grow by k channels.
    ending = 12 * 32 * 32 * (4 + 4 + 1)
    assert maps <= kept_bytes(9) - kept_bytes(8) <= maps + ending + 4 * 5 * 200


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_weights_survive_a_round_trip_through_the_layouts(layout):
    model = models.create("densenet121", stage_sizes=(2, 1), growth=4, width=8, num_classes=10)
    variables = drawn.variables(model)
    arrays = weights.to_arrays(model, variables, layout)
    assert arrays["features.denseblock1.denselayer2.conv1.weight"].shape == (16, 12, 1, 1)
    assert arrays["features.transition1.conv.weight"].shape == (8, 16, 1, 1)
    assert {"features.norm0.running_var", "features.norm5.weight", "classifier.bias"} < set(arrays)
    back = weights.from_arrays(model, arrays, layout)
    jax.tree.map(np.testing.assert_array_equal, flatten(variables), flatten(back))


@pytest.mark.parametrize("name,fields", [("densenet_bc100_k12", {}), ("densenet121", {"bottleneck": 0})])
def test_other_libraries_have_no_such_network(name, fields):
    assert set(weights.layouts(models.create(name, **fields))) == {"ablate"}

"""int8 layers: rounding beside NumPy and onnx, gradients, ranges, and folding that commutes with rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.layers import int8
from models.layers.init import jit_once
from tests.combinations import BOTH, FAMILIES, TEXT


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_kernels_are_whole_numbers_per_channel_and_rounding_twice_changes_nothing():
    kernel = drawn((3, 3, 4, 6))
    kernel[..., 2] = 0
    once = np.asarray(jax.jit(int8.rounded_kernel)(kernel))
    scale = np.abs(kernel).max((0, 1, 2)) / 64
    steps = np.round(kernel / np.where(scale > 0, scale, 1))
    np.testing.assert_array_equal(once, (steps * scale).astype(np.float32))
    assert np.abs(steps).max() == 64 and not once[..., 2].any()
    np.testing.assert_array_equal(jax.jit(int8.rounded_kernel)(once), once)
    gradient = jit_once(jax.grad(lambda k: (int8.rounded_kernel(k) * 3).sum()))(kernel)
    np.testing.assert_array_equal(gradient, np.full(kernel.shape, 3))


def test_rounding_commutes_with_folded_batch_normalization():
    """Checks that a scale per channel needs no folding in training (Jacob 2018, section 3.2, has one per layer)."""
    kernel, gain = drawn((3, 3, 4, 6)), drawn(6, 1) * 10
    folded = np.asarray(int8.rounded_kernel(jnp.asarray(kernel * gain)))
    np.testing.assert_allclose(folded, np.asarray(int8.rounded_kernel(jnp.asarray(kernel))) * gain, rtol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 3.0), (0.5, 2.0), (-3.0, -1.0)])
def test_inputs_are_rounded_as_onnx_rounds_them(low, high):
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    x = drawn(1000) * 2
    least, most = min(low, 0), max(high, 0)
    scale = np.float32((most - least) / 255)
    zero = np.uint8(np.round(-least / scale))
    parts = [("QuantizeLinear", "x", "q"), ("DequantizeLinear", "q", "y")]
    nodes = [onnx.helper.make_node(kind, [before, "scale", "zero"], [after]) for kind, before, after in parts]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, [None])], [value("y", 1, [None])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in (("scale", scale), ("zero", zero))],
    )  # fmt: skip
    evaluator = reference.ReferenceEvaluator(onnx.helper.make_model(graph))
    (expected,) = evaluator.run(None, {"x": x})
    rounded = np.asarray(int8.rounded_input(jnp.asarray(x), jnp.float32(low), jnp.float32(high)))
    np.testing.assert_allclose(rounded, expected, atol=float(1.1 * scale))  # a number on the edge may round either way
    assert (np.abs(rounded - expected) > 1e-5).mean() < 0.01
    gradient = np.asarray(jax.vmap(jax.grad(int8.rounded_input), (0, None, None))(x, low, high))
    np.testing.assert_array_equal(gradient[(x > least + scale) & (x < most - scale)], 1)
    np.testing.assert_array_equal(gradient[(x < least - scale) | (x > most + scale)], 0)


def test_running_ranges_change_in_training_alone():
    layer, x = int8.Int8Conv(3, 3, momentum=0.9), jnp.asarray(drawn((2, 5, 5, 4)))
    variables: Any = jit_once(layer.init)(jax.random.key(0), x)
    assert {name: leaf.shape for name, leaf in variables["ranges"].items()} == {
        "input_low": (), "input_high": (), "output_low": (3,), "output_high": (3,),
    }  # fmt: skip
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables["ranges"]))
    rounded = layer.apply(variables, x)  # without a range, only the weights are rounded
    kernel = {"params": {"kernel": int8.rounded_kernel(variables["params"]["kernel"])}, "ranges": variables["ranges"]}
    np.testing.assert_array_equal(layer.apply(kernel, x), rounded)

    def train(variables, x):
        return {**variables, **layer.apply(variables, x, mutable=["ranges"])[1]}

    first = train(variables, x)
    second = train(first, 2 * x)["ranges"]
    assert first["ranges"]["input_high"] == x.max() and first["ranges"]["input_low"] == x.min()
    np.testing.assert_allclose(second["input_high"], 0.9 * x.max() + 0.1 * 2 * x.max(), rtol=1e-6)
    y = np.asarray(layer.apply(first, x))
    np.testing.assert_allclose(first["ranges"]["output_high"], y.max((0, 1, 2)), rtol=1e-5)


def test_ranges_of_pretrained_networks():
    arrays = {"a/kernel": drawn((2, 2)), "a/input_low": drawn(())}
    shapes = {"a/kernel": (2, 2), "b/input_low": (), "b/output_high": (3,)}
    extended = int8.with_ranges(arrays, shapes)
    assert set(extended) == {"a/kernel", "b/input_low", "b/output_high"} and not extended["b/output_high"].any()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in TEXT])
def test_every_family_takes_int8_layers(family):
    """Checks that each convolution and dense layer has ranges, which a training call returns; nothing is compiled."""
    entry = FAMILIES[family]
    model = models.create(entry.name, **entry.fields, **dict.fromkeys(BOTH, "int8"))
    images = jax.ShapeDtypeStruct((2, entry.fields["image_size"], entry.fields["image_size"], 3), jnp.float32)
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key, images)
    paths = {
        collection: {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in
                     jax.tree_util.tree_leaves_with_path(variables[collection])}
        for collection in ("params", int8.RANGES)
    }  # fmt: skip
    kernels = {path.removesuffix("/kernel") for path in paths["params"] if path.endswith("/kernel")}
    assert kernels == {path.removesuffix("/input_low") for path in paths[int8.RANGES] if path.endswith("/input_low")}
    state = {name: tree for name, tree in variables.items() if name != "params"}

    def train(variables, images):
        return model.apply(
            variables, images, train=True, mutable=list(state), rngs={"dropout": key, "gates": key, "policy": key}
        )

    assert jax.tree.structure(jax.eval_shape(train, variables, images)[1]) == jax.tree.structure(state)

"""Tests of models/compress/skip.py: which kernels are opened by their nonzero blocks, and nothing else."""

import contextlib
import functools
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

import models
from models.compress import skip
from models.kernels import blocks, native
from models.kernels.tracing import lowering
from models.layers import conditional
from models.layers.endpoint import capture
from models.layers.exit_router import confidence

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")


def _network(name, share, size=32, **fields):
    """Returns a network whose kernels lack a share of their blocks, with drawn statistics, and images."""
    model = models.create(name, num_classes=10, **fields)
    rng = np.random.default_rng(0)
    variables = models.initialize(model, jax.random.key(0), (1, size, size, 3))
    flat = traverse_util.flatten_dict(jax.tree.map(np.array, variables), sep="/")
    for path, leaf in flat.items():
        if path.endswith("/kernel") and leaf.shape[-1] % 16 == 0 and leaf.shape[-2] >= 16:
            leaf.reshape(*leaf.shape[:-1], -1, 16)[rng.random((*leaf.shape[:-1], leaf.shape[-1] // 16)) < share] = 0
        elif leaf.ndim == 1:
            flat[path] = leaf + 0.1 * np.abs(rng.normal(size=leaf.shape)).astype(np.float32)
    images = rng.normal(size=(3, size, size, 3)).astype(np.float32)
    return model, traverse_util.unflatten_dict(flat, sep="/"), images


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        ("resnet8", {"width": 16}, 6),
        ("preresnet20", {"width": 16, "shortcut": "B"}, 20),
        ("vgg11_cifar", {"width": 16}, None),
        ("vit_tiny_patch16", {"image_size": 32, "depth": 2, "heads": 2, "width": 32}, None),
    ],
)
def test_the_logits_are_those_of_the_whole_kernels(name, fields, count):
    if not set(fields) <= set(models.fields(name)):
        fields = {key: value for key, value in fields.items() if key in models.fields(name)}
    model, variables, images = _network(name, 0.75, **fields)
    opened = skip.opened(model, variables, images)
    assert opened.skipping and (count is None or len(opened.skipping) == count)
    expected = jax.jit(model.apply)(variables, images)
    logits = jax.jit(opened.apply)(opened.variables, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with lowering("plain"):  # the whole kernels, folded
        plain = jax.jit(lambda v, x: opened.apply(v, x))(opened.variables, images)
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_images_leave_a_network_with_zero_blocks_at_its_exits():
    model, variables, images = _network("early_exit_resnet62", 0.75, width=16, stage_sizes=(1, 1, 1), exits=(1, 2))
    images = np.concatenate([images, 3 * images])
    masked, endpoints = capture(model, variables, images)
    sure = [np.sort(confidence(endpoints[name])) for name in ("exit1", "exit2")]
    leave = np.array([(one[2] + one[3]) / 2 for one in sure], np.float32)
    expected, endpoints = capture(model, variables, images, leave=leave)
    assert len(set(np.asarray(endpoints["left"]).tolist())) > 1 and np.abs(expected - masked).max() > 0.01
    opened = skip.opened(model, variables, images)
    assert opened.skipping
    for context in (contextlib.nullcontext(), conditional.skipping()):
        with context:
            logits = jax.jit(functools.partial(opened.apply, leave=leave))(opened.variables, images)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_kernel_gets_only_nonzero_blocks():
    model, variables, images = _network("resnet8", 0.75, width=16)
    opened = skip.opened(model, variables, images)
    assert set(opened.skipping) == {f"stage{i}/block0/conv{j}/kernel" for i in (1, 2, 3) for j in (1, 2)}
    nonzero = {
        name: int(blocks.nonzero(traverse_util.flatten_dict(variables["params"], sep="/")[name]).sum())
        for name in opened.skipping
    }
    program = jax.jit(opened.apply).lower(opened.variables, images).as_text()
    assert program.count("ablate_conv_blocks") == 6
    for name, count in nonzero.items():
        assert opened.skipping[name] == pytest.approx(0.75, abs=0.1)
        assert f"tensor<{count}x16xf32>" in program, name


@pytest.mark.parametrize(
    ("name", "fields", "program"),
    [
        ("resnet14", {"width": 16}, {"layer_fused": 13, "add": 1, "max": 0}),  # the head has 10 outputs, and its bias
        ("mobilenet_v2", {"width_multiplier": 0.35}, {"layer_fused": None, "max": 0, "min": 0}),
        ("preresnet20", {"width": 16, "shortcut": "B"}, {"layer_fused": None}),
        ("vit_tiny_patch16", {"image_size": 32, "depth": 2, "heads": 2, "width": 32}, {"layer_fused": None}),
        ("resnet14", {"width": 16, "remat": True}, {"layer_fused": 13}),
    ],
)
def test_dense_networks_are_folded_and_merged(name, fields, program):
    fields = {key: value for key, value in fields.items() if key in models.fields(name)}
    model, variables, images = _network(name, 0.2, **fields)
    opened = skip.opened(model, variables, images)
    expected = jax.jit(model.apply)(variables, images)
    logits = jax.jit(opened.apply)(opened.variables, images)
    assert not opened.skipping
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    text = str(jax.make_jaxpr(opened.apply)(opened.variables, images))
    for operation, count in program.items():
        found = len(re.findall(rf"= {operation}\b", text))
        assert found == count or (count is None and found > 5), operation


def test_networks_are_unchanged_without_native_code(monkeypatch):
    model, variables, images = _network("resnet8", 0.9, width=16)
    monkeypatch.setattr(blocks, "available", lambda: False)  # an accelerator, or no compiler
    opened = skip.opened(model, variables, images)
    assert opened.apply == model.apply and not opened.skipping and set(opened.variables) == set(variables)


def test_layers_that_compute_their_kernel_are_not_opened():
    model, variables, images = _network("resnet8", 0.9, width=16, conv="standardized")
    opened = skip.opened(model, variables, images)
    assert not opened.skipping and not opened.variables["opened"]  # the head has fewer than 16 outputs

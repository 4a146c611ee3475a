"""Topologies by name, and what their users get wrong. Compiling for TPUs needs libtpu: tests/train/test_forecast.py."""

import importlib.util

import pytest
from jax.experimental import topologies

from models.errors import UserError
from train.devices import topology

LOCKED = 'ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm /tmp/libtpu_lockfile".'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("v5:2x2", "unknown topology 'v5'; did you mean 'v5p'? allowed: v4, v5e, v5p, v6e, tpu7x, a100, h100, h200"),
        ("", "unknown topology ''"),
        ("v5e", "topology v5e: v5e has 2 dimensions, as in v5e:2x2 or v5e:2x2,slices=2"),
        ("v5e:2x2x2", "v5e has 2 dimensions"),
        ("v4:2x2", "v4 has 3 dimensions, as in v4:2x2x2"),
        ("v5e:0x2", "v5e has 2 dimensions"),
        ("v5e:2x2,slices=0", "v5e has 2 dimensions"),
        ("h100:", "h100 takes a number of GPUs, up to 8 or a multiple of 8, as in h100:8"),
        ("h100:12", "h100 takes a number of GPUs"),
        ("h100:-1", "h100 takes a number of GPUs"),
    ],
)
def test_a_topology_that_does_not_exist_is_one_line(text, line):
    with pytest.raises(UserError, match=line.replace("?", r"\?")):
        topology.read(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("v5e:2x2", "compiling for a TPU needs the package libtpu: pip install --no-deps 'libtpu=="),
        (
            "h100:8",
            "compiling for a GPU needs the package jax-cuda12-plugin: pip install --no-deps jax-cuda12-plugin==",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_command(text, line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=line):
        topology.read(text)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (LOCKED, "topology v5e:2x2: another process compiles with libtpu; wait until it ends"),
        ('INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible by …', "v5e:4x4, v6e:2x4"),
        ("module 'libtpu' has no attribute 'get_library_path'", "the version that fits jax .*: pip install --no-deps"),
        ("", "RuntimeError; the version that fits jax"),
    ],
)
def test_what_the_compiler_refuses_is_one_line(message, line, monkeypatch):
    def refuse(**options):
        raise RuntimeError(message)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(UserError, match=line) as caught:
        topology.read("v5e:2x2")
    assert "\n" not in str(caught.value)

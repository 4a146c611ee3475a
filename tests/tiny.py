"""Runs small enough for tests, and the command line as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from configs import digits

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # data of the workplace; tests that use it are skipped where it is absent


def config(**changes):
    """Returns configs/digits.py cut to 12 steps of a narrow network on one device; "section__key" changes a key."""
    c = digits.get_config()
    c.model.name, c.model.width = "resnet8", 4
    c.duration, c.batch_size, c.steps_per_call, c.devices = "12 steps", 32, 2, 1
    c.log_every, c.evaluate_every, c.checkpoint_every = "4 steps", "6 steps", "4 steps"
    c.hooks = ""
    return change(c, **changes)


def change(c, **changes):
    """Changes keys of a config, named "section__key", and returns it."""
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = c
        for name in sections:
            section = section[name]
        section[key] = value
    return c


def trained(folder, **changes):
    """Trains a run of `config` in a folder, which is returned."""
    from train import loop  # most users of this file need no Orbax

    loop.train(config(**changes), folder)
    return folder


def points(folder):
    """Returns the numbers of a run's metrics.jsonl, {(split/name, step): value}."""
    from train.storage import workdir

    return {
        (f"{line['split']}/{name}", line["step"]): value
        for line in workdir.read_metrics(folder / "metrics.jsonl")
        for name, value in line.items()
        if isinstance(value, (int, float)) and name != "step"
    }


def resnet18_file(folder):
    """Writes a narrow ResNet-18 in our layout, as `models.weights import` leaves it, and returns the file."""
    import models
    from models import weights

    path, model = folder / "resnet18.safetensors", models.create("resnet18", width=8)
    variables = models.initialize(model, jax.random.key(0), model.example())
    weights.save(path, model, variables, {"model": "resnet18", "fields": {"width": 8}})
    return path


def command(*arguments, devices=1, **options):
    """Returns the Popen arguments that run `python -m train …` in a subprocess, from the repository's root.

    The subprocess compiles as users do, which the tests' own process does not (conftest.py): bitwise promises hold for
    such runs.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": "",
        **options.pop("env", {}),
    }
    return dict(
        args=[sys.executable, "-m", "train", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(*arguments, **options):
    """Runs `python -m train …` to its end."""
    return subprocess.run(**command(*arguments, **options), timeout=300, check=False)


TINY_FLAGS = (
    "--config=configs/digits.py:resnet8", "--config.model.width=4", "--config.batch_size=32",
    "--config.steps_per_call=2", "--config.devices=1", "--config.hooks=", "--config.log_every=4 steps",
)  # fmt: skip


def assert_same(a, b):
    """Asserts that two trees are bitwise equal."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, (x, y) in zip(
        jax.tree_util.tree_leaves_with_path(a), zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path[0]))

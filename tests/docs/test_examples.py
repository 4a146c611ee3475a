"""Each example in the help of each command runs, or is read by its command up to the work (see examples.py)."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import models
from experiments.bench import commands
from models import weights
from tests.docs import examples, pages
from tests.docs.test_blocks import run
from tests.tiny import ROOT

# Replaces the work of a command: its flags and its config are read, and nothing is done
PARSE = """
import runpy, sys
from absl import flags
from models import command
import train.cli
readers = []
def define_config(name="config", define=train.cli.define_config):
    readers.append(define(name))
    return readers[-1]
def stop(main, usage, positional=False, parse=train.cli._parse):
    arguments = parse(sys.argv)
    for config in readers:
        config()
    sys.exit(f"unexpected argument {arguments[1]}" if len(arguments) > 1 and not positional else 0)
command.run = train.cli.run = stop
train.cli.define_config = define_config
def stop_argv(argv, usage, define, act):
    options = flags.FlagValues()
    define(options)
    options(list(argv))
    sys.exit(0)
command.run_argv = stop_argv
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def rows(how):
    return [(example, note) for example, (kind, note) in examples.CHECKS.items() if kind == how]


def read(words, folder):
    """Lets a command read its flags and its config; returns the process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARSE, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_table_has_every_example():
    assert sorted(examples.in_help()) == sorted(examples.CHECKS)
    assert all(note for _, note in rows("parse")), "each needs its reason"


@pytest.mark.full
@pytest.mark.parametrize(
    "arguments", ["experiments.bench --quikc", "experiments.sweep --config=configs/no.py", "train x"]
)
def test_a_wrong_example_is_noticed(arguments, tmp_path):
    assert read(arguments.split(), tmp_path).returncode


def test_examples_name_what_exists():
    known = [line for line in examples.CHECKS if shlex.split(line)[2] in commands.names()]
    faults = [(line, pages.fault(shlex.split(line))) for line in known]
    assert not [fault for fault in faults if fault[1]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the examples name: short runs, pictures, weights, arrays and results.

    Examples run in the order of the table, because some use what an earlier one wrote.
    """
    place = tmp_path_factory.mktemp("examples")
    (place / "configs").symlink_to(ROOT / "configs")
    for name in ("samples", "results"):
        shutil.copytree(ROOT / "experiments" / name, place / "experiments" / name)
    shutil.copyfile(ROOT / "README.md", place / "README.md")
    (place / "photos").mkdir()
    for source, names in (("digit3", ("cat.jpg", "both.jpg", "photos/a.png")), ("digit7", ("dog.png",))):
        with Image.open(ROOT / "experiments" / "samples" / f"{source}.png") as image:
            for name in names:
                image.save(place / name)
    model = models.create("resnet50", width=8)
    variables = models.initialize(model, jax.random.key(0), model.example())
    weights.write(place / "torchvision.safetensors", weights.to_arrays(model, variables, "torchvision"))
    rng = np.random.default_rng(0)
    arrays = {f"{split}_image": rng.integers(0, 256, (256, 32, 32, 3), np.uint8) for split in ("train", "test")}
    arrays |= {f"{split}_label": np.arange(256) % 10 for split in ("train", "test")}
    np.savez(place / "cifar10.npz", **arrays)
    trainings = [
        'configs/digits.py --config.duration="2 epochs" --workdir=runs/x',
        "configs/adaptive.py:aig,epochs=1 --workdir=runs/aig",
        "configs/adaptive.py:msdnet,epochs=1 --workdir=runs/msdnet",
    ]
    done = run("\n".join(f"python -m train --config={line}" for line in trainings), place)
    assert not done.returncode, done.stderr
    shutil.copytree(place / "runs" / "x", place / "runs" / "digits")
    return place


@pytest.mark.full
@pytest.mark.parametrize(("example", "note"), rows("run"), ids=lambda value: value if "python" in value else "")
def test_an_example_runs(example, note, place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    done = run(f"{examples.changed(example, note)} < /dev/null", place)
    assert not done.returncode, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.full
@pytest.mark.parametrize(("example", "note"), rows("parse"), ids=lambda value: value if "python" in value else "")
def test_an_example_is_read(example, note, place):
    module, *arguments = shlex.split(example)[2:]
    if module in examples.WORKERS:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        names = [word.partition("=")[0].strip("-") for word in arguments if word.startswith("--")]
        assert all(f'("{name}"' in source for name in names or [])
        assert names or f'"{json.loads(arguments[0])["case"]}": ' in source
        return
    done = read([module, *arguments], place)
    assert not done.returncode, done.stderr[-2000:]

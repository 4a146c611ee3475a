"""--dry_run: what it prints, and where its estimates come from."""

import io
import re

import jax
import rich.console

from models.analysis.cost import analyze, short
from tests import tiny
from train.recording import describe, estimate
from train.run import build_run


def said(config, **options):
    """Returns what --dry_run prints: {name: text} of the lines before the config, and all of it."""
    out = io.StringIO()
    describe.describe(config, rich.console.Console(file=out, width=200), **options)
    facts = out.getvalue().partition("\nconfig")[0]
    return dict(re.findall(r"^  (\S+) +(.*)$", facts, re.MULTILINE)), out.getvalue()


def test_what_one_wants_to_know_comes_first():
    config = tiny.config(duration="2 epochs", batch_size=64)
    facts, text = said(config)
    assert list(facts) == ["data", "training", "intervals", "parameters", "mult-adds", "memory", "time"]
    assert facts["data"].startswith(
        "1,437 training images, 360 test images of 8 x 8 x 1, 10 classes (0, 1, 2, 3, 4, …)"
    )
    assert facts["training"].startswith("45 steps of 64 images (2.004 epochs) on 1 x cpu")
    assert facts["intervals"] == "log every 4 steps, evaluate every 6 steps, checkpoint every 4 steps"
    run = build_run(config)
    cost = analyze(run.model, run.feed.inputs)
    assert facts["parameters"] == f"{cost.params:,}"
    assert (
        f"{short(cost.mult_adds)} per image, forward; {short(3 * cost.mult_adds * 64 * 45)} to train"
        in facts["mult-adds"]
    )
    total, state, temporary = map(float, re.findall(r"([\d.]+) MiB", facts["memory"]))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state)) / 2**20
    assert abs(state - held) < 0.06 and total >= state + temporary > state
    assert re.fullmatch(
        r"about \d+ s without .* [\d.]+ ms per step \(the mean of 20 dispatches, just run\)", facts["time"]
    )
    assert "stage1/block0" not in text and "--layers" in text and "\n  batch_size: 64\n" in text


def test_a_costly_step_is_not_run_and_one_that_does_not_fit_is_reported(monkeypatch):
    monkeypatch.setattr(estimate, "MOST", {"cpu": 0})
    monkeypatch.setattr(estimate, "measure", lambda run, mult_adds: 1 / 0)
    facts, text = said(tiny.config(steps_per_call=2, devices=2), layers=True)
    assert re.fullmatch(r"not measured, since a dispatch computes [\d.]+ M mult-adds per device", facts["time"])
    assert re.fullmatch(r"[\d.]+ MiB of state per device, and about [\d.]+ MiB of activations .*", facts["memory"])
    assert "stage1/block0/conv1" in text
    monkeypatch.setattr(estimate, "MOST", {"cpu": 10**12})
    monkeypatch.setattr(estimate, "measure", full)
    assert said(tiny.config())[0]["time"] == "not measured, since a step does not fit into the memory of the device"


def full(run, mult_adds):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 28 GiB")


def test_the_time_of_steps_leaves_out_what_is_compiled(monkeypatch):
    clock = iter([0.0, 7.0, 9.0])  # before, after the first dispatch, at the end
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(clock))
    run = build_run(tiny.config(duration="9 steps", steps_per_call=4))
    measured = estimate.measure(run, 1)
    # Calls of 4, 4 and 1 steps; the last is another program, and is not run
    assert (measured.first, measured.step, measured.dispatches) == (7.0, 0.5, 1)

"""Runs with optimizers that need more than gradients, or evaluate averages: devices, shards, notes."""

import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest
import rich.console
from optax.contrib import ScheduleFreeState

from tests import tiny
from tests.tiers import keep_first
from tests.train.devices.test_parallel import assert_close
from tests.train.optim.test_sam import B, Regression, W, X, Y
from train import loop, restore, step
from train.devices.fsdp import AXIS
from train.run import build_run

RATE_0 = {"optimizer__learning_rate": 0.0, "optimizer__schedule": "constant", "optimizer__warmup": "0 steps"}


def config(name, **changes):
    """Returns a config of LeNet-300-100 without batch norm, under which examples do not depend on each other."""
    fields = {"model__name": "lenet_300_100", "model__norm": "none", "optimizer__name": name}
    c = tiny.config(**{**fields, **RATE_0, **changes})
    del c.model.width
    return c


def after(name, steps=6, **changes):
    run = build_run(config(name, **changes))
    state = run.parallel.place(run.state)
    for _, items in run.feed.calls(0, steps):
        state, _ = run.train_call(state, run.feed.data, items)
    return run.parallel.fetch(state)


@pytest.mark.parametrize("name", keep_first(1, ["momo", "muon", "schedule_free_adamw"]))
def test_the_number_of_devices_and_of_parts_does_not_matter(name):
    """Covers the loss that momo gets, which is a mean over devices and parts."""
    one = after(name)
    assert_close(after(name, devices=4).params, one.params, 1e-4)
    assert_close(after(name, accumulate=2).params, one.params, 1e-4)


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (4, 1), (2, 2)])
def test_products_of_the_hessian_are_means_over_devices_and_parts(devices, accumulate):
    """Compares with the exact Hessian of a regression; a frozen bias is lacking in the vector and in the product."""
    state = SimpleNamespace(
        rng=jax.random.key_data(jax.random.key(0)), step=0, params={"w": jnp.float32(W), "b": jnp.float32(B)},
        model_state={"mean": jnp.zeros(())}, task_state={},
    )  # fmt: skip
    vector = {"w": jnp.float32(np.sin(W)), "b": jnp.float32(np.cos(B))}

    def on_device(batch):
        product = step.hessian_product(
            state, batch, task=Regression(), prepare=lambda key, batch, first: batch, accumulate=accumulate
        )
        return product(vector), product({**vector, "b": optax.MaskedNode()})

    batch = {"x": jnp.float32(X).reshape(devices, -1, 3), "y": jnp.float32(Y).reshape(devices, -1, 2)}
    whole, part = jax.tree.map(lambda a: np.asarray(a[0]), jax.vmap(on_device, axis_name=AXIS)(batch))
    moved = X @ np.sin(W) + np.cos(B)  # how the outputs move along the vector
    np.testing.assert_allclose(whole["w"], 2 * X.T @ moved / len(X), rtol=1e-5)
    np.testing.assert_allclose(whole["b"], 2 * moved.mean(0), rtol=1e-5)
    np.testing.assert_allclose(part["w"], 2 * X.T @ (X @ np.sin(W)) / len(X), rtol=1e-5)
    assert isinstance(part["b"], optax.MaskedNode)


@pytest.mark.parametrize("name", keep_first(1, ["muon", "schedule_free_adamw", "momo", "adafactor", "galore"]))
def test_shards_do_not_matter(name):
    assert_close(after(name, devices=4, parallel="fsdp").params, after(name, devices=4).params, 1e-4)


def test_frozen_parameters_and_pruning_with_what_needs_more_than_gradients():
    frozen = {"optimizer__groups": (("head/.*", 1.0), (".*", 0.0))}
    start = build_run(config("sophia", **frozen)).state
    for name in ("sophia(update_interval=2)", "schedule_free_sgd"):
        state = after(name, **frozen)
        np.testing.assert_array_equal(state.params["hidden1"]["kernel"], start.params["hidden1"]["kernel"])
        assert not np.array_equal(state.params["head"]["kernel"], start.params["head"]["kernel"])
    np.testing.assert_array_equal(state.ema["params"]["hidden1"]["kernel"], start.params["hidden1"]["kernel"])
    pruned = after("momo", optimizer__prune="magnitude(0.5, start='2 steps', end='4 steps', every='2 steps')")
    assert np.mean(pruned.params["hidden1"]["kernel"] == 0) > 0.2


def test_schedule_free_runs_evaluate_save_and_resume_their_averages(tmp_path):
    c, output = config("schedule_free_adamw"), io.StringIO()
    summary = loop.train(c, tmp_path / "whole", rich.console.Console(file=output))
    assert "optimizer.learning_rate=0: 0.0025, the usual one of schedule_free_adamw" in output.getvalue()
    run, state = restore.load(tmp_path / "whole")
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, ScheduleFreeState))
    [inner] = [node for node in nodes if isinstance(node, ScheduleFreeState)]
    averages = optax.contrib.schedule_free_eval_params(inner, state.params)
    assert_close(state.ema["params"], averages, 1e-5)
    assert state.evaluation_variables()["params"] is state.ema["params"]
    assert run.evaluate(run.parallel.place(state))["accuracy"] == summary["accuracy"]
    loop.train(c, tmp_path / "paused", until=6)
    loop.train(c, tmp_path / "paused")
    tiny.assert_same(restore.load(tmp_path / "paused")[1], state)


def test_a_learning_rate_far_above_the_usual_one_is_said(tmp_path):
    output = io.StringIO()
    c = config("lion", optimizer__learning_rate=0.1, duration="2 steps")
    loop.train(c, tmp_path, rich.console.Console(file=output, width=300))
    assert "warning: optimizer.learning_rate=0.1 is 1,000 times the usual one of lion, 0.0001" in output.getvalue()

"""Sharpness-aware minimization: the perturbation by hand, devices, parts and shards, statistics, frozen parameters."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.errors import UserError
from tests import tiny
from tests.train.devices.test_parallel import assert_close
from train import step
from train.devices.fsdp import AXIS
from train.optim import sam
from train.run import build_run

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)), RNG.normal(size=(8, 2))
W, B = RNG.normal(size=(3, 2)), RNG.normal(size=2)


class Regression:
    """The task of mean squares of x w + b - y, which counts its passes in the state of the model."""

    def loss(self, params, model_state, task_state, batch, key, number):
        del key, number
        residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
        loss = jnp.mean(jnp.sum(residual**2, -1))
        seen = {"mean": model_state["mean"] + jnp.mean(params["w"])}
        return loss, ({"loss": (loss * len(residual), jnp.float32(len(residual)))}, seen, task_state)


def gradient(w, b, x=X, y=Y):
    residual = x @ w + b - y
    return 2 * x.T @ residual / len(x), 2 * residual.mean(0), (residual**2).sum(-1).mean()


def expected(rho, eta=None, x=X, y=Y):
    """Returns the gradient at w + e, by equation 2 of Foret 2021; with `eta`, by equation 7 of Kwon 2021."""
    gw, gb, _ = gradient(W, B, x, y)
    scale = 1 if eta is None else np.abs(W) + eta
    norm = np.sqrt(((scale * gw) ** 2).sum() + (gb**2).sum())
    return gradient(W + rho * scale**2 * gw / norm, B + rho * gb / norm, x, y)


def computed(text, devices=1, accumulate=1):
    """Returns gradients, metrics, the state of the model, and the loss, on a number of simulated devices."""
    params = {"w": jnp.float32(W), "b": jnp.float32(B)}
    state = SimpleNamespace(
        rng=jax.random.key_data(jax.random.key(0)), step=0, params=params,
        model_state={"mean": jnp.zeros(())}, task_state={},
    )  # fmt: skip

    def on_device(batch):
        grads, rest = step.gradients(
            state, batch, task=Regression(), prepare=lambda key, batch, first: batch, accumulate=accumulate,
            sam=sam.create(text),
        )  # fmt: skip
        return grads, rest

    batch = {"x": jnp.float32(X), "y": jnp.float32(Y)}
    split = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)
    grads, (metrics, model_state, _, loss) = jax.vmap(on_device, axis_name=AXIS)(split)
    return jax.tree.map(lambda a: np.asarray(a[0]), (grads, metrics, model_state, loss))


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize(("text", "eta"), [("sam(rho=0.5)", None), ("asam(rho=0.5, eta=0.1)", 0.1)])
def test_the_perturbation_is_that_of_the_paper_on_any_devices(text, eta, devices, accumulate):
    grads, metrics, model_state, loss = computed(text, devices, accumulate)
    gw, gb, value = expected(0.5, eta)
    np.testing.assert_allclose(grads["w"], gw, rtol=1e-5)
    np.testing.assert_allclose(grads["b"], gb, rtol=1e-5)
    assert loss == pytest.approx(value, rel=1e-5)  # of the second pass, as its gradient
    assert metrics["loss"][0] / metrics["loss"][1] == pytest.approx(gradient(W, B)[2], rel=1e-5)  # of the first pass
    assert model_state["mean"] == pytest.approx(accumulate * W.mean(), rel=1e-5)  # of the first pass alone


def test_per_device_each_device_perturbs_by_its_own_examples():
    grads, *_ = computed("sam(rho=0.5, per_device=True)", devices=4)
    own = [expected(0.5, x=X[i : i + 2], y=Y[i : i + 2])[0] for i in range(0, 8, 2)]
    np.testing.assert_allclose(grads["w"], np.mean(own, 0), rtol=1e-5)
    assert not np.allclose(grads["w"], expected(0.5)[0], rtol=1e-3)


def test_frozen_parameters_are_not_perturbed():
    plan = sam.create("sam(rho=0.5)", lambda name: name != "b")
    gw, gb, _ = gradient(W, B)
    moved = plan.perturbed({"w": W, "b": B}, {"w": gw, "b": gb}, sam.squared_norm)
    np.testing.assert_array_equal(moved["b"], jnp.float32(B))
    np.testing.assert_allclose(moved["w"], W + 0.5 * gw / np.linalg.norm(gw), rtol=1e-5)


def after(steps=3, **changes):
    run = build_run(tiny.config(steps_per_call=1, **{"model__norm": "group:2", **changes}))
    state = run.parallel.place(run.state)
    for _, items in run.feed.calls(0, steps):
        state, _ = run.train_call(state, run.feed.data, items)
    return run.parallel.fetch(state)


def test_a_run_with_shards_is_that_without():
    own = functools.partial(after, optimizer__sam="sam(rho=0.2)", devices=4)
    whole = own()
    assert_close(own(parallel="fsdp").params, whole.params)
    with pytest.raises(AssertionError):
        assert_close(after(devices=4).params, whole.params)


def test_batch_norm_statistics_are_those_of_the_first_pass():
    plain, sharp = (after(1, model__norm="batch", optimizer__sam=text) for text in ("", "sam(rho=0.5)"))
    tiny.assert_same(plain.model_state, sharp.model_state)
    assert float(optax.tree.norm(optax.tree.sub(plain.params, sharp.params))) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__sam": "sam(rho=0)"}, r"rho=0 must be positive; usage: sam\(rho: float = 0.05"),
        ({"optimizer__sam": "sm"}, "unknown optimizer.sam 'sm'; did you mean 'sam'"),
        ({"optimizer__sam": "sam(radius=1)"}, "usage: sam"),
        (
            {"optimizer__sam": "sam", "optimizer__prune": "magnitude(0.5, start='2 steps', end='4 steps')"},
            "optimizer.sam=sam would move pruned weights",
        ),
        (
            {"optimizer__sam": "sam(per_device=True)", "parallel": "fsdp"},
            "with parallel=fsdp, no device has a gradient of its own",
        ),
        (
            {"optimizer__name": "sophia", "parallel": "fsdp"},
            "optimizer.name=sophia needs whole parameters for its products with the Hessian",
        ),
        (
            {"optimizer__name": "schedule_free_sgd", "ema_decay": 0.9, "optimizer__schedule": "constant"},
            "schedule_free_sgd averages in its own way; set ema_decay=0",
        ),
    ],
)
def test_combinations_without_meaning_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        build_run(tiny.config(**changes))

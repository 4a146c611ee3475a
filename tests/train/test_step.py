"""A single training step: metrics, averaging, frozen parameters, mixed precision, exact evaluation."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from models.errors import UserError
from tests import tiny
from train import evaluate, loop, step, tasks
from train.devices.fsdp import AXIS
from train.run import build_run
from train.state import initial_state


def first_step(**changes):
    run = build_run(tiny.config(steps_per_call=1, **changes))
    _, items = next(run.feed.calls(0, 1))
    state, metrics = run.train_call(run.parallel.place(run.state), run.feed.data, items)
    return run, run.parallel.fetch(state), jax.tree.map(np.asarray, metrics)


def test_metrics_of_a_step_are_sums_over_all_devices_and_parts():
    for devices, accumulate in ((1, 1), (4, 1), (1, 2)):
        _, state, metrics = first_step(devices=devices, accumulate=accumulate)
        assert int(state.step) == 1
        assert metrics["loss"][1].tolist() == metrics["accuracy"][1].tolist() == [32.0]
        assert 0 <= metrics["accuracy"][0][0] <= 32
        assert metrics["gradient_norm"][0][0] > 0


def test_learning_rate_is_that_of_the_schedule():
    _, _, metrics = first_step(
        optimizer__schedule="constant", optimizer__warmup="0 steps", optimizer__learning_rate=0.25
    )
    assert metrics["learning_rate"][0][0] == 0.25


def test_averaged_weights():
    run, state, _ = first_step(ema_decay=0.75, ema_warmup=False)
    before = jax.tree.map(np.asarray, {"params": run.state.params, "model_state": run.state.model_state})
    after = {"params": state.params, "model_state": state.model_state}
    jax.tree.map(
        lambda e, b, a: np.testing.assert_allclose(e, 0.75 * b + 0.25 * a, rtol=1e-5, atol=1e-6),
        state.ema,
        before,
        after,
    )
    np.testing.assert_array_equal(
        state.evaluation_variables()["params"]["head"]["kernel"], state.ema["params"]["head"]["kernel"]
    )


def test_frozen_parameters_stay():
    run, state, _ = first_step(optimizer__groups=(("head/.*", 1.0), (".*", 0.0)))
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(run.state.params), jax.tree.leaves(state.params), strict=True
    ):
        changed = not np.array_equal(old, new)
        assert changed == (path[0].key == "head"), path


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    run, state, metrics = first_step(precision="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.model_state, state.opt_state))} <= {
        np.dtype("float32"),
        np.dtype("int32"),
    }
    text = str(jax.make_jaxpr(lambda v, x: run.task.model.apply(v, x))(run.state.variables(), jnp.zeros((1, 8, 8, 1))))
    convolutions = [line for line in text.splitlines() if " conv_dense[" in line or " product[" in line]
    assert len(convolutions) >= 8 and all("bf16" in line for line in convolutions)
    _, _, exact = first_step()
    assert metrics["loss"][0][0] == pytest.approx(exact["loss"][0][0], rel=0.02)


class Constant:
    """A model whose logits are the image itself: [N, 1, 1, classes] -> [N, classes]."""

    def apply(self, variables, images, train=False, **kwargs):
        logits = images[:, 0, 0, :] + variables["params"]["shift"]
        return (logits, {}) if train else logits


def classify(label_smoothing=0.0, classes=7):
    section = ml_collections.ConfigDict({"name": "classify", "label_smoothing": label_smoothing})
    return tasks.create(section, Constant(), classes)


def test_evaluation_is_exact_on_uneven_batches():
    """Evaluates five examples in batches of three, the last one padded; every number is computed by hand."""
    task, log2 = classify(), float(np.log(2))
    logits = np.full((6, 1, 1, 7), -100.0, np.float32)
    for row, best in enumerate([0, 1, 1, 2, 3]):
        logits[row, 0, 0, best] = 0.0
    logits[4, 0, 0, 4] = 0.0  # a tie: counted as wrong, and its loss is log 2
    logits[5, 0, 0, 0] = 0.0  # padding that would count as correct
    labels, mask = np.array([0, 1, 0, 2, 4, 0]), np.array([1, 1, 1, 1, 1, 0], np.float32)
    total = None
    for rows in (slice(0, 3), slice(3, 6)):
        batch = {"image": logits[rows], "label": labels[rows], "mask": mask[rows]}
        batch = jax.tree.map(jnp.asarray, batch)
        total = evaluate.add(total, task.evaluate({"params": {"shift": 0.0}}, {}, batch))
    results = evaluate.ratios(total)
    assert total["accuracy"][1] == 5
    assert results["accuracy"] == pytest.approx(3 / 5)
    assert results["top5"] == pytest.approx(4 / 5)  # the third example's class is one of six at -100
    assert results["loss"] == pytest.approx((100 + log2) / 5, rel=1e-6)
    assert results["accuracy_by_class"][:5] == pytest.approx([1 / 2, 1, 1, None, 0])


def test_top5_is_left_out_where_it_is_always_right():
    for classes, measured in ((5, False), (6, True)):
        batch = {"image": jnp.zeros((1, 1, 1, classes)), "label": jnp.zeros(1, int), "mask": jnp.ones(1)}
        assert ("top5" in classify(classes=classes).evaluate({"params": {"shift": 0.0}}, {}, batch)) is measured


def test_nan_logits_are_never_correct():
    batch = {"image": jnp.full((1, 1, 1, 7), jnp.nan), "label": jnp.zeros(1, int), "mask": jnp.ones(1)}
    metrics = classify().evaluate({"params": {"shift": 0.0}}, {}, batch)
    assert metrics["accuracy"][0] == metrics["top5"][0] == 0


def test_loss_with_smoothing_and_soft_targets():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 1, 1, 7)), jnp.float32)
    labels = jnp.asarray([0, 3, 6, 2])
    log_p = jax.nn.log_softmax(images[:, 0, 0])
    batch = {"image": images, "label": labels, "mask": jnp.ones(4)}
    arguments = ({"shift": 0.0}, {}, {}, batch, jax.random.key(0), 0)
    smooth = 0.9 * jax.nn.one_hot(labels, 7) + 0.1 / 7
    assert classify(0.1).loss(*arguments)[0] == pytest.approx(float(-(smooth * log_p).sum(-1).mean()), rel=1e-5)
    soft = 0.3 * jax.nn.one_hot(labels, 7) + 0.7 * jax.nn.one_hot(labels[::-1], 7)
    batch["target"] = soft
    assert classify().loss(*arguments)[0] == pytest.approx(float(-(soft * log_p).sum(-1).mean()), rel=1e-5)
    with pytest.raises(UserError, match="label_smoothing=1.5"):
        classify(1.5)


def test_an_evaluation_that_misses_examples_fails():
    with pytest.raises(AssertionError, match="counted 4 examples of 5"):
        evaluate.evaluate(lambda state, data, items: {"loss": (0.0, 4.0)}, None, [None], lambda: 5)


def test_one_dispatch_of_several_steps_equals_single_steps():
    """Allows a few ulps: exact arithmetic would be equal, but XLA may fuse the loop's body differently."""
    run = build_run(tiny.config(steps_per_call=4))
    single = build_run(tiny.config(steps_per_call=1))
    states = []
    for each in (run, single):
        state, counts = each.parallel.place(each.state), []
        for count, items in each.feed.calls(0, 6):
            state, metrics = each.train_call(state, each.feed.data, items)
            assert metrics["loss"][0].shape == (count,)
            counts.append(count)
        states.append((counts, each.parallel.fetch(state)))
    assert states[0][0] == [4, 2] and states[1][0] == [1] * 6
    assert optax.tree.norm(states[0][1].params) == pytest.approx(float(optax.tree.norm(states[1][1].params)), rel=1e-5)


def test_counters_of_a_task_stay_integers():
    class Counting(tasks.TASKS["classify"]):
        def init(self, key, image_shape):
            return super().init(key, image_shape)[0], {"batches": jnp.zeros((), jnp.int32)}

        def loss(self, params, model_state, task_state, batch, key, step):
            loss, (metrics, model_state, _) = super().loss(params, model_state, {}, batch, key, step)
            return loss, (metrics, model_state, {"batches": task_state["batches"] + 1})

    tasks.TASKS["counting"] = Counting
    try:
        run = build_run(tiny.config(task__name="counting", devices=4, accumulate=2))
        _, items = next(run.feed.calls(0, 2))
        state, _ = run.train_call(run.parallel.place(run.state), run.feed.data, items)
    finally:
        del tasks.TASKS["counting"]
    count = run.parallel.fetch(state).task_state["batches"]
    assert count.dtype == np.int32 and count == 4  # two steps with two parts each


class Draws:
    """A task with two metrics: a number drawn from its key, and the positions of its examples in the global batch."""

    def loss(self, params, model_state, task_state, batch, key, step):
        metrics = {"drawn": (jax.random.uniform(key), jnp.ones(())), "first": (batch["first"].sum(), jnp.ones(()))}
        return params["w"], (metrics, model_state, task_state)


def test_each_part_of_each_device_has_its_own_key_and_each_device_its_place():
    """Tests two devices with four examples each, in two parts."""
    rng, number = jax.random.key(5), 3
    state = SimpleNamespace(
        rng=jax.random.key_data(rng), step=number, params={"w": jnp.ones(())}, model_state={}, task_state={}
    )

    def on_device(images):
        def prepare(key, batch, first):
            return {**batch, "first": jnp.full(4, first)}

        return step.gradients(state, {"image": images}, task=Draws(), prepare=prepare, accumulate=2)[1][0]

    metrics = jax.vmap(on_device, axis_name=AXIS)(jnp.zeros((2, 4)))
    model_key = jax.random.split(jax.random.fold_in(rng, number))[1]
    keys = [jax.random.fold_in(jax.random.fold_in(model_key, device), part) for device in (0, 1) for part in (0, 1)]
    np.testing.assert_allclose(metrics["drawn"][0], sum(map(jax.random.uniform, keys)), rtol=1e-6)
    assert metrics["first"][0].tolist() == [16, 16] and metrics["drawn"][1].tolist() == [4, 4]


# -- averages of weights ---------------------------------------------------------------------------------------------


def averaged(decay, warmup, steps=30):
    """Returns the average of 1, 2, 3, ... after each step, starting from 0."""
    tx = optax.sgd(1.0)
    state = initial_state({"params": {"w": jnp.zeros(())}, "counted": {"n": jnp.zeros((), jnp.int32)}}, {}, tx, 0, True)
    update = jax.jit(
        functools.partial(
            step.update, optimizer=tx, learning_rate=lambda _: jnp.float32(1), ema_decay=decay, ema_warmup=warmup
        )
    )
    averages = []
    for t in range(1, steps + 1):
        state, _ = update(state, {"w": jnp.float32(-1)}, {}, {"counted": {"n": jnp.int32(t)}}, {})
        assert int(state.ema["model_state"]["counted"]["n"]) == t
        averages.append(float(state.ema["params"]["w"]))
    return averages


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("warmup", [False, True])
def test_the_decay_of_averages_warms_up(decay, warmup):
    expected, average = [], 0.0
    for t in range(1, 31):
        now = min(decay, (1 + t) / (10 + t)) if warmup else decay
        average = now * average + (1 - now) * t
        expected.append(average)
    np.testing.assert_allclose(averaged(decay, warmup), expected, rtol=1e-5)
    if decay == 0.9999:  # after 30 steps: near the last weights, or near the start
        assert (expected[-1] > 20) == warmup and (expected[-1] < 0.1) != warmup


@pytest.mark.parametrize("warmup", [None, False])
def test_a_short_run_evaluates_what_it_learned(tmp_path, warmup):
    config = tiny.config(duration="100 steps", ema_decay=0.9999, evaluate_every="0 steps", steps_per_call=10)
    if warmup is not None:
        config.ema_warmup = warmup
    accuracy = loop.train(config, tmp_path)["accuracy"]
    assert accuracy > 0.8 if warmup is None else accuracy < 0.5

"""Optimizers: schedules, decay masks, learning rates by group, freezing, clipping."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.errors import UserError
from train.optim import build as optimizer
from train.optim import schedules
from train.setup import config as config_lib

PARAMS = {"stem": {"kernel": jnp.full((2,), 2.0), "bias": jnp.full((1,), 3.0)}, "head": {"kernel": jnp.full((2,), 4.0)}}
TO_STEPS = functools.partial(config_lib.steps, batch_size=10, examples=100, total=100)


def section(**changes):
    defaults = dict(
        name="sgd(momentum=0.0)",
        learning_rate=0.1,
        schedule="constant",
        warmup="0 steps",
        warmup_from=0.0,
        weight_decay=0.0,
        decay=".*",
        clip_norm=0.0,
        groups=((".*", 1.0),),
        l1=0.0,
        prune="",
        share="",
        multiplied="update",
        adaptive_clip=0.0,
        sam="",
    )
    return config_lib.Reader({**defaults, **changes})


def updates(grad=1.0, **changes):
    tx, _ = optimizer.create(section(**changes), PARAMS, TO_STEPS, 100)
    grads = jax.tree.map(lambda x: jnp.full_like(x, grad), PARAMS)
    tree, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    names = optimizer.parameter_names(PARAMS)
    return {name: float(x[0]) for name, x in zip(names, jax.tree.leaves(tree), strict=True)}


def test_decay_only_where_the_expression_matches():
    changes = updates(grad=0.0, weight_decay=0.5, decay=".*/kernel")
    assert changes == pytest.approx({"stem/kernel": -0.1, "stem/bias": 0.0, "head/kernel": -0.2})


def test_l1_pulls_by_the_sign_where_the_expression_matches():
    changes = updates(grad=0.0, l1=0.5, decay=".*/kernel")
    assert changes == pytest.approx({"stem/kernel": -0.05, "stem/bias": 0.0, "head/kernel": -0.05})
    with pytest.raises(UserError, match="optimizer.l1=-1.0 must be at least 0"):
        updates(l1=-1.0)


def test_groups_multiply_and_freeze():
    changes = updates(groups=(("head/.*", 1.0), ("stem/bias", 0.0), (".*", 0.5)))
    assert changes == pytest.approx({"stem/kernel": -0.05, "stem/bias": 0.0, "head/kernel": -0.1})
    tx, _ = optimizer.create(section(name="adamw", groups=(("stem/.*", 0.0), (".*", 1.0))), PARAMS, TO_STEPS, 100)
    sizes = [leaf.size for leaf in jax.tree.leaves(tx.init(PARAMS))]
    assert sum(size for size in sizes if size > 1) == 4  # Adam's two moments of the head alone


def test_clipping_counts_trained_parameters_only():
    assert updates(clip_norm=1.0)["head/kernel"] == pytest.approx(-0.1 / math.sqrt(5))
    head_only = updates(clip_norm=1.0, groups=(("stem/.*", 0), (".*", 1.0)))
    assert head_only["head/kernel"] == pytest.approx(-0.1 / math.sqrt(2))


def test_every_parameter_is_covered_and_every_expression_used():
    with pytest.raises(UserError, match="no group matches the parameter 'stem/"):
        updates(groups=(("head/.*", 1.0),))
    with pytest.raises(UserError, match="'foot/.*' matches no parameter that earlier groups leave"):
        updates(groups=(("foot/.*", 1.0), (".*", 1.0)))
    with pytest.raises(UserError, match="matches no parameter"):
        updates(weight_decay=1.0, decay="weights")
    with pytest.raises(UserError, match="is not a regular expression"):
        updates(decay="(")


def rates(steps, **changes):
    schedule = schedules.create(section(learning_rate=1.0, **changes), TO_STEPS, 100)
    return [round(float(schedule(jnp.asarray(step))), 6) for step in steps]


def test_schedules():
    assert rates([0, 99]) == [1, 1]
    assert rates([49, 50, 74, 75], schedule="step(0.1, '50%', '75 steps')") == [1, 0.1, 0.1, 0.01]
    assert rates([0, 50, 100], schedule="cosine") == [1, 0.5, 0]
    assert rates([0, 50, 100], schedule="cosine(final=0.1)") == [1, 0.55, 0.1]
    assert rates([0, 25, 100], schedule="linear") == [1, 0.75, 0]
    # The warm-up reaches 1 in its last step; the rest of the schedule begins there.
    assert rates([0, 4, 9, 10, 55], schedule="cosine", warmup="1 epoch") == [0.1, 0.5, 1, 1, 0.5]
    assert rates([0, 9], warmup="10 steps", warmup_from=0.5) == [0.55, 1]
    assert rates([0, 3, 15], schedule="inverse_sqrt", warmup="4 steps") == [0.25, 1, 0.5]
    assert rates([0, 11.5, 23, 61.5, 100], schedule="triangle(0.2, '23%', 0.07)") == [0.2, 0.6, 1, 0.535, 0.07]
    with pytest.raises(UserError, match="this schedule has its own warm-up"):
        rates([0], schedule="triangle(0.2, '23%', 0.07)", warmup="1 epoch")
    with pytest.raises(UserError, match="unknown optimizer.schedule 'cosin'; did you mean 'cosine'"):
        rates([0], schedule="cosin")


def all_rates(schedule, count=100, **changes):
    factor = schedules.create(section(learning_rate=1.0, schedule=schedule, **changes), TO_STEPS, count)
    return [float(factor(step)) for step in range(count)]


def test_cyclic_rates_are_those_of_smith():
    """Follows the formula of Smith 2017, section 3.2, with base 0.1 and maximum 1."""
    for decay in (1.0, 0.5):
        expected = []
        for step in range(100):
            cycle = math.floor(1 + step / 14)
            x = abs(step / 7 - 2 * cycle + 1)
            expected.append(0.1 + 0.9 * max(0, 1 - x) * decay ** (cycle - 1))
        np.testing.assert_allclose(all_rates(f"cyclic('7 steps', decay={decay})"), expected, rtol=1e-5)
    with pytest.raises(UserError, match="half must be at least a step"):
        all_rates("cyclic('7 steps', low=2)")
    for text in ("cyclic('7 steps')", "one_cycle"):
        with pytest.raises(UserError, match="its own warm-up"):
            all_rates(text, warmup="1 epoch")


def test_one_cycle_is_that_of_optax():
    reference = optax.cosine_onecycle_schedule(100, 1.0, pct_start=0.3, div_factor=25.0, final_div_factor=1e4)
    np.testing.assert_allclose(all_rates("one_cycle"), [reference(step) for step in range(100)], rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="peak='100%' is not within the training"):
        all_rates("one_cycle('100%')")


def test_restarts_are_those_of_sgdr():
    """Follows PyTorch's CosineAnnealingWarmRestarts, step by step: equation 5 of Loshchilov 2017."""
    for longer in (1, 2):
        expected, current, length = [], 0, 10
        for _ in range(100):
            expected.append(0.1 + 0.9 * (1 + math.cos(math.pi * current / length)) / 2)
            current += 1
            if current == length:
                current, length = 0, length * longer
        rates = all_rates(f"restarts('10 steps', longer={longer}, final=0.1)")
        np.testing.assert_allclose(rates, expected, rtol=1e-5)
    warm = all_rates("restarts('10 steps')", warmup="5 steps")
    np.testing.assert_allclose(warm[5:], all_rates("restarts('10 steps')")[:95], rtol=1e-5)
    with pytest.raises(UserError, match="longer must be|longer at least 1"):
        all_rates("restarts('10 steps', longer=0.5)")


def test_adaptive_clipping_by_hand():
    """Checks Brock 2021, equation 3, unit by unit: |g| is at most 0.1 max(|w|, 1e-3), except in the head."""
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)), "bias": np.zeros(4)},
        "dense": {"kernel": rng.normal(size=(5, 6))},
        "exit1": {"head": {"kernel": rng.normal(size=(6, 3))}},
    }
    params = jax.tree.map(jnp.float32, params)
    grads = jax.tree.map(lambda w: 0.3 * jnp.cos(5 * w), params)
    tx, _ = optimizer.create(section(adaptive_clip=0.1, learning_rate=1.0), params, TO_STEPS, 100)
    moves, _ = tx.update(grads, tx.init(params), params)
    assert not np.allclose(moves["conv"]["kernel"], -grads["conv"]["kernel"])
    for name, axes in (("conv", (0, 1, 2)), ("dense", (0,))):
        g, w = (np.asarray(tree[name]["kernel"], np.float64) for tree in (grads, params))
        norms, most = np.linalg.norm(g.reshape(-1, g.shape[-1]), axis=0), np.sqrt((w**2).sum(axes))
        expected = g * np.minimum(1, 0.1 * np.maximum(most, 1e-3) / norms)
        np.testing.assert_allclose(moves[name]["kernel"], -expected, rtol=1e-5)
    norm = np.linalg.norm(grads["conv"]["bias"])
    np.testing.assert_allclose(moves["conv"]["bias"], -grads["conv"]["bias"] * 1e-4 / norm, rtol=1e-5)
    np.testing.assert_array_equal(moves["exit1"]["head"]["kernel"], -grads["exit1"]["head"]["kernel"])
    with pytest.raises(UserError, match="optimizer.adaptive_clip=-1.0 must be at least 0"):
        updates(adaptive_clip=-1.0)


def test_schedule_free_refuses_what_would_move_its_weights_apart():
    with pytest.raises(UserError, match="optimizer.schedule=cosine: schedule_free_sgd averages"):
        updates(name="schedule_free_sgd", schedule="cosine")
    with pytest.raises(UserError, match="schedule_free_sgd supports multipliers 0 and 1"):
        updates(name="schedule_free_sgd", groups=(("head/.*", 1.0), (".*", 0.5)))
    frozen = updates(name="schedule_free_sgd", groups=(("head/.*", 1.0), (".*", 0.0)), learning_rate=1.0)
    assert frozen["stem/kernel"] == 0 and frozen["head/kernel"] != 0


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd(momentum=0.9, nesterov=True)", optax.sgd(0.1, 0.9, nesterov=True)),
        ("adam(b2=0.99)", optax.adam(0.1, b2=0.99)),
        ("adamw", optax.adamw(0.1, weight_decay=0.0)),
        ("lars", optax.lars(0.1)),
        ("lamb", optax.lamb(0.1)),
    ],
)
def test_optimizers_equal_optax(name, reference):
    tx, _ = optimizer.create(section(name=name), PARAMS, TO_STEPS, 100)
    ours, theirs = PARAMS, PARAMS
    state, reference_state = tx.init(PARAMS), reference.init(PARAMS)
    for step in range(3):
        grads = jax.tree.map(lambda x: jnp.cos(x + step), PARAMS)
        update, state = tx.update(grads, state, ours)
        ours = optax.apply_updates(ours, update)
        update, reference_state = reference.update(grads, reference_state, theirs)
        theirs = optax.apply_updates(theirs, update)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_pytorch_sgd_by_hand():
    """Checks three steps of torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.5) on w=2 with gradient 1, by hand."""
    tx, _ = optimizer.create(section(name="sgd(momentum=0.9)", weight_decay=0.5), PARAMS, TO_STEPS, 100)
    w, state, velocity, expected = PARAMS, tx.init(PARAMS), 0.0, 2.0
    for _ in range(3):
        update, state = tx.update(jax.tree.map(jnp.ones_like, w), state, w)
        w = optax.apply_updates(w, update)
        velocity = 0.9 * velocity + (1 + 0.5 * expected)
        expected -= 0.1 * velocity
    assert float(w["stem"]["kernel"][0]) == pytest.approx(expected)


def test_a_multiplier_of_the_gradient_leaves_the_decay():
    """Checks two steps of torch.optim.SGD(lr=0.1 k, momentum=0.5, nesterov=True, weight_decay=0.2 / k), by hand."""
    tx, _ = optimizer.create(
        section(
            name="sgd(momentum=0.5, nesterov=True)",
            weight_decay=0.2,
            multiplied="gradient",
            groups=((".*/bias", 64.0), ("head/.*", 0.0), (".*", 1.0)),
        ),
        PARAMS,
        TO_STEPS,
        100,
    )
    w, state = PARAMS, tx.init(PARAMS)
    expected = {"kernel": [2.0, 0.0, 1.0], "bias": [3.0, 0.0, 64.0]}  # weight, velocity, multiplier k
    for step in range(2):
        update, state = tx.update(jax.tree.map(lambda x: jnp.full_like(x, step + 1.0), w), state, w)
        w = optax.apply_updates(w, update)
        for entry in expected.values():
            weight, velocity, k = entry
            gradient = step + 1 + 0.2 / k * weight
            velocity = 0.5 * velocity + gradient
            entry[:2] = weight - 0.1 * k * (gradient + 0.5 * velocity), velocity
    for name, (weight, _, _) in expected.items():
        np.testing.assert_allclose(w["stem"][name], weight, rtol=1e-5)
    np.testing.assert_array_equal(w["head"]["kernel"], PARAMS["head"]["kernel"])
    with pytest.raises(UserError, match="multiplied=gradient is for sgd; adam normalizes gradients"):
        updates(name="adam", multiplied="gradient")
    with pytest.raises(UserError, match="unknown optimizer.multiplied 'gradients'; did you mean 'gradient'"):
        updates(multiplied="gradients")


def test_a_group_trains_from_and_until_its_times():
    tx, _ = optimizer.create(
        section(groups=(("stem/bias", 1.0, "1 steps", "3 steps"), (".*", 1.0))), PARAMS, TO_STEPS, 100
    )
    state, moved = tx.init(PARAMS), []
    for _ in range(4):
        update, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
        moved.append((float(update["stem"]["bias"][0]) != 0, float(update["head"]["kernel"][0]) != 0))
    assert moved == [(False, True), (True, True), (True, True), (False, True)]
    with pytest.raises(UserError, match="a group ends before it starts"):
        updates(groups=((".*", 1.0, "3 steps", "3 steps"),))

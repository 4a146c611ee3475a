"""Pruning: exact masks, the schedule in the optimizer's state, and runs that resume with the same masks."""

import io
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

from models.compress import prune as functions
from models.errors import UserError
from tests import tiny
from train import loop, pretrained, prune
from train.optimizer import parameter_names

RNG = np.random.default_rng(0)


def arrays(*shapes):
    return {f"layer{i}/kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)}


# -- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("by", ["global", "layer"])
def test_exactly_as_many_stay_and_they_are_the_highest(share, by):
    found = functions.scores("magnitude", arrays((3, 3, 4, 8), (10, 7)), {}, {})
    masks = jax.jit(lambda s: functions.keep(found, s, by))(share)
    groups = [list(found)] if by == "global" else [[name] for name in found]
    for group in groups:
        score = np.concatenate([np.ravel(found[name]) for name in group])
        mask = np.concatenate([np.ravel(masks[name]) for name in group])
        count = round((1 - share) * score.size)
        assert mask.sum() == count
        np.testing.assert_array_equal(np.sort(score[mask]), np.sort(score)[score.size - count:])


def test_of_equal_scores_the_first_stay():
    masks = functions.keep({"a": jnp.ones((2, 3)), "b": jnp.ones(4)}, 0.5)
    assert masks["a"].tolist() == [[True] * 3, [True, True, False]] and masks["b"].tolist() == [False] * 4
    assert functions.keep({"a": jnp.ones((1, 4))}, 0.5, "layer")["a"].tolist() == [[True, True, False, False]]


def test_what_was_lost_stays_lost():
    score = {"a": jnp.arange(8.0)}
    before = {"a": jnp.arange(8) < 5}
    assert functions.keep(score, 0.5, before=before)["a"].tolist() == [False, True, True, True, True, *[False] * 3]
    assert functions.keep(score, 0.0, before=before)["a"].sum() == 5


def test_filters_go_whole():
    found = functions.scores("magnitude", arrays((3, 3, 4, 8), (10, 7)), {}, {})
    masks = functions.keep(found, 0.4, structure="filters", by="layer")
    for name, mask in masks.items():
        whole = np.asarray(mask).reshape(-1, mask.shape[-1])
        assert (whole.all(0) | (~whole).all(0)).all()
        wanted = np.argsort(-np.asarray(found[name]).reshape(whole.shape).sum(0))[: round(0.6 * mask.shape[-1])]
        assert set(np.flatnonzero(whole.all(0))) == set(wanted)


def test_two_of_four_neighbours_along_the_inputs():
    found = functions.scores("magnitude", arrays((3, 3, 8, 5), (12, 7)), {}, {})
    for name, mask in functions.keep(found, 0.0, structure="2:4").items():
        score = np.moveaxis(np.asarray(found[name]), -2, -1)
        blocks = np.moveaxis(np.asarray(mask), -2, -1).reshape(-1, 4)
        assert (blocks.sum(1) == 2).all()
        score = score.reshape(-1, 4)
        assert (np.where(blocks, score, np.inf).min(1) >= np.where(blocks, -np.inf, score).max(1)).all()
    with pytest.raises(UserError, match="the 6 inputs of a cannot be dealt out in fours"):
        functions.keep({"a": jnp.ones((6, 2))}, 0.0, structure="2:4")


def test_scores_by_hand():
    weights, slopes = {"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([-3.0, 0.5])}
    assert functions.scores("magnitude", weights, slopes, {})["a"].tolist() == [1, 2]
    assert functions.scores("snip", weights, slopes, {})["a"].tolist() == [3, 1]
    assert functions.scores("movement", weights, slopes, {"a": jnp.array([5.0, -1.0])})["a"].tolist() == [5, -1]
    drawn = functions.scores("random", {"a": jnp.zeros(1000), "b": jnp.zeros(1000)}, {}, {})
    assert 0.4 < drawn["a"].mean() < 0.6 and (drawn["a"] != drawn["b"]).any()


def test_the_cubic_schedule_is_the_papers():
    n, steps = 5, np.arange(6)
    ours = functions.cubic(steps / n, 0.1, 0.9)
    np.testing.assert_allclose(ours, 0.9 + (0.1 - 0.9) * (1 - steps / n) ** 3, rtol=1e-6)


def test_sparsity_counts_zeros():
    masks = {"a": np.array([True, False]), "b": np.array([[False, False]])}
    assert functions.sparsity(masks) == {"a": 0.5, "b": 1.0, "all": 0.75}


# -- the wrapper ---------------------------------------------------------------------------------------------------


def steps(text):
    return round(float(text.removesuffix("%")) / 5) if text.endswith("%") else round(float(text.split()[0]))


def run_wrapper(text, count=20, tx=None):
    """Masks after each of `count` updates of two layers and a bias of constant gradient, and the parameters."""
    params = {"a": {"kernel": jnp.asarray(RNG.normal(size=(4, 5)).astype(np.float32))},
              "b": {"kernel": jnp.asarray(RNG.normal(size=(8, 5)).astype(np.float32)), "bias": jnp.ones(5)}}
    gradient = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)
    tx = prune.wrap(tx or optax.sgd(0.1, 0.9), prune.plan(text, steps, count), parameter_names)
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(count):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append({name: np.asarray(mask) for name, mask in state.masks.items()})
    return found, params


@pytest.mark.parametrize("score", functions.SCORES)
@pytest.mark.parametrize("tx", [None, optax.adamw(0.1, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_masks_come_on_schedule_and_weights_stay_0(score, tx):
    found, params = run_wrapper(f"{score}(0.8, start='4 steps', end='12 steps', every='4 steps')", tx=tx)
    shares = [1 - sum(mask.sum() for mask in masks.values()) / 60 for masks in found]
    events = [0] * 4 + [1] * 4 + [2] * 8
    wanted = [0.0] * 4 + [0.8 * (1 - (1 - (event + 1) / 3) ** 3) for event in events]
    np.testing.assert_allclose(shares, wanted, atol=0.5 / 60 + 1e-6)
    assert set(found[0]) == {"a/kernel", "b/kernel"}  # no bias
    for before, after in itertools.pairwise(found):
        assert all((after[name] <= before[name]).all() for name in after)
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        np.testing.assert_array_equal(kernel == 0, ~found[-1][f"{name}/kernel"])


def test_what_stays_is_moved_by_the_optimizer_alone():
    _, whole = run_wrapper("magnitude(0.0)")
    params = {"a": jnp.arange(1.0, 9.0)}
    tx = prune.wrap(optax.adam(0.1), prune.plan("magnitude(0.5, what='.*')", steps, 10), parameter_names)
    plain = optax.adam(0.1)
    state, plain_state, ours, theirs = tx.init(params), plain.init(params), params, params
    for _ in range(5):
        updates, state = tx.update({"a": jnp.ones(8)}, state, ours)
        wanted, plain_state = plain.update({"a": jnp.ones(8)}, plain_state, theirs)
        ours, theirs = optax.apply_updates(ours, updates), optax.apply_updates(theirs, wanted)
    np.testing.assert_array_equal(ours["a"][4:], theirs["a"][4:])
    assert (ours["a"][:4] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))


@pytest.mark.parametrize(("text", "message"), [
    ("magnitud(0.5)", "unknown pruning 'magnitud'; did you mean 'magnitude'"),
    ("magnitude(1.0)", r"sparsity=1.0 must be in \[0, 1\)"),
    ("magnitude(0.5, start='30 steps')", "it goes from step 30 to step 30; that has to be within 20 steps"),
    ("magnitude(0.5, start='9 steps', end='3 steps')", "it goes from step 9 to step 3"),
    ("magnitude(0.5, what='(')", r"what='\(' is no regular expression"),
    ("magnitude(0.5, structure='rows')", "unknown pruning structure 'rows'"),
    ("magnitude(0.5, by='all')", "unknown pruning by 'all'"),
    ("magnitude(0.5, what='none')", "what='none' matches no parameter, e.g. a/kernel"),
])
def test_a_plan_that_cannot_be_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        run_wrapper(text)


# -- runs ----------------------------------------------------------------------------------------------------------

PRUNE = "magnitude(0.9, start='2 steps', end='8 steps', every='2 steps')"


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
def test_a_run_prunes_and_goes_on_with_its_masks(tmp_path, parallel):
    config = tiny.config(optimizer__prune=PRUNE, hooks="sparsity", parallel=parallel, steps_per_call=1)
    whole = loop.train(config, tmp_path / "whole")
    assert whole["sparsity"] == pytest.approx(0.9, abs=1e-3) and whole["sparsity_by_layer"]["head/kernel"] < 1
    found = pretrained.load(tmp_path / "whole").arrays
    kernels = np.concatenate([leaf.ravel() for name, leaf in found.items() if name.endswith("kernel")])
    assert (kernels == 0).mean() == pytest.approx(whole["sparsity"])
    loop.train(config, tmp_path / "cut")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step), ignore_errors=True)
    (tmp_path / "cut" / "summary.json").unlink()
    output = io.StringIO()
    again = loop.train(config, tmp_path / "cut", rich.console.Console(file=output))
    assert again["loss"] == whole["loss"] and again["sparsity"] == whole["sparsity"]


def test_a_pruned_run_is_a_start_like_any_other(tmp_path):
    loop.train(tiny.config(optimizer__prune=PRUNE, duration="10 steps"), tmp_path / "first")
    again = loop.setup(tiny.config(init_from=str(tmp_path / "first")))
    assert (again.state.params["stage3"]["block0"]["conv1"]["kernel"] == 0).mean() > 0.5


@pytest.mark.parametrize(("changes", "message"), [
    ({"optimizer__prune": PRUNE, "ema_decay": 0.9}, "ema_decay=0.9: averages of weights that optimizer.prune cuts"),
    ({"hooks": "sparsity"}, "hooks: sparsity is for runs with optimizer.prune"),
])
def test_what_does_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        loop.setup(tiny.config(**changes))

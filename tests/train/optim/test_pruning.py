"""Pruning: exact masks, the schedule in the optimizer's state, and runs that resume with the same masks."""

import io
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

from models.compress import prune as functions
from models.compress import shrink
from models.errors import UserError
from tests import tiny
from tests.tiers import keep_first
from train import loop, restore
from train.optim import pruning
from train.optim.parameters import parameter_names
from train.run import build_run
from train.setup import pretrained

RNG = np.random.default_rng(0)


def arrays(*shapes):
    return {f"layer{i}/kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32) for i, shape in enumerate(shapes)}


# -- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("by", ["global", "layer"])
def test_exactly_the_required_number_of_highest_scores_is_kept(share, by):
    scores = functions.scores("magnitude", arrays((3, 3, 4, 8), (10, 7)), {}, {})
    masks = jax.jit(lambda s: functions.keep(scores, s, by))(share)
    groups = [list(scores)] if by == "global" else [[name] for name in scores]
    for group in groups:
        score = np.concatenate([np.ravel(scores[name]) for name in group])
        mask = np.concatenate([np.ravel(masks[name]) for name in group])
        count = round((1 - share) * score.size)
        assert mask.sum() == count
        np.testing.assert_array_equal(np.sort(score[mask]), np.sort(score)[score.size - count :])


def test_the_first_of_equal_scores_are_kept():
    masks = functions.keep({"a": jnp.ones((2, 3)), "b": jnp.ones(4)}, 0.5)
    assert masks["a"].tolist() == [[True] * 3, [True, True, False]] and masks["b"].tolist() == [False] * 4
    assert functions.keep({"a": jnp.ones((1, 4))}, 0.5, "layer")["a"].tolist() == [[True, True, False, False]]


def test_pruned_weights_stay_pruned():
    score = {"a": jnp.arange(8.0)}
    before = {"a": jnp.arange(8) < 5}
    assert functions.keep(score, 0.5, before=before)["a"].tolist() == [False, True, True, True, True, *[False] * 3]
    assert functions.keep(score, 0.0, before=before)["a"].sum() == 5


def test_filters_are_pruned_as_a_whole():
    scores = functions.scores("magnitude", arrays((3, 3, 4, 8), (10, 7)), {}, {})
    masks = functions.keep(scores, 0.4, structure="filters", by="layer")
    for name, mask in masks.items():
        whole = np.asarray(mask).reshape(-1, mask.shape[-1])
        assert (whole.all(0) | (~whole).all(0)).all()
        expected = np.argsort(-np.asarray(scores[name]).reshape(whole.shape).sum(0))[: round(0.6 * mask.shape[-1])]
        assert set(np.flatnonzero(whole.all(0))) == set(expected)


def units(masks):
    return {name: np.asarray(mask).reshape(-1, mask.shape[-1])[0] for name, mask in masks.items()}


def test_each_layer_keeps_its_best_filter_and_the_count_is_exact():
    scores = {"a": jnp.arange(12.0).reshape(2, 6), "b": 100 + jnp.arange(8.0).reshape(2, 4), "c": jnp.ones((2, 2))}
    masks = units(jax.jit(lambda s: functions.keep(scores, s, structure="filters"))(0.75))
    assert masks["a"].tolist() == [False] * 5 + [True] and masks["b"].tolist() == [False] * 3 + [True]
    assert masks["c"].tolist() == [True, False]  # round(12 / 4) in all: the best of each; the first of equal ones
    masks = units(functions.keep(scores, 0.5, structure="filters"))
    assert [masks[name].sum() for name in "abc"] == [1, 4, 1]
    for by in ("global", "layer"):
        assert [mask.sum() for mask in units(functions.keep(scores, 0.99, by, "filters")).values()] == [1, 1, 1]
    before = functions.keep(scores, 0.75, structure="filters")
    again = units(functions.keep({**scores, "a": -scores["a"]}, 0.75, structure="filters", before=before))
    # Its best weight is pruned already: the remaining mask stays
    np.testing.assert_array_equal(again["a"], units(before)["a"])


def test_std_is_a_threshold_in_proportion_to_the_deviation():
    """Checks Han 2015, section 3: |w| > q std(w) for each layer, with one q."""
    weights = {name: (10.0**i) * kernel for i, (name, kernel) in enumerate(arrays((30, 20), (3, 3, 5, 8)).items())}
    masks = functions.keep(functions.scores("magnitude", weights, {}, {}), 0.7, "std", weights=weights)
    ratios = {name: np.abs(kernel) / np.std(kernel) for name, kernel in weights.items()}
    survivors = np.concatenate([np.ravel(ratios[name])[np.ravel(masks[name])] for name in masks])
    lost = np.concatenate([np.ravel(ratios[name])[~np.ravel(masks[name])] for name in masks])
    assert survivors.size == round(0.3 * 960) and survivors.min() >= lost.max()
    # Global magnitude would prune the whole first layer
    assert all(0.15 < np.mean(mask) < 0.45 for mask in masks.values())
    # In a layer that has lost weights, the deviation is that of the others.
    before = {name: mask | (np.arange(mask.size).reshape(mask.shape) % 2 == 0) for name, mask in masks.items()}
    cut = {name: jnp.where(before[name], kernel, 0) for name, kernel in weights.items()}
    again = functions.keep(functions.scores("magnitude", cut, {}, {}), 0.8, "std", before=before, weights=cut)
    ratios = {name: np.abs(cut[name]) / np.std(np.asarray(cut[name])[np.asarray(before[name])]) for name in cut}
    bound = min(ratios[name][np.asarray(again[name])].min() for name in cut)
    assert all((ratios[name][np.asarray(before[name] & ~again[name])] <= bound).all() for name in cut)


def test_each_layer_may_have_its_own_share():
    scores = functions.scores("magnitude", arrays((10, 10), (4, 5)), {}, {})
    masks = functions.keep(scores, {"layer0/kernel": 0.9, "layer1/kernel": 0.25}, "layer")
    assert [mask.sum() for mask in masks.values()] == [10, 15]


# -- allocation ----------------------------------------------------------------------------------------------------

CURVES = {
    "a": {"sparsity": [0.0, 0.5, 1.0], "accuracy": [0.9, 0.8, 0.4]},
    "b": {"sparsity": [0.5, 1.0], "accuracy": [0.9, 0.5]},
}


def test_allocation_by_hand():
    """Checks two drops by hand.

    Drop of a: 0.2 s up to s = 0.5, then 0.8 s - 0.3; of b: 0 up to 0.5, then 0.8 s - 0.4.
    """
    sizes = {"a": 100, "b": 300}
    eps = (0.5 - 0.375) / (0.25 * 5 + 0.75 * 1.25)  # a on its first line, at 0.1 or less
    assert functions.allocate(CURVES, 0.9, sizes, 0.5) == pytest.approx({"a": 5 * eps, "b": 0.5 + 1.25 * eps})
    eps = (0.6 - 0.25 * 0.375 - 0.375) / 1.25  # a on its second line
    expected = {"a": 0.375 + 1.25 * eps, "b": 0.5 + 1.25 * eps}
    assert functions.allocate(CURVES, 0.9, sizes, 0.6) == pytest.approx(expected)
    assert functions.allocate(CURVES, 0.9, sizes, 1.0) == pytest.approx({"a": 1.0, "b": 1.0})


def test_the_total_is_exact_even_where_drops_jump():
    free = {"a": {"sparsity": [0.4, 0.8], "accuracy": [0.95, 0.9]}, "b": {"sparsity": [0.2, 0.4], "accuracy": [1, 1]}}
    shares = functions.allocate(free, 0.9, {"a": 10, "b": 10}, 0.3)  # no sparsity costs any accuracy
    assert shares == pytest.approx({"a": 0.4, "b": 0.2})  # half of the free 0.8 and 0.4
    step = {"a": {"sparsity": [0.2, 0.8], "accuracy": [0.8, 0.8]}, "b": {"sparsity": [0.5], "accuracy": [0.0]}}
    shares = functions.allocate(step, 0.9, {"a": 10, "b": 10}, 0.3)  # a at a drop of 0.1: between 0.2 and 0.8
    assert shares["b"] == pytest.approx(0.5 * 0.1 / 0.9) and shares["a"] + shares["b"] == pytest.approx(0.6)


def test_drops_are_made_monotone():
    bumpy = {"a": {"sparsity": [0.0, 0.2, 0.4, 0.8], "accuracy": [0.9, 0.7, 0.88, 0.5]}}
    assert functions.allocate(bumpy, 0.9, {"a": 5}, 0.3)["a"] == pytest.approx(0.3)
    level = {**bumpy, "b": {"sparsity": [1.0], "accuracy": [0.7]}}  # b only has a drop of 0.2 at the end
    shares = functions.allocate(level, 0.9, {"a": 10, "b": 10}, 0.6)
    assert shares["b"] == pytest.approx(1.0, abs=1e-6) and shares["a"] == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_allocations_are_the_smallest_drop_that_gives_the_total(seed):
    rng = np.random.default_rng(seed)
    curves = {name: {"sparsity": np.sort(rng.uniform(0, 1, 6)), "accuracy": rng.uniform(0, 0.9, 6)} for name in "abcd"}
    sizes = {name: int(rng.integers(10, 1000)) for name in "abcd"}

    def drop(name, share):
        x, y = (np.r_[start, curves[name][key]] for start, key in ((0, "sparsity"), (0.9, "accuracy")))
        return np.interp(share, x, np.maximum.accumulate(0.9 - y))

    shares = functions.allocate(curves, 0.9, sizes, 0.3)
    total = sum(sizes.values())
    assert sum(sizes[name] * share for name, share in shares.items()) / total == pytest.approx(0.3)
    eps = max(drop(name, share) for name, share in shares.items())
    grid = np.linspace(0, 1, 2001)
    less = (
        {
            name: max(s for s in grid if s <= curves[name]["sparsity"][-1] and drop(name, s) <= eps - 1e-3)
            for name in "abcd"
        }
        if eps > 1e-3
        else dict.fromkeys("abcd", 0)
    )
    assert sum(sizes[name] * share for name, share in less.items()) / total < 0.3


@pytest.mark.parametrize(
    ("curves", "sparsity", "message"),
    [
        ({"a": CURVES["a"]}, 0.5, "the measured sensitivity lacks b"),
        (
            {**CURVES, "b": {"sparsity": [0.1, 0.3], "accuracy": [0.9, 0.9]}},
            0.9,
            "0.9 cannot be reached: .* up to 0.475",
        ),
        ({**CURVES, "b": {"sparsity": [0.3, 0.1], "accuracy": [0.9, 0.9]}}, 0.5, "b: must have one accuracy"),
        ({**CURVES, "b": {"sparsity": [0.3]}}, 0.5, "sensitivity of b: must have one accuracy"),
        ({**CURVES, "b": [0.3]}, 0.5, "sensitivity of b: must have one accuracy"),
        ({**CURVES, "b": {"sparsity": [0.3], "accuracy": [None]}}, 0.5, "sensitivity of b: must have one accuracy"),
    ],
)
def test_impossible_curves_are_refused(curves, sparsity, message):
    with pytest.raises(UserError, match=message):
        functions.allocate(curves, 0.9, {"a": 100, "b": 300}, sparsity)


def test_two_of_four_neighbors_along_the_inputs():
    scores = functions.scores("magnitude", arrays((3, 3, 8, 5), (12, 7)), {}, {})
    for name, mask in functions.keep(scores, 0.0, structure="2:4").items():
        score = np.moveaxis(np.asarray(scores[name]), -2, -1)
        blocks = np.moveaxis(np.asarray(mask), -2, -1).reshape(-1, 4)
        assert (blocks.sum(1) == 2).all()
        score = score.reshape(-1, 4)
        assert (np.where(blocks, score, np.inf).min(1) >= np.where(blocks, -np.inf, score).max(1)).all()
    with pytest.raises(UserError, match="the 6 inputs of a are not divisible by 4"):
        functions.keep({"a": jnp.ones((6, 2))}, 0.0, structure="2:4")


def test_scores_by_hand():
    weights, slopes = {"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([-3.0, 0.5])}
    assert functions.scores("magnitude", weights, slopes, {})["a"].tolist() == [1, 2]
    assert functions.scores("snip", weights, slopes, {})["a"].tolist() == [3, 1]
    assert functions.scores("movement", weights, slopes, {"a": jnp.array([5.0, -1.0])})["a"].tolist() == [5, -1]
    drawn = functions.scores("random", {"a": jnp.zeros(1000), "b": jnp.zeros(1000)}, {}, {})
    assert 0.4 < drawn["a"].mean() < 0.6 and (drawn["a"] != drawn["b"]).any()


def test_the_cubic_schedule_is_that_of_the_paper():
    n, steps = 5, np.arange(6)
    ours = functions.cubic(steps / n, 0.1, 0.9)
    np.testing.assert_allclose(ours, 0.9 + (0.1 - 0.9) * (1 - steps / n) ** 3, rtol=1e-6)


def test_a_linear_schedule_goes_by_equal_steps():
    masks_by_step, _ = run_wrapper("magnitude(0.8, start='4 steps', end='12 steps', every='4 steps', schedule=linear)")
    shares = [1 - sum(mask.sum() for mask in masks.values()) / 60 for masks in masks_by_step]
    np.testing.assert_allclose(shares, [0.0] * 4 + [0.8 / 3] * 4 + [1.6 / 3] * 4 + [0.8] * 8, atol=0.5 / 60 + 1e-6)


def test_sparsity_counts_zeros():
    masks = {"a": np.array([True, False]), "b": np.array([[False, False]])}
    assert functions.sparsity(masks) == {"a": 0.5, "b": 1.0, "all": 0.75}


# -- the wrapper ---------------------------------------------------------------------------------------------------


def steps(text):
    return round(float(text.removesuffix("%")) / 5) if text.endswith("%") else round(float(text.split()[0]))


def run_wrapper(text, count=20, tx=None):
    """Returns the masks after each of `count` updates and the final parameters.

    Two layers and a bias have constant gradients.
    """
    params = {
        "a": {"kernel": jnp.asarray(RNG.normal(size=(4, 5)).astype(np.float32))},
        "b": {"kernel": jnp.asarray(RNG.normal(size=(8, 5)).astype(np.float32)), "bias": jnp.ones(5)},
    }
    gradient = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)
    tx = pruning.wrap(tx or optax.sgd(0.1, 0.9), pruning.plan(text, steps, count))
    state, masks_by_step = tx.init(params), []
    update = jax.jit(tx.update)
    for _ in range(count):
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        masks_by_step.append({name: np.asarray(mask) for name, mask in state.masks.items()})
    return masks_by_step, params


@pytest.mark.parametrize("score", functions.SCORES)
@pytest.mark.parametrize("tx", [None, optax.adamw(0.1, weight_decay=0.1)], ids=["sgd", "adamw"])
def test_masks_come_on_schedule_and_weights_stay_0(score, tx):
    masks_by_step, params = run_wrapper(f"{score}(0.8, start='4 steps', end='12 steps', every='4 steps')", tx=tx)
    shares = [1 - sum(mask.sum() for mask in masks.values()) / 60 for masks in masks_by_step]
    events = [0] * 4 + [1] * 4 + [2] * 8
    expected = [0.0] * 4 + [0.8 * (1 - (1 - (event + 1) / 3) ** 3) for event in events]
    np.testing.assert_allclose(shares, expected, atol=0.5 / 60 + 1e-6)
    assert set(masks_by_step[0]) == {"a/kernel", "b/kernel"}  # no bias
    for before, after in itertools.pairwise(masks_by_step):
        assert all((after[name] <= before[name]).all() for name in after)
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        np.testing.assert_array_equal(kernel == 0, ~masks_by_step[-1][f"{name}/kernel"])


def test_remaining_weights_are_only_moved_by_the_optimizer():
    _, whole = run_wrapper("magnitude(0.0)")
    params = {"a": jnp.arange(1.0, 9.0)}
    tx = pruning.wrap(optax.adam(0.1), pruning.plan("magnitude(0.5, what='.*')", steps, 10))
    plain = optax.adam(0.1)
    state, plain_state, ours, theirs = tx.init(params), plain.init(params), params, params
    for _ in range(5):
        updates, state = tx.update({"a": jnp.ones(8)}, state, ours)
        plain_updates, plain_state = plain.update({"a": jnp.ones(8)}, plain_state, theirs)
        ours, theirs = optax.apply_updates(ours, updates), optax.apply_updates(theirs, plain_updates)
    np.testing.assert_array_equal(ours["a"][4:], theirs["a"][4:])
    assert (ours["a"][:4] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magnitud(0.5)", "unknown optimizer.prune 'magnitud'; did you mean 'magnitude'"),
        ("magnitude(1.0)", r"sparsity=1.0 must be in \[0, 1\)"),
        ("magnitude(0.5, start='30 steps')", "it starts at step 30 and ends at step 30; both must be within 20 steps"),
        ("magnitude(0.5, start='9 steps', end='3 steps')", "it starts at step 9 and ends at step 3"),
        ("magnitude(0.5, schedule=square)", "unknown schedule 'square'"),
        ("magnitude(0.5, what='(')", r"what='\(' is not a regular expression"),
        ("magnitude(0.5, structure='rows')", "unknown pruning structure 'rows'"),
        ("magnitude(0.5, by='all')", "unknown value of by 'all'"),
        ("magnitude(by='a.json', structure='2:4')", "by='a.json': structure 2:4 takes no sparsity"),
        ("magnitude(0.5, what='none')", "what='none' matches no parameter; one is named a/kernel"),
    ],
)
def test_impossible_plans_are_one_line(text, message):
    with pytest.raises(UserError, match=message):
        run_wrapper(text)


# -- runs ----------------------------------------------------------------------------------------------------------

PRUNE = "magnitude(0.9, start='2 steps', end='8 steps', every='2 steps')"


@pytest.mark.parametrize("parallel", keep_first(1, ["pmap", "shard_map"]))
def test_a_run_prunes_and_resumes_with_its_masks(tmp_path, parallel):
    config = tiny.config(optimizer__prune=PRUNE, hooks="sparsity", parallel=parallel, steps_per_call=1)
    whole = loop.train(config, tmp_path / "whole")
    assert whole["sparsity"] == pytest.approx(0.9, abs=1e-3) and whole["sparsity_by_layer"]["head/kernel"] < 1
    arrays = pretrained.load(tmp_path / "whole").arrays
    kernels = np.concatenate([leaf.ravel() for name, leaf in arrays.items() if name.endswith("kernel")])
    assert (kernels == 0).mean() == pytest.approx(whole["sparsity"])
    loop.train(config, tmp_path / "cut")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step), ignore_errors=True)
    (tmp_path / "cut" / "summary.json").unlink()
    output = io.StringIO()
    again = loop.train(config, tmp_path / "cut", rich.console.Console(file=output))
    assert again["loss"] == whole["loss"] and again["sparsity"] == whole["sparsity"]


@pytest.mark.full
def test_a_pruned_run_initializes_another_like_any_other(tmp_path):
    loop.train(tiny.config(optimizer__prune=PRUNE, duration="10 steps"), tmp_path / "first")
    again = build_run(tiny.config(init_from=str(tmp_path / "first")))
    assert (again.state.params["stage3"]["block0"]["conv1"]["kernel"] == 0).mean() > 0.5


FILTERS = r"magnitude(0.6, start='2 steps', end='6 steps', every='2 steps', structure='filters', what='{}')"
INNER = "stage[0-9]+/block[0-9]+/conv1/kernel"


def test_a_network_without_filters_equals_its_smaller_one_after_any_step():
    """Compares networks as trained, without setting anything to zero."""
    run = build_run(tiny.config(optimizer__prune=FILTERS.format(INNER), optimizer__name="adamw", steps_per_call=1))
    state, sizes = run.parallel.place(run.state), []
    for done, (_, items) in enumerate(run.feed.calls(0, run.total), 1):
        state, _ = run.train_call(state, run.feed.data, items)
        if done not in (3, 7, 9):
            continue
        final_state = run.parallel.fetch(state)
        variables, masks = final_state.evaluation_variables(), pruning.masks_of(final_state.opt_state)
        model, fewer = shrink.shrink(run.task.model, variables, masks, run.feed.inputs)
        images = jnp.asarray(RNG.normal(size=(4, *run.feed.inputs[1:])), jnp.float32)
        expected, ours = run.task.model.apply(variables, images), model.apply(fewer, images)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(fewer["params"])))
    assert sizes[0] > sizes[1] == sizes[2]
    units_left = {name: int(mask.sum()) for name, mask in units(masks).items()}
    filters = {name: mask.size for name, mask in units(masks).items()}
    assert filters == dict(zip(sorted(filters), (4, 8, 16), strict=True)) and min(units_left.values()) >= 1
    assert sum(units_left.values()) == round(0.4 * 28)


@pytest.mark.parametrize(
    ("what", "bad"),
    [
        (
            ".*/kernel",
            r"filters of head cannot be removed: they are the outputs .* network \(nor can those of 4 more layers\)",
        ),
        (".*/conv2/kernel", r"filters of stage1/block0/conv2 cannot be removed: add got .* \(nor can those of 2 more"),
        (
            "stem_conv/kernel",
            "filters of stem_conv cannot be removed: without them the network computes something else",
        ),
        (f"{INNER}|stage1/block0/norm1/scale", "stage1/block0/norm1/scale is not the kernel of a layer"),
    ],
)
def test_filters_that_cannot_be_removed_are_refused_before_training(what, bad):
    with pytest.raises(UserError, match=f"optimizer.prune: {bad}") as error:
        build_run(tiny.config(optimizer__prune=FILTERS.format(what)))
    hint = re.search("; what='(.*)' can be pruned", str(error.value))[1]
    assert hint == INNER and "\n" not in str(error.value)


def test_sensitivity_from_a_file_decides_what_goes_where(tmp_path):
    path = tmp_path / "sensitivity.json"
    curve = {"sparsity": [0.0, 0.5, 1.0], "accuracy": [0.9, 0.9, 0.1]}
    layers = {"stage3/block0/conv2/kernel": {"sparsity": [0.0, 0.5, 1.0], "accuracy": [0.9, 0.1, 0.0]}}
    model = build_run(tiny.config()).state.params
    sizes = {
        name: leaf.size
        for name, leaf in zip(parameter_names(model), jax.tree.leaves(model), strict=True)
        if name.endswith("/kernel")
    }
    path.write_text(json.dumps({"layers": {name: layers.get(name, curve) for name in sizes}, "whole": 0.9}))
    text = f"magnitude(0.5, start='2 steps', end='8 steps', every='2 steps', by='{path}')"
    whole = loop.train(tiny.config(optimizer__prune=text, hooks="sparsity"), tmp_path / "run")
    expected = functions.allocate({name: layers.get(name, curve) for name in sizes}, 0.9, sizes, 0.5)
    assert whole["sparsity"] == pytest.approx(0.5, abs=1e-3)
    for name, size in sizes.items():
        assert whole["sparsity_by_layer"][name] == pytest.approx(expected[name], abs=1 / size)
    assert expected["stage3/block0/conv2/kernel"] < 0.3 < 0.5 < expected["head/kernel"]
    path.write_text(json.dumps({"layers": {"head/kernel": curve}, "whole": 0.9}))
    with pytest.raises(UserError, match="the measured sensitivity lacks stage1/block0/conv1/kernel, .* and others"):
        build_run(tiny.config(optimizer__prune=text))
    path.write_text('{"layers": {}}')
    with pytest.raises(UserError, match="by='.*' is not a file of the hook sensitivity"):
        build_run(tiny.config(optimizer__prune=text))
    path.unlink()
    with pytest.raises(UserError, match="is not a file of the hook sensitivity: .* cannot be read: No such file"):
        build_run(tiny.config(optimizer__prune=text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__prune": PRUNE, "ema_decay": 0.9}, "ema_decay=0.9: averaged weights would be neither pruned"),
        ({"hooks": "sparsity"}, "hooks: sparsity is for runs with optimizer.prune"),
    ],
)
def test_incompatible_options_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_run(tiny.config(**changes))


@pytest.mark.full
def test_sensitivity_of_each_layer_is_that_of_the_network_without_its_smallest_weights(tmp_path):
    config = tiny.config(hooks="sensitivity(200)", duration="30 steps")
    loop.train(config, tmp_path / "run")
    sensitivity = json.loads((tmp_path / "run" / "sensitivity.json").read_text())
    assert (tmp_path / "run" / "sensitivity.png").stat().st_size > 1000
    run, state = restore.load(tmp_path / "run")
    assert set(sensitivity["layers"]) == {name for name in parameter_names(state.params) if name.endswith("kernel")}
    curve = sensitivity["layers"]["stem_conv/kernel"]
    assert curve["accuracy"][0] == sensitivity["whole"] > 0.2
    share = curve["sparsity"][8]
    kernel = state.params["stem_conv"]["kernel"].copy()
    kernel.ravel()[np.argsort(np.abs(kernel).ravel(), kind="stable")[: round(share * kernel.size)]] = 0
    state.params["stem_conv"]["kernel"] = kernel
    batch = run.feed.examples(200)
    logits = run.task.predict(state.variables(), batch)
    assert curve["accuracy"][8] == pytest.approx(float((logits.argmax(1) == batch["label"]).mean()), abs=1e-6)
    with pytest.raises(UserError, match="images=0 must be 1 or more"):
        build_run(tiny.config(hooks="sensitivity(0)"))


def test_the_file_that_pruning_goes_by_belongs_to_the_run(tmp_path):
    loop.train(tiny.config(hooks="sensitivity(100)", duration="4 steps"), tmp_path / "whole")
    path = tmp_path / "whole" / "sensitivity.json"
    config = tiny.config(optimizer__prune=f"magnitude(0.5, by='{path}')", duration="8 steps")
    loop.train(config, tmp_path / "run")
    path.write_text(path.read_text().replace("0.99", "0.98"))
    with pytest.raises(UserError, match="file of optimizer.prune"):
        loop.train(config, tmp_path / "run")
    path.unlink()
    assert pruning.masks_of(restore.load(tmp_path / "run")[1].opt_state)  # exporting does not require the file

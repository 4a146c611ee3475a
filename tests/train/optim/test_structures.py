"""Pruning of blocks and of two in four: masks, runs that resume with them, what is refused, and what is exported."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import train
from models.compress import prune as functions
from models.compress import skip, two_four
from models.errors import UserError
from models.kernels import native
from tests import tiny
from train import loop, restore
from train.export import write
from train.run import build_run

RNG = np.random.default_rng(0)
BLOCKS = "magnitude(0.75, start='2 steps', end='8 steps', every='2 steps', by=layer, structure=blocks)"
TWO_FOUR = "magnitude(start='2 steps', structure='2:4')"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("by", ["global", "layer"])
def test_blocks_are_pruned_as_a_whole_by_their_sums(share, by):
    weights = {"a": jnp.asarray(RNG.normal(size=(3, 3, 16, 32))), "b": jnp.asarray(RNG.normal(size=(16, 48)))}
    scores = functions.scores("magnitude", weights, {}, {})
    masks = jax.jit(lambda s: functions.keep(scores, s, by, "blocks"))(share)
    sums, kept = {}, {}
    for name, mask in masks.items():
        blocks = np.asarray(mask).reshape(-1, 16)
        assert (blocks.all(1) | ~blocks.any(1)).all()
        sums[name], kept[name] = np.asarray(scores[name]).reshape(-1, 16).sum(1), blocks[:, 0]
        assert kept[name][sums[name].argmax()]  # the best of each array
    for group in [["a", "b"]] if by == "global" else [["a"], ["b"]]:
        score, mask = (np.concatenate([values[name] for name in group]) for values in (sums, kept))
        assert mask.sum() == max(round((1 - share) * mask.size), len(group))
        if 0 < share < 1:
            assert score[mask].min() >= score[~mask].max()
    again = functions.keep(scores, 0.9, by, "blocks", before=masks)
    assert all((np.asarray(again[name]) <= np.asarray(masks[name])).all() for name in masks)


def _config(prune, **changes):
    return tiny.config(optimizer__prune=prune, model__width=16, hooks="sparsity", steps_per_call=1, **changes)


@pytest.mark.parametrize(("prune", "sparsity"), [(BLOCKS, 0.75), (TWO_FOUR, 0.5)])
def test_runs_resume_with_their_masks_and_keep_other_layers_dense(tmp_path, prune, sparsity):
    whole = loop.train(_config(prune), tmp_path / "whole")
    assert whole["sparsity"] == pytest.approx(sparsity, abs=1e-3)
    by_layer = whole["sparsity_by_layer"]
    dense = {name for name, share in by_layer.items() if share == 0}
    assert dense == ({"stem_conv/kernel", "head/kernel"} if prune == BLOCKS else {"stem_conv/kernel"})
    loop.train(_config(prune), tmp_path / "cut")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step), ignore_errors=True)
    (tmp_path / "cut" / "summary.json").unlink()
    assert loop.train(_config(prune), tmp_path / "cut")["loss"] == whole["loss"]
    first, second = (restore.load(tmp_path / name)[1] for name in ("whole", "cut"))
    tiny.assert_same(first.params, second.params)


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        (
            "magnitude(0.5, structure=blocks, what='.*/conv1/kernel|head/kernel')",
            "optimizer.prune: structure blocks: the 10 outputs of head/kernel are not divisible by 16; "
            r"what='(.*)' can be pruned; dense: head/kernel",
        ),
        (
            "magnitude(structure='2:4', what='stem_conv/kernel')",
            "optimizer.prune: structure 2:4: the 1 inputs of stem_conv/kernel are not divisible by 4; "
            r"what='(.*)' can be pruned; dense: stem_conv/kernel",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_in_one_line(prune, message):
    with pytest.raises(UserError, match=message) as error:
        build_run(_config(prune))
    assert "\n" not in str(error.value)


def test_a_network_without_blocks_is_refused_in_one_line():
    with pytest.raises(UserError, match="structure blocks: the 10 outputs of head/kernel are not .*; dense: head/ker"):
        build_run(tiny.config(optimizer__prune="magnitude(structure=blocks)", model__width=2))


@pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
def test_a_run_is_opened_by_its_nonzero_blocks(tmp_path, monkeypatch):
    loop.train(_config(BLOCKS), tmp_path / "run")
    opened, original = [], skip.opened
    monkeypatch.setattr(skip, "opened", lambda *args: opened.append(original(*args)) or opened[-1])
    network = train.load(tmp_path / "run")
    images, _ = network.data()
    logits = network.logits(images[:5])
    assert opened[-1].skipping == pytest.approx(dict.fromkeys(opened[-1].skipping, 0.75), abs=0.01)
    assert len(opened[-1].skipping) == 6  # every convolution after the first
    expected = network.model.apply(network.variables, network.preprocess(images[:5]))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_two_of_four_are_exported_packed(tmp_path):
    loop.train(_config(TWO_FOUR), tmp_path / "run")
    run, state = restore.load(tmp_path / "run")
    out = tmp_path / "out"
    card = write.of_run(run, state, "semi_structured", out, images=20)
    arrays = traverse_util.flatten_dict(state.params, sep="/")
    assert card["packed"] == {"stage3/block0/conv2/kernel": [3, 3, 64, 64]}  # others have too few inputs or outputs
    assert card["verified"]["largest_difference"] == 0
    of_run, of_file = train.load(tmp_path / "run"), train.load(out)
    kernel = of_file.variables["params"]["stage3"]["block0"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, two_four.half(arrays["stage3/block0/conv2/kernel"]))
    images, _ = of_run.data()
    expected = of_run.logits(images[:5])
    np.testing.assert_allclose(of_file.logits(images[:5]), expected, rtol=0, atol=5e-3 * np.abs(expected).max())
    assert "SparseSemiStructuredTensorCUTLASS" in json.loads((out / "card.json").read_text())["usage"]


def test_networks_that_are_not_two_of_four_are_refused(tmp_path):
    loop.train(_config(BLOCKS), tmp_path / "run")
    run, state = restore.load(tmp_path / "run")
    with pytest.raises(UserError, match="format semi_structured needs kernels with two zeros in each four inputs"):
        write.of_run(run, state, "semi_structured", tmp_path / "out", images=20)
    assert not (tmp_path / "out").exists()

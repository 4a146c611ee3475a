"""The same step on one device and on four, by pmap and by shard_map, whole and in accumulated parts."""

import types

import jax
import numpy as np
import pytest

from models.errors import UserError
from tests import tiny
from tests.tiers import keep_first
from train.devices.parallel import Parallel, by_slice
from train.run import build_run


def trained(**changes):
    """Returns the run, and its state after 6 steps.

    Without batch norm, a batch means the same on any number of devices.
    """
    run = build_run(tiny.config(**{"model__norm": "group:2", "data__augment": "crop(1)|mixup(0.5)", **changes}))
    state = run.parallel.place(run.state)
    for _, items in run.feed.calls(0, 6):
        state, _ = run.train_call(state, run.feed.data, items)
    return run, state


def test_devices_of_one_slice_are_neighbors():
    devices = [types.SimpleNamespace(id=number, slice_index=number % 2) for number in range(6)]
    assert [device.id for device in by_slice(devices)] == [0, 2, 4, 1, 3, 5]
    assert by_slice(jax.devices()) == jax.devices()


def parameters(**changes):
    run, state = trained(**changes)
    return run.parallel.fetch(state).params


@pytest.fixture(scope="module")
def reference():
    return parameters()


def assert_close(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()), err_msg=str(path))


def test_pmap_and_shard_map_agree_to_the_bit(reference):
    tiny.assert_same(parameters(parallel="shard_map"), reference)


@pytest.mark.parametrize("kind", keep_first(1, ["pmap", "shard_map"]))
def test_four_devices_give_the_same_as_one(reference, kind):
    assert_close(parameters(devices=4, parallel=kind), reference)


@pytest.mark.parametrize("kind", keep_first(1, ["pmap", "fsdp", "shard_map"]))
def test_repeats_and_resolutions_are_the_same_on_four_devices(kind):
    changes = {"data__repeats": 3, "data__resolutions": "6@0%|8@3 steps", "model__stage_sizes": (1,)}
    # Resizing adds up rounding errors, which differ by processor
    assert_close(parameters(**changes, devices=4, parallel=kind), parameters(**changes), 2e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(reference):
    assert_close(parameters(accumulate=4), reference)


def test_synchronized_batch_norm_on_four_devices_is_batch_norm_on_one():
    changes = {"model__norm": "batch", "model__stage_sizes": (1,)}
    one = parameters(**changes)
    assert_close(parameters(**changes, model__sync_norm=True, devices=4), one, 1e-4)
    apart = parameters(**changes, devices=4)
    with pytest.raises(AssertionError):  # statistics of 8 images are not those of 32
        assert_close(apart, one, 1e-4)


SGD = {}
ADAMW = {"optimizer__name": "adamw", "optimizer__learning_rate": 1e-3, "ema_decay": 0.9, "accumulate": 2}
CLIPPED = {
    "optimizer__clip_norm": 0.1,
    "model__norm": "batch",
    "steps_per_call": 1,
    "optimizer__groups": (("stage1/.*", 0.0), (".*", 1.0)),
}
LARS = {"optimizer__name": "lars", "optimizer__learning_rate": 1.0, "optimizer__weight_decay": 1e-3}
PRUNED = {"optimizer__prune": "magnitude(0.5, start='2 steps', end='4 steps', every='2 steps')"}


@pytest.mark.parametrize(
    "changes", keep_first(1, [ADAMW, SGD, CLIPPED, LARS, PRUNED]), ids=["adamw", "sgd", "clipped", "lars", "pruned"]
)
def test_sharded_parameters_are_those_of_replicated_ones(changes):
    """Covers norms over all weights and thresholds over all layers; optimizer and average are sharded, too."""
    results = {}
    for kind in ("shard_map", "fsdp"):
        run, state = trained(devices=4, parallel=kind, **changes)
        results[kind] = run.parallel.fetch(state), run.evaluate(state)
    assert_close(results["fsdp"][0], results["shard_map"][0])
    assert results["fsdp"][1]["loss"] == pytest.approx(results["shard_map"][1]["loss"], rel=1e-5)
    held = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    assert set(held.values()) == {run.parallel.bytes_per_device(run.state)}
    assert max(held.values()) < 0.5 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))


VIT = {
    "model__name": "vit_tiny_patch16", "model__norm": "channel", "model__act": "gelu", "model__patch_size": 4,
    "model__depth": 6, "model__width": 48, "model__mlp_width": 192, "model__heads": 3, "batch_size": 16,
    "eval_batch_size": 40, "optimizer__name": "adamw", "optimizer__learning_rate": 1e-3,
}  # fmt: skip
EXITS = {
    "model__name": "early_exit_resnet62",
    "model__stage_sizes": (2, 1),
    "model__width": 16,
    "model__exits": (1,),
    "task__name": "multi_exit",
}


@pytest.mark.full
def test_no_device_ever_holds_all_parameters():
    """Checks, by XLA's count, that training and evaluation of a sharded network never hold all of it at once."""
    temporary, whole = {}, 0
    for kind in ("shard_map", "fsdp"):
        run = build_run(tiny.config(devices=4, parallel=kind, **{**VIT, "model__width": 96, "model__mlp_width": 384}))
        state, whole = run.parallel.place(run.state), sum(leaf.nbytes for leaf in jax.tree.leaves(run.state.params))
        programs = {
            "train": (run.train_call, run.feed.data, next(run.feed.calls(0, 4))[1]),
            "evaluate": (run.evaluation_call, {}, next(iter(run.feed.evaluation_calls()))),
        }
        for name, (call, *arguments) in programs.items():
            memory = call.lower(state, *arguments).compile().memory_analysis()
            temporary[name, kind] = memory.temp_size_in_bytes
    assert temporary["train", "shard_map"] > whole > 1.4 * temporary["train", "fsdp"]
    assert whole > 3 * temporary["evaluate", "fsdp"]


@pytest.mark.full
@pytest.mark.parametrize("changes", [VIT, EXITS], ids=["vit", "exits"])
def test_sharded_networks_of_other_kinds_are_the_replicated_ones(changes):
    results = {}
    for kind in ("shard_map", "fsdp"):
        run, state = trained(devices=4, parallel=kind, **changes)
        results[kind] = run.parallel.fetch(state).params, run.evaluate(state)["loss"]
    assert_close(results["fsdp"][0], results["shard_map"][0])
    assert results["fsdp"][1] == pytest.approx(results["shard_map"][1], rel=1e-5)


def test_bad_devices():
    with pytest.raises(UserError, match="unknown parallel 'pmapp'; did you mean 'pmap'"):
        Parallel("pmapp")
    with pytest.raises(UserError, match="devices=9: there are 4"):
        Parallel("pmap", 9)
    with pytest.raises(UserError, match="batch_size=30 must be a positive multiple of the number of devices, 4"):
        build_run(tiny.config(devices=4, batch_size=30))
    with pytest.raises(UserError, match="accumulate=5 must divide the 32 examples"):
        build_run(tiny.config(accumulate=5))

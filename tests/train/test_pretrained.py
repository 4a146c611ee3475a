"""Starting from pretrained networks, and learning rates that differ between parts of the network."""

import io
import json
import shutil

import jax
import numpy as np
import optax
import pytest
import rich.console

import models
from models import weights
from models.errors import UserError
from tests import tiny
from train import loop
from train.optim import build as optimizer
from train.run import build_run
from train.setup import pretrained


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns a run on five of the ten digits, with averaged weights."""
    folder = tmp_path_factory.mktemp("source") / "run"
    loop.train(five(duration="4 steps", ema_decay=0.5), folder)
    return folder


def five(**changes):
    return tiny.config(
        **{"data__select": "classes('0-4')", "data__select_test": "classes('0-4')", "eval_batch_size": 180, **changes}
    )


def flat(tree):
    return {
        "/".join(str(key.key) for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_everything_but_the_head_comes_from_the_evaluated_variables(source):
    run = build_run(tiny.config(init_from=str(source)))
    params, drawn = flat(run.state.params), flat(build_run(tiny.config()).state.params)
    arrays = pretrained.load(source).arrays
    averaged = build_run(five(ema_decay=0.5))
    assert averaged.state.params["head"]["kernel"].shape[1] == 5 and params["head/kernel"].shape[1] == 10
    for name, leaf in params.items():
        np.testing.assert_array_equal(leaf, drawn[name] if name.startswith("head") else arrays[name], err_msg=name)
    for name, leaf in flat(run.state.model_state["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, arrays[name], err_msg=name)


def test_averaged_weights_come_before_the_last_ones(source, tmp_path):
    from train.storage.checkpoint import Checkpoints

    saved = Checkpoints(source / "checkpoints", read_only=True)
    leaves, _ = saved.restore(max(saved.steps()))
    saved.close()
    kernel = pretrained.load(source).arrays["stem_conv/kernel"]
    np.testing.assert_array_equal(kernel, leaves["ema/params/stem_conv/kernel"])
    assert np.abs(kernel - leaves["params/stem_conv/kernel"]).max() > 0


def test_the_head_stays_where_nothing_is_new(source):
    run = build_run(five(init_from=str(source), init_new=""))
    np.testing.assert_array_equal(run.state.params["head"]["kernel"], pretrained.load(source).arrays["head/kernel"])


def test_a_file_of_imported_weights(tmp_path):
    model = models.create("resnet8", width=4, num_classes=7)
    variables = models.initialize(model, jax.random.key(3), (1, 8, 8, 1))
    path = tmp_path / "resnet8.safetensors"
    weights.save(path, model, variables, {"model": "resnet8", "fields": {"width": 4, "num_classes": 7}})
    run = build_run(tiny.config(init_from=str(path)))
    np.testing.assert_array_equal(run.state.params["stem_conv"]["kernel"], variables["params"]["stem_conv"]["kernel"])
    assert run.state.params["head"]["kernel"].shape[1] == 10


@pytest.mark.full
def test_an_interrupted_run_ends_like_an_uninterrupted_one(source, tmp_path):
    config = tiny.config(init_from=str(source), duration="8 steps")
    whole = loop.train(config, tmp_path / "whole")
    loop.train(config, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "8")
    (tmp_path / "cut" / "summary.json").unlink()
    output = io.StringIO()
    again = loop.train(config, tmp_path / "cut", rich.console.Console(file=output))
    assert "resuming from step 4 of 8" in output.getvalue() and again["loss"] == whole["loss"]
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["init_from"] == str(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__name": "resnet14"}, "a resnet8, does not fit this ResNet: - stage1/block1/.* and 25 more"),
        ({"model__width": 8}, r"! stage1/block0/norm1/mean: \(4,\), not \(8,\)"),
        ({"model__norm": "group:2"}, r"\+ stage1/block0/norm1/mean"),
        ({"init_new": ""}, "has 5 classes, but the data have 10: init_new=head initializes its head randomly"),
        ({"init_new": "tail"}, "unknown part of the network 'tail'; allowed: .*head"),
        ({"data_init": "lsuv"}, "data_init=lsuv would undo init_from"),
    ],
)
def test_what_does_not_fit_is_one_line(source, changes, message):
    with pytest.raises(UserError, match=message):
        build_run(tiny.config(init_from=str(source), **changes))


def test_missing_starts_are_reported(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model": {"name": "resnet8"}}')
    (tmp_path / "notes.txt").write_text("")
    for name, message in (
        ("none", "no such run or file"),
        ("", "is not the folder of a run"),
        ("new", "new: this run has no checkpoint yet"),
        ("notes.txt", "must be the folder of a run or of an exported network"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.load(tmp_path / name)


def test_a_damaged_checkpoint_is_reported(source, tmp_path):
    shutil.copytree(source, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").rglob("d/*"):
        path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(UserError, match=r"run: checkpoint \d+ is damaged"):
        pretrained.load(tmp_path / "run")


def test_frozen_batch_norm_keeps_its_statistics_and_normalizes_by_them(source, tmp_path):
    before = pretrained.load(source).arrays
    frozen = (("head/.*", 1.0), (".*", 0.0))
    changed = {"frozen_batch": False, "batch": True}
    for norm, moves in changed.items():
        loop.train(
            tiny.config(init_from=str(source), duration="4 steps", model__norm=norm, optimizer__groups=frozen),
            tmp_path / norm,
        )
        after = pretrained.load(tmp_path / norm).arrays
        assert (np.abs(after["stem_norm/mean"] - before["stem_norm/mean"]).max() > 0) == moves
        np.testing.assert_array_equal(after["stem_conv/kernel"], before["stem_conv/kernel"])
        assert np.abs(after["head/kernel"]).max() > 0


# -- gradual unfreezing --------------------------------------------------------------------------------------------


def steps(text):
    return round(float(text.split()[0]))


def section(**changes):
    from ml_collections import ConfigDict

    return ConfigDict(
        {
            "name": "sgd(momentum=0.9)", "l1": 0.0, "prune": "", "share": "", "learning_rate": 0.1,
            "schedule": "constant", "warmup": "0 steps", "warmup_from": 0.0, "weight_decay": 0.0, "decay": ".*",
            "clip_norm": 0.0, "adaptive_clip": 0.0, "sam": "", "multiplied": "update", **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sgd(momentum=0.9)", "adamw"])
def test_a_group_moves_from_its_step_on_with_the_optimizers_own_state(name):
    params = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    groups = (("b", 0.5, "3 steps"), (".*", 1.0))
    tx, _ = optimizer.create(section(name=name, groups=groups), params, steps, 10)
    plain, _ = optimizer.create(section(name=name, groups=((".*", 1.0),)), params, steps, 10)
    state, plain_state = tx.init(params), plain.init(params)
    gradient = {"a": np.full(2, 0.3, np.float32), "b": np.full(2, -0.2, np.float32)}
    ours = params
    for step in range(5):
        updates, state = tx.update(gradient, state, params)
        plain_updates, plain_state = plain.update(gradient, plain_state, params)
        np.testing.assert_array_equal(updates["a"], plain_updates["a"])
        np.testing.assert_allclose(updates["b"], 0.5 * plain_updates["b"] if step >= 3 else np.zeros(2), rtol=1e-6)
        ours = optax.apply_updates(ours, updates)
    assert np.abs(ours["b"] - 1).max() > 0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((".*", 1.0, "10 steps"),), "a group starts training at step 10, but the training ends at step 10"),
        (((".*", 1.0, "1 steps", "2 steps", "3 steps"),), "must be tuples"),
        (((".*", 1.0, "2 steps", "2 steps"),), "a group ends before it starts"),
    ],
)
def test_impossible_starts_are_refused(groups, message):
    with pytest.raises(UserError, match=message):
        optimizer.create(section(groups=groups), {"a": np.ones(2)}, steps, 10)

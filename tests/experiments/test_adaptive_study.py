"""Tests measures of the study of adaptive inference on tiny runs, and the command that times skipping."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from experiments.bench import skipped
from experiments.studies.adaptive import measures
from experiments.studies.adaptive import study as adaptive_study
from models.layers.conditional import sizes
from tests import tiny
from train import adaptive, loop, restore

SMALL = {"width": 4, "stage_sizes": (1, 1, 2)}


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """A finished run of a network with a policy."""
    c = tiny.config(model__name="blockdrop32", task__name="policy(joint=True)", duration="30 steps")
    c.model.update({**SMALL, "policy_width": 4})
    folder = tmp_path_factory.mktemp("dropped")
    loop.train(c, folder)
    return restore.load(folder), folder


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """A finished run of a network with exits."""
    c = tiny.config(
        model__name="early_exit_resnet62", task__name="multi_exit", data__train_split="train_fit", duration="60 steps"
    )
    c.model.update({**SMALL, "exits": (1, 2), "exit_width": 8})
    folder = tmp_path_factory.mktemp("early")
    loop.train(c, folder)
    return restore.load(folder), folder


@pytest.mark.full
def test_measures_of_blocks(dropped):
    (run, state), _ = dropped
    decisions = measures.decided(run, state)
    whole, decided = decisions["rows"]
    assert whole["blocks"] == 4 and whole["way"] == "all blocks"
    used = np.asarray(decisions["used"])
    assert used.sum() == 360 and used @ np.arange(5) / 360 == pytest.approx(decided["blocks"])
    assert 1 <= decisions["paths"] <= 16 and decisions["blocks"][0] == "stage1/block0"
    counts = np.bincount(adaptive.blocks(run, state)["labels"])
    assert np.asarray(decisions["by_class"]).sum(1) @ counts / 360 == pytest.approx(decided["blocks"])


@pytest.mark.full
def test_heuristics_take_as_many_blocks(dropped, monkeypatch):
    (run, state), _ = dropped
    measured = measures.heuristics(run, state)
    assert measured["policy"] == measures.decided(run, state)["rows"][1]["accuracy"]
    seen = []
    plain = type(run.task.model).apply

    def spy(self, variables, images, *rest, keep=None, **options):
        seen.append(keep)
        return plain(self, variables, images, *rest, keep=keep, **options)

    def first_batch(predict, run, state, batches):
        batch = run.feed.prepare_evaluation(next(iter(batches)))
        return np.asarray(predict(state.evaluation_variables(), batch)), np.zeros(360), np.arange(360)

    monkeypatch.setattr(adaptive, "outputs", first_batch)
    monkeypatch.setattr(type(run.task.model), "apply", spy)
    monkeypatch.setattr(
        adaptive,
        "blocks",
        lambda run, state: {"computed": np.tile([True, False, True, True], (360, 1)), "right": np.ones(360)},
    )
    measures.heuristics(run, state)
    random, first, distributed = (np.asarray(keep) for keep in seen)
    assert (random.sum(1) == 3).all() and len(np.unique(random, axis=0)) == 4
    assert (first == [1, 1, 1, 0]).all() and (distributed.sum(1) == 3).all() and (distributed[:, [0, 3]] == 1).all()


@pytest.mark.full
def test_measures_of_exits(early):
    (run, state), _ = early
    measured = measures.leaving(run, state)
    assert len(measured["rows"]) == 3 + measures.POINTS and len(measured["by_class"]) == 10
    costs = [row["mult_adds"] for row in measured["rows"][:3]]
    assert all(costs[0] <= spent <= costs[-1] for spent in measured["by_class"])


@pytest.mark.full
def test_easy_and_hard_images(dropped, early):
    (run, state), _ = dropped
    shown, measured = adaptive.extremes(run, state, 5), adaptive.blocks(run, state)
    used = measured["computed"].sum(1)
    assert all(measured["right"][i] for kind in shown.values() for i, _ in kind)
    assert max(used[i] for i, _ in shown["easy"]) <= min(used[i] for i, _ in shown["hard"])
    (run, state), _ = early
    shown, measured = adaptive.extremes(run, state, 5), adaptive.exits(run, state, run.feed.test_batches())
    assert all(measured["right"][i, 0] for i, _ in shown["easy"])
    assert all(measured["right"][i].tolist() == [False, False, True] for i, _ in shown["hard"])
    stored = measures.extremes(run, state)["easy"][0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(stored["image"]))))
    index, caption = shown["easy"][0]
    assert (pixels == run.feed.test.example(index, None)["image"][..., 0]).all() and stored["says"] == caption


@pytest.mark.parametrize("scale", ["digits", "cifar"])
def test_policies_start_from_trained_networks(scale):
    for trial in adaptive_study.trials(scale, range(2)):
        assert (trial.start is not None) == (trial.labels["method"] in ("policy alone", "BlockDrop"))
        assert trial.config.data.train_split == adaptive_study.TRAINED[scale]


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_what_skipping_gains_is_timed_at_equal_accuracy(dropped, early):
    for _, folder in (dropped, early):
        rows = skipped.time_run(folder, (1, 4), 8, 3, 0.005)
        assert [(row["batch"], row["program"]) for row in rows] == [
            (batch, name) for batch in (1, 4) for name in ("whole", "masked", "skipping")
        ]
        assert all(row["skipping_differs_by"] < 1e-4 and row["milliseconds"] > 0 for row in rows)
        whole, masked, skipping = rows[:3]
        assert masked["accuracy"] == skipping["accuracy"]
        assert masked["mult_adds"] >= max(whole["mult_adds"], skipping["mult_adds"])
        page = skipped.markdown(rows, {"data": "digits", "device": "a", "commit": "b", "cores": 2})
        assert page.count("\n| ") == 1 + 1 + len(rows)
    assert sizes(8, skipped.PARTS) == list(range(9))


def test_gates_are_compared_at_one_target_at_every_scale():
    for scale in adaptive_study.STUDY.cost:
        targets = adaptive_study.TARGETS[scale]
        assert adaptive_study.results.TARGET in targets and len(targets) >= 3  # a line needs three
        assert 38 in adaptive_study.DEPTHS[scale]

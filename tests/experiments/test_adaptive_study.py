"""The study of adaptive inference on made outcomes, what it measures on tiny runs, and what times skipping."""

import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.bench import skipped
from experiments.studies.adaptive import measures
from experiments.studies.adaptive import study as about
from experiments.study import AGREES, DISAGREES, TOO_SMALL, VERDICTS, Outcome, Outcomes
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
    found = measures.decided(run, state)
    whole, decided = found["rows"]
    assert whole["blocks"] == 4 and whole["way"] == "all blocks"
    used = np.asarray(found["used"])
    assert used.sum() == 360 and used @ np.arange(5) / 360 == pytest.approx(decided["blocks"])
    assert 1 <= found["paths"] <= 16 and found["blocks"][0] == "stage1/block0"
    counts = np.bincount(adaptive.blocks(run, state)["labels"])
    assert np.asarray(found["by_class"]).sum(1) @ counts / 360 == pytest.approx(decided["blocks"])


@pytest.mark.full
def test_heuristics_take_as_many_blocks(dropped, monkeypatch):
    (run, state), _ = dropped
    found = measures.heuristics(run, state)
    assert found["policy"] == measures.decided(run, state)["rows"][1]["accuracy"]
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
    found = measures.leaving(run, state)
    assert len(found["rows"]) == 3 + measures.POINTS and len(found["by_class"]) == 10
    costs = [row["mult_adds"] for row in found["rows"][:3]]
    assert all(costs[0] <= spent <= costs[-1] for spent in found["by_class"])


@pytest.mark.full
def test_easy_and_hard_images(dropped, early):
    (run, state), _ = dropped
    shown, found = adaptive.extremes(run, state, 5), adaptive.blocks(run, state)
    used = found["computed"].sum(1)
    assert all(found["right"][i] for kind in shown.values() for i, _ in kind)
    assert max(used[i] for i, _ in shown["easy"]) <= min(used[i] for i, _ in shown["hard"])
    (run, state), _ = early
    shown, found = adaptive.extremes(run, state, 5), adaptive.exits(run, state, run.feed.test_batches())
    assert all(found["right"][i, 0] for i, _ in shown["easy"])
    assert all(found["right"][i].tolist() == [False, False, True] for i, _ in shown["hard"])
    kept = measures.extremes(run, state)["easy"][0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(kept["image"]))))
    index, said = shown["easy"][0]
    assert (pixels == run.feed.test.example(index, None)["image"][..., 0]).all() and kept["says"] == said


# -- made outcomes -------------------------------------------------------------------------------------------------


def made(labels, accuracy, mult_adds=100, **measured):
    summary = {"accuracy": accuracy, "mult_adds": mult_adds, "parameters": 10}
    return Outcome(labels, summary, None, {}, measured)


def of_blocks(labels, accuracy, blocks, every, **measured):
    rows = [
        {"way": "all blocks", "accuracy": every, "mult_adds": 100.0, "blocks": 15.0},
        {"way": "as decided", "accuracy": accuracy, "mult_adds": 10 + 6.0 * blocks, "blocks": float(blocks)},
    ]
    used = [0] * 16
    used[round(blocks)] = 7
    return made(
        labels,
        accuracy,
        decided={
            "rows": rows,
            "blocks": [f"b{i}" for i in range(15)],
            "classes": ["0", "1"],
            "by_class": [[0.5] * 15, [0.7] * 15],
            "used": used,
            "paths": 3,
        },
        **measured,
    )


def of_exits(labels, accuracies, costs=(20.0, 60.0, 100.0), gain=0.01):
    rows = [
        {"way": f"exit {i + 1}", "accuracy": a, "mult_adds": c}
        for i, (a, c) in enumerate(zip(accuracies, costs, strict=True))
    ]
    rows += [
        {
            "way": "batch",
            "budget": c,
            "mult_adds": c,
            "accuracy": a + gain,
            "left": [0.5, 0.3, 0.2],
            "thresholds": [0.9, 0.9],
        }
        for a, c in zip(accuracies, costs, strict=True)
    ]
    return made(labels, accuracies[-1], leaving={"rows": rows, "classes": ["0", "1"], "by_class": [30.0, 50.0]})


def outcomes(better=0.0, seeds=3):
    """What the papers say, where `better` is 0.03; the contrary where it is negative."""
    png = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(png, "PNG")
    shown = [{"image": base64.b64encode(png.getvalue()).decode(), "label": "1", "says": "3 blocks"}]
    extremes, found = {"easy": shown * 3, "hard": shown}, []
    for seed in range(seeds):
        noise = seed / 1000
        for depth, cost in ((8, 30), (32, 80), (38, 95)):
            found.append(made({"method": "ResNet", "depth": depth, "seed": seed}, 0.8 + noise, cost))
        found.append(made({"method": "ResNet-32, twice as long", "seed": seed}, 0.8 + noise, 80))
        for target in (0.3, 0.7):
            accuracy = 0.8 + better + noise + (0.02 if (target > 0.5) == (better >= 0) else 0)
            found.append(
                of_blocks(
                    {"method": "ConvNet-AIG", "target": target, "seed": seed},
                    accuracy,
                    (8 if better >= 0 else 14.5) + noise,
                    accuracy + better,
                    extremes=extremes,
                )
            )
        chosen = dict.fromkeys(("first", "random", "distributed"), 0.7 - better + noise)
        found.append(
            of_blocks(
                {"method": "policy alone", "seed": seed},
                0.75 + noise,
                9,
                0.8,
                heuristics={**chosen, "policy": 0.7 + noise, "blocks": 9},
            )
        )
        for penalty in (1.0, 10.0):
            found.append(
                of_blocks(
                    {"method": "BlockDrop", "penalty": penalty, "seed": seed},
                    0.79 + 2 * better + noise,
                    (7 if better >= 0 else 14) + (penalty - 1) * better + noise,
                    0.8,
                    extremes=extremes,
                )
            )
        found.append(of_exits({"method": "MSDNet", "seed": seed}, [0.8 + better + noise] * 3, gain=better))
        found.append(of_exits({"method": "ResNet with exits", "seed": seed}, [0.8 + noise] * 3, gain=better))
    return Outcomes(found)


@pytest.mark.parametrize(("better", "verdict"), [(0.03, AGREES), (-0.03, DISAGREES)])
def test_every_claim_can_agree_and_disagree(better, verdict):
    judgements = {claim.statement: claim.judge(outcomes(better)) for claim in about.CLAIMS}
    assert {statement: judgement.verdict for statement, judgement in judgements.items()} == dict.fromkeys(
        judgements, verdict
    )
    assert all(judgement.ours for judgement in judgements.values())


def test_one_seed_tells_nothing():
    assert {claim.judge(outcomes(0.03, seeds=1)).verdict for claim in about.CLAIMS} == {TOO_SMALL}


def diverged(all_of_them):
    """The same, where some have diverged, or all."""
    return Outcomes(
        [
            Outcome(o.labels, None, "loss is nan", {}, {}) if all_of_them or o.labels["seed"] == 0 else o
            for o in outcomes(0.03)
        ]
    )


@pytest.mark.parametrize(
    "found",
    [outcomes(0.03), outcomes(0.03, seeds=1), diverged(False), diverged(True)],
    ids=["all", "one seed", "some diverged", "all diverged"],
)
def test_tables_pictures_and_verdicts(found, tmp_path):
    for table in about.STUDY.tables(found):
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
    for picture in about.STUDY.pictures:
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(found, figure)
        figure.savefig(tmp_path / f"{picture.name}.png")
    assert {claim.judge(found).verdict for claim in about.CLAIMS} <= set(VERDICTS)


@pytest.mark.parametrize("scale", ["digits", "cifar10"])
def test_trials_are_told_apart_and_start_from_trials(scale):
    planned = about.trials(scale)
    labels = [tuple(sorted(trial.labels.items())) for trial in planned]
    assert len(set(labels)) == len(labels)
    for trial in planned:
        assert (trial.start is not None) == (trial.labels["method"] in ("policy alone", "BlockDrop"))
        assert trial.config.data.train_split == about.TRAINED[scale]


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

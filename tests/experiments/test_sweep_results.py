"""Tests of the results of sweeps: metrics, tables and pictures, of outcomes that nothing was trained for."""

import numpy as np
import pytest

from experiments import study
from experiments.study import figures
from experiments.sweeps import effects, halving, metric, pictures, plan, results
from models.errors import UserError
from tests import pictures as texts
from tests.experiments.test_sweep import assert_not_blank


def outcome(labels, **summary):
    return study.Outcome(labels, summary or None, None if summary else "the loss is nan", {}, {}, 1.0)


def test_the_metric_is_what_the_summaries_have():
    both = [outcome({}, accuracy=0.5, loss=2.0, bleu=30.0), outcome({}, accuracy=0.6, loss=1.0)]
    assert metric.choose(both) == metric.Metric("accuracy") and metric.choose(both, "loss").lower
    assert metric.choose([outcome({}, loss=2.0)]) == metric.Metric("loss")
    with pytest.raises(UserError, match="unknown --metric 'bleu'; allowed: accuracy, loss"):
        metric.choose(both, "bleu")
    with pytest.raises(UserError, match="all 2 trials diverged: the loss is nan"):
        metric.choose([outcome({}), outcome({})])
    accuracy, loss = metric.Metric("accuracy"), metric.Metric("loss")
    assert accuracy.spread(both) == "55.00 ± 7.07" and loss.spread(both[:1]) == "2"
    assert accuracy.key(both[1:]) < accuracy.key(both[:1]) and loss.key(both[1:]) < loss.key(both[:1])
    assert accuracy.key(both[:1]) < accuracy.key([both[1], outcome({})]) < accuracy.key([outcome({})] * 2)


def world(overs, values, seeds=3, random=0, rungs=1):
    """Returns a sweep of digits without training: settings, and results whose accuracy is a function of the labels."""
    planned = plan.read(["--config=configs/digits.py"], overs, random)
    generator, found = np.random.default_rng(0), []
    for setting in planned.settings:
        value = values(**{name.replace(".", "_"): one for name, one in setting.labels.items()})
        groups = [
            [
                outcome({**setting.labels, "seed": seed}, accuracy=value - 0.1 / step + generator.normal(0, 0.01),
                        loss=2 - value, parameters=1000, mult_adds=10**6, steps=75 * step, seconds=3.0)
                for seed in range(seeds)
            ]
            for step in 3 ** np.arange(rungs if value > 0.9 else 1)
        ]  # fmt: skip
        found.append(halving.Result(setting, groups))
    return planned, found


RATES = "optimizer.learning_rate=0.03,0.1,0.3,1.0"
NORMS, WIDTHS, DRAWN = "model.norm=batch,group:8", "model.width=8,16,32", "optimizer.learning_rate=log(1e-3,1)"


def peak(learning_rate, width=0, norm=""):
    return 0.95 - 0.1 * abs(np.log10(learning_rate) + 1) + 0.001 * width


def slope(learning_rate, width=0, norm="batch"):
    return 0.8 - 0.1 * learning_rate + 0.003 * width + 0.01 * (norm == "batch")


def by_name(norm, act="relu"):
    return 0.9 + 0.01 * len(norm) + 0.02 * (act == "gelu")


WORLDS = {  # values of keys, accuracy, number of draws, names of the pictures
    "number": ([RATES], peak, 0, ["lines", "halving"]),
    "names": (["model.norm=batch,group:8,none"], by_name, 0, ["bars"]),
    "two": ([RATES, NORMS], slope, 0, ["lines", "heatmap"]),
    "two_names": (["model.act=relu,gelu", "model.norm=batch,group:8,none"], by_name, 0, ["bars", "heatmap"]),
    "three": ([RATES, NORMS, WIDTHS], slope, 0, ["lines", "heatmap"]),
    "random_one": ([DRAWN], peak, 20, ["scatter"]),
    "random": ([DRAWN, "model.width=int(8,64)", NORMS], peak, 40, ["scatter"]),
}


@pytest.mark.parametrize("name", ["names", "two", "two_names", "random"])
def test_one_image_of_the_test_set_is_no_trend(name, tmp_path):
    """Accuracies that differ by 1 of 360 images: axes and colors show at least 20 images."""
    overs, _, random, _ = WORLDS[name]
    planned, found = world(overs, lambda **labels: 0.9 + len(str(labels)) % 2 / 360, random=random, seeds=1)
    for one in found:
        for trained in one.rungs[0]:
            trained.summary["accuracy"] = round(trained.summary["accuracy"] * 360) / 360
            trained.summary["test_examples"] = 360
    with texts.recorded() as shown:
        figures.write(
            tmp_path,
            pictures.choose(found, list(planned.keys), metric.Metric("accuracy"), bool(random)),
            pictures.NAMES,
        )
    for figure in shown:
        assert texts.collisions(figure) == []
        for axes in figure.axes:
            if axes.get_ylabel() == "accuracy (%)":
                assert np.ptp(axes.get_ylim()) >= 100 * 20 / 360
            for drawn in (*axes.images, *axes.collections):
                if drawn.get_array() is not None and len(drawn.get_array()):
                    assert np.ptp(drawn.get_clim()) >= 100 * 20 / 360 or axes.get_label() == "<colorbar>"


@pytest.mark.parametrize("name", WORLDS)
def test_pictures_and_tables(name, tmp_path):
    overs, values, random, expected = WORLDS[name]
    planned, found = world(overs, values, random=random, rungs=1 if name != "number" else 3)
    accuracy = metric.Metric("accuracy")
    files = figures.write(tmp_path, pictures.choose(found, list(planned.keys), accuracy, bool(random)), pictures.NAMES)
    assert [file["file"] for file in files] == [f"{one}.png" for one in expected]
    for file in files:
        assert_not_blank(tmp_path / file["file"])
    rows = results.rows(found, accuracy)
    assert len(results.table(rows, planned, accuracy).rows) == len(found)
    rest = results.tables_by_key(found, planned, accuracy)
    assert [table.title for table in rest] == {"three": ["By norm"], "random": ["By norm"]}.get(name, [])


def test_the_keys_that_matter_come_first():
    planned, found = world(WORLDS["three"][0], WORLDS["three"][1])
    points = effects.points(found, metric.Metric("accuracy"))
    assert effects.by_importance(points, list(planned.keys)) == ["learning_rate", "width", "norm"]
    assert effects.is_logarithmic([0.05, 0.1, 0.2]) and effects.is_logarithmic([8, 16, 32])
    assert not effects.is_logarithmic([1, 2, 3]) and not effects.is_logarithmic([0, 1, 10])


def test_all_seeds_that_diverged_leave_a_row_and_no_picture(tmp_path):
    planned, found = world(["model.norm=batch,group:8"], lambda norm: 0.9)
    bad = [[study.Outcome(o.labels, None, "the loss is nan", {}, {}, 1.0) for o in found[0].rungs[0]]]
    found[0] = found[0]._replace(rungs=bad)
    accuracy = metric.Metric("accuracy")
    rows = results.rows(found, accuracy)
    table = results.table(rows, planned, accuracy)
    assert table.rows[-1][:4] == ["batch", "—", 3, 3] and rows[0].setting.labels["norm"] == "group:8"
    record = results.content(rows, planned, accuracy, "x")["settings"][-1]
    assert record["mean"] is None and record["runs"][0]["diverged"] == "the loss is nan"
    (picture,) = figures.write(tmp_path, pictures.choose(found, ["norm"], accuracy, False), pictures.NAMES)
    assert picture["caption"].endswith("Seeds that diverged are left out.")

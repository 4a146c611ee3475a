"""The study of explanations: verdicts on made outcomes, what it draws, what it measures on a tiny run."""

import base64
import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.studies.explanation import measures
from experiments.studies.explanation import study as about
from experiments.studies.measures import png
from experiments.study import AGREES, DISAGREES, TOO_SMALL, VERDICTS, Outcome, Outcomes
from tests import tiny
from train import loop, restore


def made(sign, noise=0.001, after=12):
    """Outcomes of all trials: sign 1 as published, -1 against; noise between seeds; the field's size after training."""
    found = []
    for trial in about.trials("digits"):
        network, n = trial.labels["network"], noise * (trial.labels["seed"] - 1)
        methods = [
            m
            for m in measures.METHODS
            if (m != "cam" or network == "ResNet") and (m != "attention_rollout" or network == "ViT")
        ]
        good = {"cam": 1, "grad_cam": 1, "guided_grad_cam": 1}
        level = {m: 0.6 + 0.15 * sign * (1 if m in good else -1) + n * (1 if m in good else -1) for m in methods}
        picture = png(np.full((8, 8), 0.5))
        found.append(
            Outcome(
                trial.labels,
                {"accuracy": 0.9 + n, "parameters": 1000},
                None,
                {},
                {
                    "localization": {
                        "right": 0.9,
                        "chance": 0.1,
                        "middle": 0.3,
                        **{
                            m: {"pointing": v, "error": 1 - v, "error_at_0.2": 1 - v, "threshold": 0.3, "localized": v}
                            for m, v in level.items()
                        },
                    },
                    "two_objects": {**level, "middle": 0.15},
                    "faithfulness": {
                        m: {
                            "deletion": 0.2,
                            "insertion": 0.8,
                            "occlusion": v,
                            "deletion_curve": [1, 0.5, 0],
                            "insertion_curve": [0, 0.5, 1],
                        }
                        for m, v in {**level, "random": 0.0}.items()
                    },
                    "sanity": {"layers": ["head", "b", "a"], **{m: [0.9, 1.2 - v, 0.1] for m, v in level.items()}},
                    "effective": {
                        "endpoint": "last_map",
                        "theoretical": [40, 40],
                        "box": [0, 0, 8, 8],
                        "before": {"size": 20 - 3 * sign + n, "map": picture},
                        "after": {"size": (20 if sign > 0 else after) + n, "map": picture},
                    },
                    "gallery": [
                        {
                            "image": picture,
                            "says": "3: 90%",
                            "boxes": [[1, 1, 4, 4]],
                            "class": "3",
                            "panels": {
                                m: png(np.full((8, 8, 3), 0.5)) if m == "guided_backprop" else picture for m in methods
                            },
                        }
                    ]
                    * 3,
                },
            )
        )
    return Outcomes(found)


@pytest.mark.parametrize(
    "sign, noise, after, wanted",
    [(1, 0.001, 12, AGREES), (-1, 0.001, 12, DISAGREES), (-1, 0.001, 39, DISAGREES), (1, 0.9, 12, TOO_SMALL)],
)
def test_verdicts_follow_the_outcomes(sign, noise, after, wanted):
    """A field after training of 12 is smaller than before, one of 39 more than two thirds of the theoretical 40."""
    outcomes = made(sign, noise, after)
    found = [claim.judge(outcomes) for claim in about.CLAIMS]
    if wanted != TOO_SMALL:
        assert [one.verdict for one in found] == [wanted] * 6, found
    else:
        assert [one.verdict for one in found].count(TOO_SMALL) >= 5, found
    assert all("nan" not in one.ours for one in found)


def test_tables_and_pictures_of_made_and_of_diverged_outcomes():
    outcomes = made(1)
    diverged = Outcomes([o._replace(summary=None, diverged="loss", measured={}) for o in outcomes])
    mixed = Outcomes([diverged[0], *list(outcomes)[1:]])
    for some in (outcomes, mixed, diverged):
        for table in about.STUDY.tables(some):
            assert {len(row) for row in table.rows} <= {len(table.columns)}
        for picture in about.STUDY.pictures:
            figure = Figure(figsize=picture.size, layout="constrained")
            picture.draw(some, figure)
            figure.draw_without_rendering()
        assert all(claim.judge(some).verdict in VERDICTS for claim in about.CLAIMS)
    first = about.STUDY.tables(outcomes)[1]
    assert [row[0] for row in first.rows][:2] == ["CAM", "Grad-CAM"] and first.rows[0][1:] == ["75.0 ± 0.1 %", "—", "—"]


def test_trials_are_distinct_and_place_their_objects():
    for scale in about.STUDY.cost:
        trials = about.trials(scale)
        assert len({tuple(t.labels.items()) for t in trials}) == len(trials) == 3 * len(about.SEEDS[scale])
        assert all("place(" in t.config.data.select and "place(" in t.config.data.select_test for t in trials)


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A finished run of a network on canvases."""
    folder = tmp_path_factory.mktemp("placed")
    loop.train(tiny.config(data__select="place(16)", data__select_test="place(16)", duration="60 steps"), folder)
    return restore.load(folder)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measures, "IMAGES", 6)
    monkeypatch.setattr(measures, "FEW", 4)
    monkeypatch.setattr(measures, "STEPS", 2)
    monkeypatch.setattr(measures, "METHODS", ("cam", "grad_cam", "attention_rollout", "saliency"))


@pytest.mark.full
def test_examples_are_canvases_with_their_objects(placed):
    run, _ = placed
    one, two = (measures.examples(run, "test", 6, objects=n) for n in (1, 2))
    np.testing.assert_array_equal(one.pixels, run.feed.test.read(range(6))["image"])
    np.testing.assert_array_equal(one.labels(), run.feed.test.read(range(6))["label"])
    assert two.boxes(1).shape == (6, 4) and (two.labels(0) != two.labels(1)).all()
    train = measures.examples(run, "train", 6)
    assert (train.pixels != one.pixels).any()


@pytest.mark.full
def test_measures(placed, small):
    run, state = placed
    found = measures.localization(run, state)
    assert {"cam", "grad_cam", "saliency", "right", "chance", "middle"} == set(found)  # no rollout without attention
    for one in (found["cam"], found["saliency"]):
        assert one["error"] >= 1 - min(one["localized"], found["right"]) and 0 <= one["pointing"] <= 1
    assert 0.05 < found["chance"] < 0.26
    assert set(measures.two_objects(run, state)) == {"cam", "grad_cam", "saliency", "middle"}
    faithful = measures.faithfulness(run, state)
    assert set(faithful) == {"cam", "grad_cam", "saliency", "occlusion", "random"}
    whole = {one["deletion_curve"][0] for one in faithful.values()}
    assert len({round(p, 4) for p in whole}) == 1 and all(len(one["insertion_curve"]) == 3 for one in faithful.values())
    assert faithful["occlusion"]["occlusion"] > 0.5 > abs(faithful["random"]["occlusion"])
    sanity = measures.sanity(run, state)
    assert sanity["layers"][0] == "head" and sanity["layers"][-1] == "stem_conv"
    assert all(len(sanity[name]) == len(sanity["layers"]) for name in ("cam", "saliency"))
    effective = measures.effective(run, state)
    assert (effective["endpoint"], effective["theoretical"]) == ("stage2", [13, 13])  # of last_map: 25 of 16 pixels
    assert 0 < effective["before"]["size"] <= 13
    rows = measures.gallery(run, state)
    assert len(rows) == 3 and set(rows[0]["panels"]) == {"cam", "grad_cam", "saliency"}
    assert rows[1]["image"] == rows[2]["image"] != rows[0]["image"] and rows[1]["class"] != rows[2]["class"]
    assert Image.open(io.BytesIO(base64.b64decode(rows[0]["panels"]["cam"]))).size == (16, 16)

"""The study of explanations: its trials, a table, what it measures on a tiny run."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from experiments.studies.explanation import measures
from experiments.studies.explanation import study as explanation_study
from tests import tiny
from tests.experiments.worlds import explanation
from train import loop, restore


def test_the_first_table_has_a_row_per_method():
    first = explanation_study.STUDY.tables(explanation(1))[1]
    assert [row[0] for row in first.rows][:2] == ["CAM", "Grad-CAM"] and first.rows[0][1:] == ["75.0 ± 0.1 %", "—", "—"]


def test_trials_place_their_objects():
    for scale in explanation_study.STUDY.cost:
        trials = explanation_study.trials(scale, range(2))
        assert len(trials) == 3 * 2
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
    assert np.shape(two.boxes(1)) == (6, 4) and (two.labels(0) != two.labels(1)).all()
    train = measures.examples(run, "train", 6)
    assert (train.pixels != one.pixels).any()


@pytest.mark.full
def test_measures(placed, small):
    run, state = placed
    measured = measures.localization(run, state)
    assert {"cam", "grad_cam", "saliency", "right", "chance", "middle"} == set(measured)  # no rollout without attention
    for one in (measured["cam"], measured["saliency"]):
        assert one["error"] >= 1 - min(one["localized"], measured["right"]) and 0 <= one["pointing"] <= 1
    assert 0.05 < measured["chance"] < 0.26
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


@pytest.mark.full
def test_images_are_explained_in_batches(placed, small, monkeypatch):
    run, state = placed
    whole = [measures.localization(run, state), measures.two_objects(run, state)]
    monkeypatch.setattr(measures, "BATCH", 4)
    for one, other in zip(whole, (measures.localization(run, state), measures.two_objects(run, state)), strict=True):
        assert one == pytest.approx(other, abs=1e-6) if "right" not in one else one.keys() == other.keys()
    monkeypatch.setattr(measures, "MANY", {16: 9})
    assert measures._many(run) == 9

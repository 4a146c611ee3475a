"""The study of transfer: its trials and tables, and what it measures on tiny runs."""

import collections

import numpy as np
import pytest

from experiments import study
from experiments.studies.transfer import measures as transfer_measures
from experiments.study import Outcomes, group_of, trials, verdicts
from tests import tiny
from tests.experiments.worlds import transfer
from train.run import build_run

MODULE = study.module("transfer")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.trained(tmp_path_factory.mktemp("transfer") / "run", duration="4 steps")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    return tiny.resnet18_file(tmp_path_factory.mktemp("weights"))


@pytest.mark.parametrize("scale", ["digits", "cifar"])
def test_trials_have_all_seeds_and_equal_budgets(scale):
    planned = MODULE.trials(scale, range(3))
    counts = collections.Counter(group_of(trial.labels) for trial in planned)
    assert all(count == 1 if "hand-crafted" in group else count == 3 for group, count in counts.items())
    scratch = [trial for trial in planned if trial.labels.get("how") == "scratch"]
    tuned = {
        (t.labels["target"], t.labels["labels"], t.labels["seed"]): t
        for t in planned
        if t.labels["part"] == "transfer" and t.labels["how"] == "fine-tuned"
    }
    for one in scratch:  # the same budget
        other = tuned[one.labels["target"], one.labels["labels"], one.labels["seed"]]
        assert (one.config.duration, one.config.batch_size) == (other.config.duration, other.config.batch_size)
        assert one.start is None and other.start.labels["seed"] == one.labels["seed"]
    # The unbiased source is one of the grid, too
    assert len({trials.address(trial) for trial in planned}) == len(planned) - 3


def test_at_cifar_all_labels_are_seen_six_times_and_sources_have_hard_labels():
    planned = MODULE.trials("cifar", range(1))
    whole = [t.config for t in planned if t.train and t.labels.get("labels") == "all"]
    assert whole and all(int(c.duration.split()[0]) * c.batch_size >= 6 * 50_000 for c in whole)
    sources = [t.start.config for t in planned if t.start]
    assert {c.task.label_smoothing for c in sources} == {0.0} == {c.task.label_smoothing for c in whole}
    assert {c.optimizer.learning_rate for c in sources} == {0.1, 0.05}
    assert {t.labels["target"] for t in planned if "target" in t.labels} == {"cifar10_jpeg"}


def test_the_published_table_is_as_published():
    tables = MODULE.STUDY.tables(transfer(1))
    assert [row[1:] for row in tables[0].rows][2] == ["18.8 (SIFT+FK)", "—", 61.0, 70.4, "+51.6"]


def test_the_table_is_that_of_the_outcomes():
    ours = MODULE.STUDY.tables(transfer(1))[1]
    assert ours.columns == MODULE.STUDY.tables(transfer(1))[0].columns
    assert ours.rows[0] == [
        "cifar10_jpeg",
        "40.0 % (1,000 labels per class)",
        "50.0 ± 0.2 %",
        "60.0 ± 0.2 %",
        "70.0 ± 0.2 %",
        "+30.0",
    ]


def test_a_run_that_diverged_is_counted_beside_the_others_and_as_no_accuracy():
    outcomes = [
        o._replace(summary=None, diverged="nan") if o.labels.get("how") == "scratch" and o.labels["seed"] == 1 else o
        for o in transfer(1).all()
    ]
    row = MODULE.STUDY.tables(Outcomes(outcomes))[1].rows[0]
    assert row[2] == "50.0 ± 0.2 % (1 of 10 diverged)"
    judgements = [claim.judge(Outcomes(outcomes)) for claim in MODULE.STUDY.claims]
    assert "scratch 45.0 ± 15.8 %" in judgements[2].ours  # in verdicts it counts as 0
    assert all(verdicts.decide([judgement.evidence for judgement in judgements]))


def test_a_run_that_diverged_before_its_first_evaluation_has_learned_nothing_by_then():
    empty = {split: {"step": [], "loss": [], "accuracy": []} for split in ("train", "test")}
    outcomes = [
        o._replace(summary=None, diverged="nan", history=empty) if o.labels.get("how") == "scratch" else o
        for o in transfer(1).all()
    ]
    assert MODULE.results.faster(Outcomes(outcomes)).ours.endswith("scratch 0.0 ± 0.0 %")


def test_without_weights_the_largest_scale_says_how_to_get_them(monkeypatch):
    from models.errors import UserError

    monkeypatch.setenv("ABLATE_RESNET50", "/nowhere.safetensors")
    with pytest.raises(
        UserError, match="initial weights /nowhere.safetensors .* missing; make them by python -m models.weights import"
    ):
        MODULE.trials("imagenet", range(3))


def test_the_largest_scale_is_the_published_table(weights_file, monkeypatch):
    monkeypatch.setenv("ABLATE_RESNET50", str(weights_file))
    planned = MODULE.trials("imagenet", range(3))
    assert len(planned) == 5 * (3 * 3 + 1)
    assert {trial.labels["target"] for trial in planned} == {"caltech101", "voc2007", "cub200", "aircraft", "cars"}


# -- measures on tiny runs -----------------------------------------------------------------------------------------


@pytest.fixture
def run(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return build_run(
        tiny.config(
            init_from=str(source),
            data__select="classes('5-9')",
            data__select_test="classes('5-9')",
            eval_batch_size=180,
        )
    )


@pytest.mark.full
def test_probe_has_every_number_of_labels_and_classifier(run):
    results_by_labels = transfer_measures.probe(run, run.state)
    assert list(results_by_labels) == ["2", "5", "20", "all"]
    assert all(list(row) == ["logistic", "svm", "knn"] for row in results_by_labels.values())
    assert 0.3 < results_by_labels["2"]["logistic"]["accuracy"] <= results_by_labels["all"]["logistic"]["accuracy"] <= 1


@pytest.mark.full
def test_the_cue_is_on_test_images_alone(run):
    measured = transfer_measures.logistic(run, run.state)
    assert measured["clean"] == pytest.approx(measured["accuracy"])
    assert 0 < measured["changed"] <= 1 and measured["painted"] < measured["clean"]
    trained = transfer_measures.cue(run, run.state)
    accuracy = run.evaluate(run.parallel.place(run.state))["accuracy"]
    assert trained["clean"] == pytest.approx(accuracy, abs=0.01)


@pytest.mark.full
def test_the_embedding_is_of_test_images(run):
    embedding = transfer_measures.embedding(run, run.state)
    assert len(embedding["x"]) == len(embedding["labels"]) == len(run.feed.test) and set(embedding["labels"]) == set(
        range(5)
    )
    assert np.std(embedding["x"]) > 0.1


@pytest.mark.full
def test_hand_crafted_features_by_number_of_labels(run, monkeypatch):
    monkeypatch.setattr(transfer_measures, "HANDCRAFTED", ("hog",))
    accuracies = transfer_measures.handcrafted(run, run.state)["hog"]
    assert [len(accuracies[count]) for count in ("2", "5", "20", "all")] == [3, 3, 3, 1]
    assert accuracies["all"][0] > 0.9 and np.mean(accuracies["2"]) < accuracies["all"][0]


@pytest.mark.full
def test_fewer_images_stand_for_all_where_features_take_long(run, monkeypatch):
    monkeypatch.setattr(transfer_measures, "FEWER", {8: 100})
    monkeypatch.setattr(transfer_measures, "LABELS", {8: (2, 20, 100)})
    monkeypatch.setattr(transfer_measures, "HANDCRAFTED", ("hog", "hog2", "hog3"))
    seen = {}

    def describe(kinds, train, test):
        seen.update(kinds=kinds, train=len(train))
        return {"hog": (train.reshape(len(train), -1) / 16.0, test.reshape(len(test), -1) / 16.0)}

    monkeypatch.setattr("experiments.studies.transfer.handcrafted.describe", describe)
    accuracies = transfer_measures.handcrafted(run, run.state)["hog"]
    assert seen == {"kinds": ("hog", "hog2"), "train": 500}
    assert [(count, len(values)) for count, values in accuracies.items()] == [("2", 3), ("20", 3), ("100", 1)]
    assert np.mean(accuracies["2"]) < accuracies["100"][0]

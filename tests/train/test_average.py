"""Averages of checkpoints: the mean, the greedy choice, batch-norm statistics, the folder, mistakes."""

import json

import jax
import numpy as np
import pytest

from models.errors import UserError
from tests import tiny
from train import average, restore, soup
from train.export import loaded
from train.hooks.recalibrate import recalibrate_batch_norm
from train.setup import pretrained

FEW = {"data__train_split": "train_fit", "keep_checkpoints": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the folders of two runs with batch norm, of different seeds."""
    root = tmp_path_factory.mktemp("runs")
    return [str(tiny.trained(root / f"seed{seed}", seed=seed, **FEW)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def soups(runs, tmp_path_factory):
    """Returns the members of both runs, their average, its report and its folder."""
    members, out = soup.read(runs), tmp_path_factory.mktemp("soup") / "averaged"
    variables, report = soup.Kitchen(members, "validation", batches=2).cook(greedy=False)
    soup.write(members, variables, report, out)
    return members, variables, report, out


def test_the_average_is_the_mean_with_statistics_of_its_own(runs, soups):
    members, variables, _, _ = soups
    states = [restore.load_network(run)[1] for run in runs]
    expected = jax.tree.map(lambda a, b: (a + b) / 2, states[0].params, states[1].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), variables["params"], expected)
    network, feed = members.network, members.feed
    fresh = recalibrate_batch_norm(
        network.model, {"params": expected, **states[0].model_state}, feed.training_images(2, 32)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        variables["model_state"]["batch_stats"],
        fresh["batch_stats"],
    )


def test_the_folder_is_that_of_a_run(soups):
    members, variables, report, out = soups
    network, state = restore.load_network(out)
    tiny.assert_same(state.params, variables["params"])
    average = report["rows"][-1]
    assert average["name"] == "average" and report["split"] == "validation"
    test = network.evaluate(network.parallel.place(state))
    assert test["accuracy"] == average["test"]
    logits = network.predictions(
        state.evaluation_variables(), network.images.batches(network.images.split("validation"))
    )
    assert average["score"] == pytest.approx(np.mean(logits[0].argmax(-1) == logits[1]))
    assert len(logits[1]) == 288  # a fifth of the 1,437 training images
    arrays = pretrained.load(out).arrays
    np.testing.assert_array_equal(arrays["head/kernel"], variables["params"]["head"]["kernel"])
    opened = loaded.load(out)
    assert opened.card["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert json.loads((out / soup.REPORT).read_text())["rows"] == report["rows"]
    assert average_table_rows(report) == 3
    soup.check_out(out)  # it may be written again
    with pytest.raises(UserError, match="exists and is no average"):
        soup.check_out(out.parent)


def average_table_rows(report):
    return average.table(report).row_count


def test_all_checkpoints_of_a_run(runs):
    members = soup.read(runs[:1], "all").checkpoints
    assert [member.name.rpartition(" ")[2] for member in members] == ["4", "8", "12"]
    last = restore.load_network(runs[0])[1]
    tiny.assert_same(members[-1].variables["params"], last.params)


class Scored(soup.Kitchen):
    """A kitchen in which the score of a weight is how near it is to 3."""

    def __init__(self, weights):
        variables = [{"params": np.float32(weight), "model_state": {}} for weight in weights]
        self.checkpoints = [soup.Member(str(one["params"]), one) for one in variables]
        self.members, self.split, self._is_test = soup.Members(Headline, None, self.checkpoints), "test", True

    def score(self, variables):
        return -abs(float(variables["params"]) - 3)


class Headline:
    class task:
        headline = "accuracy"


def test_greedily_a_checkpoint_is_kept_if_the_average_is_no_worse():
    """Follows recipe 1 of Wortsman 2022 by hand: from the best, 2.5; then 4 (mean 3.25), not 5, not 0, not 9."""
    variables, report = Scored([0, 2.5, 9, 4, 5]).cook(greedy=True)
    assert float(variables["params"]) == 3.25
    assert [(row["name"], row["kept"]) for row in report["rows"]] == [
        ("2.5", True), ("4.0", True), ("5.0", False), ("0.0", False), ("9.0", False), ("average", True),
    ]  # fmt: skip
    assert report["rows"][-1]["score"] == -0.25
    same, _ = Scored([2.5, 2.5]).cook(greedy=True)
    assert float(same["params"]) == 2.5
    uniform, _ = Scored([0, 2.5, 9, 4, 5]).cook(greedy=False)
    assert float(uniform["params"]) == pytest.approx(4.1)


def test_the_split_of_the_comparison(runs):
    network, _ = restore.load_network(runs[0])
    assert soup.selection_split(network) == ("validation", "")
    assert soup.selection_split(network, "train_fit2") == ("train_fit2", "")
    with pytest.raises(UserError, match="--split=train_fit is the split that the runs were trained on"):
        soup.selection_split(network, "train_fit")
    network.config["data"]["train_split"] = "train[:90%]"
    assert soup.selection_split(network)[0] == "train[90%:]"
    network.config["data"]["train_split"] = "train"
    split, line = soup.selection_split(network)
    assert split == "test" and "its numbers are too high; train with 'train_fit'" in line


def test_mistakes_are_one_line(runs, tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        soup.read([runs[0], str(tmp_path)])
    with pytest.raises(UserError, match="one checkpoint is no average; name more runs, or --checkpoints=all"):
        soup.read(runs[:1])
    with pytest.raises(UserError, match="unknown --checkpoints 'lst'; did you mean 'last'"):
        soup.read(runs, "lst")
    changed = tmp_path / "changed"
    changed.mkdir()
    other = tiny.trained(tmp_path / "wide", model__width=8, duration="2 steps", **FEW)
    with pytest.raises(UserError, match=r"wide does not fit .*seed0: model.width"):
        soup.read([runs[0], str(other)])
    prune = "magnitude(0.5, start='0 steps', end='1 steps', every='1 steps')"
    pruned = tiny.trained(tmp_path / "pruned", optimizer__prune=prune, duration="2 steps", **FEW)
    with pytest.raises(UserError, match="averaged weights would not keep optimizer.prune=magnitude"):
        soup.read([runs[0], str(pruned)])

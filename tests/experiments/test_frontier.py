"""Tests of python -m experiments.frontier: the front, the order, fair trainings, and that nothing runs twice."""

import csv
import dataclasses
import functools
import io
import json
import math
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import rich.console

import models
from experiments.frontier import dense as dense_run
from experiments.frontier import estimates, methods, order, output, points, search, starts
from experiments.frontier.__main__ import USAGE
from experiments.frontier.estimates import Estimate
from experiments.frontier.methods import DENSE, Candidate
from experiments.frontier.starts import Cut
from experiments.study import engines, launch, queue, trials
from models.errors import UserError
from models.weights import flatten
from tests import tiny
from train import loop
from train.data import load
from train.export import formats, loaded

# -- the front -----------------------------------------------------------------------------------------------


def test_the_front_has_the_points_that_no_other_betters():
    rng = np.random.default_rng(0)
    for _ in range(200):
        places = {str(i): tuple(map(float, rng.integers(0, 6, 2))) for i in range(rng.integers(1, 12))}
        names = order.front(places)
        on = {places[name] for name in names}
        for name, (cost, accuracy) in places.items():
            others = [place for place in places.values() if place != (cost, accuracy)]
            is_bettered = any(c <= cost and a >= accuracy for c, a in others)
            assert ((cost, accuracy) in on) == (not is_bettered), (name, places)
        assert len(on) == len(names) and [places[name][0] for name in names] == sorted(c for c, _ in on)


def test_points_without_a_number_are_left_out_and_the_first_of_equal_ones_counts():
    assert order.front({"a": (math.nan, 1.0), "b": (1.0, 0.5), "c": (1.0, 0.5), "d": (0.5, math.nan)}) == ["b"]
    assert order.front({}) == []


def test_the_cheapest_point_that_loses_little_is_chosen():
    places = {DENSE: (10.0, 0.90), "mild": (5.0, 0.899), "strong": (2.0, 0.89), "bad": (1.0, 0.2), "worse": (3.0, 0.1)}
    assert order.chosen(places, 0.5) == "mild"
    assert order.chosen(places, 2.0) == "strong"
    assert order.chosen({DENSE: (10.0, 0.9), "worse": (1.0, 0.8), "dearer": (11.0, 0.9)}, 0.5) == DENSE


def test_a_candidate_exactly_at_the_limit_is_chosen():
    for right in range(1, 200):  # 7 and 6 of 200 are 0.5 points apart, and more than that in floating point
        places = {DENSE: (10.0, (right + 1) / 200), "mild": (5.0, right / 200)}
        assert order.chosen(places, 0.5) == "mild"
        assert order.chosen(places, 0.499) == DENSE


# -- the order -----------------------------------------------------------------------------------------------

WHOLE = Estimate(100, 1000, 10, 1.0)


def planned(costs, passed, measure="mult_adds"):
    """Returns the order of candidates {"METHOD LEVEL": (mult-adds, training)}."""
    names = {name: name.rpartition(" ") for name in costs}
    candidates = [Candidate(name, method, int(level), {}) for name, (method, _, level) in names.items()]
    known = {name: Estimate(cost, 10 * cost, math.nan, training) for name, (cost, training) in costs.items()}
    return [one.name for one in order.plan(candidates, known, measure, WHOLE, passed)]


def test_the_largest_expected_gain_per_second_comes_first():
    costs = {"a 0": (90, 1.0), "a 1": (40, 1.0), "a 2": (2, 1.0)}
    assert planned(costs, {})[0] == "a 1"  # 0 saves hardly anything, 2 is hardly possible
    assert planned({"a 0": (40, 1.0), "b 0": (40, 0.2)}, {})[0] == "b 0"  # half the time to know
    assert planned({"a 0": (50, 1.0), "b 0": (50, 1.0), "c 0": (30, 1.0)}, {"a 0": True}) == ["c 0", "b 0"]


def test_levels_of_a_method_tell_of_each_other():
    costs = {"a 0": (60, 1.0), "a 1": (40, 1.0), "a 2": (30, 1.0), "b 0": (90, 1.0)}
    assert planned(costs, {"a 1": False}) == ["a 0", "b 0", "a 2"]  # stronger than what lost too much
    assert planned(costs, {"a 1": True}) == ["a 2", "a 0", "b 0"]  # a 0 and b 0 save less than the best one so far
    assert planned(costs, dict.fromkeys(costs, True)) == []


def test_bits_are_more_likely_to_be_saved_than_mult_adds():
    thin, few_bits = Estimate(12.5, 125, math.nan, 1.0), Estimate(100, 125, math.nan, 1.0)  # both 8 times smaller
    assert order.probability(few_bits, WHOLE) > 0.7 > 0.2 > order.probability(thin, WHOLE)


# -- fair comparisons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "split", "expected"),
    [
        ("tfds:cifar10", "train", ("train[:90%]", "train[90%:]")),
        ("tfds:cifar10", "train[:45000]", ("train[:45000]", "train[45000:]")),
        ("digits", "train", ("train_fit", "validation")),
        ("folder:photos", "train_fit", ("train_fit", "validation")),
    ],
)
def test_no_image_is_both_trained_on_and_held_out(source, split, expected):
    assert dense_run.splits(source, split) == expected


def test_a_split_without_a_rest_is_refused():
    with pytest.raises(UserError, match=r"data.train_split='train\[5%:\]' of the run has no part to choose"):
        dense_run.splits("tfds:cifar10", "train[5%:]")


def test_test_images_are_not_those_by_which_candidates_are_chosen(tmp_path):
    open_split = functools.partial(load.load, tiny.config().data)
    assert dense_run.same(open_split("validation"), open_split("validation"))
    assert dense_run.same(open_split("train"), open_split("validation"))  # a part of it
    assert not dense_run.same(open_split("test"), open_split("validation"))
    assert not dense_run.same(open_split("train_fit"), open_split("validation"))
    folder = tiny.trained(tmp_path / "run", data__train_split="train_fit", data__test_split="validation")
    message = f"--workdir={folder} was tested on data.test_split=validation, with images of validation, by which"
    with pytest.raises(UserError, match=re.escape(message)):
        dense_run.read(str(folder))


def test_a_run_that_was_stopped_is_refused(tmp_path):
    loop.train(tiny.config(), tmp_path, until=4)
    with pytest.raises(UserError, match=re.escape(f"--workdir={tmp_path} stopped at step 4 of 12: finish it first")):
        dense_run.read(str(tmp_path))


def test_the_difference_is_paired():
    rng = np.random.default_rng(0)
    b = rng.random(10_000) < 0.8
    a = b & (rng.random(10_000) >= 0.01)
    lost, low, high = points.difference(a, b)
    assert abs(lost - 100 * (b.mean() - a.mean())) < 1e-9
    assert (high - low) / 2 < 0.25 < 196 * math.sqrt(2 * 0.8 * 0.2 / 10_000)  # of two networks on other images
    assert points.difference(b, a) == (-lost, -high, -low)


@pytest.mark.parametrize(("only_a", "only_b"), [(0.0, 0.005), (0.003, 0.003), (0.01, 0.03)])
def test_the_interval_has_the_difference_95_times_in_100(only_a, only_b):
    rng, true, inside = np.random.default_rng(0), 100 * (only_b - only_a), 0
    for draws in rng.random((2000, 180)):  # most of these see no image that differs, or only few
        a, b = draws >= only_b, draws < 1 - only_a
        lost, low, high = points.difference(a, b)
        assert low < lost < high
        inside += low <= true <= high
    assert inside / 2000 > 0.94


# -- a tiny frontier -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tiny.trained(tmp_path_factory.mktemp("runs") / "digits", model__stage_sizes=(2, 1))
    return dense_run.read(str(folder), "4 steps")


def test_further_training_starts_from_the_run_on_fewer_images(dense):
    c = dense.config
    assert (c.init_from, c.init_new, c.duration) == (str(dense.folder), "", "4 steps")
    assert (c.data.train_split, c.data.test_split, c.optimizer.schedule) == ("train_fit", "validation", "cosine")
    assert c.optimizer.learning_rate == dense.network.config["optimizer"]["learning_rate"] / 2
    assert dense_run.read(str(dense.folder)).steps == dense.before // 2


@pytest.mark.parametrize("cut", [Cut(0.5), Cut(0.0, 0.5), Cut(0.25, 0.5)])
def test_a_network_without_some_parts_has_the_fields_that_were_estimated(dense, cut):
    kernels = dense.removable
    assert len(kernels) == 3
    small = starts.reduced(dense.portable, cut, kernels)
    assert small.fields == starts.fields(dense.portable, cut, kernels)
    whole, rest = flatten(dense.portable.variables), flatten(small.variables)
    assert sum(leaf.size for leaf in rest.values()) < sum(leaf.size for leaf in whole.values())
    np.testing.assert_array_equal(whole["stem_conv/kernel"], rest["stem_conv/kernel"])
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    assert np.asarray(small.create().apply(small.variables, images)).shape == (2, 10)


def test_candidates_train_as_long_as_the_dense_network(dense):
    fitting, refused = methods.candidates(dense, "bytes")
    assert not refused and len({one.name for one in fitting}) == len(fitting) > 15
    for one in fitting:
        steps = sum(int(t.changes.get("duration", "4 steps").split()[0]) for t in one.trainings)
        expected = 0 if one.method in ("share", "int8") else 4 + dense.before * (one.method == "narrow")
        assert steps == expected, one.name
    assert {one.method for one in methods.candidates(dense, "time")[0]} == {
        "filters", "blocks", "blocks+filters", "narrow", "exits", "zero blocks", "int8", "filters+int8",
    }  # fmt: skip


def test_methods_for_other_measures_are_named(dense):
    fitting, refused = methods.candidates(dense, "bytes", ["filters", "int8", "exits"])
    assert {one.method for one in fitting} == {"filters"} and refused == {
        "int8": "is only tried with --measure=time, which it makes smaller",
        "exits": "is only tried with --measure=time or mult_adds, which it makes smaller",
    }


def test_the_help_has_all_methods():
    words = " ".join(re.sub("[^a-z0-9+ ]", " ", USAGE.replace("\n", " ")).split())
    assert all(f" {name} " in words for name in methods.METHODS)


def searched(dense, out, names, seconds=None, place=engines.Place()):  # noqa: B008  immutable
    fitting, _ = methods.candidates(dense, "bytes")
    fitting = [one for one in fitting if one.name in names]
    begin = search.Search(dense, [], {}, "bytes", 50.0, out, seconds)
    costs, bad = estimates.estimate(dense, [begin.start, *fitting], "bytes")
    assert not bad
    lines = []
    whole = begin._replace(candidates=fitting, estimates=costs)
    console = rich.console.Console(file=io.StringIO())
    return whole, search.run(whole, place, console, lines.append), lines


def test_a_frontier_goes_on_where_it_was_stopped_and_runs_nothing_twice(dense, tmp_path, monkeypatch):
    names = ("8-bit values", "4-bit values", "50% of filters removed")
    _, first, _ = searched(dense, tmp_path, names, seconds=0.0)  # time for the dense network alone
    assert first.left == [names[2]] and sorted(first.points) == sorted(names[:2])  # these need no training
    whole, second, lines = searched(dense, tmp_path, names)
    assert sorted(second.points) == sorted(names) and not second.left and not second.refused
    assert lines[0].startswith("dense: ") and len(lines) == 4, lines
    ledger_lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(ledger_lines) == 2  # shared values need no training
    _assert_files(dense, whole, second, tmp_path)

    monkeypatch.setattr(trials, "run", lambda job: pytest.fail(f"{job.name} runs again"))
    monkeypatch.setattr(points, "right", lambda *_: pytest.fail("a point is measured again"))
    _, third, _ = searched(dense, tmp_path, names)
    assert third.points == second.points and third.dense == second.dense


SHARED, PRUNED = "8-bit values", "70% of weights pruned, 4-bit values"


@pytest.fixture(scope="module")
def begun(dense, tmp_path_factory):
    """The folder of a frontier whose dense network is trained, and SHARED exported."""
    out = tmp_path_factory.mktemp("begun")
    assert searched(dense, out, (SHARED, PRUNED), seconds=0.0)[1].left == [PRUNED]
    return out


def raising(error):
    """Returns a function that raises an error."""

    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("number", [0, 1])
def test_a_candidate_of_which_a_training_fails_is_refused_and_the_others_go_on(dense, begun, monkeypatch, number):
    trial = search.Search(dense, [], {}, "bytes", 50.0, begun).trial(
        next(one for one in methods.candidates(dense, "bytes")[0] if one.name == PRUNED)
    )
    address, real = trials.address((trial.start, trial)[number]), launch.run_all

    def run_all(every, *args, **options):
        if address in map(trials.address, every):
            failure = queue.Failure("host", "Traceback\n  a line\nValueError: the reason\n", is_mistake=False)
            raise launch._failure([(address, failure)], 0)
        return real(every, *args, **options)

    monkeypatch.setattr(launch, "run_all", run_all)
    _, result, lines = searched(dense, begun, (SHARED, PRUNED), place=engines.Place("local", 2))
    assert result.refused == {PRUNED: "ValueError: the reason"} and list(result.points) == [SHARED]
    assert f"{PRUNED}: ValueError: the reason" in lines


def test_a_failure_in_this_process_is_of_its_candidate(dense, begun, monkeypatch):
    monkeypatch.setattr(trials, "run", raising(ValueError("out of luck")))
    assert searched(dense, begun, (SHARED, PRUNED))[1].refused == {PRUNED: "out of luck"}


def test_a_failure_of_the_launcher_ends_the_search(dense, begun, monkeypatch):
    real, dead = search._Runner._train, UserError("3 workers in a row ended before they began a trial")
    monkeypatch.setattr(
        search._Runner,
        "_train",
        lambda self, several: (real if several[0].name == DENSE else raising(dead))(self, several),
    )
    with pytest.raises(UserError, match="3 workers in a row"):
        searched(dense, begun, (PRUNED,))


def test_a_kill_after_an_export_leaves_no_facts_of_an_earlier_one(dense, tmp_path, monkeypatch):
    candidate = search.Search(dense, [], {}, "bytes", 0.5, tmp_path).start
    ours = {"trial": "a trial", "code": "a"}
    point = points.export(candidate, dense.folder, ours, tmp_path, "bytes", 0.5)
    assert points.export(candidate, dense.folder, ours, tmp_path, "bytes", 0.5) == point
    monkeypatch.setattr(points, "write_json", raising(KeyboardInterrupt))
    for trial in ({**ours, "code": "b"}, ours):  # the second must not take the folder of the other trial for its own
        with pytest.raises(KeyboardInterrupt):
            points.export(candidate, dense.folder, trial, tmp_path, "bytes", 0.5)


@pytest.mark.parametrize(
    ("measure", "best", "none"),
    [
        ("time", "chosen on held-out images as the fastest that loses at most 0.5", "is faster"),
        ("time", "2.0 times faster, +0.10 [-0.20, +0.40] points of test accuracy lost", "is faster"),
        ("bytes", "2.0 times smaller", "is smaller"),
        ("mult_adds", "as the one with the fewest mult-adds that loses at most 0.5", "has fewer mult-adds"),
    ],
)
def test_the_result_has_the_words_of_the_measure(measure, best, none):
    ratios = dict.fromkeys(("times_faster", "times_smaller", "times_fewer"), 2.0)
    good = {"name": "good", "held_out": 0.9, **ratios, "lost": 0.1, "low": -0.2, "high": 0.4}
    content = {"measure": measure, "lose": 0.5, "left": [], "rows": [{"name": DENSE, "held_out": 0.9}, good]}
    assert best in output.sentences({**content, "chosen": "good"})[0]
    dear = f"no candidate that loses at most 0.5 points on the held-out images {none} than dense"
    assert output.sentences({**content, "chosen": ""}) == [dear]
    content["rows"][1] = {**good, "held_out": 0.8}
    tried = "no candidate that was tried loses at most 0.5 points on the held-out images"
    assert output.sentences({**content, "chosen": ""}) == [tried]


def _assert_files(dense, whole, result, out):
    content = output.measured(whole, result) | {
        "model": "resnet8", "data": "digits", "command": "the command", "lose": 50.0, "measure": "bytes", "left": [],
        "steps": 4, "before": 12, "formats": ["compressed"], "commit": "c", "device": "d", "cores": 1, "seed": 0,
        "refused": {},
    }  # fmt: skip
    assert output.sentences(content)[0].startswith("4-bit values: ")
    output.write(out, content)
    rows = {row["name"]: row for row in csv.DictReader((out / "frontier.csv").open())}
    assert rows.keys() == {DENSE, *result.points}
    for point in (result.dense, *result.points.values()):
        size = sum(file.stat().st_size for file in point.folder.glob("model*"))
        assert int(rows[point.name]["bytes"]) == size
    four = rows["4-bit values"]
    assert four["on_front"] == "True" and float(four["times_smaller"]) > 2.5  # the smallest file
    network, test = loaded.load(out / "exported" / "4_bit_values"), dense.network.images.test
    batch = test.read(np.arange(len(test)))
    accuracy = (network.run(batch["image"])[0].argmax(1) == batch["label"]).mean()
    assert math.isclose(float(four["test"]), accuracy)
    page = (out / "frontier.md").read_text()
    assert "the command" in page and "| dense |" in page and (out / "frontier.png").stat().st_size > 5000
    assert json.loads((out / "frontier.json").read_text())["test_images"] == 360


def test_estimates_of_time_are_of_programs_that_run(dense):
    fitting, _ = methods.candidates(dense, "time", ("filters", "int8", "zero blocks"))
    costs, bad = estimates.estimate(dense, fitting, "time")
    assert not bad and len(costs) == len(fitting) > 3 and all(0 < one.milliseconds < 1e4 for one in costs.values())


def test_exits_leave_where_thresholds_say():
    model = models.create("early_exit_resnet62", width=4, stage_sizes=(1, 1, 1), exits=(1, 2), exit_width=0)
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    variables = models.initialize(model, jax.random.key(0), images.shape)
    pixels = np.random.default_rng(1).integers(0, 256, images.shape, np.uint8)
    card = {"inputs": [1, 8, 8, 3], "preprocessing": {"mean": [0.0], "std": [1.0]}, "probabilities": "softmax"}

    def logits(limits):
        return formats.of_variables(model, variables, {**card, "exits": {"thresholds": limits}})(pixels)[1]

    first, last = logits([-1.0, -1.0]), logits([2.0, 2.0])
    assert not np.allclose(first, last)
    np.testing.assert_allclose(last, jax.jit(model.apply)(variables, pixels / np.float32(255)), atol=1e-4)


# -- mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lose=100"], "--lose=100 must be in [0, 100), in percentage points of accuracy"),
        (["--measure=size"], "--measure 'size'; allowed: time, bytes, mult_adds"),
        (["--methods=filter"], "--methods 'filter'; did you mean 'filters'? allowed: filters,"),
        ([], "is not the folder of a run"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, flags, message):
    command = [sys.executable, "-m", "experiments.frontier", f"--workdir={tmp_path}", *flags]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("task", "optimizer", "message"),
    [
        ("multi_exit", {}, "runs/x trained task.name=multi_exit; allowed: classify, distill"),
        ("translate(beam=4)", {}, "allowed: classify, distill"),
        ("classify", {"prune": "magnitude(0.5)"}, "runs/x is compressed already"),
        ("distill(teacher='runs/y')", {"share": "linear(conv=8)"}, "runs/x is compressed already"),
    ],
)
def test_other_tasks_and_compressed_runs_are_refused(task, optimizer, message):
    with pytest.raises(UserError, match=re.escape(message)):
        dense_run.check({"task": {"name": task}, "optimizer": optimizer}, "runs/x")


def test_a_run_without_checkpoints_and_a_folder_of_another_run_are_refused(dense, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(dense.folder / "config.json", empty)
    with pytest.raises(UserError, match="checkpoint"):
        dense_run.read(str(empty))
    dense_run.own(tmp_path / "out", dense)
    dense_run.own(tmp_path / "out", dense)
    with pytest.raises(UserError, match="has the frontier of another run"):
        dense_run.own(tmp_path / "out", dataclasses.replace(dense, steps=5))
    (tmp_path / "out").rename(tmp_path / "moved")  # its trainings hold paths
    with pytest.raises(UserError, match=re.escape(f"--out={tmp_path / 'moved'} was {tmp_path / 'out'}: move it back")):
        dense_run.own(tmp_path / "moved", dense)
    with pytest.raises(UserError, match=re.escape(f"--workdir={tmp_path} was {dense.folder}: move it back, or")):
        dense_run.own(tmp_path / "moved", dataclasses.replace(dense, folder=tmp_path))

"""python -m train.adaptive and configs/adaptive.py: tiny runs with measurements, and each config."""

import json
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import adaptive as config
from models import weights
from models.analysis import cost as complexity
from models.analysis import exit_policy
from models.errors import UserError
from models.gated import costs
from models.layers import conditional
from models.layers.endpoint import capture
from tests import tiny
from tests.tiers import keep_first
from tests.train.tasks.test_adaptive import RUNS, TEXTS
from tests.train.tasks.test_adaptive import config as run_config
from train import adaptive, loop, restore
from train.export import loaded, write
from train.run import build_run
from train.tasks.multi_exit import exit_costs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns runs of a few steps: with gates, with exits, and a plain network from which blockdrop's config starts."""
    root = tmp_path_factory.mktemp("adaptive")
    short = {"duration": "6 steps", "steps_per_call": 6, "optimizer__learning_rate": 0.02}
    loop.train(run_config(RUNS["gated"], TEXTS["gated"], **short), root / "gated")
    loop.train(
        run_config(RUNS["multi_exit"], TEXTS["multi_exit"], data__train_split="train_fit", **short), root / "exits"
    )
    loop.train(tiny.config(duration="1 steps", steps_per_call=1), root / "plain")
    return root


@pytest.fixture(scope="module")
def gated(folders):
    return restore.load(folders / "gated")


@pytest.fixture(scope="module")
def exits(folders):
    return restore.load(folders / "exits")


# -- measuring -----------------------------------------------------------------------------------------------------


def test_blocks_as_decided_and_all(gated):
    run, state = gated
    everything, decided = adaptive.measure(run, state)
    assert (everything["way"], decided["way"]) == ("all blocks", "as decided")
    cost = costs(run.task.model, complexity.analyze(run.task.model, (1, 8, 8, 1)))
    assert everything["mult_adds"] == cost.always + sum(cost.blocks)
    assert everything["blocks"] == 2 and 1 <= decided["blocks"] <= 2
    results = run.evaluate(run.parallel.place(state))
    assert decided["accuracy"] == pytest.approx(results["accuracy"])
    assert decided["blocks"] == pytest.approx(results["blocks"])
    assert decided["mult_adds"] == pytest.approx(results["average_mult_adds"], rel=1e-5)
    decisions = adaptive.blocks(run, state)
    np.testing.assert_allclose(decisions["computed"].mean(0), results["gate_rates"], rtol=1e-5)
    assert len(decisions["labels"]) == 360


def test_each_exit_and_a_range_of_budgets(exits):
    run, state = exits
    costs = exit_costs(run.task.model, (8, 8, 1))
    rows = adaptive.measure(run, state)
    assert [row["way"] for row in rows] == ["exit 1", "exit 2"] + ["batch"] * adaptive.POINTS
    results = run.evaluate(run.parallel.place(state))
    assert [row["accuracy"] for row in rows[:2]] == pytest.approx(results["accuracy_by_exit"])
    assert [row["mult_adds"] for row in rows[:2]] == list(costs) == results["mult_adds_by_exit"]
    for row in rows[2:]:
        assert sum(row["left"]) == pytest.approx(1) and costs[0] < row["budget"] < costs[1]
        assert row["mult_adds"] == pytest.approx(np.dot(row["left"], costs))
        assert row["mult_adds"] == pytest.approx(row["budget"], rel=0.1)  # fitted on other images
    assert np.all(np.diff([row["mult_adds"] for row in rows[2:]]) > 0)


def test_a_budget_of_every_image(exits):
    run, state = exits
    costs = exit_costs(run.task.model, (8, 8, 1))
    first, last, also_last = adaptive.measure(run, state, [costs[1] - 1, costs[1], 1e12], everyone=True)
    assert (first["way"], last["way"], also_last["way"]) == ("exit 1", "exit 2", "exit 2")
    assert also_last == {**last, "budget": 1e12} and first["budget"] == costs[1] - 1


def test_the_network_leaves_where_the_rows_say(exits):
    """Compares thresholds as `leave=` of the network with thresholds on the output of all exits."""
    run, state = exits
    costs = exit_costs(run.task.model, (8, 8, 1))
    row = adaptive.measure(run, state, [0.6 * costs[0] + 0.4 * costs[1]])[-1]

    @jax.jit
    def left(variables, images):
        logits, outputs = capture(run.task.model, variables, images, leave=jnp.asarray(row["thresholds"]))
        return jnp.argmax(logits, -1), outputs["left"]

    at, right = [], []
    for batch in run.feed.test_batches():
        batch = run.feed.prepare_evaluation(batch)
        best, exit = left(state.evaluation_variables(), batch["image"])
        real = np.asarray(batch["mask"]) > 0
        at.extend(np.asarray(exit)[real])
        right.extend(np.asarray(best == batch["label"])[real])
    outputs = adaptive.exits(run, state, run.feed.test_batches())
    np.testing.assert_array_equal(at, exit_policy.leave(outputs["confidence"], np.asarray(row["thresholds"])))
    assert np.mean(right) == pytest.approx(row["accuracy"])
    np.testing.assert_allclose(np.bincount(at, minlength=2) / 360, row["left"])
    assert 0 < row["left"][0] < 1


@pytest.mark.parametrize("format", ["safetensors", "compressed"])
def test_an_export_leaves_where_its_thresholds_say(exits, tmp_path, format):
    run, state = exits
    write.of_run(run, state, format, tmp_path / "out", exits=0.8)
    opened, pixels = loaded.load(tmp_path / "out"), run.images.test.read(np.arange(360))["image"]
    entry = opened.card["exits"]
    assert entry["mult_adds"] <= 0.81 * opened.card["mult_adds"] and 0 < entry["left"][0] < 1
    variables = state.evaluation_variables()
    images = run.feed.prepare_evaluation({"image": pixels})["image"]
    logits, outputs = capture(run.task.model, variables, images, leave=jnp.asarray(entry["thresholds"], jnp.float32))
    assert 0 < np.mean(outputs["left"]) < 1
    np.testing.assert_allclose(opened.run(pixels)[1], logits, atol=1e-5)


def test_an_export_skips_what_comes_after_the_exits(exits, tmp_path, monkeypatch):
    """Counts the branches that are traced for each new size of a batch, and compares with masked results."""
    write.of_run(*exits, "safetensors", tmp_path / "out", exits=0.8)
    opened, pixels = loaded.load(tmp_path / "out"), exits[0].images.test.read(np.arange(3))["image"]
    branches, switch = [], conditional.nn.switch
    monkeypatch.setattr(
        conditional.nn, "switch", lambda i, parts, *rest: branches.append(len(parts)) or switch(i, parts, *rest)
    )
    for count in (3, 1):
        opened.run(pixels[:count])
        assert branches and set(branches) == {count + 1}  # 0, ..., count images are computed
        branches.clear()
    assert opened.run(pixels)[1].shape == (3, 10) and not branches  # compiled already


def test_thresholds_are_fitted_to_the_network_that_is_written(exits, tmp_path):
    """Compares with thresholds for rounded weights, whose confidences differ."""
    run, state = exits
    card = write.of_run(run, state, "compressed", tmp_path / "out", exits=0.8, share="linear(conv=2, dense=2)")
    batches = [run.feed.prepare_evaluation(batch) for batch in adaptive.held_out(run)]
    model, variables = loaded.load(tmp_path / "out").network()
    real = np.concatenate([np.asarray(batch["mask"]) > 0 for batch in batches])
    leave = jnp.asarray(card["exits"]["thresholds"], jnp.float32)
    left = [capture(model, variables, batch["image"], leave=leave)[1]["left"] for batch in batches]
    shares = np.bincount(np.concatenate(left)[real], minlength=2) / real.sum()
    np.testing.assert_allclose(shares, card["exits"]["left"], atol=0.01)
    whole = adaptive.entry(run, state, 0.8)["thresholds"]
    assert abs(whole[0] - card["exits"]["thresholds"][0]) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": 0.5, "format": "onnx"}, "--exits=0.5 is for --format=safetensors and compressed, not --format=onnx"),
        ({"exits": 1.5}, "--exits=1.5: must be a share of the whole network's mult-adds, above 0 and at most 1"),
        ({"exits": 0.5}, "--exits=0.5: the first exit alone takes 0.63 of the mult-adds"),
    ],
)
def test_exits_that_cannot_be_exported_are_refused(exits, tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        write.of_run(*exits, out=tmp_path / "out", **{"format": "safetensors", **options})


def test_a_network_without_exits_is_named(folders, tmp_path):
    for kind, name in (("gated", "convnet_aig38"), ("plain", "resnet8")):
        with pytest.raises(UserError, match=f"{name} has no exits: --exits=0.5 needs a network such as msdnet_cifar"):
            write.of_run(*restore.load(folders / kind), "safetensors", tmp_path / "out", exits=0.5)
    for share in (0.0, float("nan")):
        with pytest.raises(UserError, match=f"--exits={share:g}: must be a share"):
            write.check_exits("safetensors", share)


def test_easy_and_hard_images(gated, exits):
    run, state = gated
    used, right = (adaptive.blocks(run, state)[name] for name in ("computed", "right"))
    images = adaptive.extremes(run, state, 5)
    easy, hard = ([used[i].sum() for i, _ in images[name]] for name in ("easy", "hard"))
    assert max(easy) == min(used[right].sum(1)) and min(hard) == max(used[right].sum(1))
    assert all(right[i] for name in images for i, _ in images[name])
    run, state = exits
    images, right = adaptive.extremes(run, state, 5), adaptive.exits(run, state, run.feed.test_batches())["right"]
    assert all(right[i, 0] for i, _ in images["easy"]) and len(images["easy"]) == 5
    assert all(right[i].tolist() == [False, True] for i, _ in images["hard"])
    shares = adaptive.by_class(np.array([[1, 0], [0, 0], [1, 1]]), np.array([1, 1, 0]), 2)
    assert shares == [[1, 1], [0.5, 0]]


@pytest.mark.parametrize(
    ("trained", "source", "expected"),
    [
        ("train_fit", "", "validation"),
        ("train[:45000]", "", "train[45000:]"),
        ("train[:90%]", "", "train[90%:]"),
        ("train", "test2", "test2"),
        ("train_fit", "other", "other"),
    ],
)
def test_thresholds_are_fitted_on_held_out_images(trained, source, expected):
    options = {"train_split": trained, "test_split": "test", "select": "classes('0-4')", "select_test": ""}
    feed = types.SimpleNamespace(batches=lambda opened: [opened], split=lambda name, select_test: (name, select_test))
    run = types.SimpleNamespace(config={"data": options}, feed=feed)
    assert list(adaptive.held_out(run, source)) == [(expected, "classes('0-4')")]


@pytest.mark.parametrize(("split", "what"), [("train_fit", "trained"), ("test", "tested")])
def test_images_that_were_trained_or_tested_on_are_refused(split, what):
    run = types.SimpleNamespace(config={"data": {"train_split": "train_fit", "test_split": "test"}})
    with pytest.raises(UserError, match=f"--validation={split} is the split that the run was {what} on"):
        adaptive.held_out(run, split)


@pytest.mark.parametrize("trained", ["train", "train[1000:]", "train[10:20]", "train[:50%]+train[60%:]"])
def test_missing_held_out_images_are_reported(trained):
    run = types.SimpleNamespace(config={"data": {"train_split": trained, "test_split": "test"}})
    with pytest.raises(UserError, match="images that were not trained on") as error:
        adaptive.held_out(run)
    assert f"data.train_split='{trained}'" in str(error.value) and "\n" not in str(error.value)


def test_held_out_images_are_the_others(exits):
    run, _ = exits
    total = sum(int(np.sum(batch["mask"])) for batch in adaptive.held_out(run))
    assert total + len(run.feed.train) == 1437


def test_meaningless_budgets_are_refused(folders, gated, exits):
    costs = exit_costs(exits[0].task.model, (8, 8, 1))
    for everyone in (False, True):
        with pytest.raises(UserError, match=f"budget=100 .* the cost of the cheapest exit, {costs[0]:,}"):
            adaptive.measure(*exits, [1e6, 100.0], everyone)
    with pytest.raises(UserError, match="--budget, --anytime and --validation are for networks with exits"):
        adaptive.measure(*gated, [1e6])
    with pytest.raises(UserError, match="this run trained resnet8 by task.name=classify; allowed: networks with gates"):
        adaptive.measure(*restore.load(folders / "plain"))


# -- the command line ----------------------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "train.adaptive", *arguments],
        cwd=tiny.ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "flags", "ways"),
    keep_first(
        1,
        [
            ("gated", (), ["all blocks", "as decided"]),
            ("exits", ("--budget=3e4,3.5e4",), ["exit 1", "exit 2", "batch", "batch"]),
        ],
    ),
)
def test_the_command(folders, tmp_path, kind, flags, ways):
    done = command(f"--workdir={folders / kind}", f"--out={tmp_path / 'out'}", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "adaptive.json").read_text())
    for name in ("classes.png", "images.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert [row["way"] for row in result["rows"]] == ways and result["model"] == RUNS[
        "multi_exit" if kind == "exits" else kind
    ][0]
    assert "100.0%" in done.stdout and all(way in done.stdout for way in ways)


@pytest.mark.parametrize(
    ("flags", "message"),
    keep_first(
        1,
        [
            (("--workdir=/nowhere", "--budget=much"), "--budget=much: must be mult-adds"),
            ((), "--workdir is missing"),
            (("--workdir=/nowhere",), "/nowhere is not the folder of a run"),
            (("--workdir={gated}", "--budget=1e6"), "--anytime and --validation are for networks with exits"),
        ],
    ),
)
def test_mistakes(folders, flags, message):
    done = command(*(flag.format(gated=folders / "gated") for flag in flags))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# -- configs -------------------------------------------------------------------------------------------------------


def text(method, scale):
    start = ",from=runs/x" if method.startswith("blockdrop") else ""
    return f"method={method},scale={scale}{start}"


@pytest.mark.parametrize("scale", config.SCALES)
@pytest.mark.parametrize("method", config.METHODS)
def test_every_method_and_scale_has_a_config(method, scale):
    if (method, scale) == ("early_exit", "imagenet"):
        with pytest.raises(ValueError, match="early_exit has no default network for ImageNet"):
            config.get_config(text(method, scale))
        return
    c = config.get_config(text(method, scale))
    assert c.task.name.startswith({"aig": "gated", "blockdrop": "policy"}.get(method.split("_")[0], "multi_exit"))
    assert c.init_from == ("runs/x" if method.startswith("blockdrop") else "")
    assert (c.data.train_split == "train") == (method not in ("msdnet", "early_exit"))
    assert config.get_config(text(method, scale) + ",epochs=3").duration == "3 epochs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("method=aigs", "unknown method 'aigs'; allowed: aig, blockdrop, blockdrop_joint, msdnet, early_exit"),
        ("scale=mnist", "unknown scale 'mnist'; allowed: digits, cifar10, cifar100, imagenet"),
        ("method=blockdrop", "blockdrop starts from a trained residual network"),
        ("from=runs/x", "from=runs/x is for blockdrop and blockdrop_joint"),
        ("methd=aig", "methd"),
        ("epochs=many", "epochs"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        config.get_config(arguments)


SHRUNK = {
    "aig": {"stage_sizes": (1, 1)},
    "msdnet": {"num_exits": 2, "base": 2, "step": 1, "growth_factors": (1,), "bottleneck_factors": (1,)},
    "early_exit": {"stage_sizes": (1, 1), "exits": (1,)},
}


@pytest.mark.parametrize("method", keep_first(1, SHRUNK))
def test_the_digits_configs_set_up(method):
    c = config.get_config(f"method={method}")
    c.model.update({"width": 4, **SHRUNK[method]})
    c.devices = 1
    run = build_run(c)
    assert run.total == round(30 * len(run.feed.train) / 64)
    assert len(run.feed.train) == (
        1437 if method == "aig" else 1437 - sum(int(np.sum(batch["mask"])) for batch in adaptive.held_out(run))
    )


def test_blockdrop_from_a_network_and_both_from_that(folders, tmp_path):
    def setup(method, start):
        c = config.get_config(f"method={method},from={start}")
        c.model.width, c.model.stage_sizes, c.model.policy_sizes, c.devices = 4, (1, 1, 1), (1,), 1
        return build_run(c)

    run, path = setup("blockdrop", folders / "plain"), tmp_path / "policy.safetensors"
    variables = jax.tree.map(np.asarray, run.state.variables())
    np.testing.assert_array_equal(
        variables["params"]["head"]["kernel"], restore.load(folders / "plain")[1].params["head"]["kernel"]
    )
    weights.save(path, run.task.model, variables, {"model": "blockdrop110", "fields": {}})
    tiny.assert_same(setup("blockdrop_joint", path).state.variables(), variables)

"""Tests of sweeps: the space, what is checked before anything runs, tables, pictures, halving, the best command."""

import csv
import io
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import rich.console
from PIL import Image

from experiments import study, sweep
from experiments.study import trials
from experiments.sweeps import halving, plan, space
from models.errors import UserError
from tests import tiny
from train import cli, loop
from train.storage import checkpoint

TINY = "from tests import tiny\ndef get_config(text=''):\n    return tiny.config({})\n"


@pytest.fixture
def base(tmp_path):
    """The arguments of a tiny config."""
    return write(tmp_path, duration="4 steps", evaluate_every="100%", checkpoint_every="100%")


def write(folder, **changes):
    """Writes a config file, and returns its arguments."""
    (folder / "small.py").write_text(TINY.format(", ".join(f"{key}={value!r}" for key, value in changes.items())))
    return [f"--config={folder / 'small.py'}"]


def execute(planned, out, **options):
    """Runs a sweep in this process; returns the content of results.json, and the output."""
    output = io.StringIO()
    options = sweep.Options(**{"out": out, "name": "mine", **options})
    content = sweep.execute(planned, options, rich.console.Console(file=output, width=200), "the command")
    return content, output.getvalue()


# -- the space -----------------------------------------------------------------------------------------------


def test_values_have_the_types_of_their_keys_and_every_combination_is_a_setting(base):
    overs = [
        "optimizer.learning_rate=1,.5",
        "model.norm=batch,group:2",
        "optimizer.name=sgd(momentum=0.9, nesterov=True)",
    ]
    planned = plan.read(base, [*overs, "seed=3:5"])
    assert list(planned.keys) == ["learning_rate", "norm", "optimizer.name"]  # model.name ends in "name", too
    labels = [dict(setting.labels) for setting in planned.settings]
    assert [(one["learning_rate"], one["norm"]) for one in labels] == [
        (1.0, "batch"), (1.0, "group:2"), (0.5, "batch"), (0.5, "group:2"),
    ]  # fmt: skip
    assert type(planned.settings[0].config.optimizer.learning_rate) is float
    assert labels[0]["optimizer.name"] == "sgd(momentum=0.9, nesterov=True)"
    chosen = planned.settings[1].trials(planned.seeds)
    assert [trial.config.seed for trial in chosen] == [trial.labels["seed"] for trial in chosen] == [3, 4]
    assert chosen[0].config.model.norm == "group:2" and planned.settings[0].config.model.norm == "batch"
    assert plan.read(base, ["model.width=4,8"]).seeds == [0]
    assert plan.read([*base, "--config.seed=7"], []).seeds == [7]


@pytest.mark.parametrize(
    ("overs", "options", "message"),
    [
        (["optimizer"], {}, "--over=optimizer: write KEY=VALUE,VALUE"),
        (["batch_size=16,1.5"], {}, r"--over batch_size=1.5: .*invalid literal for int"),
        (["optimizer=1"], {}, "'optimizer' is a section, not '1'; did you mean 'optimizer.name'"),
        (["optimzer.clip_norm=1"], {}, "unknown config key 'optimzer'"),
        (["model.norm=batch", "model.norm=group"], {}, "model.norm is there twice"),
        (["batch_size=16,16"], {}, "--over batch_size: 16 is there twice"),
        (["optimizer.l1=0.1,.1"], {}, r"--over optimizer.l1: .1 is there twice"),
        (["seed=0:2", "seed=3"], {}, "seed is there twice"),
        (["seed=2:2"], {}, "--over seed=2:2: write FIRST:END"),
        (["seed=a"], {}, "--over seed=a: write FIRST:END"),
        (["seed=0:5000", "model.width=4,8,16"], {}, "the sweep has 15,000 trials; the maximum is 10,000"),
        (["seed=0:50"], {"random": 300}, "the sweep has 15,000 trials"),
        (["optimizer.l1=log(1e-3,1)"], {}, r"optimizer.l1=log\(0.001,1\) needs --random=N"),
        (["optimizer.l1=log(0,1)"], {"random": 2}, "the bounds of log must be above 0"),
        (["optimizer.l1=uniform(2,1)"], {"random": 2}, "the first bound must be below the second"),
        (["optimizer.l1=uniform(a,1)"], {"random": 2}, "the bounds must be numbers"),
        (["model.width=int(1.5,4)"], {"random": 2}, "the bounds of int must be whole numbers"),
        (["model.width=int(1,1e20)"], {"random": 2}, "the bounds are too far from 0"),
        (["optimizer.l1=uniform(-1e308,1e308)"], {"random": 2}, "the bounds are too far from 0"),
        (["seed=0:5000000000"], {}, "these are too many seeds; allowed: at most 10,000"),
        (["seed=0:2"], {"random": 2}, "--random draws values of keys"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(base, overs, options, message):
    with pytest.raises(UserError, match=message):
        plan.read(base, overs, **options)


def test_a_key_that_is_set_and_swept_is_refused(base):
    with pytest.raises(UserError, match=r"--over model.width: --config.model.width sets it, too"):
        plan.read([*base, "--config.model.width=4"], ["model.width=4,8"])


def test_what_a_setting_breaks_is_said_with_its_name(base, tmp_path):
    for over, message in (
        ("lr=0.1", r"lr=0.1: config key 'lr' is read by nothing; did you mean 'optimizer.learning_rate'"),
        ("model.norm=batch,grop", r"norm=grop: unknown norm 'grop'; did you mean 'group'"),
        ("batch_size=16,0", r"batch_size=0: "),
    ):
        with pytest.raises(UserError, match=message):
            execute(plan.read(base, [over]), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("trials.jsonl"))


def test_checks_are_remembered(base, tmp_path, monkeypatch):
    settings, file = plan.read(base, ["model.norm=batch,group:3"]).settings, tmp_path / "checked.json"
    with pytest.raises(UserError, match="norm=group:3: .* not divisible"):
        plan.check(settings, file)
    assert plan.check(settings[:1], file) == [4] and len(json.loads(file.read_text())) == 1
    monkeypatch.setattr(plan, "steps_of", lambda setting: 7)
    assert plan.check(settings, file) == [4, 7]
    monkeypatch.setattr(trials, "code_of", lambda trial: "other")
    file.write_text("damaged")
    assert plan.check(settings, file) == [7, 7]


def test_draws_are_the_same_in_every_process_and_within_their_bounds(base):
    overs = [
        "optimizer.learning_rate=log(1e-3,1)",
        "optimizer.l1=uniform(2,4)",
        "model.width=int(1,3)",
        "model.norm=batch,group",
    ]
    keys = space.read(overs).keys
    drawn = space.draws(keys, 200, 0)
    assert len(drawn) == 200 and drawn[:50] == space.draws(keys, 50, 0) != space.draws(keys, 50, 1)
    rates = np.array([float(one["optimizer.learning_rate"]) for one in drawn])
    assert 1e-3 <= rates.min() < 3e-3 and 0.3 < rates.max() <= 1 and np.median(rates) == pytest.approx(0.03, rel=0.6)
    assert {one["model.width"] for one in drawn} == {"1", "2", "3"} and {one["model.norm"] for one in drawn} == {
        "batch",
        "group",
    }
    assert all(2 <= float(one["optimizer.l1"]) <= 4 for one in drawn)
    assert len(space.draws(keys[2:], 200, 0)) == 6  # without repetitions
    script = (
        "import json\nfrom experiments.sweeps import space\n"
        f"print(json.dumps(space.draws(space.read({overs!r}).keys, 50, 0)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == drawn[:50]
    planned = plan.read(base, overs, random=5)
    assert planned.settings[4].config.optimizer.learning_rate == float(drawn[4]["optimizer.learning_rate"])


def test_lists_are_split_outside_of_brackets_and_quotes():
    assert space.split("sgd(momentum=0.9, nesterov=True),adam()") == ["sgd(momentum=0.9, nesterov=True)", "adam()"]
    assert space.split("(1, 2),(3,)") == ["(1, 2)", "(3,)"] and space.split("'a,b',c") == ["'a,b'", "c"]
    assert space.split(",magnitude(0.9)") == ["", "magnitude(0.9)"]


# -- a sweep -------------------------------------------------------------------------------------------------


def test_a_sweep_has_a_row_per_setting_pictures_and_a_command_that_works(base, tmp_path):
    planned = plan.read(base, ["optimizer.learning_rate=0.01,0.1", "model.norm=batch,none"])
    content, output = execute(planned, tmp_path / "out")
    folder = tmp_path / "out" / "mine"
    assert "4 settings, 1 seed each" in output and "4/4" in output
    assert content == json.loads((folder / "results.json").read_text())
    assert len((folder / "trials.jsonl").read_text().splitlines()) == 4
    rows = content["settings"]
    means = [row["mean"] for row in rows]
    assert means == sorted(means, reverse=True) and content["metric"] == "accuracy"
    for row in rows:
        assert (
            row["mean"] == row["runs"][0]["accuracy"] and row["steps"] == 4 and not row["std"] and not row["diverged"]
        )
    with (folder / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["mean"]) for line in lines] == means and lines[0]["norm"] == rows[0]["setting"]["norm"]
    assert [figure["file"] for figure in content["figures"]] == ["lines.png", "heatmap.png"]
    for figure in content["figures"]:
        assert_not_blank(folder / figure["file"])
        assert f"]({figure['file']})" in (folder / "results.md").read_text()
    assert output.rstrip().endswith(content["best"]["command"])
    again, output = execute(planned, tmp_path / "out")  # nothing is left, and nothing is checked
    assert again["settings"] == rows and "4/4" not in output and not list((folder / "trials").glob("*/checkpoints"))
    words = shlex.split(content["best"]["command"])
    assert words[:3] == ["python", "-m", "train"] and words[-1] == "--workdir=runs/mine-best"
    best = next(setting for setting in planned.settings if setting.labels == content["best"]["setting"])
    assert cli.read_config(words[3:-1]).to_dict() == best.trials([0])[0].config.to_dict()


@pytest.mark.full
def test_the_best_command_gives_the_accuracy_of_its_trial(tmp_path):
    base = [*write(tmp_path, duration="4 steps"), "--config.optimizer.warmup=0 steps", "--config.data.mean=(0.4,)"]
    planned = plan.read(base, ["optimizer.name=sgd(momentum=0.9, nesterov=True)", "seed=3"])
    content, _ = execute(planned, tmp_path / "out")
    words = shlex.split(content["best"]["command"])
    done = tiny.run(*words[3:-1], f"--workdir={tmp_path / 'best'}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "best" / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(content["settings"][0]["mean"], abs=0.02) and summary["seed"] == 3


def assert_not_blank(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100 and pixels.std() > 10


def test_a_dry_run_lists_the_settings_and_runs_nothing(base, tmp_path):
    planned = plan.read(base, ["optimizer.learning_rate=log(0.01,1)"], random=3)
    content, output = execute(planned, tmp_path / "out", dry=True)
    assert content == {} and "3 trials: 0 finished, 3 left" in output
    assert all(str(setting.labels["learning_rate"]) in output for setting in planned.settings)
    assert not list((tmp_path / "out").rglob("trials.jsonl"))


def test_seeds_of_one_setting_give_a_file_of_results(base, tmp_path):
    planned = plan.read(base, ["seed=0:2"])
    (row,) = execute(planned, tmp_path / "out", json=tmp_path / "seeds.json")[0]["settings"]
    content = json.loads((tmp_path / "seeds.json").read_text())
    accuracies = [run["accuracy"] for run in content["runs"]]
    assert content["accuracy_mean"] == row["mean"] == np.mean(accuracies) and content["steps"] == 4
    assert content["accuracy_std"] == row["std"] and [run["seed"] for run in row["runs"]] == [0, 1]
    assert (
        content["accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
        and content["config"]["model"]["width"] == 4
    )
    committed = json.loads((tiny.ROOT / "experiments" / "results" / "digits.json").read_text())
    assert content.keys() == committed.keys() and content["runs"][0].keys() == committed["runs"][0].keys()
    with pytest.raises(UserError, match="it holds the seeds of one setting"):
        execute(plan.read(base, ["model.width=4,8"]), tmp_path / "out", json=tmp_path / "seeds.json")


# -- successive halving --------------------------------------------------------------------------------------


def test_rungs():
    three = halving.rungs(3, [675] * 9)
    assert [(rung.settings, rung.steps[0]) for rung in three] == [(9, 75), (3, 225), (1, 0)]
    assert halving.describe(three, [675] * 9) == "rungs: 9 settings to step 75, 3 to 225, 1 to 675"
    assert [(rung.settings, rung.steps[0]) for rung in halving.rungs(3, [675] * 10)] == [(10, 75), (3, 225), (1, 0)]
    assert [rung.settings for rung in halving.rungs(2, [100] * 8)] == [8, 4, 2, 1]
    assert halving.rungs(0, [5, 7]) == [halving.Rung(2, [0, 0])]
    mistakes = {"needs at least 3": (3, [675] * 2), "1 steps is too short": (3, [1] * 9), "stop nothing": (1, [9])}
    for message, (factor, totals) in mistakes.items():
        with pytest.raises(UserError, match=message):
            halving.rungs(factor, totals)


def test_networks_of_halving_equal_those_trained_at_once_to_the_bit(tmp_path):
    arguments = write(tmp_path, duration="12 steps", evaluate_every="100%", checkpoint_every="100%")
    planned = plan.read(arguments, ["optimizer.learning_rate=0.001,0.1"])
    content, output = execute(planned, tmp_path / "out", halving=2, keep=True)
    folder = tmp_path / "out" / "mine"
    assert "rungs: 2 settings to step 6, 1 to 12" in output
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    first = {line["labels"]["learning_rate"]: line["outcome"]["summary"] for line in lines[:2]}
    assert [line["outcome"]["summary"]["steps"] for line in lines] == [6, 6, 12]
    best, other = content["settings"]
    assert (best["rungs"], best["steps"], other["rungs"], other["steps"]) == (2, 12, 1, 6)
    accuracies = [first[row["setting"]["learning_rate"]]["accuracy"] for row in (best, other)]
    assert accuracies == sorted(accuracies, reverse=True) and other["mean"] == accuracies[1]
    (trial,) = next(one for one in planned.settings if one.labels == best["setting"]).trials([0])
    loop.train(trial.config, tmp_path / "once")
    folders = folder / "trials" / trials.address(trial), tmp_path / "once"
    tiny.assert_same(*(checkpoint.read(path)[0] for path in folders))
    assert_not_blank(folder / "halving.png")
    again, output = execute(planned, tmp_path / "out", halving=2)
    assert (
        again["settings"] == content["settings"] and "accuracy" not in output.split("1 to 12")[1].split("Settings")[0]
    )


def test_a_pause_is_not_an_end(tmp_path):
    config = tiny.config()
    paused = loop.train(config, tmp_path / "run", until=5)  # within a dispatch of two steps
    assert paused["steps"] == 6 and not (tmp_path / "run" / "summary.json").exists()
    assert loop.train(config, tmp_path / "run", until=5)["loss"] == paused["loss"]  # as after a kill
    assert loop.train(config, tmp_path / "run", until=100)["steps"] == 12  # beyond the end
    with pytest.raises(UserError, match="is at step 12, beyond 5, where it should pause"):
        loop.train(config, tmp_path / "run", until=5)


def test_a_pause_enters_the_address_but_not_the_folder():
    whole = study.Trial({}, tiny.config())
    paused = whole._replace(until=3)
    assert trials.address(whole) == "resnet8-" + trials.folder_name(whole)[-12:] == trials.folder_name(paused)
    assert trials.address(paused) == f"{trials.address(whole)}@3"


# -- Optuna --------------------------------------------------------------------------------------------------


def test_optuna_chooses_settings_and_prunes_them_at_their_rungs(base, tmp_path):
    optuna = pytest.importorskip("optuna")
    from experiments.sweeps.optuna_search import objective

    optuna.logging.disable_default_handler()
    values = {"optimizer.learning_rate": "log(0.01,1)", "model.width": "int(3,4)", "model.norm": "batch,none"}
    optimized = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=1.1, n_warmup_steps=3)
    )
    optimized.optimize(objective(base, values, tmp_path / "out", rungs=[2]), n_trials=1)
    (first,) = optimized.trials
    lines = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert first.state.name == "COMPLETE" and first.intermediate_values.keys() == {2}
    assert [line["outcome"]["summary"]["steps"] for line in lines] == [2, 4]
    assert [line["outcome"]["summary"]["accuracy"] for line in lines] == [first.intermediate_values[2], first.value]
    assert lines[0]["labels"]["norm"] == first.params["model.norm"]
    pruned = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=1.1))
    pruned.enqueue_trial(first.params)
    pruned.optimize(objective(base, values, tmp_path / "out", rungs=[2]), n_trials=1)
    assert pruned.trials[0].state.name == "PRUNED" and pruned.trials[0].intermediate_values == first.intermediate_values
    assert len((tmp_path / "out" / "trials.jsonl").read_text().splitlines()) == 2  # nothing ran again

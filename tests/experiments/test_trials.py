"""Tests of running trials: each runs once, in its own folder, after any interruption, in one process or several."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rich.console

from experiments import run
from experiments.study import Trial, engines, launch, ledger, trials
from models import plugins
from models.errors import UserError
from tests import tiny
from tests.tiers import keep_first
from train.recording import summary
from train.setup import config

INTERRUPTED = """
import sys
from pathlib import Path
from models.errors import UserError
from tests.experiments import test_trials

if __name__ == "__main__":
    try:
        test_trials.run_in(Path(sys.argv[1]), int(sys.argv[2]))
    except UserError as error:
        sys.exit(f"UserError: {error}")
"""


def size(run, state):
    return {"step": int(state.step), "head": float(abs(state.params["head"]["kernel"]).sum())}


def total(run, state):
    return run.total


def trial(seed, measures=(), train=True, **changes):
    c = tiny.config(
        **{
            "duration": "4 steps",
            "log_every": "2 steps",
            "evaluate_every": "4 steps",
            "checkpoint_every": "100%",
            "seed": seed,
            **changes,
        }
    )
    return Trial({"seed": seed, **changes}, c, train=train, measures=measures)


def long():
    """Returns trials, the second of which lasts long enough to be interrupted."""
    return [trial(0), trial(1, (size,), duration="800 steps", log_every="50 steps", evaluate_every="100%"), trial(2)]


def run_all(planned, root, jobs=1, **options):
    output = io.StringIO()
    lines = ledger.Ledger(root.parent / "ledger")
    outcomes = launch.run_all(
        planned,
        lines,
        root,
        engines.Place(at_once=jobs),
        rich.console.Console(file=output),
        **{"keep": True, **options},
    )
    return outcomes, output.getvalue()


def run_in(root, jobs):
    """Runs the long trials in a process of their own."""
    run_all(long(), root, jobs, keep=False)


def lines_of(root):
    """Returns the lines of the ledger of `run_all`."""
    return [json.loads(line) for line in (root.parent / "ledger" / ledger.NAME).read_text().splitlines()]


def test_finished_trials_are_in_the_ledger_and_equal_ones_run_once(tmp_path):
    root = tmp_path / "runs"
    same = trial(0, (total,))._replace(labels={"part": "another"})
    planned = [trial(0, (size,)), trial(1), same, trial(0, (size,), train=False)]
    outcomes, output = run_all(planned, root, keep=False)
    assert output.count("\n") == 3 and "3/3" in output  # of four; the untrained one differs
    assert [outcome.labels for outcome in outcomes] == [t.labels for t in planned]
    assert outcomes[0].summary == outcomes[2].summary and outcomes[0].summary["steps"] == 4
    assert outcomes[0].measured["size"]["step"] == 4 and outcomes[0].measured["total"] == 4
    assert outcomes[3].summary is None and outcomes[3].measured["size"]["step"] == 0
    assert outcomes[3].measured["size"]["head"] != outcomes[0].measured["size"]["head"]
    assert outcomes[0].history["train"]["step"] == [2, 4] and outcomes[0].history["test"]["step"] == [4]
    assert all(outcome.seconds > 0 for outcome in outcomes) and not list(root.glob("*/checkpoints"))
    assert len(lines_of(root)) == 3
    again, output = run_all(planned, tmp_path / "elsewhere")  # nothing runs, whatever the folder
    assert again == outcomes and output == "" and len(lines_of(root)) == 3


def test_a_trial_takes_one_device_unless_it_asks_for_more(tmp_path):
    planned = [trial(0), trial(0, devices=0), trial(0, devices=2)]
    (one, whatever, two), _ = run_all(planned, tmp_path / "runs")
    assert whatever.summary["loss"] == one.summary["loss"] != two.summary["loss"]
    devices = [outcome.summary["device"].split(" ")[0] for outcome in (one, whatever, two)]
    assert devices == ["1", "1", "2"]


def test_other_code_runs_again_unless_its_commit_is_accepted(tmp_path, monkeypatch):
    root, planned = tmp_path / "runs", [trial(0)]
    (first,), _ = run_all(planned, root)
    monkeypatch.setattr(trials, "code_of", lambda trial: "other")
    for accept in ([first.summary["commit"]], ["all"]):
        assert run_all(planned, root, accept=accept) == ([first], "")
    old = root / trials.folder_name(planned[0]) / "old"
    old.touch()
    (second,), output = run_all(planned, root, accept=["0" * 12])
    assert "1/1" in output and second.summary["loss"] == first.summary["loss"]
    assert not old.exists()  # nothing of the other code's run is left to go on from
    assert [line["code"] == "other" for line in lines_of(root)] == [False, True]


def test_a_start_of_other_code_is_trained_again_unless_its_commit_is_accepted(tmp_path, monkeypatch):
    root, child = tmp_path / "runs", trial(1, (size,))._replace(start=trial(0))
    run_all([child], root)
    summary_of_start = root / trials.folder_name(trial(0)) / "summary.json"
    before, commit = summary_of_start.stat().st_mtime_ns, json.loads(summary_of_start.read_text())["commit"]
    monkeypatch.setattr(trials, "code_of", lambda trial: "other")
    other = trial(2, (size,))._replace(start=trial(0))
    run_all([other], root, accept=[commit])
    assert summary_of_start.stat().st_mtime_ns == before
    run_all([trial(3, (size,))._replace(start=trial(0))], root)
    assert summary_of_start.stat().st_mtime_ns > before


@pytest.mark.parametrize("jobs", keep_first(1, [1, 2]))
def test_a_start_that_diverges_and_is_no_trial_itself_runs_once(tmp_path, jobs):
    bad = trial(0, optimizer__learning_rate=1e30)
    (outcome,), output = run_all([trial(1, (size,))._replace(start=bad)], tmp_path / "runs", jobs)
    assert "that it starts from, diverged" in outcome.diverged and output.count("\n") == 2
    assert [bool(line["outcome"]["diverged"]) for line in lines_of(tmp_path / "runs")] == [True, True]


def test_measures_of_later_trials_are_taken_at_once(tmp_path):
    later = trial(0, (size,))._replace(labels={"part": "later"})
    child = trial(1)._replace(start=trial(0))
    run_all([trial(0)], tmp_path / "runs", keep=False, others=[later, child])
    assert lines_of(tmp_path / "runs")[0]["outcome"]["measured"]["size"]["step"] == 4
    assert (tmp_path / "runs" / trials.folder_name(trial(0)) / "summary.json").exists()  # a later one starts from it
    assert run_all([later], tmp_path / "runs")[1] == ""


def test_code_that_only_a_config_names_counts():
    named = set(trials._named(trial(0, hooks="sparsity|figures", optimizer__name="muon").config))
    assert {"train.data.sources.digits", "train.hooks.sparsity", "train.hooks.figures", "train.optim.matrices"} <= named
    assert not named & {"train.hooks.trackers", "train.data.sources.tfds", "train.optim.schedule_free"}


def test_a_new_key_with_its_default_changes_no_address_but_counts_as_code(tmp_path, monkeypatch):
    """Ledgers of hundreds of trials outlive a key that is added to configs/base.py."""
    before, code = trials.address(trial(0)), trials.code_of(trial(0))
    monkeypatch.setattr(config, "BASE", tmp_path / "base.py")
    text = (config.ROOT / "configs" / "base.py").read_text()
    config.BASE.write_text(text.replace("    return c\n", "    c.data.new = 'as before'\n    return c\n"))
    config._defaults.cache_clear()
    try:
        newer = trial(0)
        newer.config.data.new = "as before"
        assert trials.address(newer) == before and trials.code_of(newer) != code
        newer.config.data.new = "otherwise"
        assert trials.address(newer) != before != trials.address(trial(1))
    finally:
        config._defaults.cache_clear()


def test_after_the_deadline_no_trial_starts(tmp_path):
    for jobs in (1, 2):
        with pytest.raises(launch.OutOfTime, match="the time budget ended with 2 trials left to run"):
            run_all([trial(0), trial(1)], tmp_path / "runs", jobs, deadline=time.time() - 1)


@pytest.mark.full
def test_one_process_and_two_agree(tmp_path):
    (tmp_path / "mine.py").write_text(inspect.getsource(size))  # which the processes have to find
    planned = [trial(seed, (plugins.module(str(tmp_path / "mine.py")).size,)) for seed in range(3)]
    alone, _ = run_all(planned, tmp_path / "alone" / "runs")
    together, output = run_all(planned, tmp_path / "together" / "runs", jobs=2)
    assert "3/3" in output
    for one, two in zip(alone, together, strict=True):
        assert one.labels == two.labels and one.history.keys() == two.history.keys()
        assert one.summary["accuracy"] == pytest.approx(two.summary["accuracy"], abs=0.003)
        np.testing.assert_allclose(one.history["train"]["loss"], two.history["train"]["loss"], rtol=1e-4)
        assert one.measured["size"]["head"] == pytest.approx(two.measured["size"]["head"], rel=1e-4)


def test_divergence_is_an_outcome(tmp_path):
    planned = [trial(0, (size,), optimizer__learning_rate=1e30, optimizer__warmup="0 steps")]
    (outcome,), output = run_all(planned, tmp_path / "runs")
    assert outcome.summary is None and outcome.diverged and outcome.measured == {}
    assert np.isnan(outcome.get("accuracy")) and outcome.diverged in output
    assert run_all(planned, tmp_path / "runs") == ([outcome], "")


@pytest.mark.parametrize("jobs", keep_first(1, [1, 2]))
def test_what_a_trial_starts_from_runs_first_and_once(tmp_path, jobs):
    first = trial(0)
    planned = [
        trial(5)._replace(start=first, measures=(size,)),
        trial(5),
        trial(0, (size,)),
        trial(6, (size,), train=False)._replace(start=trial(5)._replace(start=first)),
    ]
    root = tmp_path / "runs"
    outcomes, output = run_all(planned, root, jobs)
    assert "4/4" in output  # one starts from another that starts from the first; one is in the list twice
    assert len({trials.address(one) for one in planned}) == len(lines_of(root)) == 4
    configs = [json.loads((root / trials.address(one) / "config.json").read_text()) for one in planned[:3]]
    assert [config["init_from"] for config in configs] == [str(root / trials.address(first)), "", ""]
    assert outcomes[0].summary["loss"] != outcomes[1].summary["loss"]
    assert outcomes[3].measured["size"]["head"] > 0 and outcomes[2].measured["size"]["step"] == 4


def test_a_trial_that_starts_from_a_diverged_run_says_so(tmp_path):
    bad = trial(0, optimizer__learning_rate=1e30, optimizer__warmup="0 steps")
    outcomes, _ = run_all([bad, trial(1, (size,))._replace(start=bad)], tmp_path / "runs")
    outcome = outcomes[1]
    assert outcome.summary is None and outcome.diverged == f"{trials.address(bad)}, that it starts from, diverged"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_mistake_names_the_trial(tmp_path, jobs):
    planned = [trial(0, optimizer__name="nonsense"), trial(1)]
    with pytest.raises(UserError, match="nonsense") as error:
        run_all(planned, tmp_path / "runs", jobs)
    assert trials.address(planned[0]) in str(error.value)


@pytest.mark.parametrize("jobs", keep_first(1, [1, 2]))
def test_interrupted_trials_go_on(tmp_path, jobs):
    root, script = tmp_path / "runs", tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    names = [trials.address(t) for t in long()]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.ROOT), "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(root), str(jobs)],
        cwd=tiny.ROOT,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    first, log, deadline = tmp_path / "ledger" / ledger.NAME, root / names[1] / "metrics.jsonl", time.time() + 100
    while process.poll() is None and time.time() < deadline:
        if (jobs == 2 or first.exists()) and log.exists() and log.read_text().count("\n") > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "UserError: SIGTERM: finished work is kept" in errors
    finished = [line["trial"] for line in lines_of(root)] if first.exists() else []
    assert names[1] not in finished and (jobs == 2 or finished == names[:1])
    steps = [int(path.name) for path in (root / names[1] / "checkpoints").iterdir() if path.name.isdecimal()]
    assert len(steps) == 1 and 100 < steps[0] < 800
    outcomes, output = run_all(long(), root)
    left = len(names) - len(finished)
    assert f"{left}/{left}" in output and sorted(line["trial"] for line in lines_of(root)) == sorted(names)
    assert outcomes[1].summary["steps"] == 800 and outcomes[1].measured["size"]["step"] == 800
    assert outcomes[1].history["train"]["step"] == list(range(50, 801, 50))


ALONE = """
from experiments.study import Claim, Judgement, Study, evidence
STUDY = Study("NAME", "N", "?", {"digits": ""}, lambda scale, seeds: [], (
    Claim("It is.", "1", "A 2020", "so", lambda outcomes: Judgement(evidence.holds(True), str(RESULT))),),
    lambda outcomes: [], (),
    would_change="Nothing.")
"""


def test_a_study_that_fails_does_not_end_the_others(tmp_path):
    specs = []
    for name, shown in (("bad", "1 / 0"), ("good", "len(outcomes)")):
        specs.append(tmp_path / f"{name}.py")
        specs[-1].write_text(ALONE.replace("NAME", name).replace("RESULT", shown))
    output = io.StringIO()

    def run_each(specs, out):
        options = run.Options(tmp_path / "trials", out)
        run.run_each(list(map(str, specs)), "digits", options, rich.console.Console(file=output, width=200))

    with pytest.raises(RuntimeError, match=r"1 of 2 studies failed: .*bad.py: division by zero"):
        run_each(specs, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "good" / "digits" / "results.json").read_text())
    assert result["verdict"] == "Of 1 claim 1 agrees, 0 disagree, 0 are too small to tell."
    assert result["would_change"] == "Nothing." and "What would change it: Nothing." in output.getvalue()
    assert "**What would change it.** Nothing." in (tmp_path / "out" / "good" / "digits" / "results.md").read_text()
    with pytest.raises(UserError, match="cannot be written to"):  # said before any trial
        run_each(specs[1:], specs[0])


def test_a_budget_that_ends_stops_the_other_studies_too(tmp_path):
    spec, output = tmp_path / "long.py", io.StringIO()
    text = ALONE.replace("NAME", "long").replace("RESULT", "1")
    text = text.replace("lambda scale, seeds: []", "lambda scale, seeds: [test_trials.trial(seed) for seed in seeds]")
    spec.write_text(f"from tests.experiments import test_trials\n{text}")
    options = run.Options(tmp_path / "trials", tmp_path / "out", seeds=1, deadline=time.time() - 1)
    with pytest.raises(launch.OutOfTime, match="the time budget ended with 1 trials left to run") as ended:
        run.run_each([str(spec)] * 2, "digits", options, rich.console.Console(file=output))
    assert ended.value.exit_code == 75 and "failed" not in output.getvalue()


def test_a_table_with_a_new_name_leaves_no_old_file(tmp_path):
    folder = tmp_path / "out" / "named" / "digits"
    for title in ("Old", "New"):
        path = tmp_path / f"{title}.py"
        text = ALONE.replace("NAME", "named").replace("RESULT", "1").replace("import Claim, ", "import Table, Claim, ")
        path.write_text(
            text.replace("lambda outcomes: [], ()", f'lambda outcomes: [Table("{title}", ["a"], [[1]])], ()')
        )
        run.run(str(path), "digits", run.Options(tmp_path, tmp_path / "out"), rich.console.Console(quiet=True))
        (folder / "mine.csv").write_text("")
    assert sorted(file.name for file in folder.glob("*.csv")) == ["mine.csv", "new.csv"]


def test_results_of_a_study_do_not_count_as_code(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    for name in ("train/recording/summary.py", "experiments/results/a.json", "README.md", "docs/results.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    for arguments in (("init",), ("add", "."), ("commit", "-m", "one")):
        git(*arguments)
    monkeypatch.setattr(summary, "__file__", str(tmp_path / "train" / "recording" / "summary.py"))
    clean = summary.commit()
    for name in ("experiments/results/a.json", "README.md", "docs/results.md"):
        (tmp_path / name).write_text("2")
    assert len(clean) == 12 and summary.commit() == clean
    (tmp_path / "train" / "recording" / "summary.py").write_text("2")
    assert summary.commit() == f"{clean}+changes"

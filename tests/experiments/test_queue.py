"""Tests of the queue: one worker a trial, whoever dies; and of the places, options and refusals of launches."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
import rich.console

from experiments.study import engines, launch, ledger, queue, slurm, trials, watch, worker
from models.errors import UserError
from tests.experiments.test_trials import trial
from tests.tiny import ROOT
from train.storage import lock

HOLDER = """
import sys, time
from pathlib import Path
from experiments.study import ledger, queue
from tests.experiments import test_queue
queue.SILENT, queue.BEAT = 2.0, 0.5
root = Path(sys.argv[1])
plan, current = test_queue.planned(root)
print(current.take(plan).folder.name, flush=True)
time.sleep(60)
"""


def planned(root, *jobs, attempts=1, deadline=None):
    """Returns a plan of three trials, the second of which starts from the first, and a queue."""
    lines = ledger.Ledger(root / "ledger")
    first = trial(0)
    list_of = jobs or (first, trial(1)._replace(start=first), trial(2))
    left = trials.left(trials.merged(list_of), lines, root)
    return queue.Plan(left, attempts, deadline), queue.Queue(root, lines)


def line_of(job):
    """Returns a line of the ledger for a job."""
    outcome = {"summary": {"accuracy": 0.5}, "diverged": None, "history": {}, "measured": {}}
    texts = dict.fromkeys(("commit", "device"), "x")
    return {
        "trial": job.folder.name,
        "labels": {},
        "outcome": outcome,
        "code": job.code,
        "versions": {},
        "seconds": 2.0,
    } | texts


def names(plan):
    return list(plan.jobs)


def test_a_trial_has_one_worker_and_waits_for_what_it_starts_from(tmp_path):
    plan, one = planned(tmp_path)
    two = planned(tmp_path)[1]
    first, second, third = names(plan)
    assert one.take(plan).folder.name == first
    assert two.take(plan).folder.name == third and two.take(plan) is one.take(plan) is None
    assert one.holder(first)[0] == queue.host() and one.holder(second) is None
    one.lines.add(line_of(plan.jobs[first]))
    one.finish(plan.jobs[first])
    one.release(first)
    assert two.take(plan).folder.name == second
    two.release(third)
    assert one.take(plan).folder.name == third  # released without a line: free again


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_is_replaced_and_one_that_wakes_up_ends(tmp_path, monkeypatch, end):
    monkeypatch.setattr(queue, "SILENT", 2.0)
    monkeypatch.setattr(queue, "BEAT", 0.5)
    plan, current = planned(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = process.stdout.readline().strip()
        assert first == names(plan)[0] and current.take(plan).folder.name == names(plan)[2]
        assert current.take(plan) is None
        process.send_signal(end)
        deadline = time.monotonic() + 20
        while (job := current.take(plan)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job and job.folder.name == first and current.record(first)["attempts"] == 2
        process.send_signal(signal.SIGCONT)  # it finds its lease gone
        assert process.wait(20) == (2 if end == signal.SIGSTOP else -signal.SIGKILL)
        assert end == signal.SIGKILL or "another worker goes on" in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def test_a_trial_fails_after_too_many_lost_workers_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "LOST", 3)
    plan, current = planned(tmp_path, trial(0))
    (name,) = names(plan)
    for _ in range(3):
        assert current.take(plan)
        current.release(name)
    steps = plan.jobs[name].folder / "checkpoints" / "100"
    steps.mkdir(parents=True)  # progress: the count begins again
    for _ in range(3):
        assert current.take(plan)
        current.release(name)
    assert current.take(plan) is None
    assert "3 workers in a row were lost while they ran it" in current.failures(name)[0].text
    assert watch.rows(plan, current)[0].state == "failed"


def test_a_failed_trial_keeps_its_reason_and_blocks_what_starts_from_it(tmp_path):
    plan, current = planned(tmp_path, attempts=2)
    first, second, third = names(plan)
    for attempt in (1, 2):
        assert current.take(plan).folder.name == first
        current.fail(first, UserError(f"no {attempt}"), "")
        current.release(first)
    assert current.take(plan).folder.name == third
    assert [failure.text for failure in current.failures(first)] == ["no 1", "no 2"]
    assert list(current.blocked(plan)) == [second]
    assert watch.counts(plan, watch.rows(plan, current)) == {
        "done": 0,
        "running": 1,
        "lost": 0,
        "waiting": 1,
        "failed": 1,
    }


def test_a_folder_that_is_still_locked_is_left_alone_for_a_while(tmp_path, monkeypatch):
    plan, current = planned(tmp_path, trial(0), trial(1))
    first, second = names(plan)
    assert current.take(plan).folder.name == first
    monkeypatch.setattr(trials, "run", lambda job: lock.Lock(job.folder).acquire())
    job = plan.jobs[first]
    job.folder.mkdir()
    held = lock.Lock(job.folder)
    held.acquire()
    assert worker.run(current, job, raises=True) == {} and current.failures(first) == []
    assert current.take(plan).folder.name == second and current.take(plan) is None
    monkeypatch.setattr(queue, "HELD", 0.0)
    assert worker.run(current, job) is None and "is being trained by process" in current.failures(first)[0].text
    held.release()


def test_no_trial_starts_after_the_deadline_of_its_plan(tmp_path):
    plan, current = planned(tmp_path, deadline=time.time() - 1)
    assert plan.is_late() and current.take(plan) is None


def test_a_finished_trial_gets_no_second_line(tmp_path):
    plan, current = planned(tmp_path)
    job = next(iter(plan.jobs.values()))
    for _ in range(2):
        ledger.append(current.lines.path, line_of(job))
    assert len(current.lines.refresh()) == 1 and current.is_done(job)
    more = line_of(job)
    more["outcome"]["measured"] = {"size": 1}
    ledger.append(current.lines.path, more)
    assert len(current.lines.path.read_text().splitlines()) == 2


def test_a_plan_is_live_as_long_as_its_launcher_and_workers_see_changes(tmp_path):
    plan, current = planned(tmp_path)
    plans = queue.Plans(tmp_path, current.lines.path)
    plans.write("a", plan)
    assert plans.launches() == ["a"] and not plans.is_live("a")
    with plans.lock("a"):
        assert plans.is_live("a") and names(plans.read("a")) == names(plan)
        time.sleep(0.01)
        plans.write("a", plan._replace(jobs={}))
        assert plans.read("a").jobs == {}
        plans.remove("a")
        assert not plans.is_live("a") and plans.read("a") is None


def test_watching_shows_who_runs_what(tmp_path):
    plan, current = planned(tmp_path)
    output = rich.console.Console(record=True, width=150, file=io.StringIO())
    with pytest.raises(UserError, match="--watch: no launch of this study is in"):
        watch.follow(tmp_path, current.lines.path, output)
    queue.Plans(tmp_path, current.lines.path).write("a", plan._replace(stop="kill 1"))
    current.lines.add(line_of(current.take(plan)))
    current.release(names(plan)[0])
    assert current.take(plan).folder.name == names(plan)[1]
    watch.follow(tmp_path, current.lines.path, output)
    text = output.export_text()
    assert "1 done, 1 running, 1 waiting" in text and "seed 1" in text and queue.host() in text


def test_the_place_on_this_host_follows_its_devices(monkeypatch):
    small, large = trial(0), trial(1, devices=4)
    assert launch.local([small], 3) == engines.Place("local", 3)
    monkeypatch.setattr(engines, "accelerators", lambda: 8)
    assert launch.local([small]) == engines.Place("local", 8, 1)
    assert launch.local([small, large]) == engines.Place("local", 2, 4)
    assert launch.local([small], devices=2) == engines.Place("local", 4, 2)
    with pytest.raises(UserError, match="--devices_per_trial=2: a trial's config asks for 4 devices"):
        launch.local([large], devices=2)
    with pytest.raises(UserError, match="3 trials at once with 4 devices each do not fit: this host has 8"):
        launch.local([large], jobs=3)


def test_the_preview_says_what_is_left(tmp_path):
    plan, current = planned(tmp_path)
    current.lines.add(line_of(plan.jobs[names(plan)[0]]))
    text = launch.preview([job.trial for job in plan.jobs.values()], current.lines, engines.Place(at_once=2))
    assert text == "3 trials: 1 finished, 2 left, 0.0 hours of trials, about 0.0 hours with 2 at once"


def test_a_time_limit_below_the_longest_trial_is_refused(tmp_path, monkeypatch):
    plan, current = planned(tmp_path)
    current.lines.add({**line_of(plan.jobs[names(plan)[0]]), "seconds": 700.0})
    monkeypatch.setattr(slurm, "check", lambda options: None)
    every = [job.trial for job in plan.jobs.values()]
    assert launch.on_slurm(every, current.lines, {"time": "12"}, 4) == engines.Place("slurm", 4, options={"time": "12"})
    with pytest.raises(UserError, match="--time=10: a trial of this study took 11.7 minutes; allow more than that"):
        launch.on_slurm(every, current.lines, {"time": "10"}, 4)


@pytest.mark.parametrize(
    ("versions", "code", "text"),
    [
        ({"jax": "0.1"}, None, rf"jax is {jax.__version__} there, 0.1 at the launcher"),
        ({"torch": "2.13"}, None, "torch is missing there, 2.13 at the launcher"),
        ({}, "other", "the code there differs from the launcher's"),
    ],
)
def test_a_worker_with_other_versions_or_code_refuses_to_run(tmp_path, monkeypatch, versions, code, text):
    plan, current = planned(tmp_path)
    plans = queue.Plans(tmp_path, current.lines.path)
    plans.write("a", plan._replace(versions=versions))
    monkeypatch.setattr(trials, "code_of", lambda trial, original=trials.code_of: code or original(trial))
    with plans.lock("a"), pytest.raises(UserError, match=text):
        worker.serve(worker.Work(tmp_path, current.lines.path, "a", stays=False))
    assert current.take(plan).folder.name == names(plan)[0]  # the lease is free again


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("1-2:30", 1590), ("0:0:1", 1)]
)
def test_time_limits_are_those_of_sbatch(text, minutes):
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "2h", "-5", "1:2:3:4", "x-1", "1.5"])
def test_a_wrong_time_limit_is_refused(text):
    with pytest.raises(UserError, match=f"--time={text}: write MINUTES"):
        slurm.minutes(text)


def test_options_of_sbatch_come_from_a_file(tmp_path, monkeypatch):
    file = tmp_path / "options"
    file.write_text("#!/bin/bash\n#SBATCH --account=me\n--constraint a100\n\n# a comment\n--exclusive\n")
    options = slurm.read_options(file)
    assert options == {"account": "me", "constraint": "a100", "exclusive": ""}
    assert slurm.parameters({**options, "time": "1:00:00"}) == {
        "time": 60,
        "additional_parameters": {"requeue": True, "account": "me", "constraint": "a100", "exclusive": True},
    }
    file.write_text("--account=me\npartition=x\n")
    with pytest.raises(UserError, match="line 2: write an option of sbatch"):
        slurm.read_options(file)
    with pytest.raises(UserError, match="No such file"):
        slurm.read_options(tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--on=slurm: there is no sbatch here"):
        slurm.check({})


@pytest.mark.full
def test_a_host_that_fails_its_first_trial_leaves_the_others_alone(tmp_path):
    """The worker ends, and after three of them the launcher gives up without having lost a trial."""
    bad = [trial(seed, optimizer__name="nonsense") for seed in range(5)]
    lines = ledger.Ledger(tmp_path / "ledger")
    with pytest.raises(UserError, match=r"nonsense'.*2 other trials failed, too; 2 trials have not run"):
        launch.run_all(bad, lines, tmp_path / "runs", engines.Place(at_once=2), rich.console.Console(quiet=True))
    assert not lines.path.exists() and not list((tmp_path / "runs").rglob("*.plan"))
    assert json.loads(next((tmp_path / "runs" / queue.FOLDER).glob("*.json")).read_text())["failures"]

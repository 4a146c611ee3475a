"""Preemption under a real Slurm: the job is requeued, ends with the same bits, and dependents wait for that."""

import shlex
import sys
import time

import pytest

from tests import cluster, tiny
from tests.train.test_loop import final
from train.devices import slurm

REASON = cluster.missing()
FLAGS = (*tiny.TINY_FLAGS, "--config.duration=200 steps", "--config.checkpoint_every=100%")
needs_slurm = pytest.mark.skipif(bool(REASON), reason=REASON)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.started(tmp_path_factory.mktemp("slurm") / "here", nodes=1) as running:
        yield running


def submit(running, folder, command, *options):
    """Submits a shell command, whose output goes to log.txt in the folder; returns the job's id."""
    folder.mkdir(exist_ok=True)
    script = folder / "job.sh"
    script.write_text(f"#!/bin/bash\ncd {tiny.ROOT}\n{command}\n")
    log = ("--output", str(folder / "log.txt"), "--open-mode=append")
    return running.call("sbatch", "--parsable", *log, *options, str(script))


def training(folder, *flags):
    command = (sys.executable, "-m", "train", *FLAGS, f"--workdir={folder / 'run'}", *flags)
    return f"XLA_FLAGS= JAX_PLATFORMS=cpu srun --exact {shlex.join(command)}"


def wait_for_steps(running, job, folder):
    """Waits until a training has logged a step."""
    deadline = time.monotonic() + 120
    while not (folder / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline and running.state(job)["JobState"] in ("RUNNING", "PENDING", "CONFIGURING")
        time.sleep(0.05)


def log(folder):
    return (folder / "log.txt").read_text()


@needs_slurm
@pytest.mark.full
def test_a_preempted_job_is_requeued_and_its_dependents_wait_for_the_same_bits(running, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "preempted"
    alone = submit(running, whole, training(whole), "--requeue", "--exclusive")
    job = submit(running, folder, training(folder), "--requeue", "--exclusive")
    after = submit(running, tmp_path / "after", f"ls {folder / 'run'}", f"--dependency=afterok:{job}")
    running.wait(alone, ("COMPLETED",), 300)
    wait_for_steps(running, job, folder)
    running.call("scancel", "--signal=TERM", job)  # as --signal=TERM@120 sends it before the time limit
    running.wait(job, ("PENDING", "COMPLETED"), 60)
    assert running.state(after)["JobState"] == "PENDING"
    running.release(job)
    fields = running.wait(job, ("COMPLETED",), 300)
    running.wait(after, ("COMPLETED",), 60)
    assert fields["Restarts"] == "1" and "SIGTERM: saved at step" in log(folder) and "run job" in log(folder)
    assert "summary.json" in log(tmp_path / "after")
    tiny.assert_same(final(folder / "run")[0], final(whole / "run")[0])


@needs_slurm
@pytest.mark.full
def test_a_job_of_higher_priority_preempts_and_the_training_goes_on_after_it(running, tmp_path):
    folder = tmp_path / "low"
    long = ("--config.duration=6000 steps", "--config.log_every=1000 steps")
    job = submit(running, folder, training(folder, *long), "--requeue", "--exclusive")
    wait_for_steps(running, job, folder)
    urgent = submit(running, tmp_path / "high", "sleep 1", "--partition=urgent", "--exclusive")
    running.wait(urgent, ("COMPLETED",), 120)
    assert "SIGTERM: saved at step" in log(folder) and running.state(job)["JobState"] in ("PENDING", "RUNNING")
    running.release(job)
    running.wait(job, ("COMPLETED",), 300)
    assert "resuming from step" in log(folder)


@needs_slurm
@pytest.mark.full
def test_a_canceled_job_is_not_requeued(running, tmp_path):
    folder = tmp_path / "canceled"
    job = submit(running, folder, training(folder), "--requeue", "--exclusive")
    wait_for_steps(running, job, folder)
    running.call("scancel", job)
    running.wait(job, ("CANCELLED",), 60)
    time.sleep(1)
    assert running.state(job)["JobState"] == "CANCELLED" and "run job" not in log(folder)


def test_a_job_is_named_as_scontrol_takes_it(monkeypatch):
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm.job() == slurm.requeue() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm.job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm.job() == "7_3"


@pytest.mark.parametrize(
    ("shown", "requeues"),
    [
        ("JobId=12 JobState=RUNNING Requeue=1 Restarts=0", True),
        ("JobId=12 JobState=COMPLETING Requeue=1 Restarts=0", False),  # canceled
        ("JobId=12 JobState=RUNNING Requeue=0 Restarts=0", False),
    ],
)
def test_only_a_running_job_that_may_be_requeued_is(shown, requeues, monkeypatch, tmp_path):
    calls = tmp_path / "calls"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" = show ] && echo "{shown}"\nexit 0\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert slurm.requeue() == ("Slurm will run job 12 again" if requeues else "")
    assert ("requeue 12" in calls.read_text()) == requeues

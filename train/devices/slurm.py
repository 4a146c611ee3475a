"""Slurm: asks it to run this job again after a preemption, so that dependent jobs keep waiting."""

import os
import shutil
import subprocess

SECONDS = 30  # longest wait for an answer of the controller


def job() -> str:
    """Returns the id of this job, or ARRAY_TASK of an array's task, as scontrol takes it; "" outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def requeue() -> str:
    """Requeues this job if it may be requeued and is still running, and returns a line that says so; else "".

    A job that a user has canceled, or that Slurm itself requeues after a preemption, is no longer running. A job that
    was submitted with --no-requeue may not be requeued.
    """
    name = job()
    if not name or not shutil.which("scontrol"):
        return ""
    shown = _scontrol("show", "job", "--oneliner", name)
    state = dict(pair.split("=", 1) for pair in shown.stdout.split() if "=" in pair)
    if shown.returncode or state.get("JobState") != "RUNNING" or state.get("Requeue") != "1":
        return ""
    done = _scontrol("requeue", name)
    return (
        f"Slurm will run job {name} again"
        if done.returncode == 0
        else f"scontrol requeue {name}: {done.stderr.strip()}"
    )


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 1, "", f"no answer within {SECONDS} seconds")

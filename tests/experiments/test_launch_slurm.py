"""A study on a real Slurm: refusals before it submits, and the results of one process, whatever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.study import ledger, queue
from tests import cluster, tiny
from train.storage.files import read_json

REASON = cluster.missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

STUDY = """
from experiments.study import Claim, Judgement, Study, Trial, evidence
from tests import tiny

def config(seed):
    return tiny.config(duration="STEPS steps", log_every="20 steps", checkpoint_every="20 steps", seed=seed)

def trials(scale, seeds):
    pairs = []
    for seed in seeds:
        first = Trial({"part": "first", "seed": seed}, config(seed))
        pairs += [first, Trial({"part": "second", "seed": seed}, config(100 + seed), start=first)]
    return pairs

def judge(outcomes):
    return Judgement(evidence.holds(True), f"{sum(outcomes.values('loss')):.9g}")

STUDY = Study("pairs", "Pairs", "?", {"digits": ""}, trials,
              (Claim("It is.", "1", "A 2020", "so", judge),), lambda outcomes: [], ())
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.started(tmp_path_factory.mktemp("slurm") / "here", nodes=2, cpus=1) as running:
        yield running


@pytest.fixture
def study(tmp_path):
    def write(steps):
        path = tmp_path / "pairs.py"
        path.write_text(STUDY.replace("STEPS", str(steps)))
        return path

    return write


def command(path, *flags):
    """Returns the command of a launcher; its results go beside the study's file."""
    places = (f"--workdir={path.parent / 'runs'}", f"--out={path.parent / 'out'}")
    return [sys.executable, "-m", "experiments.run", str(path), *places, *flags]


def environment(running):
    return {**running.environment, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}


def start(running, path, *flags):
    """Starts a launcher."""
    return subprocess.Popen(
        command(path, *flags),
        env=environment(running),
        cwd=tiny.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process, seconds=300):
    output, errors = process.communicate(timeout=seconds)
    return process.returncode, output, errors


def results(path):
    """Returns results.json without times."""
    content = read_json(path.parent / "out" / "pairs" / "digits" / "results.json")
    for name in ("seconds_of_training", "seconds_of_this_command", "finished", "trials_at_once"):
        del content[name]
    for trial in content["trials"]:
        del trial["summary"]["seconds"]
    return content


def lines(path):
    file = path.parent / "out" / "pairs" / "digits" / ledger.NAME
    return [json.loads(line)["trial"] for line in file.read_text().splitlines()] if file.exists() else []


def workers(folder):
    """Returns the processes that run trials of a launch."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"submitit.core._submit" in words and str(folder).encode() in b" ".join(words):
                found.append(int(process.name))
    return found


def wait(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_refusals_come_before_anything_is_submitted_and_two_nodes_give_the_results_of_one_process(running, study):
    path = study(40)
    for flags, text in (
        (("--partition=fast",), "invalid partition specified: fast"),
        (("--time=soon",), "--time=soon: write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES"),
        (("--gres=gpu:1",), "Slurm refuses --gres=gpu:1"),
        (("--jobs=2",), "--jobs=2 needs --on=local"),
    ):
        code, _, errors = end(start(running, path, "--on=slurm", "--seeds=2", *flags))
        assert code == 2 and text in errors and errors.count("\n") == 1
    assert running.call("squeue", "--noheader") == "" and not (path.parent / "runs").exists()
    code, output, errors = end(start(running, path, "--on=slurm", "--workers=2", "--time=10", "--seeds=2"))
    assert code == 0 and "4/4" in output, errors
    assert sorted(lines(path)) == sorted(set(lines(path))) and len(lines(path)) == 4
    on_slurm = results(path)
    shutil.rmtree(path.parent / "out")
    assert end(start(running, path, "--jobs=1", "--seeds=2"))[0] == 0
    assert results(path) == on_slurm
    (path.parent / "runs" / "digits" / queue.FOLDER).rename(path.parent / "queue")
    assert not list((path.parent / "queue").rglob("*.plan")) and not list((path.parent / "queue").rglob("*.lease"))


@pytest.mark.full
def test_killed_workers_and_launchers_lose_nothing(running, study):
    path = study(200)
    flags = ("--on=slurm", "--workers=2", "--seeds=3")
    launcher = start(running, path, *flags)
    for _ in range(3):
        wait(lambda: workers(path.parent))
        time.sleep(3)
        for process in workers(path.parent):
            os.kill(process, signal.SIGKILL)
    launcher.kill()
    launcher.communicate()
    left = len(lines(path))
    wait(lambda: len(lines(path)) > left or not workers(path.parent))  # the workers need no launcher
    launcher = start(running, path, *flags)
    wait(lambda: workers(path.parent))
    launcher.send_signal(signal.SIGINT)
    code, _, errors = end(launcher)
    assert code == 130 and "the workers go on: squeue --name=ablate-pairs-digits-" in errors
    code, _, errors = end(start(running, path, *flags))
    assert code == 0, errors
    assert len(lines(path)) == len(set(lines(path))) == 6
    disturbed = results(path)
    shutil.rmtree(path.parent / "out")
    assert end(start(running, path, "--jobs=1", "--seeds=3"))[0] == 0
    assert results(path) == disturbed


BROKEN = """
import os
from models.errors import UserError

def here(run, state):
    if os.environ.get("SLURMD_NODENAME") in NODES:
        raise UserError("data.dir=/data does not exist")
    return 1
"""


@pytest.mark.full
def test_a_node_that_cannot_run_the_trials_gets_no_more_jobs(running, study):
    path = study(4)
    text = (
        path.read_text()
        .replace("start=first)", "measures=(here,))")
        .replace("config(seed))", "config(seed), measures=(here,))")
    )
    flags = ("--on=slurm", "--workers=2", "--seeds=3")
    path.write_text(BROKEN.replace("NODES", "('n0',)") + text)
    code, output, errors = end(start(running, path, *flags))
    assert code == 0, errors
    assert output.count("ended: n0: data.dir=/data does not exist") == 1 and len(lines(path)) == 6
    path.write_text(BROKEN.replace("NODES", "('n0', 'n1')") + text)
    code, output, errors = end(start(running, path, *flags))
    assert code == 2 and "no node is left after the trials failed on n0, n1" in errors, errors
    assert "data.dir=/data does not exist" in output and errors.count("\n") == 1

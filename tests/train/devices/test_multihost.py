"""Two processes of two devices each, over loopback, as a user starts them: same results as one, and how they end."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from models.errors import UserError
from tests import tiny
from tests.tiers import keep_first
from tests.train.devices.test_parallel import assert_close
from tests.train.test_loop import final
from tests.train.test_resume import steps_logged
from train import loop
from train.devices import multihost

FLAGS = (
    *tiny.TINY_FLAGS, "--config.devices=0", "--config.duration=24 steps", "--config.checkpoint_every=4 steps",
    "--config.evaluate_every=12 steps", "--config.data.augment=crop(1)|mixup(0.2)", "--config.ema_decay=0.9",
    "--config.model.act=silu", "--config.optimizer.learning_rate=0.02",
)  # fmt: skip
# The config that FLAGS give, for a run in the tests' own process. Without the kinks of ReLU and at a small learning
# rate, rounding differences stay small: a ReLU input near zero may change its sign on another processor.
SAME = {
    "duration": "24 steps",
    "evaluate_every": "12 steps",
    "ema_decay": 0.9,
    "model__act": "silu",
    "data__augment": "crop(1)|mixup(0.2)",
    "optimizer__learning_rate": 0.02,
}
SHARDED = (
    "--config.parallel=fsdp",
    "--config.data.pipeline=stream",
    "--config.steps_per_call=1",
    "--config.model.norm=group:2",
    "--config.hooks=figures",
)
TRACKER = """
from train.recording.tracking import Tracker

class Log(Tracker):
    def logged(self, step, values):
        with open({path!r}, "a") as file:
            file.write(f"{{step}} {{min(values)}}\\n")
"""
SECONDS = 60  # the others must notice within this time
QUICK = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}  # compiles as the tests' own process does (conftest.py)


def start(*flags, others=(), count=2, devices=2):
    """Starts processes, two by default; those after the first also get the flags `others`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            **tiny.command(
                *flags,
                f"--coordinator=127.0.0.1:{port}",
                f"--processes={count}",
                f"--process={index}",
                *(others if index else ()),
                devices=devices,
                env=QUICK,
            )
        )
        for index in range(count)
    ]


def finish(processes, seconds=200):
    """Returns [(exit code, stdout, stderr)]; no process outlives the test."""
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
        return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def wait_for_step(processes, folder, step):
    deadline = time.time() + 120
    while not steps_logged(folder)[-1:] >= [step]:
        if any(process.poll() is not None for process in processes) or time.time() > deadline:
            raise AssertionError(finish(processes, 20))
        time.sleep(0.002)


def alone(folder, *flags, devices):
    """Returns the last leaves of a single process, and its output.

    It is compiled like the two processes, to keep batch norm's last digits.
    """
    done = tiny.run(*FLAGS, *flags, f"--workdir={folder}", devices=devices, env=QUICK)
    assert done.returncode == 0, done.stderr
    return final(folder)[0], done.stdout


def two(folder, *flags):
    """Runs two processes to their end."""
    ended = finish(start(*FLAGS, *flags, f"--workdir={folder}"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert ["tensorboard --logdir=" in out for _, out, _ in ended] == [True, False]
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of an uninterrupted run of two processes, by pmap, without per-device statistics."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "log.py").write_text(TRACKER.format(path=str(folder / "log.txt")))
    return two(folder / "run", "--config.model.norm=group:2", f"--config.hooks={folder}/log.py:Log")


@pytest.mark.parametrize("devices", [4, 1])
def test_two_processes_of_two_devices_are_one_of_four_and_of_one(tmp_path, whole, devices):
    """Allows for 24 steps of rounding: sums have a different order, and the compilation differs.

    All 360 test images count once.
    """
    config = tiny.config(**SAME, devices=devices, model__norm="group:2")
    summary = loop.train(config, tmp_path / "one")
    assert_close(final(whole)[0], final(tmp_path / "one")[0], 1e-4)
    saved_summary = json.loads((whole / "summary.json").read_text())
    assert saved_summary["loss"] == pytest.approx(summary["loss"], rel=1e-4) and saved_summary["test_examples"] == 360
    assert steps_logged(whole) == list(range(4, 25, 4))
    tracked = (whole.parent / "log.txt").read_text().split("\n")[:-1]  # by process 0 alone
    assert [line.split()[0] for line in tracked if "train" in line] == [f"{step}" for step in range(4, 25, 4)]


@pytest.mark.full
def test_statistics_stay_per_device_in_two_processes(tmp_path):
    """Allows for some ulps, which batch norm magnifies."""
    leaves = alone(tmp_path / "one", devices=4)[0]
    assert_close(final(two(tmp_path / "two"))[0], leaves, 1e-4)


@pytest.mark.full
def test_stopping_one_process_makes_all_save_the_same_step(tmp_path):
    """Interrupts a sharded, streamed run, which one process with another number of devices then resumes."""
    folder = tmp_path / "run"
    processes = start(*FLAGS, *SHARDED, f"--workdir={folder}")
    wait_for_step(processes, folder, 4)
    processes[1].send_signal(signal.SIGTERM)
    (code, out, err), (other_code, other_out, other_err) = finish(processes)
    assert (code, other_code) == (75, 75), (err, other_err)
    assert "SIGTERM: saved at step" in out and "step" not in other_out
    assert not (folder / "summary.json").exists()
    leaves, output = alone(folder, *SHARDED, "--config.parallel=shard_map", devices=1)
    assert "resuming from step" in output
    config = tiny.config(**SAME, steps_per_call=1, devices=4, data__pipeline="stream", model__norm="group:2")
    loop.train(config, tmp_path / "one")
    assert_close(leaves, final(tmp_path / "one")[0])


@pytest.mark.full
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_other_and_the_rerun_resumes(tmp_path, whole, victim):
    folder, norm = tmp_path / "run", "--config.model.norm=group:2"
    processes = start(*FLAGS, norm, f"--workdir={folder}")
    wait_for_step(processes, folder, 4 + 8 * victim)
    processes[victim].kill()
    began = time.time()
    code, _, err = finish(processes, SECONDS)[1 - victim]
    assert code == 1 and time.time() - began < SECONDS
    assert err.splitlines()[-1] == f"error (process {1 - victim} of 2): {multihost.GONE}", err
    tiny.assert_same(final(two(folder, norm))[0], final(whole)[0])


def test_processes_with_different_configs_are_refused(tmp_path):
    ended = finish(start(*FLAGS, f"--workdir={tmp_path / 'run'}", others=("--config.seed=1",)))
    for index, (code, _, err) in enumerate(ended):
        assert code == 2 and "Traceback" not in err, err
        assert f"error (process {index} of 2): process 1's config differs from process 0's: seed is 1, not 0" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_failure_of_one_ends_the_other(tmp_path):
    """Removes the folder of process 0 while it trains; process 1 would wait for it forever."""
    folder = tmp_path / "run"
    processes = start(*FLAGS, f"--workdir={folder}")
    wait_for_step(processes, folder, 4)
    os.rename(folder, tmp_path / "gone")
    ended = finish(processes, SECONDS)
    assert ended[0][0] in (1, 2) and "error (process 0 of 2): " in ended[0][2]
    assert ended[1][0] == 1 and multihost.GONE in ended[1][2].splitlines()[-1]


@pytest.mark.parametrize("missing", keep_first(1, [0, 1]))
def test_missing_processes_are_reported(missing):
    processes = start("--config=configs/digits.py", "--workdir=/nowhere", "--join_seconds=3")
    processes[missing].kill()
    code, _, err = finish(processes, SECONDS)[1 - missing]
    assert code == 2 and err.splitlines()[-1].startswith(
        "error: not all processes of this run connected to 127.0.0.1:"
    ), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((True, "h:1", 2, 0), "--distributed finds the cluster by itself"),
        ((False, "h:1", 2, None), "--process is missing"),
        ((False, "h", 2, 0), "--coordinator=h must be HOST:PORT"),
        ((False, "h:1", 0, 0), "--processes=0 must be at least 1"),
        ((False, "h:1", 2, 2), r"--process=2 must be in \[0, 2\)"),
    ],
)
def test_mistakes(arguments, message):
    """Checks that the error comes before any use of JAX."""
    with pytest.raises(UserError, match=message):
        multihost.join(*arguments, 1)


def test_no_cluster():
    done = tiny.run("--config=configs/digits.py", "--workdir=/nowhere", "--distributed")
    message = "error: --distributed: JAX finds no cluster here"
    assert done.returncode == 2 and done.stderr.startswith(message), done.stderr

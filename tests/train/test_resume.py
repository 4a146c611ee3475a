"""Killed or interrupted at any moment, a run resumes by the same command and ends with the same bits."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from tests import tiny
from tests.tiers import keep_first
from tests.train.test_hostile_process import assert_each_point_once
from tests.train.test_loop import final
from train.storage import workdir

WHOLE = (
    *tiny.TINY_FLAGS,
    "--config.duration=60 steps",
    "--config.evaluate_every=20 steps",
    "--config.data.augment=crop(1)|mixup(0.2)",
    "--config.ema_decay=0.9",
)
FLAGS = (*WHOLE, "--config.checkpoint_every=4 steps")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the final leaves of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "a run"
    done = tiny.run(*WHOLE, "--config.checkpoint_every=60 steps", f"--workdir={folder}")  # each takes a while
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"tensorboard --logdir='{folder}'"
    return final(folder)[0]


def steps_logged(folder):
    return [line["step"] for line in workdir.read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]


def wait_until(process, condition):
    deadline = time.time() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.002)


def saving(folder):
    """Returns whether a checkpoint is being written: Orbax first writes to a folder with a temporary name."""
    path = folder / "checkpoints"
    return path.exists() and any("tmp" in entry for entry in os.listdir(path))


def test_sigkill_in_the_middle_of_steps_and_of_saves(tmp_path, whole):
    folder = tmp_path / "run"
    conditions = [
        lambda: steps_logged(folder)[-1:] >= [8],  # in the middle of a step
        lambda: saving(folder),  # in the middle of a save, when the oldest is complete
        lambda: steps_logged(folder)[-1:] >= [28],
    ]
    for condition in conditions:
        process = subprocess.Popen(**tiny.command(*FLAGS, f"--workdir={folder}"), start_new_session=True)
        wait_until(process, condition)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (folder / "summary.json").exists()
    done = tiny.run(*FLAGS, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    assert "resuming from step" in done.stdout
    tiny.assert_same(final(folder)[0], whole)
    assert steps_logged(folder) == list(range(4, 61, 4))  # every line once
    assert_each_point_once(folder)
    assert sorted(os.listdir(folder / "checkpoints")) == sorted(os.listdir(folder / "checkpoints"), key=int)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize(("name", "code"), keep_first(1, [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGUSR2", 3)]))
def test_signals_of_schedulers_save_and_exit(tmp_path, whole, name, code):
    folder = tmp_path / "run"
    own = [f"--exit_code_interrupted={code}"] if code != 75 else []
    process = subprocess.Popen(**tiny.command(*FLAGS, f"--workdir={folder}", *own))
    wait_until(process, lambda: steps_logged(folder)[-1:] >= [4])
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"{name}: saved at step" in out and "Traceback" not in err
    assert not (folder / "summary.json").exists()
    done = tiny.run(*FLAGS, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    tiny.assert_same(final(folder)[0], whole)


def imported(folder):
    time.sleep(0.4)
    return True


def locked(folder):
    return (folder / ".lock").exists()


MOMENTS = {
    "import": imported,
    "set-up": locked,
    "steps": lambda folder: steps_logged(folder)[-1:] >= [8],
    "save": saving,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_double_ctrl_c_gives_no_traceback(tmp_path, moment):
    """Interrupts twice, as when a shell passes on the terminal's signal; saves if there is anything to save."""
    folder = tmp_path / "run"
    folder.mkdir()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background tests ignore it
    process = subprocess.Popen(**tiny.command(*FLAGS, "--config.duration=600 steps", f"--workdir={folder}"))
    signal.signal(signal.SIGINT, before)
    wait_until(process, lambda: MOMENTS[moment](folder))
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "", (process.returncode, err)
    if moment in ("steps", "save"):
        assert "SIGINT: saved at step" in out
        assert final(folder)[1]["step"] == int(out.split("saved at step ")[1].split()[0])

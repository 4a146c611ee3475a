"""Runs that are killed, started twice, interrupted, or out of disk: one line, and every point once."""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from models.errors import UserError
from tests import damage, tiny
from train import loop
from train.interruption import Interruption
from train.storage import checkpoint, details, events, workdir
from train.storage.lock import Lock

run, copied = damage.run, damage.copied  # fixtures


# -- event files ------------------------------------------------------------------------------------------------------


def points(folder):
    """Returns TensorBoard's view, {(tag, step): [(value, time)]}.

    TensorBoard reads files in sorted order, and a start discards the points after it.
    """
    shown = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events.read(path):
            if event.HasField("session_log"):
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append((value.simple_value, event.wall_time))
    return shown


def assert_each_point_once(folder):
    shown, expected_values = points(folder), tiny.points(folder)
    assert shown.keys() == expected_values.keys() and len(expected_values) > 20
    for key, values in shown.items():
        assert [value for value, _ in values] == pytest.approx([expected_values[key]]), key


def keep_all(folder):
    pass


def lose_the_end(folder):
    (path,) = folder.glob(events.PATTERN)
    damage.cut(path)


def lose_the_file(folder):
    (path,) = folder.glob(events.PATTERN)
    path.unlink()


def copy_it(folder):
    """Leaves the state of a kill between writing the new file and removing the old one."""
    (path,) = folder.glob(events.PATTERN)
    shutil.copy(path, path.with_name("events.out.tfevents.1500000000.elsewhere"))


def garble(folder):
    (path,) = folder.glob(events.PATTERN)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("accident", [keep_all, lose_the_end, lose_the_file, copy_it, garble])
def test_tensorboard_has_every_point_once_after_a_kill(run, copied, accident):
    """Tests a kill after step 12, whose checkpoint is incomplete: points of steps 9 to 12 are written again."""
    assert_each_point_once(copied)
    before = points(copied)
    shutil.rmtree(copied / "checkpoints" / "12")
    accident(copied)
    loop.train(run[0], copied)
    assert_each_point_once(copied)
    assert len(list(copied.glob(events.PATTERN))) == 1
    times = {step: values[0][1] for (tag, step), values in sorted(points(copied).items()) if tag == "train/loss"}
    assert list(times) == sorted(times) and list(times.values()) == sorted(times.values())
    assert times[12] > before["train/loss", 12][0][1]
    if accident in (keep_all, copy_it):
        assert all(times[step] == before["train/loss", step][0][1] for step in times if step <= 8)


def test_a_tensorboard_that_watched_sees_no_point_twice(tmp_path):
    """Tests a TensorBoard that has read the old file when the new one appears, while both exist."""
    lines = [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 9)]
    file = events.EventFile(tmp_path, lines)
    file.close()
    shutil.copytree(tmp_path, tmp_path / "seen")
    file = events.EventFile(tmp_path, lines[:5])
    file.write(6, "train", {"loss": 7.0})
    for path in (tmp_path / "seen").iterdir():
        shutil.move(path, tmp_path)
    assert {step: [value for value, _ in values] for (_, step), values in points(tmp_path).items()} == {
        **{step: [pytest.approx(1 / step)] for step in range(1, 6)},
        6: [7.0],
    }
    file.close()


# -- one process ------------------------------------------------------------------------------------------------------

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1] + "/.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
open(sys.argv[1] + "/.lock.json", "w").write('{"process": 123, "host": "far", "since": "2026-01-01 12:00:00"}')
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(copied):
    process = subprocess.Popen([sys.executable, "-S", "-c", HOLD, str(copied)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_start_names_the_owner_of_the_folder(run, copied, holder):
    before, began = damage.content(copied), time.time()
    with pytest.raises(
        UserError,
        match=f"^{copied} is being trained by process 123 on far since 2026-01-01 12:00:00: "
        "wait until it ends, or choose another --workdir$",
    ):
        loop.train(run[0], copied)
    assert damage.content(copied) == before and time.time() - began < 2  # before any setup
    assert checkpoint.read(copied)  # readers need no lock
    for text in ("", "{", "[]", "null", '{"process": 1}'):
        (copied / ".lock.json").write_text(text)
        with pytest.raises(UserError, match="is being trained by another process: wait"):
            loop.train(run[0], copied)
    holder.kill()  # no chance to clean up
    holder.wait()
    assert loop.train(run[0], copied)["steps"] == 12
    assert not list(copied.glob(".lock*"))


@pytest.mark.parametrize("changes", [{"model__norm": "bach"}, {"batch_size": 16}])
def test_the_lock_is_released_where_a_run_is_refused(run, copied, changes):
    with pytest.raises(UserError):
        loop.train(tiny.config(**changes), copied)
    assert not list(copied.glob(".lock*"))
    lock = Lock(copied)
    lock.acquire()
    lock.acquire()  # already holds it
    assert json.loads((copied / ".lock.json").read_text())["process"] == os.getpid()
    lock.release()
    lock.release()


def test_the_lock_is_released_where_a_run_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.MetricsFile, "write", lambda *arguments: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            loop.train(tiny.config(duration="2 steps", log_every="2 steps"), tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    (tmp_path / ".lock").write_text("")  # left from before the folder was moved
    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.acquire()
    with pytest.raises(
        UserError,
        match=r"is being trained by process \d+ on .* has no locks: if that process is gone, "
        r"delete .*/\.lock\.file\)$",
    ):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    # A process of this host that was killed
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    first.acquire()
    text = (tmp_path / ".lock.file").read_text()
    first.release()
    (tmp_path / ".lock.file").write_text("\n".join([str(process.pid), *text.splitlines()[1:2]]) + "\n")
    os.utime(tmp_path / ".lock.file", (0, 0))
    second.acquire()
    second.release()


def test_a_folder_in_which_no_lock_can_be_made(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot use --workdir=.*: Is a directory"):
        Lock(tmp_path).acquire()


# -- noise ------------------------------------------------------------------------------------------------------------


def make_noise():
    class Dies:
        def __del__(self):
            raise RuntimeError("nobody can catch this")

    logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=ValueError("task"))
    logging.getLogger("absl").warning("from Orbax")
    logging.getLogger("absl").info("not worth it")
    warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    Dies()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


@pytest.mark.filterwarnings("always")
def test_messages_of_libraries_are_in_the_log(tmp_path, capfd):
    before = logging.getLogger().handlers[:], warnings.showwarning, sys.unraisablehook, threading.excepthook
    terminal = logging.StreamHandler()
    logging.getLogger().addHandler(terminal)
    try:
        with details.redirect(tmp_path / "details.log"):
            make_noise()
    finally:
        logging.getLogger().removeHandler(terminal)
    assert before == (logging.getLogger().handlers, warnings.showwarning, sys.unraisablehook, threading.excepthook)
    assert capfd.readouterr() == ("", "")
    text = (tmp_path / "details.log").read_text()
    for part in (
        "Task exception",
        "ValueError: task",
        "from Orbax",
        "deprecated",
        "nobody can catch this",
        "ZeroDivisionError",
    ):
        assert part in text
    assert "not worth it" not in text and text.count("Traceback") == 2


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("path", [None, "missing/details.log", "/dev/full"])
def test_a_log_that_cannot_be_written_is_ignored(tmp_path, capfd, path):
    with details.redirect(path and tmp_path / path):
        make_noise()
    assert capfd.readouterr() == ("", "") and os.listdir(tmp_path) == []


def test_a_run_without_trouble_has_no_log(run):
    assert not (run[1] / "details.log").exists()


@pytest.fixture
def small_disk(tmp_path):
    """Returns a file system of 3 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], capture_output=True, check=False
    ).returncode:
        pytest.skip("may not mount")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_is_one_line(small_disk, monkeypatch, capfd):
    usage = type("usage", (), {"free": 2**40})
    store = checkpoint.Checkpoints(small_disk / "checkpoints")
    store.save(1, {"x": np.arange(10.0)}, {}, {})
    store.wait()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    rng = np.random.default_rng(0)
    with details.redirect(small_disk / "details.log"):
        for _ in range(3):
            store.save(2, {f"a{i}": rng.standard_normal(50_000) for i in range(30)}, {}, {})
            with pytest.raises(
                UserError,
                match="^no disk space for checkpoint 2 in .*: no space left on the device; "
                "the checkpoint of step 1 is kept, and the same command resumes from",
            ):
                store.wait()
        store.close()
    assert capfd.readouterr() == ("", "")
    checkpoint.Checkpoints(small_disk / "checkpoints").close()  # a thread of Orbax may have written after `close`
    assert os.listdir(small_disk / "checkpoints") == ["1"]


# -- ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGINT,) * 2, (signal.SIGINT,) * 5, (signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)],
)
def test_simultaneous_signals_count_as_one(numbers):
    received = []
    before = signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        with Interruption() as interruption:
            assert interruption.noted(0) is None
            for number in numbers:
                signal.raise_signal(number)
            assert interruption.noted(1) == numbers[0].name and received == []
            interruption._since -= 10
            signal.raise_signal(signal.SIGTERM)
            assert received == []
            signal.raise_signal(signal.SIGINT)  # pressed again later, which concerns the command
            assert len(received) == 1 and received[0][0] == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)

"""Workdirs after a kill, a full disk, a flipped bit, another process or an editor: one line, or the same bits.

A checkpoint is restored bit by bit or passed over; nothing else may come of any damage.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import trials
from experiments.study import Trial
from models.errors import UserError
from tests import tiny
from train import checkpoint, checkpoint_format, details, events, loop, workdir
from train.interruption import Interruption
from train.lock import Lock

STEPS = (4, 8, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of 12 steps that keeps three checkpoints, and what each of them holds."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = tiny.config(keep_checkpoints=3, log_every="1 steps", evaluate_every="4 steps", ema_decay=0.5)
    loop.train(config, folder)
    store = checkpoint.Checkpoints(folder / "checkpoints", read_only=True)
    held = {step: store.restore(step) for step in store.steps()}
    store.close()
    assert tuple(held) == STEPS
    return config, folder, held


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that may be damaged."""
    shutil.copytree(run[1], tmp_path / "run")
    return tmp_path / "run"


def write_as_earlier_versions(folder, held):
    """The checkpoints as versions before checksums wrote them, through Orbax's manager."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics.get("accuracy", 0))
    manager = ocp.CheckpointManager(folder, options=options)
    for step, (leaves, about) in held.items():
        about = {name: about[name] for name in ("seconds", "data", "recorder", "step")} | {
            "crc32": {name: checkpoint_format.zlib.crc32(np.ascontiguousarray(leaf)) for name, leaf in leaves.items()}}
        manager.save(step, metrics={"accuracy": step / 100}, args=ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(about)))
    manager.close()


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a)


# -- damage -----------------------------------------------------------------------------------------------------------


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def edit_json(content, rng):
    """Another number, text or type in one place."""
    path = []

    def places(value, at):
        yield at
        for key, below in (value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list)
                           else ()):
            yield from places(below, [*at, key])

    path = rng.choice(list(places(content, [])))
    new = rng.choice([None, True, -1, 0, 80, 10**30, 1e300, float("nan"), "x", [], {}, [[]], {"step": 4}])
    if not path:
        return new
    *above, last = path
    holder = content
    for key in above:
        holder = holder[key]
    holder[last] = new
    return content


def damage(folder, rng):
    """One accident in a folder of checkpoints; returns its name."""
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    step = folder / str(rng.choice([steps[-1], steps[-1], rng.choice(steps)]))
    other = folder / str(rng.choice([one for one in steps if str(one) != step.name]))
    path = rng.choice(files(step))
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "truncate", "empty", "garbage", "append", "remove", "folder", "file",
                       "swap", "swap part", "swap step", "rename", "no folder", "json", "json", "json", "text", "link"])
    if kind == "flip":
        place = rng.randrange(max(len(data), 1))
        data[place:place + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[place:place + 1])
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[:rng.randrange(len(data) + 1)])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(rng.randbytes(rng.choice([1, 100, 10_000])))
    elif kind == "append":
        path.write_bytes(data + rng.randbytes(9))
    elif kind == "remove":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "file":
        part = rng.choice([step, *(one for one in step.iterdir() if one.is_dir())])
        shutil.rmtree(part)
        part.write_bytes(b"not a folder")
    elif kind == "swap":
        path.write_bytes(rng.choice(files(other)).read_bytes())
    elif kind == "swap part":
        part = rng.choice([one.name for one in step.iterdir() if one.is_dir()])
        shutil.rmtree(step / part)
        shutil.copytree(other / part, step / part)
    elif kind == "swap step":
        step.rename(folder / "aside")
        other.rename(step)
        (folder / "aside").rename(other)
    elif kind == "rename":
        step.rename(folder / str(rng.choice([80, 10**17, 0])))
    elif kind == "no folder":
        shutil.rmtree(step)
        step.mkdir()
    elif kind == "json":
        path = rng.choice([step / "about" / "metadata", step / "about" / "metadata", step / "state" / "_METADATA"])
        path.write_text(json.dumps(edit_json(json.loads(path.read_text()), rng)))
    elif kind == "text":
        path = step / "about" / "metadata"
        path.write_text(rng.choice(["", "{", "null", "[]", "{}", "[" * 100_000, '{"step": 1e999}', "9" * 5000, "\0",
                                    '{"step": 12, "checksum": "' + "0" * 64 + '"}']))
    elif kind == "link":
        path.unlink()
        path.symlink_to(path)
    return kind


@pytest.mark.parametrize("part", range(4))
def test_any_damage_gives_a_checkpoint_bit_by_bit_or_one_line(run, tmp_path, capfd, part):
    """300 accidents; 1 to 3 in each."""
    held, rng = run[2], random.Random(part)
    with details.kept(tmp_path / "details.log"):
        for number in range(75):
            folder = tmp_path / str(number) / "checkpoints"
            shutil.copytree(run[1] / "checkpoints", folder)
            kinds = [damage(folder, rng)]
            for _ in range(rng.choice([0, 0, 1, 2])):
                with contextlib.suppress(OSError, ValueError, IndexError):  # what is damaged takes no further accident
                    kinds.append(damage(folder, rng))
            store, said = checkpoint.Checkpoints(folder, headline="accuracy"), []
            store.best()
            try:
                leaves, about = store.restore_newest(said.append)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 400, kinds
            else:
                step = about["step"]
                assert same(leaves, held[step][0]) and about == held[step][1], (kinds, step)
                assert len(said) == sum(path.name.startswith("damaged-checkpoint-") for path in folder.parent.iterdir())
                assert all("\n" not in line and len(line) < 400 and f"of step {step}" in line for line in said), kinds
            store.close()
            shutil.rmtree(tmp_path / str(number))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_any_damage_to_checkpoints_of_earlier_versions(run, tmp_path, capfd):
    """What they say beside the arrays has no checksum; the arrays, their step and the process are safe."""
    held, rng = run[2], random.Random(5)
    write_as_earlier_versions(tmp_path / "earlier", held)
    capfd.readouterr()
    with details.kept(tmp_path / "details.log"):
        for number in range(60):
            folder = tmp_path / str(number) / "checkpoints"
            shutil.copytree(tmp_path / "earlier", folder)
            kind = damage(folder, rng)
            store, said = checkpoint.Checkpoints(folder, headline="accuracy"), []
            store.best()
            leaves, about = store.restore_newest(said.append)
            assert same(leaves, held[about["step"]][0]), kind
            store.close()
    assert capfd.readouterr().err == ""


def test_checkpoints_of_earlier_versions_are_read_and_run_out(run, copied):
    _, _, held = run
    shutil.rmtree(copied / "checkpoints")
    write_as_earlier_versions(copied / "checkpoints", {step: held[step] for step in STEPS[:2]})
    (copied / "checkpoints" / "4" / "metrics" / "metrics").write_text('{"accuracy": 0.9, "lo')  # an old one's, too
    store = checkpoint.Checkpoints(copied / "checkpoints", headline="accuracy")
    leaves, about = store.restore_newest(pytest.fail)
    assert same(leaves, held[8][0]) and about["recorder"] == held[8][1]["recorder"] and store.best() == 8
    for step in (12, 16, 20):
        store.save(step, held[12][0], {}, {"accuracy": 0.01})
    store.wait()
    assert store.steps() == [8, 16, 20]
    store.close()


EDITS = [("step", 80), ("step", 8), ("step", "12"), ("seconds", -1e9), ("data", {}), ("recorder", None),
         ("scores", {"accuracy": 1.0}), ("scores", {}), ("files", {}), ("checksum", "0" * 64), ("checksum", 0),
         ("new", 1)]


@pytest.mark.parametrize(("key", "value"), EDITS)
@pytest.mark.parametrize("rename", [False, True])
def test_nothing_that_is_said_about_a_checkpoint_can_be_edited(copied, key, value, rename):
    path = copied / "checkpoints" / "12" / "about" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    if rename:  # an editor who does it thoroughly
        path.parents[1].rename(copied / "checkpoints" / "80")
    said = []
    store = checkpoint.Checkpoints(copied / "checkpoints", headline="accuracy")
    assert store.restore_newest(said.append)[1]["step"] == 8 and len(said) == 1
    store.close()


@pytest.mark.parametrize("key", ["checksum", "files", "step", "scores", "recorder"])
def test_a_checkpoint_cannot_pass_as_one_of_an_earlier_version(copied, key):
    path = copied / "checkpoints" / "12" / "about" / "metadata"
    path.write_text(path.read_text().replace(f'"{key}"', f'"{key[:-1]}!"'))
    store = checkpoint.Checkpoints(copied / "checkpoints")
    with pytest.raises(ValueError):
        store.restore(12)
    store.close()


def test_an_untrained_network_is_not_finished(run, copied):
    """`step` of the newest edited to the last step: the run goes on from the one before, to the same bits."""
    config, _, held = run
    shutil.rmtree(copied / "checkpoints" / "12")
    (copied / "checkpoints" / "8").rename(copied / "checkpoints" / "12")
    path = copied / "checkpoints" / "12" / "about" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 12}))
    summary = loop.train(config, copied)
    assert summary["seconds_to_first_step"] and summary["steps"] == 12
    assert same(checkpoint.read(copied), held[12][0])


# -- readers of runs --------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def largest(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def test_a_reader_passes_over_the_damaged_newest_and_says_so(run, copied, capfd):
    cut(largest(copied / "checkpoints" / "12" / "state"))
    before = content(copied)
    assert same(checkpoint.read(copied), run[2][8][0])
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"warning: {copied}: checkpoint 12 is damaged (the checksum of state/")
    assert err.endswith("differs); using the one of step 8\n")
    assert content(copied) == before  # it only reads


@pytest.mark.parametrize("part", ["state", "about"])
def test_a_reader_of_the_best_passes_it_over_too(run, copied, part):
    scores = {step: about["scores"]["accuracy"] for step, (_, about) in run[2].items()}
    best, second = sorted(STEPS, key=lambda step: (scores[step], step))[:-3:-1]
    cut(largest(copied / "checkpoints" / str(best) / part))
    said = []
    assert same(checkpoint.read(copied, best="accuracy", warn=said.append), run[2][second][0])
    assert len(said) == 1 and f"checkpoint {best} is damaged" in said[0] and f"of step {second}" in said[0]


def test_all_are_damaged(run, copied, capfd):
    for step in STEPS:
        cut(largest(copied / "checkpoints" / str(step)))
    before = content(copied)
    with pytest.raises(UserError, match="run: checkpoint 12 is damaged: .*; so is every one before it"):
        checkpoint.read(copied)
    store = checkpoint.Checkpoints(copied / "checkpoints")
    for _ in range(2):  # nothing is moved: the second start says the same, and does not start afresh
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged .*12.*; choose another --workdir"):
            store.restore_newest(pytest.fail)
    store.close()
    assert content(copied) == before and capfd.readouterr().err == ""


def test_a_checkpoint_that_training_removes_while_it_is_read_is_no_damage(copied, monkeypatch):
    read = checkpoint_format.read

    def later(folder):
        if folder.name == "12":
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(checkpoint_format, "read", later)
    checkpoint.read(copied, warn=pytest.fail)


def test_a_trial_is_measured_at_its_end_or_not_at_all(run, copied, tmp_path):
    def size(run, state):
        return 0

    trial = Trial({}, run[0], train=True, measures=(size,))
    (copied / "outcome.json").write_text('{"summary": {}, "diverged": null, "history": {}, "measured": {}}')
    cut(largest(copied / "checkpoints" / "12" / "state"))
    with pytest.raises(UserError, match="is its step 8 of 12: delete its outcome.json"):
        trials.run(trial, copied)


# -- removal ----------------------------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_removal_leaves_no_half(tmp_path, monkeypatch):
    store = checkpoint.Checkpoints(tmp_path / "c", keep=1)
    tree = {"x": np.arange(5.0)}
    store.save(1, tree, {}, {})
    store.wait()
    monkeypatch.setattr(checkpoint, "remove", lambda path: None)  # the process ends here
    store.save(2, tree, {}, {})
    store.close()
    assert sorted(os.listdir(tmp_path / "c")) == [".old-1.tmp", "2"]
    monkeypatch.undo()
    store = checkpoint.Checkpoints(tmp_path / "c", keep=1)
    assert os.listdir(tmp_path / "c") == ["2"] and same(store.restore(2)[0], tree)
    store.close()


def test_what_kills_left_is_cleaned_at_the_next_start(run, copied):
    config, _, held = run
    for name in ("checkpoints/.new-16.tmp/state/d", "checkpoints/.old-4.tmp/about", ".export.partial", ".now.partial",
                 "checkpoints/16.orbax-checkpoint-tmp/state", "checkpoints/16.orbax-checkpoint-tmp-1700000000"):
        (copied / name).mkdir(parents=True)
        (copied / name / "half").write_text("x")
    for name in (".config.json.tmp", ".summary.json.tmp", ".events.tmp", ".metrics.jsonl.tmp"):
        (copied / name).write_text("x")
    os.utime(copied / ".export.partial", (0, 0))
    (copied / "notes.txt").write_text("mine")
    (copied / "checkpoints" / "notes.txt").write_text("mine")
    loop.train(config, copied)
    assert sorted(os.listdir(copied / "checkpoints")) == ["12", "4", "8", "notes.txt"]
    assert sorted(name for name in os.listdir(copied) if name.startswith(".")) == [".now.partial"]
    assert (copied / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("aside", ["nothing", "folder", "file", "cannot be moved"])
def test_the_place_for_a_damaged_one_may_be_taken(copied, monkeypatch, aside):
    cut(largest(copied / "checkpoints" / "12"))
    place = copied / "damaged-checkpoint-12"
    if aside == "folder":
        (place / "12").mkdir(parents=True)
    elif aside == "file":
        place.write_text("x")
    elif aside == "cannot be moved":
        rename = type(place).rename
        monkeypatch.setattr(type(place), "rename", lambda self, target: rename(self, target) if target != place else (
            _ for _ in ()).throw(OSError(errno.EXDEV, "Invalid cross-device link")))
    said = []
    store = checkpoint.Checkpoints(copied / "checkpoints")
    leaves, about = store.restore_newest(said.append)
    assert about["step"] == 8 and len(said) == 1
    assert ("it stays where it is (Invalid cross-device link)" in said[0]) == (aside == "cannot be moved")
    assert (place / "about").is_dir() == (aside != "cannot be moved")
    store.save(12, leaves, {}, {})  # its place is free
    store.wait()
    assert same(store.restore(12)[0], leaves)
    store.close()


# -- event files ------------------------------------------------------------------------------------------------------


def points(folder):
    """What TensorBoard shows, {(tag, step): [(value, time)]}: by sorted files; a start forgets what comes after it."""
    shown = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events.read(path):
            if event.HasField("session_log"):
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append((value.simple_value, event.wall_time))
    return shown


def expected(folder):
    return {(f"{line['split']}/{name}", line["step"]): value
            for line in workdir.read_metrics(folder / "metrics.jsonl")
            for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}


def assert_each_point_once(folder):
    shown, wanted = points(folder), expected(folder)
    assert shown.keys() == wanted.keys() and len(wanted) > 20
    for key, found in shown.items():
        assert [value for value, _ in found] == pytest.approx([wanted[key]]), key


def keep_all(folder):
    pass


def lose_the_end(folder):
    (path,) = folder.glob(events.PATTERN)
    cut(path)


def lose_the_file(folder):
    (path,) = folder.glob(events.PATTERN)
    path.unlink()


def copy_it(folder):
    """What a kill between the new file and the removal of the old one leaves."""
    (path,) = folder.glob(events.PATTERN)
    shutil.copy(path, path.with_name("events.out.tfevents.1500000000.elsewhere"))


def garble(folder):
    (path,) = folder.glob(events.PATTERN)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("accident", [keep_all, lose_the_end, lose_the_file, copy_it, garble])
def test_tensorboard_has_every_point_once_after_a_kill(run, copied, accident):
    """Killed behind step 12, of which the checkpoint is not whole: points of steps 9 to 12 are written again."""
    assert_each_point_once(copied)
    before = points(copied)
    shutil.rmtree(copied / "checkpoints" / "12")
    accident(copied)
    loop.train(run[0], copied)
    assert_each_point_once(copied)
    assert len(list(copied.glob(events.PATTERN))) == 1
    times = {step: found[0][1] for (tag, step), found in sorted(points(copied).items()) if tag == "train/loss"}
    assert list(times) == sorted(times) and list(times.values()) == sorted(times.values())
    assert times[12] > before["train/loss", 12][0][1]
    if accident in (keep_all, copy_it):
        assert all(times[step] == before["train/loss", step][0][1] for step in times if step <= 8)


def test_a_tensorboard_that_watched_sees_no_point_twice(tmp_path):
    """It has read the old file when the new one appears, and both were there."""
    lines = [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 9)]
    file = events.EventFile(tmp_path, lines)
    file.close()
    shutil.copytree(tmp_path, tmp_path / "seen")
    file = events.EventFile(tmp_path, lines[:5])
    file.write(6, "train", {"loss": 7.0})
    for path in (tmp_path / "seen").iterdir():
        shutil.move(path, tmp_path)
    assert {step: [value for value, _ in found] for (_, step), found in points(tmp_path).items()} == {
        **{step: [pytest.approx(1 / step)] for step in range(1, 6)}, 6: [7.0]}
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


def test_a_second_start_says_who_has_the_folder(run, copied, holder):
    before, began = content(copied), time.time()
    with pytest.raises(UserError, match=f"^{copied} is being trained by process 123 on far since 2026-01-01 12:00:00: "
                                        "wait until it ends, or choose another --workdir$"):
        loop.train(run[0], copied)
    assert content(copied) == before and time.time() - began < 2  # before anything is set up
    assert checkpoint.read(copied)  # readers need no lock
    for text in ("", "{", "[]", "null", '{"process": 1}'):
        (copied / ".lock.json").write_text(text)
        with pytest.raises(UserError, match="is being trained by another process: wait"):
            loop.train(run[0], copied)
    holder.kill()  # without a chance to clean up
    holder.wait()
    assert loop.train(run[0], copied)["steps"] == 12
    assert not list(copied.glob(".lock*"))


@pytest.mark.parametrize("changes", [{"model__norm": "bach"}, {"batch_size": 16}])
def test_the_lock_is_given_back_where_a_run_is_refused(run, copied, changes):
    with pytest.raises(UserError):
        loop.train(tiny.config(**changes), copied)
    assert not list(copied.glob(".lock*"))
    lock = Lock(copied)
    lock.acquire()
    lock.acquire()  # has it already
    assert json.loads((copied / ".lock.json").read_text())["process"] == os.getpid()
    lock.release()
    lock.release()


def test_the_lock_is_given_back_where_a_run_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.MetricsFile, "write", lambda *arguments: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            loop.train(tiny.config(duration="2 steps", log_every="2 steps"), tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    (tmp_path / ".lock").write_text("")  # of a time at which the folder was elsewhere
    monkeypatch.setattr(fcntl, "flock", refuse)
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.acquire()
    with pytest.raises(UserError, match=r"is being trained by process \d+ on .* has no locks: if that process is gone, "
                                        r"delete .*/\.lock\.file\)$"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    # Of a process of this host that was killed
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
def test_what_libraries_say_is_in_the_log(tmp_path, capfd):
    before = logging.getLogger().handlers[:], warnings.showwarning, sys.unraisablehook, threading.excepthook
    terminal = logging.StreamHandler()
    logging.getLogger().addHandler(terminal)
    try:
        with details.kept(tmp_path / "details.log"):
            make_noise()
    finally:
        logging.getLogger().removeHandler(terminal)
    assert before == (logging.getLogger().handlers, warnings.showwarning, sys.unraisablehook, threading.excepthook)
    assert capfd.readouterr() == ("", "")
    text = (tmp_path / "details.log").read_text()
    for part in ("Task exception", "ValueError: task", "from Orbax", "deprecated", "nobody can catch this",
                 "ZeroDivisionError"):
        assert part in text
    assert "not worth it" not in text and text.count("Traceback") == 2


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("path", [None, "missing/details.log", "/dev/full"])
def test_a_log_that_cannot_be_written_is_let_go(tmp_path, capfd, path):
    with details.kept(path and tmp_path / path):
        make_noise()
    assert capfd.readouterr() == ("", "") and os.listdir(tmp_path) == []


def test_a_run_without_trouble_has_no_log(run):
    assert not (run[1] / "details.log").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], capture_output=True,
                      check=False).returncode:
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
    with details.kept(small_disk / "details.log"):
        for _ in range(3):
            store.save(2, {f"a{i}": rng.standard_normal(50_000) for i in range(30)}, {}, {})
            with pytest.raises(UserError, match="^no disk space for checkpoint 2 in .*: no space left on the device; "
                                                "the checkpoint of step 1 is kept, and the same command goes on from"):
                store.wait()
        store.close()
    assert capfd.readouterr() == ("", "") and os.listdir(small_disk / "checkpoints") == ["1"]


# -- ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(signal.SIGINT,) * 2, (signal.SIGINT,) * 5, (signal.SIGTERM, signal.SIGINT),
                                     (signal.SIGINT, signal.SIGTERM)])
def test_signals_at_once_are_one(numbers):
    came = []
    before = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        with Interruption() as interruption:
            assert interruption.noted(0) is None
            for number in numbers:
                signal.raise_signal(number)
            assert interruption.noted(1) == numbers[0].name and came == []
            interruption._since -= 10
            signal.raise_signal(signal.SIGTERM)
            assert came == []
            signal.raise_signal(signal.SIGINT)  # pressed again later: that is for the command
            assert len(came) == 1 and came[0][0] == signal.SIGINT
        assert jax.process_count() == 1
    finally:
        signal.signal(signal.SIGINT, before)

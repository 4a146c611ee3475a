"""Workdirs after a kill, a flipped bit or an edit: a checkpoint is restored bit by bit or skipped, in one line.

tests/train/test_hostile_process.py covers other processes, full disks and ctrl-C.
"""

import contextlib
import errno
import json
import os
import random
import shutil

import numpy as np
import pytest

from experiments.study import Trial, trials
from models.errors import UserError
from tests import damage
from train import loop
from train.storage import checkpoint, checkpoint_format, details

run, copied = damage.run, damage.copied  # fixtures


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(12))
def test_any_damage_gives_a_checkpoint_bit_by_bit_or_one_line(run, tmp_path, capfd, part):
    """Tests 300 rounds of 1 to 3 accidents each."""
    held, rng = run[2], random.Random(part)
    with details.redirect(tmp_path / "details.log"):
        for number in range(25):
            folder = tmp_path / str(number) / "checkpoints"
            shutil.copytree(run[1] / "checkpoints", folder)
            kinds = [damage.accident(folder, rng)]
            for _ in range(rng.choice([0, 0, 1, 2])):
                # a further accident may be impossible after the damage
                with contextlib.suppress(OSError, ValueError, IndexError, RecursionError):
                    kinds.append(damage.accident(folder, rng))
            store, messages = checkpoint.Checkpoints(folder, headline="accuracy"), []
            store.best()
            try:
                leaves, metadata = store.restore_newest(messages.append)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 400, kinds
            else:
                step = metadata["step"]
                assert damage.same(leaves, held[step][0]) and metadata == held[step][1], (kinds, step)
                assert len(messages) == sum(
                    path.name.startswith("damaged-checkpoint-") for path in folder.parent.iterdir()
                )
                assert all("\n" not in line and len(line) < 400 and f"of step {step}" in line for line in messages), (
                    kinds
                )
            store.close()
            shutil.rmtree(tmp_path / str(number))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_any_damage_to_checkpoints_of_earlier_versions(run, tmp_path, capfd):
    """Tests checkpoints whose metadata has no checksum; the arrays, their step and the process stay safe."""
    held, rng = run[2], random.Random(5)
    damage.write_as_earlier_versions(tmp_path / "earlier", held)
    capfd.readouterr()
    with details.redirect(tmp_path / "details.log"):
        for number in range(60):
            folder = tmp_path / str(number) / "checkpoints"
            shutil.copytree(tmp_path / "earlier", folder)
            kind = damage.accident(folder, rng)
            store, messages = checkpoint.Checkpoints(folder, headline="accuracy"), []
            store.best()
            leaves, metadata = store.restore_newest(messages.append)
            assert damage.same(leaves, held[metadata["step"]][0]), kind
            store.close()
    assert capfd.readouterr().err == ""


def test_checkpoints_of_earlier_versions_are_read_and_resumed(run, copied):
    _, _, held = run
    shutil.rmtree(copied / "checkpoints")
    damage.write_as_earlier_versions(copied / "checkpoints", {step: held[step] for step in damage.STEPS[:2]})
    (copied / "checkpoints" / "4" / "metrics" / "metrics").write_text('{"accuracy": 0.9, "lo')  # also in an old one
    store = checkpoint.Checkpoints(copied / "checkpoints", headline="accuracy")
    leaves, metadata = store.restore_newest(pytest.fail)
    assert damage.same(leaves, held[8][0]) and metadata["recorder"] == held[8][1]["recorder"] and store.best() == 8
    for step in (12, 16, 20):
        store.save(step, held[12][0], {}, {"accuracy": 0.01})
    store.wait()
    assert store.steps() == [8, 16, 20]
    store.close()


EDITS = [
    ("step", 80), ("step", 8), ("step", "12"), ("seconds", -1e9), ("data", {}), ("recorder", None),
    ("scores", {"accuracy": 1.0}), ("scores", {}), ("files", {}), ("checksum", "0" * 64), ("checksum", 0), ("new", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), EDITS)
@pytest.mark.parametrize("rename", [False, True])
def test_edited_metadata_of_a_checkpoint_are_detected(copied, key, value, rename):
    path = copied / "checkpoints" / "12" / "about" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    if rename:  # a thorough edit renames the folder as well
        path.parents[1].rename(copied / "checkpoints" / "80")
    messages = []
    store = checkpoint.Checkpoints(copied / "checkpoints", headline="accuracy")
    assert store.restore_newest(messages.append)[1]["step"] == 8 and len(messages) == 1
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
    """Edits `step` of the newest checkpoint to the last step: the run resumes from the one before, to the same bits."""
    config, _, held = run
    shutil.rmtree(copied / "checkpoints" / "12")
    (copied / "checkpoints" / "8").rename(copied / "checkpoints" / "12")
    path = copied / "checkpoints" / "12" / "about" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 12}))
    summary = loop.train(config, copied)
    assert summary["seconds_to_first_step"] and summary["steps"] == 12
    assert damage.same(checkpoint.read(copied)[0], held[12][0])


# -- readers of runs --------------------------------------------------------------------------------------------------


def test_a_reader_skips_the_damaged_newest_and_reports_it(run, copied, capfd):
    damage.cut(damage.largest(copied / "checkpoints" / "12" / "state"))
    before = damage.content(copied)
    assert damage.same(checkpoint.read(copied)[0], run[2][8][0])
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"warning: {copied}: checkpoint 12 is damaged (the checksum of state/")
    assert err.endswith("differs); using the one of step 8\n")
    assert damage.content(copied) == before  # reading changes nothing


@pytest.mark.parametrize("part", ["state", "about"])
def test_a_reader_of_the_best_skips_a_damaged_one_too(run, copied, part):
    scores = {step: metadata["scores"]["accuracy"] for step, (_, metadata) in run[2].items()}
    best, second = sorted(damage.STEPS, key=lambda step: (scores[step], step))[:-3:-1]
    damage.cut(damage.largest(copied / "checkpoints" / str(best) / part))
    messages = []
    assert damage.same(checkpoint.read(copied, best="accuracy", warn=messages.append)[0], run[2][second][0])
    assert len(messages) == 1 and f"checkpoint {best} is damaged" in messages[0] and f"of step {second}" in messages[0]


def test_all_are_damaged(run, copied, capfd):
    for step in damage.STEPS:
        damage.cut(damage.largest(copied / "checkpoints" / str(step)))
    before = damage.content(copied)
    with pytest.raises(UserError, match="run: checkpoint 12 is damaged: .*; so are all earlier ones"):
        checkpoint.read(copied)
    store = checkpoint.Checkpoints(copied / "checkpoints")
    for _ in range(2):  # nothing is moved: the second start gives the same error and does not start afresh
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged .*12.*; choose another --workdir"):
            store.restore_newest(pytest.fail)
    store.close()
    assert damage.content(copied) == before and capfd.readouterr().err == ""


def test_a_checkpoint_that_training_removes_while_it_is_read_is_no_damage(copied, monkeypatch):
    read = checkpoint_format.read

    def later(folder):
        if folder.name == "12":
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(checkpoint_format, "read", later)
    checkpoint.read(copied, warn=pytest.fail)


def step_reached(run, state):
    return int(state.step)


def test_a_trial_whose_last_checkpoint_is_damaged_is_trained_to_its_end_again(run, copied, tmp_path):
    job = trials.Job(Trial({}, run[0], train=True, measures=(step_reached,)), copied, tmp_path / "trials.jsonl", "")
    (copied / trials.CODE).write_text(trials.training_code(job.trial))
    damage.cut(damage.largest(copied / "checkpoints" / "12" / "state"))
    line = trials.run(job)
    assert line["outcome"]["measured"] == {"step_reached": 12} and line["outcome"]["summary"]["steps"] == 12
    assert json.loads(job.ledger.read_text()) == line


# -- removal ----------------------------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_removal_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    store = checkpoint.Checkpoints(tmp_path / "c", keep=1)
    tree = {"x": np.arange(5.0)}
    store.save(1, tree, {}, {})
    store.wait()
    monkeypatch.setattr(checkpoint, "remove", lambda path: None)  # stands for a process that ends here
    store.save(2, tree, {}, {})
    store.close()
    assert sorted(os.listdir(tmp_path / "c")) == [".old-1.tmp", "2"]
    monkeypatch.undo()
    store = checkpoint.Checkpoints(tmp_path / "c", keep=1)
    assert os.listdir(tmp_path / "c") == ["2"] and damage.same(store.restore(2)[0], tree)
    store.close()


def test_remains_of_killed_runs_are_removed_at_the_next_start(run, copied):
    config, _, held = run
    for name in (
        "checkpoints/.new-16.tmp/state/d",
        "checkpoints/.old-4.tmp/about",
        ".export.partial",
        ".now.partial",
        "checkpoints/16.orbax-checkpoint-tmp/state",
        "checkpoints/16.orbax-checkpoint-tmp-1700000000",
    ):
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
def test_the_name_for_a_damaged_checkpoint_may_be_taken(copied, monkeypatch, aside):
    damage.cut(damage.largest(copied / "checkpoints" / "12"))
    place = copied / "damaged-checkpoint-12"
    if aside == "folder":
        (place / "12").mkdir(parents=True)
    elif aside == "file":
        place.write_text("x")
    elif aside == "cannot be moved":
        rename = type(place).rename
        monkeypatch.setattr(
            type(place),
            "rename",
            lambda self, target: (
                rename(self, target)
                if target != place
                else (_ for _ in ()).throw(OSError(errno.EXDEV, "Invalid cross-device link"))
            ),
        )
    messages = []
    store = checkpoint.Checkpoints(copied / "checkpoints")
    leaves, metadata = store.restore_newest(messages.append)
    assert metadata["step"] == 8 and len(messages) == 1
    assert ("it stays where it is (Invalid cross-device link)" in messages[0]) == (aside == "cannot be moved")
    assert (place / "about").is_dir() == (aside != "cannot be moved")
    store.save(12, leaves, {}, {})  # its place is free
    store.wait()
    assert damage.same(store.restore(12)[0], leaves)
    store.close()

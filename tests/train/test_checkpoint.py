"""Checkpoints: the last and the best are kept, damage is detected, and a full disk is reported in one line."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from tests.damage import write_as_earlier_versions
from train.storage import checkpoint, checkpoint_format

TREE = {"params": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "step": np.int32(7), "rng": np.array([1, 2], np.uint32)}


def saved(folder, scores, **options):
    store = checkpoint.Checkpoints(folder, headline="accuracy", **options)
    for step, score in enumerate(scores, 1):
        tree = {**TREE, "step": np.int32(step)}
        store.save(step, tree, {"seconds": 1.5}, {} if score is None else {"accuracy": score})
    store.wait()
    return store


def test_round_trip_is_bitwise(tmp_path):
    store = saved(tmp_path, [0.5])
    leaves, metadata = store.restore_newest(pytest.fail)
    assert (metadata["step"], metadata["seconds"]) == (1, 1.5)
    back = checkpoint.unflatten(TREE, leaves, "checkpoint")
    np.testing.assert_array_equal(back["params"]["kernel"], TREE["params"]["kernel"])
    assert back["rng"].dtype == np.uint32 and int(back["step"]) == 1
    store.close()


def test_arrays_without_elements_are_restored(tmp_path):
    """Covers the state of GaLore, which has such arrays for parameters that it does not project."""
    tree = {**TREE, "state": {"empty": jnp.zeros((0, 3), jnp.bfloat16), "one": jnp.ones(())}}
    with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as store:
        store.save(1, tree, {}, {})
        store.wait()
        leaves, _ = store.restore(1)
    back = checkpoint.unflatten(tree, leaves, "checkpoint")
    assert back["state"]["empty"].shape == (0, 3) and back["state"]["empty"].dtype == jnp.bfloat16
    assert float(back["state"]["one"]) == 1
    with pytest.raises(UserError, match=r"\+ state/one"):
        checkpoint.unflatten({**TREE, "state": {"empty": tree["state"]["empty"]}}, leaves, "checkpoint")


def test_the_last_and_the_best_are_kept(tmp_path):
    store = saved(tmp_path / "checkpoints", [0.1, 0.9, 0.3, None, 0.4, None], keep=2)
    assert store.steps() == [2, 5, 6]
    store.close()
    assert checkpoint.read(tmp_path)[0]["step"] == 6 and checkpoint.read(tmp_path, best="accuracy")[0]["step"] == 2
    with pytest.raises(UserError, match="no checkpoint with hit yet"):
        checkpoint.read(tmp_path, best="hit")


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    largest = largest_file(folder / "state")
    largest.write_bytes(largest.read_bytes()[:-9])


def flip_a_bit(folder):
    largest = largest_file(folder / "state")
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def lose_a_file(folder):
    largest_file(folder / "state").unlink()


def garble_the_description(folder):
    (folder / "about" / "metadata").write_text("{")


def edit_the_description(folder):
    path = folder / "about" / "metadata"
    path.write_text(path.read_text().replace('"seconds": 1.5', '"seconds": 2.5'))


def change_a_file_that_is_decoded_all_the_same(folder):
    with (folder / "state" / "_METADATA").open("ab") as file:
        file.write(b" ")


def take_the_place_of_another(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("1"), folder)


DAMAGES = [
    truncate, flip_a_bit, lose_a_file, garble_the_description, edit_the_description,
    change_a_file_that_is_decoded_all_the_same, take_the_place_of_another,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_passed_over(tmp_path, damage):
    saved(tmp_path / "c", [0.1, 0.2]).close()
    damage(tmp_path / "c" / "2")
    store, messages = checkpoint.Checkpoints(tmp_path / "c", headline="accuracy"), []
    _, metadata = store.restore_newest(messages.append)
    assert metadata["step"] == 1
    assert (
        len(messages) == 1
        and messages[0].startswith("checkpoint 2 is damaged (")
        and "using the one before it" in messages[0]
    )
    store.save(2, TREE, {}, {"accuracy": 0.3})  # its place is free again
    store.close()
    assert checkpoint.Checkpoints(tmp_path / "c").steps() == [1, 2]


def test_arrays_of_earlier_versions_are_verified_by_their_own_sums(tmp_path):
    leaves = {"params/kernel": np.arange(6, dtype=np.float32), "step": np.int32(4)}
    metadata = {"seconds": 1.5, "data": {}, "recorder": {"sums": None, "logged": 0}, "step": 4}
    write_as_earlier_versions(tmp_path, {4: (leaves, metadata)})
    np.testing.assert_array_equal(checkpoint_format.read(tmp_path / "4")[0]["params/kernel"], np.arange(6))
    path = tmp_path / "4" / "about" / "metadata"
    content = json.loads(path.read_text())
    content["crc32"]["params/kernel"] ^= 1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the checksum of params/kernel differs"):
        checkpoint_format.read(tmp_path / "4")


def test_all_damaged(tmp_path):
    saved(tmp_path / "c", [0.1]).close()
    lose_a_file(tmp_path / "c" / "1")
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        checkpoint.Checkpoints(tmp_path / "c").restore_newest(lambda text: None)


def test_mismatched_arrays_are_listed(tmp_path):
    store = saved(tmp_path, [0.1])
    leaves, _ = store.restore_newest(pytest.fail)
    other = {"params": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3)}, "step": np.int32(0)}
    with pytest.raises(UserError, match=r"- params/bias; params/kernel: float32\[2, 3\] is not float32\[2, 4\]"):
        checkpoint.unflatten(other, leaves, "checkpoint 1")
    store.close()


def test_missing_disk_space_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    store = saved(tmp_path, [0.1])
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="no disk space for checkpoint 2 in .*; the checkpoint of step 1 is kept"):
        store.save(2, TREE, {}, {})
    monkeypatch.undo()
    assert store.steps() == [1]
    store.close()


def test_a_disk_that_fills_up_while_writing_is_reported(tmp_path, monkeypatch):
    store = saved(tmp_path, [0.1])

    def full(folder, *arguments):
        folder.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.checkpoint_format, "write", full)
    store.save(2, TREE, {}, {})
    with pytest.raises(UserError, match="no disk space for checkpoint 2 .* the checkpoint of step 1 is kept"):
        store.wait()
    store.close()
    assert os.listdir(tmp_path) == ["1"]  # the partial checkpoint was removed to free space


def test_a_kill_in_the_middle_of_a_save_leaves_no_partial_checkpoint(tmp_path):
    """Kills a process that saves step after step in the middle of a save, at many different moments."""
    script = (
        "import sys, numpy as np\n"
        "from train.storage import checkpoint\n"
        "store = checkpoint.Checkpoints(sys.argv[1], keep=2)\n"
        "start = max(store.steps(), default=0)\n"
        "for step in range(start + 1, start + 1000):\n"
        "    print(step, flush=True)\n"
        "    store.save(step, {'x': np.full((200, 1000), step, np.float32)}, {}, {})\n"
    )
    root = Path(__file__).parents[2]
    for saves in (3, 4, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "c")],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for _ in range(saves):
            process.stdout.readline()
        process.kill()  # the save announced last has started and not finished
        process.wait()
        store = checkpoint.Checkpoints(tmp_path / "c", keep=2)
        leaves, metadata = store.restore_newest(pytest.fail)
        assert (leaves["x"] == metadata["step"]).all()
        store.close()

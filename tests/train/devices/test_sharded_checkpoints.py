"""Checkpoints of states that are sharded over processes: who writes what, on what they are restored, and kills.

Several processes over loopback write and read them; this process, with four devices, reads them too.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from models.errors import UserError
from tests import damage, tiny
from tests.train.devices import test_multihost as together
from tests.train.devices.test_parallel import assert_close
from tests.train.test_loop import final
from tests.train.test_resume import saving, wait_until
from train.devices.parallel import Parallel
from train.storage import checkpoint, sharded

STEPS = (4, 8)
# A process of a run that saves its shards, or checks those that it reads.
WORKER = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
from tests.train.devices import test_sharded_checkpoints as tests
getattr(tests, sys.argv[4])(Path(sys.argv[5]))
"""


def whole(step):
    """Returns a state as numpy arrays; its large leaf cannot be compressed much."""
    kernel = np.random.default_rng(step).standard_normal((512, 256), np.float32)
    return {
        "params": {"kernel": kernel, "bias": np.arange(7, dtype=np.float32)},
        "negative": np.full((64, 64), -0.0, np.float32),
        "step": np.int32(step),
        "rng": np.array([1, step], np.uint32),
    }


def store(folder):
    return sharded.ShardedCheckpoints(folder / "checkpoints", 2, "accuracy")


def save(folder):
    """Saves two checkpoints, and donates the arrays while they are written."""
    if not jax.process_index():
        folder.mkdir()
    parallel, saved = Parallel("fsdp"), store(folder)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0)
    for step in STEPS:
        state = parallel.place(whole(step))
        saved.save(step, state, {"seconds": 1.5}, {"accuracy": step / 10})
        jax.block_until_ready(overwrite(state))
    saved.wait()
    saved.close()


def check(folder):
    """Checks that each process reads the shards of its own devices, and the same checkpoint as the others."""
    saved, parallel = store(folder), Parallel("fsdp")
    step = saved.newest_whole(print)["step"]
    assert_shards(saved.read(step, parallel.placed(whole(step))), whole(step), len(jax.devices()))
    saved.close()


def assert_shards(arrays, expected, devices):
    """Asserts that arrays have the expected bits, and are sharded where `parallel=fsdp` shards them."""
    for leaf, other in zip(jax.tree.leaves(arrays), jax.tree.leaves(expected), strict=True):
        other = np.asarray(other)
        assert leaf.dtype == other.dtype and leaf.shape == other.shape
        for shard in leaf.addressable_shards:
            part = shard.data
            assert part.size == leaf.size // (devices if leaf.size >= 1024 else 1)
            assert np.asarray(part).tobytes() == np.ascontiguousarray(other[shard.index]).tobytes()


def processes(count, action, folder, devices):
    """Runs an action of this file in several processes; returns what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = []
    for index in range(count):
        options = tiny.command(devices=devices)
        options["args"] = [sys.executable, "-c", WORKER, address, str(count), str(index), action, str(folder)]
        running.append(subprocess.Popen(**options))
    ended = together.finish(running)
    assert not any(code for code, _, _ in ended), ended
    return [out for _, out, _ in ended]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Returns the folder of a run whose two processes of two devices have saved two checkpoints."""
    folder = tmp_path_factory.mktemp("sharded") / "runs[1]"  # a name that Orbax misreads
    processes(2, "save", folder, devices=2)
    return folder


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def test_each_process_writes_only_its_shards(written):
    state = written / "checkpoints" / "8" / "state"
    sizes = [
        sum(path.stat().st_size for path in damage.files(state / f"ocdbt.process_{process}")) for process in range(2)
    ]
    kernel = whole(8)["params"]["kernel"].nbytes
    assert all(0.4 * kernel < size < 0.6 * kernel for size in sizes)
    assert sorted(os.listdir(written / "checkpoints")) == ["4", "8"]
    assert os.listdir(written / "checkpoints" / "8" / "about") == ["metadata"]
    listed = json.loads((written / "checkpoints" / "8" / "about" / "metadata").read_text())["files"]
    assert set(listed) == {str(path.relative_to(state)) for path in damage.files(state)}


def test_one_process_reads_whole_arrays(written):
    leaves, metadata = checkpoint.read(written)
    assert damage.same(leaves, checkpoint.flatten(whole(8)))
    assert (metadata["step"], metadata["seconds"], metadata["scores"]) == (8, 1.5, {"accuracy": 0.8})


@pytest.mark.parametrize("devices", [4, 2, 1])
def test_shards_are_restored_on_other_devices(written, devices):
    template = Parallel("fsdp", devices).placed(whole(8))
    leaves = sharded.read_shards(written / "checkpoints" / "8", template, "the checkpoint")
    assert_shards(jax.tree.unflatten(jax.tree.structure(template), [*leaves.values()]), whole(8), devices)


def test_four_processes_restore_what_two_have_written(written):
    processes(4, "check", written, devices=1)


def test_shards_of_a_checkpoint_that_one_process_has_written(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
    saved.save(8, whole(8), {}, {})
    saved.close()
    check(tmp_path)


def test_a_damaged_shard_gives_the_checkpoint_before_it(copied):
    """Damages each file in turn; another process than 0 notices some of them."""
    state = copied / "checkpoints" / "8" / "state"
    largest = max(damage.files(state / "ocdbt.process_1"), key=lambda path: path.stat().st_size)
    damage.cut(largest)
    first, second = processes(2, "check", copied, devices=1)
    assert f"checkpoint 8 is damaged (the checksum of state/{largest.relative_to(state)} differs)" in first
    assert "using the one before it, of step 4" in first and second.count("checkpoint") == 0
    assert (copied / "damaged-checkpoint-8").is_dir()


def test_any_damaged_file_of_a_sharded_checkpoint_is_noticed(copied):
    whole_content = damage.content(copied)
    for name, content in whole_content.items():
        if "/8/" not in name or not content:
            continue
        (copied / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        lines, saved = [], store(copied)
        assert saved.newest_whole(lines.append)["step"] == 4 and len(lines) == 1, name
        saved.close()
        shutil.rmtree(copied / "damaged-checkpoint-8")
        for other, data in whole_content.items():
            (copied / other).parent.mkdir(parents=True, exist_ok=True)
            (copied / other).write_bytes(data)


def test_all_damaged(copied):
    for step in STEPS:
        damage.cut(damage.largest(copied / "checkpoints" / str(step)))
    saved = store(copied)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged .*; choose another --workdir"):
        saved.newest_whole(pytest.fail)
    saved.close()


def test_another_network_is_refused_in_one_line(copied):
    saved, template = store(copied), {**whole(8), "more": np.zeros(3)}
    with pytest.raises(UserError, match=r"checkpoint 8 in .*run does not fit this network: - more$"):
        saved.read(8, Parallel("fsdp").placed(template))
    saved.close()


@pytest.mark.full
def test_without_a_shared_folder_process_0_writes_all(tmp_path):
    """Gives process 1 another folder, as on a host that does not mount process 0's."""
    flags = (*together.FLAGS, *together.SHARDED, "--config.hooks=", "--config.duration=8 steps")
    ended = together.finish(
        together.start(*flags, f"--workdir={tmp_path / 'run'}", others=(f"--workdir={tmp_path / 'other'}",))
    )
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert f"not all processes see {tmp_path / 'run'}: process 0 gathers the whole state" in ended[0][1]
    assert sorted(os.listdir(tmp_path)) == ["run"]
    leaves, metadata = final(tmp_path / "run")
    assert metadata["step"] == 8 and all(np.isfinite(leaf).all() for leaf in leaves.values())


@pytest.mark.full
def test_a_sharded_run_killed_in_a_save_resumes_anywhere(tmp_path):
    """Resumes on as many processes to the same bits, and on four and one with as many devices to rounding."""
    flags = (*together.FLAGS, *together.SHARDED, "--config.hooks=")
    uninterrupted = final(together.two(tmp_path / "whole", *flags[len(together.FLAGS) :]))[0]
    folder = tmp_path / "run"
    running = together.start(*flags, f"--workdir={folder}")
    together.wait_for_step(running, folder, 8)
    wait_until(running[0], lambda: saving(folder))
    for process in running:
        process.send_signal(signal.SIGKILL)
    together.finish(running)
    assert not (folder / "summary.json").exists()
    for name in ("four", "one"):
        shutil.copytree(folder, tmp_path / name)
    tiny.assert_same(final(together.two(folder, *flags[len(together.FLAGS) :]))[0], uninterrupted)
    assert not [name for name in os.listdir(folder / "checkpoints") if not name.isdecimal()]
    leaves, output = together.alone(tmp_path / "one", *flags[len(together.FLAGS) :], devices=4)
    assert "resuming from step" in output
    assert_close(leaves, uninterrupted, 1e-4)
    ended = together.finish(together.start(*flags, f"--workdir={tmp_path / 'four'}", count=4, devices=1))
    assert [code for code, _, _ in ended] == [0] * 4 and "resuming from step" in ended[0][1], ended
    assert_close(final(tmp_path / "four")[0], uninterrupted, 1e-4)

"""Streaming and resident pipelines: batch t depends on (seed, t) alone, and evaluation covers every example once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest

from models.errors import UserError
from tests import tfds_sample
from tests.tiers import keep_first
from train.data import stream as stream_module
from train.data.load import load
from train.data.resident import Resident, choose, fits
from train.data.shuffle import Order
from train.data.source import Options, Unreadable
from train.data.sources.arrays import ArraySource
from train.data.stream import evaluation_batches, stream

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "tfds"
CROP = {"image_size": 6, "crop": "random_resized"}


@pytest.fixture(scope="module")
def insects(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 8, 3), dtype=np.uint8)
    tfds_sample.write(folder, "insects", {"train": [(tfds_sample.encode(x), i % 3) for i, x in enumerate(images)]})
    return folder


def insects_source(folder: Path, **changes):
    return load(Options("tfds:insects", dir=str(folder), test_split="train", **(CROP | changes)), "train")


def collect(batches) -> dict[str, np.ndarray]:
    batches = [batch | {"image": np.array(batch["image"])} for batch in batches]
    return {key: np.stack([batch[key] for batch in batches]) for key in ("image", "label", "mask", "skipped")}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def check_invariance(source, batch_size: int, steps: int, workers: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Asserts the same batches for any number of workers, for two processes and after a restart; returns them."""

    def run(start=0, count=steps, workers=0, shard=(0, 1)):
        return collect(stream(source, Order(len(source), 5), batch_size, start, count, workers, shard, seed=5))

    whole = run()
    assert whole["image"].shape == (steps, batch_size, *source.image_shape) and whole["mask"].all()
    for number in workers:
        same(run(workers=number), whole)
    shards = [run(shard=(r, 2)) for r in (0, 1)]
    joined = {key: np.concatenate([s[key] for s in shards], 1) for key in ("image", "label", "mask")}
    same(joined, {key: whole[key] for key in joined})
    same(run(start=steps // 2, count=steps - steps // 2), {key: value[steps // 2 :] for key, value in whole.items()})
    return whole


@pytest.mark.parametrize("workers", keep_first(1, [2, 4]))  # neither divides the 9 batches
def test_batches_depend_on_seed_and_step_alone(insects, workers):
    source = insects_source(insects)
    whole = check_invariance(source, 6, 9, workers=(workers,))
    # 54 positions of 20 examples: each twice or more, hardly ever with the same crop.
    assert np.bincount(Order(20, 5).indices(0, 54)).min() >= 2
    assert len({image.tobytes() for image in whole["image"].reshape(54, -1)}) > 50
    other = collect(stream(source, Order(20, 5), 6, 0, 9, seed=6))
    assert (other["label"] == whole["label"]).all() and (other["image"] != whole["image"]).any()


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.parametrize(
    "name, batch_size, changes",
    [("cifar10_jpeg", 32, {"train_split": "train[:90%]"}),
     ("imagenet_sample", 8, {"train_split": "validation", "image_size": 64, "crop": "random_resized"})],
)  # fmt: skip
def test_batches_of_the_shared_sets(name, batch_size, changes):
    source = load(Options(f"tfds:{name}", dir=str(SHARED), **changes), "train")
    check_invariance(source, batch_size, 5, workers=(2,))


def test_shared_memory_or_pipes(insects, monkeypatch):
    source = insects_source(insects)
    whole = collect(stream(source, Order(20, 5), 6, 0, 3, seed=5))
    assert stream_module._fits_shared_memory(stream_module._EvaluationBatches(source, 6, range(6)), 2)
    monkeypatch.setattr(stream_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert not stream_module._fits_shared_memory(stream_module._EvaluationBatches(source, 6, range(6)), 2)
    same(collect(stream(source, Order(20, 5), 6, 0, 3, workers=1, seed=5)), whole)


def test_evaluation_has_every_example_once_on_every_process(insects):
    source = insects_source(insects, crop="resize")
    images = source.arrays()["image"]
    for batch_size, processes in ((20, 1), (6, 1), (8, 2), (32, 4)):
        parts = [list(evaluation_batches(source, batch_size, shard=(r, processes))) for r in range(processes)]
        assert {len(part) for part in parts} == {-(-20 // batch_size)}
        steps = [{k: np.concatenate([b[k] for b in batch]) for k in ("image", "label", "mask")} for batch in zip(*parts, strict=True)]  # noqa: E501  # fmt: skip
        whole = {key: np.concatenate([step[key] for step in steps]) for key in steps[0]}
        assert whole["mask"].sum() == 20 and whole["mask"][:20].all()
        np.testing.assert_array_equal(whole["image"][:20], images)
        assert not whole["image"][20:].any() and whole["label"][:20].tolist() == [i % 3 for i in range(20)]
    with_workers = collect(evaluation_batches(source, 6, workers=1))
    same(with_workers, collect(evaluation_batches(source, 6)))


def test_wrong_calls(insects):
    source = insects_source(insects)
    with pytest.raises(UserError, match=r"batch size 5 is not divisible by the 2 processes"):
        stream(source, Order(20, 0), 5, 0, 1, shard=(0, 2))
    with pytest.raises(UserError, match=r"data.workers=-1"):
        evaluation_batches(source, 5, workers=-1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_reaches_the_parent(tmp_path, workers):
    good = tfds_sample.encode(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    tfds_sample.write(tmp_path, "broken", {"train": [(good, 0), (good[:50], 1), (good, 2)]}, (8, 8))

    def source(on_error):
        return load(Options("tfds:broken", dir=str(tmp_path), on_error=on_error), "train")

    with pytest.raises(Unreadable, match=r"cannot decode image broken train 1: "):
        list(stream(source("fail"), Order(3, 0), 3, 0, 1, workers))
    batch = next(stream(source("skip"), Order(3, 1), 3, 0, 1, workers))
    assert batch["skipped"].tolist() == [1] and batch["label"].tolist() == [0, 2, 2] and batch["mask"].all()
    batch = next(evaluation_batches(source("skip"), 4))
    assert batch["skipped"].tolist() == [1] and batch["mask"].tolist() == [1, 0, 1, 0]
    resident = Resident(source("skip"))
    assert resident.arrays["label"].tolist() == [0, 2, 2] and resident.skipped.tolist() == [1]


STREAMING = """
import sys, time
import numpy as np, psutil
from train.data.shuffle import Order
from train.data.sources.arrays import ArraySource
from train.data.stream import stream

def main():
    source = ArraySource(np.zeros((64, 8, 8, 1), np.uint8), np.zeros(64, np.int32))
    batches = stream(source, Order(64, 0), 8, 0, 10**6, workers=2)
    next(batches), next(batches)
    print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
    time.sleep(60)

if __name__ == "__main__":
    main()
"""


def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "streaming.py"
    script.write_text(STREAMING)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)  # noqa: E501  # fmt: skip
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def alive(pid: int) -> bool:
        return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE

    deadline = time.time() + 10
    while any(map(alive, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_a_script_that_its_workers_would_run_again_ends_with_a_line(tmp_path):
    """Without the guard, grain would wait forever for workers that fail as they import the script."""
    script = tmp_path / "streaming.py"
    script.write_text(STREAMING.replace('if __name__ == "__main__":\n    main()', "main()"))
    command, environment = [sys.executable, script], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and f"worker processes import {script} and fail" in last


# Resident


def test_resident_batches_are_the_streamed_ones():
    source = load(Options("digits"), "train")
    resident, order = Resident(source), Order(len(source), 3)
    gather = jax.jit(lambda arrays, indices: Resident.gather(arrays, indices, source.image_shape))
    for step, batch in enumerate(stream(source, order, 64, 40, 5)):  # crosses the end of the second epoch
        gathered = gather(resident.arrays, order.indices((40 + step) * 64, 64))
        for key in ("image", "label"):
            np.testing.assert_array_equal(gathered[key], batch[key])


def test_the_pipeline_is_chosen_by_size_and_crop(insects):
    digits, wild = load(Options("digits"), "train"), insects_source(insects)
    assert choose("auto", lambda: digits) == "resident" and choose("stream", lambda: digits) == "stream"
    assert choose("auto", lambda: wild) == "stream" and fits(digits)
    assert not fits(insects_source(insects, crop="resize"))
    with pytest.raises(UserError, match=r"pipeline=resident decodes each image once"):
        Resident(wild)
    with pytest.raises(UserError, match=r"unknown data.pipeline 'residents'; did you mean 'resident'"):
        choose("residents", lambda: digits)
    big = ArraySource(np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (3, 30000, 30000, 1), (0,) * 4), np.zeros(3, int))  # noqa: E501  # fmt: skip
    assert not fits(big)


def test_workers_leave_signals_of_schedulers_to_the_run(monkeypatch):
    handlers = {}
    monkeypatch.setattr(stream_module.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(stream_module.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    timers = []
    monkeypatch.setattr(
        stream_module.threading, "Timer", lambda *args: SimpleNamespace(start=lambda: timers.append(args))
    )
    stream_module._start_worker(0, 1)
    assert {number for number, handler in handlers.items() if handler == signal.SIG_IGN} == {
        signal.SIGINT,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
    handlers[signal.SIGTERM]()
    assert timers == [(10, os._exit, (1,))]  # an exit with 0 would look to Grain as if the worker still ran

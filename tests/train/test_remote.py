"""Workdirs and data on object stores: training, resuming after any interruption, reading, and mistakes.

The store is in memory (tests/objects.py); epath and fsspec are the real ones.
"""

import errno
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest

from models.errors import UserError
from tests import damage, tiny
from tests import objects as in_memory
from tests.train.test_loop import final
from train import loop, predict, restore
from train.export import write
from train.storage import checkpoint, files, lock, remote
from train.storage.workdir import Workdir

objects = in_memory.objects  # a fixture

RUN = "gs://bucket/runs/x"
TREE = {"x": np.arange(500.0), "step": np.int32(0)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of a local run."""
    return tiny.trained(tmp_path_factory.mktemp("whole") / "run")


def upload(folder, prefix):
    """Puts a folder or a file into the store."""
    store = remote._Store(prefix)
    if folder.is_file():
        return store.put([("", folder)])
    return store.put((str(path.relative_to(folder)), path) for path in damage.files(folder))


def forget(tmp_path):
    """Stands for another machine, which has no local copies."""
    shutil.rmtree(tmp_path / "cache")


def test_a_run_in_a_store_is_the_run_in_a_folder(objects, whole, tmp_path):
    summary = loop.train(tiny.config(), RUN)
    assert summary["steps"] == 12
    stored = objects_of(RUN)
    assert {"config.json", "data.json", "metrics.jsonl", "summary.json"} <= stored.keys()
    assert sorted({name.split("/")[1] for name in stored if name.startswith("checkpoints/")}) == ["12", "8"]
    assert not [name for name in stored if name.startswith(".")], "the lease is given up"
    forget(tmp_path)
    tiny.assert_same(checkpoint.read(remote.fetched(RUN))[0], final(whole)[0])
    assert loop.train(tiny.config(), RUN)["steps"] == 12  # finished
    assert objects_of(RUN) == stored


def objects_of(where):
    return in_memory.contents(where.partition("://")[2] + "/")


def test_an_interrupted_run_goes_on_elsewhere_to_the_same_bits(objects, whole, tmp_path):
    loop.train(tiny.config(), RUN, until=6)
    assert "summary.json" not in objects_of(RUN)
    forget(tmp_path)
    loop.train(tiny.config(), RUN)
    forget(tmp_path)
    copy = remote.fetched(RUN)
    tiny.assert_same(final(copy)[0], final(whole)[0])
    steps = [json.loads(line)["step"] for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]


def store_of(mirror, keep=1):
    return checkpoint.Checkpoints(mirror.local / "checkpoints", keep, published=mirror.push)


def saved(mirror, step):
    checkpoints = store_of(mirror)
    checkpoints.save(step, {**TREE, "x": TREE["x"] + step, "step": np.int32(step)}, {}, {})
    checkpoints.wait()
    checkpoints.close()


def test_a_kill_at_any_moment_of_copying_leaves_a_whole_checkpoint(objects, tmp_path, monkeypatch):
    """Ends the copying of the second checkpoint before each of its changes in turn, until none is left."""
    changes = 0
    while True:
        monkeypatch.setattr(objects, "store", {})
        mirror = opened()
        saved(mirror, 1)
        count = iter(range(changes, -1, -1))

        def before(method, path, count=count):
            if next(count, 0) == 0:
                raise ConnectionError("killed")

        monkeypatch.setattr(objects, "before", staticmethod(before))
        try:
            saved(mirror, 2)
            ended = True
        except UserError as error:
            ended = False
            assert "cannot write checkpoint 2" in str(error) and "ConnectionError: killed" in str(error)
        monkeypatch.setattr(objects, "before", staticmethod(lambda method, path: None))
        mirror.close()
        forget(tmp_path)
        leaves, metadata = checkpoint.read(remote.fetched(RUN), warn=pytest.fail)
        assert metadata["step"] == 2 if ended else metadata["step"] in (1, 2)
        assert damage.same(leaves, {**TREE, "x": TREE["x"] + metadata["step"], "step": np.int32(metadata["step"])})
        again = opened()
        assert metadata["step"] in store_of(again).steps()
        saved(again, 3)
        again.close()
        assert {name.split("/")[1] for name in objects_of(RUN) if name.startswith("checkpoints/")} == {"3"}
        if ended:
            break
        changes += 1
    assert changes > 5


def opened():
    mirror = remote.Mirror(RUN)
    mirror.local.mkdir(parents=True, exist_ok=True)
    mirror.open()
    return mirror


def test_a_damaged_checkpoint_in_a_store_is_passed_over(objects, whole, tmp_path):
    loop.train(tiny.config(), RUN, until=8)
    name = max((name for name in objects.store if "/8/state/" in name), key=lambda name: objects.store[name].size)
    objects.store[name].seek(0)
    objects.store[name].write(b"damaged")
    forget(tmp_path)
    loop.train(tiny.config(), RUN)
    tiny.assert_same(checkpoint.read(remote.fetched(RUN))[0], final(whole)[0])


def test_one_process_trains_in_a_remote_folder(objects, monkeypatch):
    monkeypatch.setattr(remote, "RENEWAL", 0.05)
    first = opened()
    with pytest.raises(lock.HeldError, match=f"{RUN} is being trained by process {os.getpid()} on .*: wait until"):
        remote.Mirror(RUN).open()
    first.close()
    second = opened()
    second.close()
    assert not objects.store


def test_the_lease_of_a_dead_process_ends(objects, monkeypatch):
    monkeypatch.setattr(remote, "EXPIRY", 0.5)
    held = {"process": 1, "host": "gone", "since": "then", "renewed": time.time()}
    remote._Store(RUN).write(remote.LEASE, json.dumps(held).encode())
    began = time.time()
    opened().close()
    assert time.time() - began > 0.4
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_process_whose_lease_was_taken_writes_no_more(objects):
    mirror = opened()
    held = {"process": 1, "host": "other", "since": "now", "renewed": time.time()}
    remote._Store(RUN).write(remote.LEASE, json.dumps(held).encode())
    with pytest.raises(UserError, match=f"checkpoint 1 in .*: {RUN} is now being trained by process 1 on other since"):
        saved(mirror, 1)
    mirror.close()
    assert objects_of(RUN).keys() == {remote.LEASE}


def test_another_config_is_refused_and_nothing_is_changed(objects, whole):
    upload(whole, RUN)
    before = in_memory.contents()
    with pytest.raises(UserError, match="belongs to a run with a different config .*seed"):
        loop.train(tiny.config(seed=1), RUN)
    assert in_memory.contents() == before


def test_predicting_and_exporting(objects, whole, tmp_path):
    upload(whole, RUN)
    network, state = restore.load_network(RUN)
    write.of_run(network, state, "safetensors", tmp_path / "exported")
    upload(tmp_path / "exported", "s3://bucket/exported")
    upload(tiny.ROOT / "experiments/samples/digit0.png", "s3://bucket/digit0.png")
    from train.export import loaded

    for where in (RUN, "s3://bucket/exported"):
        rows = predict.predict(loaded.load(where), predict.named(["s3://bucket/digit0.png"]), 1)
        assert "error" not in rows[0]


def test_data_in_a_store(objects, tmp_path):
    from train.data.options import Options
    from train.data.sources import arrays, folder, text

    rng = np.random.default_rng(0)
    digits = tmp_path / "digits"
    from PIL import Image

    for label in "ab":
        (digits / label).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(digits / label / f"{index}.png")
    upload(digits, "gs://bucket/digits")
    source = folder.FolderSource("gs://bucket/digits", "train", Options("folder", image_size=8, crop="resize"))
    local = folder.FolderSource(str(digits), "train", Options("folder", image_size=8, crop="resize"))
    assert source.files == local.files and source.identity() == local.identity()
    assert source.report.startswith(f"folder {tmp_path}/cache/ablate/copies/gs/bucket/digits: 20 images in 2 classes")
    file = tmp_path / "some.npz"
    images = np.zeros((4, 8, 8, 1), np.uint8)
    np.savez(file, train_image=images, train_label=np.arange(4), test_image=images, test_label=np.arange(4))
    upload(file, "s3://bucket/some.npz")
    assert len(arrays.from_npz("s3://bucket/some.npz", "train", Options("folder", image_size=8, crop="resize"))) == 4
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "train.de").write_text("ein Satz\n")
    upload(texts, "gs://bucket/texts")
    assert text.read("text:gs://bucket/texts", ["de"], "train") == [["ein Satz"]]


def test_a_tfds_set_in_a_store(objects, tmp_path):
    """Copies only the set that is used."""
    from tests import tfds_sample
    from train.data.options import Options
    from train.data.sources.tfds import TfdsSource

    examples = [(tfds_sample.encode(np.full((8, 8, 3), value, np.uint8)), value % 3) for value in range(6)]
    for name in ("ants", "bees"):
        tfds_sample.write(tmp_path / "tfds", name, {"train": examples}, (8, 8))
    upload(tmp_path / "tfds", "gs://bucket/tfds")
    source = TfdsSource("ants", "train", Options("tfds:ants", dir="gs://bucket/tfds/"))
    assert len(source) == 6 and [source.fetch([i])[0][1] for i in range(6)] == [0, 1, 2] * 2
    assert sorted(path.name for path in (tmp_path / "cache/ablate/copies/gs/bucket/tfds").glob("*s")) == ["ants"]
    with pytest.raises(UserError, match="gs://bucket/tfds/wasps: there is no such file or folder"):
        TfdsSource("wasps", "train", Options("tfds:wasps", dir="gs://bucket/tfds"))


def test_only_changes_are_copied_again(objects, tmp_path):
    store = remote._Store("gs://bucket/folder")
    large = b"x" * (remote._SMALL + 1)
    for name, content in {"large": large, "small": b"1", "gone": b""}.items():
        store.write(name, content)
    copy = remote.fetched("gs://bucket/folder")
    kept = (copy / "large").stat().st_ino
    store.write("small", b"2")
    store.remove(["gone"])
    assert remote.fetched("gs://bucket/folder") == copy
    assert sorted(os.listdir(copy)) == ["large", "small"] and (copy / "small").read_bytes() == b"2"
    assert (copy / "large").stat().st_ino == kept


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("http://host/run", r"http://host/run: http:// is not supported; allowed: gs://, s3://"),
        ("gs://bucket/nothing", "gs://bucket/nothing: there is no such file or folder"),
    ],
)
def test_mistakes(objects, where, message):
    with pytest.raises(UserError, match=message):
        remote.fetched(where)


@pytest.mark.parametrize(("scheme", "package"), remote.SCHEMES.items())
def test_a_missing_package_is_named(scheme, package):
    if remote.importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    done = tiny.run("--config=configs/digits.py", f"--workdir={scheme}://bucket/run", env={"EPATH_USE_TF": "false"})
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: {scheme}://bucket/run: {scheme}:// needs a package: pip install {package}\n"


def test_an_unreachable_store_gives_one_line(objects, monkeypatch):
    def unreachable(method, path):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(objects, "before", staticmethod(unreachable))
    with pytest.raises(UserError, match=f"^{RUN} cannot be used: ConnectionError: no route$"):
        loop.train(tiny.config(), RUN)


def test_a_full_cache_gives_one_line(objects, monkeypatch):
    remote._Store("gs://bucket").write("file", b"1")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="^gs://bucket/file cannot be copied: no space left in .*/cache/ablate$"):
        remote.fetched("gs://bucket/file")


def test_other_paths_must_be_local(objects):
    with pytest.raises(UserError, match="gs://bucket/x: this path must be local"):
        files.expanded("gs://bucket/x")
    assert Workdir("runs/x").path == files.expanded("runs/x").absolute()

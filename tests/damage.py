"""A finished run, and accidents that damage its folder."""

import json
import shutil
import zlib

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import tiny
from train import loop
from train.storage import checkpoint

STEPS = (4, 8, 12)


def finished_run(folder):
    """Trains 12 steps with three checkpoints; returns the config and the content of the checkpoints by step."""
    config = tiny.config(keep_checkpoints=3, log_every="1 steps", evaluate_every="4 steps", ema_decay=0.5)
    loop.train(config, folder)
    store = checkpoint.Checkpoints(folder / "checkpoints", read_only=True)
    held = {step: store.restore(step) for step in store.steps()}
    store.close()
    assert tuple(held) == STEPS
    return config, held


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns (config, folder, content of each checkpoint) of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config, held = finished_run(folder)
    return config, folder, held


@pytest.fixture
def copied(run, tmp_path):
    """Returns the folder of a copy of the run that a test may damage."""
    shutil.copytree(run[1], tmp_path / "run")
    return tmp_path / "run"


def write_as_earlier_versions(folder, held):
    """Writes the checkpoints as versions before checksums did, through Orbax's manager."""
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics.get("accuracy", 0))
    manager = ocp.CheckpointManager(folder, options=options)
    for step, (leaves, metadata) in held.items():
        metadata = {name: metadata[name] for name in ("seconds", "data", "recorder", "step")} | {
            "crc32": {name: zlib.crc32(np.ascontiguousarray(leaf)) for name, leaf in leaves.items()}
        }
        manager.save(
            step,
            metrics={"accuracy": step / 100},
            args=ocp.args.Composite(state=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(metadata)),
        )
    manager.close()


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def largest(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def edit_json(content, rng):
    """Changes a number, text or type in one place."""
    path = []

    def places(value, at):
        yield at
        for key, below in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
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


def accident(folder, rng):
    """Causes one accident in a folder of checkpoints; returns its name."""
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    step = folder / str(rng.choice([steps[-1], steps[-1], rng.choice(steps)]))
    other = folder / str(rng.choice([one for one in steps if str(one) != step.name]))
    path = rng.choice(files(step))
    data = bytearray(path.read_bytes())
    kind = rng.choice(
        [
            "flip", "flip", "flip", "truncate", "empty", "garbage", "append", "remove", "folder", "file", "swap",
            "swap part", "swap step", "rename", "no folder", "json", "json", "json", "text", "link",
        ]
    )  # fmt: skip
    if kind == "flip":
        place = rng.randrange(max(len(data), 1))
        data[place : place + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[place : place + 1])
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
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
        path.write_text(
            rng.choice(
                [
                    "", "{", "null", "[]", "{}", "[" * 100_000, '{"step": 1e999}', "9" * 5000, "\0",
                    '{"step": 12, "checksum": "' + "0" * 64 + '"}',
                ]
            )
        )  # fmt: skip
    elif kind == "link":
        path.unlink()
        path.symlink_to(path)
    return kind

"""The kinds of files that the project reads: a good one of each, and the function that reads it as users' commands do.

`Case.make(folder)` writes good files; `Case.read(folder)` reads them and returns a text that tells whether what it read
is the same. A mutant may be refused (UserError), read as the same, or, where a format has no checksum, read as
something else.
"""

import hashlib
import shutil
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from experiments.study import ledger
from models import weights
from models.compress import file as compressed
from tests import tfds_sample, tiny
from tests.train.data import packed
from train import loop, restore
from train.data import decode, load, user_image
from train.data.sources import text
from train.export import formats, loaded, write
from train.export import network as networks
from train.optim import sensitivity
from train.probing import features
from train.recording import summary
from train.storage import paths, workdir
from train.storage.checkpoint import read as read_checkpoint
from train.storage.files import read_json, write_json


class Case(NamedTuple):
    """One kind of file.

    Attributes:
      make: (folder) -> None, writes good files.
      read: (folder) -> a text that is equal for equal contents; raises UserError.
      files: pattern of the files to mutate.
      checked: whether the format has checksums, so that no change may pass.
      passes: other texts that a reader may give for a mutant: it says so, and takes an earlier state.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], str]
    files: str = "*"
    checked: bool = False
    passes: Callable[[Path], Sequence[str]] = lambda folder: ()


def digest(value: Any) -> str:
    """Returns a digest of nested dictionaries, lists, arrays and plain values."""
    sha = hashlib.sha256()

    def add(one):
        if isinstance(one, dict):
            for key in sorted(one, key=str):
                sha.update(str(key).encode(errors="backslashreplace"))
                add(one[key])
        elif isinstance(one, (list, tuple)):
            for part in one:
                add(part)
        elif isinstance(one, np.ndarray):
            sha.update(f"{one.dtype}{one.shape}".encode() + one.tobytes())
        else:
            sha.update(repr(one).encode(errors="backslashreplace"))

    add(value)
    return sha.hexdigest()[:16]


# -- images and data sets ------------------------------------------------------------------------------------------

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
DECODER = decode.Decoder("resize", 16, 3)


def image(ending: str, mode: str = "RGB", **options: Any) -> Case:
    """Returns the case of an image file."""

    def make(folder):
        Image.fromarray(PICTURE).convert(mode).save(folder / f"a{ending}", **options)

    return Case(make, lambda folder: digest(user_image.of_file(DECODER, (16, 16, 3), folder / f"a{ending}")))


def _options(**values: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{**tiny.config().data.to_dict(), **values})


def _read_source(**values: Any) -> str:
    opened = load.load(_options(**values), "train")
    return digest([opened.classes, opened.arrays(threads=1)])


def _make_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 1), np.uint8)
    np.savez(folder / "set.npz", train_image=images, train_label=np.arange(12) % 3)


def _make_tfds(folder: Path) -> None:
    examples = [(tfds_sample.encode(PICTURE[:8, :8]), i % 3) for i in range(6)]
    tfds_sample.write(folder, "fuzzed", {"train": examples}, shape=(8, 8))


def _packed(number: int) -> dict[str, bytes]:
    return {f"{'cat' if i % 2 else 'dog'}/{i}.png": tfds_sample.encode(PICTURE[:8, i : i + 8]) for i in range(number)}


def _make_tar(kind: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "set.tar").write_bytes(packed.tar(_packed(8), kind))


def _make_tars(folder: Path) -> None:
    (folder / "set.tar").write_bytes(packed.tar({f"{name}.tar": packed.tar(_packed(6)) for name in ("cat", "dog")}))


def _make_shard(folder: Path) -> None:
    (folder / "set.tar").write_bytes(packed.tar(packed.shard(_packed(8))))


def _make_table(folder: Path) -> None:
    packed.write_folder(folder, _packed(8))
    rows = [f"{name};{name.split('/')[0]};{'train' if i < 5 else 'test'}" for i, name in enumerate(_packed(8))]
    (folder / "set.csv").write_text("\n".join(["path;label;split", *rows]))


def _read_packed(source: str) -> Callable[[Path], str]:
    sized = {"image_size": 8, "crop": "resize", "on_error": "skip"}
    return lambda folder: _read_source(source=f"{source.format(folder)}", **sized)


def _make_text(folder: Path) -> None:
    import gzip

    (folder / "train.en").write_text("a small dog\nthe cat sees it\n" * 20)
    (folder / "train.de.gz").write_bytes(gzip.compress(("ein kleiner Hund\ndie Katze sieht ihn\n" * 20).encode()))


# -- weights -------------------------------------------------------------------------------------------------------


def _network() -> tuple[str, dict[str, Any], Any, dict[str, Any]]:
    import models

    name, fields = "lenet_300_100", {"hidden": (8,), "image_size": 8}
    model = models.create(name, **fields)
    return name, fields, model, jax.tree.map(np.asarray, models.initialize(model, jax.random.key(0), (1, 8, 8, 1)))


def _make_safetensors(folder: Path) -> None:
    name, fields, model, variables = _network()
    weights.save(folder / "net.safetensors", model, variables, {"model": name, "fields": fields})


def _read_weights(name: str) -> Callable[[Path], str]:
    return lambda folder: digest([weights.read(folder / name), weights.description(folder / name)])


def _make_npz(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "net.npz", **{"a/kernel": rng.normal(size=(3, 4)).astype(np.float32), "a/bias": np.zeros(4)})


def _make_torch(kind: str) -> Callable[[Path], None]:
    def make(folder):
        with np.load(Path(__file__).with_name("torch_files.npz")) as files:
            (folder / "net.pth").write_bytes(files[kind].tobytes())

    return make


def _make_compressed(folder: Path) -> None:
    name, fields, _, variables = _network()
    (folder / f"net{compressed.SUFFIX}").write_bytes(compressed.dump(name, fields, variables, (1, 8, 8, 1)))


def _read_compressed(folder: Path) -> str:
    path = folder / f"net{compressed.SUFFIX}"
    return digest(weights.flatten(compressed.load(compressed.read(path), path)[1]))


# -- runs ----------------------------------------------------------------------------------------------------------


def make_run(folder: Path) -> None:
    """Trains a small run; later calls copy the result of the first."""
    trained = folder.parent / "a-trained-run"
    if not trained.exists():
        loop.train(tiny.config(hooks="sensitivity(40)"), trained)
    shutil.copytree(trained, folder, dirs_exist_ok=True)


PATHS = {"init_from": "", "data": {"source": "arrays:/nowhere/set.npz", "dir": "sets"}, "optimizer": {"prune": ""}}


def _make_paths(folder: Path) -> None:
    _make_arrays(folder)
    write_json(folder / paths.NAME, {"data.source": "arrays:set.npz", "data.dir": ".", "init_from": "../run"})


def _read_run(folder: Path) -> str:
    run, state = restore.load(folder)
    return digest([run.config, weights.flatten(state.variables())])


def _read_checkpoint(folder: Path) -> str:
    leaves, metadata = read_checkpoint(folder, warn=lambda line: None)
    return digest([leaves, metadata])


def _earlier_checkpoints(folder: Path) -> list[str]:
    """Returns the texts that are read when the newest checkpoints are damaged, one after the other."""
    texts, root = [], folder / "checkpoints"
    with_numbers = sorted((path for path in root.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    for newest in reversed(with_numbers[1:]):
        newest.rename(folder / f"aside-{newest.name}")
        texts.append(_read_checkpoint(folder))
    for path in folder.glob("aside-*"):
        path.rename(root / path.name.removeprefix("aside-"))
    return texts


def _read_metrics(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return digest(workdir.read_metrics(folder / "metrics.jsonl"))


def _make_ledger(folder: Path) -> None:
    make_run(folder)
    whole = read_json(folder / "summary.json")
    history = {"train": {"step": [4, 8], "loss": [2.0, 1.0]}}
    outcome = {"summary": whole, "diverged": None, "measured": {"size": 3}, "history": history}
    for i in range(3):
        line = {name: whole[name] for name in ("commit", "device", "versions")}
        line |= {"trial": f"resnet8-{i}", "labels": {"seed": i}, "outcome": outcome, "code": "0", "seconds": 1.0}
        ledger.append(folder / ledger.NAME, line)


def _read_ledger(folder: Path) -> str:
    lines = ledger.Ledger(folder)
    return digest([lines.get(f"resnet8-{i}") for i in range(3)])


def _make_export(format: str) -> Callable[[Path], None]:
    def make(folder):
        run_folder = folder.parent / "run-to-export"
        run_folder.mkdir(exist_ok=True)
        make_run(run_folder)
        run, state = restore.load(run_folder)
        write.export(
            run,
            networks.network(run, state),
            format,
            folder / "out",
            {},
            images=20,
            folds=formats.FORMATS[format].folds,
        )

    return make


def _read_export(folder: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    opened = loaded.load(folder / "out")
    return digest([opened.card["labels"], *opened.run(pixels)])


def _make_features(folder: Path) -> None:
    features._write(folder / "x.npz", features.Features(np.ones((4, 3), np.float32), np.arange(4)))


def _read_features(folder: Path) -> str:
    read = features._read(folder / "x.npz")
    return "computed again" if read is None else digest(list(read))


CASES = {
    "PNG": image(".png"),
    "PNG, palette": image(".png", "P"),
    "JPEG": image(".jpg"),
    "GIF": image(".gif", "P"),
    "TIFF": image(".tif"),
    "WebP": image(".webp"),
    "BMP": image(".bmp"),
    "PPM": image(".ppm"),
    "arrays, .npz": Case(_make_arrays, lambda folder: _read_source(source=f"arrays:{folder / 'set.npz'}")),
    "tar of images": Case(_make_tar("gnu"), _read_packed("tar:{}/set.tar")),
    "tar of images, pax": Case(_make_tar("pax"), _read_packed("tar:{}/set.tar")),
    "tar of tars": Case(_make_tars, _read_packed("tar:{}/set.tar")),
    "webdataset": Case(_make_shard, _read_packed("webdataset:{}/set.tar")),
    "table, .csv": Case(_make_table, _read_packed("csv:{}/set.csv"), "set.csv"),
    "TFDS set": Case(_make_tfds, lambda folder: _read_source(source="tfds:fuzzed", dir=str(folder)), "fuzzed/**/*"),
    "parallel text": Case(_make_text, lambda folder: digest(text.read(f"text:{folder}", ("en", "de"), "train"))),
    "weights, .safetensors": Case(_make_safetensors, _read_weights("net.safetensors")),
    "weights, .npz": Case(_make_npz, _read_weights("net.npz")),
    "weights, .pth": Case(_make_torch("training"), _read_weights("net.pth")),
    "weights, .pth of old PyTorch": Case(_make_torch("old_training"), _read_weights("net.pth")),
    "compressed network": Case(_make_compressed, _read_compressed, checked=True),
    "export, safetensors": Case(_make_export("safetensors"), _read_export, "out/*", True),
    "export, compressed": Case(_make_export("compressed"), _read_export, "out/*", True),
    "export, StableHLO": Case(_make_export("stablehlo"), _read_export, "out/*", True),
    "export, ONNX": Case(_make_export("onnx"), _read_export, "out/*", True),
    "checkpoint": Case(make_run, _read_checkpoint, "checkpoints/**/*", True, _earlier_checkpoints),
    "config.json": Case(make_run, _read_run, "config.json"),
    "paths.json": Case(_make_paths, lambda folder: digest(paths.located(PATHS, folder)), paths.NAME),
    "summary.json": Case(
        make_run, lambda folder: digest(read_json(folder / "summary.json", summary.SCHEMA)), "summary.json"
    ),
    "trials.jsonl": Case(_make_ledger, _read_ledger, "trials.jsonl"),
    "metrics.jsonl": Case(make_run, _read_metrics, "metrics.jsonl"),
    "sensitivity.json": Case(
        make_run, lambda folder: digest(sensitivity.read(str(folder / "sensitivity.json"))), "sensitivity.json"
    ),
    "kept features": Case(_make_features, _read_features, passes=lambda folder: ["computed again"]),
}

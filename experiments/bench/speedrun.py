"""CIFAR-10 to an accuracy: airbench94's recipe here and in PyTorch, and ResNet-20 to 91% within a minute."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.pipelines import tfds_folder
from experiments.bench.workers import ROOT, Settings, WorkerFailed, with_ratios
from models.errors import UserError

SETS = ("cifar10", "cifar10_jpeg")  # TFDS sets; the first prepared one is used
_SUMS = (6_415_714_204, 6_295_060_180, 5_829_907_619)  # sums over the original training images: red, green, blue


def images(folder: Path, settings: Settings) -> tuple[Path, str, bool]:
    """Returns an .npz for data.source=arrays, the name of its data set, and whether that is the original CIFAR-10.

    The file is Settings.images if that is set. Otherwise it is written into `folder` from the first prepared set of
    SETS.

    Raises:
      UserError: Neither exists.
    """
    if settings.images:
        path, title = Path(settings.images).expanduser().absolute(), Path(settings.images).name
    else:
        folders = [(name, tfds_folder(name, settings.data_dir)) for name in SETS]
        title, prepared = next(((name, at) for name, at in folders if at), ("", None))
        if not prepared:
            raise UserError(f"no images: none of {', '.join(SETS)} is prepared; prepare one, or set --images=FILE.npz")
        path = folder / f"{title}.npz"
        if not path.exists():
            _write(path, title, prepared)
    try:
        with np.load(path) as arrays:
            return path, title, original(arrays["train_image"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--images={path}: not an .npz with train_image: {error}") from None


def original(pixels: np.ndarray) -> bool:
    """Returns whether these are CIFAR-10's training images as published, in any order; JPEGs of them differ."""
    return pixels.shape == (50_000, 32, 32, 3) and tuple(pixels.sum((0, 1, 2), dtype=np.int64)) == _SUMS


def _write(path, name, folder):
    from train.data.source import Options
    from train.data.sources.tfds import TfdsSource

    arrays = {}
    for split in ("train", "test"):
        batch = TfdsSource(name, split, Options(source=f"tfds:{name}", dir=folder)).arrays()
        arrays |= {f"{split}_image": batch["image"], f"{split}_label": batch["label"]}
    np.savez(path, **arrays)


def speedrun(folder: Path, settings: Settings, recipe: Mapping[str, float] = {}) -> list[dict[str, Any]]:
    """Measures configs/cifar10.py:speedrun beside `peer_speedrun`, eager and compiled, on one device.

    "ms" is the training alone ("training_seconds" on both sides), "accuracy" uses the six views. The number of seeds is
    `processes`. `recipe` changes width, batch and epochs on both sides.
    """
    path, title, is_original = images(folder, settings)
    arguments = [f"{name}={value}" for name, value in recipe.items()]

    def ours(seed):
        result, _ = _trained(
            folder / f"speedrun{seed}",
            [
                f"--config=configs/cifar10.py:{','.join(['speedrun', *arguments])}",
                f"--config.precision={settings.precision}",
                f"--config.seed={seed}",
            ],
            path,
        )
        return 1e3 * result["training_seconds"], result["accuracy"]

    def peer(seed, *flags):
        result = json.loads(
            _output(
                [
                    settings.python("peer"),
                    "-m",
                    "experiments.bench.peer_speedrun",
                    f"--images={path}",
                    f"--seed={seed}",
                    f"--precision={settings.precision}",
                    *(f"--{argument}" for argument in arguments),
                    *flags,
                ]
            )
        )
        return 1e3 * result["training_seconds"], result["accuracy"]

    runs: dict[str, tuple[str, Callable[[int], tuple[float, float]]]] = {"PyTorch": ("peer", peer)}
    if settings.compile:
        runs["torch.compile"] = ("peer", lambda seed: peer(seed, "--compile"))
    rows = _rows("training", {**runs, "ours": ("ours", ours)}, settings)
    return [
        {
            "case": f"speedrun, airbench94 on {title}, {', '.join([settings.precision, *arguments])}",
            "subject": "speedrun/airbench94" if is_original and not recipe else "speedrun/other",
            **row,
        }
        for row in rows
    ]


def minute(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Measures configs/cifar10.py:resnet20,recipe=brief, ours alone; the number of seeds is `processes`.

    "ms" is the time of the whole command; the rows have "accuracy", too.
    """
    path, title, is_original = images(folder, settings)

    def ours(seed):
        result, seconds = _trained(
            folder / f"minute{seed}",
            [
                "--config=configs/cifar10.py:resnet20,recipe=brief",
                f"--config.precision={settings.precision}",
                f"--config.seed={seed}",
            ],
            path,
        )
        return 1e3 * seconds, result["accuracy"]

    rows = _rows("command", {"ours": ("ours", ours)}, settings)
    return [
        {
            "case": f"ResNet-20, 30 epochs on {title}, {settings.precision}",
            "subject": "minute/resnet20" if is_original else "minute/other",
            **row,
        }
        for row in rows
    ]


def _rows(
    what: str, runs: Mapping[str, tuple[str, Callable[[int], tuple[float, float]]]], settings: Settings
) -> list[dict[str, Any]]:
    """Returns rows of (milliseconds, accuracy) per seed, by name and side; the programs take turns."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    failed = {}
    for seed in range(settings.processes):
        for name, (_, run) in runs.items():
            try:
                measured[name] += [run(seed)] if name not in failed else []
            except WorkerFailed as error:
                failed[name] = str(error)
    rows = []
    for name, (side, _) in runs.items():
        row = {"what": what, "who": name, "side": side}
        if name in failed:
            rows.append({**row, "failed": failed[name]})
            continue
        times, accuracies = zip(*measured[name], strict=True)
        rows.append(
            {
                **row,
                "ms": round(statistics.median(times), 1),
                "min_ms": round(min(times), 1),
                "samples": len(times),
                "accuracy": round(statistics.mean(accuracies), 4),
            }
        )
    return with_ratios(rows)


def _trained(workdir: Path, arguments: Sequence[str], images: Path) -> tuple[dict[str, Any], float]:
    """Returns the summary of `python -m train` on one device, and the seconds of the command."""
    began = time.perf_counter()
    _output(
        [
            sys.executable,
            "-m",
            "train",
            *arguments,
            f"--config.data.source=arrays:{images}",
            "--config.devices=1",
            f"--workdir={workdir}",
        ]
    )
    return json.loads((workdir / "summary.json").read_text()), time.perf_counter() - began


def _output(command: Sequence[str]) -> str:
    """Returns the last line that a command prints; raises WorkerFailed if the command fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerFailed((done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"])[-1][:200])
    return (done.stdout.strip().splitlines() or [""])[-1]

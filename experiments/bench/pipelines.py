"""Cases of data and of the loop: JPEGs to batches, CIFAR training end to end, overhead of the loop per step."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.networks import compiled_name, made_images
from experiments.bench.workers import ROOT, Call, Settings, Spec, interleaved
from models.kernels import runtime

SAMPLE = "imagenet_sample"  # a TFDS set of JPEGs at their original sizes
CIFAR = 50_000  # images per epoch


def tfds_folder(name: str, preferred: str = "") -> str | None:
    """Returns the first folder of TFDS sets that contains this set; None if no folder does.

    It tries the folder `preferred`, $TFDS_DATA_DIR, the one in the home folder, and one shared beside the checkout.
    """
    folders = (preferred, os.environ.get("TFDS_DATA_DIR", ""), "~/tensorflow_datasets", ROOT.parent / "shared" / "tfds")
    paths = [Path(folder).expanduser() for folder in folders if folder]
    return next((str(folder) for folder in paths if (folder / name).is_dir()), None)


def jpegs(folder: Path, tfds_folder: str | None) -> str:
    """Writes JPEGs below `folder`/train, one folder per class, and the same in `folder`/test; describes them.

    They come from SAMPLE if its folder is given, and otherwise are crops of the two photographs in scikit-learn.
    """

    def write(images: Iterator[tuple[int, bytes]]) -> int:
        count = 0
        for count, (label, encoded) in enumerate(images, 1):
            target = folder / "train" / f"class{label}" / f"{count:04}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encoded)
        (folder / "test").symlink_to(folder / "train")
        return count

    if tfds_folder is None:
        return f"{write(_photographs())} crops of 500x375 of two photographs"
    from train.data.source import Options
    from train.data.sources.tfds import TfdsSource

    options = Options(
        source=f"tfds:{SAMPLE}", dir=tfds_folder, image_size=224, crop="random_resized", exif="ignore"
    )  # like the peers
    source = TfdsSource(SAMPLE, "validation", options)
    count = write((int(label) % 10, encoded) for encoded, label in source.fetch(range(len(source))))
    return f"{count} ImageNet images at their sizes"


def _photographs():
    import io

    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, rng = load_sample_images().images, np.random.default_rng(0)
    for i in range(256):
        photo = photos[i % 2]
        top, left = rng.integers(0, photo.shape[0] - 375), rng.integers(0, photo.shape[1] - 500)
        file = io.BytesIO()
        Image.fromarray(photo[top : top + 375, left : left + 500]).save(file, "jpeg", quality=90)
        yield i % 2, file.getvalue()


def data(folder: Path, tfds_folder: str | None, settings: Settings) -> list[dict[str, Any]]:
    """Measures JPEGs to random-resized crops at 224, all sides on the same few cores.

    "per_core" is images/s; "per_cpu_second" are images per second of one core, where all work is in one process. Ours,
    torch's and one of tf.data's resize with antialiasing.
    """
    what, cores = jpegs(folder / "jpegs", tfds_folder), settings.cores
    case = {
        "case": "data",
        "folder": str(folder / "jpegs" / "train"),
        "size": 224,
        "batch": 32,
        "batches": 15 if settings.quick else 30,
    }
    ours = {**case, "folder": str(folder / "jpegs")}

    def dataloader(workers):
        name = f"torch DataLoader, {workers} workers"
        return Spec(name, "peer", {**case, "workers": workers}, cores=cores, counts_cpu=workers == 0)

    def tf_data(antialias):
        name, env = f"tf.data, {'antialiased' if antialias else 'not antialiased'}", {"CUDA_VISIBLE_DEVICES": "-1"}
        return Spec(name, "tf_data", {**case, "antialias": antialias}, env, cores, counts_cpu=True)

    specs = [dataloader(cores), dataloader(0)]
    cpu = {"JAX_PLATFORMS": "cpu"}
    specs += [
        tf_data(antialias=False),
        tf_data(antialias=True),
        Spec("ours, threads, Pillow alone", "ours", {**ours, "workers": 0}, {**cpu, "CXX": "false"}, cores, True),
        Spec("ours, threads", "ours", {**ours, "workers": 0}, cpu, cores, True),
        Spec(f"ours, {cores} workers", "ours", {**ours, "workers": cores}, cpu, cores),
    ]
    rows = interleaved(specs, [Call("pass", case["batch"] * case["batches"], 1)], settings, inner=1)
    for row in rows:
        if "ms" in row:
            row["per_core"] = round(row["images_per_second"] / cores, 1)
    labels = {"case": f"JPEGs to crops of 224, {what}, {cores} cores", "subject": "data/jpeg"}
    return [{**labels, **row} for row in rows]


def cifar(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Measures ResNet-20 by configs/cifar10.py inside the loop, and training loops in PyTorch.

    PyTorch keeps the images on the device (eager and compiled), or uses torch's DataLoader. "epoch_seconds" is for
    50,000 images. A call is a few steps on a CPU, otherwise an epoch. Loaders with processes get one per core, at most
    16.
    """
    workers = min(runtime.cores(), 16) if settings.accelerator else settings.cores
    count, steps = (CIFAR, 390) if settings.accelerator else (5_000, 4)
    path, batch = folder / "cifar.npz", settings.batch or 128
    made_images(path, 32, count)
    case = {
        "model": "resnet20",
        "batch": batch,
        "arrays": str(path),
        "precision": settings.precision,
        "steps": steps,
        "workers": workers,
    }
    # Small steps wait for their launches, so a mode that saves launches belongs to PyTorch's best.
    modes = dict.fromkeys([*settings.compile] + ["reduce-overhead"] * (settings.accelerator and bool(settings.compile)))
    peer, ours = {**case, "case": "cifar", "resident": True}, {**case, "case": "loop"}
    specs = [
        Spec("PyTorch, DataLoader", "peer", {**peer, "resident": False}),
        Spec("PyTorch, resident", "peer", peer),
        *(Spec(f"PyTorch, resident, {compiled_name(mode)}", "peer", {**peer, "compile": mode}) for mode in modes),
        Spec(
            "ours, resident",
            "ours",
            {**ours, "pipeline": "resident", "steps_per_call": 39 if settings.accelerator else 1},
        ),
        Spec("ours, streamed, threads", "ours", {**ours, "pipeline": "stream", "workers": 0}),
        Spec("ours, streamed, processes", "ours", {**ours, "pipeline": "stream"}),
    ]
    rows = interleaved(specs, [Call("step", steps, batch)], settings, inner=1)
    for row in rows:
        if "ms" in row:
            row["epoch_seconds"] = round(CIFAR / row["images_per_second"], 3)
    labels = {
        "case": f"CIFAR training, ResNet-20, batch {batch}, {settings.precision}, {workers} workers",
        "subject": "cifar/resnet20",
        "batch": batch,
        "precision": settings.precision,
    }
    return [{**labels, **row} for row in rows]


def loop_overhead(folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Compares the step inside the loop, resident and streamed, with the bare step."""
    path, steps = folder / "made.npz", 40 if settings.accelerator else 4
    made_images(path, 32, 20_000)
    case = {
        "case": "loop",
        "model": "resnet20",
        "batch": settings.batch or 128,
        "arrays": str(path),
        "steps": steps,
        "precision": settings.precision,
    }
    resident = {**case, "pipeline": "resident"}
    bare = {**case, "case": "steps", "size": 32, "calls": ["step"], "repeat": steps}
    specs = [
        Spec("bare step", "ours", bare),
        Spec("resident, no augmentation", "ours", {**resident, "augment": ""}),
        Spec("resident, crop and flip", "ours", resident),
        Spec("resident, shard_map", "ours", {**resident, "parallel": "shard_map"}),
        Spec("streamed, threads", "ours", {**case, "pipeline": "stream"}),
    ]
    rows = interleaved(specs, [Call("step", steps, case["batch"])], settings)
    return [{"case": f"ResNet-20 in the loop, {settings.precision}", "subject": "loop/resnet20", **row} for row in rows]

"""Cases of networks: training step, forward pass, explanations, and their cost by batch, resolution and devices."""

import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import models
from experiments.bench import mfu
from experiments.bench.workers import Call, Settings, Spec, interleaved, one
from models.errors import UserError
from models.kernels import runtime
from models.weights import torch_names


class Network(NamedTuple):
    """Images per step by image size, on a CPU and on an accelerator.

    The largest values on an accelerator leave room in 80 GB for two workers of PyTorch and ours at the same time.
    """

    cpu: dict[int, int]
    accelerator: dict[int, int]


NETWORKS = {
    "vit_base_patch16": Network({224: 8}, {224: 128}),
    "resnet50": Network({224: 16}, {224: 256}),
    "convnext_tiny": Network({32: 64, 224: 8}, {224: 128}),
    "vit_small_patch16": Network({32: 64, 224: 8}, {224: 256}),
    "mobilenet_v2": Network({32: 64, 224: 8}, {224: 256}),
    "densenet121": Network({32: 64, 224: 8}, {224: 128}),
    # timm's network at 32x32 has smaller windows and fewer positions than the original, so it differs from ours.
    "swin_t": Network({224: 8}, {224: 128}),
    "resnet20": Network({32: 128}, {32: 128}),
    "resnext50_32x4d": Network({32: 64, 224: 8}, {224: 128}),
    "vgg16": Network({32: 64, 224: 8}, {224: 128}),
}
# For "explain": network: (image size, batch, side of the occluding square, its stride).
EXPLAINED = {"resnet20": (32, 128, 8, 2), "resnet50": (224, 8, 32, 32)}
_NOISE = {"dropout": "drop_rate", "stochastic_depth": "drop_path_rate"}  # our field: timm's argument
_BATCHES = {True: (8, 32, 64, 128, 256), False: (1, 2, 4, 8, 16, 32)}  # by whether it runs on an accelerator
_RESOLUTIONS = {32: (16, 32, 64, 96), 224: (128, 160, 192, 224, 288)}  # by the network's image size


def sizes(name: str, settings: Settings) -> dict[int, int]:
    """Returns images per step by image size."""
    network = NETWORKS[name]
    batches = network.accelerator if settings.accelerator else network.cpu
    return {size: settings.batch or batch for size, batch in batches.items()}


def on_both_sides(name: str, size: int) -> dict[str, Any]:
    """Returns one network for both sides: our "model" and "fields", and the arguments of timm's create_model, "timm".

    timm has no ResNet-20. Both sides omit dropout and stochastic depth, because their defaults differ.
    """
    fields = {field: 0.0 for field in _NOISE if field in models.fields(name)}
    case = {"model": name, "size": size, "fields": fields}
    if name == "resnet20":
        return case
    _, theirs, arguments = torch_names.constructor(name, models.create(name, image_size=size), "timm")
    return {
        **case,
        "timm": {"model_name": theirs, **arguments, **{_NOISE[field]: rate for field, rate in fields.items()}},
    }


def steps_case(name: str, size: int, batch: int, settings: Settings) -> dict[str, Any]:
    """Returns the workers' case for training steps and forward passes.

    An accelerator gets ten steps per wait, as in training: a single step of a small network takes less time than a
    wait.
    """
    return {
        "case": "steps",
        **on_both_sides(name, size),
        "batch": batch,
        "precision": settings.precision,
        "repeat": 10 if settings.accelerator else 1,
        "calls": ["step"] if settings.quick else ["step", "forward"],
    }


def compared(case: dict[str, Any], settings: Settings) -> list[Spec]:
    """Returns the workers: PyTorch eager and compiled, ours, and on request ours without our settings and lowerings."""
    modes = [Spec(compiled_name(mode), "peer", {**case, "compile": mode}) for mode in settings.compile]
    # Importing `models` has put this project's flags into the environment that workers inherit.
    inherited = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if "_ynn_" not in flag)
    untuned = {runtime.SWITCH: "0", "XLA_FLAGS": inherited}
    stock = [Spec("stock XLA", "ours", {**case, "plain": True}, untuned)] if settings.stock else []
    return [Spec("PyTorch", "peer", case), *modes, Spec("ours", "ours", case), *stock]


def compiled_name(mode: str) -> str:
    """Returns the name of the worker with torch.compile in this mode."""
    return "torch.compile" if mode == "default" else f"torch.compile {mode}"


def network(name: str, size: int, batch: int, ceiling: float, settings: Settings) -> list[dict[str, Any]]:
    """Returns rows of the training step and the forward pass; "mfu" is their share of the `ceiling` in FLOPs/s."""
    case = steps_case(name, size, batch, settings)
    calls = [Call(call, case["repeat"], batch) for call in case["calls"]]
    rows = interleaved(compared(case, settings), calls, settings)
    for row in rows:
        if "ms" in row and ceiling:
            flops = mfu.model_flops(row["what"], mfu.mult_adds(name, size), batch)
            row["mfu"] = round(mfu.utilization(flops, row["ms"], ceiling), 4)
    labels = {
        "case": f"{name}, {size}x{size}, batch {batch}, {settings.precision}",
        "subject": f"{name}/{size}",
        "batch": batch,
        "precision": settings.precision,
    }
    return [{**labels, **row} for row in rows]


def profiled(name: str, size: int, batch: int, settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Returns the profile of our step: rows of `profile.traced`, by call."""
    case = {**steps_case(name, size, batch, settings), "case": "profile", "repeat": 1, "calls": ["step"]}
    return one(Spec("ours", "ours", case), settings)["profile"]


def explanations(name: str, settings: Settings) -> list[dict[str, Any]]:
    """Measures Grad-CAM of a batch, scaled to its images, and the occlusion of one image; rows include forward passes.

    Both are in float32, and PyTorch's side is eager.
    """
    size, batch, square, stride = EXPLAINED[name]
    batch = settings.batch or batch
    case = {"case": "explain", **on_both_sides(name, size), "batch": batch, "square": square, "stride": stride}
    windows = ((size - square) // stride + 1) ** 2
    rows = interleaved(
        [Spec("PyTorch", "peer", case), Spec("ours", "ours", case)],
        [Call(call) for call in ("forward", "grad_cam", "occlusion")],
        settings,
    )
    forward = {row["who"]: row["ms"] for row in rows if row["what"] == "forward" and "ms" in row}
    for row in rows:
        passes = windows / batch if row["what"] == "occlusion" else 1
        if "ms" in row:
            row["forwards"] = round(row["ms"] / (passes * forward[row["who"]]), 2)
    title = f"explain {name}, {size}x{size}, batch {batch}, {windows} windows"
    return [{"case": title, "subject": f"explain/{name}", **row} for row in rows]


def sweep(kind: str, name: str, devices: int, settings: Settings, values: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Returns rows of a network at several batches, resolutions or numbers of devices; with "sweep" (kind), "value".

    Args:
      kind: "batch", "resolution" or "devices". With "devices", each device gets a full batch (weak scaling), and only
        ours runs, by the program of the training loop.
      name: Name of the network.
      devices: Number of devices, virtual ones included.
      settings: Settings of the measurement.
      values: Replaces the usual values. A value at which nothing runs gets a row with the reason; the others stay.
    """
    size, batch = list(sizes(name, settings).items())[-1]
    if kind == "devices":
        powers = itertools.takewhile(lambda n: n <= devices, (2**i for i in range(16)))
        return _devices(name, size, batch, values or list(powers), settings)
    rows = []
    for value in values or (_BATCHES[settings.accelerator] if kind == "batch" else _RESOLUTIONS[size]):
        side, images = {"batch": (size, value), "resolution": (value, batch)}[kind]
        case = steps_case(name, side, images, settings)
        calls = [Call(call, case["repeat"], images) for call in case["calls"]]
        rows += _at(value, compared(case, settings), calls, settings)
    fixed = f"{size}x{size}" if kind == "batch" else f"batch {batch}"
    return [
        {"case": f"{name}, {fixed}, {settings.precision}, by {kind}", "subject": f"{name}/{kind}", "sweep": kind, **row}
        for row in rows
    ]


def _at(value, specs, calls, settings):
    try:
        rows = interleaved(specs, calls, settings)
    except UserError as error:  # usually the largest batch, out of memory
        rows = [{"what": "step", "who": "all", "side": "all", "failed": str(error)}]
    return [{"value": value, **row} for row in rows]


def _devices(name, size, batch, values, settings):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.npz"
        made_images(path, size, 2 * batch * max(values))
        case = {
            "case": "loop",
            "model": name,
            "arrays": str(path),
            "pipeline": "resident",
            "augment": "flip",
            "precision": settings.precision,
            "steps": 10 if settings.accelerator else 2,
        }
        for value in values:
            specs = [
                Spec(parallel, "ours", {**case, "devices": value, "batch": batch * value, "parallel": parallel})
                for parallel in ("pmap", "shard_map")
            ]
            calls = [Call("step", case["steps"], batch * value)]
            rows += _at(value, specs, calls, settings)
    return [
        {
            "case": f"{name}, {size}x{size}, batch {batch} a device, {settings.precision}, by devices",
            "subject": f"{name}/devices",
            "sweep": "devices",
            **row,
        }
        for row in rows
    ]


def made_images(path: Path, size: int, count: int) -> None:
    """Writes an .npz for data.source=arrays, of random pixels in ten classes."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"{split}_{name}": value
        for split, images in (("train", count), ("test", 100))
        for name, value in (
            ("image", rng.integers(0, 256, (images, size, size, 3), np.uint8)),
            ("label", rng.permutation(images) % 10),
        )
    }
    np.savez(path, **arrays)

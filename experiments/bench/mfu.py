"""Model FLOPs utilization: the share of a device's peak performance that a step uses.

    model flops of a forward pass    2 x mult-adds of `models.analysis.cost` x images
    model flops of a training step   3 times as many: the backward pass computes two products per forward product
    ceiling                          the fastest square matrix product measured in the same run and precision, ours or
                                 PyTorch's, whichever is faster

Elementwise operations and recomputation do not count, so the same FLOPs hold for ours and the peer's.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import models
from experiments.bench.workers import Call, Settings, Spec, interleaved
from models.analysis import cost

SIZES = {True: (2048, 4096, 8192, 16384), False: (512, 1024, 2048)}  # sides of the matrices, by accelerator or not
PASSES = {"step": 3, "forward": 1}  # number of forward passes with the same FLOPs as the call


@functools.cache
def mult_adds(name: str, size: int) -> int:
    """Returns the FLOPs of one image's forward pass."""
    return cost.analyze(models.create(name, image_size=size), (1, size, size, 3)).mult_adds


def model_flops(what: str, mult_adds: int, images: int) -> float:
    """Returns the FLOPs of a call "step" or "forward" on `images` images."""
    return PASSES[what] * 2 * mult_adds * images


def utilization(flops: float, milliseconds: float, ceiling: float) -> float:
    """Returns the share of the ceiling, in FLOPs/s, that `flops` within that time use."""
    return flops / (milliseconds / 1e3) / ceiling


def products(settings: Settings) -> list[dict[str, Any]]:
    """Returns rows of square matrix products of several sizes; with "tflops", 10^12 FLOPs/s."""
    sizes = SIZES[settings.accelerator]
    case = {
        "case": "matmul",
        "precision": settings.precision,
        "sizes": sizes,
        "repeat": 10 if settings.accelerator else 1,
    }
    specs = [Spec("PyTorch", "peer", case), Spec("ours", "ours", case)]
    rows = interleaved(specs, [Call(f"{size}", case["repeat"]) for size in sizes], settings)
    for row in rows:
        if "ms" in row:
            row["tflops"] = round(2 * int(row["what"]) ** 3 / (row["min_ms"] / 1e3) / 1e12, 4)
    return [{"case": f"square matrix product, {settings.precision}", "subject": "matmul", **row} for row in rows]


def ceiling(rows: Sequence[Mapping[str, Any]]) -> float:
    """Returns the best of `products`, in FLOPs/s; 0 if none was measured."""
    return max((row.get("tflops", 0) for row in rows), default=0) * 1e12

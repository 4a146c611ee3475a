"""Model flops utilization: how much of what a device can do at best a step makes use of.

    model flops of a forward pass    2 x mult-adds of `models.analysis.cost` x images
    of a training step               3 times that: the backward pass computes two products for each of the forward's
    ceiling                          the fastest square matrix product measured in the same run, in its precision, by
                                     ours or by PyTorch, whichever is faster

What a program computes besides (elementwise operations, recomputation) does not count, so the same flops hold for ours
and the peer's.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import models
from experiments.bench.workers import Call, Settings, Spec, interleaved
from models.analysis import cost

SIZES = {True: (2048, 4096, 8192, 16384), False: (512, 1024, 2048)}  # of the matrices, by whether on an accelerator
PASSES = {"step": 3, "forward": 1}  # forward passes that a call is worth


@functools.cache
def mult_adds(name: str, size: int) -> int:
    """Of one image's forward pass."""
    return cost.analyze(models.create(name, image_size=size), (1, size, size, 3)).mult_adds


def model_flops(what: str, mult_adds: int, images: int) -> float:
    """Of a call "step" or "forward" on so many images."""
    return PASSES[what] * 2 * mult_adds * images


def utilization(flops: float, milliseconds: float, ceiling: float) -> float:
    """Share of the ceiling, in flops/s, that `flops` in so long come to."""
    return flops / (milliseconds / 1e3) / ceiling


def products(settings: Settings) -> list[dict[str, Any]]:
    """Rows of square matrix products of several sizes; with "tflops", 10^12 flops/s."""
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
    """The best of `products`, in flops/s; 0 where none was measured."""
    return max((row.get("tflops", 0) for row in rows), default=0) * 1e12

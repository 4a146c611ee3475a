"""Time from the command to the end of the first step: on a fresh machine, and with the caches of an earlier run.

Cold: the user's cache folder is empty (XDG_CACHE_HOME is a new one), so XLA's programs are compiled, and on a CPU the
C++ of our convolutions. Warm: another run with the same cache folder, which keeps files by the product's own rules.
"""

import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.networks import made_images, on_both_sides
from experiments.bench.workers import Settings, Spec, WorkerFailed, one, watched, with_ratios
from models.errors import UserError

CACHE = re.compile(
    r"JAX_(COMPILATION|PERSISTENT|ENABLE_COMPILATION)_CACHE.*", re.IGNORECASE
)  # settings of the user that would change the measurement
KINDS = ("digits", "resnet50")


def start(kind: str, folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """Measures `python -m train` with imports, data and compilation, and PyTorch's start until its third eager step.

    Args:
      kind: "digits", ResNet-8 (PyTorch: ResNet-20) on digits; "resnet50", ResNet-50 on 64 generated images of 224x224.
      folder: Folder for data, workdirs and cache folders; each cold start gets a new one.
      settings: Settings; medians are over `processes` starts.
    """
    batch = 64 if kind == "digits" or settings.accelerator else 8
    path = folder / "start.npz"
    made_images(path, 224, 64)
    title, arguments, network = {
        "digits": ("ResNet-8 on digits", ["--config=configs/digits.py"], {"size": 8}),
        "resnet50": (
            f"ResNet-50, 224x224, batch {batch}",
            [
                "--config=configs/imagenet.py",
                f"--config.data.source=arrays:{path}",
                "--config.data.test_split=test",
                "--config.data.crop=none",
                "--config.data.image_size=0",
                "--config.data.pipeline=resident",
                f"--config.batch_size={batch}",
                "--config.eval_batch_size=8",
                "--config.optimizer.warmup=0 steps",
                "--config.optimizer.schedule=constant",
                f"--config.precision={settings.precision}",
            ],
            on_both_sides("resnet50", 224),
        ),
    }[kind]
    case = {"case": "steps", "precision": settings.precision, "calls": ["step"], "batch": batch, **network}
    peer, cold, warm = "PyTorch, eager", "ours, cold", "ours, warm"
    measured: dict[str, list[tuple[float, float]]] = {peer: [], cold: [], warm: []}  # (seconds, MiB)
    failed = {}
    for attempt in range(settings.processes):
        try:
            facts = one(Spec("PyTorch", "peer", case), settings)
            measured[peer].append((facts["ready_after"], facts["peak_mib"]))
        except WorkerFailed as error:
            failed[peer] = str(error)
        for who in (cold, warm):
            workdir = folder / f"{kind}{attempt}{who[-4:]}"
            measured[who].append(first_step(arguments, workdir, folder / f"cache-{kind}{attempt}"))
    rows = []
    for who, starts in measured.items():
        row = {"what": "start", "who": who, "side": "peer" if who == peer else "ours"}
        rows.append(
            {**row, "failed": failed[who]}
            if who in failed
            else {
                **row,
                "ms": round(1e3 * statistics.median(seconds for seconds, _ in starts)),
                "min_ms": round(1e3 * min(starts)[0]),
                "samples": len(starts),
                "peak_mib": round(max(peak for _, peak in starts)),
            }
        )
    facts = {"case": f"command to first step, {title}", "subject": f"start/{kind}"}
    return [{**facts, **row} for row in with_ratios(rows)]


def first_step(arguments: Sequence[str], workdir: Path, cache: Path) -> tuple[float, float]:
    """Measures the start of `python -m train`, with `cache` as the user's cache folder.

    Returns:
      Seconds until its first step is done, and the peak memory of its two steps and their evaluation, in MiB.
    """
    inherited = {name: value for name, value in os.environ.items() if not CACHE.fullmatch(name)}
    try:
        done = watched(
            [
                sys.executable,
                "-m",
                "train",
                *arguments,
                f"--workdir={workdir}",
                "--config.hooks=",
                "--config.duration=2 steps",
            ],
            {**inherited, "XDG_CACHE_HOME": str(cache)},
        )
    except WorkerFailed as error:
        raise UserError(f"python -m train failed: {error}") from None
    return json.loads((workdir / "summary.json").read_text())["seconds_to_first_step"], done.peak_mib

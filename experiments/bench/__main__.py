"""Runs the cases of the benchmark, ours and the peer's in turn, and writes the table. See --help."""

import collections
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
from absl import flags

from models.errors import UserError, choice_error
from train import cli

USAGE = """Measures speed, ours beside PyTorch (the extra `bench`), interleaved: medians, ratios, peak memory.

    python -m experiments.bench                                       everything, on what is there
    python -m experiments.bench --cases=resnet20,loop --rounds=20
    python -m experiments.bench --cases=mobilenet_v2,convnext_tiny --sizes=224 --peer_python=../venv-torch/bin/python
    python -m experiments.bench --cases=resnet50 --sizes=224 --batch=256 --precision=bfloat16 --compile       on a GPU

Networks but ResNet-20 are torchvision's and timm's on the peer's side, whose Python must have them. The case "explain"
is Grad-CAM and occlusion beside pytorch-grad-cam's and captum's; their times are also given in forward passes of their
own side: of the batch, and of the windows at full batch.

Writes bench.json and bench.md to --out. Only one worker computes at a time; samples in which the machine gave its cores
to something else are left out where enough others remain.
"""

# Networks, and the sizes of images with the batches that they are measured at.
NETWORKS = {
    "resnet20": {32: 128},
    **{name: {32: 64, 224: 8} for name in ("mobilenet_v2", "convnext_tiny", "resnext50_32x4d", "densenet121", "vgg16",
                                           "vit_small_patch16", "swin_t")},
    "resnet50": {224: 16},
}
# Of "explain": network: (size of images, batch, occluding square, its stride).
EXPLAINED = {"resnet20": (32, 128, 8, 2), "resnet50": (224, 8, 32, 32)}
CASES = (*NETWORKS, "explain", "loop", "data", "start")
CASE_LIST = flags.DEFINE_list("cases", ["resnet20", "resnet50", "explain", "loop", "data", "start"],
                              f"Any of {', '.join(CASES)}.")
SIZES = flags.DEFINE_list("sizes", ["32", "224"], "Sizes of images at which networks are measured.")
STOCK = flags.DEFINE_bool("stock", False, "Also measure ours without the settings and lowerings of this project.")
PROCESSES = flags.DEFINE_integer("processes", 3, "How often all workers of a case are started afresh.")
ROUNDS = flags.DEFINE_integer("rounds", 4, "Rounds a start; in each, every worker runs every call --inner times.")
INNER = flags.DEFINE_integer("inner", 3, "Calls a round.")
BATCH = flags.DEFINE_integer("batch", 0, "Images a step; 0: 8 to 128, by network and size.")
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "Of the computation, for both.")
COMPILE = flags.DEFINE_bool("compile", False, "Also measure torch.compile.")
PEER = flags.DEFINE_string("peer_python", sys.executable, "Python that has PyTorch.")
OUT = flags.DEFINE_string("out", "experiments/results/bench", "Folder for bench.json and bench.md.")

ROOT = Path(__file__).parents[2]


class Worker:
    """A process that does a case's work when it is told to."""

    def __init__(self, name: str, module: str, case: dict[str, Any], env: dict[str, str] | None = None):
        self.name = name
        python = PEER.value if module == "peer" else sys.executable
        self._process = subprocess.Popen(
            [python, "-m", f"experiments.bench.{module}", json.dumps(case)], cwd=ROOT, text=True,
            env={**os.environ, **(env or {})}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        began = time.perf_counter()
        if self._process.stdout.readline().strip() != "ready":
            raise UserError(f"the worker '{name}' of {case} did not start; its output is above")
        self.ready_after = time.perf_counter() - began

    def run(self, call: str, count: int) -> list[dict[str, float]]:
        """Samples of `count` calls."""
        self._process.stdin.write(f"{call} {count}\n")
        self._process.stdin.flush()
        return [json.loads(self._process.stdout.readline()) for _ in range(count)]

    def close(self) -> float:
        """Ends the process; its peak memory in MiB."""
        self._process.stdin.close()
        peak = json.loads(self._process.stdout.readline())["peak_mib"]
        self._process.wait()
        return peak


def interleaved(
    start_workers: Callable[[], list[Worker]], calls: dict[str, int], inner: int | None = None
) -> list[dict[str, Any]]:
    """Rows {"what", "who", "ms", "ratio", "peak_mib", …}; ratios to the first worker.

    Args:
      start_workers: starts all workers of the case. Done `--processes` times: where a process's memory happens to lie
        changes its speed by more than its own samples differ.
      calls: with the units of work in each.
      inner: calls a round; None for `--inner`.
    """
    samples, peaks = collections.defaultdict(list), collections.defaultdict(float)
    for _ in range(PROCESSES.value):
        workers = start_workers()
        for _ in range(ROUNDS.value):
            for call in calls:
                for worker in workers:
                    samples[call, worker.name] += worker.run(call, inner or INNER.value)
        for worker in workers:
            peaks[worker.name] = max(peaks[worker.name], worker.close())
    rows = []
    for call, units in calls.items():
        base = None
        for name in peaks:
            all_of_them = samples[call, name]
            quiet = [s["ms"] for s in all_of_them if s["preempted"] < 25]
            kept = quiet if len(quiet) >= 5 else [s["ms"] for s in all_of_them]
            median = statistics.median(kept) / units
            base = base or median
            rows.append({
                "what": call, "who": name, "ms": round(median, 2), "min_ms": round(min(kept) / units, 2),
                "ratio": round(median / base, 3), "samples": len(kept), "peak_mib": round(peaks[name])})
    return rows


def network(name: str, size: int) -> list[dict[str, Any]]:
    """Training step and forward pass: PyTorch, ours, and ours without the settings and lowerings of this project."""
    case = {"case": "steps", "model": name, "size": size, "precision": PRECISION.value,
            "batch": BATCH.value or NETWORKS[name][size]}

    def start_workers():
        workers = [Worker("PyTorch", "peer", case), Worker("ours", "ours", case)]
        if COMPILE.value:
            workers.insert(1, Worker("torch.compile", "peer", {**case, "compile": True}))
        if STOCK.value:
            workers.append(Worker("stock XLA", "ours", {**case, "plain": True}, {"ABLATE_CPU_TUNING": "0"}))
        return workers

    return [{"case": f"{name}, {size}x{size}, batch {case['batch']}, {case['precision']}", **row}
            for row in interleaved(start_workers, {"step": 1, "forward": 1})]


def explanations(name: str) -> list[dict[str, Any]]:
    """Grad-CAM of a batch, scaled to the size of its images, and the occlusion of one image, in forward passes as well;
    float32, and PyTorch's side eager."""
    size, batch, square, stride = EXPLAINED[name]
    batch = BATCH.value or batch
    case = {"case": "explain", "model": name, "size": size, "batch": batch, "square": square, "stride": stride}
    windows = ((size - square) // stride + 1) ** 2

    def start_workers():
        return [Worker("PyTorch", "peer", case), Worker("ours", "ours", case)]

    rows = interleaved(start_workers, {"forward": 1, "grad_cam": 1, "occlusion": 1})
    forward = {row["who"]: row["ms"] for row in rows if row["what"] == "forward"}
    for row in rows:
        passes = windows / batch if row["what"] == "occlusion" else 1
        row["forwards"] = round(row["ms"] / (passes * forward[row["who"]]), 2)
    about = f"{name}, {size}x{size}, batch {batch}, {windows} windows"
    return [{"case": f"explain {about}", **row} for row in rows]


def loop_overhead(folder: Path) -> list[dict[str, Any]]:
    """The step inside the loop, resident and streamed, against the bare one."""
    rng = np.random.default_rng(0)
    arrays = {f"{split}_{name}": value for split, count in (("train", 20_000), ("test", 100)) for name, value in (
        ("image", rng.integers(0, 256, (count, 32, 32, 3), np.uint8)), ("label", rng.permutation(count) % 10))}
    path = folder / "made.npz"
    np.savez(path, **arrays)
    case = {"case": "loop", "model": "resnet20", "batch": BATCH.value or 128, "arrays": str(path)}

    class FourBareSteps(Worker):
        """Answers "steps" by four bare ones, as many as the loop's workers take in a call."""

        def run(self, call, count):
            return [{"ms": sum(s["ms"] for s in four), "preempted": sum(s["preempted"] for s in four)}
                    for four in (super(FourBareSteps, self).run("step", 4) for _ in range(count))]

    def start_workers():
        return [
            FourBareSteps("bare step", "ours", {**case, "case": "steps", "size": 32}),
            Worker("resident, no augmentation", "ours", {**case, "pipeline": "resident", "augment": ""}),
            Worker("resident, crop and flip", "ours", {**case, "pipeline": "resident"}),
            Worker("resident, shard_map", "ours", {**case, "pipeline": "resident", "parallel": "shard_map"}),
            Worker("streamed, threads", "ours", {**case, "pipeline": "stream"}),
        ]

    return [{"case": "ResNet-20 in the loop", **row} for row in interleaved(start_workers, {"steps": 4})]


def pipeline(folder: Path) -> list[dict[str, Any]]:
    """JPEGs to random-resized crops at 224: crops of the two photographs that come with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos, rng, count = load_sample_images().images, np.random.default_rng(0), 256
    for i in range(count):
        photo = photos[i % 2]
        top, left = rng.integers(0, photo.shape[0] - 375), rng.integers(0, photo.shape[1] - 500)
        target = folder / "photos" / "train" / f"class{i % 2}" / f"{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo[top:top + 375, left:left + 500]).save(target, quality=90)
    case = {"case": "data", "folder": str(folder / "photos" / "train"), "size": 224, "batch": 32, "batches": 30,
            "workers": 2}
    ours = {**case, "folder": str(folder / "photos")}
    (folder / "photos" / "test").symlink_to(folder / "photos" / "train")

    def start_workers():
        return [Worker("torch DataLoader, 2 workers", "peer", case), Worker("ours, 2 workers", "ours", ours),
                Worker("ours, threads", "ours", {**ours, "workers": 0})]

    return [{"case": "JPEG 500x375 to crops of 224, an image", **row}
            for row in interleaved(start_workers, {"pass": case["batch"] * case["batches"]}, inner=1)]


def start(folder: Path) -> list[dict[str, Any]]:
    """From the command to the end of the first step: `python -m train` on configs/digits.py (imports, data,
    compilation), and PyTorch's import and first two eager steps of ResNet-20 on such images. Medians of three."""
    peer, ours = [], []
    for attempt in range(3):
        worker = Worker("PyTorch", "peer", {"case": "steps", "model": "resnet20", "batch": 64, "size": 8})
        peer.append(worker.ready_after * 1e3)
        worker.close()
        workdir = folder / f"start{attempt}"
        done = subprocess.run(
            [sys.executable, "-m", "train", "--config=configs/digits.py", f"--workdir={workdir}", "--config.hooks=",
             "--config.duration=20 steps"], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"python -m train failed: {done.stderr.strip().splitlines()[-1]}")
        ours.append(json.loads((workdir / "summary.json").read_text())["seconds_to_first_step"] * 1e3)
    base = statistics.median(peer)
    return [{"case": "start to first step", "what": "start", "who": who, "ms": round(statistics.median(times)),
             "min_ms": round(min(times)), "ratio": round(statistics.median(times) / base, 3), "samples": len(times)}
            for who, times in (("PyTorch, eager", peer), ("ours, compiled", ours))]


def main() -> None:
    """Runs what was asked for, prints and writes it."""
    import jax

    from train import summary

    for flag, allowed in ((CASE_LIST, CASES), (SIZES, ("32", "224"))):
        for name in flag.value:
            if name not in allowed:
                raise choice_error(flag.name, name, allowed)
    found = subprocess.run([PEER.value, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True,
                           check=False)
    if found.returncode:
        raise UserError(f"{PEER.value} has no PyTorch: pip install -e '.[bench]', or name another by --peer_python")
    looked = "from importlib.util import find_spec; assert find_spec('captum') and find_spec('pytorch_grad_cam')"
    if "explain" in CASE_LIST.value and subprocess.run([PEER.value, "-c", looked], capture_output=True, check=False
                                                       ).returncode:
        raise UserError(f"case explain: {PEER.value} has no captum or pytorch-grad-cam: pip install -e '.[bench]'")
    console, rows = rich.console.Console(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in CASE_LIST.value:
            console.print(f"{name} …")
            if name in NETWORKS:
                for size in NETWORKS[name]:
                    rows += network(name, size) if str(size) in SIZES.value else []
            elif name == "explain":
                for network_name, (size, *_) in EXPLAINED.items():
                    rows += explanations(network_name) if str(size) in SIZES.value else []
            else:
                rows += {"loop": loop_overhead, "data": pipeline, "start": start}[name](Path(folder))
    result = {"rows": rows, "processes": PROCESSES.value, "rounds": ROUNDS.value,
              "peer": f"PyTorch {found.stdout.strip()}", **summary.environment(jax.devices()),
              "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    columns = {"case": "case", "what": "call", "who": "who", "ms": "median ms", "min_ms": "min ms",
               "ratio": "ratio to the first", "forwards": "forward passes", "peak_mib": "peak MiB"}
    table = rich.table.Table(title=f"{result['peer']} and ours, {result['device']}", title_justify="left")
    for title in columns.values():
        table.add_column(title)
    cells = [[str(row.get(key, "")) for key in columns] for row in rows]
    for row in cells:
        table.add_row(*row)
    console.print(table)
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = ["| " + " | ".join(line) + " |" for line in (list(columns.values()), ["---"] * len(columns), *cells)]
    head = ", ".join(result[name] for name in ("device", "commit", "peer", "measured"))
    head += f"; {PROCESSES.value} starts of {ROUNDS.value} rounds."
    (out / "bench.md").write_text("\n".join(["# Benchmark", "", head, "", *lines]) + "\n")
    console.print(f"written to {out}/bench.json and bench.md")


if __name__ == "__main__":
    cli.run(main, USAGE)

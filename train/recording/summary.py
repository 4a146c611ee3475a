"""The summary of a finished run: summary.json, and the table in the terminal."""

import contextlib
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.table

from models.analysis.cost import analyze
from models.kernels import runtime
from train.devices import memory

if TYPE_CHECKING:  # these import Orbax, which the benchmark's bare steps do not need
    from train.recording.recorder import Recorder
    from train.run import Run

# The keys of every summary, besides the metrics of the task
SCHEMA = {
    "type": "object",
    "required": [
        "model",
        "data",
        "test_examples",
        "parameters",
        "mult_adds",
        "steps",
        "seconds",
        "seed",
        "commit",
        "device",
        "versions",
    ],
    "properties": {
        **{name: {"type": "string"} for name in ("model", "data", "commit", "device", "finished")},
        **{
            name: {"type": "integer", "minimum": 0}
            for name in ("test_examples", "parameters", "mult_adds", "steps", "seed")
        },
        **{name: {"type": "number", "minimum": 0} for name in ("seconds", "loss")},
        "accuracy": {"type": "number", "minimum": 0, "maximum": 1},
        "versions": {"type": "object"},
    },
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def commit() -> str:
    """Returns the commit of this code, with "+changes" if files differ from it; "unknown" outside a git checkout.

    Changes to experiments/results, README.md and docs do not count, because studies and reports write there. Otherwise
    the first of several studies in a row would mark the commit of the others as changed.
    """

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            ":/",
            ":(top,exclude)experiments/results",
            ":(top,exclude)README.md",
            ":(top,exclude)docs",
        )
        return git("rev-parse", "HEAD")[:12] + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device(devices: Sequence[Any]) -> str:
    """Describes devices, e.g. "1 x NVIDIA H200" or "1 x cpu (AMD EPYC, 2 cores)"."""
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"cpu ({_processor()})"
    return f"{len(devices)} x {kind}"


def _processor() -> str:
    try:
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()}, {runtime.cores()} cores"


def environment(devices: Sequence[Any]) -> dict[str, Any]:
    """Returns the environment of a measurement: commit, device and versions of packages."""
    return {"commit": commit(), "device": device(devices), "versions": versions()}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # bare steps run without Orbax
            found[name] = importlib.metadata.version(name)
    return found


def create(
    run: "Run", results: Mapping[str, Any], *, steps: int, seconds: float, recorder: "Recorder", started: float
) -> dict[str, Any]:
    """Returns the content of summary.json.

    There is one clock, which starts with the process. "seconds" runs until the results are there, and includes imports,
    compilation, evaluation and saving; earlier processes of the same run count until their last checkpoint.
    "seconds_to_first_step" is the part of this process before its first dispatch has finished. "training_seconds" is
    the duration of all steps at the speed of this process, without that first dispatch, evaluation and saving.
    "peak_mib" is the peak memory of the fullest device of this process, or on a CPU of the process.

    Args:
      run: the run, finished or paused.
      results: metrics on the test set after these steps.
      steps: steps that were trained; fewer than those of the run if it pauses.
      seconds: duration of all processes that trained in the workdir, each from its start.
      recorder: measured the speed.
      started: when the process started, by time.time().
    """
    cost, unit = analyze(run.model, run.feed.inputs), run.feed.unit
    speed, first = recorder.examples_per_second, recorder.first_step
    count = run.feed.test_count()
    return {
        "model": run.config["model"]["name"],
        "data": run.config["data"]["source"],
        **results,
        "test_examples": count,
        f"skipped_{unit}": {**run.feed.skipped, "test": run.feed.test_size() - count},  # of all processes
        "parameters": cost.params,
        "mult_adds": cost.mult_adds,
        "steps": steps,
        "seconds": round(seconds, 2),
        "training_seconds": round(recorder.training_seconds, 2) if speed == speed else None,
        "seconds_to_first_step": round(first - started, 2) if first else None,
        f"{unit}_per_second": round(speed, 1) if speed == speed else None,
        "peak_mib": memory.peak_mib(run.parallel.local),
        "seed": run.config["seed"],
        **environment(run.parallel.devices),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(summary: Mapping[str, Any], folder: Path) -> rich.table.Table:
    """Returns the summary as a table for the terminal."""
    table = rich.table.Table(title=f"{summary['model']} on {summary['data']}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    unit = "images" if "skipped_images" in summary else "sentences"
    skipped, speed = sum(summary[f"skipped_{unit}"].values()), summary[f"{unit}_per_second"]
    shown = {
        "test BLEU": f"{summary['bleu']:.2f}" if "bleu" in summary else None,
        "test accuracy": f"{summary['accuracy']:.2%}" if "accuracy" in summary else None,
        "mean class accuracy": _share(summary.get("mean_class_accuracy")),
        "test mAP": _share(summary.get("mean_average_precision")),
        "test mAP, 11 points": _share(summary.get("mean_average_precision_11")),
        "top class is present": _share(summary.get("hit")),
        # Summaries of earlier versions have it for any number of classes; with five or fewer, it is always 100%
        "test top-5": _share(summary.get("top5")) if len(summary.get("accuracy_by_class", ())) > 5 else None,
        "test loss": f"{summary['loss']:.4f}",
        "weights pruned": f"{summary['sparsity']:.2%}" if "sparsity" in summary else None,
        "test examples": f"{summary['test_examples']:,}",
        f"{unit} skipped": f"{skipped:,}" if skipped else None,
        "parameters": f"{summary['parameters']:,}",
        "mult-adds": f"{summary['mult_adds']:,}",
        "steps": f"{summary['steps']:,}",
        "wall time": f"{summary['seconds']:.1f} s",
        "to the first step": f"{summary['seconds_to_first_step']:.1f} s" if summary["seconds_to_first_step"] else None,
        "speed": f"{speed:,.0f} {unit}/s" if speed else None,
        "peak memory": f"{peak:,} MiB" if (peak := summary.get("peak_mib")) else None,
        "device": summary["device"],
        "files": str(folder),
    }
    for name, value in shown.items():
        if value:
            table.add_row(name, value)
    return table


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"

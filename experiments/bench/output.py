"""The results in a folder: bench.json, bench.md, charts. Earlier rows stay unless they are measured anew."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench import targets
from experiments.bench.charts import charts
from models.analysis.tables import markdown_table
from train.storage.files import read_json, write_atomically, write_json

_ROWS = {"type": "array", "items": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"rows": _ROWS, "profiles": _ROWS}}
COLUMNS = {  # key of a row: title of its column
    "case": "case",
    "value": "at",
    "what": "call",
    "who": "who",
    "ms": "median ms",
    "min_ms": "min ms",
    "images_per_second": "images/s",
    "per_core": "images/s per core",
    "per_cpu_second": "images per CPU second",
    "epoch_seconds": "s per epoch",
    "accuracy": "accuracy",
    "tflops": "Tflop/s",
    "times_first": "times the first",
    "times_best": "times the peer's best",
    "mfu": "of the ceiling",
    "forwards": "forward passes",
    "samples": "samples",
    "peak_mib": "peak MiB",
    "device_peak_mib": "device peak MiB",
    "gflop": "GFLOP",
    "traffic_mib": "memory traffic, MiB",
    "program_mib": "peak of the program, MiB",
    "cycles": "million cycles (XLA's estimate)",
    "reductions": "lone reductions",
    "reduction_cycles": "their million cycles",
    "compile_seconds": "s to compile",
    "commit": "commit",
    "failed": "why not",
}
NOTE = """Programs take turns, with one median each; columns without values are omitted. "times the first": speed
relative to the first row of the case; "times the peer's best": relative to the fastest of PyTorch's rows (or
tf.data's); above 1 is faster. "of the ceiling": model FLOPs utilization, 2 x mult-adds forward and twice that backward,
over the fastest
square matrix product of the run."""


def read(folder: Path) -> dict[str, Any]:
    """Reads earlier results: {"rows": […], "profiles": […]}, without cases in which nothing ran."""
    path = folder / "bench.json"
    content = read_json(path, SCHEMA) if path.exists() else {}
    return {
        "rows": [row for row in content.get("rows", []) if row.get("side")],
        "profiles": content.get("profiles", []),
    }


def merged(before: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Merges rows: those of a case that was measured anew replace the earlier ones."""
    again = {row["case"] for row in new}
    return [*(row for row in before if row["case"] not in again), *new]


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes bench.json, bench.md and the charts; each file is complete at any instant.

    Args:
      folder: Created if it is missing.
      result: "rows", "profiles" (rows with "case"), "device", and anything else that bench.json should hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    judged = targets.judged(result["rows"])
    pictures = charts(folder, result["rows"], result["device"])
    write_json(folder / "bench.json", {**result, "targets": judged})
    write_atomically(folder / "bench.md", markdown(result, judged, pictures))


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the keys that any of the rows has, in order."""
    return [key for key in COLUMNS if any(row.get(key) not in (None, "") for row in rows)]


def cell(key: str, row: Mapping[str, Any]) -> str:
    """Formats a value for a table; "" if the row has none."""
    value = row.get(key)
    if value is None:
        return ""
    if key in ("mfu", "accuracy"):
        return f"{value:.1%}" if key == "mfu" else f"{value:.2%}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "/")


def markdown(result: Mapping[str, Any], judged: Sequence[Mapping[str, Any]], pictures: Sequence[str]) -> str:
    """Returns the page: charts, targets, rows, profiles."""
    head = ", ".join(str(result[name]) for name in ("device", "commit", "peer", "measured") if result.get(name))
    parts = ["# Benchmark", f"{head}.", NOTE, *(f"![{name}]({name})" for name in pictures)]
    if judged:
        parts += [
            "## Targets",
            markdown_table(
                ["target", "measured", "verdict"],
                [[one["target"], cell("measured", one), one["verdict"]] for one in judged],
            ),
        ]
    keys = columns(result["rows"])
    parts += [
        "## Measured",
        markdown_table([COLUMNS[key] for key in keys], [[cell(key, row) for key in keys] for row in result["rows"]]),
    ]
    cases = dict.fromkeys(row["case"] for row in result.get("profiles", ()))
    for case in cases:
        rows = [row for row in result["profiles"] if row["case"] == case]
        parts += [
            f"## Where the time goes: {case}",
            markdown_table(
                ["operation", "share", "ms per call", "times per call"],
                [[row["kind"], f"{row['share']:.1%}", cell("ms", row), str(row["count"])] for row in rows],
            ),
        ]
    return "\n\n".join(parts) + "\n"

"""Files of results that several pages read."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import study
from experiments.report import content


def missing(command: str) -> str:
    """Returns the text that replaces a missing result; it names the command that measures it."""
    return f"Not measured yet: `{command}`."


def runs(results: Path, names: Sequence[str] = tuple(study.STUDIES)) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """Yields (results.json, its folder) of the studies, in the order of the catalogue and of the scales."""
    for name in names:
        for scale in study.SCALES:
            path = results / "studies" / name / scale / "results.json"
            if path.exists():
                yield content.read(path), path.parent


def bench_rows(results: Path) -> list[dict[str, Any]]:
    """Returns the rows of the newest measurement of each case, of all benchmarks in experiments/results/bench."""
    newest = {}
    for path in sorted((results / "bench").glob("*/bench.json")):
        benchmark = content.read(path)
        for row in benchmark["rows"]:
            row = {
                "measured": benchmark.get("measured", ""),
                "device": benchmark["device"],
                "commit": benchmark.get("commit", ""),
                **row,
            }
            if "ms" not in row and "cycles" not in row:  # it failed
                continue
            before = newest.setdefault((row["case"], row["device"]), [])
            if before and before[0]["measured"] < row["measured"]:
                before.clear()
            if not before or before[0]["measured"] == row["measured"]:
                before.append(row)
    return [row for rows in newest.values() for row in rows]


def is_peer(row: Mapping[str, Any]) -> bool:
    """Returns whether a row of the benchmark is PyTorch's."""
    return row.get("side", "peer" if row["who"].startswith("PyTorch") else "") == "peer"

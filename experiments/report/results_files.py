"""Files of results that several pages read."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import study
from train.storage.files import read_json

TEXT, NUMBER, NUMBER_OR_NOTHING = {"type": "string"}, {"type": "number"}, {"type": ["number", "null"]}


def _record(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


CLAIM = _record(
    {
        **dict.fromkeys(("statement", "published", "source", "expected", "ours"), TEXT),
        "verdict": {"enum": study.VERDICTS},
    },
    **dict.fromkeys(("estimate", "low", "high", "margin", "effect", "p", "seeds"), NUMBER_OR_NOTHING),
    **dict.fromkeys(("unit", "test", "reason"), TEXT),
)
STUDY = _record(  # results.json of a study, as far as the pages need it
    {
        **dict.fromkeys(("study", "title", "question", "command"), TEXT),
        "scale": {"enum": study.SCALES},
        "claims": _list(CLAIM),
        "tables": _list(_record({"title": TEXT, "columns": _list(TEXT), "rows": _list({"type": "array"})})),
        "figures": _list(_record({"file": {"type": "string", "pattern": r"^[^/\\]+$"}, "caption": TEXT})),
        "environments": _list(_record({"device": TEXT, "commit": TEXT, "versions": {"type": "object"}})),
        "trials": _list(_record({"diverged": {}})),
        **dict.fromkeys(("trials_at_once", "seconds_of_training", "seconds_of_this_command"), NUMBER),
    },
    would_change=TEXT,
)


def read(path: Path, schema: Mapping[str, Any] = {}) -> Any:
    """Reads a results file; raises UserError if it is damaged."""
    return read_json(path, schema)


def missing(command: str) -> str:
    """Returns the text that replaces a missing result; it names the command that measures it."""
    return f"Not measured yet: `{command}`."


def runs(results: Path, names: Sequence[str] = tuple(study.STUDIES)) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """Yields (results.json, its folder) of the studies, in the order of the catalogue and of the scales."""
    for name in names:
        for scale in study.SCALES:
            path = results / "studies" / name / scale / "results.json"
            if path.exists():
                yield read(path, STUDY), path.parent


def bench_rows(results: Path) -> list[dict[str, Any]]:
    """Returns the rows of the newest measurement of each case, of all benchmarks in experiments/results/bench."""
    newest = {}
    for path in sorted((results / "bench").glob("*/bench.json")):
        benchmark = read(path)
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

"""Times imports and --help of each command, for which users wait first, and lists the durations of tests."""

import collections
import re
import statistics
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.workers import ROOT, Settings, WorkerFailed, watched, with_ratios
from models.errors import UserError

IMPORTED = ("models", "train.loop")
PEER = """
try:
    import torchvision_cpu  # declares what torchvision's import needs beside a PyTorch for CPUs alone
except ImportError:
    pass
import torch, timm
"""
JUNIT = Path("runs/tests.xml")
CLASS = re.compile(r"\.[A-Z].*")  # class of a test, after its module
LONGEST = 20  # number of slowest tests that get a row


def names() -> list[str]:
    """Returns every command, as `python -m` takes it."""
    modules = []
    for path in sorted(path for room in ("models", "train", "experiments") for path in (ROOT / room).rglob("*.py")):
        if re.search(r"^    ((cli|command)\.run\(main|command\.exit_with\()", path.read_text(), re.MULTILINE):
            modules.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return modules


def commands(settings: Settings) -> list[dict[str, Any]]:
    """Measures imports, ours and PyTorch's, and --help of each command: medians of fresh processes, peak memory."""
    imports = [("PyTorch, timm", "peer", ["-c", PEER])] if settings.peer_python else []
    imports += [(f"ours, {name}", "ours", ["-c", f"import {name}"]) for name in IMPORTED]
    rows = with_ratios([_row("import", *one, settings) for one in imports])
    rows += [_row("--help", name, "ours", ["-m", name, "--help"], settings) for name in names()]
    return [{"case": "imports and commands", "subject": "commands", **row} for row in rows]


def _row(what: str, who: str, side: str, arguments: Sequence[str], settings: Settings) -> dict[str, Any]:
    python = settings.python("ours" if side == "ours" else "peer")
    row = {"what": what, "who": who, "side": side}
    try:
        runs = [watched([python, *arguments]) for _ in range(settings.processes)]
    except WorkerFailed as error:
        return {**row, "failed": str(error)}
    seconds = [one.seconds for one in runs]
    return {
        **row,
        "ms": round(1e3 * statistics.median(seconds)),
        "min_ms": round(1e3 * min(seconds)),
        "samples": len(runs),
        "peak_mib": round(max(one.peak_mib for one in runs)),
    }


def tests(path: Path = JUNIT) -> list[dict[str, Any]]:
    """Returns the seconds of the last `make test`: in total, per file, and of the LONGEST tests.

    Args:
      path: pytest's JUnit file, whose suite is named by the commit.

    Raises:
      UserError: The file is missing, or is not such a file.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: make test writes it")
    try:
        suite = next(xml.etree.ElementTree.parse(path).iter("testsuite"))
        cases = [
            (CLASS.sub("", case["classname"]).replace(".", "/") + ".py", case["name"], float(case["time"]))
            for case in (element.attrib for element in suite.iter("testcase"))
        ]
        whole, stamp = float(suite.attrib["time"]), {"commit": suite.get("name"), "measured": suite.get("timestamp")}
    except (xml.etree.ElementTree.ParseError, StopIteration, KeyError, ValueError):
        raise UserError(f"{path} is not a report that make test has written") from None
    by_file = collections.defaultdict(list)
    for file, _, seconds in cases:
        by_file[file].append(seconds)
    rows = [("all tests", "wall time", whole, len(cases))]
    rows += sorted(
        (("tests of a file", file, sum(times), len(times)) for file, times in by_file.items()), key=lambda row: -row[2]
    )
    rows += [
        ("one test", f"{file}::{name}", seconds, 1)
        for file, name, seconds in sorted(cases, key=lambda one: -one[2])[:LONGEST]
    ]
    return [
        {
            "case": "tests",
            "subject": "tests",
            "what": what,
            "who": who,
            "side": "ours",
            "ms": round(1e3 * seconds),
            "samples": count,
            **stamp,
        }
        for what, who, seconds, count in rows
    ]

"""Content of the report, gathered from the folder of results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments import study
from experiments.report import studies, winners
from experiments.report.blocks import Figure, Page, Report, Section, anchor
from experiments.report.results_files import read
from models.errors import UserError

COSTS = "python -m experiments.bench.costs --out=experiments/results/costs"
BENCH = "python -m experiments.bench"
SEEDS = "python -m experiments.sweep --config=configs/digits.py --over seed=0:5 --json=experiments/results/digits.json"
PARITY = "PYTHONPATH=../shared/tools ../venv-torch/bin/python -m tests.golden.check_weights"
FUZZ = "make fuzz"
DATES = ("finished", "measured")  # keys that hold the time of a result


def gather(results: Path, pictures: Path) -> Report:
    """Reads the results.

    Args:
      results: folder of the results.
      pictures: folder for figures that are drawn here; created if missing.

    Raises:
      UserError: there is no such folder, or a file in it is not what its command writes.
    """
    from train.recording import summary

    if not results.is_dir():
        raise UserError(f"--results={results}: there is no such folder; make studies writes experiments/results")
    pictures.mkdir(parents=True, exist_ok=True)
    found = list(studies.gather(results / "studies"))
    sections = [
        *(one.section for one in found),
        _winners(pictures),
        _costs(results / "costs"),
        _seeds(results / "digits.json"),
        _speed(results / "bench"),
        _parity(results / "parity.md"),
        _fuzz(results / "fuzz.md"),
    ]
    documents = [read(path) for path in sorted(results.rglob("*.json"))]
    devices = dict.fromkeys(value for one in documents for value in _values(one, ("device",)))
    date = max((value for one in documents for value in _values(one, DATES)), default="")
    overview = [row for one in found for row in one.overview]
    scales = [
        (name, text + _ceiling(results / "digits.json") * (name == "digits"))
        for name, text in studies.SCALES.items()
        if name in [row.scale for row in overview]
    ]
    claims = [claim for one in found for claim in one.claims]
    return Report(summary.commit(), date[:10] or "unknown", list(devices), scales, overview, claims, sections)


def _ceiling(path: Path) -> str:
    """Returns a sentence with the accuracy of the first training; "" where it is not measured."""
    if not path.exists():
        return ""
    digits = read(path)
    return f" A {digits['model']} gets {digits['accuracy_mean']:.1%} of the test images right."


def _values(value: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Yields the texts under these keys, anywhere in a JSON tree."""
    if isinstance(value, dict):
        yield from (text for name, text in value.items() if name in names and isinstance(text, str))
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _values(part, names)


# -- sections beside the studies --------------------------------------------------------------------------------------


def _winners(pictures: Path) -> Section:
    file = pictures / "imagenet-winners.png"
    winners.draw(file)
    figure = Figure(
        file,
        file.name,
        "Bars: "
        + ", ".join(f"{w.year} {w.team} {w.error} %" for w in winners.WINNERS)
        + f"; a line at {winners.HUMAN} % for one trained person",
        winners.CAPTION,
    )
    return Section(
        "winners",
        "Winners of the ImageNet challenge",
        [
            ("text", "Published numbers; nothing here was trained by us."),
            ("figure", figure),
            ("table", winners.table()),
        ],
    )


def _costs(folder: Path) -> Section:
    return Section("costs", "What accuracy costs", _page(folder / "costs.md", "costs", COSTS))


def _parity(path: Path) -> Section:
    return Section("parity", "Weights of other libraries in our networks", _page(path, "parity", PARITY))


def _fuzz(path: Path) -> Section:
    return Section("fuzz", "Damaged files", _page(path, "fuzz", FUZZ))


def _page(path: Path, name: str, command: str) -> list[tuple[str, Any]]:
    """Returns the blocks of a page that `command` has written, or a note that it is missing."""
    if not path.exists():
        return [("missing", ("Not there yet", command))]
    return [("command", command), ("page", Page(path.read_text().partition("\n")[2].strip(), path.parent, name))]


def _seeds(path: Path) -> Section:
    title = "Digits, several seeds"
    if not path.exists():
        return Section("digits", title, [("missing", ("Not run yet", SEEDS))])
    digits = read(path)
    rows = [
        [run["seed"], f"{run['accuracy']:.2%}", f"{run['loss']:.4f}", f"{run['seconds']:.1f}"] for run in digits["runs"]
    ]
    facts = [
        (
            "accuracy",
            f"{digits['accuracy_mean']:.2%} ± {digits['accuracy_std']:.2%}, mean and standard deviation of "
            f"{len(rows)} seeds; {digits['test_examples']} test images",
        ),
        ("network", f"{digits['model']}, {digits['parameters']:,} parameters, {digits['mult_adds']:,} mult-adds"),
        ("environment", f"{digits['device']}; commit {digits['commit']}; {studies.versions(digits['versions'])}"),
    ]
    return Section(
        "digits",
        title,
        [
            ("text", "The first training, as in make train, under several seeds."),
            ("command", SEEDS),
            ("facts", facts),
            ("table", study.Table("Runs", ["seed", "test accuracy", "test loss", "seconds"], rows)),
        ],
    )


def _speed(folder: Path) -> Section:
    """Returns the section of the benchmark; its pages are newest first."""
    title, parts = "Speed beside PyTorch", []
    for path in sorted(folder.rglob("*.md")):
        where = [part for part in path.relative_to(folder).with_suffix("").parts if part != "bench"]
        name, data = " / ".join(dict.fromkeys(where)) or "all cases", path.with_suffix(".json")
        date = max(_values(read(data), DATES), default="") if data.exists() else ""
        page = Page(path.read_text().partition("\n")[2].strip(), path.parent, anchor("bench", name))
        parts.append((date, Section(anchor("bench", name), f"Benchmark: {name}", [("page", page)], folded=True)))
    parts = [part for _, part in sorted(parts, key=lambda pair: pair[0], reverse=True)]
    if not parts:
        return Section("bench", title, [("missing", ("Not measured yet", BENCH))])
    return Section(
        "bench",
        title,
        [
            (
                "text",
                "Time of a call, ours beside PyTorch's on the same machine in turn. Where a column is called ratio, "
                "below 1 is faster than the first row of its group; where it counts times, above 1 is faster. Newest "
                "first; older measurements are of older code.",
            ),
            ("command", BENCH),
        ],
        parts,
    )

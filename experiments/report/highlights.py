"""The ten results that README.md shows, each with the page that has all of it."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import study
from experiments.report import content, results_files
from models.analysis.tables import markdown_table


def table(results: Path) -> str:
    """Returns ten results, each with the page that has all of it."""
    rows = [
        (question, row(results), f"[{page.partition('.')[0]}](docs/{page})")
        for question, row, page in (
            ("A ResNet-8 after `make train`", _accuracy, "results.md#the-first-training"),
            ("Published claims, tested by ten studies", _verdicts, "results.md#studies"),
            ("Networks with weights of torchvision and timm", _imported, "results.md#weights-of-other-libraries"),
            ("LeNet-5, pruned and Huffman coded", _compressed, "results.md#compression"),
            ("Fine-tuning a small ResNet on CIFAR-10 (JPEG)", _fine_tuned, "results.md#transfer"),
            ("BlockDrop, a ResNet-32 on digits", _dropped, "results.md#adaptive-inference"),
            ("Grad-CAM finds the right one of two digits", _found, "results.md#explanations"),
            ("Training step beside PyTorch, on CPUs", _beside_pytorch("step"), "benchmarks.md#beside-pytorch"),
            ("Forward pass, the same", _beside_pytorch("forward"), "benchmarks.md#beside-pytorch"),
            ("Damaged files of every kind that is read", _damaged, "results.md#damaged-files"),
        )
    ]
    return markdown_table(("what", "result", "page"), rows)


def _read(path: Path, command: str, describe: Callable[[Any], str]) -> str:
    """Returns the text of `say` for a results file, or a note that it was not measured."""
    return describe(results_files.read(path)) if path.exists() else results_files.missing(command)


def _accuracy(results: Path) -> str:
    def describe(digits: Mapping[str, Any]) -> str:
        return f"{digits['accuracy_mean']:.2%} ± {digits['accuracy_std']:.2%} of {digits['test_examples']} test images"

    return _read(results / "digits.json", content.SEEDS, describe)


def _verdicts(results: Path) -> str:
    counts = [study.counts(result["claims"]) for result, _ in results_files.runs(results)]
    if not counts:
        return results_files.missing("make studies")
    agree, disagree, open_ = (sum(column) for column in zip(*counts, strict=True))
    return f"{agree} agree, {disagree} disagree, {open_} too small to tell"


def _imported(results: Path) -> str:
    def describe(parity: Mapping[str, Any]) -> str:
        errors = [one["relative_error"] for one in parity["networks"]]
        return f"{len(errors)} networks, logits within {max(errors):.0e} of the largest"

    return _read(results / "parity.json", content.PARITY, describe)


def _cells(results: Path, name: str, scale: str, title: str, starts: Sequence[str]) -> dict[str, str]:
    """Returns {column: cell} of the row of a study's table whose first cells are `starts`; {} where it has none."""
    path = results / "studies" / name / scale / "results.json"
    tables = results_files.read(path)["tables"] if path.exists() else []
    for table in tables:
        for row in table["rows"] if table["title"] == title else ():
            if list(map(str, row[: len(starts)])) == list(starts):
                return dict(zip(table["columns"], map(str, row), strict=True))
    return {}


def _of_row(
    name: str, scale: str, title: str, starts: Sequence[str], describe: Callable[[Mapping[str, str]], str]
) -> Callable[[Path], str]:
    def result(results: Path) -> str:
        cells = _cells(results, name, scale, title, starts)
        return describe(cells) if cells else results_files.missing(f"python -m experiments.run {name} --scale={scale}")

    return result


_compressed = _of_row(
    "compression",
    "digits",
    "Deep compression",
    ["LeNet-5"],
    lambda cells: f"{cells['Huffman, times']} times smaller; error {cells['error']} before, {cells['file']} after",
)
_fine_tuned = _of_row(
    "transfer",
    "cifar",
    "Labels per class",
    ["cifar10_jpeg", "50"],
    lambda cells: f"50 labels per class: {cells['fine-tuned']}, from scratch {cells['from scratch']}",
)
_dropped = _of_row(
    "adaptive",
    "digits",
    "Networks",
    ["BlockDrop, penalty 1"],
    lambda cells: f"{cells['accuracy']} with {cells['blocks']} of 15 blocks",
)
_found = _of_row(
    "explanation",
    "digits",
    "Pointing game, the requested one of two objects",
    ["Grad-CAM"],
    lambda cells: ", ".join(f"{network} {cells[network]}" for network in ("ResNet", "VGG", "ViT")),
)


def _beside_pytorch(what: str) -> Callable[[Path], str]:
    """Returns a result: the range of our time over that of the fastest of PyTorch, over all cases and devices."""

    def result(results: Path) -> str:
        cases: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in results_files.bench_rows(results):
            if row["what"] == what and not row["case"].startswith("explain"):
                cases.setdefault((row["case"], row["device"]), []).append(row)
        ratios = []
        for rows in cases.values():
            ours = [row["ms"] for row in rows if row["who"] == "ours"]
            peer = [row["ms"] for row in rows if results_files.is_peer(row)]
            if ours and peer:
                ratios.append(ours[0] / min(peer))
        if not ratios:
            return results_files.missing(content.BENCH)
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        return f"{low:.2f} to {high:.2f} of its time in {len(ratios)} cases, median {middle:.2f}"

    return result


def _damaged(results: Path) -> str:
    def describe(fuzz: Mapping[str, Any]) -> str:
        count = {key: sum(row[key] for row in fuzz["rows"]) for key in ("mutants", "traceback", "crash", "hang")}
        return f"{count['mutants']:,} mutants: {count['crash']} crashes, {count['traceback']} tracebacks, " + (
            f"{count['hang']} hangs"
        )

    return _read(results / "fuzz.json", content.FUZZ, describe)

"""Numbers in Markdown pages: blocks between `<!-- generated: NAME -->` and `<!-- end -->`, made from the results.

README.md, docs/results.md and docs/benchmarks.md have such blocks.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import models
from experiments import study
from experiments.bench import optimizers as bench_optimizers
from experiments.bench import output
from experiments.bench import topology as ahead
from experiments.report import content, highlights, results_files
from models.analysis.tables import duration, markdown_table
from models.errors import UserError

LARGEST = 5  # files of tests that have a row
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"
MARK = re.compile(r"<!-- generated: (.*?) -->|<!-- end -->")


def update(text: str, results: Path) -> str:
    """Returns the text with its generated blocks written again.

    Args:
      text: Markdown.
      results: folder of the results. The block of a missing result names the command that writes it.

    Raises:
      UserError: a block has an unknown name or no end, or a results file is damaged.
    """
    parts, at = [], 0
    name: str | None = None
    for mark in MARK.finditer(text):
        if (name is None) == (mark[1] is None):
            raise UserError(f"{mark[0]}: a block begins with {BEGIN.format('NAME')} and ends with {END}")
        if name is None:
            name = mark[1]
            if name not in BLOCKS:
                raise UserError(f"{mark[0]}: there is no such block; allowed: {', '.join(BLOCKS)}")
            parts.append(text[at : mark.end()])
        else:
            try:
                parts.append(f"\n{BLOCKS[name](results).strip()}\n")
            except KeyError as error:
                raise UserError(f"{BEGIN.format(name)}: a results file for this block lacks {error}") from None
            at, name = mark.start(), None
    if name is not None:
        raise UserError(f"{BEGIN.format(name)}: its {END} is missing")
    return "".join(parts) + text[at:]


def _where(result: Mapping[str, Any]) -> str:
    return f"{result['device']}, commit {result['commit']}"


def _placed(columns: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], Sequence[Any]]]) -> str:
    """Returns a table of rows (device and commit, cells); a device or commit that all rows share stands above it."""
    table_rows, common = [list(cells) for _, cells in rows], []
    columns = list(columns)
    for name in ("device", "commit"):
        values = [where[name] for where, _ in rows]
        if len(set(values)) == 1:
            common.append(f"commit {values[0]}" if name == "commit" else values[0])
        else:
            columns.append(name)
            table_rows = [[*cells, value] for cells, value in zip(table_rows, values, strict=True)]
    return (f"{', '.join(common)}:\n\n" if common else "") + markdown_table(columns, table_rows)


# -- studies -------------------------------------------------------------------------------------------------------


def _commits(environments: Sequence[Mapping[str, Any]]) -> str:
    """Lists the devices with the first and last commit of each."""
    commits = {}
    for one in environments:
        commits.setdefault(one["device"], []).append(one["commit"])
    return "; ".join(f"{device}: {' to '.join(dict.fromkeys((own[0], own[-1])))}" for device, own in commits.items())


def studies(results: Path) -> str:
    """Returns a table of the studies: trials, device, and verdicts counted."""
    rows = []
    for result, folder in results_files.runs(results):
        counts = study.counts(result["claims"])
        where = f"../experiments/results/studies/{folder.parent.name}/{folder.name}/results.md"
        rows.append(
            [
                f"[{result['title']}]({where})",
                result["scale"],
                len(result["trials"]),
                duration(result["seconds_of_training"]),
                *counts,
                _commits(result["environments"]),
            ]
        )
    if not rows:
        return results_files.missing("make studies")
    total = [sum(row[i] for row in rows) for i in (4, 5, 6)]
    rows.append(["all", "", sum(row[2] for row in rows), "", *total, ""])
    return markdown_table(("study", "scale", "trials", "training", *study.VERDICTS, "on, at commit"), rows)


def against(results: Path) -> str:
    """Lists the claims with which a study disagrees, with our numbers."""
    lines = [
        f"- {result['title']}, {result['scale']}: {claim['statement']} Ours: {claim['ours']}."
        for result, _ in results_files.runs(results)
        for claim in result["claims"]
        if claim["verdict"] == study.DISAGREES
    ]
    return "\n".join(lines) or "None, of what has run."


def _of_study(
    name: str, title: str, columns: Sequence[str] = (), scales: Sequence[str] = study.SCALES
) -> Callable[[Path], str]:
    """Returns a block: a study's table with this title, or some of its columns, at each scale that has it."""

    def block(results: Path) -> str:
        lines = []
        for result, _ in results_files.runs(results, (name,)):
            table = next((one for one in result["tables"] if one["title"] == title), None)
            if result["scale"] not in scales or table is None:
                continue
            positions = [i for i, column in enumerate(table["columns"]) if not columns or column in columns]
            columns_shown, *rows = ([row[i] for i in positions] for row in (table["columns"], *table["rows"]))
            lines += [
                f"Scale {result['scale']} ({_commits(result['environments'])}):",
                "",
                markdown_table(columns_shown, rows),
                "",
            ]
        return "\n".join(lines) or results_files.missing(f"python -m experiments.run {name} --scale={scales[0]}")

    return block


# -- other measurements --------------------------------------------------------------------------------------------


def digits(results: Path) -> str:
    """Returns the accuracy of the first training with several seeds."""
    path = results / "digits.json"
    if not path.exists():
        return results_files.missing(content.SEEDS)
    digits = results_files.read(path)
    runs = digits["runs"]
    sentence = (
        f"**{digits['accuracy_mean']:.2%} ± {digits['accuracy_std']:.2%}** of {digits['test_examples']} test images "
        f"by a {digits['model']} of {digits['parameters']:,} parameters ({_where(digits)}):\n\n"
    )
    return sentence + markdown_table(
        ("seed", *(run["seed"] for run in runs)),
        [
            ("test accuracy", *(f"{run['accuracy']:.2%}" for run in runs)),
            ("seconds of training", *(f"{run['seconds']:.1f}" for run in runs)),
        ],
    )


def parity(results: Path) -> str:
    """Returns the differences between logits of imported networks and of their library."""
    path = results / "parity.json"
    if not path.exists():
        return results_files.missing(content.PARITY)
    parity = results_files.read(path)
    errors = [one["relative_error"] for one in parity["networks"]]
    return (
        f"Of {len(errors)} imported networks the logits differ by at most {max(errors):.1e} of the largest, in the "
        f"median by {statistics.median(errors):.1e} ({_where(parity)})."
    )


def speed(results: Path) -> str:
    """Compares training steps and forward passes with the fastest program of PyTorch."""
    cases = {}
    for row in results_files.bench_rows(results):
        if row["what"] in ("step", "forward") and not row["case"].startswith("explain"):
            cases.setdefault((row["case"], row["device"], row["commit"]), {}).setdefault(row["what"], []).append(row)
    rows = []
    for (case, device, commit), calls in cases.items():
        cells = []
        for what in ("step", "forward"):
            ours = [row["ms"] for row in calls.get(what, ()) if row["who"] == "ours"]
            peer = [row["ms"] for row in calls.get(what, ()) if results_files.is_peer(row)]
            cells.append(f"{ours[0]:.4g} / {min(peer):.4g} = {ours[0] / min(peer):.2f}" if ours and peer else "")
        if any(cells):
            rows.append(({"device": device, "commit": commit}, [case, *cells]))
    columns = ("case", "training step, ours / PyTorch, ms", "forward pass, ours / PyTorch, ms")
    return _placed(columns, rows) if rows else results_files.missing(content.BENCH)


def topology(results: Path) -> str:
    """Compares training steps, compiled for accelerators that were not there, with those of plain Flax networks."""
    cases = {}
    for row in results_files.bench_rows(results):
        if row["what"] == ahead.WHAT and "failed" not in row:
            cases.setdefault((row["case"], row["device"], row["commit"]), {})[row["side"]] = row
    rows = []
    for (case, device, commit), sides in cases.items():
        if len(sides) == 2:
            ours, plain = sides["ours"], sides["plain"]
            cells = [
                f"{output.cell(key, ours)} / {output.cell(key, plain)} = {ours[key] / plain[key]:.2f}"
                if plain[key]
                else ""
                for key in ("cycles", "program_mib", "traffic_mib")
            ]
            rows.append(({"device": device, "commit": commit}, [case.rpartition(", compiled")[0], *cells]))
    columns = ("case", "million cycles, ours / plain", "peak MiB, ours / plain", "traffic in MiB, ours / plain")
    return _placed(columns, rows) if rows else results_files.missing(f"{content.BENCH} --topology=v5e:1x1 --blocks=1")


def _calls(what: str, unit: str, value: Callable[[Mapping[str, Any]], str], command: str) -> Callable[[Path], str]:
    """Returns a block: the benchmark's rows of one call."""

    def block(results: Path) -> str:
        rows = [
            (row, [row["case"], row["who"], value(row)])
            for row in results_files.bench_rows(results)
            if row["what"] == what
        ]
        return _placed(("case", "who", unit), rows) if rows else results_files.missing(command)

    return block


def jpegs(results: Path) -> str:
    """Returns speeds of pipelines for JPEGs, per second, and per second of one core where one process does the work."""
    rows = [row for row in results_files.bench_rows(results) if row["what"] == "pass"]
    if not rows:
        return results_files.missing(f"{content.BENCH} --cases=data")
    cells = []
    for row in rows:
        alone = f"{row['per_cpu_second']:.0f}" if "per_cpu_second" in row else ""
        cells.append((row, [row["case"], row["who"], f"{1000 / row['ms']:.0f}", alone]))
    return _placed(("case", "who", "images/s", "images per CPU second"), cells)


def commands(results: Path) -> str:
    """Returns times and memory of imports and of each command's --help."""
    rows = [row for row in results_files.bench_rows(results) if row["what"] in ("import", "--help")]
    if not rows:
        return results_files.missing(f"{content.BENCH} --cases=commands")
    helps = sorted((row for row in rows if row["what"] == "--help"), key=lambda row: row["ms"])
    selected = [(row, row["what"], row["who"]) for row in rows if row["what"] == "import"]
    selected += [
        (row, f"--help, the {which} of {len(helps)}", row["who"])
        for which, row in zip(("fastest", "slowest"), (helps[:1] + helps[-1:]), strict=False)
    ]
    return _placed(
        ("what", "who", "s", "peak MiB"),
        [(row, [what, who, f"{row['ms'] / 1000:.2f}", row["peak_mib"]]) for row, what, who in selected],
    )


def tests(results: Path) -> str:
    """Returns the time of the last `make test`, and the files of tests that took most of it."""
    rows = [row for row in results_files.bench_rows(results) if row["case"] == "tests" and row["what"] != "one test"]
    if not rows:
        return results_files.missing(f"make test; {content.BENCH} --cases=tests")
    return _placed(
        ("tests", "number", "min"),
        [(row, [row["who"], row["samples"], f"{row['ms'] / 60000:.1f}"]) for row in rows[: 1 + LARGEST]],
    )


def smaller(results: Path) -> str:
    """Returns the speedups of whole networks from fewer filters, zeros and packed bits."""
    path = results / "bench" / "smaller" / "smaller.json"
    if not path.exists():
        return results_files.missing("python -m experiments.bench.smaller")
    result = results_files.read(path)
    rows = [
        (
            result,
            [
                row["case"],
                row["program"],
                f"{row['of_mult_adds']:.0%}" if row.get("of_mult_adds") else "bits",
                f"{row['times_faster']:.2f}",
            ],
        )
        for row in result["rows"]
        if row["times_faster"] != 1
        and row["case"].split(",")[0] in models.list_models()
        and row["program"] != "XNOR by floats"
    ]
    return _placed(("network", "program", "of the mult-adds", "times faster"), rows)


def optimizers(results: Path) -> str:
    """Returns what every optimizer learns, whether it resumes, its state and its time."""
    path = results / "bench" / "optimizers" / "optimizers.json"
    if not path.exists():
        return results_files.missing("python -m experiments.bench.optimizers")
    result = results_files.read(path)
    rows = [({**result, **row}, bench_optimizers.cells(row)) for row in result["rows"]]
    return _placed(list(bench_optimizers.COLUMNS.values()), rows)


def skipped(results: Path) -> str:
    """Returns the gain in time of networks that decide per image what to compute."""
    path = results / "bench" / "skipped" / "skipped.json"
    if not path.exists():
        return results_files.missing("python -m experiments.bench.skipped")
    result = results_files.read(path)
    programs = {(row["network"], row["batch"], row["program"]): row for row in result["rows"]}
    rows = [
        (
            result,
            [
                network,
                batch,
                f"{programs[network, batch, 'whole']['accuracy']:.1%}",
                f"{row['accuracy']:.1%}",
                f"{row['of_mult_adds']:.0%}",
                f"{row['times_faster']:.2f}",
            ],
        )
        for (network, batch, program), row in programs.items()
        if program == "skipping"
    ]
    return _placed(("network", "batch", "accuracy, whole", "skipping", "of the mult-adds", "times faster"), rows)


BLOCKS: Mapping[str, Callable[[Path], str]] = {
    "summary": highlights.table,
    "digits": digits,
    "studies": studies,
    "against": against,
    "parity": parity,
    "speed": speed,
    "topology": topology,
    "transfer": _of_study("transfer", "Labels per class", scales=("cifar", "imagenet")),
    "compression": _of_study(
        "compression",
        "Deep compression",
        ("network", "error", "pruned", "file", "weights kept", "float32 (kB)", "file (kB)", "Huffman, times"),
        ("digits",),
    ),
    "adaptive": _of_study("adaptive", "Networks", ("network", "accuracy", "on average", "blocks")),
    "explanation": _of_study("explanation", "Pointing game, the requested one of two objects"),
    "smaller": smaller,
    "optimizers": optimizers,
    "skipped": skipped,
    "commands": commands,
    "tests": tests,
    "start": _calls("start", "s", lambda row: f"{row['ms'] / 1000:.1f}", f"{content.BENCH} --cases=start"),
    "jpegs": jpegs,
}

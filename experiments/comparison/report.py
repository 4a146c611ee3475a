"""The results of a comparison: what is printed, compare.json, compare.md, results.csv and the pictures."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.comparison import results
from experiments.comparison.disagreement import Matrix, Pair
from experiments.comparison.groups import Comparison
from experiments.comparison.runs import printable
from experiments.study import Table
from experiments.sweeps.metric import Metric
from models.analysis.tables import markdown_code, markdown_table, terminal_table

if TYPE_CHECKING:
    import rich.console

FILES = ("results.csv", "compare.json", "compare.md")
MOST_ROWS = 100  # of a table in the terminal
MOST_COLUMNS = 8  # of a matrix in the terminal
MARKUP = re.compile(r"[`*$<\[|\\]")


class Found(NamedTuple):
    """Everything that a comparison found.

    Attributes:
      comparison: The groups.
      metric: The metric by which they are compared.
      tables: The tables of keys and results, in this order; without keys that differ, the second alone.
      notes: Lines that explain the tables.
      matrix: Disagreements of all pairs of groups; None if networks were not opened.
      pair: Disagreements of one pair; None if there is none.
    """

    comparison: Comparison
    metric: Metric
    tables: Sequence[Table]
    notes: list[str]
    matrix: Matrix | None = None
    pair: Pair | None = None


def show(found: Found, console: "rich.console.Console") -> None:
    """Prints the tables of keys and results."""
    *keys, whole = found.tables
    for table in map(results.numbered, keys):
        console.print(terminal_table(table.columns, table.rows[:MOST_ROWS], table.title, len(table.columns)))
    table, lines = results.narrow(whole, console.width)
    console.print(terminal_table(table.columns, table.rows[:MOST_ROWS], table.title))
    if len(table.rows) > MOST_ROWS:
        lines.append(f"the first {MOST_ROWS} of {len(table.rows)} groups; all of them are in compare.md")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def show_disagreements(found: Found, console: "rich.console.Console") -> None:
    """Prints the shares of few groups, and the counts of a pair."""
    if found.matrix and len(found.matrix.groups) <= MOST_COLUMNS:
        table = matrix_table(found.matrix)
        console.print(terminal_table(table.columns, table.rows, table.title))
    if found.pair:
        from experiments.comparison.mosaic import counts_text

        pair = found.pair
        console.print(
            f"A = {pair.first.name} and B = {pair.second.name} differ on {len(pair.differ)} of "
            f"{len(pair.answers[0].places):,} test images: {counts_text(pair)}",
            soft_wrap=True,
            highlight=False,
        )


def matrix_table(matrix: Matrix) -> Table:
    """Returns the table of shares; columns have the numbers of the rows."""
    names = [group.name for group in matrix.groups]
    rows = [
        [f"{i + 1}  {name}", *("—" if math.isnan(share) else f"{share:.1%}" for share in line)]
        for i, (name, line) in enumerate(zip(names, matrix.shares, strict=True))
    ]
    title = "Test images on which the answers differ (diagonal: of two seeds)"
    return Table(title, ["group", *(str(i + 1) for i in range(len(names)))], rows)


def pair_table(pair: Pair) -> Table:
    """Returns the table of the counts of a pair."""
    from experiments.comparison.mosaic import p_text

    columns = ("A", "B", "images", *pair.counts, "answers differ", "McNemar's p")
    row = [pair.first.name, pair.second.name, len(pair.answers[0].places), *pair.counts.values(), len(pair.differ)]
    return Table("Two networks on the test set", columns, [[*row, p_text(pair.p)]])


# -- files ---------------------------------------------------------------------------------------------------


def write(folder: Path, found: Found, command: str) -> dict[str, Any]:
    """Writes pictures and files; returns the content of compare.json.

    Args:
      folder: The folder.
      found: The comparison.
      command: The command, for the page.
    """
    from experiments.comparison import mosaic, pictures
    from experiments.study import figures
    from train.storage.files import write_atomically, write_json

    comparison, metric = found.comparison, found.metric
    drawn = [pictures.curves(comparison, metric), pictures.results(comparison, metric)]
    drawn += [mosaic.of_matrix(found.matrix)] if found.matrix and len(found.matrix.groups) > 2 else []
    drawn += [mosaic.of_pair(found.pair)] if found.pair else []
    content = {
        "command": printable(command),
        "metric": metric.name,
        "keys": list(comparison.keys),
        "groups": [results.record(group, comparison, metric) for group in comparison.groups],
        "disagreements": _disagreements(found),
        "notes": list(found.notes),
        "figures": figures.write(folder, [one for one in drawn if one], pictures.FILES),
    }
    tables = [*found.tables, *([matrix_table(found.matrix)] if found.matrix else [])]
    tables += [pair_table(found.pair)] if found.pair else []
    write_json(folder / "compare.json", content)
    write_atomically(folder / "compare.md", markdown(content, tables))
    results.write_csv(folder / "results.csv", content["groups"])
    return content


def _disagreements(found: Found) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if found.matrix:
        content["groups"] = [group.name for group in found.matrix.groups]
        content["runs"] = [run.name for run in found.matrix.runs]
        content["shares"] = [
            [None if math.isnan(share) else float(share) for share in row] for row in found.matrix.shares
        ]
    if found.pair:
        pair = found.pair
        first, second = pair.answers
        content["pair"] = {
            "groups": [pair.first.name, pair.second.name],
            "runs": [first.run.name, second.run.name],
            "counts": pair.counts,
            "mcnemar_p": pair.p,
            "images": [
                {
                    "index": int(first.places[row]),
                    "class": first.classes[int(first.labels[row])],
                    "answers": [one.classes[int(one.predicted[row])] for one in pair.answers],
                    "probabilities": [round(float(one.confidence[row]), 6) for one in pair.answers],
                }
                for row in pair.differ
            ],
        }
    return content


def markdown(content: Mapping[str, Any], tables: Sequence[Table]) -> str:
    """Returns the page; names and values of configs are code, so that nothing in them is markup."""
    text = ["# Comparison", "", markdown_code(content["command"]), ""]
    for table in tables:
        columns, *rows = ([_cell(cell) for cell in row] for row in (table.columns, *table.rows))
        text += [f"## {table.title}", "", markdown_table(columns, rows), ""]
    text += [line for note in content["notes"] for line in (_cell(note), "")]
    for figure in content["figures"]:
        text += [f"![{Path(figure['file']).stem}]({figure['file']})", "", figure["caption"], ""]
    runs = [
        (_cell(run["run"]), _cell(group["group"]), run["state"]) for group in content["groups"] for run in group["runs"]
    ]
    text += ["## Runs", "", markdown_table(("run", "group", "state"), runs), ""]
    return "\n".join(text)


def _cell(value: Any) -> Any:
    """Returns a value, as code if Markdown would read something into it."""
    return markdown_code(value) if isinstance(value, str) and MARKUP.search(value) else value

"""Tables for the terminal and for Markdown pages, file names from titles, and durations for people."""

import re
from collections.abc import Sequence
from typing import Any

import rich.table
from rich.text import Text


def terminal_table(
    columns: Sequence[Any], rows: Sequence[Sequence[Any]], title: str | None = None, texts: int = 1, lines: bool = False
) -> rich.table.Table:
    """Returns a table for the terminal.

    Args:
      columns: Headers.
      rows: Cells, which are shown literally: "[red]" is no style.
      title: Title above the table.
      texts: Number of leading columns that are aligned left; the others hold numbers and are aligned right.
      lines: Whether to draw a line between rows.
    """
    table = rich.table.Table(title=title, title_justify="left", show_lines=lines)
    for i, column in enumerate(columns):
        table.add_column(str(column), justify="left" if i < texts else "right")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def markdown_table(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table in Markdown, in which "|" in cells is escaped and a cell is one line."""

    def line(row):
        return "| " + " | ".join(" ".join(str(cell).splitlines()).replace("|", "\\|") for cell in row) + " |"

    return "\n".join(line(row) for row in (columns, ["---"] * len(columns), *rows))


def markdown_code(text: str) -> str:
    """Returns a text as code in Markdown, in which nothing is markup: neither `*` nor `$`, `<`, `[` or backticks."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def slug(text: str) -> str:
    """Returns a file name for a title: "Top-1, by depth" becomes "top_1_by_depth"."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def duration(seconds: float) -> str:
    """Returns seconds for people: "41 s", "5 min 12 s", "3 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

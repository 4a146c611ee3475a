"""Tables for the terminal and for Markdown pages, and file names from titles."""

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
    """Returns a table in Markdown, in which "|" in cells is escaped."""

    def line(row):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"

    return "\n".join(line(row) for row in (columns, ["---"] * len(columns), *rows))


def slug(text: str) -> str:
    """Returns a file name for a title: "Top-1, by depth" becomes "top_1_by_depth"."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")

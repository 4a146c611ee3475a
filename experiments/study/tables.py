"""Tables that several studies share: one row per group of trials, one cell per number."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.study import Outcomes, Table
from experiments.study.verdicts import spread

Cell = Callable[[Outcomes], Any]


def of_summary(name: str, percent: bool = True, digits: int = 1) -> Cell:
    """Returns a cell that shows the mean and standard deviation of a number from the summaries."""
    return lambda group: spread(group.values(name), percent, digits)


def count_of(name: str) -> Cell:
    """Returns a cell that shows an integer from the first summary, with commas; "—" if all runs diverged."""
    return lambda group: next((f"{o.summary[name]:,}" for o in group if o.summary), "—")


accuracy = of_summary("accuracy")


def table_by(title: str, outcomes: Outcomes, labels: Mapping[str, str], cells: Mapping[str, Cell]) -> Table:
    """Returns a table with one row for each combination of labels.

    Args:
      title: Title of the table.
      outcomes: Outcomes; those without one of the labels are left out.
      labels: Heading of each label's column, by label.
      cells: The other columns: heading, and the function of a group that returns the cell.
    """
    rows: Sequence[Sequence[Any]] = [
        [*key, *(cell(group) for cell in cells.values())] for key, group in outcomes.groups(*labels)
    ]
    return Table(title, [*labels.values(), *cells], rows)

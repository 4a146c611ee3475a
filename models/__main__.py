"""Lists networks with their sources and costs. See --help."""

import contextlib
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import models
from models import command
from models.analysis.tables import terminal_table
from models.errors import UserError, nearest

USAGE = """Lists the networks that models.create makes: name, paper, libraries whose weights they take, input,
parameters and mult-adds.

    python -m models
    python -m models "*resnet*"
    python -m models resnet50

A pattern is one of file names: * stands for any text, ? for one letter. One network is listed with its fields, which
--config.model.FIELD=VALUE and models.create(NAME, FIELD=VALUE) set, and with its maps (models.pyramid).
`python -m models.analysis NAME` has its layers.
"""
TABLE = Path(__file__).with_name("networks.csv")  # written by `make report`, because counting costs takes minutes
COLUMNS = ("name", "source", "weights of", "input", "parameters", "mult-adds")


def matching(pattern: str) -> list[str]:
    """Returns the names that match a pattern; raises UserError if none does."""
    names = models.list_models(pattern)
    if not names:
        inside = f"*{pattern.strip('*')}*"
        count = len(models.list_models(inside))
        hint = f"; '{inside}' matches {count}" if count else nearest(pattern, models.list_models())
        raise UserError(f"no network is named '{pattern}'{hint or '; python -m models lists all'}")
    return names


def _act(options: flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(
            f"expected one pattern, not {len(arguments)}: put it in quotes, e.g. python -m models '*resnet*'"
        )
    names = matching(*arguments) if arguments else models.list_models()
    with TABLE.open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    cells = [[rows.get(name, {"name": name}).get(column, "") for column in COLUMNS] for name in names]
    console = command.console(width=None if sys.stdout.isatty() else 160)
    console.print(terminal_table(COLUMNS, cells, texts=4))
    if len(names) > 1:
        console.print(f"{len(names)} networks")
        return
    console.print(f"fields: {', '.join(models.fields(names[0]))}")
    with contextlib.suppress(UserError):  # a network without maps has none
        levels = models.pyramid(models.create(names[0])).levels
        maps = ", ".join(f"{level.name} {level.stride} x {level.channels}" for level in levels)
        console.print(f"maps, stride x channels: {maps}", soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code: 0 for success, 2 for a user's mistake."""
    return command.run_argv(argv, USAGE, lambda options: None, _act)


if __name__ == "__main__":
    command.exit_with(lambda: main(sys.argv))

"""Averages the weights of checkpoints of one or several runs. See --help."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich.table
from absl import flags

from models import command
from models.errors import UserError
from train import cli

USAGE = """Averages the weights of checkpoints of one or several runs of the same network ("model soups").

    python -m train.average runs/x --checkpoints=all --out=runs/averaged
    python -m train.average runs/seed0 runs/seed1 runs/seed2 --greedy --out=runs/soup

Runs that start from the same weights (config.init_from) usually have averages that are better than each of them; runs
from scratch do not. With --greedy, checkpoints are sorted by their accuracy and added one after the other, as long as
the average is no worse. They are compared on the images that data.train_split leaves out ("train_fit", "train[:90%]"),
or on --split; without either, on the test split, which a line says. Batch-norm statistics are estimated anew.

--out is the folder of a run, which python -m train.predict, train.export and config.init_from take; average.json in it
says what was averaged.
"""


def main(argv: list[str]) -> None:
    """Averages, evaluates, prints and writes."""
    if len(argv) < 2:
        raise UserError("name the folders of RUNS; see --help")
    if not OUT.value:
        raise UserError("--out is missing, e.g. --out=runs/averaged")
    from train import soup  # imports Orbax, which --help does not need

    console, out = command.console(), Path(OUT.value)
    soup.check_out(out)
    members = soup.read(argv[1:], CHECKPOINTS.value)
    split, line = soup.selection_split(members.network, SPLIT.value)
    kitchen = soup.Kitchen(members, split, BATCHES.value)
    if line:
        console.print(f"warning: {line}", soft_wrap=True, highlight=False)
    variables, report = kitchen.cook(GREEDY.value)
    soup.write(members, variables, report, out)
    console.print(table(report))
    console.print(f"written to {out}", soft_wrap=True, highlight=False)


def table(report: Mapping[str, Any]) -> rich.table.Table:
    """Returns the members and their average as a table for the terminal."""
    table = rich.table.Table()
    for column in ("weights", f"{report['metric']}, {report['split']}", f"{report['metric']}, test", "in the average"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for row in report["rows"]:
        kept = "" if row["name"] == "average" else "yes" if row["kept"] else "no"
        table.add_row(row["name"], f"{row['score']:.2%}", f"{row['test']:.2%}", kept)
    return table


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    GREEDY = flags.DEFINE_bool("greedy", False, "Leave out checkpoints that make the average worse.")
    CHECKPOINTS = flags.DEFINE_string("checkpoints", "last", "Of each run: last, best (on its test set), or all kept.")
    SPLIT = flags.DEFINE_string("split", "", "Split on which checkpoints are compared.")
    BATCHES = flags.DEFINE_integer(
        "batches", 0, "Training batches for batch-norm statistics; 0 for an epoch.", lower_bound=0
    )
    OUT = command.define_path("out", None, "Folder to write.")
    cli.run(main, USAGE, positional=True)

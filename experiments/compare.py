"""Compares runs: curves, tables, disagreements. See --help."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from models import command
from models.errors import UserError
from train import cli

if TYPE_CHECKING:  # --help does not need them
    import rich.console


USAGE = """Compares runs: their curves with the spread over seeds, the config keys and the results in which they differ,
and the test images on which their networks disagree.

    python -m experiments.compare runs/batch runs/group
    python -m experiments.compare runs/batch0 runs/batch1 runs/group0 runs/group1 --names=batch,group
    python -m experiments.compare runs                                          every run in a folder
    python -m experiments.compare runs/sweeps/lr --pair=1,3                     a sweep
    python -m experiments.compare experiments/results/studies/depth/digits      the trials of a study, by their labels
    python -m experiments.compare runs --metric=loss --first=2 --nodisagreements --out=compared

Runs that differ only by the seed, or by keys such as log_every that do not affect results, form a group. The groups are
compared with the first one. Unfinished runs are shown as far as they go. Damaged ones are named and left out.

Pictures and tables go to --out: curves.png, results.png, disagreement.png, disagreements.png, results.csv, compare.json
and compare.md.
"""


class Options(NamedTuple):
    """Options of a comparison.

    Attributes:
      out: Folder of the results.
      names: Names of the groups; () for names made of the keys that differ.
      first: Name or number of the group with which the others are compared; "" for the first.
      metric: Name of the metric; "" for the default.
      pair: "A,B", two groups whose disagreements are shown image by image; "" for the only two groups.
      disagreements: Whether networks are opened to see where they disagree.
      checkpoint: Checkpoint of the networks, "last" or "best".
    """

    out: Path
    names: Sequence[str] = ()
    first: str = ""
    metric: str = ""
    pair: str = ""
    disagreements: bool = True
    checkpoint: str = "last"


def main(arguments: Sequence[str]) -> None:
    """Compares the runs that the arguments name."""
    if len(arguments) < 2:
        raise UserError("name runs, or folders with runs in them, such as runs/batch runs/group; see --help")
    if PAIR.value and not DISAGREEMENTS.value:
        raise UserError("--pair and --nodisagreements exclude each other")
    options = Options(
        Path(OUT.value), NAMES.value, FIRST.value, METRIC.value, PAIR.value, DISAGREEMENTS.value, CHECKPOINT.value
    )
    text = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    compare(arguments[1:], options, command.console(), text)


def compare(paths: Sequence[str], options: Options, console: "rich.console.Console", text: str = "") -> dict[str, Any]:
    """Compares runs, prints the tables, and writes the results.

    Args:
      paths: Runs, folders with runs in them, and ledgers.
      options: The options.
      console: Console for the tables.
      text: The command, for the results.

    Returns:
      The content of compare.json.

    Raises:
      UserError: There is nothing to compare, or an option does not fit the runs.
    """
    from experiments.comparison import arguments, disagreement, groups, report, results
    from experiments.study import page

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    def warn(line: str) -> None:
        left_out.append(line)
        say(f"warning: {line}")

    left_out: list[str] = []
    comparison = groups.of(arguments.read(paths, warn), options.names, options.first)
    metric = results.choose(comparison.runs, options.metric)
    asked = comparison.pair(options.pair) if options.pair else None
    folder = page.writable(options.out)
    found = report.Found(comparison, metric, results.tables(comparison, metric), results.notes(comparison, metric))
    report.show(found, console)
    if options.disagreements and len(comparison.groups) > 1:
        with console.status("opening networks"):
            matrix, pair = disagreement.find(comparison, asked, options.checkpoint, found.notes.append)
        found = found._replace(matrix=matrix, pair=pair)
        report.show_disagreements(found, console)
    for line in found.notes:
        say(line)
    content = report.write(folder, found._replace(notes=[*left_out, *found.notes]), text)
    say(f"written to {folder}: {', '.join(figure['file'] for figure in content['figures'])}, {', '.join(report.FILES)}")
    return content


if __name__ == "__main__":  # flags are defined only here, because absl has one table of them per process
    OUT = command.define_path("out", "compare", "Folder of the results.")
    NAMES = flags.DEFINE_list("names", [], "Names of the groups, in their order; default: the keys that differ.")
    FIRST = flags.DEFINE_string("first", "", "Name or number of the group with which the others are compared.")
    METRIC = flags.DEFINE_string("metric", "", "Number of summary.json to compare by; default: accuracy, BLEU or loss.")
    PAIR = flags.DEFINE_string(
        "pair", "", "A,B: names or numbers of two groups whose disagreements are drawn; default: the only two groups."
    )
    DISAGREEMENTS = flags.DEFINE_bool("disagreements", True, "Open the networks, and show where they disagree.")
    CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Checkpoint of the networks.")
    command.define_figures()
    cli.run(main, USAGE, positional=True)

"""Builds the report of all results. See --help."""

from pathlib import Path

import rich.console
from absl import flags

from train import cli

USAGE = """Builds the page of all results: report/index.html, complete in itself, and the same as report/report.md.

    python -m experiments.report
    python -m experiments.report --results=experiments/results --out=report

Reads what `experiments.run`, `experiments.costs`, `experiments.bench`, `experiments.seeds` and the check of weights
have written under --results, and trains nothing. What is not there is named with the command that makes it.
"""


def main() -> None:
    """Reads, and writes the two pages."""
    from experiments.report import content, render

    out = Path(OUT.value)
    render.write(content.gather(Path(RESULTS.value), out / render.PICTURES), out)
    rich.console.Console().print(f"written to {out / 'index.html'} and {out / 'report.md'}", soft_wrap=True)


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    RESULTS = flags.DEFINE_string("results", "experiments/results", "Folder of the results.")
    OUT = flags.DEFINE_string("out", "report", "Folder to write to.")
    cli.run(main, USAGE)

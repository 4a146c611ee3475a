"""Builds the report of all results. See --help."""

from pathlib import Path

from models import command
from models.errors import UserError
from train import cli

USAGE = """Builds the page of all results: report/index.html, complete in itself, and the same as report/report.md.

    python -m experiments.report
    python -m experiments.report --results=experiments/results --out=report
    python -m experiments.report --readme=README.md         and the generated blocks of that file

Reads what `experiments.run`, `experiments.seeds`, `experiments.bench`, `experiments.bench.costs` and the check of
weights have written under --results, and trains nothing. What is not there is named with the command that makes it.
"""


def main() -> None:
    """Reads, and writes the two pages and the blocks of the README."""
    from experiments.report import content, readme, render
    from train.storage.files import write_atomically

    out = Path(OUT.value)
    render.write(content.gather(Path(RESULTS.value), out / render.PICTURES), out)
    command.console().print(f"written to {out / 'index.html'} and {out / 'report.md'}", soft_wrap=True)
    if README.value:
        path = Path(README.value)
        if not path.is_file():
            raise UserError(f"--readme={path}: there is no such file")
        write_atomically(path, readme.update(path.read_text(), Path(RESULTS.value)))


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    RESULTS = command.define_path("results", "experiments/results", "Folder of the results.")
    OUT = command.define_path("out", "report", "Folder to write to.")
    README = command.define_path("readme", "", "Markdown file whose blocks <!-- generated: NAME --> are made anew.")
    cli.run(main, USAGE)

"""Builds the report of all results. See --help."""

from pathlib import Path

from models import command
from models.errors import UserError
from train import cli

USAGE = """Builds a self-contained page of all results, report/index.html, and the same as report/report.md.

    python -m experiments.report
    python -m experiments.report --results=experiments/results --out=report
    python -m experiments.report --readme=README.md         also updates the generated blocks of that file

Reads the files that `experiments.run`, `experiments.seeds`, `experiments.bench`, `experiments.bench.costs` and the
check of weights have written under --results, and trains nothing. The page names missing results with their command.
"""


def main() -> None:
    """Reads the results, and writes the two pages and the blocks of the README."""
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
    README = command.define_path("readme", "", "Markdown file whose blocks <!-- generated: NAME --> are regenerated.")
    cli.run(main, USAGE)

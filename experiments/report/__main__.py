"""Builds the report of all results. See --help."""

from pathlib import Path

from models import command
from models.errors import UserError
from train import cli

USAGE = """Builds a self-contained page of all results, report/index.html, and the same as report/report.md.

    python -m experiments.report
    python -m experiments.report --results=experiments/results --out=report
    python -m experiments.report --readme=README.md         and the generated blocks of that file
    python -m experiments.report --docs=docs                and those of a folder, configs.md and models.md (minutes)

Reads the files that `experiments.run`, `experiments.sweep`, `experiments.bench`, `experiments.bench.costs` and the
check of weights have written under --results, and trains nothing. The page names missing results with their command.
"""


def main() -> None:
    """Reads, and writes the two pages, the blocks of other pages, and the reference."""
    from experiments.report import content, readme, render
    from train.storage.files import write_atomically

    out = Path(OUT.value)
    render.write(content.gather(Path(RESULTS.value), out / render.PICTURES), out)
    command.console().print(f"written to {out / 'index.html'} and {out / 'report.md'}", soft_wrap=True)
    pages = [Path(README.value)] if README.value else []
    if README.value and not pages[0].is_file():
        raise UserError(f"--readme={pages[0]}: there is no such file")
    if DOCS.value:
        docs = Path(DOCS.value)
        if not docs.is_dir():
            raise UserError(f"--docs={docs}: there is no such folder")
        from experiments.report import errors, reference

        write_atomically(docs / "configs.md", reference.configs_page())
        networks = reference.networks()
        write_atomically(docs / "models.md", reference.models_page(networks))
        write_atomically(reference.ROOT / "models" / "networks.csv", reference.networks_csv(networks))
        write_atomically(docs / "errors.md", errors.page())
        pages += sorted(docs.glob("*.md"))
    for path in pages:
        write_atomically(path, readme.update(path.read_text(), Path(RESULTS.value)))


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    RESULTS = command.define_path("results", "experiments/results", "Folder of the results.")
    command.define_figures()
    OUT = command.define_path("out", "report", "Folder to write to.")
    README = command.define_path("readme", "", "Markdown file whose blocks <!-- generated: NAME --> are made anew.")
    DOCS = command.define_path(
        "docs", "", "Folder of Markdown files: their blocks, configs.md, models.md and errors.md."
    )
    cli.run(main, USAGE)

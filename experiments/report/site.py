"""The documentation as a static site: pages, what they link to, and the API from docstrings. See --help."""

import html.parser
import importlib.util
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jinja2
import markdown_it
import markupsafe

from models import command
from models.errors import UserError
from train import cli

USAGE = """Builds the documentation as one static site, and fails if a link in it leads nowhere.

    python -m experiments.report.site
    python -m experiments.report.site --out=build/docs --noapi     the pages alone, without pdoc

The site has README.md, CONTRIBUTING.md, CHANGELOG.md, the pages of docs/, the files that they link to, and in api/ the
docstrings of models, train and experiments, which need pdoc: pip install -e '.[docs]', or `make docs`.
Links between pages, to headings, to files and within the API are followed. Broken ones are listed; the exit code is 2.
"""
ROOT = Path(__file__).parents[2]
ROOMS = ("models", "train", "experiments")
AT_TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
# Workers of benchmarks that run in other environments; left out of the API where their library is missing
WORKERS = {
    "experiments.bench.peer": "torch",
    "experiments.bench.peer_speedrun": "torch",
    "experiments.bench.tf_data": "tensorflow",
}
PARSER = markdown_it.MarkdownIt("commonmark").enable("table")


# -- pages -------------------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """Returns the anchor that a forge gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def address(path: Path) -> Path:
    """Returns where a file or folder of the repository is in the site."""
    if path.suffix == ".md":
        return path.with_name("index.html") if path.name == "README.md" else path.with_suffix(".html")
    return path


def write_pages(root: Path, out: Path, with_api: bool) -> None:
    """Writes the pages, and the files and folders of the repository that they link to."""
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, autoescape=True
    ).get_template("site.html")
    pages = [Path(name) for name in AT_TOP] + sorted(path.relative_to(root) for path in (root / "docs").glob("*.md"))
    contents = [(address(page).as_posix(), page.as_posix().removesuffix(".md")) for page in pages]
    contents += [(f"api/{room}.html", f"api: {room}") for room in ROOMS if with_api]
    written, left = set(), list(pages)
    while left:
        page = left.pop()
        if page in written:
            continue
        written.add(page)
        target = out / address(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix != ".md":
            _copy(root / page, target)
            continue
        body, links = rendered((root / page).read_text())
        up = "../" * (len(page.parts) - 1)
        target.write_text(template.render(title=page.as_posix(), body=body, up=up, contents=contents))
        for link in links:
            path = (root / page.parent / link).resolve()
            if path.exists() and path.is_relative_to(root):
                left.append(path.relative_to(root))


def _copy(source: Path, target: Path) -> None:
    """Copies a file, or the files of a folder with a list of them."""
    if source.is_file():
        shutil.copyfile(source, target)
        return
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    names = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    items = markupsafe.Markup("\n").join(markupsafe.Markup('<li><a href="{0}">{0}</a></li>').format(n) for n in names)
    (target / "index.html").write_text(f"<!doctype html>\n<title>{source.name}</title>\n<ul>\n{items}\n</ul>\n")


def rendered(text: str) -> tuple[markupsafe.Markup, list[str]]:
    """Returns a page as HTML, with anchors and with links to other pages' HTML, and the paths that it links to."""
    tokens, paths = PARSER.parse(text), []
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            token.attrSet("id", anchor(following.content))
        for child in token.children or ():
            for name in ("href", "src"):
                parts = urlsplit(str(child.attrs.get(name, "")))
                if parts.path and not parts.scheme:
                    paths.append(unquote(parts.path))
                    path = address(Path(parts.path)).as_posix()
                    child.attrSet(name, f"{path}#{parts.fragment}" if parts.fragment else path)
    return markupsafe.Markup(PARSER.renderer.render(tokens, PARSER.options, {})), paths


# -- API ---------------------------------------------------------------------------------------------------------------


def write_api(out: Path) -> list[str]:
    """Writes the docstrings of every module by pdoc, and returns the modules that it cannot import.

    Raises:
      UserError: pdoc is missing.
    """
    try:
        import pdoc  # pyright: ignore[reportMissingImports]  the extra docs has it
        import pdoc.render  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("pdoc is missing: pip install -c constraints.txt -e '.[docs]', or --noapi") from None
    left_out = [name for name, library in WORKERS.items() if importlib.util.find_spec(library) is None]
    pdoc.render.configure(docformat="google", show_source=False, footer_text="ablate")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        pdoc.pdoc(*ROOMS, *(f"!{name}" for name in left_out), output_directory=out)
    lines = [str(warning.message).splitlines()[0].rstrip(":") for warning in caught]
    return [line for line in lines if line.startswith("Couldn't import") and line.split()[-1] not in left_out]


# -- links -------------------------------------------------------------------------------------------------------------


class _Links(html.parser.HTMLParser):
    """A collector of the links of a page, and of the anchors that it has."""

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {"", "top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(out: Path) -> Iterator[str]:
    """Yields "PAGE: LINK" for each link of a site that leads to no file or no anchor in it."""
    pages: dict[Path, _Links] = {}
    for path in sorted(out.rglob("*.html")):
        pages[path] = _Links()
        pages[path].feed(path.read_text())
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            if not parts.path and path.is_relative_to(out / "api"):
                continue  # pdoc's list of a module's members names inherited ones that it does not show
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else {"", parts.fragment}
            if not target.exists() or unquote(parts.fragment) not in known:
                yield f"{path.relative_to(out)}: {link}"


def build(root: Path, out: Path, with_api: bool = True) -> list[str]:
    """Writes the site into the folder `out`, in place of an earlier one, and returns its faults, one line each."""
    if (out / "index.html").exists():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"--out={out}: this folder holds something else")
    out = out.resolve()
    write_pages(root, out, with_api)
    faults = write_api(out / "api") if with_api else []
    return faults + sorted(set(broken(out)))


def main() -> None:
    """Builds the site and reports its faults."""
    out = Path(OUT.value)
    faults = build(ROOT, out, API.value)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        raise UserError(f"{len(faults)} links or modules of the documentation are broken")
    pages = len(list(out.rglob("*.html")))
    command.console().print(f"written to {out / 'index.html'}: {pages} pages, no broken links", soft_wrap=True)


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    from absl import flags

    OUT = command.define_path("out", "build/docs", "Folder of the site.")
    API = flags.DEFINE_bool("api", True, "Whether to add the API reference.")
    cli.run(main, USAGE)

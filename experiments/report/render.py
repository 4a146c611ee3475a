"""Writing a report as one self-contained HTML page, and as Markdown with its pictures beside it."""

import base64
import re
import shutil
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markdown_it
import markdown_it.renderer
import markupsafe
from PIL import Image

from experiments import study
from experiments.report import marks
from experiments.report.blocks import Figure, Page, Report
from models.errors import UserError

PICTURES = "pictures"  # folder for the pictures of the Markdown, inside the report's folder
NUMBER = re.compile(r"[<>≈~]?[+−-]?\d[\d.,]*(e[+-]?\d+)?( ± [\d.,]+)?( ?(%|ms|s|[kMGT]?i?B|[kMGT]))?( \(.*diverged\))?")
LONG = 24  # least number of rows of a table that gets a box of limited height
WORD = 40  # greatest number of letters of a word that no line breaks
BLANK = ("", "—", "-", "diverged")
BADGES = dict(zip(study.VERDICTS, ("agrees", "disagrees", "unclear"), strict=True))  # classes in style.css


def write(report: Report, out: Path) -> None:
    """Writes index.html and report.md into the folder, and the pictures of report.md below it."""
    from train.storage.files import write_atomically

    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=lambda name: name is not None and name.endswith(".html"),
    )
    edges = tuple(marks.place(clear) for clear in (-marks.BAND, marks.BAND))
    pages.globals |= {"long": LONG, "edges": edges}
    pages.filters |= {
        "zoomable": zoomable,
        "page_html": page_html,
        "badge": BADGES.__getitem__,
        "numeric": numeric,
        "css_class": css_class,
        "unbroken": unbroken,
        "stacked": stacked,
        "escaped": escaped,
        "copied": lambda figure: copied(figure.file, out / PICTURES / figure.name),
        "page_markdown": lambda page, level: page_markdown(page, level, out / PICTURES),
    }
    counts = [(verdict, sum(claim.verdict == verdict for claim in report.claims)) for verdict in study.VERDICTS]
    for template, name in (("page.html", "index.html"), ("page.md", "report.md")):
        write_atomically(out / name, pages.get_template(template).render(report=report, counts=counts))


# -- tables --------------------------------------------------------------------------------------------------------


def numeric(rows: Sequence[Sequence[Any]]) -> list[bool]:
    """Returns for each column whether all cells are numbers, at most with a unit or a spread."""
    columns = [[str(cell).strip() for cell in column] for column in zip(*rows, strict=True)]
    return [
        any(cell not in BLANK for cell in column) and all(cell in BLANK or NUMBER.fullmatch(cell) for cell in column)
        for column in columns
    ]


def css_class(cell: Any, is_numeric: bool) -> str:
    """Returns the class in style.css of a cell: a number, or a text with a word too long for a line; "" for others."""
    return "number" if is_numeric else "broken" if any(len(word) > WORD for word in str(cell).split()) else ""


def unbroken(text: str) -> str:
    """Returns the text without line breaks between a number and its spread or percent sign."""
    return re.sub(r"(?<=±) | (?=[±%])", "\N{NO-BREAK SPACE}", text)


def stacked(effect: str) -> markupsafe.Markup:
    """Returns an effect with its interval, which stays in one line."""
    start, bracket, rest = effect.partition(" [")
    return markupsafe.Markup("<b>{}</b>{}").format(
        start, markupsafe.Markup(" <i>[{}</i>").format(rest) if bracket else ""
    )


def escaped(text: Any) -> str:
    """Escapes a text for one line of Markdown or a cell of its tables."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", " ".join(str(text).split()))


# -- pictures ------------------------------------------------------------------------------------------------------


def _picture(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: this picture of the results is missing; run the command that draws it again")
    return path


def embedded(path: Path) -> str:
    """Returns the picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(_picture(path).read_bytes()).decode()


def size(path: Path) -> tuple[int, int]:
    """Returns width and height in pixels."""
    try:
        with Image.open(_picture(path)) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{path}: this picture of the results is damaged: {error}") from None


def copied(path: Path, target: Path) -> str:
    """Copies the picture, and returns its address relative to the Markdown."""
    if path.resolve() != target.resolve():
        shutil.copyfile(_picture(path), target)
    return urllib.parse.quote(f"{PICTURES}/{target.name}")


# -- pages written by other commands ------------------------------------------------------------------------


def page_html(page: Page, level: int) -> markupsafe.Markup:
    """Returns the page as HTML: its "##" become headings of `level`, its tables and pictures match the report's."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(page.text)
    for i, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) - 2 + level, 6)}"
        if token.type == "table_open":
            table = tokens[i : next(j for j in range(i, len(tokens)) if tokens[j].type == "table_close")]
            token.meta["rows"] = _align(table)

    def picture(rendered, index, *_):
        image = rendered[index]
        path = page.folder / image.attrs["src"]
        return zoomable(Figure(path, path.name, image.content, ""))

    def box(rendered, index, *_):
        return f'<div class="scroll{" long" * (rendered[index].meta["rows"] > LONG)}" tabindex="0"><table>'

    renderer = parser.renderer
    assert isinstance(renderer, markdown_it.renderer.RendererHTML)
    rules: dict[str, Any] = {"table_open": box, "table_close": lambda *_: "</table></div>", "image": picture}
    renderer.rules = {**renderer.rules, **rules}
    return markupsafe.Markup(renderer.render(tokens, parser.options, {}))


def _align(tokens: Sequence[Any]) -> int:
    """Marks the cells of a table's numeric columns; returns the number of its rows."""
    rows = []
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("th_open", "td_open"):
            rows[-1].append((token, tokens[i + 1].content))
    for column, is_numeric in enumerate(numeric([[text for _, text in row] for row in rows[1:]])):
        for token, text in (row[column] for row in rows):
            if name := css_class(text, is_numeric):
                token.attrJoin("class", name)
    return len(rows) - 1


def zoomable(figure: Figure) -> markupsafe.Markup:
    """Returns the picture, embedded; a click or the space bar shows it at full size."""
    width, height = size(figure.file)
    return markupsafe.Markup(
        '<span class="card"><label><input type="checkbox" aria-label="full size: {alt}">'
        '<img src="{source}" alt="{alt}" width="{width}" height="{height}" style="--pixels: {width}px"></label></span>'
    ).format(alt=figure.alt, source=embedded(figure.file), width=width, height=height)


def page_markdown(page: Page, level: int, pictures: Path) -> str:
    """Returns the page with its headings moved below `level`, and its pictures copied."""

    def heading(match):
        return "#" * (len(match[1]) - 2 + level) + " "

    def picture(match):
        return f"![{match[1]}]({copied(page.folder / match[2], pictures / f'{page.name}-{match[2]}')})"

    return re.sub(r"!\[(.*?)\]\((.*?)\)", picture, re.sub(r"^(#{2,}) ", heading, page.text, flags=re.M))

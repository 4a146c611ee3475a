"""Figures: one style for all of them, and one way to write them.

`figure` applies models/analysis/paper.mplstyle, and writes a PNG for pages. `formats`, or a command's flag --figures,
adds files for papers.
"""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import rc_context, style
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter

from models.command import figure_formats

STYLE = Path(__file__).with_name("paper.mplstyle")
WITHOUT_DATE = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # the same figure gives the same bytes
_FORMATS: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("formats", default=())


@contextlib.contextmanager
def formats(names: Sequence[str]) -> Iterator[None]:
    """Makes `figure` write these formats, too, such as "pdf" and "svg", beside the file that it writes."""
    token = _FORMATS.set(tuple(names))
    try:
        yield
    finally:
        _FORMATS.reset(token)


@contextlib.contextmanager
def figure(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yields a figure to draw into, in the style of the project, and writes it at the end.

    Args:
      path: File; its suffix determines the format.
      size: Width and height in inches. Panels are laid out automatically.

    Raises:
      OSError: The file cannot be written; the error names it.
      ValueError: Matplotlib does not know the format.
    """
    with rc_context(), warnings.catch_warnings():
        # Characters that no font of this machine has are drawn as boxes; texts outside the figure show them
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        style.use(STYLE)
        current = Figure(figsize=size, layout="constrained")
        yield current
        for suffix in dict.fromkeys(
            (Path(path).suffix, *(f".{name}" for name in (*_FORMATS.get(), *figure_formats())))
        ):
            save(current, Path(path).with_suffix(suffix))


def save(current: Figure, path: str | Path) -> None:
    """Writes a figure with its texts shown literally: a class called `$1` is not mathematics.

    Args:
      current: Figure to write.
      path: File; its suffix determines the format.

    Raises:
      OSError: The file cannot be written; the error names it.
    """
    powers = set()  # labels such as 10², which Matplotlib writes as mathematics
    for axes in current.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, LogFormatter):
                powers |= {*axis.get_ticklabels(which="both"), axis.offsetText}
            elif isinstance(formatter, FuncFormatter):  # formats labels that were set as texts
                axis.set_major_formatter(lambda *position, write=formatter: _printable(str(write(*position))))
    for text in current.findobj(Text):
        if text not in powers:
            text.set_parse_math(False)
            text.set_text(_printable(text.get_text()))
    try:
        current.savefig(path, metadata=WITHOUT_DATE.get(Path(path).suffix))
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _printable(text: str) -> str:
    """Returns a text in which bytes that are not UTF-8 (surrogates in file names) are escaped."""
    return text.encode(errors="backslashreplace").decode()

"""The boundary to bytes that somebody else wrote: whatever a reader raises becomes one line, and sizes have limits."""

import contextlib
import os
from collections.abc import Iterator

from models.errors import UserError

LONGEST = 400  # characters of a line
FREE, RATIO = 1 << 28, 100  # a file may hold arrays of FREE bytes, or of RATIO times its own


class Damaged(ValueError):
    """Bytes that no writer of the format makes, or that are not read here; the text does not name the file."""


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Turns every exception of the block into a UserError of one line that begins with the path.

    This is the one place that catches all exceptions: decoders of damaged bytes raise whatever they stumble over.

    Args:
      path: the file that the block reads.
      kind: the format that the file should have, e.g. ".npz".
    """
    try:
        yield
    except UserError:
        raise
    except Damaged as error:
        raise UserError(one_line(f"{path}: {error}")) from None
    except OSError as error:
        raise UserError(one_line(f"{path}: cannot be read: {error.strerror or error}")) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {_text(error)}"
        raise UserError(one_line(f"{path}: damaged, or no {kind} file ({reason})")) from None


def one_line(text: str) -> str:
    """Returns the text without line breaks and characters that a terminal may not show, cut to LONGEST characters."""
    shown = "".join(character if character.isprintable() else "?" for character in " ".join(text[:10_000].split()))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def most_bytes(file_size: int) -> int:
    """Returns how many bytes a file of `file_size` bytes may hold once it is unpacked."""
    return max(FREE, RATIO * file_size)


def check_size(size: int, file_size: int) -> None:
    """Raises Damaged where contents of `size` bytes are too many for a file of `file_size` bytes."""
    if size > most_bytes(file_size):
        raise Damaged(
            f"its contents would take {size:,} bytes; allowed: {FREE:,}, or {RATIO} times the {file_size:,} "
            "bytes of the file"
        )


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # __str__ of a foreign exception
        return "no message"

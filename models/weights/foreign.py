"""The boundary to foreign files: errors of readers become one line, and sizes have limits."""

import contextlib
import os
from collections.abc import Iterator

from models.errors import UserError

LONGEST = 400  # maximum characters of a line
FREE, RATIO = 1 << 28, 100  # a file may unpack to FREE bytes, or to RATIO times its size


class Damaged(ValueError):
    """A file is damaged or not supported; the text does not name the file."""


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str) -> Iterator[None]:
    """Converts every exception of the block to a UserError of one line that starts with the path.

    It catches all exceptions, because decoders of damaged bytes may raise any of them.

    Args:
      path: File that the block reads.
      kind: Expected format of the file, e.g. ".npz".
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
        raise UserError(one_line(f"{path}: damaged, or not a {kind} file ({reason})")) from None


def one_line(text: str) -> str:
    """Returns the text without line breaks and unprintable characters, truncated to LONGEST characters."""
    printable = "".join(character if character.isprintable() else "?" for character in " ".join(text[:10_000].split()))
    return printable if len(printable) <= LONGEST else f"{printable[: LONGEST - 1]}…"


def most_bytes(file_size: int) -> int:
    """Returns the maximum unpacked size of a file of `file_size` bytes."""
    return max(FREE, RATIO * file_size)


def check_size(size: int, file_size: int) -> None:
    """Raises Damaged if an unpacked `size` is too large for a file of `file_size` bytes."""
    if size > most_bytes(file_size):
        raise Damaged(
            f"its contents would take {size:,} bytes; allowed: {FREE:,}, or {RATIO} times the {file_size:,} "
            "bytes of the file"
        )


def _text(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # raised by __str__ of a foreign exception
        return "no message"

"""Where the details of a run go: what libraries log and print is for a file in the workdir, not for the terminal."""

import contextlib
import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from absl import logging as absl_logging


class _File(logging.FileHandler):
    """A log that is let go where it cannot be written: the disk that is full is the news."""

    used = False  # whether there was anything

    def emit(self, record):
        self.used = True
        with contextlib.suppress(OSError):  # it is opened by the first record
            super().emit(record)

    def close(self):
        with contextlib.suppress(OSError):  # it writes what is left
            super().close()

    def handleError(self, record):
        """Says nothing."""


def _to_terminal(handler: logging.Handler) -> bool:
    return handler is absl_logging.get_absl_handler() or getattr(handler, "stream", None) in (sys.stdout, sys.stderr)


@contextlib.contextmanager
def kept(path: Path | None) -> Iterator[None]:
    """Within it, records of WARNING and above, Python's warnings, and exceptions that nobody can catch (in threads, in
    what runs when an object dies) go to a file, and not to the terminal. Handlers with other targets stay.

    Args:
      path: is appended to, and made when there is something to write; None: to nowhere.
    """
    root, ours = logging.getLogger(), _File(path or os.devnull, delay=True)
    ours.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours.setLevel(logging.WARNING)
    before = root.handlers[:], warnings.showwarning, sys.unraisablehook, threading.excepthook
    log = logging.getLogger(__name__)

    def show(message, category, filename, lineno, file=None, line=None):
        log.warning(warnings.formatwarning(message, category, filename, lineno, line).strip())

    def unraisable(args):
        log.warning(
            "%s %r",
            args.err_msg or "ignored in",
            args.object,
            exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        )

    def in_thread(args):
        name = args.thread.name if args.thread else "a thread"
        log.warning("in %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))

    root.handlers[:] = [ours, *(handler for handler in root.handlers if not _to_terminal(handler))]
    warnings.showwarning, sys.unraisablehook, threading.excepthook = show, unraisable, in_thread
    try:
        yield
    finally:
        if ours.used:
            gc.collect()  # asyncio complains when an exception dies that nobody has asked for
        root.handlers[:], warnings.showwarning, sys.unraisablehook, threading.excepthook = before
        ours.close()

"""The details.log of a run: warnings and logs of libraries go to a file in the workdir instead of the terminal."""

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
    """A log file that ignores failures to write it: the error that a full disk causes elsewhere is what matters."""

    used = False  # whether there was any record

    def emit(self, record):
        self.used = True
        with contextlib.suppress(OSError):  # the first record opens the file
            super().emit(record)

    def close(self):
        with contextlib.suppress(OSError):  # closing flushes the file
            super().close()

    def handleError(self, record):
        """Ignores the error."""


def _to_terminal(handler: logging.Handler) -> bool:
    return handler is absl_logging.get_absl_handler() or getattr(handler, "stream", None) in (sys.stdout, sys.stderr)


@contextlib.contextmanager
def redirect(path: Path | None) -> Iterator[None]:
    """Redirects warnings and uncatchable exceptions from the terminal to a file while the context is active.

    Redirected are log records of level WARNING and above, Python's warnings, and exceptions in threads and destructors.
    Handlers of the root logger that do not write to the terminal stay in place.

    Args:
      path: the file, which is created on the first record and appended to; None discards everything.
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
            gc.collect()  # asyncio logs an exception that was never retrieved when it is collected: do that here
        root.handlers[:], warnings.showwarning, sys.unraisablehook, threading.excepthook = before
        ours.close()

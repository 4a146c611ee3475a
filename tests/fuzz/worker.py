"""A process that reads mutants, so that crashes, hangs and excessive memory use are detected from outside."""

import multiprocessing
import os
import resource
import traceback
from pathlib import Path
from typing import Any

from models.errors import UserError
from tests.fuzz import cases

SECONDS = 5.0  # a mutant that takes longer is a hang
MEMORY = 1 << 30  # extra bytes that reading a mutant may take, compared with the good file


def serve(connection: Any, name: str, folder: str) -> None:
    """Writes the good files, then answers (file, bytes of a mutant) with (kind, message) until None arrives."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    case, root = cases.CASES[name], Path(folder)
    if not any(root.iterdir()):
        case.make(root)
    good = case.read(root)
    earlier = {good, *case.passes(root)} - {good}
    files = sorted(str(path.relative_to(root)) for path in root.glob(case.files) if path.is_file())
    case.read(root)  # allocates first what is allocated only once
    connection.send(files)
    while (work := connection.recv()) is not None:
        path, data = root / work[0], work[1]
        before, peak = path.read_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        path.write_bytes(data)
        message = ""
        try:
            read = case.read(root)
            kind = "same" if read == good else "earlier" if read in earlier else "other"
        except UserError as error:
            kind, message = "refused", str(error)
            if "\n" in message:
                kind = "traceback"
        except BaseException:
            kind, message = "traceback", traceback.format_exc(limit=-2)
        path.write_bytes(before)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak > MEMORY // 1024:
            kind = "memory"
        connection.send((kind, message))


class Worker:
    """A process that reads mutants of one case; it restarts after a crash or a hang."""

    def __init__(self, name: str, folder: Path):
        self._name, self._folder = name, folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._name, str(self._folder)), daemon=True)
        self._process.start()
        theirs.close()
        self.files = self._connection.recv()

    def ask(self, file: str, data: bytes) -> tuple[str, str]:
        """Returns the kind of outcome and its message."""
        path = self._folder / file
        before = path.read_bytes()
        self._connection.send((file, data))
        try:
            if self._connection.poll(SECONDS):
                return self._connection.recv()
            kind, message = "hang", f"more than {SECONDS} s"
        except (EOFError, OSError):
            self._process.join()
            kind, message = "crash", f"exit code {self._process.exitcode}"
        self._process.kill()
        path.write_bytes(before)
        self._start()
        return kind, message

    def close(self) -> None:
        """Ends the process."""
        self._connection.send(None)
        self._process.join(10)
        self._process.kill()

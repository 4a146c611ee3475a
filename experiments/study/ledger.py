"""The ledger of a study: one line per finished trial, kept with the project.

A line of `trials.jsonl` holds the outcome of a trial and where it ran. A trial in the ledger is never run again on any
machine, so its checkpoints may be deleted. Concatenation merges the ledgers of several machines.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock

from models.errors import UserError
from train.storage.files import parse_json

NAME = "trials.jsonl"
ROOMS = ("models", "train", "experiments")
API = "train.trained"  # the package `train` imports it for users, and training does not run it
LINE = {
    "type": "object",
    "required": ["trial", "labels", "outcome", "code", "commit", "device", "versions", "seconds"],
    "properties": {
        "trial": {"type": "string"},
        "labels": {"type": "object"},
        "outcome": {"type": "object"},
        "code": {"type": "string"},
        "commit": {"type": "string"},
        "device": {"type": "string"},
        "versions": {"type": "object"},
        "seconds": {"type": "number", "minimum": 0},
    },
}


class Ledger:
    """The finished trials of a study at one scale.

    Args:
      folder: Folder of the study's results; it need not exist yet.

    Raises:
      UserError: A line is damaged. A last line that a kill cut short is dropped instead, because its trial did not
        finish.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._lines: dict[str, dict[str, dict[str, Any]]] = {}  # by trial and code; the newest code is the last
        self._read_bytes = self._read_lines = 0
        self.refresh()

    def refresh(self) -> list[dict[str, Any]]:
        """Stores the lines that were appended since the last call, by any process, and returns them."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._read_bytes:
            return []
        if size < self._read_bytes:  # replaced by another file
            self._lines, self._read_bytes, self._read_lines = {}, 0, 0
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            content = file.read()
        lines = list(_parse(content, self.path, self._read_lines))
        self._read_bytes += content.rfind(b"\n") + 1  # an incomplete line is read again
        self._read_lines += content.count(b"\n")
        for line in lines:
            self.keep(line)
        return lines

    def keep(self, line: dict[str, Any]) -> None:
        """Stores a line that is in the file.

        Of the lines of a trial with the same code, the last one counts. It inherits the measures of those before it.
        """
        by_code = self._lines.setdefault(line["trial"], {})
        if previous := by_code.pop(line["code"], None):
            measured = {**previous["outcome"].get("measured", {}), **line["outcome"].get("measured", {})}
            line = {**line, "outcome": {**line["outcome"], "measured": measured}}
        by_code[line["code"]] = line

    def __len__(self) -> int:
        return len(self._lines)

    def lines(self) -> list[dict[str, Any]]:
        """Returns the newest line of each trial."""
        return [list(by_code.values())[-1] for by_code in self._lines.values()]

    def get(self, trial: str, code: str = "", accept: Collection[str] = ()) -> dict[str, Any] | None:
        """Returns the line of a trial, or None; a line of its own code comes before those that are accepted.

        Args:
          trial: Address of the trial.
          code: Digest of the code that the trial would run now; lines of other code do not count. "" accepts any.
          accept: Commits whose lines count whatever their code is; "all" accepts every commit.
        """
        by_code = self._lines.get(trial, {})
        newest_first = reversed(by_code.values())
        accepted = (line for line in newest_first if code == "" or {line["commit"], "all"} & {*accept})
        return by_code.get(code) or next(accepted, None)

    def add(self, line: Mapping[str, Any]) -> None:
        """Appends a line to the file, and stores it."""
        self.keep(append(self.path, line))


def append(path: Path, line: Mapping[str, Any]) -> dict[str, Any]:
    """Appends a line to a ledger's file, safely beside other processes, and returns it as readers see it.

    A trial that another process has finished in the meantime, with the same code and measures, gets no second line.
    """
    text = json.dumps(dict(line), allow_nan=False, sort_keys=True)
    parsed = parse_json(text, LINE, "a line for the ledger")
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{NAME}.lock")), path.open("ab+") as file:
        previous = Ledger(path.parent).get(parsed["trial"], parsed["code"])
        if previous and parsed["outcome"].get("measured", {}).keys() <= previous["outcome"].get("measured", {}).keys():
            return previous
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                _end_last(file)
        file.write(f"{text}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    return parsed


def _end_last(file: Any) -> None:
    """Ends the last line of a file with a newline, or removes it if a killed process left it incomplete."""
    file.seek(0)
    before, newline, last = file.read().rpartition(b"\n")
    try:
        parse_json(last, LINE, "the last line")
        file.write(b"\n")
    except UserError:
        file.truncate(len(before + newline))
    file.seek(0, os.SEEK_END)


def _parse(content: bytes, path: Path, before: int) -> Iterable[dict[str, Any]]:
    """Yields the lines of the content of a file, after `before` other lines."""
    lines = content.split(b"\n")
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            yield parse_json(text, LINE, f"{path}, line {before + number}")
        except UserError:
            if number == len(lines):  # no newline follows: a killed process left it incomplete
                return
            raise


def code(modules: Iterable[str], files: Iterable[str] = ()) -> str:
    """Returns a digest of the code of modules and files, and of all modules of this project that they import.

    Comments, docstrings and layout do not count. Modules that tables of names import by their text do not either, so
    name them explicitly.

    Args:
      modules: Names, e.g. "train.loop", "models.resnet".
      files: Paths of Python files.
    """
    pending, digests = list(modules), {}
    for file in map(Path, files):
        digests[file.name], imports = _digest(file)
        pending += imports
    while pending:
        name = pending.pop()
        if name in digests or name.split(".")[0] not in ROOMS or name == API:
            continue
        digests[name], imports = _module(name)
        pending += imports
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()[:16]


@functools.cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    spec = importlib.util.find_spec(name)
    return _digest(Path(spec.origin)) if spec and spec.origin else ("", ())


def _digest(file: Path) -> tuple[str, tuple[str, ...]]:
    """Returns the digest of a file and the project modules that it imports, also within functions."""
    tree = ast.parse(file.read_bytes())
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    project_modules = (one for one in imports if one.split(".")[0] in ROOMS and _is_module(one))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], tuple(dict.fromkeys(project_modules))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False

"""The ledger of a study: one line per finished trial, kept with the project.

A line of `trials.jsonl` holds the outcome of a trial and where it ran. So a trial in the ledger is never run again, on
any machine, and its checkpoints may be deleted. Concatenation merges the ledgers of several machines.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock

from models.errors import UserError
from train.storage.files import parse_json

NAME = "trials.jsonl"
ROOMS = ("models", "train", "experiments")
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
        self._lines: dict[str, dict[str, Any]] = {}
        for line in _read(self.path):
            self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        """Stores a line; a trial's last line counts, with the measures of its other lines if their code is the same."""
        before = self._lines.get(line["trial"])
        if before and before["code"] == line["code"]:
            measured = {**before["outcome"].get("measured", {}), **line["outcome"].get("measured", {})}
            line = {**line, "outcome": {**line["outcome"], "measured": measured}}
        self._lines[line["trial"]] = line

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, trial: str, code: str = "") -> dict[str, Any] | None:
        """Returns the line of a trial, or None.

        Args:
          trial: Address of the trial.
          code: Digest of the code that the trial would run now; lines of other code do not count. "" accepts any.
        """
        line = self._lines.get(trial)
        return line if line and code in ("", line["code"]) else None

    def add(self, line: Mapping[str, Any]) -> None:
        """Appends a line atomically for readers, even beside other processes."""
        text = json.dumps(dict(line), allow_nan=False, sort_keys=True)
        kept = parse_json(text, LINE, "a line for the ledger")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.path.with_name(f".{NAME}.lock")), self.path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill has cut the last line short
                    _drop_last(file)
            file.write(f"{text}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._keep(kept)


def _drop_last(file: Any) -> None:
    """Truncates a file after its last newline."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _read(path: Path) -> Iterable[dict[str, Any]]:
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            yield parse_json(text, LINE, f"{path}, line {number}")
        except UserError:
            if number == len(lines):  # without a newline at its end
                return
            raise


def code(modules: Iterable[str]) -> str:
    """Returns a digest of the code of modules and of all modules of this project that they import.

    Comments, docstrings and layout do not count. Nor do imports within functions: name those modules explicitly.

    Args:
      modules: Names, e.g. "train.loop", "models.resnet".
    """
    pending, files = list(modules), {}
    while pending:
        name = pending.pop()
        if name in files or name.split(".")[0] not in ROOMS:
            continue
        digest, imports = _module(name)
        files[name] = digest
        pending += imports
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()[:16]


@functools.cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Returns the digest of one module, and the modules of this project that it imports at its top level."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return "", ()
    tree = ast.parse(Path(spec.origin).read_bytes())
    imports: list[str] = []
    for node in ast.walk(ast.Module([n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))], [])):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    known = (one for one in imports if one.split(".")[0] in ROOMS and _is_module(one))
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
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], tuple(dict.fromkeys(known))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False

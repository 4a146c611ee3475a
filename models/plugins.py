"""User files: wherever a name is expected, FILE.py:NAME stands for the object NAME in FILE.py.

Paths are relative to the working folder. A file is imported once, under a module name derived from its path, so that
its classes are always the same objects and other processes can unpickle their instances. Opening a config, a card or a
compressed file with a text FILE.py:NAME runs FILE.py.
"""

import ast
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import traceback
import types
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.errors import UserError, choice_error

_FORM = re.compile(r"([^(]*\.py):(.*)", re.DOTALL)
_PREFIX = "file://"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds files by their module names from `module`."""

    def find_spec(self, fullname, path=None, target=None):
        del path, target
        if fullname.startswith(_PREFIX):
            file = urllib.parse.unquote(fullname.removeprefix(_PREFIX))
            return importlib.util.spec_from_file_location(fullname, file)
        return None


sys.meta_path.append(_Finder())


def split(text: Any) -> tuple[str, str] | None:
    """Splits FILE.py:NAME into ("FILE.py", "NAME"); returns None for anything else."""
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    return (match[1], match[2]) if match else None


def short(name: str) -> str:
    """Returns a name without its file, for use in the name of a folder."""
    parts = split(name)
    return parts[1] if parts else name


def module(file: str) -> types.ModuleType:
    """Imports a file; raises UserError if it is missing or importing it fails."""
    path = Path(os.path.expanduser(file)).resolve()
    if not path.is_file():
        raise UserError(f"{file}: there is no such file")
    try:
        # A dot would separate packages
        return importlib.import_module(path.as_uri().replace(".", "%2E"))
    except Exception as error:  # the file's code may raise anything
        raise fault(file, error) from error


def fault(file: str, error: Exception) -> UserError:
    """Returns the error of one line for an exception in a user's file; it names the file and the line in it."""
    path = Path(os.path.expanduser(file)).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path]
    text = str(error)
    if isinstance(error, SyntaxError):
        text = error.msg
        if error.filename and Path(error.filename).resolve() == path:
            lines = [error.lineno]
    at = f", line {lines[-1]}" if lines else ""
    return UserError(f"{file}{at}: {type(error).__name__}: {text}")


def modules() -> Iterator[types.ModuleType]:
    """Returns the imported files, sorted by path."""
    return (sys.modules[name] for name in sorted(sys.modules) if name.startswith(_PREFIX))


def imported(entry: Any) -> Any:
    """Imports an entry "module:NAME" of a table of names; returns any other entry unchanged."""
    if not isinstance(entry, str):
        return entry
    module_name, name = entry.split(":")
    return getattr(importlib.import_module(module_name), name)


def load(spec: Any, table: str = "") -> Any:
    """Returns the object for `spec`, a text FILE.py:NAME; returns any other spec unchanged.

    Args:
      spec: A text or any other object.
      table: Name of a dictionary in the file with the key NAME. With "", NAME is a function or class of the file.

    Raises:
      UserError: The file is missing, cannot be imported, or has no such NAME.
    """
    parts = split(spec)
    if not parts:
        return spec
    file, name = parts
    imported_file = module(file)
    if table:
        choices = getattr(imported_file, table, None)
        if not isinstance(choices, dict):
            raise UserError(f"{file}: it has no dictionary {table}; it must define {table} with a key {name}")
        if name in choices:
            return choices[name]
    else:
        if callable(value := vars(imported_file).get(name)):
            return value
        choices = [defined for defined in _defined(imported_file) if callable(vars(imported_file)[defined])]
    raise choice_error(f"name in {f'{table} of ' * bool(table)}{file}", name, choices)


def _defined(imported_file: types.ModuleType) -> Iterator[str]:
    """Yields the names that a file defines, without those that it imports."""
    for node in ast.parse(Path(str(imported_file.__file__)).read_bytes()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))

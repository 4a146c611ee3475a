"""What files of a user's add: wherever a name is asked for, FILE.py:NAME stands for what FILE.py calls NAME.

The path is as a shell takes it, from the working folder. A file is imported once, under a name made of its path, so
that its classes are the same objects each time, and are found again in processes to which objects of theirs are sent.
A text FILE.py:NAME in a config, a card or a compressed file makes whatever opens it run FILE.py.
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
    """Finds files by the names that `module` gives them."""

    def find_spec(self, fullname, path=None, target=None):
        del path, target
        if fullname.startswith(_PREFIX):
            file = urllib.parse.unquote(fullname.removeprefix(_PREFIX))
            return importlib.util.spec_from_file_location(fullname, file)
        return None


sys.meta_path.append(_Finder())


def split(text: Any) -> tuple[str, str] | None:
    """("FILE.py", what follows its colon), or None for whatever is not of that form."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    return found.groups() if found else None


def short(name: str) -> str:
    """A name without its file, which has no place in the name of a folder."""
    found = split(name)
    return found[1] if found else name


def module(file: str) -> types.ModuleType:
    """The file, imported; UserError where there is none, or where importing it fails."""
    path = Path(os.path.expanduser(file)).resolve()
    if not path.is_file():
        raise UserError(f"{file}: there is no such file")
    try:
        # A dot would be that of a package
        return importlib.import_module(path.as_uri().replace(".", "%2E"))
    except Exception as error:  # whatever its code raises
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines = [error.lineno]
        at = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{file}{at}: {type(error).__name__}: {error}") from error


def modules() -> Iterator[types.ModuleType]:
    """Those that were imported, by path."""
    return (sys.modules[name] for name in sorted(sys.modules) if name.startswith(_PREFIX))


def imported(entry: Any) -> Any:
    """An entry of a table of names: a text "module:NAME" is imported, anything else is what it is."""
    if not isinstance(entry, str):
        return entry
    where, name = entry.split(":")
    return getattr(importlib.import_module(where), name)


def load(spec: Any, table: str = "") -> Any:
    """What `spec`, a text FILE.py:NAME, stands for; any other spec is returned as it is.

    Args:
      spec: see above.
      table: of the file, in which NAME is a key; "": NAME is a function or a class of the file itself.

    Raises:
      UserError: no such file, one that cannot be imported, or that has no such NAME.
    """
    parts = split(spec)
    if not parts:
        return spec
    file, name = parts
    found = module(file)
    if table:
        known = getattr(found, table, None)
        if not isinstance(known, dict):
            raise UserError(f"{file}: it has no dictionary {table}, in which {name} could be")
        if name in known:
            return known[name]
    else:
        if callable(value := vars(found).get(name)):
            return value
        known = [defined for defined in _defined(found) if callable(vars(found)[defined])]
    raise choice_error(f"name in {f'{table} of ' * bool(table)}{file}", name, known)


def _defined(found: types.ModuleType) -> Iterator[str]:
    """What a file defines itself, leaving out what it imports."""
    for node in ast.parse(Path(found.__file__).read_bytes()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))

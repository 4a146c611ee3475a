"""Files that are whole at any instant: a reader, or a rerun after a kill, sees the old or the new one, never a part."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a small file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people: indented, keys as given; ValueError for a number that is not finite."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Removes a file or a whole folder, as far as possible, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()

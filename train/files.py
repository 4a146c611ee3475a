"""Files that are whole at any instant: a reader, or a rerun after a kill, sees the old or the new one, never a part."""

import json
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

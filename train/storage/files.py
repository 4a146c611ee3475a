"""Small files, validated when read and written atomically: a killed process leaves the old content or the new."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError

LARGEST_JSON = 256 << 20  # bytes; metrics of long runs and results of studies are far smaller
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ANY_OBJECT = {"type": "object"}
_LONGEST_REASON = 200  # characters
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_remote(path: str | Path) -> bool:
    """Returns whether a path names something on an object store, e.g. gs://bucket/run."""
    return bool(_REMOTE.match(str(path)))


def expanded(path: str | Path) -> Path:
    """Returns a user's path with `~` replaced by their home folder, and `~NAME` by that of an existing user.

    Raises:
      UserError: the path is remote; `train.storage.remote.fetched` takes such paths.
    """
    if is_remote(path):
        raise UserError(f"{path}: this path must be local")
    return Path(os.path.expanduser(path))  # Path.expanduser raises for "~$draft.png"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a small file atomically; an OSError names the file."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with keys in the given order; raises ValueError for a number that is not finite."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Removes a file or a whole folder as far as possible; does nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def is_full(error: Exception) -> bool:
    """Returns whether the cause of an error is a full disk."""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return "No space left" in str(error) or "quota exceeded" in str(error)


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, schema: Mapping[str, Any] = ANY_OBJECT) -> Any:
    """Reads a JSON file and validates it.

    Args:
      path: the file.
      schema: the JSON schema of the content (json-schema.org, draft 2020-12).

    Raises:
      UserError: the file cannot be read, is not JSON, is too large, holds a number that is not finite, or does not
        match the schema. The message is one line that names the file and the path in it.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise UserError(f"{path} has {size:,} bytes; the limit for a JSON file is {LARGEST_JSON:,}")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return parse_json(content, schema, str(path))


def parse_json(content: str | bytes, schema: Mapping[str, Any], name: str) -> Any:
    """Parses and validates JSON text as `read_json` does; errors call it `name`."""
    import jsonschema.exceptions  # takes a tenth of a second, which --help should not spend

    try:
        value = json.loads(content, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is damaged: it is not JSON ({_reason(error)})") from None
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if fault:
        place = f"{fault.json_path.removeprefix('$.')}: " if len(fault.path) else ""
        raise UserError(f"{name} is damaged: {place}{_reason(fault.message)}")
    return value


def _reason(error: Any) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} …"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value

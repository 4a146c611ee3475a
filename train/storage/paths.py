"""The paths in a run's config, also relative to the run's folder, so that the run and its files can be moved together.

config.json holds paths as the user gave them: absolute, or relative to the working folder of that time. paths.json
beside it holds the same values with each path relative to the run's folder.
"""

import copy
import functools
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError
from train.storage.files import expanded, is_remote, read_json

NAME = "paths.json"
SCHEMA = {"type": "object", "additionalProperties": {"type": "string"}}
_FILE = re.compile(r"""[^|('"\s][^|('"]*\.py(?=:)""")  # in FILE.py:NAME, as part of any value
_WILD = re.compile(r"/[^/]*[{*]")  # where a pattern of shards begins; its folder stands for them
# By key: the paths whose content is in the record that each checkpoint keeps, or which affect no result (data.dir)
_RECORDED = {
    "init_from": re.compile(r"\A(?!hf:|torchvision:|https?://).+", re.DOTALL | re.IGNORECASE),
    "data.dir": re.compile(".+", re.DOTALL),
    "data.source": re.compile(
        "(?<=^folder:).+|(?<=^text:).+|(?<=^arrays:).+|(?<=^tar:).+|(?<=^csv:).+?(?=\\([^()]*\\)$|$)"
        "|(?:(?<=^webdataset:)|(?<=::)).+?(?=::|$)",
        re.DOTALL,
    ),
    "task.name": re.compile(r"""(?<=teacher=['"])(?!hf:|torchvision:|https?://)[^'"]+(?=['"])""", re.IGNORECASE),
    "optimizer.prune": re.compile(r"""(?<=['"])[^'"]*\.json(?=['"])"""),
}


def relative(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Returns the values of a config that hold paths, by full key, with the paths relative to a run's folder.

    Args:
      config: a whole config; its relative paths start at the working folder.
      folder: the absolute path of the run's folder.
    """
    values = {}
    for key, text in _texts(config):
        value = _mapped(key, text, lambda path: path if is_remote(path) else os.path.relpath(expanded(path), folder))
        if value is not None:
            values[key] = value
    return values


def read(folder: Path) -> dict[str, str]:
    """Returns what `relative` returned when the run last started; {} for a run without paths or of an earlier version.

    Raises:
      UserError: the file is damaged.
    """
    path = folder / NAME
    try:
        return read_json(path, SCHEMA) if path.exists() else {}
    except UserError as error:
        raise UserError(f"{error}; delete it if the files that config.json names are where it says") from None


def located(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the config of a run with its paths where they exist now.

    Paths that exist at their places relative to the run's folder are taken from there. Other paths stay as the user
    gave them, except that a data.dir that does not exist becomes the default.

    Args:
      config: the config of the run.
      folder: the folder of the run, which may have been moved.
    """
    located, texts = copy.deepcopy(dict(config)), dict(_texts(config))
    for key, value in read(folder).items():
        place = _place(key, texts.get(key, ""), value, folder)
        if place is not None:
            *sections, name = key.split(".")
            functools.reduce(operator.getitem, sections, located)[name] = place
    if "data.dir" in texts and not _exists(located["data"]["dir"]):
        located["data"]["dir"] = ""
    return located


def moved(old: Mapping[str, Any], new: Mapping[str, Any], folder: Path) -> set[str]:
    """Returns the full keys whose values may differ, because only paths differ and the files may be the same.

    These are paths that are the same relative to the run's folder, and paths whose content is in the record of each
    checkpoint, with which it is compared when a run resumes.

    Args:
      old: the config of the run in the folder.
      new: the config of the command.
      folder: the absolute path of the run's folder.
    """
    before, now = dict(_texts(old)), dict(_texts(new))
    recorded = {
        key
        for key, pattern in _RECORDED.items()
        if key in before and key in now and pattern.sub("*", before[key]) == pattern.sub("*", now[key])
    }
    return recorded | dict(read(folder).items() & relative(new, folder).items()).keys()


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(expanded(path))


def _exists(path: str) -> bool:
    """Returns whether a path exists, as far as this machine can tell."""
    return is_remote(path) or os.path.exists(expanded(path))


def _texts(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (full key, value) for each value of a config that is a text."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{path}{key}.")
        elif isinstance(value, str):
            yield f"{path}{key}", value


def _mapped(key: str, text: str, change: Callable[[str], str]) -> str | None:
    """Returns the value of a key with each path changed; None if it holds no path."""
    for pattern in (_RECORDED.get(key), _FILE):
        if pattern and pattern.search(text):
            return pattern.sub(lambda match: change(match[0]), text)
    return None


def _place(key: str, text: str, value: str, folder: Path) -> str | None:
    """Returns the value of a key with the paths that it has in paths.json, absolute.

    Returns None if one of them does not exist, if `text` already names them, or if more than paths differs.

    Args:
      key: a full key.
      text: its value in the config.
      value: its value in paths.json.
      folder: the folder of the run.
    """
    places: list[str] = []

    def absolute(path: str) -> str:
        if is_remote(path):
            return path
        places.append(os.path.abspath(folder / path))
        return places[-1]

    place = _mapped(key, value, absolute)
    same = _mapped(key, value, lambda _: "*") == _mapped(key, text, lambda _: "*")
    if not same or not all(os.path.exists(_WILD.split(place)[0]) for place in places):
        return None
    return place if place != _mapped(key, text, _absolute) else None

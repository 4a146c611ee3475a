"""The folder of one run: which config it belongs to, and what is written into it."""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError
from train import checkpoint, details
from train.config import check_types, difference, plain, without
from train.files import parse_json, read_json, remove, write_atomically, write_json
from train.lock import Lock

# A line of metrics.jsonl
LINE = {
    "type": "object",
    "required": ["step", "split"],
    "properties": {"step": {"type": "integer", "minimum": 0}, "split": {"enum": ["train", "test"]}},
}
# Keys that say how fast or how talkatively a run goes, not what comes out of it: these may change between reruns. So
# may the devices, as they do with devices=0 on another machine (only batch norm and dropout are a device's own).
OPERATIONAL = ("log_every", "checkpoint_every", "data.workers", "data.dir", "keep_checkpoints", "parallel", "devices")

ABANDONED = 3600  # seconds after which a half-written export counts as left by a kill


class Workdir(contextlib.ExitStack):
    """The folder of one run, while this process trains in it; a context.

    Within it a full disk becomes a UserError that says what is kept, and once it is open the details of what goes wrong
    are written to details.log.

    Args:
      path: absolute.
    """

    checkpoints: checkpoint.Checkpoints

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._lock = Lock(path)
        self.enter_context(checkpoint.full_disk_is_said(path))
        self.callback(self._lock.release)

    def reserve(self) -> None:
        """Takes the lock of a folder that is there, before memory of the devices is taken from its owner.

        Raises:
          UserError: another process trains in it.
        """
        if self.path.is_dir():
            self._lock.acquire()

    def open(self, config: Mapping[str, Any], record: Mapping[str, Any], keep: int, headline: str) -> None:
        """Makes the folder this run's, or checks that it is; see `claim`.

        Args:
          config: of the run.
          record: what the run has to remember of its data.
          keep: number of checkpoints.
          headline: metric by which the best checkpoint is chosen.
        """
        claim(self.path, config, record, self._lock)
        self.enter_context(details.kept(self.path / "details.log"))
        self.checkpoints = self.enter_context(
            contextlib.closing(checkpoint.Checkpoints(self.path / "checkpoints", keep, headline))
        )


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the config of the run in a folder.

    Raises:
      UserError: the folder holds no run, or its config is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a run's folder: there is no config.json in it")
    config = read_json(path)
    try:
        check_types(config)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return config


def claim(workdir: Path, config: Mapping[str, Any], record: Mapping[str, Any], lock: Lock) -> None:
    """Makes the folder this process's and this config's, or checks that it is.

    A run that saved nothing has no claim to it. What a kill left half written there is removed. Writes config.json and
    data.json, a copy for people and configs of what each checkpoint says of the data.

    Args:
      workdir: created if it is missing.
      config: of the run.
      record: what the run has to remember of its data.
      lock: of the folder; is acquired.

    Raises:
      UserError: the folder belongs to another config (the difference is said), another process trains in it, or it
        cannot be written.
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(13, "not writable")
        lock.acquire()
        _tidy(workdir)
        has_checkpoints = any(entry.name.isdecimal() for entry in (workdir / "checkpoints").glob("*"))
        if has_checkpoints and not path.exists():
            raise UserError(f"{workdir} holds checkpoints but no config.json: choose another --workdir")
        if not has_checkpoints:
            _check_unclaimed(workdir)
            write_json(path, plain(config))
            write_json(workdir / "data.json", record)
            return
    except OSError as error:
        raise UserError(f"cannot use --workdir={workdir}: {error.strerror}") from error
    old = read_config(workdir)
    lines = [line for line in difference(old, plain(config)) if line.split(":")[0] not in OPERATIONAL]
    changed = {line.split(":")[0] for line in lines}
    if added := [key for key in without(old) if key in changed]:
        raise UserError(
            f"{workdir} holds a run of an earlier version, which had no {' and no '.join(added)}: it cannot go on; "
            f"choose another --workdir (--config.init_from={workdir} starts from its weights)"
        )
    if lines:
        raise UserError(
            f"{workdir} belongs to a run with another config ({'; '.join(lines)}): choose another --workdir"
        )


def _check_unclaimed(workdir: Path) -> None:
    """Raises UserError where a run would write over files that are no run's."""
    try:
        if {"seed", "model", "data", "optimizer"} <= read_json(workdir / "config.json").keys():
            return
    except UserError:  # it is not there, or no JSON
        pass
    for name in ("config.json", "data.json", "metrics.jsonl", "summary.json"):
        if (workdir / name).exists():
            raise UserError(
                f"{workdir} holds a {name} that is no run's, which would be written over: choose another --workdir"
            )


def _tidy(workdir: Path) -> None:
    leftovers = [*workdir.glob(".*.tmp")]  # of train.files.write_atomically
    for path in workdir.glob(".*.partial"):  # of exports, one of which may be at work, without the lock
        if time.time() - path.stat().st_mtime > ABANDONED:
            leftovers.append(path)
    for path in leftovers:
        remove(path)


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, {"step": …, "split": "train" | "test", name: value, …}.

    Opened at the step from which the run goes on: what an interrupted run wrote after it is dropped, so every step
    is there once.
    """

    def __init__(self, path: Path, step: int):
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends one line."""
        self._file.write(json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl.

    Lines that a kill cut short, or that are damaged, are left out; a warning counts those that are not the last.
    """
    lines, damaged = [], []
    texts = path.read_bytes().splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(parse_json(text, LINE, f"line {number}"))
        except UserError:
            damaged.append(number)
    if damaged and damaged != [len(texts)]:
        warnings.warn(
            f"{path}: {len(damaged)} damaged lines are left out, the first is line {damaged[0]}", stacklevel=2
        )
    return lines

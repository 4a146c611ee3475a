"""The folder of one run: its ownership by a config, and its files."""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from models.errors import UserError
from train.setup.config import check_types, difference, plain, without
from train.storage import checkpoint, details, paths, remote
from train.storage.files import expanded, is_remote, parse_json, read_json, remove, write_atomically, write_json
from train.storage.lock import Lock

# A line of metrics.jsonl
LINE = {
    "type": "object",
    "required": ["step", "split"],
    "properties": {"step": {"type": "integer", "minimum": 0}, "split": {"enum": ["train", "test"]}},
}
# Keys that affect the speed or the output of a run but not its results: they may change when it resumes. The number of
# devices may change as well, e.g. with devices=0 on another machine; it affects only batch norm and dropout.
OPERATIONAL = ("log_every", "checkpoint_every", "data.workers", "data.dir", "keep_checkpoints", "parallel", "devices")

_EXTENSIONS = "extensions.json"
EXTENSIONS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["step", "duration"],
        "properties": {"step": {"type": "integer", "minimum": 0}, "duration": {"type": "string"}},
    },
}
ABANDONED = 3600  # seconds after which a partially written export counts as abandoned


class Workdir(contextlib.ExitStack):
    """The folder of one run while this process trains in it; a context manager.

    In the context, a full disk raises a UserError that says which checkpoint is kept. After `open`, warnings and the
    details of errors are written to details.log.

    Args:
      where: the folder. The run of a remote folder trains in a local one, which is copied (train/storage/remote.py).

    Attributes:
      path: the absolute path of the local folder.
    """

    checkpoints: checkpoint.Checkpoints

    def __init__(self, where: str | Path):
        super().__init__()
        self._mirror = remote.Mirror(str(where)) if is_remote(where) else None
        self.path = path = self._mirror.local if self._mirror else expanded(where).absolute()
        self.is_shared = False  # whether all processes write their shards into it
        self._lock = Lock(path)
        self.enter_context(checkpoint.full_disk_is_said(path))
        self.callback(self._lock.release)

    def reserve(self) -> None:
        """Acquires the lock of an existing folder, before this process takes device memory from the folder's owner.

        Raises:
          UserError: another process trains in it.
        """
        if self._mirror:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot use {self.path}: {error.strerror}") from error
        if self.path.is_dir():
            self._lock.acquire()
        if self._mirror:
            self.callback(self._mirror.close)
            self._mirror.open()

    def open(
        self, config: Mapping[str, Any], record: Mapping[str, Any], keep: int, headline: str, extend: bool = False
    ) -> str | None:
        """Claims the folder for a run; see `claim`.

        Args:
          config: the config of the run.
          record: the record of its data.
          keep: number of checkpoints to keep.
          headline: the metric that decides which checkpoint is best.
          extend: whether the duration may differ from that of the run in the folder.

        Returns:
          The duration of the run in the folder if it differs, else None.
        """
        before = claim(self.path, config, record, self._lock, extend)
        if self._mirror:
            self.push(self._copy_back)
        self.enter_context(details.redirect(self.path / "details.log"))
        self.checkpoints = self.enter_context(
            contextlib.closing(checkpoint.Checkpoints(self._folder, keep, headline, published=self._published))
        )
        return before

    @property
    def _folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _published(self) -> Callable[[], None]:
        """Returns what follows each new checkpoint."""
        return self._mirror.push if self._mirror else lambda: None

    def _copy_back(self, kind: type[BaseException] | None, *details: Any) -> None:
        """Copies the folder to the store when the run ends; an earlier error is more important than one of this."""
        del details
        try:
            self._published()
        except UserError:
            if kind is None:
                raise

    def share(self, keep: int, headline: str) -> None:
        """Makes `checkpoints` those to which each process writes its shards; every process calls it after `open`.

        Args:
          keep: see `open`.
          headline: see `open`.
        """
        from train.storage import sharded  # imports Orbax

        self.is_shared = True
        if jax.process_index():
            self.enter_context(details.redirect(self.path / f"details-{jax.process_index()}.log"))
        self.checkpoints = self.enter_context(
            contextlib.closing(sharded.ShardedCheckpoints(self._folder, keep, headline, self._published))
        )

    def record_paths(self, config: Mapping[str, Any]) -> None:
        """Writes paths.json once the files that the config names are known to be those of the run in the folder."""
        values, path = paths.relative(config, self.path), self.path / paths.NAME
        if values and values != paths.read(self.path):
            write_json(path, values)
        elif not values:
            path.unlink(missing_ok=True)

    def extend(self, duration: str, step: int) -> None:
        """Gives the run in the folder a longer duration; its summary, which is of the shorter one, is removed.

        Args:
          duration: the longer duration.
          step: number of steps done.
        """
        path = self.path / "config.json"
        config = read_config(self.path)
        extension = {"step": step, "duration": config["duration"]}
        earlier = [other for other in self.extensions() if other != extension]  # of a process that was killed here
        write_json(self.path / _EXTENSIONS, [*earlier, extension])
        # The summary goes first: a summary beside a config with the longer duration would be taken for its own.
        (self.path / "summary.json").unlink(missing_ok=True)
        write_json(path, {**config, "duration": duration})

    def extensions(self) -> list[dict[str, Any]]:
        """Returns {"step", "duration"} for each extension: the steps done then, and the duration before."""
        path = self.path / _EXTENSIONS
        return read_json(path, EXTENSIONS) if path.exists() else []


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the config of the run in a folder.

    Raises:
      UserError: the folder holds no run, or its config is damaged.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not the folder of a run: it has no config.json")
    config = read_json(path)
    try:
        check_types(config)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return config


def claim(
    workdir: Path, config: Mapping[str, Any], record: Mapping[str, Any], lock: Lock, extend: bool = False
) -> str | None:
    """Claims a folder for this process and config.

    A folder is claimed once it has a checkpoint. Partially written files of killed processes are removed. Writes
    config.json and data.json; the latter is a copy, for people and configs, of the data's record in each checkpoint.

    Args:
      workdir: created if it is missing.
      config: the config of the run.
      record: the record of its data.
      lock: the lock of the folder, which is acquired.
      extend: whether the duration may differ.

    Returns:
      With `extend`, the duration of the run in the folder if it differs; otherwise None.

    Raises:
      UserError: the folder belongs to a run with another config (the message lists the differences), another process
        trains in it, or it is not writable.
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
            if extend:
                raise UserError(f"--extend: {workdir} holds no run with a checkpoint")
            write_json(path, plain(config))
            write_json(workdir / "data.json", record)
            return None
    except OSError as error:
        raise UserError(f"cannot use --workdir={workdir}: {error.strerror}") from error
    old = read_config(workdir)
    may_differ = {*OPERATIONAL, *paths.moved(old, plain(config), workdir)}
    lines = [line for line in difference(old, plain(config)) if line.split(":")[0] not in may_differ]
    changed = {line.split(":")[0] for line in lines}
    if added := [key for key in without(old) if key in changed]:
        raise UserError(
            f"{workdir} holds a run of an earlier version, which had no {' and no '.join(added)}: it cannot resume; "
            f"choose another --workdir (--config.init_from={workdir} starts from its weights)"
        )
    if changed == {"duration"} and extend:
        return old["duration"]
    if "duration" in changed and not extend:
        raise UserError(
            f"{workdir} belongs to a run with a different config ({'; '.join(lines)}): choose another --workdir; "
            "if only the duration differs, --extend trains on to a longer one"
        )
    if lines:
        raise UserError(
            f"{workdir} belongs to a run with a different config ({'; '.join(lines)}): choose another --workdir"
        )
    return None


def _check_unclaimed(workdir: Path) -> None:
    """Raises UserError if a run would overwrite files that do not belong to a run."""
    try:
        if {"seed", "model", "data", "optimizer"} <= read_json(workdir / "config.json").keys():
            return
    except UserError:  # it does not exist, or is not JSON
        pass
    for name in ("config.json", "data.json", paths.NAME, "metrics.jsonl", "summary.json"):
        if (workdir / name).exists():
            raise UserError(
                f"{workdir} holds a {name} that does not belong to a run and would be overwritten: choose another "
                "--workdir"
            )


def _tidy(workdir: Path) -> None:
    leftovers = [*workdir.glob(".*.tmp")]  # from train.storage.files.write_atomically
    for path in workdir.glob(".*.partial"):  # from exports; one may be in progress, because exports take no lock
        if time.time() - path.stat().st_mtime > ABANDONED:
            leftovers.append(path)
    for path in leftovers:
        remove(path)


class MetricsFile:
    """The file metrics.jsonl: one JSON object per line, {"step": …, "split": "train" | "test", name: value, …}.

    It is opened at the step from which the run resumes. Lines of later steps, which an interrupted process wrote, are
    dropped, so that each step occurs once.
    """

    def __init__(self, path: Path, step: int):
        lines = [line for line in read_metrics(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends one line."""
        self._file.write(json.dumps({"step": step, "split": split, **values}, allow_nan=False) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl.

    Damaged lines are skipped with a warning. If only the last line is damaged, which happens when a process is killed,
    there is no warning.
    """
    lines, damaged = [], []
    texts = path.read_bytes().splitlines() if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(parse_json(text, LINE, f"line {number}"))
        except UserError:
            damaged.append(number)
    if damaged and damaged != [len(texts)]:
        warnings.warn(f"{path}: {len(damaged)} damaged lines are skipped; the first is line {damaged[0]}", stacklevel=2)
    return lines

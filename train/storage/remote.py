"""Folders and files on object stores, such as gs://bucket/run, by etils.epath.

What is read is copied into the machine's cache first. A run trains in a local folder, which is copied to the store
after each checkpoint: a store has no locks, and cannot append to a file or rename a folder. There, a checkpoint counts
once about/metadata exists, which is written last and removed first; writing one file is atomic.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.kernels import runtime
from train.storage.files import expanded, is_full, is_remote, parse_json, remove, sha256
from train.storage.lock import HeldError

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # with the package that each needs
RENEWAL = 30  # seconds between renewals of a lease
EXPIRY = 120  # seconds after which a lease that was not renewed counts as abandoned
LEASE = ".lease.json"
_HELD = {
    "type": "object",
    "required": ["process", "host", "since", "renewed"],
    "properties": {"process": {"type": "integer"}, "renewed": {"type": "number"}},
}
_STEP = re.compile(r"(checkpoints/[0-9]+)/.+")
_MARK = "about/metadata"
_SMALL = 1 << 20  # bytes; smaller files are always copied again, because not all stores tell when a file was written
_THREADS = 16


def fetched(path: str | Path) -> Path:
    """Returns a local path to what a user's path names: `expanded`, or a copy of a remote file or folder.

    Only what has changed since the last copy is copied.

    Raises:
      UserError: the store or the path cannot be reached.
    """
    if not is_remote(path):
        return expanded(path)
    import filelock

    source, local = _Store(str(path)), _cached("copies", str(path))
    with source.reached():
        local.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{local}.lock"):
            if source.is_file():
                source.get([("", local)])
            elif not source.get_folder(local):
                raise UserError(f"{path}: there is no such file or folder")
    return local


class _Store:
    """A file or folder on an object store; every method may raise whatever the store's package raises.

    Args:
      where: its path, SCHEME://….
    """

    def __init__(self, where: str):
        scheme = where.partition("://")[0]
        if scheme not in SCHEMES:
            raise UserError(f"{where}: {scheme}:// is not supported; allowed: {', '.join(f'{s}://' for s in SCHEMES)}")
        from etils import epath  # takes time that local runs should not spend

        self.where = where.rstrip("/")
        self._root = epath.Path(self.where)

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Turns anything that the store's package raises into a UserError of one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            scheme = self.where.partition("://")[0]
            package = SCHEMES[scheme]
            if isinstance(error, ImportError) and not importlib.util.find_spec(package):
                raise UserError(f"{self.where}: {scheme}:// needs a package: pip install {package}") from None
            if is_full(error):
                raise UserError(f"{self.where} cannot be copied: no space left in {runtime.cache_folder()}") from error
            lines = str(error).splitlines() or [""]
            raise UserError(f"{self.where} cannot be used: {type(error).__name__}: {lines[0][:200]}") from error

    def _at(self, name: str) -> Any:
        return self._root / name if name else self._root

    def is_file(self) -> bool:
        """Returns whether this is a file."""
        return self._root.exists() and not self._root.is_dir()

    def names(self) -> list[str]:
        """Returns the relative paths of all files, without those of incomplete checkpoints."""
        names, top = [], None
        for folder, _, files in self._root.walk():
            folder = str(folder).rstrip("/")
            top = folder if top is None else top
            names += [f"{folder}/{file}".removeprefix(f"{top}/") for file in files if file]
        return sorted(names)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file, None if there is none."""
        try:
            return self._at(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file."""
        self._at(name).write_bytes(content)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files that may be gone."""

        def drop(name):
            with contextlib.suppress(FileNotFoundError):
                self._at(name).unlink()

        _all(drop, names)

    def put(self, pairs: Iterable[tuple[str, Path]]) -> None:
        """Copies local files to the store."""

        def copy(pair):
            with pair[1].open("rb") as source, self._at(pair[0]).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 24)

        _all(copy, pairs)

    def get(self, pairs: Iterable[tuple[str, Path]]) -> None:
        """Copies files from the store where the local ones differ; skips files that have disappeared."""

        def copy(pair):
            name, local = pair
            with contextlib.suppress(FileNotFoundError):
                status = self._at(name).stat()
                if local.is_file() and status.length >= _SMALL:
                    own = local.stat()
                    if own.st_size == status.length and (not status.mtime or int(own.st_mtime) == int(status.mtime)):
                        return
                local.parent.mkdir(parents=True, exist_ok=True)
                part = local.with_name(f".{local.name}.part")
                with self._at(name).open("rb") as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 24)
                if status.mtime:
                    os.utime(part, (status.mtime, status.mtime))
                part.replace(local)

        _all(copy, pairs)

    def get_folder(self, local: Path, keep: Callable[[str], bool] = lambda name: False) -> list[str]:
        """Makes a local folder the copy of this one; returns the names of its files.

        Args:
          local: the folder.
          keep: whether a local file that is not on the store stays, by name.
        """
        names = complete(self.names())
        if not names:
            remove(local)
            return names
        for name in _files(local):
            if name not in set(names) and not keep(name):
                remove(local / name)
        self.get((name, local / name) for name in names)
        for folder in sorted((path for path in local.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty
        return names


def _all(function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Calls a function for each item in threads; raises the first error once all have ended."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for future in [pool.submit(function, item) for item in items]:
            future.result()


def _files(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def _cached(kind: str, where: str) -> Path:
    """Returns the local place of a remote path, which names it."""
    return runtime.cache_folder() / kind / where.rstrip("/").replace("://", "/")


def complete(names: Iterable[str]) -> list[str]:
    """Returns the names of files without those of incomplete checkpoints."""
    names = list(names)
    marked = {name.removesuffix(f"/{_MARK}") for name in names if name.endswith(f"/{_MARK}")}
    return [name for name in names if not (match := _STEP.fullmatch(name)) or match[1] in marked]


class Mirror:
    """The local folder of a run whose workdir is remote; for the process that writes.

    Args:
      where: the workdir, SCHEME://….
    """

    def __init__(self, where: str):
        self.local = _cached("runs", where)
        self._store, self._lease = _Store(where), None
        self._small: dict[str, tuple[int, int]] = {}  # size and time of each file on the store outside checkpoints
        self._steps: dict[str, str] = {}  # by the folder of each checkpoint on the store: the digest of its mark

    def open(self) -> None:
        """Takes the lease and copies the folder from the store.

        Raises:
          HeldError: another process trains in it.
          UserError: the store cannot be reached.
        """
        with self._store.reached():
            self._lease = _Lease(self._store)
            everything = self._store.names()
            self._store.remove(set(everything) - set(complete(everything)))  # of an interrupted copy
            for path in self.local.iterdir():
                if not path.name.startswith(".lock"):
                    remove(path)
            names = self._store.get_folder(self.local, keep=lambda name: name.startswith(".lock"))
        for name in names:
            if not name.startswith("checkpoints/"):
                self._small[name] = _state(self.local / name)
            elif name.endswith(f"/{_MARK}"):
                self._steps[name.removesuffix(f"/{_MARK}")] = sha256(self.local / name)

    def push(self) -> None:
        """Copies what has changed to the store; a kill at any moment leaves the checkpoints whole.

        Raises:
          UserError: the store cannot be reached.
        """
        with self._store.reached():
            if self._lease:
                self._lease.check()
            present = [name for name in _files(self.local) if not any(part[0] == "." for part in name.split("/"))]
            small = {
                name: _state(self.local / name)
                for name in present
                if not name.startswith(("checkpoints/", "damaged-checkpoint-"))
            }
            # What was removed goes first: a summary of a shorter run must not be seen beside the longer run's config.
            self._store.remove(self._small.keys() - small.keys())
            self._store.put((name, self.local / name) for name in small if small[name] != self._small.get(name))
            self._small = small
            marks = [name.removesuffix(f"/{_MARK}") for name in complete(present) if name.endswith(f"/{_MARK}")]
            steps = {step: sha256(self.local / step / _MARK) for step in marks if _STEP.fullmatch(f"{step}/{_MARK}")}
            for step in [step for step in sorted(steps) if steps[step] != self._steps.get(step)]:
                self._drop(step)
                files = [name for name in present if name.startswith(f"{step}/") and name != f"{step}/{_MARK}"]
                self._store.put((name, self.local / name) for name in files)
                self._store.put([(f"{step}/{_MARK}", self.local / step / _MARK)])
                self._steps[step] = steps[step]
            for step in self._steps.keys() - steps.keys():
                self._drop(step)

    def _drop(self, step: str) -> None:
        """Removes a checkpoint from the store."""
        self._store.remove([f"{step}/{_MARK}"])
        self._store.remove([name for name in self._store.names() if name.startswith(f"{step}/")])
        self._steps.pop(step, None)

    def close(self) -> None:
        """Gives up the lease, if this object has it."""
        if self._lease:
            self._lease.release()
            self._lease = None


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class _Lease:
    """The right to write a folder on a store: a file that says who has it, and is renewed while the process lives.

    Two processes that start within the same second can both get it, because stores have no locks.

    Raises:
      HeldError: another process renews it.
    """

    def __init__(self, store: _Store):
        self._store, self._ended = store, threading.Event()
        self._content = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        before, began = self._holder(), time.time()
        while before and time.time() < min(before["renewed"], began) + EXPIRY:
            self._ended.wait(RENEWAL / 15)
            now = self._holder()
            if now and now["renewed"] != before["renewed"]:
                raise HeldError(
                    f"{store.where} is being trained by {_described(now)}: wait until it ends, or choose "
                    "another --workdir"
                )
            before = now
        self._renew()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _holder(self) -> dict[str, Any] | None:
        content = self._store.read(LEASE)
        return parse_json(content, _HELD, f"{self._store.where}/{LEASE}") if content else None

    def _renew(self) -> None:
        self._store.write(LEASE, json.dumps({**self._content, "renewed": time.time()}).encode())

    def _keep(self) -> None:
        while not self._ended.wait(RENEWAL):
            with contextlib.suppress(Exception):  # the next checkpoint reports a store that cannot be reached
                self.check()
                self._renew()

    def check(self) -> None:
        """Raises HeldError if another process has taken the lease, because this one could not renew it for too long."""
        holder = self._holder()
        if holder and {**holder, "renewed": 0} != {**self._content, "renewed": 0}:
            self._ended.set()
            raise HeldError(f"{self._store.where} is now being trained by {_described(holder)}")

    def release(self) -> None:
        """Removes the lease."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            with contextlib.suppress(Exception):
                self._store.remove([LEASE])


def _described(holder: Mapping[str, Any]) -> str:
    return f"process {holder['process']} on {holder['host']} since {holder['since']}"

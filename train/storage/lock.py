"""A lock that admits one process per folder; the operating system releases it when the process ends, however it ends.

The lock is flock. Linux also honors it between hosts over NFS version 4 (over version 3 if its lock daemon runs) and
on cluster file systems that are mounted with flock. After a host crashes, its lock is released when the server's lease
ends, usually within two minutes. On a file system without locks (ENOLCK, ENOSYS), a lock file that names host and
process takes its place. The lock file of a dead process on the same host is taken over; that of a dead host must be
deleted by hand, and the error says so. File systems that grant flock to several hosts at once, such as Lustre mounted
with `localflock`, are not detected.
"""

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

import filelock

from models.errors import UserError
from train.storage.files import read_json, remove, write_json

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
WAIT = 0.2  # seconds; a process that is about to end releases its lock within microseconds


class HeldError(UserError):
    """Another process trains in the folder."""


class Lock:
    """The right to train in a folder.

    Args:
      folder: a workdir.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._holder = folder / ".lock.json"
        self._lock: filelock.BaseFileLock | None = None

    def acquire(self) -> None:
        """Acquires the lock; does nothing if this object already holds it.

        Raises:
          HeldError: another process holds it; the message says which.
          UserError: the folder is not writable.
        """
        if self._lock:
            return
        hint = ""
        try:
            try:
                lock = filelock.FileLock(self._folder / ".lock", fallback_to_soft=False)
                lock.acquire(timeout=WAIT, poll_interval=WAIT / 4)
            except OSError as error:
                if isinstance(error, filelock.Timeout) or error.errno not in NO_LOCKS:
                    raise
                path = self._folder / ".lock.file"
                hint = f" (this file system has no locks: if that process is gone, delete {path})"
                lock = filelock.SoftFileLock(path)
                lock.acquire(timeout=WAIT, poll_interval=WAIT / 4)
            write_json(
                self._holder,
                {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")},
            )
        except filelock.Timeout:
            raise HeldError(
                f"{self._folder} is being trained by {self._described()}: wait until it ends, or choose "
                f"another --workdir{hint}"
            ) from None
        except OSError as error:
            raise UserError(f"cannot use --workdir={self._folder}: {error.strerror}") from error
        self._lock = lock

    def _described(self) -> str:
        try:
            holder = read_json(self._holder, {"type": "object", "required": ["process", "host", "since"]})
            return f"process {holder['process']} on {holder['host']} since {holder['since']}"
        except UserError:  # the process has only just acquired the lock
            return "another process"

    def release(self) -> None:
        """Releases the lock if this object holds it."""
        if self._lock:
            remove(self._holder)
            if isinstance(self._lock, filelock.UnixFileLock):  # it checks for a removed lock file when it acquires
                remove(Path(self._lock.lock_file))
            with contextlib.suppress(OSError):
                self._lock.release()
            self._lock = None

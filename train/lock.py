"""One process per folder: a lock that the operating system takes back when its process ends, however it ends.

It is flock, which Linux also honors between hosts over NFS version 4 (and 3 where its lock daemon runs) and on the
cluster file systems that are mounted with it. After the crash of a host its lock is given back when the server's lease
ends, usually within two minutes. A file system without locks (ENOLCK, ENOSYS) has a file as the lock, which names host
and process: that of a dead process of the same host is taken over, that of a dead host must be deleted by hand, and
the message says so. Nothing is told of a file system that grants flock to several hosts at once, as Lustre does when
it is mounted with `localflock`.
"""

import contextlib
import errno
import os
import socket
import time
from pathlib import Path

import filelock

from models.errors import UserError
from train.files import read_json, remove, write_json

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
WAIT = 0.2  # seconds; a process that is just ending needs some microseconds


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
        """Takes the lock; does nothing where this object has it already.

        Raises:
          UserError: another process has it (which is said), or the folder cannot be written.
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
            raise UserError(
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
        except UserError:  # it has just begun
            return "another process"

    def release(self) -> None:
        """Gives the lock back, if this object has it."""
        if self._lock:
            remove(self._holder)
            if isinstance(self._lock, filelock.UnixFileLock):  # which looks whether what it locked has been removed
                remove(Path(self._lock.lock_file))
            with contextlib.suppress(OSError):
                self._lock.release()
            self._lock = None

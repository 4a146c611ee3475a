"""The queue of a study's trials, in a folder that all workers share: plans list them, leases say who runs which.

There is no server and no open port. A worker takes the first free trial of a plan, holds a lease on it while it runs,
and appends its line to the ledger. The lease of a worker that has ended on the same host is void at once; that of any
other one after `SILENT` seconds without a sign of life. Whoever takes over resumes from the last checkpoint.
"""

import contextlib
import hashlib
import os
import pickle
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from experiments.study import ledger, trials
from experiments.study.trials import Job
from models.errors import UserError
from train.storage import files

FOLDER = "queue"  # in the folder of the trials' folders
SILENT = 60.0  # seconds without a sign of life after which a lease is void
BEAT = 10.0  # seconds between signs of life
HELD = 300.0  # seconds for which a lost worker's lock on a folder may outlast its lease: network file systems are slow
LATER = 10.0  # seconds until a trial whose folder is locked is tried again
LOST = 20  # a trial fails if so many workers in a row were lost while they ran it, without a new checkpoint


class Failure(NamedTuple):
    """A failed attempt at a trial.

    Attributes:
      host: Name of the host.
      text: One line for a mistake of the user, or a traceback.
      is_mistake: Whether the user can correct it.
    """

    host: str
    text: str
    is_mistake: bool


class Plan(NamedTuple):
    """The trials that one launch of a study wants.

    Attributes:
      jobs: {address: job}, in the order in which they should run.
      attempts: Number of failed attempts after which a trial is not tried again.
      deadline: Time after which no trial starts, as `time.time`; None for no limit.
      stop: Instruction that ends the workers after they have saved their trials, such as "scancel --name=NAME".
      versions: Versions of packages that the workers must have.
    """

    jobs: Mapping[str, Job]
    attempts: int = 1
    deadline: float | None = None
    stop: str = ""
    versions: Mapping[str, str] | None = None

    def is_late(self) -> bool:
        """Returns whether the deadline has passed."""
        return self.deadline is not None and time.time() > self.deadline


class Plans:
    """The plans of the launches of a study at one scale, each a file that its launcher locks while it lives.

    Args:
      root: Folder of the trials' folders.
      path: The study's ledger.
    """

    def __init__(self, root: Path, path: Path):
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]
        self.name = f"{path.parent.parent.name}-{path.parent.name}-{digest}"
        self.job_name = f"ablate-{self.name}"  # of its jobs of Slurm
        self.folder = root / FOLDER / self.name
        self._cache: dict[Path, tuple[int, Plan]] = {}

    def file(self, launch: str) -> Path:
        """Returns the file of a launch."""
        return self.folder / f"{launch}.plan"

    def write(self, launch: str, plan: Plan) -> None:
        """Writes the plan of a launch in one step, so that readers see the old or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self.file(launch), pickle.dumps(plan))

    def keep(self, launch: str, plan: Plan) -> None:
        """Writes the plan of a launch unless it is there; a launcher elsewhere may have taken this one for dead."""
        if not self.file(launch).exists():
            self.write(launch, plan)

    def lock(self, launch: str) -> filelock.FileLock:
        """Returns the lock that a launcher holds while it lives; the kernel frees it at its end."""
        return filelock.FileLock(self.file(launch).with_suffix(".lock"), timeout=0)

    def is_live(self, launch: str) -> bool:
        """Returns whether the launcher of a plan lives and still wants it."""
        if not self.file(launch).exists():
            return False
        try:
            with self.lock(launch):
                return False
        except filelock.Timeout:
            return True

    def launches(self) -> list[str]:
        """Returns the launches that have a plan."""
        return sorted(path.stem for path in self.folder.glob("*.plan"))

    def remove(self, launch: str) -> None:
        """Removes the plan of a launch; its workers then end."""
        for path in (self.file(launch), self.file(launch).with_suffix(".lock")):
            path.unlink(missing_ok=True)

    def logs(self, launch: str) -> Path:
        """Returns the folder of the logs of a launch's workers."""
        return self.folder / f"{launch}.logs"

    def read(self, launch: str) -> Plan | None:
        """Returns the plan of a launch; None if it is gone."""
        path = self.file(launch)
        try:
            changed = path.stat().st_mtime_ns
            if self._cache.get(path, (0, None))[0] != changed:
                self._cache[path] = changed, pickle.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return self._cache[path][1]


class Queue:
    """The trials of plans, and what has become of them.

    Args:
      root: Folder of the trials' folders.
      lines: The study's ledger.
    """

    def __init__(self, root: Path, lines: ledger.Ledger):
        self.root, self.lines = root, lines
        self.folder = root / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._leases: dict[str, filelock.SoftFileLease] = {}
        self._locked: dict[str, tuple[float, float]] = {}  # {trial: (since when, until when it is left alone)}

    # -- what has become of a trial --------------------------------------------------------------------------

    def is_done(self, job: Job) -> bool:
        """Returns whether the ledger has the trial's line; of a start, whether its network is there or diverged."""
        line = self.lines.get(job.name, job.code)
        if job.is_start:
            return trials.is_trained(job.folder, job.code) or bool(line and line["outcome"]["diverged"])
        return line is not None and trials.is_whole(line, job.trial)

    def failures(self, name: str) -> list[Failure]:
        """Returns the failed attempts at a trial."""
        return [Failure(*failure) for failure in self.record(name).get("failures", [])]

    def record(self, name: str) -> dict[str, Any]:
        """Returns the record of a trial's last attempt: host, process, attempts, failures; {} without one."""
        path = self._file(name)
        with contextlib.suppress(UserError):  # removed between the two calls
            return files.read_json(path) if path.exists() else {}
        return {}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def holder(self, name: str) -> tuple[str, float] | None:
        """Returns the host that runs a trial and the seconds since its last sign of life; None if no one runs it."""
        marker = self.folder / f"{name}.lease"
        try:
            return self.record(name).get("host", "?"), time.time() - marker.stat().st_mtime
        except FileNotFoundError:
            return None

    def progress(self) -> tuple[int, float]:
        """Returns a value that changes when a trial begins or ends."""
        began = (path.stat().st_mtime for path in self.folder.glob("*.json"))
        return len(self.lines), max(began, default=0.0)

    # -- taking trials ---------------------------------------------------------------------------------------

    def take(self, plan: Plan) -> Job | None:
        """Takes a lease on the first free trial of a plan, and returns it; None if none is free now."""
        self.lines.refresh()
        if plan.is_late():
            return None
        for name, job in plan.jobs.items():
            is_later = time.monotonic() < self._locked.get(name, (0, 0))[1]
            if is_later or self.is_over(job, plan) or not self._can_start(job, plan) or not self._acquire(name):
                continue
            self.lines.refresh()  # another worker may have finished it before the lease was free
            if not self.is_over(job, plan) and self._begin(job):
                return job
            self.release(name)
        return None

    def is_over(self, job: Job, plan: Plan) -> bool:
        """Returns whether a trial is done or has failed too often."""
        return self.is_done(job) or len(self.failures(job.name)) >= plan.attempts

    def _can_start(self, job: Job, plan: Plan) -> bool:
        if job.trial.start is None:
            return True
        start = plan.jobs.get(trials.address(job.trial.start))
        return start is None or self.is_done(start)

    def blocked(self, plan: Plan) -> Iterator[str]:
        """Yields the trials that cannot run because one that they start from failed."""
        for name, job in plan.jobs.items():
            before = (plan.jobs.get(trials.address(start)) for start in trials.starts(job.trial))
            if any(start and not self.is_done(start) and self.is_over(start, plan) for start in before):
                yield name

    def _acquire(self, name: str) -> bool:
        if name not in self._leases:
            self._leases[name] = filelock.SoftFileLease(
                self.folder / f"{name}.lease", lease_duration=SILENT, heartbeat_interval=BEAT, on_compromise=_end
            )
        if self._leases[name].is_locked:
            return False
        try:
            self._leases[name].acquire(timeout=0)
        except filelock.Timeout:
            return False
        return True

    def _begin(self, job: Job) -> bool:
        """Records the start of an attempt; a failure instead if too many workers in a row were lost at it."""
        before, step = self.record(job.name), _last_step(job.folder)
        count = before.get("attempts", 0) * (before.get("step") == step) + 1
        record = {"host": host(), "pid": os.getpid(), "since": time.time(), "attempts": count, "step": step}
        files.write_json(self._file(job.name), {**record, "failures": before.get("failures", [])})
        if count > LOST:
            text = f"{LOST} workers in a row were lost while they ran it, the last on {before['host']}: out of memory?"
            self.fail(job.name, UserError(text), "")
        return count <= LOST

    def fail(self, name: str, error: Exception, trace: str) -> None:
        """Records a failed attempt."""
        record = self.record(name)
        failure = Failure(host(), trace or str(error), isinstance(error, UserError))
        files.write_json(
            self._file(name), {**record, "attempts": 0, "failures": [*record.get("failures", []), failure]}
        )

    def postpone(self, name: str) -> bool:
        """Leaves a trial alone for a while because its folder is locked; returns False if that has lasted too long."""
        now = time.monotonic()
        since = self._locked.get(name, (now, now))[0]
        self._locked[name] = since, now + LATER
        files.write_json(self._file(name), {**self.record(name), "attempts": 0})
        return now < since + HELD

    def forget(self, name: str) -> None:
        """Removes the record of a trial."""
        self._file(name).unlink(missing_ok=True)

    def release(self, name: str) -> None:
        """Ends the lease on a trial."""
        self._leases[name].release()

    def finish(self, job: Job) -> None:
        """Removes the record of a finished trial, and its folder unless it stays; call it before `release`."""
        self.forget(job.name)
        if not job.keep:
            shutil.rmtree(job.folder, ignore_errors=True)


def host() -> str:
    """Returns the name of this host, or of the node as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _last_step(folder: Path) -> int:
    """Returns the step of a trial's last checkpoint; 0 without one."""
    path = folder / "checkpoints"
    names = (child.name for child in path.iterdir()) if path.is_dir() else ()
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _end(compromise: filelock.LeaseCompromise) -> None:
    """Ends this process at once: another worker runs the trial now, and two of them may not write to one folder."""
    print(f"error: {compromise.lock_file}: lease lost ({compromise.reason}); another worker goes on", file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)

"""A worker: a process that takes trials from a study's queue and runs them, one after another, until none is left."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.study import ledger, queue, trials
from models import command
from models.errors import UserError
from train.recording import summary
from train.storage import lock

POLL = 0.3  # seconds between looks at a queue without a free trial
IDLE = 30.0  # seconds without a free trial after which a job of Slurm ends; the launcher starts another one if needed
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")


class Work(NamedTuple):
    """The task of a worker.

    Attributes:
      root: Folder of the trials' folders.
      path: The study's ledger.
      launch: The launch that started it.
      stays: Whether it goes on without its launcher, and serves the other launches of the study, too.
      cores: The cores that it may use; () for all.
      devices: Numbers of the accelerators that it may use, such as "2,3"; "" for all.
    """

    root: Path
    path: Path
    launch: str
    stays: bool
    cores: Sequence[int] = ()
    devices: str = ""


class _Stop:
    """The signal or the end of the launcher that stops a worker."""

    came = False

    def note(self, number: int, frame: Any) -> None:
        """Handles a signal outside of training, which handles signals itself."""
        del number, frame
        self.came = True

    @contextlib.contextmanager
    def when(self, condition: Callable[[], bool]) -> Iterator[None]:
        """Ends the trial of this process as SIGTERM does once a condition holds."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(1):
                if condition():
                    self.came = True
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()


def serve(work: Work) -> str:
    """Runs trials until none is left, and returns a line about them.

    The process ends with exit code 75 if a signal or the end of the launcher stopped it. If that was the end of a Slurm
    job's time, Slurm runs the job again.

    Raises:
      UserError: The first trial failed here, or the code differs from the launcher's: this host would fail all of them.
    """
    _settle(work)
    lines = ledger.Ledger(work.path.parent)
    plans, current = queue.Plans(work.root, work.path), queue.Queue(work.root, lines)
    stop, count, host = _Stop(), 0, queue.host()
    with command.handling(SIGNALS, stop.note), stop.when(lambda: not work.stays and not plans.is_live(work.launch)):
        while job := _next(work, plans, current, stop):
            if why := _difference(job, plans, work):
                current.release(job.name)
                raise UserError(f"{host}: {why}")
            line = run(current, job)
            if line and "interrupted" in line:
                stop.came = True
            elif line:
                count += 1
            elif line is None and not count:
                raise UserError(f"{host}: {current.failures(job.name)[-1].text}")
    if stop.came:
        from train.devices import slurm

        print(slurm.requeue() or f"stopped after {count} trials", flush=True)
        sys.exit(command.PREEMPTED)
    return f"{count} trials finished"


def run(current: queue.Queue, job: trials.Job, raises: bool = False) -> dict[str, Any] | None:
    """Runs a trial that was taken from a queue, and releases it.

    Args:
      current: The queue.
      job: The trial.
      raises: Whether a failure is raised instead of being recorded.

    Returns:
      Its line; {"interrupted": signal}; {} if a lost worker's lock is still on its folder; None if it failed.
    """
    import jax

    name = job.name
    try:
        line = trials.after_divergence(job, current.lines) or trials.run(job)
        if "interrupted" not in line:
            current.finish(job)
        return line
    except Exception as error:
        if isinstance(error, lock.HeldError) and current.postpone(name):
            return {}
        if raises:
            raise
        if isinstance(error, OSError) and error.filename:  # such as a full disk
            error = UserError(f"{error.filename}: {error.strerror}")
        current.fail(name, error, "" if isinstance(error, UserError) else traceback.format_exc())
        return None
    finally:
        current.release(name)
        jax.clear_caches()  # otherwise compiled programs of hundreds of trials fill the memory


def _next(work: Work, plans: queue.Plans, current: queue.Queue, stop: _Stop) -> trials.Job | None:
    """Returns a trial that is now this worker's; None if it should end."""
    idle = time.monotonic()
    while not stop.came and (not work.stays or time.monotonic() < idle + IDLE):
        launches = plans.launches() if work.stays else [work.launch]
        present = [plan for launch in launches if (plan := plans.read(launch))]
        for plan in present:
            if job := current.take(plan):
                return job
        if all(plan.is_late() for plan in present):
            return None
        time.sleep(POLL)
    return None


def _difference(job: trials.Job, plans: queue.Plans, work: Work) -> str:
    """Returns a text about how this host's code or packages differ from the launcher's; "" if they do not."""
    plan, ours = plans.read(work.launch), summary.versions()
    for name, version in ((plan and plan.versions) or {}).items():
        if ours.get(name) != version:
            return f"{name} is {ours.get(name, 'missing')} there, {version} at the launcher"
    return "" if trials.code_of(job.trial) == job.code else "the code there differs from the launcher's"


def _settle(work: Work) -> None:
    """Restricts this process to its cores and accelerators, before JAX counts them."""
    if work.cores:
        os.sched_setaffinity(0, work.cores)
    if work.devices:
        os.environ |= dict.fromkeys(DEVICES, work.devices)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

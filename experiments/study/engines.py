"""Engines run the trials of a launch: in this process, in worker processes of this host, or in jobs of Slurm.

submitit starts the workers on a host and on Slurm through one interface. They take their trials from the queue.
"""

import contextlib
import functools
import io
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.study import queue, slurm, worker
from models import command
from models.errors import UserError
from models.kernels import runtime

DEATHS = 3  # workers in a row that end with an error before they begin a trial: the launcher gives up
KILLS = 10  # the same for workers that end without a word
PATIENCE = 600  # seconds without an answer of Slurm after which the launcher gives up; its jobs go on
GRACE = 90  # seconds for workers to save their trials
_YEARS = 10 * 365 * 24 * 60  # minutes: submitit wants a limit


class Place(NamedTuple):
    """The place where trials run.

    Attributes:
      on: "local" or "slurm".
      at_once: Trials at once; one of them on "local" runs in this process.
      devices: Accelerators on this host for each trial; 0 without accelerators.
      options: Options of sbatch by their names, such as {"partition": "gpu", "time": "2:00:00"}.
    """

    on: str = "local"
    at_once: int = 1
    devices: int = 0
    options: Mapping[str, str] = types.MappingProxyType({})


class Interrupted(UserError):
    """An interruption of the trials by a signal."""

    def __init__(self, name: str, hint: str = ""):
        super().__init__(f"{name}: finished work is kept; {hint}run the same command to resume")
        self.name = name
        self.exit_code = command.INTERRUPTED if name == "SIGINT" else command.PREEMPTED


class Engine(Protocol):
    """Whatever runs the trials of a launch."""

    def step(self, free: int, held: int) -> None:
        """Makes progress, or waits a moment; `free` trials could start now, and workers run `held` others."""

    def is_busy(self) -> bool:
        """Returns whether a worker may still run a trial."""
        ...

    def hint(self) -> str:
        """Returns a text about workers that go on without this process."""
        ...

    def stop(self) -> None:
        """Makes sure that no other worker starts; the plan is gone, so that the others end."""

    def wait(self) -> None:
        """Waits until the workers have saved their trials and ended."""


class Here:
    """The engine that runs trials in this process."""

    def __init__(self, plan: queue.Plan, current: queue.Queue):
        self._plan, self._queue = plan, current

    def step(self, free: int, held: int) -> None:
        del free, held
        job = self._queue.take(self._plan)
        if not job:
            time.sleep(worker.POLL)  # another launcher runs what is left
            return
        try:
            line = worker.run(self._queue, job, raises=True) or {}
        except UserError as error:
            raise UserError(f"{job.name}: {error}") from error
        if "interrupted" in line:
            raise Interrupted(line["interrupted"])

    def is_busy(self) -> bool:
        return False

    def hint(self) -> str:
        return ""

    def stop(self) -> None:
        pass

    def wait(self) -> None:
        pass


class Workers:
    """The engine that starts worker processes, as processes of this host or as jobs of Slurm, by submitit."""

    def __init__(
        self,
        plans: queue.Plans,
        launch: str,
        path: Path,
        place: Place,
        current: queue.Queue,
        say: Callable[[str], None],
    ):
        import jax
        import submitit

        self._place, self._queue, self._say, self._name = place, current, say, plans.job_name
        self._work = worker.Work(current.root.resolve(), path.resolve(), launch, stays=place.on == "slurm")
        self._jobs: dict[int, Any] = {}  # by the number of the worker
        self._deaths: list[str] = []
        self._banned: list[str] = []  # nodes of Slurm that cannot run the trials
        self._progress = (0, 0.0)
        self._known, self._answered, self._asked = set[str](), time.monotonic(), 0.0  # the last answer of Slurm
        self._folder = plans.logs(launch)
        if place.on == "slurm":
            self._executor: Any = submitit.SlurmExecutor(self._folder)
            self._executor.update_parameters(job_name=self._name, **slurm.parameters(place.options))
        else:
            self._executor = submitit.LocalExecutor(self._folder)
            self._executor.update_parameters(timeout_min=_YEARS)
        if place.devices:
            jax.config.update("jax_platforms", "cpu")  # judges of this process leave the accelerators to the workers

    def step(self, free: int, held: int) -> None:
        """Starts workers in place of those that have ended, as long as there are trials; then waits a moment."""
        queued = self._queued()
        for number, job in list(self._jobs.items()):
            if job.job_id not in queued:
                self._bury(self._jobs.pop(number))
        absent = [number for number in range(self._place.at_once) if number not in self._jobs]
        need = min(self._place.at_once, free + held) - len(queued)  # some that hold a lease may be dead
        if chosen := absent[: max(0, need)]:
            self._start(chosen)
            self._asked = 0.0
        time.sleep(worker.POLL)

    def _start(self, numbers: Sequence[int]) -> None:
        """Starts workers.

        Raises:
          UserError: Slurm refuses their jobs.
        """
        from submitit.core.utils import FailedJobError

        try:
            batch = self._executor.batch() if self._work.stays else contextlib.nullcontext()
            with contextlib.redirect_stderr(io.StringIO()), _ignoring_interrupts(), batch:  # submitit repeats errors
                self._jobs |= {number: self._executor.submit(worker.serve, self._task(number)) for number in numbers}
        except FailedJobError as error:
            text = " ".join(str(error).split())
            if self._banned:
                text = f"no node is left after the trials failed on {', '.join(self._banned)}: {text}"
            self._endure(UserError(f"--on=slurm: {text}"), patience=0 if self._banned else PATIENCE)

    def _endure(self, error: UserError, patience: float) -> None:
        """Waits a moment after an error of Slurm; raises the error if none of its answers came for too long."""
        if time.monotonic() > self._answered + patience:
            raise error
        time.sleep(slurm.POLL)

    def is_busy(self) -> bool:
        return bool(self._queued())

    def hint(self) -> str:
        return f"the workers go on: squeue --name={self._name}; scancel --name={self._name} ends them; "

    def stop(self) -> None:
        if self._work.stays:
            slurm.cancel_pending(self._name)

    def wait(self) -> None:
        deadline = time.monotonic() + GRACE
        while self._queued() and time.monotonic() < deadline:
            time.sleep(worker.POLL)
        for job in self._jobs.values():
            if not self._work.stays and not job.done():
                os.kill(int(job.job_id), signal.SIGKILL)  # its trial resumes from the last checkpoint

    def _queued(self) -> set[str]:
        """Returns the ids of the workers that wait or run, on Slurm with those of earlier launches."""
        if self._work.stays:
            if time.monotonic() > self._asked + slurm.POLL:
                self._asked = time.monotonic()
                try:
                    self._known, self._answered = slurm.queued(self._name), time.monotonic()
                except UserError as error:
                    self._endure(error, PATIENCE)
            return self._known
        return {job.job_id for job in self._jobs.values() if not job.done()}

    def _task(self, number: int) -> worker.Work:
        """Returns the task of a worker on this host: its share of the cores, or its accelerators."""
        if self._work.stays:
            return self._work
        if size := self._place.devices:
            return self._work._replace(devices=",".join(visible()[number * size : (number + 1) * size]))
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return self._work._replace(
            cores=cores[number :: self._place.at_once] or cores[number % max(1, len(cores)) :][:1]
        )

    def _bury(self, job: Any) -> None:
        """Notes the end of a worker.

        Raises:
          UserError: Several in a row ended before one of them began a trial.
        """
        words = _last_words(job)
        progress = self._queue.progress()
        self._deaths = [*self._deaths, words] if progress == self._progress else [words]
        self._progress = progress
        if words:
            self._say(f"worker {job.job_id} ended: {words}")
        errors, count = list(filter(None, self._deaths)), len(self._deaths)
        if len(errors) >= DEATHS or count >= KILLS:
            why = errors[-1] if errors else "killed, out of memory, or a full disk"
            raise UserError(f"{count} workers in a row ended before they began a trial: {why}; logs: {self._folder}")
        host = re.match(r"([\w.-]+): ", words)
        if host and self._work.stays:
            self._banned = sorted({*self._banned, host[1]})
            self._executor.update_parameters(exclude=",".join(self._banned))


def _last_words(job: Any) -> str:
    """Returns the error that ended a worker; "" if it came to its end, or was killed."""
    if not job.paths.result_pickle.exists():
        return ""
    errors = re.findall(r"^\w[\w.]*(?:Error|Exception): (.*)$", str(job.exception() or ""), re.MULTILINE)
    return errors[-1] if errors else ""


def visible() -> list[str]:
    """Returns the names of the accelerators that this process may use; [] if that is not restricted or on a CPU."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return names.split(",") if names else [str(number) for number in range(accelerators())]


@functools.cache
def accelerators() -> int:
    """Returns the number of accelerators of this host; another process asks JAX, which would take their memory."""
    if runtime.computes_on_cpu():
        return 0
    code = "import jax; print(0 if jax.default_backend() == 'cpu' else jax.local_device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


@contextlib.contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Makes children that start here ignore ctrl-C: they end when the launcher tells them to."""
    with command.handling([signal.SIGINT], signal.SIG_IGN):  # pyright: ignore[reportArgumentType]  (a handler, too)
        yield

"""Workers of a case, which take turns: processes, samples, medians, ratios."""

import collections
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import UserError

ROOT = Path(__file__).parents[2]
_QUIET = 25  # most involuntary context switches in a sample that counts as undisturbed
_ENOUGH = 5  # number of undisturbed samples that suffices to discard the others


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the command line for all cases.

    peer_python, tf_python: interpreters with PyTorch and TensorFlow ("": none, so their workers fail). processes:
    number of starts of all workers of a case; the memory layout of a process changes its speed by more than its own
    samples differ. rounds: rounds per start; in each, every worker runs every call `inner` times. overlap: the workers
    of a case start, and compile, at the same time. accelerator: whether ours runs on one. batch: images per step; 0:
    each network's own.
    precision: "float32" or "bfloat16", of the computation. compile: modes of torch.compile to measure. stock: also
    measures ours without this project's settings and lowerings. quick: only training steps, and fewer of them.
    data_dir: folder of TFDS sets. images: an .npz of CIFAR-10. cores: number of cores of a data pipeline.
    """

    peer_python: str = sys.executable
    tf_python: str = ""
    processes: int = 3
    rounds: int = 4
    inner: int = 3
    overlap: bool = False
    accelerator: bool = False
    batch: int = 0
    precision: str = "float32"
    compile: tuple[str, ...] = ()
    stock: bool = False
    quick: bool = False
    data_dir: str = ""
    images: str = ""
    cores: int = 2

    def python(self, module: str) -> str:
        """Returns the Python that runs a worker's module; raises WorkerFailed if there is none."""
        if module == "ours":
            return sys.executable
        flag, library = {"peer": ("peer_python", "PyTorch"), "tf_data": ("tf_python", "TensorFlow")}[module]
        if not getattr(self, flag):
            raise WorkerFailed(f"no Python with {library}; --{flag} names one")
        return getattr(self, flag)


class Spec(NamedTuple):
    """A worker to start.

    Attributes:
      name: Name in the table.
      module: ours, peer or tf_data.
      case: The case, in JSON's types.
      env: Variables of its environment.
      cores: Number of cores to which it is confined; 0: all.
      counts_cpu: Whether its images are also divided by its time on all cores, which is that of one process.
    """

    name: str
    module: str
    case: Mapping[str, Any]
    env: Mapping[str, str] = {}
    cores: int = 0
    counts_cpu: bool = False


class Call(NamedTuple):
    """A timed quantity: its name; units of work per call, and images per unit."""

    name: str
    units: int = 1
    images: float = 0


class WorkerFailed(Exception):
    """A worker that reported a failure, or ended."""


class Watched(NamedTuple):
    """The result of a finished process: its time, and the largest resident size among it and its children."""

    seconds: float
    peak_mib: float


# A small process of its own measures, because a child starts with the peak memory of its parent
_WATCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps([done.returncode, (done.stderr.strip().splitlines() or ["no output"])[-1], seconds, peak]))
"""


def watched(command: Sequence[str], env: Mapping[str, str] | None = None) -> Watched:
    """Runs a command to its end in the project's folder; raises WorkerFailed with its last output if it fails."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _WATCH, *command], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, check=True
    )
    code, message, *measured = json.loads(done.stdout)
    if code:
        raise WorkerFailed(message)
    return Watched(*measured)


class Worker:
    """A process that works on a case on request."""

    def __init__(self, spec: Spec, settings: Settings):
        confine = None
        if spec.cores and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))[: spec.cores]
            confine = lambda: os.sched_setaffinity(0, cores)  # noqa: E731
        # By default JAX would take most of an accelerator's memory at once, which the peer's worker needs as well.
        env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **spec.env}
        self._process = subprocess.Popen(
            [settings.python(spec.module), "-m", f"experiments.bench.{spec.module}", json.dumps(spec.case)],
            cwd=ROOT,
            text=True,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=confine,
        )
        assert self._process.stdin and self._process.stdout  # both are pipes
        self._asked, self._told = self._process.stdin, self._process.stdout
        self._began, self.name = time.perf_counter(), spec.name

    def ready(self) -> dict[str, Any]:
        """Waits until the worker is ready; returns its description. Sets `ready_after`, the seconds that took."""
        description = self._answer()["ready"]
        self.ready_after = time.perf_counter() - self._began
        return description

    def run(self, call: str, count: int) -> list[dict[str, float]]:
        """Returns samples of `count` calls."""
        self._asked.write(f"{call} {count}\n")
        self._asked.flush()
        return [self._answer() for _ in range(count)]

    def close(self) -> dict[str, float]:
        """Ends the process; returns its memory peaks in MiB."""
        self._asked.close()
        peaks = self._answer()
        self._process.wait()
        return peaks

    def kill(self) -> None:
        """Kills the process, whatever its state."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        try:
            answer = json.loads(self._told.readline())
        except ValueError:
            raise WorkerFailed(f"ended with exit code {self._process.wait()}") from None
        if "failed" in answer:
            raise WorkerFailed(answer["failed"])
        return answer


def one(spec: Spec, settings: Settings) -> dict[str, Any]:
    """Runs a worker that has no calls.

    Returns:
      Its description and its memory peaks; "ready_after" is the time until it was ready, in seconds.

    Raises:
      WorkerFailed: The worker failed; the message is its reason.
    """
    worker = Worker(spec, settings)
    try:
        description = worker.ready()
        peaks = worker.close()
    finally:
        worker.kill()
    return {**description, **peaks, "ready_after": worker.ready_after}


def interleaved(
    specs: Sequence[Spec], calls: Sequence[Call], settings: Settings, inner: int = 0
) -> list[dict[str, Any]]:
    """Returns the rows of `table` for workers that take turns, `inner` (0: the settings') calls each.

    A worker that fails is left out from then on; its row gives the reason.
    """
    samples: dict[tuple[str, str], list[dict[str, float]]] = collections.defaultdict(list)
    # Descriptions of the workers, and their memory peaks
    descriptions: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    failed: dict[str, str] = {}
    for _ in range(settings.processes):
        running: list[Worker] = []

        def attempt(worker, action, *arguments, running=running):
            try:
                return action(*arguments)
            except (WorkerFailed, BrokenPipeError) as error:
                failed[worker.name] = str(error)
                worker.kill()
                running.remove(worker)
                return ()  # neither samples nor a description

        try:
            for spec in specs:
                if spec.name in failed:
                    continue
                try:
                    worker = Worker(spec, settings)
                except WorkerFailed as error:
                    failed[spec.name] = str(error)
                    continue
                running.append(worker)
                if not settings.overlap:
                    descriptions[worker.name].update(attempt(worker, worker.ready))
            for worker in [*running] if settings.overlap else ():
                descriptions[worker.name].update(attempt(worker, worker.ready))
            for _ in range(settings.rounds):
                for call in calls:
                    for worker in [*running]:
                        samples[call.name, worker.name] += attempt(
                            worker, worker.run, call.name, inner or settings.inner
                        )
            for worker in [*running]:
                for name, peak in dict(attempt(worker, worker.close)).items():
                    descriptions[worker.name][name] = round(max(descriptions[worker.name].get(name, 0), peak))
        finally:
            for worker in running:
                worker.kill()
    if len(failed) == len(specs):
        raise UserError(f"no worker of the case ran: {'; '.join(f'{name}: {why}' for name, why in failed.items())}")
    return table(specs, calls, samples, descriptions, failed)


def table(
    specs: Sequence[Spec],
    calls: Sequence[Call],
    samples: Mapping[tuple[str, str], Sequence[Mapping[str, float]]],
    descriptions: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Returns one row per call and worker.

    Keys: "what", "who", "side" ("ours", "peer"), "ms" (median per unit), "min_ms", "samples", "images_per_second",
    "per_cpu_second", and the worker's own numbers ("peak_mib", "device_peak_mib", "params"); "times_first", the speed
    relative to the first worker, and for ours "times_best", the speed relative to the fastest of the peer's. A worker
    that failed has "failed", the reason, instead.
    """
    rows = []
    for call in calls:
        of_call = []
        for spec in specs:
            side = "ours" if spec.module == "ours" else "peer"
            row = {"what": call.name, "who": spec.name, "side": side}
            if spec.name in failed:
                of_call.append({**row, "failed": failed[spec.name]})
                continue
            measured = samples[call.name, spec.name]
            quiet = [sample["ms"] for sample in measured if sample["preempted"] < _QUIET]
            milliseconds = quiet if len(quiet) >= _ENOUGH else [sample["ms"] for sample in measured]
            median = statistics.median(milliseconds) / call.units
            of_call.append(
                {
                    **row,
                    "ms": round(median, 4),
                    "min_ms": round(min(milliseconds) / call.units, 4),
                    "samples": len(milliseconds),
                    **descriptions.get(spec.name, {}),
                }
            )
            if call.images:
                of_call[-1]["images_per_second"] = round(1e3 * call.images / median, 1)
            if spec.counts_cpu:
                cpu = statistics.median(sample["cpu_ms"] for sample in measured) / call.units
                of_call[-1]["per_cpu_second"] = round(1e3 * call.images / cpu, 1)
        rows += with_ratios(of_call)
    return rows


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of one call, with "times_first" and "times_best" if there is a row to compare with."""
    first, peers = rows[0].get("ms"), [row["ms"] for row in rows if row["side"] == "peer" and "ms" in row]
    for row in rows:
        if "ms" in row and first:
            row["times_first"] = round(first / row["ms"], 3)
        if "ms" in row and row["side"] == "ours" and peers:
            row["times_best"] = round(min(peers) / row["ms"], 3)
    return list(rows)

"""The worker's side of a benchmark: times calls on request. Needs the standard library alone.

A worker answers with lines of JSON: {"ready": its description} when everything is compiled, or {"failed": reason};
then for each line "CALL COUNT" of its input COUNT lines {"ms": wall time, "cpu_ms": time of this process on all cores,
"preempted": involuntary context switches};
and when its input closes {"peak_mib": of the process, "device_peak_mib": of an accelerator, where it can be read}.
"""

import importlib.util
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

WARM = 10  # batches before a pipeline is timed: its workers have started, and its buffers are used up


class Spent(NamedTuple):
    """Seconds on the clock, and of this process on all cores."""

    seconds: float
    cpu: float


class Served(NamedTuple):
    """The work of a worker.

    Attributes:
      calls: Calls by name. Each ends with its work; it returns None, or what to count instead of its whole time.
      description: The worker's description of itself.
      device_peak: Returns the peak of the accelerator's memory in bytes, or None.
    """

    calls: Mapping[str, Callable[[], Spent | None]]
    description: Mapping[str, Any] = {}
    device_peak: Callable[[], int | None] = lambda: None


def after_warm_up(batches: Iterable[object]) -> Spent:
    """Returns what was spent from the end of batch WARM to the end of the last batch."""
    iterator = iter(batches)
    for _ in range(WARM):
        next(iterator)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in iterator:
        pass
    return Spent(time.perf_counter() - began, time.process_time() - cpu)


def begin(usage: str | None, library: str = "") -> None:
    """Prints the usage for --help, and exits with one line if a library is missing; runs before slow imports."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((usage or "").strip())
        sys.exit(0)
    if library and importlib.util.find_spec(library) is None:
        print(f"error: {library} is missing in {sys.executable}: pip install {library}", file=sys.stderr)
        sys.exit(2)


def work(cases: Mapping[str, Callable[[dict[str, Any]], Served]]) -> None:
    """Sets up the case that the command line describes in JSON, by its "case", and serves it."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries and of the programs that they start must not mix with answers

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=out, flush=True)

    try:
        case = json.loads(sys.argv[1])
        served = cases[case["case"]](case)
        answer(ready=dict(served.description))
        for line in sys.stdin:
            call, count = line.split()
            for _ in range(int(count)):
                answer(**_timed(served.calls[call]))
        peak = served.device_peak()
        peaks = {"device_peak_mib": peak / 2**20} if peak else {}
        answer(peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, **peaks)
    except Exception as error:  # libraries raise anything: out of memory, no compiler, an unknown network
        traceback.print_exc()
        answer(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        sys.exit(1)


def _timed(call: Callable[[], Spent | None]) -> dict[str, float]:
    switched, began, cpu = _preempted(), time.perf_counter(), time.process_time()
    spent = call() or Spent(time.perf_counter() - began, time.process_time() - cpu)
    return {"ms": spent.seconds * 1e3, "cpu_ms": spent.cpu * 1e3, "preempted": _preempted() - switched}


def _preempted() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

"""The worker's side of a benchmark: times calls when it is told to. Needs the standard library alone.

A worker prints "ready" when everything is compiled, then reads lines "CALL COUNT", answers each with COUNT lines of
JSON {"ms": wall time, "preempted": involuntary context switches}, and ends with {"peak_mib": …} when its input closes.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping

WARM = 10  # batches after which a pipeline runs at its pace: workers have started, and nothing is left from before


def after_warm_up(batches: Iterable[object]) -> float:
    """Seconds from the end of batch WARM to the end of the last."""
    iterator = iter(batches)
    for _ in range(WARM):
        next(iterator)
    began = time.perf_counter()
    for _ in iterator:
        pass
    return time.perf_counter() - began


def serve(calls: Mapping[str, Callable[[], object]]) -> None:
    """Serves `calls`, each of which returns when its work is done: None, or the seconds of the part that counts."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is not an answer
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        call, count = line.split()
        for _ in range(int(count)):
            switched, began = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.perf_counter()
            seconds = calls[call]()
            elapsed = time.perf_counter() - began if seconds is None else seconds
            switched = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switched
            print(json.dumps({"ms": elapsed * 1e3, "preempted": switched}), file=out, flush=True)
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), file=out, flush=True)

"""The worker's side of a benchmark: times calls when it is told to. Needs the standard library alone.

A worker prints "ready" when everything is compiled, then reads lines "CALL COUNT", answers each with COUNT lines of
JSON {"ms": wall time, "preempted": involuntary context switches}, and ends with {"peak_mib": …} when its input closes.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping


def serve(calls: Mapping[str, Callable[[], object]]) -> None:
    """Serves `calls`, each of which returns when its work is done."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is not an answer
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        call, count = line.split()
        for _ in range(int(count)):
            switched, began = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.perf_counter()
            calls[call]()
            elapsed = time.perf_counter() - began
            switched = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switched
            print(json.dumps({"ms": elapsed * 1e3, "preempted": switched}), file=out, flush=True)
    print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), file=out, flush=True)

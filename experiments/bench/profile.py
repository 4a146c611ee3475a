"""Time of a call by kind of operation, from a trace of `jax.profiler`."""

import collections
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

CALLS = 3  # number of traced calls
KINDS = 12  # number of listed kinds; the others share one row
IDLE = "no operation runs"
Event = tuple[float, float, str]  # (start and duration in nanoseconds, name)


def traced(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Returns rows {"kind", "share", "ms", "count"} of the operations of a compiled call, most time first.

    `ms` and `count` are per call, summed over the streams of a device, or over a CPU's threads. The row IDLE is the
    time in which no operation runs: launches, Python, the host. `share` is relative to the sum of all rows.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                call()
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        threads = operations(planes)
        own = [operation for events in threads for operation in own_times(events)]
        return by_kind([*own, (IDLE, idle([event for events in threads for event in events]))], CALLS)


def operations(planes: Iterable[Any]) -> list[list[Event]]:
    """Returns the operations that XLA ran, by stream or thread: on accelerators if the trace has any, else on the host.

    A kernel is named by its HLO operation if the trace has that name.
    """
    planes = list(planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    streams = []
    for plane in devices or planes:
        lines = list(plane.lines)
        # A TPU's trace has a separate line of operations, a GPU's has the kernels of each stream.
        chosen = (
            [line for line in lines if line.name.startswith("Stream")]
            or [line for line in lines if line.name == "XLA Ops"]
            or ([] if devices else lines)
        )
        for line in chosen:
            streams.append([])
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation or devices:
                    streams[-1].append((event.start_ns, event.duration_ns, str(operation or event.name)))
    return streams


def idle(events: Iterable[Event]) -> float:
    """Returns the time between the first start and the last end in which no event runs."""
    waited, until = 0.0, None
    for start, duration, _ in sorted(events):
        waited += max(0.0, start - until) if until is not None else 0.0
        until = max(start + duration, until or 0.0)
    return waited


def own_times(events: Iterable[Event]) -> list[tuple[str, float]]:
    """Returns (name, time without nested events) of the events of one thread or stream."""
    own: list[list[Any]] = []
    inside: list[tuple[float, int]] = []  # (end, index in `own`) of the events that enclose the current one
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while inside and inside[-1][0] <= start:
            inside.pop()
        if inside:
            own[inside[-1][1]][1] -= duration
        inside.append((start + duration, len(own)))
        own.append([name, duration])
    return [(name, time) for name, time in own]


def kind(name: str) -> str:
    """Returns an operation's name without its number: "fusion.12.clone" -> "fusion"."""
    return re.sub(r"([._](\d+|clone|remat))+$", "", name)[:60]


def by_kind(operations: Iterable[tuple[str, float]], calls: int) -> list[dict[str, Any]]:
    """Returns the rows of `traced` from the operations of `calls` calls."""
    times, counts = collections.defaultdict[str, float](float), collections.Counter()
    for name, time in operations:
        times[kind(name)] += time
        counts[kind(name)] += 1
    ordered = sorted(times.items(), key=lambda pair: -pair[1])
    listed, rest = ordered[:KINDS], ordered[KINDS:]
    if rest:
        other = f"{len(rest)} other kinds"
        listed.append((other, sum(time for _, time in rest)))
        counts[other] = sum(counts[name] for name, _ in rest)
    whole = sum(times.values())
    return [
        {
            "kind": name,
            "share": round(time / whole, 4),
            "ms": round(time / calls / 1e6, 4),
            "count": round(counts[name] / calls),
        }
        for name, time in listed
    ]

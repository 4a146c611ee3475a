"""Timing of programs side by side on one machine: they take turns, so that disturbances slow all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """A program to time: `call()` waits for the result. `mult_adds` counts float operations; None if there are none."""

    name: str
    call: Callable[[], Any]
    mult_adds: int | None


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns the median time of each call in seconds; each waits for its result, and no call warms up first."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(programs: Sequence[Timed], rounds: int) -> list[dict[str, Any]]:
    """Returns medians of the programs after two warm-up calls each, and ratios to the first."""
    for program in programs:
        program.call()
        program.call()
    seconds, first = medians({program.name: program.call for program in programs}, rounds), programs[0]
    return [
        {
            "program": program.name,
            "mult_adds": program.mult_adds,
            "of_mult_adds": program.mult_adds / first.mult_adds if program.mult_adds and first.mult_adds else None,
            "milliseconds": round(1000 * seconds[program.name], 4),
            "times_faster": round(seconds[first.name] / seconds[program.name], 3),
        }
        for program in programs
    ]

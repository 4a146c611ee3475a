"""Timing of programs side by side on one machine: they take turns, so that disturbances slow all alike."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from models.analysis.timing import medians


class Timed(NamedTuple):
    """A program to time: `call()` waits for the result. `mult_adds` counts float operations; None if there are none."""

    name: str
    call: Callable[[], Any]
    mult_adds: int | None


def timed(programs: Sequence[Timed], rounds: int) -> list[dict[str, Any]]:
    """Returns medians of the programs after two warm-up calls each, and ratios to the first."""
    seconds, first = medians({program.name: program.call for program in programs}, rounds, warm_up=2), programs[0]
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

"""Times of programs side by side on one machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

SPINNING = 0.1  # seconds for which threads of onnxruntime may spin after a call, which slows down what runs next


def medians(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 0, pause: float = 0.0
) -> dict[str, float]:
    """Returns the median time of each call in seconds; they take turns, so that disturbances slow all alike.

    Args:
      calls: Functions without arguments, which wait for their result.
      rounds: Number of timed calls of each.
      warm_up: Number of calls of each before those.
      pause: Seconds before each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            time.sleep(pause)
            began = time.perf_counter()
            call()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}

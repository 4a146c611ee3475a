"""The effect of each key of a sweep: means over the settings that share a value."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.study.verdicts import finite
from experiments.sweeps.halving import Result
from experiments.sweeps.metric import Metric

MANY = 8  # distinct numbers, above which they are grouped into parts
PARTS = 4


class Point(NamedTuple):
    """A setting: its labels, and the metric of each seed after the first rung, which every setting reached."""

    labels: Mapping[str, Any]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over the seeds that did not diverge; NaN without one."""
        good = finite(self.values)
        return statistics.mean(good) if good else math.nan


def points(results: Sequence[Result], metric: Metric) -> list[Point]:
    """Returns the settings as points."""
    return [Point(result.setting.labels, metric.values(result.rungs[0])) for result in results]


def is_number(value: Any) -> bool:
    """Returns whether a value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def distinct(settings: Sequence[Point], name: str) -> list[Any]:
    """Returns the different values of a key: numbers in ascending order, others in the order of the settings."""
    values = list(dict.fromkeys(shown(point.labels[name]) for point in settings))
    return sorted(values) if all(map(is_number, values)) else values


def shown(value: Any) -> Any:
    """Returns a value for tables and pictures: a number, or a text."""
    if is_number(value):
        return value
    return str(value) if value != "" else "(none)"


def groups(settings: Sequence[Point], name: str) -> dict[Any, list[float]]:
    """Returns {value of a key: means of the settings that have it}; many numbers are grouped into PARTS ranges."""
    values, grouped = distinct(settings, name), {}
    named: dict[Any, Any] = {value: value for value in values}
    if len(values) > MANY and all(map(is_number, values)):
        for part in np.array_split(np.array(values, dtype=object), PARTS):
            named |= dict.fromkeys(part, f"{part[0]:.3g} … {part[-1]:.3g}")
    for value in values:
        means = finite([point.mean for point in settings if shown(point.labels[name]) == value])
        grouped.setdefault(named[value], []).extend(means)
    return {value: means for value, means in grouped.items() if means}


def by_importance(settings: Sequence[Point], names: Sequence[str]) -> list[str]:
    """Returns the keys, the one whose values differ most in their means first."""

    def variance(name: str) -> float:
        means = [statistics.mean(means) for means in groups(settings, name).values()]
        return statistics.pvariance(means) if means else 0.0

    return sorted(names, key=lambda name: -variance(name))


def is_logarithmic(values: Sequence[float]) -> bool:
    """Returns whether numbers are spaced by ratios rather than by differences."""
    if len(values) < 3 or min(values) <= 0 or max(values) / min(values) < 3:
        return False
    ordered = np.sort(np.array(values, float))
    steps, ratios = np.diff(ordered), np.diff(np.log(ordered))
    return bool(ratios.std() / ratios.mean() < steps.std() / steps.mean())

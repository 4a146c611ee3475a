"""The order in which candidates are trained, and the Pareto front of those that are.

The most promising candidate has the largest expected gain per second of training: how much smaller it would be than the
best one so far, in powers of e, times the probability that it loses too little to matter. Before anything is known,
that probability falls with the mult-adds and with the bytes per mult-add that are saved (`PRIOR`). Levels of a method
are ordered: if a milder level lost too much, a stronger one will, and if a stronger one did not, a milder one is of no
use. Such candidates come last, because they only add points to the front.
"""

import math
from collections.abc import Mapping, Sequence

from experiments.frontier.estimates import Estimate
from experiments.frontier.methods import DENSE, Candidate

PRIOR = 3.0, 16.0  # times fewer mult-adds, and bytes each, at which every second candidate loses too much
SETUP = 0.1  # time to set up, export and measure a candidate, as a share of the dense network's further training


def plan(
    candidates: Sequence[Candidate],
    estimates: Mapping[str, Estimate],
    measure: str,
    dense: Estimate,
    passed: Mapping[str, bool],
) -> list[Candidate]:
    """Returns the candidates that are left to train, the most promising first.

    Args:
      candidates: All candidates.
      estimates: Their estimates, by name.
      measure: The measure to make small.
      dense: Estimate of the dense network.
      passed: {name: whether it lost little enough} of the candidates that are trained.
    """
    gains = {one.name: dense.cost(measure) / estimates[one.name].cost(measure) for one in candidates}
    best = max([1.0, *(gains[name] for name, is_good in passed.items() if is_good and name in gains)])

    def key(candidate: Candidate) -> tuple[int, float]:
        gain, rank = gains[candidate.name], 0
        for other in candidates:
            if other.method == candidate.method and other.name in passed:
                if passed[other.name] and other.level > candidate.level:
                    rank = max(rank, 1)
                if not passed[other.name] and other.level < candidate.level:
                    rank = 2
        if rank == 0 and gain <= best:
            rank = 1
        likely = probability(estimates[candidate.name], dense)
        seconds = estimates[candidate.name].training / dense.training + SETUP
        return rank, -math.log(max(gain / best, 1.0)) * likely / seconds if rank == 0 else seconds

    return sorted((one for one in candidates if one.name not in passed), key=key)


def probability(estimate: Estimate, dense: Estimate) -> float:
    """Returns the probability that a candidate loses little, before anything is known."""
    work = dense.mult_adds / estimate.mult_adds
    bits = dense.bytes / estimate.bytes / work
    return 1 / (1 + (work / PRIOR[0]) ** 2) / (1 + (max(bits, 1) / PRIOR[1]) ** 2)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Returns the names of the points (cost, accuracy) that no other point equals or betters in both, by cost.

    Of equal points, the first counts. Points that are not finite are left out.
    """
    finite = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    names, highest = [], -math.inf
    for name in sorted(finite, key=lambda name: (finite[name][0], -finite[name][1])):
        if finite[name][1] > highest:
            names.append(name)
            highest = finite[name][1]
    return names


def chosen(points: Mapping[str, tuple[float, float]], lose: float) -> str:
    """Returns the cheapest point that loses at most `lose` points against DENSE, which may be DENSE itself."""
    whole = points[DENSE][1]
    return next(name for name in front(points) if loses_little(points[name][1], whole, lose))


def loses_little(accuracy: float, whole: float, lose: float) -> bool:
    """Returns whether an accuracy is at most `lose` percentage points below another one, up to rounding."""
    return 100 * (whole - accuracy) <= lose + 1e-9

"""At which exit an image leaves, so that a budget of mult-adds is kept (Huang et al. 2018, arXiv 1703.09844, sec. 3).

  anytime           every image has the same budget: the last exit that it allows
  budgeted batch    the budget is that of the average image: an image leaves at the first exit whose confidence is at
                    least a threshold; thresholds are fitted on images that were not trained on

Pure functions of numpy arrays: `confidences` [N, exits] are `models.layers.exit_router.confidence` of the logits of
each exit, `costs` [exits] the mult-adds until each (`models.layers.exit_router.costs`).
"""

from collections.abc import Sequence

import numpy as np

from models.errors import UserError

NEVER = 2.0  # a threshold above every probability


def _check(budget: float, costs: Sequence[float]) -> None:
    if not budget >= costs[0]:
        raise UserError(f"budget={budget:g} mult-adds is less than the cheapest exit costs, {costs[0]:,}")


def anytime(budget: float, costs: Sequence[float]) -> int:
    """The last exit that costs no more than `budget`; UserError where there is none."""
    _check(budget, costs)
    return int(np.searchsorted(np.asarray(costs), budget, side="right")) - 1


def shares(budget: float, costs: Sequence[float]) -> np.ndarray:
    """Which share of the images should leave at each exit, float64 [exits], so that they cost `budget` on average.

    Shares are q, q^2, q^3, ... normalized: of the images that come to an exit always the same part leaves (section 4,
    there with q at most 1; the authors' code goes on to 2), and q is what the budget asks for. Where it allows all
    images the last exit, all take it.

    Raises:
      UserError: the budget is below the cheapest exit.
    """
    _check(budget, costs)
    costs = np.asarray(costs, np.float64)
    if budget >= costs[-1]:
        return np.eye(len(costs))[-1]

    def at(log_q):
        powers = log_q * np.arange(len(costs))
        weights = np.exp(powers - powers.max())
        return weights / weights.sum()

    low, high = -50.0, 50.0  # the average cost grows with q
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) @ costs < budget else (low, middle)
    return at(low)


def thresholds(confidences: np.ndarray, leaving: Sequence[float]) -> np.ndarray:
    """Thresholds [exits - 1] by which these shares of the images leave at each exit, the most confident of those that
    are still there; NEVER where none is to leave. NaN is no confidence at all.
    """
    confidences = np.nan_to_num(confidences, nan=0.0)
    count, exits = confidences.shape
    found, there = np.full(exits - 1, NEVER), np.ones(count, bool)
    for k in range(exits - 1):
        number = min(int(count * leaving[k]), int(there.sum()))
        if number:
            found[k] = np.sort(confidences[there, k])[-number]
            there &= confidences[:, k] < found[k]
    return found


def leave(confidences: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """At which exit each image leaves, int [N], from 0."""
    enough = confidences[:, :-1] >= limits
    return np.where(enough.any(1), enough.argmax(1), confidences.shape[1] - 1)

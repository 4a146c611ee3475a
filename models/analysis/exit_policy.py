"""Exit policies that keep a budget of mult-adds (Huang et al. 2018, arXiv 1703.09844, section 3).

  anytime           every image has the same budget and leaves at the last exit that costs at most this much
  budgeted batch    the budget is for the average image; an image leaves at the first exit whose confidence is at least
                    a threshold, and thresholds are fitted on images that were not used for training

All are pure functions of numpy arrays. `confidences` [N, exits] are `models.layers.exit_router.confidence` of the
logits of each exit; `costs` [exits] are the mult-adds up to each exit (`models.layers.exit_router.costs`).
"""

from collections.abc import Sequence

import numpy as np

from models.errors import UserError

NEVER = 2.0  # a threshold above every probability


def _check(budget: float, costs: Sequence[float]) -> None:
    if not budget >= costs[0]:
        raise UserError(f"budget={budget:g} mult-adds is less than the cost of the cheapest exit, {costs[0]:,}")


def anytime(budget: float, costs: Sequence[float]) -> int:
    """Returns the last exit that costs at most `budget`; raises UserError if there is none."""
    _check(budget, costs)
    return int(np.searchsorted(np.asarray(costs), budget, side="right")) - 1


def shares(budget: float, costs: Sequence[float]) -> np.ndarray:
    """Returns the fraction of images that should leave at each exit, float64 [exits], for an average cost of `budget`.

    The fractions are q, q^2, q^3, ..., divided by their sum (section 4). The paper has q at most 1, and the authors'
    code allows up to 2. The budget determines q. If it allows the last exit for all images, all of them go there.

    Raises:
      UserError: The budget is below the cost of the cheapest exit.
    """
    _check(budget, costs)
    mult_adds = np.asarray(costs, np.float64)
    if budget >= mult_adds[-1]:
        return np.eye(len(mult_adds))[-1]

    def at(log_q):
        powers = log_q * np.arange(len(mult_adds))
        weights = np.exp(powers - powers.max())
        return weights / weights.sum()

    low, high = -50.0, 50.0  # the average cost grows with q
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) @ mult_adds < budget else (low, middle)
    return at(low)


def thresholds(confidences: np.ndarray, leaving: Sequence[float]) -> np.ndarray:
    """Returns confidence thresholds [exits - 1], with which the fraction `leaving[k]` of all images leaves at exit k.

    The most confident of the remaining images leave. The threshold is NEVER if none should leave. NaN counts as a
    confidence of 0.
    """
    confidences = np.nan_to_num(confidences, nan=0.0)
    count, exits = confidences.shape
    limits, remaining = np.full(exits - 1, NEVER), np.ones(count, bool)
    for k in range(exits - 1):
        number = min(int(count * leaving[k]), int(remaining.sum()))
        if number:
            limits[k] = np.sort(confidences[remaining, k])[-number]
            remaining &= confidences[:, k] < limits[k]
    return limits


def leave(confidences: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Returns the exit at which each image leaves, int [N], from 0."""
    enough = confidences[:, :-1] >= limits
    return np.where(enough.any(1), enough.argmax(1), confidences.shape[1] - 1)

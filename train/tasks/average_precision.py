"""How well scores rank the images that have a class above those that have not: average precision, by two formulas.

Both look at the curve of precision against recall, whose points are the thresholds on the score: images of equal
scores are above it or below it together, so the order in which a set is stored decides nothing. A label is 1 where the
class is present, 0 where it is absent, and -1 where the image is passed over, as if it were not in the set.
"""

from collections.abc import Callable, Sequence

import numpy as np


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of the curve, highest threshold first.

    Args:
      scores: [N] of one class, higher is surer.
      labels: [N] of 1, 0, -1.

    Returns:
      Images with the class, and images of any kind, at or above each threshold, int64 [T]: precision is the one divided
      by the other, recall the one divided by its last.
    """
    counted = labels >= 0
    scores, present = scores[counted], labels[counted] == 1
    order = np.argsort(-scores, kind="stable")
    scores, present = scores[order], present[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])  # of each run of equal scores
    return np.cumsum(present)[last], last + 1


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the curve, the sum over its points of (R_t - R_(t-1)) P_t, without interpolation, as
    sklearn.metrics.average_precision_score; None where no image has the class.

    Args:
      scores: [N] of one class.
      labels: [N] of 1, 0, -1.
    """
    return _of_curve(
        lambda found, taken: np.sum(np.diff(found, prepend=0) / found[-1] * (found / taken)), scores, labels
    )


def average_precision_11(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The mean over r = 0, 0.1, …, 1 of the highest precision at a recall of at least r: what PASCAL VOC counted by
    until 2009 (Everingham 2010, section 4.2); None where no image has the class.

    Args:
      scores: [N] of one class.
      labels: [N] of 1, 0, -1.
    """
    # In whole numbers: 3 of 10 is a recall of 0.3, which floating point can miss.
    return _of_curve(
        lambda found, taken: np.mean([(found / taken)[10 * found >= tenth * found[-1]].max() for tenth in range(11)]),
        scores,
        labels,
    )


def _of_curve(value: Callable, scores: np.ndarray, labels: np.ndarray) -> float | None:
    """`value` of what `precision_recall` gives; None where no image has the class."""
    found, taken = precision_recall(scores, labels)
    return float(value(found, taken)) if len(found) and found[-1] else None


def by_class(formula: Callable, scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """`formula` (one of the above) of each column of scores and labels [N, C]."""
    return [formula(*column) for column in zip(scores.T, labels.T, strict=True)]


def measure(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """The means over the classes of scores and labels [N, C] by both formulas, as results call them."""
    formulas = {"mean_average_precision": average_precision, "mean_average_precision_11": average_precision_11}
    return {name: mean(by_class(formula, scores, labels)) for name, formula in formulas.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

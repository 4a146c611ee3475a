"""Average precision, by two formulas: how well scores rank images with a class above images without it.

Both formulas use the precision-recall curve, which has one point per distinct score as the threshold. Images with equal
scores are above or below a threshold together, so that the order of the data set has no influence. A label is 1 if the
class is present, 0 if it is absent, and -1 if the image is ignored.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def precision_recall(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of the precision-recall curve as counts, highest threshold first.

    Args:
      scores: [N] scores of one class; higher is more confident.
      labels: [N] labels 1, 0 or -1.

    Returns:
      The number of images with the class, and of all images, at or above each threshold, int64 [T] each. Precision is
      the first divided by the second; recall is the first divided by its last element.
    """
    counted = labels >= 0
    scores, present = scores[counted], labels[counted] == 1
    order = np.argsort(-scores, kind="stable")
    scores, present = scores[order], present[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])  # ends of runs of equal scores
    return np.cumsum(present)[last], last + 1


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Returns the area under the precision-recall curve, or None if no image has the class.

    The area is the sum over points of (R_t - R_(t-1)) P_t, without interpolation, as in
    sklearn.metrics.average_precision_score.

    Args:
      scores: [N] scores of one class.
      labels: [N] labels 1, 0 or -1.
    """
    return _from_curve(
        lambda positives, total: np.sum(np.diff(positives, prepend=0) / positives[-1] * (positives / total)),
        scores,
        labels,
    )


def average_precision_11(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Returns average precision by 11 points, or None if no image has the class.

    It is the mean over r = 0, 0.1, …, 1 of the highest precision at a recall of at least r, the measure of PASCAL VOC
    until 2009 (Everingham 2010, section 4.2).

    Args:
      scores: [N] scores of one class.
      labels: [N] labels 1, 0 or -1.
    """
    # Integers, because floating point can miss that 3 of 10 is a recall of 0.3
    return _from_curve(
        lambda positives, total: np.mean(
            [(positives / total)[10 * positives >= tenth * positives[-1]].max() for tenth in range(11)]
        ),
        scores,
        labels,
    )


def _from_curve(formula: Callable[..., Any], scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Applies a formula to the result of `precision_recall`; returns None if no image has the class."""
    positives, total = precision_recall(scores, labels)
    return float(formula(positives, total)) if len(positives) and positives[-1] else None


def by_class(formula: Callable[..., float | None], scores: np.ndarray, labels: np.ndarray) -> list[float | None]:
    """Applies one of the formulas above to each column of scores and labels [N, C]."""
    return [formula(*column) for column in zip(scores.T, labels.T, strict=True)]


def measure(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Returns the means over classes by both formulas, for scores and labels [N, C]."""
    formulas = {"mean_average_precision": average_precision, "mean_average_precision_11": average_precision_11}
    return {name: mean(by_class(formula, scores, labels)) for name, formula in formulas.items()}


def mean(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the values that are not None, or None if there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None

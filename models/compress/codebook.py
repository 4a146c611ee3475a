"""Weight sharing: a codebook of few values per layer, computed by k-means (Han 2016, arXiv 1510.00149, section 3).

A weight that is 0 was pruned. It stays 0, is not in the codebook, and has the index -1.
"""

import dataclasses

import numpy as np

from models.errors import UserError, choice_error

INITS = ("linear", "density", "random")
MOST_BITS = 16  # maximum number of bits of an index


@dataclasses.dataclass(frozen=True)
class Shared:
    """Weights that share the values of a codebook.

    Attributes:
      index: int32 in the shape of the weights, -1 for 0.
      codebook: float32 [K], ascending.
    """

    index: np.ndarray
    codebook: np.ndarray

    def weights(self) -> np.ndarray:
        """Returns the weights, float32: codebook[index], and 0 where the index is -1."""
        return np.append(self.codebook, np.float32(0))[self.index]


def initial(values: np.ndarray, count: int, init: str) -> np.ndarray:
    """Returns initial centroids, float64 [count] (section 3.2).

    "linear" spaces them evenly from the smallest to the largest value, which preserves the few large weights; "density"
    places them at equal steps of the distribution function; "random" chooses some of the values.
    """
    if init == "linear":
        return np.linspace(values.min(), values.max(), count)
    if init == "density":
        return np.quantile(values, (np.arange(count) + 0.5) / count)
    return np.random.default_rng(0).choice(values, count, replace=len(values) < count).astype(np.float64)


def kmeans(values: np.ndarray, start: np.ndarray, steps: int = 100) -> np.ndarray:
    """Runs Lloyd's algorithm on scalars until convergence, and returns ascending centroids, float64 [K].

    Values are sorted once, so those nearest to a centroid form a range, and their sum is a difference of cumulative
    sums. A centroid without values does not move.

    Args:
      values: [N].
      start: Initial centroids [K].
      steps: Maximum number of iterations.
    """
    values = np.sort(np.asarray(values, np.float64).ravel())
    sums, centroids = np.concatenate([[0.0], np.cumsum(values)]), np.sort(np.asarray(start, np.float64))
    for _ in range(steps):
        bounds = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2, side="right")
        bounds = np.concatenate([[0], bounds, [len(values)]])
        counts, totals = np.diff(bounds), np.diff(sums[bounds])
        moved = np.sort(np.where(counts > 0, totals / np.maximum(counts, 1), centroids))
        if (moved == centroids).all():
            break
        centroids = moved
    return centroids


def share(weights: np.ndarray, bits: int, init: str = "linear") -> Shared:
    """Approximates weights by 2^bits values; weights with fewer distinct values keep them.

    Raises:
      UserError: `bits` is not from 1 to 16, or `init` is unknown.
    """
    if not 1 <= bits <= MOST_BITS:
        raise UserError(f"codebook: bits={bits} must be from 1 to {MOST_BITS}")
    if init not in INITS:
        raise choice_error("codebook init", init, INITS)
    weights = np.asarray(weights, np.float32)
    values = weights[weights != 0]
    codebook = np.unique(values)
    if len(codebook) > 2**bits:
        codebook = np.unique(kmeans(values, initial(values, 2**bits, init)).astype(np.float32))
    return Shared(assign(weights, codebook), codebook)


def assign(weights: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Returns the index of the nearest codebook value for each weight, int32 in their shape; -1 for a weight of 0.

    The codebook is ascending; the smaller of two equally near values is taken.
    """
    if not len(codebook):
        return np.full(weights.shape, -1, np.int32)
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    return np.where(weights == 0, -1, np.searchsorted(middles, weights)).astype(np.int32)

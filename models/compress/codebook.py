"""Weights that share few values: a codebook a layer, found by k-means (Han 2016, arXiv 1510.00149, section 3).

A weight that is 0 was pruned: it stays 0, has no place in the codebook and the index -1.
"""

from typing import NamedTuple

import numpy as np

from models.errors import UserError, choice_error

INITS = ("linear", "density", "random")
MOST_BITS = 16  # of an index


class Shared(NamedTuple):
    """index: int32 in the shape of the weights, -1 for 0; codebook: float32 [K], ascending."""

    index: np.ndarray
    codebook: np.ndarray

    def weights(self) -> np.ndarray:
        """float32: codebook[index], 0 at -1."""
        return np.append(self.codebook, np.float32(0))[self.index]


def initial(values: np.ndarray, count: int, init: str) -> np.ndarray:
    """Centroids to start from, float64 [count] (section 3.2): linear: evenly from the least to the largest value, which
    keeps the few large weights; density: at even steps of the distribution function; random: some of the values.
    """
    if init == "linear":
        return np.linspace(values.min(), values.max(), count)
    if init == "density":
        return np.quantile(values, (np.arange(count) + 0.5) / count)
    return np.random.default_rng(0).choice(values, count, replace=len(values) < count).astype(np.float64)


def kmeans(values: np.ndarray, start: np.ndarray, steps: int = 100) -> np.ndarray:
    """Lloyd's iterations on a line, until nothing moves: centroids float64 [K], ascending; one without values stays.

    Values are sorted once; those nearest to a centroid are then a range, whose sum is a difference of two.

    Args:
      values: [N].
      start: [K].
      steps: at most.
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
    """The weights in 2^bits values: of layers that have fewer different weights than that, those themselves.

    Raises:
      UserError: bits that are none of 1 to 16, an unknown `init`.
    """
    if not 1 <= bits <= MOST_BITS:
        raise UserError(f"codebook: bits={bits} must be 1 to {MOST_BITS}")
    if init not in INITS:
        raise choice_error("codebook init", init, INITS)
    weights = np.asarray(weights, np.float32)
    values = weights[weights != 0]
    codebook = np.unique(values)
    if len(codebook) > 2**bits:
        codebook = np.unique(kmeans(values, initial(values, 2**bits, init)).astype(np.float32))
    return Shared(assign(weights, codebook), codebook)


def assign(weights: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The nearest of the codebook (ascending) for each weight, the smaller of two; -1 for 0: int32 in their shape."""
    if not len(codebook):
        return np.full(weights.shape, -1, np.int32)
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    return np.where(weights == 0, -1, np.searchsorted(middles, weights)).astype(np.int32)

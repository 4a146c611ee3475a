"""Positions of nonzero weights, as jumps of a fixed bit width with filler zeros (Han 2016, section 2, fig. 2).

A jump is the distance to the next stored entry. A distance that does not fit into the width is split: the largest jump
leads to an entry whose value is 0 (a filler), until the rest fits. The paper uses 8 bits for convolutions and 5 for
dense layers.
"""

import numpy as np

from models.compress.huffman import Damaged


def jumps(nonzero: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Returns jumps int64 [M] in [1, 2^bits] that visit all of `nonzero`, starting from position -1.

    Fillers continue after the last position, so that fewer than 2^bits positions follow the last entry.

    Args:
      nonzero: int [N], flat positions of the weights, ascending.
      bits: Bit width of a jump.
      size: Size of the whole array.
    """
    largest = 1 << bits
    gaps = np.diff(nonzero, prepend=-1)
    fillers = (gaps - 1) // largest  # in each gap
    last = int(nonzero[-1]) if len(nonzero) else -1
    steps = np.full(len(gaps) + int(fillers.sum()) + (size - 1 - last) // largest, largest, np.int64)
    steps[np.cumsum(fillers + 1) - 1] = gaps - fillers * largest  # the entry at the end of each gap
    return steps


def positions(jumps: np.ndarray, size: int) -> np.ndarray:
    """Returns the flat positions int64 [M] that jumps lead to.

    Raises:
      Damaged: A position is outside an array of `size`.
    """
    result = np.cumsum(np.asarray(jumps, np.int64)) - 1
    if len(result) and (result[-1] >= size or (np.asarray(jumps) < 1).any()):
        raise Damaged("a position is outside the array")
    return result

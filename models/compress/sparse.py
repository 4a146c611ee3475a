"""Positions of the weights that are left, as jumps of a fixed width with filler zeros (Han 2016, section 2, fig. 2).

A jump says how many places on the next stored entry is. One that is longer than the width holds is made of several:
the largest jump, to an entry whose value is 0 (a filler), until the rest fits. The paper has 8 bits for convolutions, 5
for dense layers.
"""

import numpy as np

from models.compress.huffman import Damaged


def jumps(kept: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Jumps int64 [M] in [1, 2^bits], the first from the place before the first, that reach all of `kept`.

    After the last kept place fillers go on, so that fewer than 2^bits places follow the last entry.

    Args:
      kept: int [N], ascending: flat positions of the weights.
      bits: width of a jump.
      size: of the whole array.
    """
    largest = 1 << bits
    gaps = np.diff(kept, prepend=-1)
    fillers = (gaps - 1) // largest  # of each gap
    last = int(kept[-1]) if len(kept) else -1
    made = np.full(len(gaps) + int(fillers.sum()) + (size - 1 - last) // largest, largest, np.int64)
    made[np.cumsum(fillers + 1) - 1] = gaps - fillers * largest  # where each gap's own entry is
    return made


def positions(jumps: np.ndarray, size: int) -> np.ndarray:
    """Flat positions int64 [M] that jumps lead to.

    Raises:
      Damaged: one is beyond the array of `size`.
    """
    found = np.cumsum(np.asarray(jumps, np.int64)) - 1
    if len(found) and (found[-1] >= size or (np.asarray(jumps) < 1).any()):
        raise Damaged("a position beyond the array")
    return found

"""Positions of the weights that are left, as jumps of a fixed width with filler zeros (Han 2016, section 2, fig. 2).

A jump says how many places on the next stored entry is. One that is longer than the width holds is made of several:
the largest jump, to an entry whose value is 0 (a filler), until the rest fits. The paper has 8 bits for convolutions, 5
for dense layers.
"""

import numpy as np

from models.compress.huffman import Damaged

FILLER = 0  # of values in [0, K]: the zero


def jumps(kept: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Of flat positions (ascending) the jumps, int64 [M] in [1, 2^bits], and which entries are fillers, bool [M].

    The first jump is from the place before the first.

    Args:
      kept: int [N], where the weights are.
      bits: width of a jump.
    """
    largest = 1 << bits
    gaps = np.diff(kept, prepend=-1)
    fillers = (gaps - 1) // largest  # of each gap
    made = np.full(len(gaps) + int(fillers.sum()), largest, np.int64)
    last = np.cumsum(fillers + 1) - 1  # where each gap's own entry is
    made[last] = gaps - fillers * largest
    is_filler = np.ones(len(made), bool)
    is_filler[last] = False
    return made, is_filler


def positions(jumps: np.ndarray, size: int) -> np.ndarray:
    """Flat positions int64 [M] that jumps lead to.

    Raises:
      Damaged: one is beyond the array of `size`.
    """
    found = np.cumsum(np.asarray(jumps, np.int64)) - 1
    if len(found) and (found[-1] >= size or (np.asarray(jumps) < 1).any()):
        raise Damaged("a position beyond the array")
    return found

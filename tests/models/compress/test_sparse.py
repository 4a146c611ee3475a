"""Positions encoded as jumps: decoding restores them, fillers bridge long gaps, and bit widths bound the jumps."""

import numpy as np
import pytest

from models.compress import sparse
from models.compress.huffman import Damaged

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 1.0])
def test_positions_survive_a_round_trip(bits, share):
    size = 5000
    nonzero = np.flatnonzero(RNG.random(size) < share)
    jumps = sparse.jumps(nonzero, bits, size)
    assert ((jumps >= 1) & (jumps <= 2**bits)).all()
    positions = sparse.positions(jumps, size)
    assert np.isin(nonzero, positions).all()
    filler = ~np.isin(positions, nonzero)
    assert (jumps[filler] == 2**bits).all()
    assert (
        size - 1 - (positions[-1] if len(positions) else -1) < 2**bits
    )  # the gap after the last position is bounded, too


def test_the_example_of_the_paper():
    """Reproduces fig. 2: entries at 1, 4 and 15 with 3-bit jumps; 15 is 11 after 4, so a filler comes at 12."""
    jumps = sparse.jumps(np.array([1, 4, 15]), 3, 16)
    assert jumps.tolist() == [2, 3, 8, 3]
    assert sparse.positions(jumps, 16).tolist() == [1, 4, 12, 15]


def test_jumps_outside_of_the_array_are_refused():
    with pytest.raises(Damaged, match="outside"):
        sparse.positions([3, 3], 5)
    with pytest.raises(Damaged):
        sparse.positions([3, 0], 5)

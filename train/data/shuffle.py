"""The order of training examples: which example stands at which position, as a pure function of the seed."""

import functools

import numpy as np

from models.errors import UserError


class Order:
    """Maps positions 0, 1, 2, … of a training run to example indices.

    Position p lies in epoch e = p // n, at place p % n of that epoch's permutation, which depends on (seed, e) alone.
    Batch t of size B is positions t*B … t*B + B-1, so it depends on (seed, t) alone: not on workers, processes or
    restarts. A batch may straddle two epochs: no remainder is dropped, and every epoch has every example once.
    """

    def __init__(self, n: int, seed: int):
        """`n` examples; `seed` is any integer."""
        if n < 1:
            raise ValueError(f"an order needs at least one example, got n={n}")
        self.n, self.seed = n, seed

    def indices(self, position: int, count: int) -> np.ndarray:
        """Example indices, int64 [count], of the positions position … position+count-1."""
        positions = np.arange(position, position + count, dtype=np.int64)
        epochs, places = np.divmod(positions, self.n)
        result = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            result[rows] = _permutation(self.n, self.seed, int(epoch))[places[rows]]
        return result

    def mirrored(self, position: int, count: int) -> np.ndarray:
        """Bool [count]: whether the examples at these positions are shown mirrored. In epoch 0 half of them are, at
        random, and from each epoch to the next every one changes (Jordan 2024, arXiv 2404.00498, section 3.6).
        """
        odd = np.arange(position, position + count, dtype=np.int64) // self.n % 2
        return _first_mirrored(self.n, self.seed)[self.indices(position, count)] ^ (odd > 0)


@functools.lru_cache(maxsize=2)
def _first_mirrored(n: int, seed: int) -> np.ndarray:
    return philox(seed, 0, stream=3).random(n) < 0.5


# The current epoch and the next: a batch that straddles the boundary needs both, again and again.
@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    permutation = philox(seed, epoch, stream=0).permutation(n)
    permutation.setflags(write=False)
    return permutation


def philox(seed: int, number: int, stream: int) -> np.random.Generator:
    """A generator that depends on (seed, number, stream) alone (Salmon 2011: counter-based, so making one is cheap).

    `stream` separates the uses: 0 orders epoch `number`, 1 crops the example at position `number`, 2 orders the
    batches of pool `number` (text.Batches), 3 mirrors (`Order.mirrored`).
    """
    key = np.array([seed % 2**64, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)))


def rows(batch_size: int, shard: tuple[int, int]) -> range:
    """Those of a batch that process r of P has, shard = (r, P): r*B/P … (r+1)*B/P - 1; UserError where P does not
    divide B.
    """
    index, count = shard
    if batch_size % count:
        raise UserError(f"batch size {batch_size} is not divisible by the {count} processes")
    return range(index * batch_size // count, (index + 1) * batch_size // count)

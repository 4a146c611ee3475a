"""The order of training examples, as a pure function of the seed."""

import functools

import numpy as np

from models.errors import UserError


class Order:
    """A map from the positions 0, 1, 2, … of a training run to indices of examples.

    Position p is in epoch e = p // n, and is entry p % n of that epoch's permutation, which depends only on (seed, e).
    Batch t of size B has positions t*B … t*B + B-1. So it depends only on (seed, t), not on workers, processes or
    restarts. A batch may straddle two epochs: no remainder is dropped, and each epoch has each example once.

    Where examples can only be read in groups, an epoch permutes the groups, and then the examples within each window of
    some groups, so that a reader has to keep one window of groups in memory, and two at its borders.

    With repeats (Hoffer 2020, arXiv 1901.09335; Berman 2019, arXiv 1902.05509), a batch of B rows has ceil(B / repeats)
    distinct examples, of which the next batch has the next ones: row r has the same example as row r + ceil(B /
    repeats), so that copies lie far apart, on different devices and in different pairs of mixup. An epoch still has n
    rows; after `repeats` epochs, each example has been in `repeats` rows. (timm's RepeatAugSampler draws a new share of
    the examples in each epoch instead.)

    Args:
      n: number of examples.
      seed: any integer.
      groups: (boundaries 0, …, n of the groups, number of groups per window); None permutes all examples freely.
      repeats: rows of a batch that have the same example.
      batch_size: B; read only with repeats.
    """

    def __init__(
        self, n: int, seed: int, groups: tuple[np.ndarray, int] | None = None, repeats: int = 1, batch_size: int = 0
    ):
        if n < 1:
            raise ValueError(f"n={n}: an order needs at least one example")
        if repeats != 1 and not 1 <= repeats <= batch_size:
            raise UserError(f"data.repeats={repeats} must be in [1, {batch_size}], which is the batch size")
        self.n, self.seed = n, seed
        self._repeats, self._batch_size = repeats, batch_size
        self._groups = None if groups is None else (tuple(groups[0].tolist()), groups[1])

    def indices(self, position: int, count: int) -> np.ndarray:
        """Returns the examples at the positions position … position+count-1, int64 [count]."""
        epochs, places = np.divmod(self._distinct(position, count)[0], self.n)
        result = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            result[rows] = _permutation(self.n, self.seed, int(epoch), self._groups)[places[rows]]
        return result

    def mirrored(self, position: int, count: int) -> np.ndarray:
        """Returns bool [count], True where the example at a position is mirrored.

        In epoch 0, each example is mirrored with probability 1/2. From then on, it is mirrored in every second epoch
        (Jordan 2024, arXiv 2404.00498, section 3.6).
        """
        places, copies = self._distinct(position, count)
        odd = (places // self.n * self._repeats + copies) % 2  # copies of an example count as its epochs
        return _first_mirrored(self.n, self.seed)[self.indices(position, count)] ^ (odd > 0)

    def _distinct(self, position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns places in the order without repeats for the positions, and which copy each is, both int64 [count]."""
        positions = np.arange(position, position + count, dtype=np.int64)
        if self._repeats == 1:
            return positions, np.zeros_like(positions)
        batches, rows = np.divmod(positions, self._batch_size)
        distinct = -(-self._batch_size // self._repeats)
        copies, places = np.divmod(rows, distinct)
        return batches * distinct + places, copies


@functools.lru_cache(maxsize=2)
def _first_mirrored(n: int, seed: int) -> np.ndarray:
    return philox(seed, 0, stream=3).random(n) < 0.5


# Keeps two epochs: batches near a boundary need the current one and the next, again and again
@functools.lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int, groups: tuple[tuple[int, ...], int] | None) -> np.ndarray:
    rng = philox(seed, epoch, stream=0)
    permutation = rng.permutation(n) if groups is None else _in_windows(rng, np.array(groups[0]), groups[1])
    permutation.setflags(write=False)
    return permutation


def _in_windows(rng: np.random.Generator, bounds: np.ndarray, window: int) -> np.ndarray:
    """Returns a permutation of the groups between `bounds`, permuted within each window of groups."""
    order = rng.permutation(len(bounds) - 1)
    parts = []
    for start in range(0, len(order), window):
        examples = np.concatenate(
            [np.arange(int(bounds[group]), int(bounds[group + 1])) for group in order[start : start + window]]
        )
        parts.append(rng.permutation(examples))
    return np.concatenate(parts)


def philox(seed: int, number: int, stream: int) -> np.random.Generator:
    """Returns a generator that depends only on its arguments (Salmon 2011; counter-based, so it is cheap to make).

    Args:
      seed: any integer.
      number: the epoch, position or pool that the numbers are for.
      stream: the use: 0 orders epoch `number`, 1 crops the example at position `number`, 2 orders the batches of pool
        `number` (text.Batches), 3 mirrors (`Order.mirrored`).
    """
    key = np.array([seed % 2**64, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)))


def process_rows(batch_size: int, shard: tuple[int, int]) -> range:
    """Returns the rows of a batch of size B that process r of P has, for shard = (r, P): r*B/P … (r+1)*B/P - 1.

    Raises:
      UserError: P does not divide B.
    """
    index, count = shard
    if batch_size % count:
        raise UserError(f"batch size {batch_size} is not divisible by the {count} processes")
    return range(index * batch_size // count, (index + 1) * batch_size // count)

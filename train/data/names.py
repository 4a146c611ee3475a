"""Many names in few bytes: sets of a million files keep their names in one blob, not in a million objects."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

_CHUNK = 1 << 16  # names that are listed at once


class Names(Sequence[str]):
    """Names of files, in UTF-8; bytes that are not UTF-8 are kept as Python's file functions keep them.

    Attributes:
      blob: all names, one behind the other.
      starts, stops: where each name lies in the blob, int64 [N].
    """

    def __init__(self, blob: bytes, starts: np.ndarray, stops: np.ndarray):
        self.blob, self.starts, self.stops = blob, starts, stops

    @classmethod
    def of_lengths(cls, blob: bytes, lengths: np.ndarray) -> "Names":
        """Returns the names of these lengths, in bytes, that follow each other in a blob."""
        stops = np.cumsum(lengths, dtype=np.int64)
        return cls(blob, stops - lengths, stops)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index) -> str:
        return self.blob[self.starts[index] : self.stops[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (part.decode("utf-8", "surrogateescape") for part in self._bytes(0, len(self)))

    def take(self, index: np.ndarray) -> "Names":
        """Returns the names at `index`, int64 [n], in the same blob."""
        return Names(self.blob, self.starts[index], self.stops[index])

    def joined(self) -> bytes:
        """Returns a blob of these names alone, in their order."""
        return b"".join(self._bytes(0, len(self)))

    def _bytes(self, start: int, stop: int) -> Iterator[bytes]:
        for low in range(start, min(stop, len(self)), _CHUNK):
            part = slice(low, min(low + _CHUNK, stop))
            yield from itertools.starmap(
                lambda a, b: self.blob[a:b], zip(self.starts[part].tolist(), self.stops[part].tolist(), strict=True)
            )

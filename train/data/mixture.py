"""Several image sets as one: data.source="mixture(folder:/data/real=3, folder:/data/drawn=1)"."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.errors import UserError
from train.data import classes
from train.data.identity import Digest
from train.data.source import Indices, Label, Source, Stored, Wrapped

PREFIX = "mixture("
MOST = 1 << 40  # examples of an epoch


class Mixture(Wrapped):
    """An image set whose examples come from several sets with the same classes.

    Of the examples, set i has the share that is stated for it. Each example of each set is in an epoch at least once,
    and sets that are smaller than their share repeat. With `shares` None, each example is there exactly once.

    Attributes:
      sources: the sets, with labels in the numbering of the first one.
      starts: int64 [sets + 1], where the examples of each set begin.
    """

    def __init__(self, sources: Sequence[Source], shares: Sequence[float] | None):
        """Checks that the sets fit each other; raises UserError if they do not."""
        first = sources[0]
        for source in sources[1:]:
            if (source.image_shape, bool(source.label_shape)) != (first.image_shape, bool(first.label_shape)):
                raise UserError("its sets have images of different shapes, or labels of different kinds")
        self.sources = [
            first,
            *(
                classes.Renumbered(source, classes.numbers(source.classes, first.classes, None, "a set"), first.classes)
                for source in sources[1:]
            ),
        ]
        counts = np.array([len(source) for source in self.sources])
        if shares is not None:
            parts = np.array(shares) / sum(shares)
            counts = np.maximum(counts, np.round(parts * (counts / parts).max()).astype(np.int64))
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        if self.starts[-1] > MOST:
            raise UserError(f"an epoch would have {self.starts[-1]:,} examples: state shares that are less uneven")
        super().__init__(first, int(self.starts[-1]))
        self.label_shape = first.label_shape
        self.fixed_size = all(source.fixed_size for source in sources)
        self.report = "; ".join(dict.fromkeys(filter(None, (source.report for source in sources))))

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the set of example `index`, and its number there."""
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return which, int(index - self.starts[which]) % len(self.sources[which])

    def fetch(self, indices: Indices) -> Sequence[tuple[Stored, Label]]:
        places = [self._place(int(index)) for index in indices]
        examples: list[Any] = [None] * len(places)
        for which, source in enumerate(self.sources):
            rows = [row for row, (own, _) in enumerate(places) if own == which]
            numbers = [places[row][1] for row in rows]
            for row, example in zip(rows, source.fetch(numbers) if rows else (), strict=True):
                examples[row] = example
        return examples

    def decode(self, index: int, stored: Stored, rng: np.random.Generator | None) -> np.ndarray:
        which, number = self._place(index)
        return self.sources[which].decode(number, stored, rng)

    def name(self, index: int) -> str:
        which, number = self._place(index)
        return self.sources[which].name(number)

    def key(self, index: int) -> str:
        which, number = self._place(index)
        return f"{which} {self.sources[which].key(number)}"

    def known_labels(self) -> np.ndarray | None:
        labels = [source.known_labels() for source in self.sources]
        if any(one is None for one in labels):
            return None
        counts = np.diff(self.starts)
        return np.concatenate([np.resize(one, (n, *one.shape[1:])) for one, n in zip(labels, counts, strict=True)])

    def identity(self) -> dict[str, str | int]:
        digest = Digest().add(self.starts.tolist(), *(sorted(source.identity().items()) for source in self.sources))
        return {"images": self.count, "content": digest.short()}


def parse(text: str) -> list[tuple[str, float | None]]:
    """Returns the sources and shares of "mixture(A=3, B=1)"; a share is None if it is not stated.

    Raises:
      UserError: the text has another form, or only some shares are stated.
    """
    inner = text.removeprefix(PREFIX)
    parts = [part.strip() for part in re.split(r",\s+", inner.removesuffix(")"))] if inner.endswith(")") else []
    sets: list[tuple[str, float | None]] = []
    for part in parts:
        match = re.fullmatch(r"(.+?)(?:=(\d+(?:\.\d+)?))?", part)
        sets += [(match[1], float(match[2]) if match[2] else None)] if match else []
    stated = [share is not None for _, share in sets]
    if len(sets) < 2 or len(sets) != len(parts) or any(stated) != all(stated) or 0.0 in [share for _, share in sets]:
        raise UserError(
            f"data.source={text}: must be mixture(SOURCE, SOURCE, …) or, with shares, mixture(SOURCE=3, SOURCE=1, …)"
        )
    return sets

"""Parts of a split, and cues painted on it: data.select="classes('0-4')|per_class(50)", from left to right.

    classes(a, 'b-c', 'd-e/2')   examples of these classes alone: a number, a range, every second of one; numbered anew
    per_class(n, seed=0)         n random examples of each class; those of a smaller n are among them
    share(p, seed=0)             a random share of all; those of a smaller share are among them
    imbalance(r, seed=0)         of C classes, in random order, the first keeps all, the last one in r, the i-th between
                                 them r^(-i / (C - 1)) (Cui 2019, arXiv 1901.05555, section 5)
    paint(classes='all', p=1.0, size=0.25, seed=0)    a yellow square, of that share of the side, in the lower right of
                                 images of these classes, each with probability p (Salman 2022, arXiv 2207.02842); it is
                                 there before augmentation, which may flip or cut it
    place(canvas, size='0.3-0.5', objects=1, clutter=4, copies=1, seed=0)    the images as objects on a larger canvas
                                 (composite.py); comes last

Which examples these are depends on the split and the seed alone, not on the seed of a run.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError
from train import spec as calls
from train.data.composite import Placed
from train.data.identity import Digest
from train.data.source import Source, Wrapped

YELLOW = (255, 255, 0)


class Selected(Wrapped):
    """Some examples of `source`: those at `index`, int [n], whose classes `classes` are called 0, 1, …; of example i
    `painted[i]` of the side is painted, float [n], 0 for none. labels: theirs, int [n], numbered so.
    """

    def __init__(
        self, source: Source, index: np.ndarray, classes: Sequence[int], painted: np.ndarray, labels: np.ndarray
    ):
        super().__init__(source, len(index), [source.classes[label] for label in classes])
        self.index, self.painted, self.labels = index, painted, labels.astype(np.int32)
        self.label_of = {label: new for new, label in enumerate(classes)}
        if hasattr(source, "files"):
            self.files = [source.files[i] for i in index]

    @property
    def how(self) -> Any:
        return self.painted.tobytes()

    def fetch(self, indices: Sequence[int]) -> list[tuple[bytes | Path | np.ndarray, int]]:
        found = self.source.fetch([int(self.index[i]) for i in indices])
        return [(stored, self.label_of[label]) for stored, label in found]

    def known_labels(self) -> np.ndarray:
        return self.labels

    def identity(self) -> dict[str, str | int]:
        chosen = Digest().add_array(self.index).add_array(self.labels).add(self.classes)
        return {**super().identity(), "chosen": chosen.short()}

    def name(self, index: int) -> str:
        return self.source.name(int(self.index[index]))

    def _decode(self, index: int, stored: Any, rng: np.random.Generator | None) -> np.ndarray:
        pixels = self.source._decode(int(self.index[index]), stored, rng)
        if self.painted[index]:
            height, width = (max(1, round(self.painted[index] * side)) for side in pixels.shape[:2])
            pixels = pixels.copy()
            pixels[-height:, -width:] = YELLOW if pixels.shape[2] == 3 else 255
        return pixels


class _Selection:
    """What is selected so far of a source."""

    def __init__(self, source: Source):
        if source.label_shape != ():
            raise UserError("data.select is for sets of one label an image")
        self.source, self.labels = source, source.all_labels()  # int [N], of the whole split
        self.index, self.kept = np.arange(len(source)), list(range(len(source.classes)))
        self.painted = np.zeros(len(source))
        self.placed: Placed | None = None

    def selected(self) -> "Selected":
        return Selected(self.source, self.index, self.kept, self.painted[self.index], self.own())

    def own(self) -> np.ndarray:
        """Labels of what is selected, numbered as `kept`."""
        number = np.full(len(self.source.classes), -1)
        number[self.kept] = np.arange(len(self.kept))
        return number[self.labels[self.index]]

    def rank(self, seed: int) -> np.ndarray:
        """A random number for each selected example, that does not depend on what else is selected."""
        return np.random.default_rng([seed, 71]).random(len(self.source))[self.index]

    def keep(self, mask: np.ndarray) -> None:
        self.index = self.index[mask]


def classes(selection: _Selection, *which: Any) -> None:
    """See the module."""
    if not which:
        raise ValueError("it names no class")
    numbers = _numbers(which, len(selection.kept))
    selection.keep(np.isin(selection.own(), numbers))
    selection.kept = [selection.kept[number] for number in numbers]


def per_class(selection: _Selection, n: int, seed: int = 0) -> None:
    """See the module."""
    if n < 1:
        raise ValueError(f"n={n} must be 1 or more")
    counts = np.bincount(selection.own(), minlength=len(selection.kept))
    if counts.min() < n:
        few = selection.source.classes[selection.kept[int(counts.argmin())]]
        raise ValueError(f"class '{few}' has {counts.min()} examples, not {n}")
    selection.keep(_rank_in_class(selection, seed) < n)


def share(selection: _Selection, p: float, seed: int = 0) -> None:
    """See the module."""
    if not 0 < p <= 1:
        raise ValueError(f"p={p} must be in (0, 1]")
    order = selection.rank(seed).argsort().argsort()
    selection.keep(order < round(p * len(order)))


def imbalance(selection: _Selection, r: float, seed: int = 0) -> None:
    """See the module."""
    if r < 1:
        raise ValueError(f"r={r} must be 1 or more")
    own, count = selection.own(), len(selection.kept)
    # In random order, since neighbours are alike in many sets: ImageNet's first classes are all animals
    place = np.random.default_rng([seed, 72]).permutation(count)
    quota = np.bincount(own, minlength=count) * r ** (-place / max(count - 1, 1))
    selection.keep(_rank_in_class(selection, seed) < np.maximum(1, np.round(quota))[own])


def paint(selection: _Selection, classes: Any = "all", p: float = 1.0, size: float = 0.25, seed: int = 0) -> None:
    """See the module."""
    if not (0 < p <= 1 and 0 < size <= 1):
        raise ValueError(f"p={p} and size={size} must be in (0, 1]")
    count = len(selection.kept)
    numbers = range(count) if classes == "all" else _numbers([classes], count)
    chosen = np.isin(selection.own(), list(numbers)) & (selection.rank(seed + 1) < p)
    selection.painted[selection.index[chosen]] = size


def place(
    selection: _Selection,
    canvas: int,
    size: str = "0.3-0.5",
    objects: int = 1,
    clutter: int = 4,
    copies: int = 1,
    seed: int = 0,
) -> None:
    """See the module."""
    low, _, high = size.partition("-")
    try:
        limits = float(low), float(high or low)
    except ValueError:
        raise ValueError(f"size='{size}': want a range of shares of the canvas' side, as '0.3-0.5'") from None
    selection.placed = Placed(selection.selected(), canvas, limits, objects, clutter, copies, seed)


def _rank_in_class(selection: _Selection, seed: int) -> np.ndarray:
    """0, 1, … among the selected examples of the same class, at random."""
    own, rank = selection.own(), selection.rank(seed)
    order, places = np.lexsort((rank, own)), np.empty(len(own), int)
    starts = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=len(selection.kept)))])
    places[order] = np.arange(len(own)) - starts[own[order]]
    return places


def _numbers(which: Sequence[Any], count: int) -> list[int]:
    """Class numbers of 3, "3", "0-4", "0-9/2"."""
    found = []
    for part in which:
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:/([1-9]\d*))?)?", str(part))
        if not match:
            raise ValueError(f"cannot read the classes {part!r}: want a number, a range as '0-4', or '0-9/2'")
        low, high, step = match.groups()
        found += range(int(low), int(high or low) + 1, int(step or 1))
    if not found or max(found) >= count or len(set(found)) != len(found):
        raise ValueError(f"classes are 0 to {count - 1}, each once, not {', '.join(map(str, which))}")
    return found


OPERATIONS = {
    "classes": classes,
    "per_class": per_class,
    "share": share,
    "imbalance": imbalance,
    "paint": paint,
    "place": place,
}


def select(source: Source, spec: str) -> Source:
    """The part of `source` that `spec` says, the source itself for "".

    Raises:
      UserError: an operation that there is not, or that does not fit the source.
    """
    found = calls.parse("data.select", spec)
    if not found:
        return source
    selection = _Selection(source)
    for call in found:
        if selection.placed:
            raise UserError(f"data.select '{spec}': place comes last")
        calls.resolve("data.select", call, OPERATIONS, selection)
        if not len(selection.index):
            raise UserError(f"data.select '{spec}' leaves no example")
    return selection.placed or selection.selected()

"""Parts of a split, and cues painted on images: data.select="classes('0-4')|per_class(50)", from left to right.

    classes(a, 'b-c', 'd-e/2')   examples of these classes: a number, a range, every second class of a range. The
                                 classes are renumbered from 0.
    per_class(n, seed=0)         n random examples of each class, which include those of any smaller n
    share(p, seed=0)             a random share of all examples, which includes any smaller share
    imbalance(r, seed=0)         class i of C, in random order, keeps the share r^(-i / (C - 1)) of its examples: all
                                 of the first class, one in r of the last (Cui 2019, arXiv 1901.05555, section 5)
    paint(classes='all', p=1.0, size=0.25, seed=0)    a yellow square in the lower right corner of images of these
                                 classes, each with probability p (Salman 2022, arXiv 2207.02842). `size` is its share
                                 of the side. Augmentation comes later, and may flip or cut it.
    place(canvas, size='0.3-0.5', objects=1, clutter=4, copies=1, seed=0)    the images as objects on a larger canvas
                                 (composite.py); only corruptions may follow
    corrupt(name, severity=3, seed=0)    the images with a corruption of CIFAR-10-C and ImageNet-C, such as fog
                                 (corrupted.py), always in the same way; must come last

The selection depends only on the split and on `seed`, not on the seed of a run.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.errors import UserError
from train.data.composite import Placed
from train.data.corrupted import Corrupted, numbers_of
from train.data.identity import Digest
from train.data.source import Indices, Label, Source, Stored, Wrapped, groups_within
from train.setup import spec

YELLOW = (255, 255, 0)


class Selected(Wrapped):
    """Some of the examples of a source, with renumbered classes.

    Attributes:
      index: numbers of the examples in the source, int [n].
      painted: share of the side that is painted, float [n]; 0 for none.
      labels: renumbered labels, int32 [n].
      label_of: new label by the label in the source.
      files: names of the image files, if the source has files.
    """

    def __init__(
        self, source: Source, index: np.ndarray, classes: Sequence[int], painted: np.ndarray, labels: np.ndarray
    ):
        """Takes examples `index` of `source`; `classes` has the source's label of each new class."""
        super().__init__(source, len(index), [source.classes[label] for label in classes])
        self.index, self.painted, self.labels = index, painted, labels.astype(np.int32)
        self.groups = groups_within(source, index)
        self.label_of = {label: new for new, label in enumerate(classes)}
        if files := getattr(source, "files", None):
            self.files = [files[i] for i in index]

    @property
    def how(self) -> Any:
        return self.painted.tobytes()

    def fetch(self, indices: Indices) -> list[tuple[Stored, Label]]:
        examples = self.source.fetch([int(self.index[i]) for i in indices])
        return [(stored, self.label_of[int(label)]) for stored, label in examples]

    def known_labels(self) -> np.ndarray:
        return self.labels

    def identity(self) -> dict[str, str | int]:
        digest = Digest().add_array(self.index).add_array(self.labels).add(self.classes)
        return {**super().identity(), "chosen": digest.short()}

    def name(self, index: int) -> str:
        return self.source.name(int(self.index[index]))

    def decode(self, index: int, stored: Stored, rng: np.random.Generator | None) -> np.ndarray:
        pixels = self.source.decode(int(self.index[index]), stored, rng)
        if self.painted[index]:
            height, width = (max(1, round(self.painted[index] * side)) for side in pixels.shape[:2])
            pixels = pixels.copy()
            pixels[-height:, -width:] = YELLOW if pixels.shape[2] == 3 else 255
        return pixels


class _Selection:
    """The part of a source that the operations so far have selected.

    Attributes:
      labels: of the whole source, int32 [N].
      index: numbers of the selected examples.
      class_labels: labels of the selected classes.
      painted: painted share of the side for each example of the whole source, float [N].
      changed: the selected images, once `place` or `corrupt` has made others of them.
    """

    def __init__(self, source: Source):
        if source.label_shape != ():
            raise UserError("data.select needs a data set with one label per image")
        self.source, self.labels = source, source.all_labels()
        self.index, self.class_labels = np.arange(len(source)), list(range(len(source.classes)))
        self.painted = np.zeros(len(source))
        self.changed: Source | None = None

    def selected(self) -> Selected:
        """Returns the selected examples as a source."""
        return Selected(self.source, self.index, self.class_labels, self.painted[self.index], self.new_labels())

    def new_labels(self) -> np.ndarray:
        """Returns the labels of the selected examples, as positions in `class_labels`."""
        number = np.full(len(self.source.classes), -1)
        number[self.class_labels] = np.arange(len(self.class_labels))
        return number[self.labels[self.index]]

    def rank(self, seed: int, stream: int = 71) -> np.ndarray:
        """Returns a random number for each selected example, which does not depend on the rest of the selection."""
        return np.random.default_rng([seed, stream]).random(len(self.source))[self.index]

    def keep(self, mask: np.ndarray) -> None:
        """Keeps the selected examples whose entry of `mask` is True."""
        self.index = self.index[mask]


def classes(selection: _Selection, *which: Any) -> None:
    """Keeps some classes and renumbers them; see the module."""
    if not which:
        raise ValueError("it names no class")
    numbers = _numbers(which, len(selection.class_labels))
    selection.keep(np.isin(selection.new_labels(), numbers))
    selection.class_labels = [selection.class_labels[number] for number in numbers]


def per_class(selection: _Selection, n: int, seed: int = 0) -> None:
    """Keeps `n` random examples of each class; see the module."""
    if n < 1:
        raise ValueError(f"n={n} must be 1 or more")
    counts = np.bincount(selection.new_labels(), minlength=len(selection.class_labels))
    if counts.min() < n:
        few = selection.source.classes[selection.class_labels[int(counts.argmin())]]
        raise ValueError(f"class '{few}' has {counts.min()} examples, not {n}")
    selection.keep(_rank_in_class(selection, seed) < n)


def share(selection: _Selection, p: float, seed: int = 0) -> None:
    """Keeps the random share `p` of all examples; see the module."""
    if not 0 < p <= 1:
        raise ValueError(f"p={p} must be in (0, 1]")
    order = selection.rank(seed).argsort().argsort()
    selection.keep(order < round(p * len(order)))


def imbalance(selection: _Selection, r: float, seed: int = 0) -> None:
    """Keeps fewer examples of each class than of the one before; see the module."""
    if r < 1:
        raise ValueError(f"r={r} must be 1 or more")
    labels, count = selection.new_labels(), len(selection.class_labels)
    # Random order, since neighbors are alike in many sets: the first classes of ImageNet are all animals
    place = np.random.default_rng([seed, 72]).permutation(count)
    quota = np.bincount(labels, minlength=count) * r ** (-place / max(count - 1, 1))
    selection.keep(_rank_in_class(selection, seed) < np.maximum(1, np.round(quota))[labels])


def paint(selection: _Selection, classes: Any = "all", p: float = 1.0, size: float = 0.25, seed: int = 0) -> None:
    """Marks random examples of some classes to be painted; see the module."""
    if not (0 < p <= 1 and 0 < size <= 1):
        raise ValueError(f"p={p} and size={size} must be in (0, 1]")
    count = len(selection.class_labels)
    numbers = range(count) if classes == "all" else _numbers([classes], count)
    painted = np.isin(selection.new_labels(), list(numbers)) & (selection.rank(seed, 75) < p)
    selection.painted[selection.index[painted]] = size


def place(
    selection: _Selection,
    canvas: int,
    size: str = "0.3-0.5",
    objects: int = 1,
    clutter: int = 4,
    copies: int = 1,
    seed: int = 0,
) -> None:
    """Puts the selected images on larger canvases; see the module."""
    low, _, high = size.partition("-")
    try:
        limits = float(low), float(high or low)
    except ValueError:
        raise ValueError(f"size='{size}': must be a range of shares of the canvas' side, such as '0.3-0.5'") from None
    selection.changed = Placed(selection.selected(), canvas, limits, objects, clutter, copies, seed)


def corrupt(selection: _Selection, name: str, severity: int = 3, seed: int = 0) -> None:
    """Corrupts the selected images; see the module."""
    # An image's randomness is keyed by its number in the split, so that it does not depend on the selection
    numbers = numbers_of(selection.changed) if selection.changed else selection.index
    selection.changed = Corrupted(selection.changed or selection.selected(), name, severity, seed, numbers)


def _rank_in_class(selection: _Selection, seed: int) -> np.ndarray:
    """Numbers the selected examples of each class 0, 1, … in random order."""
    labels, rank = selection.new_labels(), selection.rank(seed)
    order, places = np.lexsort((rank, labels)), np.empty(len(labels), int)
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=len(selection.class_labels)))])
    places[order] = np.arange(len(labels)) - starts[labels[order]]
    return places


def _numbers(which: Sequence[Any], count: int) -> list[int]:
    """Returns the class numbers that 3, "3", "0-4" or "0-9/2" stand for.

    Raises:
      ValueError: no class is named, a text cannot be read, or a class is repeated or does not exist.
    """
    numbers = []
    for part in which:
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:/([1-9]\d*))?)?", str(part))
        if not match:
            raise ValueError(f"cannot read the classes {part!r}; allowed: a number, a range such as '0-4', or '0-9/2'")
        low, high, step = match.groups()
        if int(high or low) < count:
            numbers += range(int(low), int(high or low) + 1, int(step or 1))
        else:
            numbers.append(int(high or low))  # is refused below
    if not numbers or max(numbers) >= count or len(set(numbers)) != len(numbers):
        raise ValueError(f"classes must be distinct numbers from 0 to {count - 1}, not {', '.join(map(str, which))}")
    return numbers


OPERATIONS = {
    "classes": classes,
    "per_class": per_class,
    "share": share,
    "imbalance": imbalance,
    "paint": paint,
    "place": place,
    "corrupt": corrupt,
}


def select(source: Source, text: str) -> Source:
    """Returns the part of `source` that `text` describes, or the source itself for "".

    Raises:
      UserError: an operation is unknown, or does not fit the source.
    """
    operations = spec.parse("data.select", text)
    if not operations:
        return source
    selection = _Selection(source)
    for before, call in zip((None, *operations), operations, strict=False):
        if selection.changed and before and call.name != "corrupt":
            raise UserError(f"data.select '{text}': {before.name} must come last; only corrupt may follow")
        spec.resolve("data.select", call, OPERATIONS, selection)
        if not len(selection.index):
            raise UserError(f"data.select '{text}' leaves no examples")
    return selection.changed or selection.selected()

"""Splits of a user's set: by their names, or a fifth held out where a split is missing."""

import hashlib
import re
from collections.abc import Callable, Collection, Sequence

import numpy as np

from models.errors import UserError, choice_error
from train.data.identity import Digest, name_bytes
from train.data.source import Indices, Label, Source, Stored, Wrapped, groups_within

SHARE = 5  # one example in five is held out
PARTS = ("train", "test", "train_fit", "validation")  # every set with a training split has these
_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}  # split by the name that users give it, in lower case


def split_of(name: str) -> str:
    """Returns the split that a name such as "Training" or "val" stands for; "" if it stands for none."""
    return _NAMES.get(name.casefold(), "")


def split_in(name: str) -> str:
    """Returns the split that a word of a file's name stands for, as in "imagenet-val-000"; "" if none does."""
    return next(filter(None, map(split_of, re.split(r"[^A-Za-z]+", name))), "")


def opened(split: str, present: Collection[str], open_split: Callable[[str], Source], title: str) -> Source:
    """Opens a split of a set, or the part of the training split that stands for it.

    "test" is the test split, else the validation split, else a fifth of the training split, of which "train" is then
    the rest. If there are both a test and a validation split, "train_fit" is all of "train". Otherwise, "validation" is
    a fifth of "train", and "train_fit" is the rest. Other splits are opened by their names. A set without a training
    split has no parts, but its validation split stands for "test" if there is none.

    Args:
      split: the split to open.
      present: the splits that the set has: "train", "test", "validation" (see `split_of`) and any others.
      open_split: opens a split that is present.
      title: the set's name in errors.

    Raises:
      UserError: the set has no such split.
    """
    parts = PARTS if "train" in present else ("test",) if "validation" in present else ()
    if split not in (allowed := dict.fromkeys([*parts, *present])):
        raise choice_error(f"split of {title}", split, list(allowed))
    if "train" in present:
        base, cuts = plan(split, present)
    else:
        base, cuts = split if split in present else "validation", []
    source = open_split(base)
    for purpose, is_held_out in cuts:
        # Where images have several classes, all of them count as one class
        labels = np.zeros(len(source), np.int32) if source.label_shape else source.all_labels()
        mask = held_out(labels, [source.key(index) for index in range(len(source))], purpose, title)
        source = Part(source, np.flatnonzero(mask == is_held_out))
    return source


def plan(split: str, present: Collection[str]) -> tuple[str, list[tuple[str, bool]]]:
    """Returns the split to open, and pairs (purpose of a held-out fifth, whether to take it or the rest)."""
    tests = [name for name in ("test", "validation") if name in present]
    rest = [] if tests else [("testing", False)]
    if split == "train":
        return "train", rest
    if split == "test":
        return (tests[0], []) if tests else ("train", [("testing", True)])
    if split == "train_fit" or (split == "validation" and len(tests) < 2):
        return "train", [*rest, *([] if len(tests) == 2 else [("validation", split == "validation")])]
    return split, []


def left_out(split: str) -> str:
    """Returns the split with the examples that a training split leaves out; "" if its name does not say which ones.

    For example, "validation" for "train_fit", and "train[90%:]" for "train[:90%]".
    """
    if part := re.fullmatch(r"(\w+)\[:([\d%]+)\]", split):
        return f"{part[1]}[{part[2]}:]"
    return "validation" if split == "train_fit" else ""


def held_out(labels: np.ndarray, keys: Sequence[str], purpose: str, title: str) -> np.ndarray:
    """Returns bool [N]: the examples to hold out.

    A hash of the purpose and an example's key ranks the examples of each class, and the first ones are held out. So the
    choice depends on no seed, and adding an example changes the choice of only a few others.

    Args:
      labels: int [N], the class of each example.
      keys: its name, wherever the set is stored.
      purpose: "testing" or "validation".
      title: the set's name in errors.

    Raises:
      UserError: each class has only one example.
    """
    word = {"testing": "test"}.get(purpose, purpose)
    rank = np.array([_rank(f"{word} {key}") for key in keys], "S8")
    counts = np.bincount(labels)
    order = np.lexsort((rank, labels))  # examples of a class stand together, the lowest ranks first
    mask = np.zeros(len(labels), bool)
    for start, number in zip(np.cumsum(counts) - counts, quota(counts.tolist()), strict=True):
        mask[order[start : start + number]] = True
    if not mask.any():
        raise UserError(
            f"{title} has only one image of each class, so that none can be held out for {purpose}: add images, or a "
            "split for it"
        )
    return mask


def quota(counts: Sequence[int]) -> list[int]:
    """Returns how many examples of each class are held out.

    The total is a fifth of all examples, rounded, and at least 1. Each class gives a fifth, rounded down or up: the
    largest remainders are rounded up, the first of equal ones first. The only example of a class is kept.
    """
    total = max(1, round(sum(counts) / SHARE))
    quotas = [count // SHARE for count in counts]
    growing = sorted(
        (i for i, count in enumerate(counts) if count % SHARE and count > 1), key=lambda i: -(counts[i] % SHARE)
    )
    for i in growing[: total - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _rank(name: str) -> bytes:
    """Returns a hash of a name, the same for all Unicode normalizations."""
    return hashlib.sha256(name_bytes(name)).digest()[:8]


class Part(Wrapped):
    """Some of the examples of a source.

    Attributes:
      index: numbers of the examples in the source, int64 [n].
    """

    def __init__(self, source: Source, index: np.ndarray):
        super().__init__(source, len(index))
        self.label_shape, self.index, self.groups = source.label_shape, index, groups_within(source, index)
        self.report = "; ".join(filter(None, (source.report, f"{len(index):,} of {len(source):,} are used")))

    def fetch(self, indices: Indices) -> Sequence[tuple[Stored, Label]]:
        return self.source.fetch(self.index[np.asarray(indices, np.int64)])

    def decode(self, index: int, stored: Stored, rng: np.random.Generator | None) -> np.ndarray:
        return self.source.decode(int(self.index[index]), stored, rng)

    def name(self, index: int) -> str:
        return self.source.name(int(self.index[index]))

    def key(self, index: int) -> str:
        return self.source.key(int(self.index[index]))

    def known_labels(self) -> np.ndarray | None:
        labels = self.source.known_labels()
        return None if labels is None else labels[self.index]

    def identity(self) -> dict[str, str | int]:
        return {**super().identity(), "chosen": Digest().add_array(self.index).short()}

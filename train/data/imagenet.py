"""ImageNet's classes: ids of WordNet ("n01440764"), and the words that people read instead of them.

imagenet.csv has the ids in the order of the labels, and marks the classes of ImageNet-A and ImageNet-R;
tests/golden/make_imagenet_words.py writes it. The words are those of `models.weights.tags.imagenet`.
"""

import csv
import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from models.errors import choice_error
from models.weights import tags

SETS = ("imagenet", "a", "r")  # ImageNet-1k, and the 200 classes each of ImageNet-A and ImageNet-R


_ID = re.compile(r"(n\d{8})(?!\d)", re.ASCII)


@functools.cache
def wnids(which: str = "imagenet") -> tuple[str, ...]:
    """Returns the ids of the classes of a set in SETS, in the order of its labels.

    Raises:
      UserError: the set is unknown.
    """
    if which not in SETS:
        raise choice_error("ImageNet set", which, SETS)
    with Path(__file__).with_suffix(".csv").open(newline="") as file:
        return tuple(row["wnid"] for row in csv.DictReader(file) if which == "imagenet" or which in row["sets"])


@functools.cache
def _words() -> dict[str, str]:
    return dict(zip(wnids(), tags.imagenet(), strict=True))


def ids(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the ids of ImageNet-1k's classes if these are their names, in words of any source; else the names.

    Sources write a class in different ways: "n01440764", "n01440764_tench", "tench", or "tench, Tinca tinca". A
    thousand names in words of which more than half begin as ours do are those classes, in their order.
    """
    found = [_ID.match(name) for name in classes]
    if all(found):
        return tuple(match[1] for match in found if match)
    known = tags.imagenet()
    if len(classes) != len(known):
        return tuple(classes)
    same = sum(name.split(",")[0].casefold() == word.casefold() for name, word in zip(classes, known, strict=True))
    return wnids() if same > len(known) / 2 else tuple(classes)


def words(wnid: str) -> str:
    """Returns the words of a class of ImageNet-1k; anything else, such as a name, is returned as it is."""
    return _words().get(wnid, wnid)


def shown(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of classes as people read them: words for ids of ImageNet, with the id where two are alike."""
    known = _words()
    if not any(name in known for name in classes):
        return tuple(classes)
    names = [known.get(name, name) for name in classes]
    counts = Counter(names)
    return tuple(
        f"{name} ({wnid})" if counts[name] > 1 and name != wnid else name
        for name, wnid in zip(names, classes, strict=True)
    )

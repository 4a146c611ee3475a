"""Classes of sets whose labels are texts: numbers, or the names of the classes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from models.errors import UserError
from models.weights.foreign import reading
from train.data.sources.arrays import MOST_CLASSES

FILES = ("classes.txt", "classnames.txt", "class_names.txt")  # one name per line, beside the files of a set
_LARGEST = 1 << 24  # bytes of such a file
_LONGEST = 200  # characters of a name


def are_numbers(labels: Iterable[str]) -> bool:
    """Returns whether all labels are whole numbers from 0."""
    return all(label.isascii() and label.isdigit() for label in labels)


def classes(labels: Sequence[str], beside: Iterable[Path] = ()) -> tuple[tuple[str, ...], Path | None]:
    """Returns the names of the classes, and the file that lists them.

    Without such a file, names are the numbers up to the largest, or the sorted labels if these are no numbers.

    Args:
      labels: the labels of the training set, each once.
      beside: files of the set; a list of names is looked for in their folders, and in the folders above these.

    Raises:
      UserError: the file has a name twice, or there are too many classes.
    """
    folders = dict.fromkeys(path.absolute().parent for path in beside)
    for folder in dict.fromkeys([*folders, *(folder.parent for folder in folders)]):
        for path in (folder / file for file in FILES):
            if path.is_file():
                return _listed(path), path
    if long := next((label for label in labels if len(label) > _LONGEST), None):
        raise UserError(f"'{long[:60]}…' is no label: it has {len(long):,} characters; allowed: {_LONGEST}")
    if not are_numbers(labels):
        return tuple(sorted(labels)), None
    count = max(map(int, labels), default=-1) + 1
    if count > MOST_CLASSES:
        raise UserError(f"the label {count - 1} is beyond the {MOST_CLASSES:,} classes that numbers can name")
    return tuple(map(str, range(count))), None


def labels(texts: Sequence[str], classes: Sequence[str], numbered: bool) -> np.ndarray:
    """Returns the number of the class of each text, int32, and -1 for texts that are no class.

    Args:
      texts: labels.
      classes: names of the classes.
      numbered: whether labels are numbers of classes, not their names; the training set tells it for all splits.
    """
    if not numbered:
        numbers = {name: number for number, name in enumerate(classes)}
        return np.array([numbers.get(text, -1) for text in texts], np.int32)
    valid = [are_numbers([text]) and len(text) < 10 and int(text) < len(classes) for text in texts]
    return np.array([int(text) if good else -1 for text, good in zip(texts, valid, strict=True)], np.int32)


def _listed(path: Path) -> tuple[str, ...]:
    with reading(path, "text"), path.open("rb") as file:
        names = [line.strip() for line in file.read(_LARGEST).decode("utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path}: it lists no class")
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise UserError(f"{path}: '{twice}' is there twice")
    return tuple(names)

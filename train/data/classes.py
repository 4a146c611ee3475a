"""Classes of one set in the numbering of another: by name, by ImageNet's ids, or by a table of the user."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError, nearest
from train.data import imagenet
from train.data.hold_out import Part
from train.data.source import Indices, Label, Source, Stored
from train.storage.files import expanded


class Renumbered(Part):
    """The examples of a source whose classes a network knows, with the network's labels.

    Args:
      source: the source; labels are classes, or lists of several.
      numbers: int [classes of the source], the network's class of each; -1 for a class that it does not know.
      classes: the network's classes.

    Raises:
      UserError: no example is left.
    """

    def __init__(self, source: Source, numbers: np.ndarray, classes: Sequence[str]):
        self.numbers, everything = numbers, bool((numbers >= 0).all()) or bool(source.label_shape)
        # Labels have to be read if images of some classes are left out
        index = np.arange(len(source)) if everything else np.flatnonzero(numbers[source.all_labels()] >= 0)
        if not len(index):
            raise UserError("none of its images is of a class that the network knows")
        super().__init__(source, index)
        self.classes, self.label_shape = tuple(classes), (len(classes),) if source.label_shape else ()

    @property
    def how(self) -> Any:
        own, inner = self.numbers.tobytes(), self.source.how
        return (own, inner) if inner else own

    def fetch(self, indices: Indices) -> list[tuple[Stored, Label]]:
        return [(stored, self._label(label)) for stored, label in super().fetch(indices)]

    def _label(self, label: Label) -> Label:
        labels = self._renumbered(np.asarray(label)[None])[0]
        return labels if self.label_shape else int(labels)

    def _renumbered(self, labels: np.ndarray) -> np.ndarray:
        """Returns labels [N, *label_shape] in the network's numbering."""
        if not self.label_shape:
            return self.numbers[labels]
        several = np.full((len(labels), *self.label_shape), -2, np.int32)
        for number, column in zip(self.numbers, labels.T, strict=True):
            if number >= 0:  # several classes of the set may be one of the network's
                several[:, number] = np.maximum(several[:, number], column)
        return np.where(several == -2, 0, several)

    def known_labels(self) -> np.ndarray | None:
        labels = super().known_labels()
        return None if labels is None else self._renumbered(labels)


def numbers(classes: Sequence[str], known: Sequence[str], table: Mapping[str, str] | None, title: str) -> np.ndarray:
    """Returns the network's class of each class of a set, int32 [len(classes)]; -1 for those that it does not know.

    Args:
      classes: names of the set's classes.
      known: names of the network's classes.
      table: the network's name, or "" for none, of names of the set; None if names are the same, or if both name
        ImageNet's classes, by ids or in words.
      title: the set's name in errors.

    Raises:
      UserError: names differ, and there is no table for them.
    """
    if table is None:
        classes, known = imagenet.ids(classes), imagenet.ids(known)
    number_of = {name: number for number, name in enumerate(known)}
    if table is not None:
        if missing := [name for name in classes if name not in table]:
            raise UserError(f"--class_map has no row for {len(missing)} classes of {title}, such as '{missing[0]}'")
        if wrong := [name for name in table.values() if name and name not in number_of]:
            raise UserError(f"--class_map: the network has no class '{wrong[0]}'{nearest(wrong[0], known)}")
        return np.array([number_of.get(table[name], -1) for name in classes], np.int32)
    if unknown := [name for name in classes if name not in number_of]:
        count = "a class" if len(unknown) == 1 else f"{len(unknown)} of {len(classes)} classes"
        raise UserError(
            f"{title} has {count} that the network does not know, such as '{unknown[0]}'; its {len(known)} classes are "
            f"'{known[0]}', …; --class_map=FILE.csv maps names to them"
        )
    return np.array([number_of[name] for name in classes], np.int32)


def read_table(path: str) -> dict[str, str]:
    """Returns {name in the set: name in the network, or "" for none} of a CSV file with two columns.

    Raises:
      UserError: the file cannot be read, a row does not have two cells, or a name has two different rows.
    """
    table: dict[str, str] = {}
    try:
        with Path(expanded(path)).open(newline="", encoding="utf-8-sig") as file:
            for row in csv.reader(file):
                if len(row) != 2:
                    raise UserError(
                        f"--class_map={path}: a row has {len(row)} cells: {','.join(row)[:60]!r}; allowed: 2"
                    )
                if table.setdefault(row[0], row[1]) != row[1]:
                    raise UserError(f"--class_map={path}: '{row[0]}' has two rows")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--class_map={path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return table

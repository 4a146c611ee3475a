"""A table of image files and their labels, one row per image: .csv, or .tsv.

The table is read row by row into arrays, so that a million rows take tens of megabytes.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from models.errors import UserError, nearest
from train.data import hold_out, identity
from train.data.identity import Digest
from train.data.options import Options
from train.data.source import Indices, Label, Source
from train.data.sources import class_names, listing, table_rows
from train.setup import spec
from train.storage.remote import fetched

_FORM = re.compile(r"(.*\.(?:csv|tsv|txt))(\(.*\))?", re.DOTALL | re.IGNORECASE)
_LARGEST_TABLE = 1 << 30  # bytes of the labels of several classes per image


def arguments(
    path: str = "", label: str = "", split: str = "", folder: str = "", separator: str = ""
) -> dict[str, str]:
    """Takes the arguments of a table in `data.source`, as in csv:labels.csv(path=photo, label=breed).

    Args:
      path: column of the files.
      label: column of the labels.
      split: column of the splits.
      folder: folder of the files, relative to the table; "" for the table's own.
      separator: what stands between several labels in a cell.
    """
    return {"path": path, "label": label, "split": split, "folder": folder, "separator": separator}


def source(text: str, split: str, options: Options) -> Source:
    """Returns a split of the images in a table.

    A row is one image: the path of a file, relative to the table, and a label. Labels are the names of the classes. A
    cell may hold several, as in "cat|dog" or "cat;dog", or "cat dog" in a column called "labels" or "tags"; or each
    class has a column of 0 and 1. A column of splits is optional.

    Args:
      text: FILE.csv, or FILE.csv(...) with `arguments`.
      split: see `hold_out.opened`.
      options: see `Options`.

    Raises:
      UserError: the table is not as described, a file is missing, or a class has no training image.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise UserError(f"data.source=csv:{text}: must be a file .csv or .tsv, as in csv:labels.csv")
    chosen = spec.resolve_one("data.source", f"csv{match[2] or ''}", {"csv": arguments})
    file = fetched(match[1])
    if not file.is_file():
        raise UserError(f"data.source=csv:{match[1]}: there is no such file")
    rows = table_rows.read(file, {key: chosen[key] for key in ("path", "label", "split")})
    rows_of = {name: np.flatnonzero(rows.split == number) for number, name in enumerate(rows.splits)}
    classes, table = _labels(rows, rows_of.get("train", np.arange(len(rows.code))), chosen, identity.shown(str(file)))

    def open_split(name: str) -> Source:
        return TableSource(file, chosen["folder"], rows, rows_of[name], table, classes, options)

    return hold_out.opened(split, list(rows_of), open_split, f"table {identity.shown(str(file))}")


class TableSource(Source):
    """The images of some rows of a table."""

    def __init__(
        self,
        file: Path,
        folder: str,
        rows: table_rows.Rows,
        index: np.ndarray,
        table: np.ndarray,
        classes: Sequence[str],
        options: Options,
    ):
        """Checks that the files of a sample of the rows exist.

        Args:
          file: the table.
          folder: the folder of the files, relative to the table.
          rows: its rows.
          index: numbers of the rows that are examples, int64 [n].
          table: the label of each text in `rows.texts`, [T], or [T, classes] where images have several.
          classes: names of the classes.
          options: see `Options`.

        Raises:
          UserError: a file is missing.
        """
        self.root, self.label_shape = os.path.join(file.parent, folder), table.shape[1:]
        self._names, self._code, self._table = rows.names.take(index), rows.code[index], table
        super().__init__(len(index), classes, (None, None, 3), options)
        self._ending = self._ending_left_out()
        for i in identity.sample(self.count):
            if not os.path.isfile(self._path(i)):
                raise UserError(
                    f"{identity.shown(str(file))}: line {rows.line[index[i]]:,}: there is no file {self.name(i)}"
                )
        self.report = (
            f"table {identity.shown(str(file))}: {self.count:,} images"
            + f" in {len(np.unique(self._table[self._code])):,} classes" * (not self.label_shape)
            + f" with {len(classes):,} classes, several per image" * bool(self.label_shape)
        )

    def _ending_left_out(self) -> str:
        """Returns the ending that the table leaves out of the names of its files, "" if there is none."""
        if listing.is_image(self._names[0]) or os.path.isfile(self._path(0, "")):
            return ""
        endings = sorted(listing.endings(), key=lambda ending: (ending not in (".jpg", ".jpeg", ".png"), ending))
        both = [variant for ending in endings for variant in (ending, ending.upper())]
        return next((ending for ending in both if os.path.isfile(self._path(0, ending))), "")

    def _path(self, index: int, ending: str | None = None) -> str:
        return os.path.join(self.root, self._names[index]) + (self._ending if ending is None else ending)

    def fetch(self, indices: Indices) -> list[tuple[Path, Label]]:
        labels = self._table[self._code[np.asarray(indices, np.int64)]]
        several = bool(self.label_shape)
        return [
            (Path(self._path(i)), label.astype(np.int32) if several else int(label))
            for i, label in zip(indices, labels, strict=True)
        ]

    def name(self, index: int) -> str:
        return identity.shown(self._path(index))

    def key(self, index: int) -> str:
        return self._names[index] + self._ending

    def known_labels(self) -> np.ndarray:
        return self._table[self._code].astype(np.int32)

    def identity(self) -> dict[str, str | int]:
        """Covers the names and sizes of all files, both ends of a sample of them, and all labels."""
        files = identity.of_files(self.root, _Keys(self))
        digest = Digest().add(files, self.classes).add_array(self._table).add_array(self._code)
        return {"images": self.count, "content": digest.short()}


class _Keys(Sequence[str]):
    """The keys of a source, made when they are used."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        return self._source.key(index)


def _labels(
    rows: table_rows.Rows, train: np.ndarray, chosen: Mapping[str, str], title: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes, and the label of each text in `rows.texts`; see `TableSource`.

    Args:
      rows: the rows.
      train: numbers of the rows that tell the classes.
      chosen: see `arguments`.
      title: the table's name in errors.

    Raises:
      UserError: a label is in no row of `train`, or there are too many.
    """
    if len(rows.columns) > 1:
        presence = [[table_rows.PRESENCE[cell] for cell in text.split(table_rows.CELL)] for text in rows.texts]
        return tuple(rows.columns), np.array(presence, np.int8)
    separator = chosen["separator"] or _separator(rows)
    parts = [_parts(text, separator) for text in rows.texts]
    names = {name for code in np.unique(rows.code[train]).tolist() for name in parts[code]}
    order = sorted(names, key=int if class_names.are_numbers(names) else str)
    numbers = {name: number for number, name in enumerate(order)}
    for code, labels in enumerate(parts):
        if unknown := next((name for name in labels if name not in numbers), None):
            line = rows.line[np.flatnonzero(rows.code == code)[0]]
            raise UserError(
                f"{title}: line {line:,}: no training image has the label '{identity.shown(unknown)}'"
                f"{nearest(unknown, order[:1000])}"
            )
    classes = tuple(map(identity.shown, order))
    if not separator:
        return classes, np.array([numbers[name] for (name,) in parts], np.int32)
    if len(parts) * len(order) > _LARGEST_TABLE:
        raise UserError(f"{title}: {len(parts):,} combinations of {len(order):,} labels are too many")
    table = np.zeros((len(parts), len(order)), np.int8)
    for row, labels in zip(table, parts, strict=True):
        row[[numbers[name] for name in labels]] = 1
    return classes, table


def _separator(rows: table_rows.Rows) -> str:
    """Returns what stands between the labels of a cell, "" if each has one."""
    signs = "|;" + ", " * (rows.columns[0].casefold() in table_rows.SEVERAL)
    return next((sign for sign in signs if any(sign in text for text in rows.texts)), "")


def _parts(text: str, separator: str) -> list[str]:
    return [part for part in map(str.strip, text.split(separator)) if part] if separator else [text]

"""Reads tables of image files and labels row by row, so that a million rows take tens of megabytes."""

import csv
import itertools
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from models.errors import choice_error
from models.weights.foreign import Damaged, reading
from train.data import hold_out, identity
from train.data.identity import Digest
from train.data.names import Names
from train.data.sources import kept, listing

# Names of columns, in lower case, in the order of preference
PATHS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_name", "imagename",
    "imageid", "image_id", "img", "img_path", "id",
)  # fmt: skip
ONE = ("label", "class", "category", "target", "classname", "class_name", "label_name", "breed", "species", "y")
SEVERAL = ("labels", "tags", "classes", "categories", "targets")  # a cell of these may hold several labels
SPLITS = ("split", "subset", "partition")
_DELIMITERS = ",\t;|"
_LONGEST_HEADER = 1 << 20  # characters
PRESENCE = {"0": 0, "1": 1, "-1": -1, "0.0": 0, "1.0": 1, "-1.0": -1}  # cells of a column per class
CELL = "\x1f"  # joins such cells to one text


class Columns(NamedTuple):
    """Columns of a table, by their numbers.

    Attributes:
      path: the file.
      labels: the label, or one column per class.
      split: the split, or -1.
      names: names of the columns in `labels`.
    """

    path: int
    labels: tuple[int, ...]
    split: int
    names: tuple[str, ...]

    @property
    def last(self) -> int:
        """The last of the columns."""
        return max(self.path, self.split, *self.labels)


class Rows(NamedTuple):
    """The rows of a table.

    Attributes:
      names: the files as they are written.
      code: number of each row's label in `texts`, int32 [N].
      texts: the labels as they are written, each once.
      split: number of each row's split in `splits`, int32 [N].
      splits: names of the splits.
      line: number of each row's last line in the file, int32 [N].
      columns: names of the columns of labels.
    """

    names: Names
    code: np.ndarray
    texts: list[str]
    split: np.ndarray
    splits: list[str]
    line: np.ndarray
    columns: list[str]


def read(file: Path, chosen: Mapping[str, str]) -> Rows:
    """Reads a table.

    Args:
      file: the table.
      chosen: names of the columns "path", "label" and "split"; "" to find them.

    Raises:
      UserError: columns are missing, or a row lacks a cell.
    """
    kind = f"table-{Digest().add(sorted(chosen.items())).short()}"
    arrays = kept.kept(kind, [file], lambda: _read(file, chosen))
    texts, splits, columns = json.loads(arrays["texts"].tobytes())
    names = Names.of_lengths(arrays["blob"].tobytes(), arrays["length"])
    return Rows(names, arrays["code"], texts, arrays["split"], splits, arrays["line"], columns)


def _read(file: Path, chosen: Mapping[str, str]) -> kept.Arrays:
    code, split, line, length = array("i"), array("i"), array("i"), array("i")
    blob, texts, splits = bytearray(), {}, {}
    with (
        reading(identity.shown(str(file)), "table"),
        file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened,
    ):
        columns, rows = _opened(opened, file, chosen)
        for number, row in rows:
            name, label, part = _cells(row, columns, number)
            code.append(texts.setdefault(label, len(texts)))
            split.append(splits.setdefault(part, len(splits)))
            line.append(number)
            encoded = name.encode("utf-8", "surrogateescape")
            length.append(len(encoded))
            blob += encoded
        if not code:
            raise Damaged("it has no rows below its header")
    described = [list(texts), list(splits), list(columns.names)]
    return {
        "code": np.frombuffer(code, np.int32),
        "split": np.frombuffer(split, np.int32),
        "line": np.frombuffer(line, np.int32),
        "length": np.frombuffer(length, np.int32),
        "blob": np.frombuffer(blob, np.uint8),
        "texts": np.frombuffer(json.dumps(described).encode(), np.uint8),
    }


def _cells(row: Sequence[str], columns: Columns, line: int) -> tuple[str, str, str]:
    """Returns the path, the labels as one text, and the split of a row."""
    if len(row) <= columns.last:
        raise Damaged(f"line {line:,} has {len(row)} cells; allowed: {columns.last + 1} or more")
    name, part = row[columns.path].strip(), "train"
    if not name:
        raise Damaged(f"line {line:,} has no path")
    if len(columns.labels) == 1:
        label = row[columns.labels[0]].strip()
    else:
        cells = [row[column].strip() for column in columns.labels]
        label = CELL.join(cells)
        if wrong := next((cell for cell in cells if cell and cell not in PRESENCE), ""):
            raise Damaged(f"line {line:,} has '{wrong[:40]}' in a column of 0 and 1")
        label = label if all(cells) else ""
    if not label:
        raise Damaged(f"line {line:,} has no label")
    if columns.split >= 0:
        part = row[columns.split].strip()
        if not part:
            raise Damaged(f"line {line:,} has no split")
        part = hold_out.split_of(part) or part
    return name, label, part


def _opened(opened: TextIO, file: Path, chosen: Mapping[str, str]) -> tuple[Columns, Iterator[tuple[int, list[str]]]]:
    """Returns the columns of a table, and its rows below the header with the numbers of their lines."""
    first = opened.readline(_LONGEST_HEADER)
    if "\0" in first:
        raise Damaged("it is not a table in UTF-8; save it as UTF-8")
    outside = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(_DELIMITERS, key=outside.count)
    opened.seek(0)
    rows = _numbered(csv.reader(opened, delimiter=delimiter, strict=True))
    header, row = next(rows, (0, []))[1], next(rows, None)
    if not header:
        raise Damaged("it is empty")
    columns = _columns([cell.strip() for cell in header], row[1] if row else [], chosen)
    return columns, itertools.chain([row] if row else [], rows)


def _numbered(reader) -> Iterator[tuple[int, list[str]]]:
    try:
        for row in reader:
            if any(row):
                yield reader.line_num, row
    except csv.Error as error:
        raise Damaged(f"line {reader.line_num:,}: {error}") from None


def _columns(header: Sequence[str], row: Sequence[str], chosen: Mapping[str, str]) -> Columns:
    """Finds the columns by their names, and those of 0 and 1 by the first row."""
    listed = ", ".join(name or "''" for name in header[:20]) + ", …" * (len(header) > 20)
    if any(map(listing.is_image, header)):
        raise Damaged(
            f"it has no header: its first line is {listed}; write a line with the columns' names, path,label, above"
        )
    path = _found("path", header, chosen, PATHS)
    split = _found("split", header, chosen, SPLITS)
    if path < 0:
        raise Damaged(f"none of its columns, {listed}, is known to hold files: add (path=COLUMN) to data.source")
    label = _found("label", header, chosen, (*ONE, *SEVERAL))
    if label >= 0:
        return Columns(path, (label,), split, (header[label],))
    rest = [column for column, name in enumerate(header) if name and column not in (path, split)]
    if len(rest) < 2 or not all(column < len(row) and row[column].strip() in PRESENCE for column in rest):
        raise Damaged(
            f"none of its columns, {listed}, is known to hold labels: add (label=COLUMN) to data.source, or have one "
            "column of 0 and 1 per class"
        )
    return Columns(path, tuple(rest), split, tuple(header[column] for column in rest))


def _found(kind: str, header: Sequence[str], chosen: Mapping[str, str], names: Sequence[str]) -> int:
    """Returns the number of the column that was chosen, or of the first one with one of these names; -1 for none."""
    lower = [name.casefold() for name in header]
    if name := chosen[kind]:
        if name.casefold() not in lower:
            raise choice_error(f"column {kind}", name, header)
        return lower.index(name.casefold())
    return next((lower.index(name) for name in names if name in lower), -1)

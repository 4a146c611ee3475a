"""Images in parquet files, as most image sets of the Hugging Face hub have them; read by pyarrow.

A file's rows are in groups, of 100 images in most sets of the hub, and a group is the smallest part that can be read.
So training shuffles the groups, and then the images within a window of groups; see `shuffle.Order`.
"""

import bisect
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError
from models.weights.foreign import Damaged, reading
from train.data import hold_out, identity
from train.data.options import Options
from train.data.source import Indices, Label, Source
from train.data.sources import parquet_files
from train.setup import spec
from train.storage.remote import fetched

CACHE = 256 << 20  # bytes of row groups that a process keeps
MOST_GROUPS = 64


_FORM = re.compile(r"(.*?)(\([^()]*=[^()]*\))?", re.DOTALL)


def arguments(image: str = "", label: str = "") -> dict[str, str]:
    """Takes the arguments in `data.source`, two columns, as in parquet:PATH(image=photo, label=breed)."""
    return {"image": image, "label": label}


def source(text: str, split: str, options: Options) -> Source:
    """Returns a split of the parquet files in a folder, or of one file: PATH, or PATH(…) with `arguments`.

    The split of a file is in its name (train-00000-of-00294.parquet) or that of a folder above it (train/0000.parquet).
    Files without a split are training files.

    Raises:
      UserError: there are no such files, columns or split, or a file is damaged.
    """
    match = _FORM.fullmatch(text)
    assert match is not None  # the pattern takes any text
    chosen = spec.resolve_one("data.source", f"parquet{match[2] or ''}", {"parquet": arguments})
    return in_folder(fetched(match[1]), {name: column for name, column in chosen.items() if column}, split, options)


def in_folder(root: Path, chosen: Mapping[str, str], split: str, options: Options) -> Source:
    """Returns a split of the parquet files below `root`; `chosen` has the columns that the user named."""
    title = f"data.source={options.source}"
    files = parquet_files.by_split(title, root)
    first = files.get("train") or next(iter(files.values()))
    with reading(str(first[0]), ".parquet"):
        column = parquet_files.columns(first[0], chosen)
    classes = column.classes or parquet_files.classes(first, column)
    return hold_out.opened(split, files, lambda name: ParquetSource(files[name], column, classes, options), title)


class ParquetSource(Source):
    """A split of parquet files with a column of encoded images and one of labels."""

    def __init__(self, files: Sequence[Path], column: parquet_files.Column, classes: Sequence[str], options: Options):
        """Reads the ends of the files, where their row groups are listed; UserError if one is damaged."""
        self.paths, self.column = [os.fspath(file) for file in files], column
        self.title = options.source
        parts = [parquet_files.row_groups(path, column) for path in self.paths]
        rows = np.array([row for part in parts for row, _ in part], np.int64)
        sizes = [size for part in parts for _, size in part]
        self.file_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # file of each row group
        self.first_of = np.cumsum([0, *(len(part) for part in parts)])  # first row group of each file
        self.bounds = np.concatenate([[0], np.cumsum(rows)])
        self.kept = max(2, min(MOST_GROUPS, CACHE // max(1, int(np.mean(sizes or [1])))))
        if column.several:
            self.label_shape = (len(classes),)
        super().__init__(int(self.bounds[-1]), classes, (None, None, 3), options)
        if len(sizes) > self.kept:
            self.groups = self.bounds, self.kept
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._prepare()
        self._known: np.ndarray | None = None

    def _prepare(self) -> None:
        self._lock, self._cache = threading.Lock(), OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def fetch(self, indices: Indices) -> list[tuple[bytes, Label]]:
        groups = np.searchsorted(self.bounds, np.asarray(indices, np.int64), side="right") - 1
        tables = {int(group): self._group(int(group)) for group in np.unique(groups)}
        examples = []
        for index, group in zip(indices, groups, strict=True):
            images, labels = tables[int(group)]
            row = int(index - self.bounds[group])
            content = images[row].as_py()
            if content is None:
                content = b""  # decoding reports it, or skips it
            examples.append((content, self._label(labels[row], int(index))))
        return examples

    def _group(self, group: int) -> tuple[Any, list[Any]]:
        """Returns the images (an Arrow array of bytes) and labels of a row group, from memory or from its file."""
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
        import pyarrow.parquet as pq

        number = int(self.file_of[group])
        path, place = self.paths[number], group - int(self.first_of[number])
        with reading(path, ".parquet"):
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(place, columns=[self.column.image, self.column.label], use_threads=False)
            images = table[self.column.image].combine_chunks()
            images = images.field("bytes") if self.column.is_struct else images
            if len(table) != self.bounds[group + 1] - self.bounds[group]:
                raise Damaged("it changed while it was read")
            loaded = images, table[self.column.label].to_pylist()
        with self._lock:
            self._cache[group] = loaded
            while len(self._cache) > self.kept:
                self._cache.popitem(last=False)
        return loaded

    def _label(self, value: Any, index: int) -> Label:
        if not self.column.several:
            return self._class(value, index)
        label = np.zeros(self.label_shape, np.int32)
        for one in value or ():
            label[self._class(one, index)] = 1
        return label

    def _class(self, value: Any, index: int) -> int:
        """Returns the class of a value of the column of labels."""
        number = self._numbers.get(value, -1) if isinstance(value, str) else value
        if number is None or not 0 <= number < len(self.classes):
            raise UserError(
                f"{self.name(index)}: its label is {value!r}; allowed: "
                + ("the classes of training images" if isinstance(value, str) else f"0 to {len(self.classes) - 1}")
            )
        return int(number)

    def known_labels(self) -> np.ndarray:
        if self._known is None:
            labels = [value for path in self.paths for value in parquet_files.labels(Path(path), self.column)]
            self._known = np.array([self._label(value, index) for index, value in enumerate(labels)], np.int32)
        return self._known

    def key(self, index: int) -> str:
        """Returns the file's name and the row, since images need not have names of their own."""
        number = int(self.file_of[bisect.bisect_right(self.bounds, index) - 1])
        return f"{Path(self.paths[number]).name} {index - int(self.bounds[self.first_of[number]])}"

    def name(self, index: int) -> str:
        file, _, row = self.key(index).rpartition(" ")
        return f"{identity.shown(file)}, row {row}"

    def identity(self) -> dict[str, str | int]:
        """Returns the number of images, and a digest of names, sizes and both ends of the files and of a few rows."""
        digest = identity.Digest()
        for path in self.paths:
            digest.add(identity.name_bytes(Path(path).name)).add_file(path)
        return {"images": self.count, "content": digest.add(*self.column[:2]).short()}

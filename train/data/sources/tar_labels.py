"""Labels of images that lie in a tar without folders, such as ImageNet's validation images."""

import csv
import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError
from models.weights.foreign import Damaged, reading
from train.data import hold_out
from train.data.imagenet import wnids

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE = "LOC_val_solution.csv"
_LARGEST = 1 << 26  # bytes that a file of labels may unpack to
_LARGEST_META = 1 << 24
_COMPRESSED = 15  # type of an element in MATLAB's files


def beside(path: Path, names: Sequence[str]) -> list[str]:
    """Returns the classes of the images in a tar, which another file in its folder holds.

    That is STEM_labels.txt, SPLIT_labels.txt or val_labels.txt, with the class of each image by name, one per line (or
    its number among ImageNet's sorted classes, or FILE CLASS); Kaggle's LOC_val_solution.csv; or the development kit
    of ILSVRC 2012.

    Args:
      path: the tar.
      names: names of its images, sorted.

    Raises:
      UserError: there is no such file, it is damaged, or lacks an image.
    """
    split = hold_out.split_in(path.stem)
    texts = dict.fromkeys(
        [f"{path.stem}_labels.txt", f"{split}_labels.txt", *["val_labels.txt"] * (split == "validation")]
    )
    for file in (path.with_name(text) for text in texts):
        if file.is_file():
            with reading(file, "text"):
                return _of_lines(file, _text(file).split("\n"), names)
    if (file := path.with_name(KAGGLE)).is_file():
        with reading(file, ".csv"):
            return _of_kaggle(_text(file), names)
    if (file := path.with_name(DEVKIT)).is_file():
        with reading(file, ".tar.gz"):
            return _of_devkit(file, names)
    raise UserError(
        f"{path}: its images lie in no folders, so their labels must lie beside it: {DEVKIT}, {KAGGLE}, or "
        f"{next(iter(texts))} with the class of each image, sorted by name"
    )


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise Damaged(f"it is larger than {_LARGEST:,} bytes")
    return content.decode("utf-8-sig")


def _of_lines(file: Path, lines: Sequence[str], names: Sequence[str]) -> list[str]:
    rows = [line.split() for line in lines if line.strip()]
    if rows and all(len(row) == 2 for row in rows):
        return _by_name({name.rpartition("/")[2]: label for name, label in rows}, names)
    if wrong := next((row for row in rows if len(row) != 1), None):
        raise Damaged(f"the line '{' '.join(wrong)[:60]}' is no class; write one per line, or FILE CLASS")
    if len(rows) != len(names):
        raise Damaged(f"it has {len(rows):,} lines, but there are {len(names):,} images")
    labels = [label for (label,) in rows]
    if all(label.isascii() and label.isdigit() for label in labels):
        ordered = wnids()
        if any(len(label) > 3 for label in labels):
            raise Damaged(f"'{max(labels, key=len)[:20]}' is beyond the {len(ordered):,} classes of ImageNet")
        return [ordered[int(label)] for label in labels]
    return labels


def _of_kaggle(text: str, names: Sequence[str]) -> list[str]:
    labels = {}
    for row in csv.reader(io.StringIO(text)):
        if len(row) >= 2 and row[1].split():
            labels[row[0]] = row[1].split()[0]
    return _by_name(labels, names)


def _by_name(labels: dict[str, str], names: Sequence[str]) -> list[str]:
    found = [labels.get(name) or labels.get(name.rpartition(".")[0]) for name in names]
    if None in found:
        raise Damaged(f"it has no label for {names[found.index(None)]}")
    return [label for label in found if label]


def _of_devkit(file: Path, names: Sequence[str]) -> list[str]:
    with gzip.open(file) as opened:
        content = opened.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise Damaged(f"it unpacks to more than {_LARGEST:,} bytes")
    parts = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in (_TRUTH, _META) and member.isreg() and (inside := archive.extractfile(member)):
                parts[name] = inside.read()
    for name in (_TRUTH, _META):
        if name not in parts:
            raise Damaged(f"it holds no data/{name}")
    numbers = [int(line) for line in parts[_TRUTH].split()]
    if len(numbers) != len(names):
        raise Damaged(f"it has the labels of {len(numbers):,} images, but there are {len(names):,}")
    by_number = _synsets(parts[_META])
    if unknown := set(numbers) - set(by_number):
        raise Damaged(f"{_META} lacks the class number {min(unknown)}")
    return [by_number[number] for number in numbers]


def _synsets(content: bytes) -> dict[int, str]:
    """Returns the id of WordNet of each class, by the number that the development kit gives it."""
    import scipy.io

    _check_unpacked(content)
    rows = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}


def _check_unpacked(content: bytes) -> None:
    """Raises Damaged if elements of MATLAB's file, version 5, unpack to very much."""
    position, total = 128, 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from("<II", content, position)
        if kind == _COMPRESSED:
            part = content[position + 8 : position + 8 + size]
            total += len(zlib.decompressobj().decompress(part, _LARGEST_META + 1))
        if total > _LARGEST_META:
            raise Damaged(f"{_META} unpacks to more than {_LARGEST_META:,} bytes")
        position += 8 + size

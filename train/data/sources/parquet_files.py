"""The files of an image set in parquet: their splits, columns, classes and row groups."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.errors import UserError
from models.weights.foreign import Damaged, reading
from train.data import hold_out, identity

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = ("image", "img", "images", "jpg", "png", "webp", "image_bytes", "pixel_values")  # names of columns, in order
LABELS = ("label", "labels", "class", "fine_label", "cls", "target", "category", "class_id")


class Column(NamedTuple):
    """The columns of an image set, and what its schema says about classes.

    Attributes:
      image: column of images: structs with the field "bytes", or binary values.
      label: column of labels.
      is_struct: whether images are structs.
      several: whether a label is a list of classes.
      classes: names of the classes; () if the schema has none.
    """

    image: str
    label: str
    is_struct: bool
    several: bool
    classes: tuple[str, ...]


def by_split(title: str, root: Path) -> dict[str, list[Path]]:
    """Returns the parquet files of each split below a folder; raises UserError if there are none."""
    if root.is_file():
        return {"train": [root]}
    files: dict[str, list[Path]] = {}
    for file in _below(root):
        relative = file.relative_to(root)
        split = next(filter(None, map(hold_out.split_in, reversed(relative.parts))), "")
        other = re.match(r"([A-Za-z_]+)-\d+-of-\d+", file.name)  # a split of its own, such as unsupervised
        files.setdefault(split or (other[1] if other else "train"), []).append(file)
    if not files:
        what = "has no .parquet files" if root.is_dir() else "is no file or folder"
        raise UserError(f"{title}: {identity.shown(str(root))} {what}")
    _check_ranges(title, files)
    return files


def _below(root: Path) -> list[Path]:
    """Returns the parquet files at any depth, sorted; follows links, and leaves out hidden files."""
    files = []
    for folder, folders, names in os.walk(root, followlinks=True):
        if os.path.realpath(folder) in {os.path.realpath(parent) for parent in Path(folder).parents}:
            folders.clear()  # a link to a folder above would never end
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return sorted(files)


def _check_ranges(title: str, files: Mapping[str, Sequence[Path]]) -> None:
    """Raises UserError if a file of train-00000-of-00294.parquet, … is missing."""
    for split, own in files.items():
        ranges: dict[str, set[int]] = {}
        for file in own:
            if match := re.search(r"-(\d+)-of-(\d+)", file.name):
                ranges.setdefault(f"{file.parent}/{file.name[: match.start()]}-of-{match[2]}", set()).add(int(match[1]))
        for name, present in ranges.items():
            count = int(name.rpartition("-of-")[2])
            if missing := sorted(set(range(min(count, 1 << 20))) - present):
                raise UserError(
                    f"{title}: {len(missing)} of the {count} files of split '{split}' are missing, "
                    f"the first is number {missing[0]:05}"
                )


def columns(file: Path, names: Mapping[str, str]) -> Column:
    """Chooses the columns of images and labels by their usual names and their types; `names` overrides the names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)

    def fits(name: str, of: str) -> bool:
        kind = schema.field(name).type
        if of == "image":
            return _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        value = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        value = value.value_type if pa.types.is_dictionary(value) else value
        return pa.types.is_integer(value) or pa.types.is_string(value) or pa.types.is_large_string(value)

    chosen = {}
    for of, usual in (("image", IMAGES), ("label", LABELS)):
        candidates = [names[of]] if of in names else [name for name in usual if name in schema.names]
        fitting = [name for name in candidates if name in schema.names and fits(name, of)]
        if not fitting:
            listed = ", ".join(f"{field.name} ({_kind(field.type)})" for field in schema)
            what = {"image": "images (bytes, or structs with bytes)", "label": "labels (integers or texts)"}[of]
            raise Damaged(
                f"no column of {what}; its columns are {listed}; parquet:PATH(image=COLUMN, label=COLUMN) names others"
            )
        chosen[of] = fitting[0]
    kind = schema.field(chosen["label"]).type
    return Column(
        chosen["image"],
        chosen["label"],
        pa.types.is_struct(schema.field(chosen["image"]).type),
        pa.types.is_list(kind) or pa.types.is_large_list(kind),
        _named(schema.metadata or {}, chosen["label"]),
    )


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _kind(kind: "pa.DataType") -> str:
    text = str(kind)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _named(metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...]:
    """Returns the names of the classes, which the hub's sets keep in the schema."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = (feature.get("feature") or feature)["names"] if isinstance(feature, dict) else feature[0]["names"]
        return tuple(map(str, names))
    except (KeyError, ValueError, TypeError, IndexError):
        return ()


def classes(files: Sequence[Path], column: Column) -> tuple[str, ...]:
    """Returns the classes of the training files: sorted texts, or numbers up to the largest."""
    distinct: set[Any] = set()
    for file in files:
        for values in labels(file, column):
            distinct |= set((values or ()) if column.several else [values])
    distinct.discard(None)  # the row is named where its label is read
    if all(isinstance(value, str) for value in distinct):
        return tuple(sorted(distinct))
    highest = max((value for value in distinct if isinstance(value, int)), default=0)
    if highest > max(1 << 16, len(distinct) * 2):
        raise UserError(f"{files[0]}: its labels go up to {highest}, which is more than its classes")
    return tuple(map(str, range(highest + 1)))


def labels(file: Path, column: Column) -> list[Any]:
    """Returns the column of labels, as Python values; reads no image."""
    import pyarrow.parquet as pq

    with reading(str(file), ".parquet"):
        return pq.read_table(file, columns=[column.label])[column.label].to_pylist()


def row_groups(path: str, column: Column) -> list[tuple[int, int]]:
    """Returns (rows, bytes) of each row group of a file."""
    import pyarrow.parquet as pq

    with reading(path, ".parquet"):
        metadata = pq.read_metadata(path)
        missing = {column.image, column.label} - {
            name.split(".")[0] for name in metadata.schema.to_arrow_schema().names
        }
        if missing:
            raise Damaged(f"has no column '{sorted(missing)[0]}', which the first file has")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        if sum(group.num_rows for group in groups) > 100 * os.path.getsize(path):
            raise Damaged("lists more rows than it can hold")
        return [(group.num_rows, group.total_byte_size) for group in groups]

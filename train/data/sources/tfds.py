"""Image classification sets of TensorFlow Datasets, read through `tfds.data_source` without TensorFlow.

TFDS returns images encoded, and they are decoded here (decode.Decoder) in one step with the crop, which is much faster.
Only the image and the label of a record are parsed, so that segmentation masks and the like cost nothing.

In a set with a list of classes per image, a label has, for each class, 1 for present, 0 for absent, -1 for not counted.
Only PASCAL VOC needs -1: all objects of a class are marked "difficult" if `labels` has the class and
`labels_no_difficult` lacks it, and VOC's evaluation ignores such objects (Everingham 2010, section 4.1).
"""

import contextlib
import math
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import DatasetNotFoundError

from models.errors import UserError, choice_error
from models.weights.foreign import Damaged, reading
from train.data.decode import MOST_PIXELS
from train.data.identity import Digest, of_files
from train.data.options import Options
from train.data.source import Indices, Label, Source
from train.storage.files import expanded, is_remote, read_json
from train.storage.remote import fetched

_RANDOM_ACCESS = ("array_record", "parquet")
_NAMES = ("file_name", "id", "image/filename", "image/file_name")  # features that name an example
_CERTAIN = "_no_difficult"  # suffix of the list without classes whose objects are all difficult


class _Records(Protocol):
    """The records of a split, as `as_data_source` returns them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...

    def __getitems__(self, indices: list[int]) -> list[bytes]: ...


class TfdsSource(Source):
    """A split of a TFDS set that is prepared in `options.dir`."""

    def __init__(self, name: str, split: str, options: Options):
        """Opens split `split` ("train", "train[:90%]", …) of set `name`; UserError if it is missing or damaged."""
        self.title, self.split, self.dir = name, split, data_dir(options.dir, name)
        self._lock, self._opened = threading.Lock(), None
        with self._reading():
            self._describe(name, split, options)

    def _reading(self) -> contextlib.AbstractContextManager:
        """Returns a context that turns anything TFDS raises for damaged files into a UserError of one line."""
        return reading(f"TFDS data set '{self.title}' in {self.dir}", "TFDS")

    def _describe(self, name: str, split: str, options: Options) -> None:
        builder = _builder(name, self.dir)
        self.image_key, self.label_key = _keys(name, builder.info)
        features, splits = _features(builder.info), builder.info.splits
        for part in split.split("+"):  # "train+validation[:50%]"
            if part.partition("[")[0].strip() not in splits:
                raise choice_error(f"split of {name}", part, splits)
        if isinstance(features[self.label_key], tfds.features.Sequence):
            self.label_shape = (features[self.label_key].num_classes,)
        self._check_shards(builder, split)
        shape = features[self.image_key].shape
        if math.prod(side or 1 for side in shape[:2]) > MOST_PIXELS:
            raise Damaged(f"its images are declared as {shape[0]}x{shape[1]}; allowed: {MOST_PIXELS:,} pixels")
        try:
            count = len(self._data)
        except ValueError as error:
            raise UserError(f"split '{split}' of {name}: {' '.join(str(error).split())}") from error
        super().__init__(count, features[self.label_key].names, shape, options)

    def _check_shards(self, builder: tfds.core.DatasetBuilder, split: str) -> None:
        """Raises Damaged if a file is declared to have more records than bytes."""
        for part in split.split("+"):
            info = builder.info.splits[part.partition("[")[0].strip()]
            for path, records in zip(info.filepaths, info.shard_lengths, strict=True):
                if records > (size := Path(path).stat().st_size):
                    raise Damaged(
                        f"{Path(path).name} has {size:,} bytes, and dataset_info.json counts {records:,} records in it"
                    )

    @property
    def _data(self) -> _Records:
        """Returns the records; each worker process opens them for itself, since only the set's name is pickled."""
        return self._open()[0]

    def _parse(self, record: bytes, *keys: str) -> dict[str, Any]:
        """Returns some features of a record, with the image still encoded; TFDS's own parser would decode all."""
        _, features, parsers = self._open()
        if keys not in parsers:  # making a parser costs more than parsing an image
            parsers[keys] = tfds.features.FeaturesDict({key: features[key] for key in keys if key in features})
        skip = {self.image_key: tfds.decode.SkipDecoding()} if self.image_key in keys else None
        return parsers[keys].deserialize_example_np(record, decoders=skip)

    def _open(self) -> tuple[_Records, Mapping[str, Any], dict[tuple[str, ...], Any]]:
        """Returns the records, their features, and the parsers that `_parse` has made."""
        with self._lock:
            if self._opened is None:
                builder = _builder(self.title, self.dir)
                raw = tfds.decode.DeserializeMethod.RAW_BYTES
                records = builder.as_data_source(self.split, deserialize_method=raw)  # pyright: ignore[reportCallIssue]  TFDS's decorator
                self._opened = records, _features(builder.info), {}
            return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=None)

    def fetch(self, indices: Indices) -> list[tuple[bytes, Label]]:
        # One call for all: array_record reads a list of records in threads of its own, 10 times faster
        with self._reading():
            records = self._data.__getitems__([int(index) for index in indices])
            return [self._example(record) for record in records]

    def _example(self, record: bytes) -> tuple[bytes, Label]:
        certain = self.label_key + _CERTAIN
        values = self._parse(record, self.image_key, self.label_key, *(certain,) * bool(self.label_shape))
        if not self.label_shape:
            label = int(values[self.label_key])
            if not 0 <= label < len(self.classes):
                raise Damaged(f"a record has the label {label}; allowed: 0 to {len(self.classes) - 1}")
            return values[self.image_key], label
        label = np.zeros(self.label_shape, np.int32)
        label[np.asarray(values[self.label_key], int)] = -1 if certain in values else 1
        label[np.asarray(values.get(certain, ()), int)] = 1
        return values[self.image_key], label

    def identity(self) -> dict[str, str | int]:
        """Returns name, version and split, and a digest.

        The digest covers the facts that TFDS keeps about the split's files (numbers of records, bytes, checksums of the
        downloads), their sizes, and both ends of a sample of them.
        """
        builder = _builder(self.title, self.dir)
        info = read_json(Path(builder.data_path, "dataset_info.json"))
        bases = {part.partition("[")[0].strip() for part in self.split.split("+")}
        digest = Digest().add(*(info.get(key) for key in ("downloadChecksums", "downloadSize")))
        for part in sorted(info.get("splits", ()), key=lambda part: part["name"]):
            if part["name"] in bases:
                digest.add(sorted(part.items()))
        files = [Path(path).name for base in sorted(bases) for path in builder.info.splits[base].filepaths]
        digest.add(of_files(os.fspath(builder.data_path), files))
        return {"images": self.count, "set": builder.info.full_name, "split": self.split, "content": digest.short()}

    def name(self, index: int) -> str:
        with self._reading():
            record = self._parse(self._data[int(index)], *_NAMES)
        names = [record[key] for key in _NAMES if key in record]
        file_name = f" ({names[0].decode() if isinstance(names[0], bytes) else names[0]})" if names else ""
        return f"{self.title} {self.split} {index}{file_name}"


class NotPrepared(UserError):
    """A set that TFDS knows, but that is not in the folder."""


def described(name: str, options: Options) -> tuple[int, tuple[int, int, int]] | None:
    """Describes a set that is not prepared, from the facts that TFDS has about it.

    Returns:
      The number of classes, and (H, W, C) after decoding; None if TFDS does not know enough, or if the crop leaves the
      size open.
    """
    try:
        info = tfds.builder(name, data_dir=data_dir(options.dir, name)).info
        image, label = _keys(name, info)
        features = _features(info)
        height, width, channels = features[image].shape
    except Exception:  # a set's script can raise anything, and this is only a courtesy
        return None
    height, width = options.image_size or height, options.image_size or width
    return (features[label].num_classes, (height, width, channels)) if height and width else None


def data_dir(configured: str, name: str = "") -> str:
    """Returns the folder of the prepared sets: `configured`, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Of a remote folder, only the set `name` is copied.
    """
    folder = configured or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if name and is_remote(folder):
        return str(fetched(f"{folder.rstrip('/')}/{_main(name)}").parent)
    return str(expanded(folder))


def _main(name: str) -> str:
    """Returns the name of a set without its config and version."""
    return re.split(r"[/:]", name)[0]


def known_names(folder: str) -> list[str]:
    """Returns the names of the sets that TFDS can prepare, and of all sets in `folder`, whoever made them."""
    prepared = [path.name for path in Path(folder).glob("*") if _is_prepared(path)]
    return sorted({*tfds.list_builders(with_community_datasets=False), *prepared})


def unknown_name(name: str, folder: str) -> UserError:
    """Returns the error for a `name` that is not a TFDS set."""
    unknown = choice_error("TFDS data set", name, known_names(folder))
    return UserError(f"{unknown}; sets prepared elsewhere are looked for in {folder} (data.dir)")


def prepare_command(name: str, folder: str) -> str:
    """Returns the command that prepares set `name` in `folder`."""
    return f"python -m train.data.prepare {name} --data_dir={folder}"


def _is_prepared(path: Path) -> bool:
    """Returns True if `path`/VERSION or `path`/CONFIG/VERSION holds a prepared set."""
    return any(any(path.glob(f"{depth}/dataset_info.json")) for depth in ("*", "*/*"))


def _builder(name: str, folder: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set that is prepared for random access; raises UserError for any other set."""
    path = Path(folder, _main(name))
    if not _is_prepared(path):
        if path.name not in known_names(folder):
            raise unknown_name(path.name, folder)
        raise _not_prepared(name, folder, path)
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (ValueError, AssertionError, DatasetNotFoundError) as error:
        raise UserError(f"TFDS data set '{name}': {str(error).strip().splitlines()[0]}") from error
    if not Path(builder.data_path, "dataset_info.json").is_file():
        raise _not_prepared(name, folder, builder.data_path)
    assert builder.info.file_format is not None  # TFDS fills it in when it reads dataset_info.json
    file_format = builder.info.file_format.value
    if file_format not in _RANDOM_ACCESS:
        raise UserError(
            f"data set '{name}' in {builder.data_path} is {file_format}, which has no random access: move that folder "
            f"away and prepare it as array_record by: {prepare_command(name, folder)}"
        )
    return builder


def _not_prepared(name: str, folder: str, searched: os.PathLike) -> UserError:
    return NotPrepared(
        f"data set '{name}' is not prepared: nothing in {searched}; run: {prepare_command(name, folder)}"
    )


def _features(info: tfds.core.DatasetInfo) -> Mapping[str, Any]:
    """Returns the features of a set's records by name; other kinds of features do not hold images with labels."""
    return cast("Mapping[str, Any]", info.features)


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """Returns the features that hold the image and the label (a class, or a list of classes).

    They are the supervised keys, else the only features of those types.
    """
    features = _features(info)
    candidates = [cast("tuple[str, ...]", info.supervised_keys)] if info.supervised_keys else []
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    lists = [
        key
        for key in features
        if isinstance(features[key], tfds.features.Sequence)
        and isinstance(features[key].feature, tfds.features.ClassLabel)
    ]
    lists = [key for key in lists if key.removesuffix(_CERTAIN) == key or key.removesuffix(_CERTAIN) not in lists]
    for label_keys in (labels, [] if labels else lists):
        if len(images) == len(label_keys) == 1:
            candidates.append((images[0], label_keys[0]))
    labels += lists
    for keys in candidates:
        if len(keys) == 2 and keys[0] in images and keys[1] in labels and features[keys[0]].np_dtype == np.uint8:
            return keys[0], keys[1]
    raise UserError(
        f"data set '{name}' has no image (uint8) with a class label: its features are {', '.join(features)}"
    )

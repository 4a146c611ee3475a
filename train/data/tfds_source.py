"""Any image classification set of TensorFlow Datasets, read through `tfds.data_source`: no TensorFlow is needed.

The image is kept encoded by TFDS and decoded here (decode.Decoder): in one step with the crop, and much faster.
"""

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from models.errors import UserError, choice_error
from train.data.source import Options, Source

_RANDOM_ACCESS = ("array_record", "parquet")


class TfdsSource(Source):
    """Split `split` ("train", "train[:90%]", …) of the TFDS set `name`, which lies prepared in options.dir."""

    def __init__(self, name: str, split: str, options: Options):
        self.title, self.split, self.dir = name, split, data_dir(options.dir)
        builder = _builder(name, self.dir)
        self.image_key, self.label_key = _keys(name, builder.info)
        splits = builder.info.splits
        if re.split(r"[\[+]", split)[0] not in splits:
            raise choice_error(f"split of {name}", split, splits)
        self._lock, self._opened = threading.Lock(), None
        try:
            count = len(self._data)
        except ValueError as error:
            raise UserError(f"split '{split}' of {name}: {' '.join(str(error).split())}") from error
        features = builder.info.features
        super().__init__(count, features[self.label_key].names, features[self.image_key].shape, options)

    @property
    def _data(self) -> Sequence[dict[str, Any]]:
        """The open data source. Worker processes open their own: what is pickled is its name."""
        with self._lock:
            if self._opened is None:
                self._opened = _builder(self.title, self.dir).as_data_source(
                    self.split, decoders={self.image_key: tfds.decode.SkipDecoding()}
                )
            return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=None)

    def fetch(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        # All of a batch at once: array_record reads a list of records in threads of its own, 10 times faster.
        records = self._data.__getitems__([int(index) for index in indices])
        return [(record[self.image_key], int(record[self.label_key])) for record in records]

    def name(self, index: int) -> str:
        record = self._data[int(index)]
        names = [record[key] for key in ("file_name", "id", "image/filename") if key in record]
        known = f" ({names[0].decode() if isinstance(names[0], bytes) else names[0]})" if names else ""
        return f"{self.title} {self.split} {index}{known}"


class NotPrepared(UserError):
    """A set that TFDS knows, but that does not lie in the folder."""


def described(name: str, options: Options) -> tuple[int, tuple[int, int, int]] | None:
    """(classes, (H, W, C) after decoding) of a set that is not prepared, from what TFDS knows of it.

    None where that is not enough, or where the crop leaves the size open.
    """
    try:
        info = tfds.builder(name, data_dir=data_dir(options.dir)).info
        image, label = _keys(name, info)
        height, width, channels = info.features[image].shape
    except Exception:  # whatever a set's script comes up with: this is a courtesy
        return None
    height, width = options.image_size or height, options.image_size or width
    return (info.features[label].num_classes, (height, width, channels)) if height and width else None


def data_dir(configured: str) -> str:
    """The folder of the prepared sets: as configured, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return str(Path(configured or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser())


def known_names(folder: str) -> list[str]:
    """The names of the sets that TFDS can prepare, and of those that lie in `folder`, which may be sets of any make."""
    prepared = [path.name for path in Path(folder).glob("*") if _is_prepared(path)]
    return sorted({*tfds.list_builders(with_community_datasets=False), *prepared})


def unknown_name(name: str, folder: str) -> UserError:
    """The error for a `name` that TFDS has no set of: its 200 names are not listed, the nearest is."""
    allowed = known_names(folder)
    hint = choice_error("TFDS data set", name, allowed).args[0].partition(" allowed:")[0].rstrip(";")
    return UserError(f"{hint}; sets prepared elsewhere are looked for in {folder} (data.dir)")


def prepare_command(name: str, folder: str) -> str:
    """The command that prepares set `name` in `folder`."""
    return f"python -m train.data.prepare {name} --data_dir={folder}"


def _is_prepared(path: Path) -> bool:
    """Whether a version lies in `path`/VERSION or `path`/CONFIG/VERSION."""
    return any(any(path.glob(f"{depth}/dataset_info.json")) for depth in ("*", "*/*"))


def _builder(name: str, folder: str) -> tfds.core.DatasetBuilder:
    """The builder of a set that is prepared for random access. Raises UserError for any other."""
    path = Path(folder, re.split(r"[/:]", name)[0])
    if not _is_prepared(path):
        if path.name not in known_names(folder):
            raise unknown_name(path.name, folder)
        raise _not_prepared(name, folder, path)
    try:
        builder = tfds.builder(name, data_dir=folder)
    except (ValueError, AssertionError, tfds.core.registered.DatasetNotFoundError) as error:
        raise UserError(f"TFDS data set '{name}': {str(error).strip().splitlines()[0]}") from error
    if not Path(builder.data_path, "dataset_info.json").is_file():
        raise _not_prepared(name, folder, builder.data_path)
    file_format = builder.info.file_format.value
    if file_format not in _RANDOM_ACCESS:
        raise UserError(
            f"data set '{name}' in {builder.data_path} is {file_format}, which has no random access: move that folder "
            f"away and prepare it as array_record by: {prepare_command(name, folder)}"
        )
    return builder


def _not_prepared(name: str, folder: str, searched: os.PathLike) -> UserError:
    return NotPrepared(
        f"data set '{name}' is not prepared: nothing in {searched}; run: {prepare_command(name, folder)}")


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The names of the image and of the label: the supervised keys, else the only features of those types."""
    features = info.features
    candidates = [info.supervised_keys] if info.supervised_keys else []
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    if len(images) == len(labels) == 1:
        candidates.append((images[0], labels[0]))
    for keys in candidates:
        if len(keys) == 2 and keys[0] in images and keys[1] in labels and features[keys[0]].np_dtype == np.uint8:
            return keys
    raise UserError(
        f"data set '{name}' has no image (uint8) with a class label: its features are {', '.join(features)}"
    )

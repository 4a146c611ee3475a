"""Writes a small TFDS data set in array_record, without TensorFlow, where `tfds.builder` looks for it."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Returns an image file of uint8 pixels [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(
    data_dir: Path,
    name: str,
    splits: dict[str, list[tuple[bytes, int]]],
    shape: tuple[int, int] | None = None,
    file_format: str = "array_record",
    features: tuple[str, str] = ("image", "label"),
) -> None:
    """Writes the data set `name` of three classes into `data_dir`.

    Args:
      splits: encoded images and labels.
      shape: None for images of varying sizes.
    """
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    dimensions = [*(str(side) for side in shape or (-1, -1)), "3"]
    module = "tensorflow_datasets.core.features."
    image = {"shape": {"dimensions": dimensions}, "dtype": "uint8", "encodingFormat": "png"}
    fields = {
        features[0]: {"pythonClassName": module + "image_feature.Image", "image": image},
        features[1]: {"pythonClassName": module + "class_label_feature.ClassLabel", "classLabel": {"numClasses": "3"}},
    }
    spec = {"pythonClassName": module + "features_dict.FeaturesDict", "featuresDict": {"features": fields}}
    (folder / "features.json").write_text(json.dumps(spec))
    (folder / f"{features[1]}.labels.txt").write_text("ant\nbee\ncat\n")
    infos = []
    for split, examples in splits.items():
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.{file_format}-00000-of-00001"), "group_size:1")
        for encoded, label in examples:
            example = tf_example_pb2.Example()
            example.features.feature[features[0]].bytes_list.value.append(encoded)
            example.features.feature[features[1]].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append({"name": split, "shardLengths": [str(len(examples))], "filepathTemplate": template})
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def write_as(data_dir: Path, name: str, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes made-up examples as TFDS's own data set `name` into `data_dir`, in the form that TFDS itself would write.

    Args:
      splits: examples with every feature of the data set in TFDS; images are the bytes of files.
    """
    builder = tfds.builder(name, data_dir=data_dir)
    features, folder, infos = builder.info.features, Path(builder.data_path), []
    folder.mkdir(parents=True)
    for split, examples in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=builder.name, split=split, filetype_suffix="array_record"
        )
        writer = ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
        for example in examples:
            images = {
                key: io.BytesIO(value)
                for key, value in example.items()
                if isinstance(features[key], tfds.features.Image)
            }
            writer.write(features.serialize_example({**example, **images}))
        writer.close()
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(examples)], num_bytes=1, filename_template=template)
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.set_file_format("array_record", override=True)
    builder.info.write_to_directory(folder)

"""Transfer data sets, in TFDS's form: the right features, labels and splits are read."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from models.errors import UserError
from tests import tfds_sample
from train.data.load import load
from train.data.resident import Resident
from train.data.shuffle import Order
from train.data.source import Options
from train.data.sources.arrays import ArraySource
from train.data.stream import evaluation_batches, stream

RNG = np.random.default_rng(0)
SIZES = ((20, 30), (31, 17), (24, 24))
SIZED = {"image_size": 16, "crop": "resize"}


def picture(number: int, channels: int = 3, size=None, kind="JPEG") -> bytes:
    height, width = size or SIZES[number % 3]
    pixels = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return tfds_sample.encode(pixels if channels == 3 else pixels[..., 0], kind)


def box():
    return tfds.features.BBox(0.1, 0.2, 0.8, 0.9)


def caltech101(i):
    return {"image": picture(i), "image/file_name": f"image_{i:04}.jpg", "label": i % 102}


def caltech_birds2011(i):
    return {
        "image": picture(i),
        "image/filename": f"bird_{i}.jpg",
        "label": i % 200,
        "label_name": "Crested_Auklet",
        "bbox": box(),
        "segmentation_mask": b"no image, so decoding it fails",
    }


def cars196(i):
    return {"image": picture(i), "id": f"{i:05}.jpg", "label": i % 196, "bbox": box()}


def cifar10(i):
    return {"image": picture(i, size=(32, 32), kind="PNG"), "id": f"train_{i:05}", "label": i % 10}


def mnist(i):
    return {"image": picture(i, 1, (28, 28), "PNG"), "label": i % 10}


def thing(label: str, difficult: bool = False):
    return {"label": label, "bbox": box(), "pose": "left", "is_truncated": False, "is_difficult": difficult}


# One object; two of one class; a difficult one of another class; the same class difficult and not; difficult alone.
VOC = (
    [thing("cat")],
    [thing("dog"), thing("dog")],
    [thing("cat"), thing("person", True)],
    [thing("bus", True), thing("bus")],
    [thing("sofa", True)],
)
VOC_LABELS = ({"cat": 1}, {"dog": 1}, {"cat": 1, "person": -1}, {"bus": 1}, {"sofa": -1})


def voc(i):
    objects = VOC[i % len(VOC)]
    return {
        "image": picture(i),
        "image/filename": f"{i:06}.jpg",
        "objects": objects,
        "labels": sorted({thing["label"] for thing in objects}),
        "labels_no_difficult": sorted({thing["label"] for thing in objects if not thing["is_difficult"]}),
    }


def write(folder: Path, name: str, make, counts: dict[str, int]) -> None:
    tfds_sample.write_as(folder, name, {split: [make(i) for i in range(n)] for split, n in counts.items()})


@pytest.mark.parametrize(
    ("name", "make", "classes", "shape", "file_name"),
    [
        ("caltech101", caltech101, 102, (16, 16, 3), "image_0002.jpg"),
        ("caltech_birds2011", caltech_birds2011, 200, (16, 16, 3), "bird_2.jpg"),
        ("cars196", cars196, 196, (16, 16, 3), "00002.jpg"),
        ("cifar10", cifar10, 10, (32, 32, 3), "train_00002"),
        ("mnist", mnist, 10, (28, 28, 1), None),
    ],
)
def test_sets_with_one_class_per_image(tmp_path, name, make, classes, shape, file_name):
    write(tmp_path, name, make, {"train": 5, "test": 4})
    changes = SIZED if shape[0] == 16 else {}
    train, test = (load(Options(f"tfds:{name}", dir=str(tmp_path), **changes), split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.classes)) == (5, 4, classes) and train.label_shape == ()
    assert train.image_shape == shape and train.classes == test.classes
    arrays = train.arrays()
    assert arrays["label"].tolist() == [0, 1, 2, 3, 4] and arrays["label"].dtype == np.int32
    assert (train.image_key, train.label_key) == ("image", "label")
    assert train.name(2) == f"{name} train 2" + (f" ({file_name})" if file_name else "")
    if shape[0] == 32:  # a PNG preserves every level
        ((stored, _),) = train.fetch([3])
        np.testing.assert_array_equal(arrays["image"][3], np.asarray(Image.open(io.BytesIO(stored))))


@pytest.fixture(scope="module")
def voc_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write(folder, "voc/2007", voc, {"train": 5, "validation": 4, "test": 7})
    return folder


def voc_source(folder: Path, split: str = "train", **changes):
    return load(Options("tfds:voc/2007", dir=str(folder), **SIZED, **changes), split)


def expected(classes: tuple[str, ...], numbers) -> np.ndarray:
    labels = np.zeros((len(numbers), len(classes)), np.int32)
    for row, number in enumerate(numbers):
        for name, value in VOC_LABELS[number].items():
            labels[row, classes.index(name)] = value
    return labels


def test_voc(voc_dir):
    source = voc_source(voc_dir)
    assert (len(source), source.label_shape, source.classes[:2]) == (5, (20,), ("aeroplane", "bicycle"))
    assert not source.fixed_size and source.image_shape == (16, 16, 3)
    for labels in (source.arrays()["label"], source.all_labels(), source.read(range(5))["label"]):
        np.testing.assert_array_equal(labels, expected(source.classes, range(5)))
        assert labels.dtype == np.int32
    example = pickle.loads(pickle.dumps(source)).example(2)
    assert example["label"].dtype == np.int32
    np.testing.assert_array_equal(example["label"], expected(source.classes, [2])[0])
    assert source.name(3) == "voc/2007 train 3 (000003.jpg)" and len(pickle.dumps(source)) < 2000


def test_splits_of_voc_add_up(voc_dir):
    both = voc_source(voc_dir, train_split="train+validation")
    np.testing.assert_array_equal(both.arrays()["label"], expected(both.classes, [0, 1, 2, 3, 4, 0, 1, 2, 3]))
    assert len(voc_source(voc_dir, "test")) == 7 and len(voc_source(voc_dir, train_split="train+validation[:50%]")) == 7
    with pytest.raises(UserError, match=r"unknown split of voc/2007 'validaton'; did you mean 'validation'"):
        voc_source(voc_dir, train_split="train+validaton")


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_and_resident_data_carry_label_vectors(voc_dir, workers):
    source = voc_source(voc_dir)
    batches = list(stream(source, Order(5, 3), 4, 0, 3, workers=workers))
    resident, order = Resident(source), Order(5, 3)
    for step, batch in enumerate(batches):
        index = order.indices(4 * step, 4)
        np.testing.assert_array_equal(batch["label"], expected(source.classes, index))
        gathered = Resident.gather(resident.arrays, index, source.image_shape)
        np.testing.assert_array_equal(gathered["label"], batch["label"])
        np.testing.assert_array_equal(gathered["image"], batch["image"])
    last = list(evaluation_batches(source, 4, workers=workers))[-1]
    assert last["label"].shape == (4, 20) and last["mask"].tolist() == [1, 0, 0, 0] and not last["label"][1:].any()


def test_a_list_of_classes_without_one_for_difficult_objects(tmp_path):
    """Tests a set with any builder: the classes in its label list count as present."""
    features = tfds.features.FeaturesDict(
        {
            "photo": tfds.features.Image(shape=(8, 8, 3)),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"])),
        }
    )
    folder = tmp_path / "tagged" / "1.0.0"
    folder.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="tagged", split="train", filetype_suffix="array_record"
    )
    writer = tfds_sample.ArrayRecordWriter(str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1")
    for tags in (["a", "c"], [], ["b"]):
        image = io.BytesIO(picture(0, size=(8, 8)))
        writer.write(features.serialize_example({"photo": image, "tags": tags}))
    writer.close()
    features.save_config(folder)
    split = {
        "name": "train",
        "shardLengths": ["3"],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    (folder / "dataset_info.json").write_text(
        json.dumps({"name": "tagged", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]})
    )
    source = load(Options("tfds:tagged", dir=str(tmp_path)), "train")
    assert source.all_labels().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and source.classes == ("a", "b", "c")


def test_arrays_with_several_classes(tmp_path):
    images, labels = np.zeros((3, 4, 4, 1), np.uint8), np.array([[1, 0], [-1, 1], [0, 0]])
    np.savez(tmp_path / "a.npz", train_image=images, train_label=labels, test_image=images, test_label=labels)
    source = load(Options(f"arrays:{tmp_path}/a.npz"), "train")
    assert source.label_shape == (2,) and source.classes == ("0", "1")
    assert source.arrays()["label"].tolist() == labels.tolist()
    with pytest.raises(UserError, match=r"integers \[N\], or -1, 0 and 1 \[N, classes\]; got"):
        ArraySource(images, labels + 1)
    with pytest.raises(UserError, match=r"got uint8 \[3, 4, 4, 1\] and int64 \[2, 2\]"):
        ArraySource(images, labels[:2])


def test_a_folder_of_aircraft(tmp_path):
    """Tests FGVC-Aircraft, which TFDS lacks: folders train/VARIANT and test/VARIANT, with "/" in a name replaced."""
    assert not [name for name in tfds.list_builders(with_community_datasets=False) if "aircraft" in name]
    variants = ("707-320", "Boeing 717", "F-A-18")
    for split, count in (("train", 3), ("test", 2)):
        for variant in variants:
            folder = tmp_path / split / variant
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i:07}.jpg").write_bytes(picture(i))
    options = Options(f"folder:{tmp_path}", **SIZED)
    train, test = load(options, "train"), load(options, "test")
    assert train.classes == test.classes == variants and (len(train), len(test)) == (9, 6)
    assert train.label_shape == () and np.bincount(test.arrays()["label"]).tolist() == [2, 2, 2]

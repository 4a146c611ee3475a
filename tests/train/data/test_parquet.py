"""Sources in parquet files: columns, classes, splits, row groups, damage; and sets of the hub."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.errors import UserError
from train.data import load
from train.data.options import Options
from train.data.shuffle import Order
from train.data.sources import parquet
from train.data.sources.parquet import ParquetSource
from train.data.stream import stream

CLASSES = ["ant", "bee", "cow"]


def png(seed, size=6):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


def write(path, count=30, first=0, names=CLASSES, image="image", label="label", labels=None, group=4, struct=True):
    """Writes images `first`, … with classes in turn, as the hub does; returns the pixels."""
    images = [png(seed) for seed in range(first, first + count)]
    labels = [seed % 3 for seed in range(first, first + count)] if labels is None else labels
    column = [{"bytes": data, "path": f"{i}.png"} if struct else data for i, (data, _) in enumerate(images)]
    table = pa.table({image: column, label: labels})
    if names:
        feature = {"names": names, "_type": "ClassLabel"}
        features = {"info": {"features": {image: {"_type": "Image"}, label: feature}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return np.array([pixels for _, pixels in images])


def opened(text, split="train", **options):
    options = {"image_size": 6, **options}
    return load.load(Config(source=text, **options), split)


class Config(Options):
    """A section `data`; the dataclass has the attributes that `Options.read` reads."""


@pytest.fixture
def folder(tmp_path):
    pixels = write(tmp_path / "data/train-00000-of-00002.parquet", 30)
    more = write(tmp_path / "data/train-00001-of-00002.parquet", 10, first=30)
    write(tmp_path / "data/test-00000-of-00001.parquet", 9, first=100)
    return tmp_path, np.concatenate([pixels, more])


def test_images_labels_and_classes_of_a_set_of_the_hub(folder):
    root, pixels = folder
    train, test = (opened(f"parquet:{root}", split) for split in ("train", "test"))
    assert train.classes == tuple(CLASSES) and (len(train), len(test)) == (40, 9)
    batch = train.read([35, 0, 3, 29, 30])
    np.testing.assert_array_equal(batch["image"], pixels[[35, 0, 3, 29, 30]])
    np.testing.assert_array_equal(batch["label"], np.array([35, 0, 3, 29, 30]) % 3)
    np.testing.assert_array_equal(train.known_labels(), np.arange(40) % 3)
    assert train.name(31) == "train-00001-of-00002.parquet, row 1"
    copy = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(copy.arrays()["image"], pixels)
    assert copy.identity() == train.identity() != test.identity()


def test_without_a_test_file_a_fifth_is_held_out_and_validation_too(tmp_path):
    write(tmp_path / "images.parquet", 40)
    parts = {name: opened(f"parquet:{tmp_path}", name) for name in ("train", "test", "train_fit", "validation")}
    assert [len(part) for part in parts.values()] == [32, 8, 26, 6]
    names = {name: {part.name(i) for i in range(len(part))} for name, part in parts.items()}
    assert not names["train"] & names["test"] and names["train"] == names["train_fit"] | names["validation"]
    labels = parts["test"].all_labels()
    assert np.bincount(labels).max() - np.bincount(labels).min() <= 1
    for i in range(8):
        np.testing.assert_array_equal(parts["test"].example(i)["label"], labels[i])


def test_links_are_followed_and_hidden_files_are_not_read(folder, tmp_path):
    root = tmp_path / "links"
    root.mkdir()
    (root / "all").symlink_to(folder[0] / "data")
    (root / "loop").symlink_to(root)
    write(root / ".cache/train.parquet", 3)
    assert len(opened(f"parquet:{root}")) == 40 and len(opened(f"parquet:{root}", "test")) == 9


def test_texts_as_labels_and_bytes_as_images(tmp_path):
    kinds = ["cow", "ant", "bee", "ant", "cow", "bee"]
    write(tmp_path / "train.parquet", 6, names=None, image="img", label="cls", labels=kinds, struct=False)
    write(tmp_path / "val.parquet", 2, names=None, image="img", label="cls", labels=["bee", "cow"], struct=False)
    train, test = (opened(f"parquet:{tmp_path}", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee", "cow")
    assert train.all_labels().tolist() == [2, 0, 1, 0, 2, 1] and test.all_labels().tolist() == [1, 2]
    write(tmp_path / "val.parquet", 2, names=None, image="img", label="cls", labels=["bee", "dog"], struct=False)
    with pytest.raises(UserError, match=r"val.parquet, row 1: its label is 'dog'; allowed: the classes of training"):
        opened(f"parquet:{tmp_path}", "test").all_labels()


def test_lists_of_labels(tmp_path):
    feature = {"feature": {"names": CLASSES, "_type": "ClassLabel"}, "_type": "Sequence"}
    write(tmp_path / "train.parquet", 3, names=None, label="labels", labels=[[0, 2], [], [1]])
    table = pq.read_table(tmp_path / "train.parquet")
    features = {"info": {"features": {"labels": feature}}}
    pq.write_table(
        table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()}), tmp_path / "train.parquet"
    )
    write(tmp_path / "test.parquet", 1, names=None, label="labels", labels=[[2]])
    train = opened(f"parquet:{tmp_path}")
    assert train.label_shape == (3,) and train.classes == tuple(CLASSES)
    assert train.read([0, 1, 2])["label"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_training_reads_each_row_group_once_in_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_GROUPS", 3)
    pixels = write(tmp_path / "train.parquet", 60, group=5)
    write(tmp_path / "test.parquet", 3)
    source = opened(f"parquet:{tmp_path}")
    bounds, window = source.groups
    assert bounds.tolist() == list(range(0, 61, 5)) and window == 3
    loads, load_group = [], ParquetSource._group

    def counted(self, group):
        if group not in self._cache:
            loads.append(group)
        return load_group(self, group)

    monkeypatch.setattr(ParquetSource, "_group", counted)
    order = Order(60, 1, source.groups)
    for position in range(0, 60, 5):
        indices = order.indices(position, 5)
        np.testing.assert_array_equal(source.read(indices)["image"], pixels[indices])
    assert sorted(loads) == list(range(12))
    assert sorted(order.indices(0, 60)) == list(range(60)) and not np.array_equal(order.indices(0, 60), np.arange(60))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_restarts(folder, workers):
    source = opened(f"parquet:{folder[0]}", crop="random_resized")
    source.groups = source.bounds, 3
    order = Order(40, 5, source.groups)
    whole = list(stream(source, order, 8, 0, 9, seed=5))
    later = list(stream(source, order, 8, 4, 5, workers=workers, seed=5))
    halves = [list(stream(source, order, 8, 4, 5, shard=(r, 2), seed=5)) for r in range(2)]
    for i, batch in enumerate(later):
        np.testing.assert_array_equal(batch["image"], whole[4 + i]["image"])
        np.testing.assert_array_equal(np.concatenate([half[i]["image"] for half in halves]), batch["image"])


def test_mistakes_are_one_line(tmp_path):
    def fails(match, text=None, split="train", **options):
        with pytest.raises(UserError, match=match) as caught:
            opened(text or f"parquet:{tmp_path}", split, **options).read([0, 1])
        assert "\n" not in str(caught.value)

    fails("has no .parquet files")
    fails("is no file or folder", f"parquet:{tmp_path}/nowhere")
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    fails(r"train.parquet: no column of images .*; its columns are text \(string\), label \(int64\); parquet:PATH")
    fails("unexpected keyword argument 'picture'", f"parquet:{tmp_path}(picture=x)")
    fails("no column of images", f"parquet:{tmp_path}(image=x)")
    write(tmp_path / "train.parquet", 8, labels=[0, 1, 2, 3, 0, 1, 2, 0])
    fails(r"row 3: its label is 3; allowed: 0 to 2", split="train_fit")
    write(tmp_path / "train-00001-of-00003.parquet", 8)
    fails("2 of the 3 files of split 'train' are missing, the first is number 00000")
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    write(tmp_path / "train.parquet", 8)
    write(tmp_path / "test.parquet", 8)
    fails("split of data.source=parquet:.* 'dev'", split="dev")
    fails("image train.parquet, row 0 is 6x6, not 5x5", image_size=5)
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    fails("train.parquet: damaged, or not a .parquet file")
    (tmp_path / "train.parquet").write_bytes(whole[:200] + bytes(300) + whole[500:])
    fails("train.parquet|cannot decode image")


def test_sets_of_the_hub(hub, tmp_path, monkeypatch):
    for name, count, first in (("train-00000-of-00001", 12, 0), ("test-00000-of-00001", 3, 50)):
        write(tmp_path / f"{name}.parquet", count, first)
        hub.repositories.setdefault("datasets/org/set", {})[f"data/{name}.parquet"] = (
            tmp_path / f"{name}.parquet"
        ).read_bytes()
    train = opened("hf:org/set")
    assert len(train) == 12 and train.classes == tuple(CLASSES)
    hub.status = 503  # the cache suffices
    assert len(opened("hf:org/set", "test")) == 3
    hub.status = 0
    with pytest.raises(UserError, match="hf:org/none: the hub has no such repository"):
        opened("hf:org/none")
    with pytest.raises(UserError, match="must be hf:ORGANIZATION/NAME"):
        opened("hf:set")
    hub.repositories["datasets/org/two"] = {
        f"{config}/train-00000-of-00001.parquet": hub.repositories["datasets/org/set"][
            "data/train-00000-of-00001.parquet"
        ]
        for config in ("small", "large")
    }
    with pytest.raises(UserError, match="hf:org/two has several configurations: large, small; name one, as in"):
        opened("hf:org/two")
    assert len(opened("hf:org/two/small", "train_fit")) == 8
    hub.repositories["datasets/org/text"] = {"README.md": b"hello"}
    with pytest.raises(UserError, match="@refs/convert/parquet"):
        opened("hf:org/text")


def test_images_without_labels(tmp_path):
    write(tmp_path / "train.parquet", 6, names=None, labels=[[0], [1], None, [0, 1], [], [1]])
    source = opened(f"parquet:{tmp_path}")
    assert source.classes == ("0", "1") and source.all_labels()[2:5].tolist() == [[0, 0], [1, 1], [0, 0]]
    write(tmp_path / "train.parquet", 3, names=None, labels=["cat", None, "dog"])
    with pytest.raises(UserError, match="row 1: its label is None"):
        opened(f"parquet:{tmp_path}").all_labels()

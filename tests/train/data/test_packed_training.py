"""Digits trained from a folder, tars, shards and a table give the same bits; workers read packed sets."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from models.weights import flatten
from tests import hostile_pictures as pictures
from tests import tiny
from tests.train.data.packed import opened, shard, tar, write_folder
from train import restore
from train.data.shuffle import Order
from train.data.stream import stream

COUNT = 120


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Writes digits in every form; returns the sources by name."""
    root, digits = tmp_path_factory.mktemp("digits"), load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    names = sorted(f"{digits.target[i]}/{i:04}.png" for i in range(COUNT))
    members = {name: pictures.saved(pixels[int(name[2:6])], "PNG") for name in names}
    write_folder(root / "folder", members)
    (root / "set.tar").write_bytes(tar(members))
    items = list(shard(members, numbers=True).items())
    for number in range(2):
        (root / f"{number}.tar").write_bytes(tar(dict(items[COUNT * number : COUNT * (number + 1)])))
    (root / "folder" / "labels.csv").write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    (root / "parquet").mkdir()
    for split in ("train", "test"):  # rows have no names by which the same images would be held out
        held = opened(f"folder:{root}/folder", split)
        images, labels = zip(*held.fetch(range(len(held))), strict=True)
        columns = {"image": [path.read_bytes() for path in images], "label": list(map(str, labels))}
        pq.write_table(pa.table(columns), root / "parquet" / f"{split}.parquet", row_group_size=10)
    return {
        "parquet": f"parquet:{root}/parquet",
        "folder": f"folder:{root}/folder",
        "tar": f"tar:{root}/set.tar",
        "webdataset": f"webdataset:{root}/{{0..1}}.tar",
        "csv": f"csv:{root}/folder/labels.csv",
    }


def trained(folder, source):
    data = {"data__source": source, "data__image_size": 8, "data__crop": "resize", "data__channels": 1}
    length = {"duration": "4 steps", "batch_size": 16, "steps_per_call": 1}
    run, state = restore.load(tiny.trained(folder, **data, **length))
    return flatten(state.variables()), run.feed.classes


@pytest.mark.parametrize(
    "names", [("folder", "webdataset"), pytest.param(("folder", "tar", "csv", "parquet"), marks=pytest.mark.full)]
)
def test_every_form_trains_to_the_same_bits(tmp_path, forms, names):
    expected = None
    for name in names:
        weights, classes = trained(tmp_path / name, forms[name])
        assert list(classes) == [str(digit) for digit in range(10)]
        expected = expected or weights
        assert expected.keys() == weights.keys()
        for key, value in weights.items():
            assert np.array_equal(value, expected[key]), (name, key)


@pytest.mark.parametrize("name", ["tar", "csv"])
def test_workers_read_the_same_batches_and_a_restart_goes_on_with_them(forms, name):
    source = opened(forms[name], channels=1)
    order = Order(len(source), 3)
    straight = list(stream(source, order, 16, 0, 5))
    for workers, start in ((0, 3), *([(2, 1)] if name == "tar" else [])):
        again = list(stream(source, order, 16, start, 5 - start, workers=workers))
        for one, other in zip(straight[start:], again, strict=True):
            assert np.array_equal(one["image"], other["image"]) and np.array_equal(one["label"], other["label"])
    halves = [list(stream(source, order, 16, 0, 2, shard=(process, 2))) for process in range(2)]
    for batch, *parts in zip(straight, *halves, strict=False):
        assert np.array_equal(batch["image"], np.concatenate([part["image"] for part in parts]))

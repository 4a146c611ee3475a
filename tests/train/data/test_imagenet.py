"""ImageNet's classes: their ids, words, subsets, and where people see words."""

import json
import shutil

import numpy as np
import pytest

from experiments.explain.subjects import class_of
from models.errors import UserError
from models.weights import tags
from tests import tiny
from train import restore
from train.data import imagenet
from train.export import loaded

HAMMERHEAD, TENCH = "n01494475", "n01440764"


def test_ids_are_in_order_and_have_the_words_of_the_labels():
    ids = imagenet.wnids()
    assert len(ids) == len(set(ids)) == 1000 and list(ids) == sorted(ids)
    assert [imagenet.words(wnid) for wnid in ids] == list(tags.imagenet())
    assert (
        imagenet.words(TENCH) == "tench" and imagenet.words("n03773504") == "missile" and imagenet.words("cat") == "cat"
    )
    for which, some in (("a", {"n01498041", "n01558993"}), ("r", {"n01443537", HAMMERHEAD})):
        part = imagenet.wnids(which)
        assert len(part) == 200 and some <= set(part) <= set(ids) and list(part) == sorted(part)
    with pytest.raises(UserError, match="unknown ImageNet set 'v2'; allowed: imagenet, a, r"):
        imagenet.wnids("v2")


def test_words_stay_unique():
    shown = imagenet.shown(imagenet.wnids())
    assert len(set(shown)) == 1000
    assert imagenet.shown([TENCH, "tench", "n99999999"]) == ("tench (n01440764)", "tench", "n99999999")
    assert imagenet.shown(("a", "b")) == ("a", "b")


def test_people_see_words_and_the_record_keeps_ids(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    labels = np.arange(24) % 2
    for label, wnid in enumerate((TENCH, HAMMERHEAD)):
        (tmp_path / "set" / wnid).mkdir(parents=True)
        for number, pixels in enumerate(images[labels == label]):
            from PIL import Image

            Image.fromarray(pixels[..., 0]).save(tmp_path / "set" / wnid / f"{number}.png")
    data = {"data__source": f"folder:{tmp_path / 'set'}", "data__image_size": 8, "data__crop": "resize"}
    changes = {"duration": "2 steps", "batch_size": 4, "steps_per_call": 1, "data__channels": 1, "data__augment": ""}
    folder = tiny.trained(tmp_path / "run", **data, **changes)
    assert json.loads((folder / "data.json").read_text())["classes"] == [TENCH, HAMMERHEAD]
    assert loaded.load(folder).card["labels"] == ["tench", "hammerhead"]
    run, _ = restore.load_network(folder)
    assert run.feed.classes == (TENCH, HAMMERHEAD)
    assert class_of("hammerhead", run.feed.classes) == class_of(HAMMERHEAD, run.feed.classes) == 1
    with pytest.raises(UserError, match="unknown --target 'tensh'; did you mean 'tench'"):
        class_of("tensh", run.feed.classes)
    shutil.rmtree(tmp_path / "run")

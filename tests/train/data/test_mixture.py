"""Mixtures of image sets, and classes in the numbering of another set."""

import pickle

import numpy as np
import pytest

from models.errors import UserError
from models.weights import tags
from train.data import classes, imagenet, load, mixture
from train.data.corrupted import Corrupted
from train.data.options import Options
from train.data.shuffle import Order
from train.data.sources.arrays import ArraySource
from train.data.stream import stream


def source(count, names="abc", first=0, side=4):
    images = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None] * np.ones((side, side, 1), np.uint8)
    return ArraySource(images, np.arange(count) % len(names), list(names))


def values(one):
    return one.read(range(len(one)))["image"][:, 0, 0, 0].tolist()


def test_without_shares_each_example_is_there_once_with_the_labels_of_the_first_set():
    mixed = mixture.Mixture([source(3), source(4, "cab", first=10)], None)
    assert values(mixed) == [0, 1, 2, 10, 11, 12, 13]
    assert mixed.classes == ("a", "b", "c") and mixed.all_labels().tolist() == [0, 1, 2, 2, 0, 1, 2]
    assert mixed.read(range(7))["label"].tolist() == mixed.known_labels().tolist()
    assert mixed.name(4) == "arrays 1" and mixed.key(4) == "1 1"


@pytest.mark.parametrize(("shares", "counts"), [((1, 1), (8, 8)), ((3, 1), (24, 8)), ((1, 4), (3, 12))])
def test_shares_repeat_a_small_set_and_lose_no_example(shares, counts):
    mixed = mixture.Mixture([source(3), source(8, first=10)], shares)
    shown = values(mixed)
    assert (sum(v < 10 for v in shown), sum(v >= 10 for v in shown)) == counts
    assert set(shown) == {*range(3), *range(10, 18)}


def test_batches_are_a_function_of_the_seed_and_the_step():
    mixed = pickle.loads(pickle.dumps(mixture.Mixture([source(3), source(8, first=10)], (1, 1))))
    order = Order(len(mixed), 4)
    whole = [batch["image"][:, 0, 0, 0] for batch in stream(mixed, order, 4, 0, 6)]
    later = [batch["image"][:, 0, 0, 0] for batch in stream(mixed, order, 4, 3, 3)]
    np.testing.assert_array_equal(whole[3:], later)
    assert mixed.identity() != mixture.Mixture([source(3), source(8, first=11)], (1, 1)).identity()
    assert mixed.identity() != mixture.Mixture([source(3), source(8, first=10)], (1, 2)).identity()


def test_a_text_names_sets_and_shares(tmp_path):
    for name, first in (("one", 0), ("two", 50)):
        images = np.full((10, 4, 4, 1), first, np.uint8)
        arrays = {
            f"{split}_{kind}": images if kind == "image" else np.arange(10) % 2
            for split in ("train", "test")
            for kind in ("image", "label")
        }
        np.savez(tmp_path / f"{name}.npz", **arrays)
    text = f"mixture(arrays:{tmp_path}/one.npz=1, arrays:{tmp_path}/two.npz=3)"
    train, test = (load.load(Options(source=text), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (40, 20) and values(train).count(50) == 30
    assert len(load.load(Options(source=text, test_split="train"), "test")) == 20
    for wrong in ("mixture(digits)", "mixture(digits=1, digits)", "mixture(digits, digits", "mixture(a=0, b=1)"):
        with pytest.raises(UserError, match=r"must be mixture\(SOURCE, SOURCE"):
            load.load(Options(source=wrong), "train")
    with pytest.raises(UserError, match=r"data.source=mixture.*unknown data.source 'nothing'|nothing"):
        load.load(Options(source="mixture(digits, nothing)"), "train")


def test_renumbered_images_are_those_of_the_set():
    corrupted = Corrupted(source(6, side=8), "gaussian_noise", 5)
    renumbered = classes.Renumbered(corrupted, np.array([2, 1, 0]), "cba")
    np.testing.assert_array_equal(renumbered.arrays()["image"], corrupted.arrays()["image"])
    again = classes.Renumbered(Corrupted(source(6, side=8), "gaussian_noise", 4), np.array([2, 1, 0]), "cba")
    assert renumbered.identity() != again.identity()


def test_sets_that_do_not_fit():
    with pytest.raises(UserError, match="images of different shapes"):
        mixture.Mixture([source(3), source(3, side=5)], None)
    with pytest.raises(UserError, match="a set has a class that the network does not know, such as 'd'"):
        mixture.Mixture([source(3), source(3, "abd")], None)


def test_classes_are_matched_by_name_or_by_a_table(tmp_path):
    assert classes.numbers("cab", "abcd", None, "x").tolist() == [2, 0, 1]
    table = {"cat": "a", "lynx": "a", "dog": "b", "tree": ""}
    numbers = classes.numbers(["cat", "dog", "lynx", "tree"], "ab", table, "x")
    assert numbers.tolist() == [0, 1, 0, -1]
    renumbered = classes.Renumbered(source(8, ["cat", "dog", "lynx", "tree"]), numbers, "ab")
    assert values(renumbered) == [0, 1, 2, 4, 5, 6] and renumbered.all_labels().tolist() == [0, 1, 0, 0, 1, 0]
    with pytest.raises(UserError, match="no row for 1 classes of x, such as 'bird'"):
        classes.numbers(["bird"], "ab", table, "x")
    with pytest.raises(UserError, match="the network has no class 'c'"):
        classes.numbers(["bird"], "ab", {"bird": "c"}, "x")
    with pytest.raises(UserError, match="none of its images is of a class that the network knows"):
        classes.Renumbered(source(3), np.full(3, -1), "ab")


def test_classes_of_imagenet_are_matched_by_their_ids():
    ids, words = imagenet.wnids(), tags.imagenet()
    longer = [f"{name}, and so on" for name in words]
    both = [f"{wnid}_{name}" for wnid, name in zip(ids, words, strict=True)]
    for known in (words, ids, longer, both):
        assert classes.numbers(imagenet.wnids("a"), known, None, "x").tolist() == [
            ids.index(wnid) for wnid in imagenet.wnids("a")
        ]
        assert classes.numbers(both, known, None, "x").tolist() == list(range(1000))
    assert imagenet.ids(["tench"]) == ("tench",) and imagenet.ids(list(map(str, range(1000))))[0] == "0"


def test_tables_of_classes(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("\ufeffcat,a\ntree,\n")
    assert classes.read_table(str(path)) == {"cat": "a", "tree": ""}
    for text, match in (("cat\n", "a row has 1 cells"), ("cat,a\ncat,b\n", "'cat' has two rows")):
        path.write_text(text)
        with pytest.raises(UserError, match=match):
            classes.read_table(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        classes.read_table(str(path))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        classes.read_table(str(tmp_path / "none.csv"))


def test_several_labels_are_renumbered():
    labels = np.array([[1, 0, -1], [0, 1, 0]])
    several = ArraySource(np.zeros((2, 4, 4, 1), np.uint8), labels, list("abc"))
    renumbered = classes.Renumbered(several, classes.numbers("abc", "cxab", None, "x"), "cxab")
    assert renumbered.label_shape == (4,) and renumbered.read([0, 1])["label"].tolist() == [[-1, 0, 1, 0], [0, 0, 0, 1]]

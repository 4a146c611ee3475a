"""Evaluation of a finished run on other sets: `python -m train --evaluate=SOURCE`."""

import json

import numpy as np
import pytest
from PIL import Image

import train
from models.errors import UserError
from tests import tiny
from train import elsewhere
from train.data import load
from train.data.options import Options


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.trained(tmp_path_factory.mktemp("elsewhere") / "run")


def digits(split="test"):
    arrays = load.load(Options(source="digits"), split).arrays()
    return arrays["image"], arrays["label"]


def saved(path, images, labels):
    np.savez(path, test_image=images, test_label=labels, train_image=images, train_label=labels)
    return f"arrays:{path}"


def test_its_own_test_set_gives_the_results_of_the_run(run, tmp_path):
    images, labels = digits()
    results = elsewhere.evaluate(str(run), saved(tmp_path / "same.npz", images, labels))
    summary = json.loads((run / "summary.json").read_text())
    for name in ("accuracy", "loss", "top5"):
        assert results[name] == pytest.approx(summary[name], rel=1e-6)
    assert (results["images"], results["classes"]) == (360, 10) and "accuracy_among_classes" not in results
    (path,) = (run / "evaluations").glob("*.json")
    assert json.loads(path.read_text())["accuracy"] == results["accuracy"]
    assert elsewhere.evaluate(str(run), "digits", "validation")["images"] == 288


def test_other_views_are_averaged(run, tmp_path):
    images, labels = digits()
    text = saved(tmp_path / "same.npz", images, labels)
    results = elsewhere.evaluate(str(run), text, views="mirror")
    classifier = train.load(run)
    logits = (classifier.logits(images) + classifier.logits(images[:, :, ::-1])) / 2
    assert results["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert results["views"] == "mirror" and len(list((run / "evaluations").glob("*_mirror.json"))) == 1
    with pytest.raises(UserError, match="unknown --views 'crops'"):
        elsewhere.evaluate(str(run), text, views="crops")


def test_of_a_set_with_few_classes_the_accuracy_among_them_is_reported_too(run, tmp_path):
    images, labels = digits()
    few = labels < 3
    results = elsewhere.evaluate(str(run), saved(tmp_path / "few.npz", images[few], labels[few]))
    logits = train.load(run).predict(images[few])
    assert results["classes"] == 3
    assert results["accuracy"] == pytest.approx((logits.argmax(1) == labels[few]).mean())
    assert results["accuracy_among_classes"] == pytest.approx((logits[:, :3].argmax(1) == labels[few]).mean())
    assert results["accuracy_among_classes"] >= results["accuracy"]


def test_of_several_right_classes_one_has_to_be_predicted(run, tmp_path):
    images, labels = digits()
    several = np.eye(10, dtype=np.int32)[labels] | np.eye(10, dtype=np.int32)[(labels + 1) % 10]
    several[:60] = 0
    results = elsewhere.evaluate(str(run), saved(tmp_path / "real.npz", images, several))
    predicted = train.load(run).predict(images[60:]).argmax(1)
    right = (predicted == labels[60:]) | (predicted == (labels[60:] + 1) % 10)
    assert results["accuracy"] == pytest.approx(right.mean())
    assert (results["images"], results["without_label"]) == (300, 60)


def test_folders_with_other_names_need_a_table(run, tmp_path):
    images, labels = digits()
    for number, name in enumerate(("zero", "one", "tree")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in np.flatnonzero(labels == number):
            Image.fromarray(images[i, ..., 0]).save(tmp_path / "set" / name / f"{i}.png")
    text = f"folder:{tmp_path}/set"
    with pytest.raises(UserError, match=r"has 3 of 3 classes that the network does not know, such as 'one'.*class_map"):
        elsewhere.evaluate(str(run), text)
    table = tmp_path / "map.csv"
    table.write_text("zero,0\none,1\ntree,\n")
    results = elsewhere.evaluate(str(run), text, class_map=str(table))
    network, _ = elsewhere.load_network(str(run))
    source, _ = elsewhere.opened(network, text, "", str(table))
    pixels = source.arrays()
    predicted = train.load(run).predict(pixels["image"]).argmax(1)
    assert set(pixels["label"].tolist()) == {0, 1} and results["images"] == len(source)
    assert results["accuracy"] == pytest.approx((predicted == pixels["label"]).mean())


def test_mistakes_are_one_line(run, tmp_path):
    images, labels = digits()
    with pytest.raises(UserError, match="data.image_size=8 but its images are 16x16"):
        elsewhere.evaluate(str(run), saved(tmp_path / "big.npz", images.repeat(2, 1).repeat(2, 2), labels))
    with pytest.raises(UserError, match=r"has a class that the network does not know, such as '10'"):
        elsewhere.evaluate(str(run), saved(tmp_path / "more.npz", images[:11], np.arange(11)))
    with pytest.raises(UserError, match="imagenet_v2"):
        elsewhere.evaluate(str(run), "imagenet-v2")
    for arguments, message in (
        (["--evaluate=digits"], "--evaluate needs the folder of a finished run"),
        (["--split=test", f"--workdir={run}"], "--split, --class_map and --views belong to --evaluate"),
        (["--evaluate=nothing", f"--workdir={run}"], "nothing"),
    ):
        done = tiny.run(*arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr

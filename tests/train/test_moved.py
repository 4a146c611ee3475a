"""The folder of a run that was moved, alone or with the files that its config names, works as before."""

import json
import shutil
from pathlib import Path

import pytest

from models.errors import UserError
from tests import tiny
from tests.train.test_loop import final
from tests.train.test_reopened import photos, top_class
from train import loop, restore
from train.data.sources import tfds
from train.export import write
from train.storage import paths

OWN = "import jax\n\n\ndef bent(x):\n    return jax.nn.leaky_relu(x, 0.1)\n"


def config(root, **changes):
    """Returns a run on images in the folder `root`."""
    options: dict[str, object] = dict(data__source=f"folder:{root / 'photos'}")
    options |= dict(data__image_size=8, data__crop="resize", batch_size=8, eval_batch_size=10, steps_per_call=1)
    options |= dict(duration="8 steps", evaluate_every="8 steps")
    return tiny.config(**{**options, **changes})


def tuned(root, **changes):
    """Returns a run that starts from the run `plain` in the folder `root`."""
    return config(root, **{"init_from": str(root / "plain"), "init_new": "", **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Returns a folder with images, the run `plain`, and the run `tuned`, which starts from `plain`."""
    root = tmp_path_factory.mktemp("moved") / "before"
    photos(root / "photos")
    loop.train(config(root), root / "plain")
    loop.train(tuned(root), root / "tuned")
    return root


@pytest.fixture
def moved(study, tmp_path):
    """Yields a copy of the folder elsewhere while the original is gone."""
    copied = shutil.copytree(study, tmp_path / "after")
    hidden = study.rename(study.with_name("hidden"))
    yield copied
    hidden.rename(study)


def cut(run):
    """Makes a finished run one that was interrupted after step 4; returns the leaves of the finished run."""
    leaves, _ = final(run)
    shutil.rmtree(run / "checkpoints" / "8")
    (run / "summary.json").unlink()
    return leaves


def test_paths_are_recorded_relative_to_the_run(study):
    assert paths.read(study / "tuned") == {"init_from": "../plain", "data.source": "folder:../photos"}
    assert json.loads((study / "tuned" / "config.json").read_text())["init_from"] == str(study / "plain")


@pytest.mark.parametrize("is_earlier", [False, True])
def test_runs_that_moved_together_resume_to_the_bit(moved, is_earlier):
    run = moved / "tuned"
    whole = cut(run)
    if is_earlier:  # earlier versions wrote no such file
        (run / paths.NAME).unlink()
    loop.train(tuned(moved), run)
    tiny.assert_same(final(run)[0], whole)
    assert paths.read(run) == {"init_from": "../plain", "data.source": "folder:../photos"}


def test_a_run_follows_its_files_to_where_it_resumed_with_them(moved):
    (moved / "sets").mkdir()
    (moved / "photos").rename(moved / "sets" / "photos")
    (moved / "plain").rename(moved / "sets" / "plain")
    summary = loop.train(tuned(moved / "sets"), moved / "tuned")  # finished
    assert summary == json.loads((moved / "tuned" / "summary.json").read_text())
    network, _ = restore.load_network(moved / "tuned")
    assert network.config["data"]["source"] == f"folder:{moved}/sets/photos" and len(network.images.test) == 30


def test_a_moved_run_predicts_and_is_exported_with_its_test_images(moved, tmp_path):
    assert top_class(moved / "tuned", moved / "photos" / "test" / "cat" / "0.png")
    network, state = restore.load_network(moved / "tuned")
    card = write.of_run(network, state, "safetensors", tmp_path / "out")
    assert card["verified"]["of"] == "test images" and card["data"] == f"folder:{moved}/photos"


def test_files_that_stayed_are_found_where_they_were(study, tmp_path):
    run = shutil.copytree(study / "tuned", tmp_path / "far" / "tuned")
    network, _ = restore.load_network(run)
    assert network.config["data"]["source"] == f"folder:{study}/photos" and len(network.images.test) == 30


def test_relative_paths_start_at_the_working_folder_of_the_training(study, tmp_path, monkeypatch):
    root = shutil.copytree(study, tmp_path / "work")
    shutil.rmtree(root / "tuned")
    (root / "own.py").write_text(OWN)
    monkeypatch.chdir(root)
    changes = dict(init_from="plain", data__source="folder:photos", model__act="own.py:bent", duration="2 steps")
    loop.train(tuned(root, **changes), "tuned")
    assert paths.read(root / "tuned") == {**paths.read(study / "tuned"), "model.act": "../own.py:bent"}
    assert restore.load_network("tuned")[0].config["data"]["source"] == "folder:photos"
    monkeypatch.chdir(tmp_path)
    network, _ = restore.load_network("work/tuned")
    assert network.config["data"]["source"] == f"folder:{root}/photos"
    assert network.config["model"]["act"] == f"{root}/own.py:bent"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("init_from", "{}/tuned", r"have changed \(arrays of init_from: \w+ -> \w+\): choose another --workdir"),
        ("init_from", "{}/none", r"init_from=\S+/none: there is no such run or file; allowed: the folder of a run or"),
        ("init_from", "", r"a different config \(init_from: \S+/plain -> \)"),
        ("data__source", "folder:{}/other", r"have changed \(identity\.test\.content"),
        ("data__source", "folder:{}/none", r"data\.source=folder:\S+/none: there is no such folder"),
    ],
)
def test_other_files_are_refused(study, tmp_path, key, value, message):
    root = shutil.copytree(study, tmp_path / "after")
    other = shutil.copytree(root / "photos", root / "other")
    shutil.copy(other / "test" / "dog" / "0.png", other / "test" / "cat" / "0.png")
    before = paths.read(root / "tuned")
    with pytest.raises(UserError, match=message):
        loop.train(tuned(root, **{key: value.format(root)}), root / "tuned")
    assert paths.read(root / "tuned") == before


@pytest.mark.parametrize(
    ("key", "old", "new", "may"),
    [
        ("data.source", "folder:/a/x", "folder:/b/y", True),
        ("data.source", "folder:/a/x", "text:/a/x", False),
        ("data.source", "digits", "folder:digits", False),
        ("data.source", "/a/own.py:bars", "/b/own.py:bars", False),
        ("init_from", "", "/a/x", False),
        ("optimizer.prune", "snip(0.9, by='/a/s.json')", "snip(0.9, by='/b/s.json')", True),
        ("optimizer.prune", "snip(0.9, by='/a/s.json')", "snip(0.8, by='/b/s.json')", False),
        ("model.norm", "/a/own.py:Norm", "/b/own.py:Norm", False),
        ("model.norm", "/a/own.py:Norm", "{}/own.py:Norm", True),  # its place relative to the run is the same
        ("model.norm", "/a/own.py:Norm", "{}/own.py:Other", False),
    ],
)
def test_only_paths_may_differ(tmp_path, key, old, new, may):
    def config(value):
        section, _, name = key.rpartition(".")
        return {section: {name: value}} if section else {name: value}

    run = tmp_path / "run"
    run.mkdir()
    (run / paths.NAME).write_text(json.dumps({"model.norm": "../own.py:Norm"}))
    assert (key in paths.moved(config(old), config(new.format(tmp_path)), run)) == may


def test_data_sets_of_tfds_are_looked_for_in_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    located = paths.located({"data": {"source": "tfds:mnist", "dir": str(tmp_path / "gone")}}, tmp_path)
    assert tfds.data_dir(located["data"]["dir"]) == str(tmp_path / "here")


@pytest.mark.parametrize("text", ["{", "[]", '{"data.source": 1}'])
def test_damaged_paths_are_one_line(study, tmp_path, text):
    run = shutil.copytree(study / "tuned", tmp_path / "tuned")
    (run / paths.NAME).write_text(text)
    for use in (lambda: restore.load_network(run), lambda: loop.train(tuned(study), run)):
        with pytest.raises(UserError, match=rf"^{run}/paths\.json is damaged: .*; delete it if the files"):
            use()


def test_each_path_in_a_value_is_found(tmp_path):
    prune = "magnitude(0.5, by='{}/sensitivity.json', what='a|b')"
    section = {
        "init_from": "", "hooks": f"figures|{tmp_path}/my hooks.py:Log(2)", "decay": ".*/kernel",
        "optimizer": {"prune": prune.format(tmp_path / "whole"), "groups": [[".*", 1.0]]},
        "data": {"source": f"{tmp_path}/own.py:make(n=2)", "dir": "", "augment": f"crop(4)|{tmp_path}/own.py:blur(1)"},
    }  # fmt: skip
    assert paths.relative(section, tmp_path / "run") == {
        "hooks": "figures|../my hooks.py:Log(2)",
        "optimizer.prune": prune.format("../whole"),
        "data.source": "../own.py:make(n=2)",
        "data.augment": "crop(4)|../own.py:blur(1)",
    }


@pytest.mark.parametrize(
    "source, value",
    [
        ("tar:/d/imagenet", "tar:../../d/imagenet"),
        ("csv:/d/a (1).csv", "csv:../../d/a (1).csv"),
        ("csv:/d/a.csv(path=x, label='y z')", "csv:../../d/a.csv(path=x, label='y z')"),
        ("webdataset:/d/a-{0..3}.tar::/d/v.tar", "webdataset:../../d/a-{0..3}.tar::../../d/v.tar"),
        ("folder:/d/x::y", "folder:../../d/x::y"),
        ("tfds:cifar10", None),
    ],
)
def test_the_paths_in_every_source_are_found(source, value):
    assert paths.relative({"data": {"source": source}}, Path("/runs/a")).get("data.source") == value


def test_shards_are_found_where_they_were_moved_with_the_run(tmp_path):
    config = {"data": {"source": "webdataset:/gone/sets/a-{0..3}.tar::/gone/sets/val/*.tar"}}
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / paths.NAME).write_text(json.dumps(paths.relative(config, Path("/gone/runs/a"))))
    assert paths.located(config, run) == config
    (tmp_path / "sets" / "val").mkdir(parents=True)
    expected = f"webdataset:{tmp_path}/sets/a-{{0..3}}.tar::{tmp_path}/sets/val/*.tar"
    assert paths.located(config, run)["data"]["source"] == expected

"""A run is reopened as it was trained, even if its data set has changed or is gone."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import transfer
from experiments.explain import subjects
from models.errors import UserError
from tests import hostile_pictures, tiny
from train import loop, predict, restore
from train.data.feed import Changed
from train.data.load import load
from train.export import loaded, verify, write
from train.export import network as networks

CLASSES = ("bird", "cat", "dog")


def draw(folder, name, value, count=10, size=8):
    """Writes gray images of one brightness, which a network learns to tell apart in a few steps."""
    (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(value)
    for i in range(count):
        pixels = np.clip(value + rng.integers(-20, 20, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i}.png")


def photos(root):
    for split in ("train", "test"):
        for name, value in zip(CLASSES, (30, 128, 220), strict=True):
            draw(root / split, name, value)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the folder of a run on images of three classes, and the folder of the images."""
    root = tmp_path_factory.mktemp("reopened")
    data = photos(root / "photos")
    loop.train(
        tiny.config(
            data__source=f"folder:{data}",
            data__image_size=8,
            data__crop="resize",
            batch_size=8,
            steps_per_call=1,
            eval_batch_size=10,
            duration="20 steps",
        ),
        root / "run",
    )
    shutil.copy(data / "test" / "cat" / "0.png", root / "cat.png")
    return root / "run", data


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """Yields a copy of the run, the folder of images, restored afterwards, and a picture of a cat."""
    run, data = trained
    keep = tmp_path / "kept"
    shutil.copytree(data, keep)
    yield shutil.copytree(run, tmp_path / "run"), data, run.parent / "cat.png"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(keep, data)


def top_class(folder, image):
    (row,) = predict.predict(loaded.load(folder), [str(image)], 1)
    return row["classes"][0][0]


def rename(data):
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "zebra")


def delete(data):
    shutil.rmtree(data)


def add(data):
    draw(data / "train", "ant", 60)
    draw(data / "test", "ant", 60)


def swap(data):
    for split in ("train", "test"):
        (data / split / "cat").rename(data / split / "x")
        (data / split / "dog").rename(data / split / "cat")
        (data / split / "x").rename(data / split / "dog")


def repaint(data):
    Image.new("RGB", (8, 8), "red").save(data / "test" / "cat" / "0.png")


def lose(data):
    (data / "test" / "cat" / "3.png").unlink()


def enlarge(data):
    Image.new("RGB", (80, 80)).save(data / "test" / "dog" / "1.png")


@pytest.mark.parametrize("change", [rename, delete, add, swap, repaint])
def test_predictions_use_the_class_names_of_the_training(copy, change):
    run, data, cat = copy
    assert top_class(run, cat) == "cat"
    change(data)
    assert top_class(run, cat) == "cat"
    card = loaded.of_run(run).card
    assert card["labels"] == list(CLASSES) and card["preprocessing"]["shape"] == [8, 8, 3]


@pytest.mark.parametrize("change", [rename, add, swap, repaint, lose, enlarge])
def test_a_test_set_that_changed_is_reported_where_it_is_used(copy, change, tmp_path):
    run, data, _ = copy
    change(data)
    reopened, state = restore.load(run)
    for use in (
        lambda: reopened.evaluate(reopened.parallel.place(state)),
        lambda: write.export(reopened, networks.network(reopened, state), "safetensors", tmp_path / "out", {}),
        lambda: reopened.feed.split("test"),
    ):
        with pytest.raises(Changed, match="split 'test' is not what the run was trained on"):
            use()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [rename, add, repaint])
def test_a_run_does_not_resume_with_other_data(copy, change):
    run, data, _ = copy
    config = json.loads((run / "config.json").read_text())
    change(data)
    with pytest.raises(UserError, match="have changed"):
        loop.train(config, run)


def test_weights_are_exported_without_a_data_set(copy, tmp_path):
    run, data, cat = copy
    shutil.rmtree(data)
    reopened, state = restore.load(run)
    card = write.export(reopened, networks.network(reopened, state), "safetensors", tmp_path / "out", {})
    assert card["verified"]["of"] == "random pixels" and card["verified"]["metrics"] == {}
    assert card["verified"]["images"] == verify.RANDOM and top_class(tmp_path / "out", cat) == "cat"


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=tiny.ROOT,
        text=True,
        timeout=300,
        capture_output=True,
        check=False,
    )


def test_commands_without_a_data_set(copy, tmp_path):
    run, data, cat = copy
    shutil.rmtree(data)
    done = command("train.predict", run, cat, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["classes"][0]["label"] == "cat", done.stderr
    done = command(
        "experiments.explain",
        f"--workdir={run}",
        f"--image={cat}",
        f"--out={tmp_path / 'pictures'}",
        "--method=grad_cam|receptive_field",
    )
    assert done.returncode == 0 and (tmp_path / "pictures" / "receptive_field.png").exists(), done.stderr
    done = command("train.export", f"--workdir={run}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0 and "the test set of the run is not there" in done.stdout, done.stderr
    done = command("experiments.explain", f"--workdir={run}", "--indices=0")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_folder_and_a_bad_file_are_predicted(copy, tmp_path):
    run, data, cat = copy
    (tmp_path / "mine" / ".hidden").mkdir(parents=True)
    for place in ("a.png", "b.PNG", ".hidden/c.png", "._a.png"):
        shutil.copy(cat, tmp_path / "mine" / place)
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = command("train.predict", run, tmp_path / "mine", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == [f"{tmp_path}/mine/a.png", f"{tmp_path}/mine/b.PNG"]
    assert done.returncode == 0 and all(row["classes"][0]["label"] == "cat" for row in rows)
    (tmp_path / "mine" / "a.png").write_bytes(b"\x89PNG no")
    done = command("train.predict", run, tmp_path / "mine" / "a.png", cat, tmp_path / "none.png", "--json")
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert "error" in first and second["classes"][0]["label"] == "cat" and "no such file" in third["error"]
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "2 of 3 files" in done.stderr
    done = command("train.predict", run, tmp_path / "mine" / ".hidden" / "..", "--json")
    assert done.returncode == 2 and "a.png" in done.stderr
    (tmp_path / "empty").mkdir()
    done = command("train.predict", run, tmp_path / "empty")
    assert done.returncode == 2 and "there are no images in this folder" in done.stderr


def test_every_way_to_a_prediction_sees_the_same_pixels(trained, tmp_path):
    """Compares training set, predict, explain, probe and exported networks for one picture in every encoding."""
    run, _ = trained
    reopened, state = restore.load(run)
    write.export(reopened, networks.network(reopened, state), "safetensors", tmp_path / "out", {}, images=4)
    opened = [loaded.load(run), loaded.load(tmp_path / "out")]
    encodings = {**hostile_pictures.ENCODINGS, **hostile_pictures.TRANSPARENT}
    for name, (file, *_) in encodings.items():
        for split in ("train", "test"):
            (tmp_path / "set" / split / "cat").mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / split / "cat" / name).write_bytes(file)
    config = tiny.config(data__source=f"folder:{tmp_path / 'set'}", data__image_size=8, data__crop="resize").data
    for split in ("train", "test"):  # train.probe computes features of these sources
        source = load(config, split)
        assert len(source) == len(encodings)
        for index, path in enumerate(source.files):
            pixels = source.example(index)["image"]
            path = tmp_path / "set" / path
            (subject,) = subjects.from_files(reopened, [str(path)])
            for other in (subject.pixels, *(network.pixels(path) for network in opened)):
                np.testing.assert_array_equal(other, pixels, err_msg=str(path))


def test_the_record_says_what_a_new_run_needs_to_know(trained):
    run, _ = trained
    description = transfer.described(str(run))
    assert (description["size"], description["channels"]) == (8, 3)


def test_runs_that_recorded_less_read_the_data_set_and_say_so(trained, capsys):
    run, _ = trained
    assert restore.recorded(run, {"data": {"training images": 30}}) is None
    assert "from an earlier version" in capsys.readouterr().err

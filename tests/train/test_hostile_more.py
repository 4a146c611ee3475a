"""More unusual files and habits: odd paths, texts on the terminal, folders to predict, full disks."""

import ast
import io
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.table
from matplotlib.figure import Figure
from PIL import Image

import models
from models import command, weights
from models.analysis import drawing
from models.errors import UserError
from models.weights import __main__ as weights_command
from tests import tiny
from train import loop, predict, restore
from train.data import source, splits
from train.data.sources import arrays, folder
from train.export import cards
from train.recording import summary
from train.storage import checkpoint, checkpoint_format, workdir
from train.storage.files import expanded, is_full, write_json


def images(root, *names):
    """Writes an image for each name, relative to `root`."""
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name)


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "runs[1]",
        "[a-b]/x",
        "what?",
        "a*b",
        "12:30:",
        "gs:/bucket",
        "100% {x} #$'\"",
        "日本 é",
        "two\nlines",
        "\udcff",
        "plain",
    ],
)
def test_checkpoints_in_a_folder_of_any_name_are_read_again(name, tmp_path):
    leaves = {"params/a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.int32(7)}
    (tmp_path / name).mkdir(parents=True)
    checkpoint_format.write(tmp_path / name / "7", leaves, {"step": 7, "scores": {}})
    restored, metadata = checkpoint_format.read(tmp_path / name / "7")
    assert metadata["step"] == 7 and restored.keys() == leaves.keys()
    assert all(np.array_equal(restored[key], leaves[key]) for key in leaves)


def test_a_run_in_a_folder_with_brackets_resumes(tmp_path):
    config = tiny.config(duration="4 steps", checkpoint_every="2 steps", evaluate_every="4 steps")
    where = tmp_path / "old [copy 1]" / "run:"
    whole = loop.train(config, where)
    checkpoint.remove(where / "checkpoints" / "4")
    (where / "summary.json").unlink()
    again = loop.train(config, where)
    assert again["loss"] == whole["loss"]


@pytest.mark.parametrize("inside", [["a.png", "b.PNG"], ["cat/a.png", "dog/b.png"], ["x/y/z/a.png"], ["[1]/a.png"]])
def test_a_folder_to_predict_stands_for_the_images_in_it(inside, tmp_path, monkeypatch):
    images(tmp_path / "in", *inside)
    expected = [tmp_path / "in" / name for name in inside]
    assert list(map(Path, predict.named([str(tmp_path / "in")]))) == expected
    assert all(path.is_file() for path in folder.images_in(tmp_path / "in"))
    monkeypatch.chdir(tmp_path)
    assert all(Path(name).is_file() and not Path(name).is_absolute() for name in predict.named(["in"]))


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[red]x[/red]", "[bold", "[1]", ":cat:", "[link=a]b", "x[dim]"])
def test_the_terminal_shows_any_text_as_it_is(text):
    written = io.StringIO()
    console = command.console(file=written, width=100)
    table = rich.table.Table()
    table.add_column(f"head {text}")
    table.add_row(f"cell {text}")
    console.print(text)
    console.print(table)
    assert all(f"{before}{text}" in written.getvalue() for before in ("", "head ", "cell "))


def test_missing_glyphs_cause_no_warnings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with drawing.figure(tmp_path / "x.png", (3, 2)) as figure:
            figure.subplots().set_title("\u65e5\U00020000")
    assert (tmp_path / "x.png").stat().st_size > 1000


# -- full disks ------------------------------------------------------------------------------------------------------


def test_a_picture_for_which_there_is_no_space_is_named(monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")  # PIL raises it when it closes the file

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        drawing.save(Figure(), "a/b.png")
    assert caught.value.filename == "a/b.png" and is_full(caught.value)


def test_a_checkpoint_that_needs_more_than_the_free_space_is_refused(tmp_path, monkeypatch):
    class Disk:
        free = 400_000

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: Disk)
    saved = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"it needs 1.0 MiB and 0.4 MiB are free"):
        saved.save(1, {"a": np.zeros(10, np.float32)}, {}, {})
    saved.close()


# -- data ------------------------------------------------------------------------------------------------------------


def options(where):
    return source.Options(source=f"folder:{where}", image_size=8, crop="resize")


def test_a_single_class_is_refused(tmp_path):
    # One folder level too many
    images(tmp_path, *(f"archive/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(5)))
    train, test = (folder.FolderSource(str(tmp_path), split, options(tmp_path)) for split in ("train", "test"))
    with pytest.raises(UserError, match="there is only one class, 'archive'; two or more are needed"):
        splits.compare(train, test, f"folder:{tmp_path}")


@pytest.mark.parametrize("where", ["run", "cat/run", "train/run", "train/cat/run"])
def test_a_run_among_the_images_is_left_out(where, tmp_path):
    splits_of = ("train/", "test/") if where.startswith("train") else ("",)
    images(tmp_path, *(f"{split}{kind}/{i}.png" for split in splits_of for kind in ("cat", "dog") for i in range(5)))
    before = folder.FolderSource(str(tmp_path), "train", options(tmp_path))
    images(tmp_path, f"{where}/curves.png", f"{where}/explain/attributions.png")
    (tmp_path / where / "checkpoints").mkdir()
    (tmp_path / where / "config.json").write_text("{}")
    after = folder.FolderSource(str(tmp_path), "train", options(tmp_path))
    assert after.classes == before.classes == ("cat", "dog") and after.identity() == before.identity()
    assert "1 folder of a run left out" in after.report and "left out" not in before.report


def test_a_single_class_of_multi_label_data_is_accepted():
    pixels, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([[1], [0], [1], [0]])
    one = arrays.ArraySource(pixels, labels)
    assert splits.compare(one, one, "arrays") == []


@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_one_image_per_class_cannot_be_held_out(split, tmp_path):
    images(tmp_path, "cat/a.png", "dog/b.png", "owl/c.png")
    with pytest.raises(UserError, match=f"{tmp_path} has only one image of each class, so that none can be held out"):
        folder.FolderSource(str(tmp_path), split, options(tmp_path))


def test_arrays_of_other_names_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(UserError, match="its arrays are x, y; it must have train_image, .* and train_label"):
        arrays.from_npz(str(tmp_path / "a.npz"), "train", source.Options(source=f"arrays:{tmp_path / 'a.npz'}"))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 8, 8)])
def test_channels_first_arrays_are_refused(shape):
    with pytest.raises(UserError, match=r"look like \[N, C, H, W\]; bring them to \[N, H, W, C\] by"):
        arrays.ArraySource(np.zeros((4, *shape), np.uint8), np.arange(4) % 2)
    images = np.moveaxis(np.zeros((4, *shape), np.uint8), 1, 3)
    assert arrays.ArraySource(images, np.arange(4) % 2).image_shape == images.shape[1:]


def test_a_run_of_an_earlier_version_says_that_it_cannot_go_on(tmp_path):
    config = tiny.config(duration="2 steps")
    loop.train(config, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["ema_warmup"], stored["data"]["exif"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(
        UserError,
        match=r"of an earlier version, which had no (data\.exif and no ema_warmup|ema_warmup "
        r"and no data\.exif): it cannot resume; .*--config\.init_from=",
    ):
        loop.train(config, tmp_path)


def test_a_new_key_of_the_network_is_another_config(tmp_path):
    config = tiny.config(duration="2 steps")
    loop.train(config, tmp_path)
    config.model.zero_gamma = True
    with pytest.raises(UserError, match=r"a different config \(model\.zero_gamma: \(absent\) -> True\)"):
        loop.train(config, tmp_path)


def test_the_summary_shows_any_folder(tmp_path):
    result = loop.train(tiny.config(duration="2 steps"), tmp_path / "[red]")
    written = io.StringIO()
    command.console(file=written, width=200).print(summary.table(result, tmp_path / "[red]"))
    assert f"{tmp_path}/[red]" in written.getvalue() and workdir.read_config(tmp_path / "[red]")
    assert "test top-5" in written.getvalue()
    earlier = {**result, "accuracy_by_class": [1.0, 1.0, 1.0], "top5": 1.0}  # a summary of three classes with top5
    written = io.StringIO()
    command.console(file=written, width=200).print(summary.table(earlier, tmp_path))
    assert "test accuracy" in written.getvalue() and "top-5" not in written.getvalue()


# -- weights ---------------------------------------------------------------------------------------------------------


def lenet():
    """Returns a small network and its weights in our own layout."""
    model = models.create("lenet_300_100", num_classes=3)
    return model, weights.to_arrays(model, models.initialize(model, jax.random.key(0), model.example()), "ablate")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_that_are_not_finite_are_refused(value, dtype):
    model, arrays = lenet()
    name = sorted(arrays)[0]
    with np.errstate(over="ignore"):
        damaged = arrays[name].astype(dtype)
        damaged.flat[0] = dtype(value)
    with pytest.raises(UserError, match=f"'{name}' holds numbers that are not finite"):
        weights.from_arrays(model, {**arrays, name: damaged}, "ablate")


@pytest.mark.parametrize("action", ["import", "export"])
@pytest.mark.parametrize("link", [False, True])
def test_the_file_that_is_read_is_not_overwritten(action, link, tmp_path, capsys):
    model, arrays = lenet()
    file, out = tmp_path / "a.safetensors", tmp_path / ("b.safetensors" if link else "a.safetensors")
    weights.write(file, arrays)
    if link:
        out.symlink_to(file)
    before = file.read_bytes()
    direction = "--from=safetensors" if action == "import" else "--to=safetensors"
    assert (
        weights_command.main(
            ["", action, direction, str(file), "--model=lenet_300_100", "--set=num_classes=3", f"--out={out}"]
        )
        == 2
    )
    assert "is the file to read" in capsys.readouterr().err and file.read_bytes() == before


# -- folders that are not a run's ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", '{"name": "my-app"}'), ("config.json", "// settings"), ("config.json", "[]"),
        ("config.json", ""), ("data.json", "{}"), ("summary.json", "{}"), ("metrics.jsonl", '{"loss": 1}\n'),
        ("paths.json", "{}"),
    ],
)  # fmt: skip
def test_files_that_are_not_of_runs_are_not_overwritten(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{tmp_path} holds a {name} that does not belong to a run"):
        loop.train(tiny.config(duration="2 steps"), tmp_path)
    assert (tmp_path / name).read_text() == content and not (tmp_path / "checkpoints").exists()


def test_a_run_that_saved_nothing_gives_its_folder_to_another_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(workdir.plain(tiny.config(seed=1))))
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    assert loop.train(tiny.config(duration="2 steps"), tmp_path)["steps"] == 2
    assert workdir.read_config(tmp_path)["seed"] == 0


@pytest.mark.parametrize("name", ["~nobody-of-this-name/x", "~$draft.png"])
def test_a_tilde_without_a_user_is_part_of_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(expanded(name)) == name
    for read in (
        lambda: restore.load(name),
        lambda: arrays.from_npz(name, "train", options(name)),
        lambda: folder.FolderSource(name, "train", options(name)),
    ):
        with pytest.raises(UserError, match=re.escape(name)):
            read()


def test_an_export_without_checksums_is_of_an_earlier_version(tmp_path):
    (tmp_path / cards.NAME).write_text('{"format": "onnx", "file": "model.onnx"}')
    with pytest.raises(UserError, match="has no checksums: it is of an earlier version; export the network again"):
        cards.read(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "notes", "data.yaml", "runs[1].txt"])
def test_a_config_that_is_not_a_python_file_is_refused_in_one_line(name, tmp_path):
    (tmp_path / name).write_text('{"seed": true}\n')
    script = "from train import cli\ncli.define_config()\ncli.run(lambda: 0, 'x')"
    done = subprocess.run(
        [sys.executable, "-c", script, f"--config={tmp_path / name}:x"], cwd=tiny.ROOT, text=True, capture_output=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith("a config is a Python file, e.g. configs/digits.py\n") and done.stderr.count("\n") == 1


def test_a_fault_in_a_config_file_is_one_line_with_its_place(tmp_path):
    faults = {
        "    return ]": "FILE, line 4: SyntaxError: unmatched ']'",
        "    import nothing_there": "FILE, line 4: ModuleNotFoundError: No module named 'nothing_there'",
        "    c.model.nme.x = 1": "FILE, line 4: AttributeError: ",
        "    return c + 1": "FILE, line 4: TypeError: ",
        "    raise ValueError('no such recipe')": "no such recipe",
    }
    for number, line in enumerate(faults):
        text = f"from configs.base import base\ndef get_config(text=''):\n    c = base()\n{line}\n"
        (tmp_path / f"{number}.py").write_text(text)
    script = (
        "import sys\nfrom train import cli\ncli.define_config()\nfor path in sys.argv[1:]:\n    try:\n"
        "        cli._parse(['x', f'--config={path}'])\n    except cli.UserError as error:\n"
        "        print(repr(str(error).replace(path, 'FILE')))"
    )
    files = [str(tmp_path / f"{number}.py") for number in range(len(faults))]
    done = subprocess.run([sys.executable, "-c", script, *files], cwd=tiny.ROOT, text=True, capture_output=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(faults), done.stderr
    assert all(text in line for text, line in zip(faults.values(), map(ast.literal_eval, lines), strict=True)), lines


@pytest.mark.parametrize("kind", ["folder", "full"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(kind, tmp_path, monkeypatch):
    if kind == "folder":
        (tmp_path / "a.json").mkdir()
    else:

        def full(self, content):
            self.touch()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / "a.json", {})
    assert caught.value.filename == str(tmp_path / "a.json") and caught.value.errno in (21, 28)
    assert not (tmp_path / ".a.json.tmp").exists()

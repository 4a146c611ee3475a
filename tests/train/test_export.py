"""Exported networks: the file is small and reproduces the run to the bit; a bad file gives a one-line error."""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import models
from configs import transfer
from models import weights
from models.compress import file
from models.errors import UserError
from tests import tiny
from tests.golden import drawn
from tests.networks import SMALL
from tests.tiers import keep_first
from train import loop, predict, restore
from train.export import cards, formats, loaded, push, verify, write
from train.export import network as export
from train.run import build_run
from train.storage import workdir


def train(folder, **changes):
    loop.train(tiny.config(**changes), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns three runs: whole, pruned, then with shared weights."""
    root = tmp_path_factory.mktemp("runs")
    train(root / "whole")
    train(root / "pruned", init_from=str(root / "whole"), init_new="", optimizer__prune="magnitude(0.9)")
    train(
        root / "shared",
        init_from=str(root / "pruned"),
        init_new="",
        optimizer__share="linear(conv=4, dense=4)",
        optimizer__learning_rate=1e-3,
    )
    return root


def exported(folder, out):
    """Returns the run, its network, and the content of its compressed file.

    The file equals the network to the bit, or is refused.
    """
    run, state = restore.load(folder)
    network = export.network(run, state)
    path = out / write.export(run, network, "compressed", out, {})["file"]
    model, variables = file.load(file.read(path), path)
    assert model == network.create()
    return run, state, network, path, network._replace(variables=variables)


def rows_of(path, loaded):
    return {row["name"]: row for row in file.table(file.read(path), loaded.variables)}


@pytest.mark.parametrize(("name", "least"), [("whole", 0.97), ("pruned", 4.5), ("shared", 7.5)])
def test_the_file_gives_back_the_run_to_the_bit(runs, tmp_path, name, least):
    run, state, network, path, loaded = exported(runs / name, tmp_path / "x")
    rows = rows_of(path, loaded).values()
    assert sum(row["bytes"] for row in rows) == path.stat().st_size < sum(row["float32"] for row in rows) / least
    assert sum(row["weights"] for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(network.variables))
    before = run.evaluate(run.parallel.place(state))
    after = export.evaluate(run, state, loaded)
    assert after["accuracy"] == before["accuracy"] and after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    tiny.assert_same(loaded.variables, jax.tree.map(np.asarray, network.variables))


def test_rows_of_the_table_are_what_the_file_holds(runs, tmp_path):
    *_, path, loaded = exported(runs / "shared", tmp_path / "x")
    rows = rows_of(path, loaded)
    kernel = rows["stage3/block0/conv2/kernel"]
    assert kernel["weights"] == 3 * 3 * 16 * 16 and kernel["values"] <= 16 and kernel["index_bits"] <= 4
    assert kernel["kept"] < 0.4 * kernel["weights"] and kernel["index_coded"] < 5
    assert set(kernel["parts"]) == {"codebook", "tables", "jumps", "indices"}
    assert rows["header, checksum"]["bytes"] < 1500


def test_a_file_initializes_a_run_like_any_other(runs, tmp_path):
    *_, path, _ = exported(runs / "shared", tmp_path / "x")
    ours = build_run(tiny.config(init_from=str(path), init_new="")).state
    theirs = build_run(tiny.config(init_from=str(runs / "shared"), init_new="")).state
    tiny.assert_same(ours.variables(), theirs.variables())
    with pytest.raises(UserError, match="has 10 classes, but the data have 5"):
        build_run(
            tiny.config(
                init_from=str(path),
                init_new="",
                data__select="classes('0-4')",
                data__select_test="classes('0-4')",
                eval_batch_size=36,
            )
        )


@pytest.mark.full
def test_a_network_without_filters_is_exported_as_a_smaller_one(runs, tmp_path):
    what = "magnitude(0.5, structure=filters, what='.*/conv1/kernel')"
    train(tmp_path / "run", init_from=str(runs / "whole"), init_new="", optimizer__prune=what)
    run, state, network, path, loaded = exported(tmp_path / "run", tmp_path / "x")
    small, whole = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (loaded.variables, state.variables())
    )
    assert small < 0.75 * whole
    assert all(name.endswith("/conv1") for name, _ in network.fields["widths"])
    before, after = run.evaluate(run.parallel.place(state)), export.evaluate(run, state, loaded)
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-4) and after["accuracy"] == before["accuracy"]
    again = build_run(
        tiny.config(init_from=str(path), init_new="", model__widths=network.fields["widths"])
    )  # training goes on with the smaller network
    tiny.assert_same(again.state.variables(), network.variables)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["ternary", "binary_weight", "xnor"])
def test_low_bit_networks_are_stored_in_few_bits(kind, tmp_path):
    more = (
        {} if kind != "xnor" else {"model__act": "identity", "model__name": "preresnet20", "model__stage_sizes": (1, 2)}
    )
    train(tmp_path / "run", model__conv=kind, model__width=8, duration="4 steps", **more)
    run, state, network, path, loaded = exported(tmp_path / "run", tmp_path / "x")
    rows = rows_of(path, loaded)
    kernel = rows["stage2/block1/conv1/kernel"] if kind == "xnor" else rows["stage3/block0/conv2/kernel"]
    assert kernel["index_coded"] <= 2 and 8 * kernel["bytes"] < 2.4 * kernel["weights"]
    before, after = run.evaluate(run.parallel.place(state)), export.evaluate(run, state, loaded)
    assert after["accuracy"] == before["accuracy"] and after["loss"] == pytest.approx(before["loss"], rel=1e-6)


def test_a_run_that_saved_nothing_is_reported(tmp_path):
    loop.train(tiny.config(duration="4 steps"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="this run has no checkpoint yet"):
        restore.load(tmp_path / "run")


def test_runs_of_earlier_versions_are_opened(runs, tmp_path):
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    del config["lookahead"], config["ema_warmup"], config["optimizer"]["multiplied"]
    config["devices"] = 8  # more than this machine has
    (folder / "config.json").write_text(json.dumps(config))
    run, state = restore.load(folder)
    tiny.assert_same(state, restore.load(runs / "whole")[1])
    scores = {
        line["step"]: line["accuracy"]
        for line in workdir.read_metrics(folder / "metrics.jsonl")
        if line["split"] == "test"
    }
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    _, best = restore.load(folder, "best")
    assert scores[int(best.step)] == max(scores.get(step, 0.0) for step in steps)
    with pytest.raises(UserError, match="unknown --checkpoint 'bets'; did you mean 'best'"):
        restore.load(folder, "bets")


def test_codebooks_without_training(runs):
    run, state = restore.load(runs / "pruned")
    network = export.shared(export.network(run, state), "density(conv=2, dense=3)")
    for name, leaf in weights.flatten({"params": network.variables["params"]}).items():
        if name.endswith("kernel"):
            assert len(np.unique(leaf[leaf != 0])) <= (8 if leaf.ndim == 2 else 4)


# -- the folder ----------------------------------------------------------------------------------------------------


def command(*arguments, module="train.export"):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tiny.ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns files of two test images, in a user's formats."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("files")
    source = build_run(tiny.config()).feed.test
    for index in (0, 7):
        Image.fromarray(source.example(index)["image"][..., 0]).save(folder / f"{index}.png")
    return [str(folder / "0.png"), str(folder / "7.png")]


# torch needs another Python, and semi_structured a pruned network
ANY = [name for name in formats.FORMATS if name not in ("torch", "semi_structured")]


@pytest.fixture(scope="module")
def out(runs, tmp_path_factory):
    """Returns the run "whole" in the formats ANY, and the cards."""
    folder = tmp_path_factory.mktemp("exported")
    pytest.importorskip("jax2onnx")
    run, state = restore.load(runs / "whole")
    network, metrics = export.network(run, state), run.evaluate(run.parallel.place(state))
    for format in ANY:
        write.export(run, network, format, folder / format, metrics, folds=formats.FORMATS[format].folds, images=50)
    return folder


@pytest.mark.parametrize("format", ANY)
def test_every_format_says_what_the_run_says(runs, out, files, format):
    card = json.loads((out / format / "card.json").read_text())
    assert card["verified"]["images"] == 50 and card["metrics"]["accuracy"] == pytest.approx(
        json.loads((runs / "whole" / "summary.json").read_text())["accuracy"]
    )
    metrics = card["verified"]["metrics"]
    assert metrics["network"]["accuracy"] == metrics["file"]["accuracy"] > 0.1
    assert card["ingredients"] == {
        "norm": "batch",
        "act": "relu",
        "init": "msra",
        "conv": "standard",
        "dense": "standard",
    }
    network, of_run = loaded.load(out / format), loaded.load(runs / "whole")
    pixels = np.stack([network.pixels(file) for file in files])
    probabilities, logits = network.run(pixels)
    np.testing.assert_allclose(logits, of_run.run(pixels)[1], rtol=0, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    rows = predict.predict(network, files, 3)
    assert [label for label, _ in rows[1]["classes"]] == [str(i) for i in np.argsort(-logits[1], kind="stable")[:3]]


@pytest.mark.parametrize("format", keep_first(1, ["onnx", "stablehlo"]))
def test_programs_hold_what_was_folded(out, runs, format, tmp_path):
    def operations(folder):
        if format == "onnx":
            import onnx

            graph = onnx.load(folder / "model.onnx").graph
            return graph.input[0].type.tensor_type.elem_type, collections.Counter(node.op_type for node in graph.node)
        program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}
        text = program.mlir_module()
        return program.in_avals[0].dtype, collections.Counter(re.findall(r"stablehlo\.(\w+)", text))

    run, state = restore.load(runs / "whole")
    network = export.network(run, state)
    card = write.export(run, network, format, tmp_path / "plain", {}, images=20)
    assert card["folded"] == []
    (dtype, bare), (pixel_dtype, folded) = operations(tmp_path / "plain"), operations(out / format)
    assert dtype != pixel_dtype
    root = {"onnx": "Sqrt", "stablehlo": "rsqrt"}[format]
    assert folded["Conv"] == bare["Conv"] and folded[root] == 0 and folded["convolution"] == bare["convolution"]
    assert sum(folded.values()) < sum(bare.values())  # even though the export adds preprocessing and softmax


@pytest.mark.full
@pytest.mark.full  # tests/models/test_any_network.py writes every family
@pytest.mark.parametrize(
    ("format", "kind"),
    [
        *(("onnx", kind) for kind in ("bottleneck", "gated", "swin")),  # padded pooling; skipping; windows
        *(("stablehlo", kind) for kind in ("bottleneck", "dense_imagenet", "gated", "multi_scale", "bit", "swin")),
    ],
)
def test_programs_of_other_kinds_of_networks(kind, format, tmp_path):
    pytest.importorskip("jax2onnx")
    name, fields = SMALL[kind]
    if "image_size" in models.fields(name):
        fields = {**fields, "image_size": 32}
    network = export.PortableNetwork(name, fields, (1, 32, 32, 3), drawn.variables(models.create(name, **fields)))
    card = {
        "file": formats.FORMATS[format].file, "folded": list(formats.FORMATS[format].folds), "labels": [],
        "architecture": name, "fields": fields, "inputs": [1, 32, 32, 3], "license": None, "probabilities": "softmax",
        "preprocessing": {"mean": [0.5], "std": [0.25]},
    }  # fmt: skip
    formats.FORMATS[format].write(network, card, tmp_path / card["file"])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    outputs = formats.FORMATS[format].open(tmp_path, card)(pixels)
    expected = formats.of_variables(network.create(), network.variables, card)(pixels)
    np.testing.assert_allclose(outputs[1], expected[1], rtol=0, atol=1e-5 * np.abs(expected[1]).max())
    np.testing.assert_allclose(outputs[0], expected[0], rtol=0, atol=1e-5)


def test_an_exported_network_initializes_a_run(out, runs):
    starts = {
        where: build_run(tiny.config(init_from=str(where), init_new="")).state.variables()
        for where in (runs / "whole", out / "safetensors", out / "compressed")
    }
    first, *others = starts.values()
    for other in others:
        tiny.assert_same(other, first)
    with pytest.raises(UserError, match="holds a program .onnx., which does not name its weights"):
        build_run(tiny.config(init_from=str(out / "onnx")))
    config = transfer.get_config(f"from={out / 'safetensors'},to=digits")
    assert config.model.name == "resnet8" and config.model.width == 4 and config.init_from == str(out / "safetensors")


@pytest.mark.full
def test_names_and_shapes_for_pytorch(tmp_path, monkeypatch):
    """Replaces PyTorch by a double that checks torchvision's names, shapes and number of parameters.

    tests/golden/check_weights.py loads the files there. Where ABLATE_TORCH_PYTHON names a Python that has PyTorch, the
    real one is used.
    """
    train(tmp_path / "run", model__name="resnet18", model__width=64, data__channels=3, duration="1 step")
    run, state = restore.load(tmp_path / "run")
    network = export.network(run, state)
    seen = {}

    def outside(folder, card, pixels, python):
        seen.update(card["torch"], weights=weights.read(folder / card["file"]))
        return "a double", formats.of_variables(network.create(), network.variables, card)(pixels)[1]

    if python := os.environ.get("ABLATE_TORCH_PYTHON"):
        card = write.export(run, network, "torch", tmp_path / "real", {}, images=20, python=python)
        assert card["verified"]["by"].startswith("torch ")
    double = formats.FORMATS["torch"]._replace(outside=outside, check=lambda card, python: None)
    monkeypatch.setitem(formats.FORMATS, "torch", double)
    card = write.export(run, network, "torch", tmp_path / "out", {}, images=20)
    assert (seen["library"], seen["name"], seen["arguments"]) == ("torchvision", "resnet18", {"num_classes": 10})
    assert seen["weights"]["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    trained = [
        array
        for name, array in seen["weights"].items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert sum(array.size for array in trained) == 11_689_512 - 990 * 513  # torchvision's, with 10 classes
    assert "strict=True" in card["usage"] and card["verified"]["by"] == "a double"
    again = build_run(
        tiny.config(
            init_from=str(tmp_path / "out"), init_new="", model__name="resnet18", model__width=64, data__channels=3
        )
    )
    tiny.assert_same(again.state.variables(), network.variables)


def test_a_missing_library_is_noticed_before_anything_is_computed():
    resnet = export.PortableNetwork("resnet18", {}, (1, 32, 32, 3), {})
    with pytest.raises(UserError, match="/nowhere/python. does not run: No such file"):
        write.check_libraries("torch", resnet, "", "/nowhere/python")
    with pytest.raises(UserError, match="format torch needs .*no_such_library, which .* does not have; choose another"):
        formats.FORMATS["torch"].check({"torch": {"library": "no_such_library"}}, sys.executable)
    with pytest.raises(UserError, match="resnet8 has no layout of a PyTorch library"):
        write.check_libraries("torch", resnet._replace(name="resnet8"), "", sys.executable)


def test_other_files_in_the_folder_are_kept(runs, out, tmp_path):
    folder = shutil.copytree(out / "safetensors", tmp_path / "out")
    write.check("safetensors", folder, [])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has files that are not part of an exported network"):
        write.check("safetensors", folder, [])
    assert (folder / "notes.txt").read_text() == "mine"
    link, own = tmp_path / "link", tmp_path / "own"
    link.symlink_to(out / "safetensors")
    own.mkdir()
    write.check("safetensors", own, [])  # empty
    for name in ("config.json", "README.md", "model.safetensors"):
        (own / name).write_text("of another library")
    for path in (link, own, own / "README.md"):
        with pytest.raises(UserError, match="is a link" if path == link else "has files that are not part"):
            write.check("safetensors", path, [])
    (own / "card.json").mkdir()
    with pytest.raises(UserError, match="has files that are not part"):
        write.check("safetensors", own, [])


def test_an_earlier_export_is_replaced_by_a_whole_one_or_stays(runs, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    run, state, network, path, _ = exported(runs / "whole", folder)
    write.export(run, network, "safetensors", folder, {}, images=8)
    assert not path.exists() and loaded.load(folder).card["format"] == "safetensors"
    assert list(tmp_path.iterdir()) == [folder]
    verified = verify.verify

    def slow(*arguments):  # meanwhile, the user writes into the folder
        (folder / "notes.txt").write_text("mine")
        return verified(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(verify, "verify", slow)
        with pytest.raises(UserError, match="has files that are not part"):
            write.export(run, network, "compressed", folder, {}, images=8)
    assert (folder / "notes.txt").read_text() == "mine" and loaded.load(folder).card["format"] == "safetensors"
    (folder / "notes.txt").unlink()

    replace = Path.replace

    def interrupted(path, target):  # between the two renames
        if path.is_dir():
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write.export(run, network, "compressed", folder, {}, images=8)
    (old,) = tmp_path.glob(".out.old-*/old")
    assert loaded.load(old).card["format"] == "safetensors"


PREPROCESSING = {
    "crop": "none", "size": 8, "channels": 1, "eval_crop": 1, "shape": [8, 8, 1], "mean": [0], "std": [1],
    "exif": "apply",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": 3}, "card.json is damaged: fields: 3 is not of type 'object'"),
        ({"preprocessing": {"crop": "none"}}, "preprocessing: 'size' is a required property"),
        ({"format": "torch"}, "'torch' is a required property"),
        ({"file": "../card.json"}, "file: '../card.json' does not match"),
        ({"probabilities": "soft"}, "probabilities: 'soft' is not one of"),
        ({"inputs": [1]}, "inputs: .1. is too short"),
        ({"preprocessing": PREPROCESSING | {"shape": [8, 8]}}, "preprocessing.shape: .8, 8. is too short"),
        ({"preprocessing": PREPROCESSING | {"crop": "some"}}, "preprocessing.crop: 'some' is not one of"),
        ({"format": "semi_structured", "packed": {"a": [8]}}, "packed.a: .8. is too short"),
        ({"labels": ["x"] * 10}, "card.json is not what was exported: its checksum differs"),
    ],
)
def test_edited_cards_are_refused(out, tmp_path, change, message):
    folder = shutil.copytree(out / "safetensors", tmp_path / "out")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(UserError, match=message):
        loaded.load(folder)


def test_thresholds_of_a_network_without_exits_are_refused(out, tmp_path):
    folder = shutil.copytree(out / "safetensors", tmp_path / "out")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").unlink()
    cards.write(folder, {**card, "exits": {"thresholds": [0.5]}})
    with pytest.raises(UserError, match=r"card.json has thresholds of exits, which resnet8 does not have"):
        loaded.load(folder)


@pytest.mark.parametrize("format", ANY)
def test_one_flipped_bit_in_any_file_of_an_export_is_refused(out, tmp_path, format):
    folder = shutil.copytree(out / format, tmp_path / "out")
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for _ in range(30):
            bad = bytearray(data)
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
            if path.suffix == ".json" and json.loads(data) == _json(bytes(bad)):
                continue  # white space
            path.write_bytes(bad)
            with pytest.raises(UserError, match=str(folder)):
                loaded.load(folder)
        path.unlink()
        with pytest.raises(UserError, match="it has no config.json" if path.name == "card.json" else "there is no"):
            loaded.load(folder)
        path.write_bytes(data)
    assert loaded.load(folder).card["format"] == format


def _json(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_a_network_that_pytorch_lacks(runs, tmp_path):
    run, state = restore.load(runs / "whole")
    with pytest.raises(UserError, match="resnet8 has no layout of a PyTorch library"):
        write.export(run, export.network(run, state), "torch", tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, y: (p, y + 0.01 * np.abs(y).max()), "logits differ by"),
        (lambda p, y: (p, y * np.nan), "not finite"),
        (lambda p, y: (p[:, ::-1], y), "its probabilities differ from those of its logits"),
        (lambda p, y: (p, y + 0.01 * np.abs(y).max() * (len(y) == 1)), "logits differ .one image."),
    ],
)
def test_a_file_that_is_not_the_network_is_a_failed_export(runs, out, tmp_path, monkeypatch, change, message):
    how = formats.FORMATS["stablehlo"]

    def opened(folder, card):
        run = how.open(folder, card)
        return lambda pixels: change(*run(pixels))

    monkeypatch.setitem(formats.FORMATS, "stablehlo", how._replace(open=opened, outside=None))
    run, state = restore.load(runs / "whole")
    with pytest.raises(verify.Failed, match=message):
        write.export(run, export.network(run, state), "stablehlo", tmp_path / "out", {}, folds=how.folds, images=30)
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_several_classes_per_image_have_separate_probabilities(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    labels = np.random.default_rng(1).integers(0, 2, (40, 3)).astype(np.int8)
    np.savez(tmp_path / "a.npz", train_image=images, train_label=labels, test_image=images, test_label=labels)
    train(
        tmp_path / "run",
        data__source=f"arrays:{tmp_path / 'a.npz'}",
        task__name="multi_label",
        eval_batch_size=20,
        batch_size=8,
        duration="2 steps",
    )
    run, state = restore.load(tmp_path / "run")
    card = write.export(run, export.network(run, state), "stablehlo", tmp_path / "out", {}, folds=["normalization"])
    assert card["probabilities"] == "sigmoid" and set(card["verified"]["metrics"]["file"]) == {"loss", "hit"}
    probabilities, logits = loaded.load(tmp_path / "out").run(images)
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-4)


def test_the_commands(runs, out, files, tmp_path):
    net = tmp_path / "new" / "net"
    done = command(f"--workdir={runs / 'shared'}", "--format=compressed", f"--out={net}", "--images=100")
    assert done.returncode == 0, done.stderr
    for text in (
        "stage1/block0/conv1",
        "total",
        "logits of 100 test images equal to the bit",
        "of the file",
        "the card names no license",
    ):
        assert text in done.stdout
    done = command(str(net), *files, "--json", "--top=2", f"--out={tmp_path / 'said.png'}", module="train.predict")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in rows] == files and all(len(row["classes"]) == 2 for row in rows)
    assert (tmp_path / "said.png").stat().st_size > 5000
    assert not [path for path in net.parent.iterdir() if "partial" in path.name]


@pytest.mark.parametrize(
    ("flags", "message"),
    keep_first(
        2,
        [
            (("--workdir=/nowhere", "--out=x"), "error: /nowhere is not the folder of a run"),
            (("--workdir=/nowhere", "--out=x", "--format=zip"), "unknown --format 'zip'"),
            (("--out=x",), "--workdir is missing"),
            (("--workdir=/nowhere", "--out=tests"), "--out=tests has files that are not part of an exported network"),
            (("--workdir=/nowhere", "--out=README.md/x"), "README.md is not a folder"),
            (
                ("--workdir=/nowhere", "--out=x", "--fold=batch_norm"),
                "the format safetensors holds weights, in which nothing",
            ),
            (("--workdir=/nowhere", "--out=x", "--format=onnx", "--fold=norm"), "unknown --fold 'norm'"),
        ],
    ),
)
def test_mistakes(flags, message):
    done = command(*flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_hub_gets_no_network_that_leaves_at_exits():
    assert push.repository("hf:me/x", "safetensors") == "me/x"
    with pytest.raises(UserError, match="--to=hf:me/x: config.json has no thresholds; leave out --to or --exits=0.5"):
        push.repository("hf:me/x", "safetensors", 0.5)


def test_options_that_a_format_would_ignore_are_refused(tmp_path):
    write.check("torch", tmp_path / "new", [], {"layout": "timm"})
    for flag, value in (("layout", "timm"), ("torch_python", "venv/bin/python")):
        with pytest.raises(UserError, match=f"--{flag}={value} is for --format=torch, not --format=safetensors"):
            write.check("safetensors", tmp_path / "new", [], {flag: value})


def test_mistakes_of_prediction(out, files, tmp_path):
    with pytest.raises(UserError, match="is an exported network, which has no checkpoints; leave --checkpoint=best"):
        loaded.load(out / "safetensors", "best")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "card.json").write_text("{}")
    for where, message in (
        (tmp_path / "none", "there is no such folder"),
        (tmp_path, "card.json has no checksums: it is of an earlier version"),
    ):
        with pytest.raises(UserError, match=message):
            loaded.load(where)
    network = loaded.load(out / "safetensors")
    first, second = predict.predict(network, [str(tmp_path / "broken.png"), files[0]], 1)
    assert first["error"].startswith("it cannot be decoded") and len(second["classes"]) == 1
    shutil.copytree(out / "stablehlo", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.stablehlo").write_bytes(b"nothing")
    with pytest.raises(UserError, match="model.stablehlo is damaged"):
        loaded.load(tmp_path / "damaged")

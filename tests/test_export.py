"""Exported networks: the file is small, gives back what the run computes to the bit, and a bad one is one line."""

import json
import shutil
import struct
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest

import models
from models import weights
from models.compress import file, packed
from models.errors import UserError
from tests import tiny
from train import export, finished, loop, pretrained


def train(folder, **changes):
    loop.train(tiny.config(**changes), folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Whole, pruned, then with shared weights."""
    root = tmp_path_factory.mktemp("runs")
    train(root / "whole")
    train(root / "pruned", init_from=str(root / "whole"), init_new="", optimizer__prune="magnitude(0.9)")
    train(root / "shared", init_from=str(root / "pruned"), init_new="", optimizer__share="linear(conv=4, dense=4)",
          optimizer__learning_rate=1e-3)
    return root


def exported(folder, path):
    run, state = finished.load(folder)
    network = export.network(run, state)
    return run, state, network, export.compressed(run, network, path)


@pytest.mark.parametrize(("name", "least"), [("whole", 0.97), ("pruned", 4.5), ("shared", 7.5)])
def test_the_file_gives_back_the_run_to_the_bit(runs, tmp_path, name, least):
    run, state, network, found = exported(runs / name, tmp_path / "net.ablate")
    assert found["identical"] and found["bytes"] == (tmp_path / "net.ablate").stat().st_size
    assert found["ratio"] > least
    assert sum(row["bytes"] for row in found["layers"]) == found["bytes"]
    assert sum(row["weights"] for row in found["layers"]) == sum(
        leaf.size for leaf in jax.tree.leaves(network.variables))
    before = run.evaluate(run.parallel.place(state))
    after = export.evaluate(run, state, found["network"])
    assert after["accuracy"] == before["accuracy"] and after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    model, variables = file.load(file.read(tmp_path / "net.ablate"))
    assert type(model).__name__ == "ResNet" and model.width == 4
    tiny.assert_same(variables, jax.tree.map(np.asarray, network.variables))


def test_rows_of_the_table_are_what_the_file_holds(runs, tmp_path):
    *_, found = exported(runs / "shared", tmp_path / "net.ablate")
    rows = {row["name"]: row for row in found["layers"]}
    kernel = rows["stage3/block0/conv2/kernel"]
    assert kernel["weights"] == 3 * 3 * 16 * 16 and kernel["values"] <= 16 and kernel["index_bits"] <= 4
    assert kernel["kept"] < 0.4 * kernel["weights"] and kernel["index_coded"] < 5
    assert set(kernel["parts"]) == {"codebook", "tables", "jumps", "indices"}
    assert rows["header, checksum"]["bytes"] < 1500


def test_a_file_is_a_start_like_any_other(runs, tmp_path):
    exported(runs / "shared", tmp_path / "net.ablate")
    ours = loop.setup(tiny.config(init_from=str(tmp_path / "net.ablate"), init_new="")).state
    theirs = loop.setup(tiny.config(init_from=str(runs / "shared"), init_new="")).state
    tiny.assert_same(ours.variables(), theirs.variables())
    with pytest.raises(UserError, match="of 10 classes, the data have 5"):
        loop.setup(tiny.config(init_from=str(tmp_path / "net.ablate"), init_new="", data__select="classes('0-4')",
                               data__select_test="classes('0-4')", eval_batch_size=36))


def test_a_network_without_filters_is_exported_as_a_smaller_one(runs, tmp_path):
    what = "magnitude(0.5, structure=filters, what='.*/conv1/kernel')"
    train(tmp_path / "run", init_from=str(runs / "whole"), init_new="", optimizer__prune=what)
    run, state, network, found = exported(tmp_path / "run", tmp_path / "net.ablate")
    assert found["identical"] and dict(network.fields["widths"])
    assert found["float32"] < 0.75 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.variables()))
    assert all(name.endswith("/conv1") for name, _ in network.fields["widths"])
    before, after = run.evaluate(run.parallel.place(state)), export.evaluate(run, state, found["network"])
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-4) and after["accuracy"] == before["accuracy"]
    again = loop.setup(tiny.config(init_from=str(tmp_path / "net.ablate"), init_new="",
                                   model__widths=network.fields["widths"]))  # it trains on as the network that it is
    tiny.assert_same(again.state.variables(), network.variables)


@pytest.mark.parametrize("kind", ["ternary", "binary_weight", "xnor"])
def test_low_bit_networks_are_stored_in_few_bits(kind, tmp_path):
    more = {} if kind != "xnor" else {"model__act": "identity", "model__name": "preresnet20",
                                      "model__stage_sizes": (1, 2)}
    train(tmp_path / "run", model__conv=kind, model__width=8, duration="4 steps", **more)
    run, state, network, found = exported(tmp_path / "run", tmp_path / "net.ablate")
    rows = {row["name"]: row for row in found["layers"]}
    kernel = rows["stage2/block1/conv1/kernel"] if kind == "xnor" else rows["stage3/block0/conv2/kernel"]
    assert found["identical"] and kernel["index_coded"] <= 2 and 8 * kernel["bytes"] < 2.4 * kernel["weights"]
    before, after = run.evaluate(run.parallel.place(state)), export.evaluate(run, state, found["network"])
    assert after["accuracy"] == before["accuracy"] and after["loss"] == pytest.approx(before["loss"], rel=1e-6)


def test_a_run_that_saved_nothing_is_said(tmp_path):
    loop.train(tiny.config(duration="4 steps"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        finished.load(tmp_path / "run")


def test_codebooks_without_training(runs):
    run, state = finished.load(runs / "pruned")
    network = export.shared(export.network(run, state), "density(conv=2, dense=3)")
    for name, leaf in weights.flatten({"params": network.variables["params"]}).items():
        if name.endswith("kernel"):
            assert len(np.unique(leaf[leaf != 0])) <= (8 if leaf.ndim == 2 else 4)


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "train.export", *arguments], cwd=tiny.ROOT, text=True,
                          capture_output=True, timeout=300, check=False)


def test_the_command(runs, tmp_path):
    out = tmp_path / "net.ablate"
    done = command(f"--workdir={runs / 'shared'}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    for text in ("stage1/block0/conv1", "total", "equal to the bit when read back", "of the file"):
        assert text in done.stdout
    done = command(f"--workdir={runs / 'shared'}", f"--out={tmp_path / 'net.safetensors'}", "--format=safetensors")
    assert done.returncode == 0, done.stderr
    found, wanted = weights.read(tmp_path / "net.safetensors"), pretrained.load(out).arrays
    assert found.keys() == wanted.keys() and all((found[name] == wanted[name]).all() for name in found)
    assert weights.about(tmp_path / "net.safetensors")["model"] == "resnet8"


@pytest.mark.parametrize(("flags", "message"), [
    (("--out=x.ablate",), "--workdir is missing"),
    (("--workdir=/nowhere", "--out=x.ablate"), "--workdir=/nowhere: it is no run's folder"),
    (("--workdir=/nowhere", "--out=x.npz"), "--out=x.npz: a file of --format=compressed ends in .ablate"),
    (("--workdir=/nowhere", "--out=/none/x.ablate"), "there is no folder /none"),
    (("--workdir=/nowhere", "--out=x.ablate", "--format=zip"), "unknown --format 'zip'"),
])
def test_mistakes(flags, message):
    done = command(*flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# -- hostile files -------------------------------------------------------------------------------------------------


def small():
    model = models.create("lenet_300_100", hidden=(8,), image_size=8)
    variables = jax.tree.map(np.asarray, models.initialize(model, jax.random.key(0), (1, 8, 8, 1)))
    return file.dump("lenet_300_100", {"hidden": (8,), "image_size": 8}, variables, (1, 8, 8, 1))


def changed(data, change):
    """The file with another header, and a checksum that fits."""
    length = struct.unpack_from("<I", data, 10)[0]
    header = json.loads(zlib.decompress(data[14:14 + length]))
    change(header["about"])
    made = zlib.compress(json.dumps(header).encode())
    made = data[:10] + struct.pack("<I", len(made)) + made + data[14 + length:-4]
    return made + struct.pack("<I", zlib.crc32(made))


@pytest.mark.parametrize(("change", "message"), [
    (lambda about: about.update(model="lenet6"), "unknown model 'lenet6'"),
    (lambda about: about.update(model=["lenet5"]), "its network cannot be made"),
    (lambda about: about.pop("fields"), "its network cannot be made"),
    (lambda about: about["fields"].update(depth=3), "unknown field of lenet_300_100 'depth'"),
    (lambda about: about["fields"].update(hidden=[10**9]), "a field of its network is 1000000000"),
    (lambda about: about["fields"].update(hidden=[9]), "other arrays than its network"),
    (lambda about: about["fields"].update(hidden=[8] * 5000), "far more layers than the file"),
    (lambda about: about["fields"].update(hidden=[[[8]]]), "hidden="),
    (lambda about: about["fields"].update(hidden={"a": 1}), "a field of its network is"),
    (lambda about: about.update(model="resnet8", fields={"stage_sizes": [990]}), "far more layers than the file"),
    (lambda about: about.update(model="resnet1202", fields={}), "far more layers than the file"),
    (lambda about: about.update(model="resnet8", fields={"stage_sizes": [900], "widths": [["head", 10]]}),
     "far more layers than the file"),
    (lambda about: about.update(model="swin_tiny", fields={"window": 200}), "a field of its network is 200"),
    (lambda about: about.update(inputs=[1, 10**6, 10**6, 3]), "a field of its network is 1000000"),
])
def test_hostile_networks_are_one_line(change, message, tmp_path):
    data = changed(small(), change)
    with pytest.raises(UserError, match=message) as error:
        file.load(data, "net.ablate")
    assert str(error.value).startswith("net.ablate: ")


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "net.ablate"
    data = small()
    for bad in (b"", data[:-1], data[:50], data[:60] + b"x" + data[61:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"{path}: "):
            pretrained.load(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        file.read(tmp_path / "none.ablate")


def test_mutations_of_the_whole_file_with_checksums_that_fit():
    data, said = small(), 0
    rng = np.random.default_rng(0)
    for _ in range(400):
        bad = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(len(bad) - 4)] ^= 1 << int(rng.integers(8))
        bad[-4:] = struct.pack("<I", zlib.crc32(bytes(bad[:-4])))
        try:
            file.load(bytes(bad))
        except UserError:
            said += 1
    assert said > 10
    assert packed.about(data)["model"] == "lenet_300_100"

"""Tests of models/weights: round trips of every family's layouts, valid and invalid files, and the command line."""

import importlib.util
import io
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

import models
from models import weights
from models.errors import UserError
from models.weights import Mismatch, from_arrays, read, to_arrays, write
from models.weights.__main__ import main
from models.weights.layouts import flatten
from tests.golden import drawn
from tests.networks import SMALL

HAS_TORCH = importlib.util.find_spec("torch") is not None
# Networks with norms or heads that the layouts support, where those in SMALL have others.
LAID_OUT = {
    **SMALL,
    "imagenet": ("resnet18", {"stage_sizes": (1, 1), "width": 8, "num_classes": 10}),
    "preresnet": ("preresnet50", {"stage_sizes": (1, 1), "width": 8, "num_classes": 10}),
    "lenet_caffe": ("lenet5", {"convs": (4, 6), "hidden": (16,)}),
    "alexnet_torchvision": ("alexnet", {"convs": (8,) * 5, "classifier": (16, 16), "num_classes": 10}),
    "vgg_torchvision": ("vgg11_bn", {"stage_sizes": (1, 2), "width": 4, "classifier": (16, 16), "num_classes": 10}),
    "akamaster": ("resnet20", {"shortcut": "A_both", "stage_sizes": (1, 1), "width": 4}),
    "chenyaofo": ("resnet20", {"shortcut": "B", "stage_sizes": (1, 1), "width": 4}),
    "densenet_bottleneck": ("densenet121", {"stage_sizes": (2, 1), "growth": 4, "width": 8, "num_classes": 10}),
}
CASES = [
    (kind, layout)
    for kind, (name, fields) in LAID_OUT.items()
    for layout in weights.layouts(models.create(name, **fields))
]
TINY = {"stage_sizes": (1, 1), "width": 4, "num_classes": 3}
TINY_FLAGS = ["--model=resnet18", "--set", "stage_sizes=(1, 1)", "--set", "width=4", "--set", "num_classes=3"]


def tiny(**fields):
    return models.create("resnet18", **{**TINY, **fields})


@pytest.fixture(scope="module")
def theirs():
    """Returns weights of `tiny()` under torchvision's names."""
    return to_arrays(tiny(), drawn.variables(tiny()), "torchvision")


def test_every_library_is_covered():
    assert {layout for _, layout in CASES} >= {
        "ablate",
        "torchvision",
        "timm",
        "bit",
        "caffe",
        "akamaster",
        "chenyaofo",
    }


@pytest.mark.parametrize("kind,layout", CASES)
def test_round_trip(kind, layout):
    """Checks a bitwise round trip with one-to-one names and nothing left over."""
    name, fields = LAID_OUT[kind]
    model = models.create(name, **fields)
    variables = drawn.variables(model)
    arrays = to_arrays(model, variables, layout)
    extra = set(weights.layout(model, layout).extra(list(arrays)))
    if layout != "jax":  # which has three arrays for queries, keys and values
        assert len(arrays) == len(flatten(variables)) + len(extra)
    again = from_arrays(model, arrays, layout)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for path, array in flatten(again).items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, flatten(variables)[path], err_msg=path)
    missing = {key: array for key, array in arrays.items() if key not in extra}
    jax.tree.map(np.testing.assert_array_equal, from_arrays(model, missing, layout), variables)


def test_mismatch_names_every_array(theirs):
    changed = {**theirs, "layer1.0.conv1.weight": np.zeros((4, 4, 5, 5)), "layer3.0.conv1.weight": np.zeros(2)}
    del changed["bn1.bias"], changed["layer2.0.bn1.num_batches_tracked"]
    with pytest.raises(Mismatch) as error:
        from_arrays(tiny(), changed, "torchvision")
    assert error.value.summary == "3 arrays of these torchvision weights do not fit this ResNet:"
    assert sorted(error.value.lines) == [
        "! layer1.0.conv1.weight: (4, 4, 5, 5), not (4, 4, 3, 3), for stage1/block0/conv1/kernel (3, 3, 4, 4)",
        "+ layer3.0.conv1.weight: (2,), unexpected",
        "- bn1.bias: missing, for stem_norm/bias (4,)",
    ]
    assert str(error.value).splitlines() == [error.value.summary, *error.value.lines]


def test_mismatch_suggests_probable_causes(theirs):
    with pytest.raises(Mismatch, match="by the shape of 'head' alone: --new head .*num_classes=N"):
        from_arrays(tiny(num_classes=5), theirs, "torchvision")
    with pytest.raises(Mismatch, match="by the shape of 'stem_conv' alone: --new stem_conv .*FIELD=VALUE"):
        from_arrays(tiny(), {**theirs, "conv1.weight": np.zeros((4, 3, 5, 5))}, "torchvision")
    with pytest.raises(Mismatch, match="their names are those of the layout 'torchvision'"):
        from_arrays(tiny(), theirs, "ablate")
    with pytest.raises(Mismatch) as error:  # missing, and with a different shape: nothing to suggest
        from_arrays(tiny(num_classes=5), {k: v for k, v in theirs.items() if k != "fc.bias"}, "torchvision")
    assert "--new" not in error.value.summary and "layout" not in error.value.summary


def test_a_new_head_is_drawn_and_the_rest_is_kept(theirs):
    model = tiny(num_classes=5)
    arrays = flatten(from_arrays(model, theirs, "torchvision", new=["head"], seed=3))
    own = flatten(models.initialize(model, jax.random.key(3), model.example()))
    assert arrays["head/kernel"].shape == (8, 5)
    for path, array in arrays.items():
        expected = None if path.startswith("head/") else flatten(drawn.variables(tiny()))[path]
        np.testing.assert_array_equal(array, own[path] if expected is None else expected, err_msg=path)
    without = {name: array for name, array in theirs.items() if not name.startswith("fc.")}
    again = flatten(from_arrays(model, without, "torchvision", new=["head"], seed=3))
    jax.tree.map(np.testing.assert_array_equal, again, arrays)
    with pytest.raises(UserError, match="unknown part of the network 'haed'; did you mean 'head'"):
        from_arrays(model, theirs, "torchvision", new=["haed"])


def test_unknown_layouts():
    for model, name in ((tiny(), "bit"), (tiny(preact=True), "torchvision")):
        with pytest.raises(UserError, match=f"unknown layout of ResNet '{name}'"):
            to_arrays(model, drawn.variables(model), name)
        with pytest.raises(UserError, match="allowed: ablate"):
            from_arrays(model, {}, name)


def test_a_family_may_adapt_the_arrays_that_are_read(theirs, monkeypatch):
    def adapt(model, arrays, source):
        assert (model.num_classes, source) == (2, "torchvision")
        return {name: array[:2] if name.startswith("fc.") else array for name, array in arrays.items()}

    monkeypatch.setattr("models.resnet.adapt", adapt, raising=False)
    variables = from_arrays(tiny(num_classes=2), theirs, "torchvision")
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], theirs["fc.weight"][:2].T)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_give_back_their_arrays(tmp_path, suffix, theirs):
    path = tmp_path / f"w{suffix}"
    write(path, theirs)
    arrays = read(path)
    assert arrays.keys() == theirs.keys()
    for name, array in theirs.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert [path.name for path in tmp_path.iterdir()] == [f"w{suffix}"]


def test_views_are_written_with_their_visible_content(tmp_path):
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    for suffix in (".safetensors", ".npz"):
        write(tmp_path / f"w{suffix}", {"t": table.T, "reversed": table[:, ::-1], "scalar": table[0, 1]})
        arrays = read(tmp_path / f"w{suffix}")
        np.testing.assert_array_equal(arrays["t"], table.T)
        np.testing.assert_array_equal(arrays["reversed"], table[:, ::-1])
        assert arrays["scalar"].shape == () and arrays["scalar"] == 1


def test_half_precision_becomes_float32(tmp_path):
    values = np.array([1.5, -2, 0.25], np.float32)
    stored = {name: values.astype(name) for name in ("bfloat16", "float16", "float64")}
    safetensors.numpy.save_file(stored, tmp_path / "w.safetensors")
    arrays = read(tmp_path / "w.safetensors")
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "bfloat16": "float32",
        "float16": "float32",
        "float64": "float64",
    }
    for array in arrays.values():
        np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    write(tmp_path / "w.npz", {f"{prefix}{name}": np.ones(2) for name in ("a.weight", "module.b")})
    assert set(read(tmp_path / "w.npz")) == {"a.weight", "module.b"}
    write(tmp_path / "w.npz", {"module.a": np.ones(2), "b": np.ones(2)})
    assert set(read(tmp_path / "w.npz")) == {"module.a", "b"}


def content(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


SAFE = safetensors.numpy.save({"a": np.arange(100.0)})
NPZ = content(lambda file: np.savez(file, a=np.arange(100.0)))
BAD = {
    "empty.safetensors": b"", "empty.npz": b"", "text.safetensors": b"hello" * 20, "text.npz": b"hello" * 20,
    "short.safetensors": SAFE[:-8], "header.safetensors": SAFE[:20], "longer.safetensors": SAFE + b"x" * 8,
    "short.npz": NPZ[:-30], "start.npz": NPZ[:60], "flipped.npz": NPZ[:300] + b"\xff\xff" + NPZ[302:],
    "npz.safetensors": NPZ, "safetensors.npz": SAFE, "array.npz": content(lambda file: np.save(file, np.ones(3))),
    "objects.npz": content(lambda file: np.savez(file, a=np.array([{}, None]))), "nothing.npz": content(np.savez),
    "nothing.safetensors": safetensors.numpy.save({}),
    "words.npz": content(lambda file: np.savez(file, a=np.array(["x"]))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)


def test_a_compressed_file_with_damage(tmp_path):
    good = content(lambda file: np.savez_compressed(file, a=np.arange(1000.0)))
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        start = archive.infolist()[0].header_offset + 60
    (tmp_path / "w.npz").write_bytes(good[:start] + bytes(20) + good[start + 20 :])
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "w.npz")
    (tmp_path / "w.npz").write_bytes(good)
    assert read(tmp_path / "w.npz")["a"][-1] == 999


@pytest.mark.parametrize(
    "name,message",
    [
        ("none.safetensors", "there is no such file"),
        ("none.npz", "there is no such file"),
        ("none.pth", "there is no such file"),
        ("w.h5", "the name of a weights file must end in one of .safetensors, .npz, .pth"),
        ("w", "a weights file must end in one of"),
        ("folder.npz", "there is no such file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, message):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "w.h5").write_bytes(SAFE)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_failed_write_leaves_no_file(tmp_path, suffix, monkeypatch):
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "no" / f"w{suffix}", {"a": np.ones(2)})
    write(tmp_path / f"w{suffix}", {"a": np.ones(2)})

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match="No space left"):
        write(tmp_path / f"w{suffix}", {"a": np.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == [f"w{suffix}"]
    np.testing.assert_array_equal(read(tmp_path / f"w{suffix}")["a"], np.ones(2))


def test_metadata(tmp_path):
    write(tmp_path / "w.safetensors", {"a": np.ones(2)}, {"format": "pt"})
    assert weights.metadata(tmp_path / "w.safetensors") == {"format": "pt"}
    assert weights.description(tmp_path / "w.safetensors") == {}
    with pytest.raises(UserError, match=r"only .safetensors files can hold metadata"):
        write(tmp_path / "w.npz", {"a": np.ones(2)}, {"format": "pt"})
    write(tmp_path / "w.npz", {"a": np.ones(2)})
    assert weights.metadata(tmp_path / "w.npz") == {}
    write(tmp_path / "w.safetensors", {"a": np.ones(2)}, {"ablate": "__import__('os')"})
    with pytest.raises(UserError, match="no dictionary of literals"):
        weights.description(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(SAFE[:20])
    with pytest.raises(UserError, match="damaged"):
        weights.metadata(tmp_path / "w.safetensors")


def test_save_and_load(tmp_path):
    model, path = tiny(), tmp_path / "w.safetensors"
    variables = drawn.variables(model)
    weights.save(path, model, variables, {"model": "resnet18", "fields": TINY})
    assert weights.description(path) == {"model": "resnet18", "fields": TINY}
    jax.tree.map(np.testing.assert_array_equal, weights.load(path, model), variables)
    assert "stage1/block0/conv1/kernel" in read(path)
    with pytest.raises(Mismatch, match="'head' alone"):
        weights.load(path, tiny(num_classes=4))


def test_import_and_export(tmp_path, theirs, capsys):
    """Checks that importing and exporting restores the arrays; the same command gives the same bytes."""
    write(tmp_path / "in.npz", theirs)
    ours, again, out = (str(tmp_path / name) for name in ("ours.safetensors", "again.safetensors", "out.safetensors"))
    command = ["import", str(tmp_path / "in.npz"), "--from", "torchvision", *TINY_FLAGS]
    assert main(["weights", *command, "--out", ours]) == 0
    shown = capsys.readouterr().out
    count = sum(array.size for name, array in theirs.items() if "running" not in name and "num_batches" not in name)
    arrays = len(theirs) - sum("num_batches" in name for name in theirs)
    assert shown == (
        f"resnet18: {arrays} arrays, {count:,} parameters, from {tmp_path}/in.npz (torchvision), to {ours}\n"
    )
    assert main(["weights", *command, f"--out={again}"]) == 0
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, weights.load(ours, tiny()), drawn.variables(tiny()))

    capsys.readouterr()
    assert main(["weights", "export", ours, "--to", "timm", "--out", out]) == 0  # the file contains the network
    assert capsys.readouterr().out == (
        f"resnet18: {arrays} arrays, {count:,} parameters, from {ours}, to {out} (timm)\n"
    )
    restored = read(out)
    assert restored.keys() == theirs.keys() and weights.metadata(out) == {"format": "pt"}
    for name in theirs:
        np.testing.assert_array_equal(restored[name], theirs[name])
    assert main(["weights", "export", ours, "--to=safetensors", f"--out={out}"]) == 0
    for source in ("safetensors", "ablate"):
        assert main(["weights", "import", out, "--from", source, *TINY_FLAGS, f"--out={again}"]) == 0
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_import_with_a_new_head(tmp_path, theirs, capsys):
    write(tmp_path / "in.npz", theirs)
    flags = [
        str(tmp_path / "in.npz"),
        "--from=torchvision",
        *TINY_FLAGS[:-1],
        "num_classes=7",
        f"--out={tmp_path}/o.safetensors",
    ]
    assert main(["weights", "import", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "! fc.bias: (3,), not (7,), for head/bias (7,)",
        "! fc.weight: (3, 8), not (7, 8), for head/kernel (8, 7)",
        "error: 2 arrays of these torchvision weights do not fit this ResNet, by the shape of 'head' alone: --new head "
        "draws it anew, and --set num_classes=N gives the network the file's",
    ]
    assert not (tmp_path / "o.safetensors").exists()
    for seed in (0, 5):
        assert main(["weights", "import", *flags, "--new", "head", f"--seed={seed}"]) == 0
        assert "head drawn anew" in capsys.readouterr().out
        variables = weights.load(tmp_path / "o.safetensors", tiny(num_classes=7))
        expected = from_arrays(tiny(num_classes=7), theirs, "torchvision", new=["head"], seed=seed)
        jax.tree.map(np.testing.assert_array_equal, variables, expected)
    assert weights.description(tmp_path / "o.safetensors")["fields"]["num_classes"] == 7


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "unknown command ''; allowed: import, export"),
        (["imprt", "IN"], "unknown command 'imprt'; did you mean 'import'"),
        (["import"], "import takes one file, not 0"),
        (["import", "IN", "IN"], "import takes one file, not 2"),
        (["import", "IN", "--model=resnet18", "--out=OUT"], "--from is missing"),
        (["import", "IN", "--from=torchvision", "--out=OUT"], "--model is missing"),
        (["import", "IN", "--from=torchvision", "--model=resnet18"], "--out is missing"),
        (["import", "IN", "--from=torchvision", "--model=resnet18", "--out=OUT.npz"], "must end in .safetensors"),
        (["import", "IN", "--from=torchvision", "--model=resnet17", "--out=OUT"], "unknown model 'resnet17'"),
        (["import", "IN", "--from=torchvisoin", "--model=resnet18", "--out=OUT"], "did you mean 'torchvision'"),
        (
            ["import", "IN", "--from=torchvision", "--to=timm", "--model=resnet18", "--out=OUT"],
            "takes --from, not --to",
        ),
        (["import", "IN", "--from=torchvision", "--model=resnet18", "--set=width", "--out=OUT"], "FIELD=VALUE"),
        (["import", "IN", "--from=torchvision", "--modle=resnet18", "--out=OUT"], "modle"),
        (["import", "NONE.npz", "--from=torchvision", "--model=resnet18", "--out=OUT"], "there is no such file"),
        (["export", "IN", "--to=torchvision", "--out=OUT"], "--model is missing, and"),
        (
            ["export", "IN", "--to=torchvision", "--from=timm", "--model=resnet18", "--out=OUT"],
            "takes --to, not --from",
        ),
        (["export", "IN", "--to=torchvision", "--model=resnet18", "--new=head", "--out=OUT"], "--new is for import"),
        (["export", "IN", "--to=torchvision", "--model=resnet18", "--out=OUT.h5"], "a weights file must end in one of"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, message, theirs):
    write(
        tmp_path / "in.npz",
        to_arrays(tiny(), drawn.variables(tiny()), "ablate" if "export" in arguments else "torchvision"),
    )
    out = tmp_path / "out.safetensors"
    places = {
        "IN": str(tmp_path / "in.npz"),
        "--out=OUT": f"--out={out}",
        "--out=OUT.npz": f"--out={tmp_path}/out.npz",
        "--out=OUT.h5": f"--out={tmp_path}/out.h5",
    }
    fields = TINY_FLAGS[1:] if "--model=resnet18" in arguments else []
    assert main(["weights", *(places.get(argument, argument) for argument in arguments), *fields]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in.npz"}


def test_help(capsys):
    assert main(["weights", "--help"]) == 0
    shown = capsys.readouterr().out
    for text in ("import --from torchvision", "export --to torchvision", "--new", "--seed", "(default: 0)"):
        assert text in shown


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "models.weights", "export"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: export takes one file, not 0\n"


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_torch_files_are_written_by_torch(tmp_path):
    with pytest.raises(UserError, match=r"w.pth needs PyTorch: pip install torch, or write a .safetensors"):
        write(tmp_path / "w.pth", {"a": np.ones(2)})


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
class TestTorchFiles:
    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
    def test_round_trip(self, tmp_path, theirs, suffix):
        import torch

        write(tmp_path / f"w{suffix}", theirs)
        loaded = torch.load(tmp_path / f"w{suffix}", weights_only=True)
        assert loaded["bn1.num_batches_tracked"].dtype == torch.int64
        restored = read(tmp_path / f"w{suffix}")
        assert restored.keys() == theirs.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(restored[name], array)
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {"model": state, "optimizer": {"lr": 0.1}},
            lambda state: {"state_dict_ema": state, "state_dict": {"a": state["a"] + 1}},
            lambda state: {"model": {"state_dict": state}},
            lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
            lambda state: {name: value.half() for name, value in state.items()},
            lambda state: {name: value.bfloat16() for name, value in state.items()},
        ],
    )
    def test_checkpoints_are_unwrapped(self, tmp_path, wrap):
        import torch

        torch.save(wrap({"a": torch.tensor([1.5, 2.0])}), tmp_path / "w.pth")
        arrays = read(tmp_path / "w.pth")
        assert set(arrays) == {"a"} and arrays["a"].dtype == np.float32
        np.testing.assert_array_equal(arrays["a"], [1.5, 2.0])

    def test_bad_files_are_one_line(self, tmp_path):
        import argparse
        import pickle

        import torch

        whole = content(lambda file: torch.save({"a": torch.ones(100)}, file))
        for data, message in (
            (b"", "damaged"),
            (b"hello" * 20, "damaged"),
            (whole[:-100], "damaged"),
            (whole[:200], "damaged"),
            (pickle.dumps({"a": np.ones(2)}), "refused|damaged"),
            (NPZ, "damaged"),
            (content(lambda file: torch.save(torch.nn.Linear(2, 2), file)), "refused for the objects in it"),
            (content(lambda file: torch.save({"args": argparse.Namespace(), "model": {}}, file)), "argparse.Namespace"),
            (content(lambda file: torch.save(torch.ones(2), file)), "a Tensor instead of arrays by name"),
            (content(lambda file: torch.save({3: torch.ones(2)}, file)), "numbered, not named"),
            (content(lambda file: torch.save({"a": torch.ones(2, 2).to_sparse()}, file)), "'a' is no plain array"),
            (content(lambda file: torch.save({}, file)), "no arrays"),
        ):
            (tmp_path / "w.pth").write_bytes(data)
            with pytest.raises(UserError, match=message) as error:
                read(tmp_path / "w.pth")
            assert "\n" not in str(error.value)

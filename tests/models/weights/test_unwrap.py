"""Weights are found wherever scripts and wrappers put them, under every ending, for any number of channels."""

import itertools

import jax
import numpy as np
import pytest

import models
from models import weights
from models.errors import UserError
from models.kernels.tracing import lowering
from models.weights import Mismatch, foreign, from_arrays, read, to_arrays, unwrap, write
from models.weights.__main__ import main
from models.weights.layouts import flatten
from tests.fuzz.build import TORCH, A, B, refused
from tests.golden import drawn
from tests.networks import SMALL

STATE = {"conv.weight": A, "fc.bias": B}
KEYS = ("state_dict", "model", "module", "ema", "net", "weights", "params", "model_state_dict", "checkpoint", "network")


@pytest.mark.parametrize(
    "keys",
    [
        *itertools.permutations(KEYS[:3]),
        *((key,) for key in unwrap.WRAPPERS),
        *itertools.permutations(KEYS[3:6]),
        KEYS,
        KEYS[::-1],
    ],
)
def test_nested_wrappers_in_any_order(keys):
    tree = STATE
    for key in keys:
        tree = {
            "epoch": 3,
            key: tree,
            "optimizer": {"state": {0: {"exp_avg": A}}},
            "best_acc": np.array(0.5),
            "none": None,
        }
    assert unwrap.state(tree).keys() == STATE.keys()


@pytest.mark.parametrize(
    "beside",
    [
        {"epoch": 3}, {"best_acc": 0.5}, {"arch": "resnet"}, {"none": None}, {"done": True},
        {"optimizer": {"lr": 0.1, "a": A}}, {"args": {"width": [1, 2]}},
        {"args": unwrap.Opaque("argparse.Namespace")}, {"history": [1.0, 2.0]}, {"raw": b"x"},
    ],
)  # fmt: skip
def test_other_entries_beside_arrays_are_ignored(beside):
    assert unwrap.state({**STATE, **beside}).keys() == STATE.keys()
    assert unwrap.state({"model": {**STATE, **beside}, **beside}).keys() == STATE.keys()


def test_the_first_of_several_entries_with_arrays_is_read():
    other = {"conv.weight": A + 1}
    for tree, expected in (
        ({"state_dict": STATE, "model_ema": other}, other),
        ({"state_dict": STATE, "ema": {"decay": 0.9}}, STATE),
        ({"state_dict": {}, "model": STATE}, STATE),
        ({"model": unwrap.Opaque("Net"), "state_dict": STATE}, STATE),
        ({"ema": {"module": other}, "model": STATE}, other),
        ({"model": {"epoch": np.array(3)}, **STATE}, STATE),
    ):
        assert unwrap.state(tree).keys() == expected.keys()
        np.testing.assert_array_equal(unwrap.state(tree)["conv.weight"], expected["conv.weight"])


def test_endless_trees():
    cycle, deep = {}, STATE
    cycle["model"] = {"state_dict": cycle, "net": cycle}
    with pytest.raises(foreign.Damaged, match="no arrays by name"):
        unwrap.state(cycle)
    cycle["model"]["w"] = A
    assert unwrap.state(cycle).keys() == {"w"}
    for _ in range(20_000):
        deep = {"model": deep}
    assert unwrap.state(deep).keys() == STATE.keys()


PREFIXES = ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module.", "module.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_prefixes_in_any_order(tmp_path, prefix, suffix):
    names = {f"{prefix}{name}": array for name, array in STATE.items()}
    write(tmp_path / f"w{suffix}", {**names, "epoch": np.array(3)})
    assert read(tmp_path / f"w{suffix}").keys() == {*STATE, "epoch"}


TINY = {"stage_sizes": (1, 1), "width": 4, "num_classes": 3}


def tiny(**fields):
    return models.create("resnet18", **{**TINY, **fields})


@pytest.fixture(scope="module")
def theirs():
    return to_arrays(tiny(), drawn.variables(tiny()), "torchvision")


@pytest.mark.parametrize(
    "prefix",
    [
        *PREFIXES, "model.", "net.", "backbone.", "module.model.", "model._orig_mod.", "state_dict.module.model.",
        "ema.module.", "net.model.net.", "_orig_mod.network.",
    ],
)  # fmt: skip
def test_prefixes_of_lightning_and_others(theirs, prefix):
    counters = {"epoch": np.array(3), "best_acc": np.array(0.5), "global_step": np.array(7)}
    named = {f"{prefix}{name}": array for name, array in theirs.items()}
    for arrays in (named, {**counters, **named}):
        jax.tree.map(np.testing.assert_array_equal, from_arrays(tiny(), arrays, "torchvision"), drawn.variables(tiny()))


def test_prefixes_that_only_some_names_have_are_kept(theirs):
    some = {name if name.startswith("fc") else f"model.{name}": array for name, array in theirs.items()}
    with pytest.raises(Mismatch, match="arrays of these torchvision weights"):
        from_arrays(tiny(), some, "torchvision")
    with pytest.raises(Mismatch, match="arrays of these torchvision weights"):
        from_arrays(tiny(), {f"mine.{name}": array for name, array in theirs.items()}, "torchvision")
    arrays = {"model.a": A, "model.b": B}  # a network whose own names begin with "model."
    assert unwrap.without_prefixes(arrays, unwrap.ATTRIBUTES, {"model.a", "model.c"}) == arrays


def test_numbers_beside_arrays_are_not_parameters(theirs):
    with pytest.raises(Mismatch, match=r"alpha: \(\), unexpected"):
        from_arrays(tiny(), {**theirs, "layer1.0.alpha": np.array(0.5)}, "torchvision")
    with pytest.raises(Mismatch, match=r"epoch: \(2,\), unexpected"):
        from_arrays(tiny(), {**theirs, "epoch": np.arange(2)}, "torchvision")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int32", "int64", "uint16"])
def test_integers_are_not_weights(theirs, dtype):
    with pytest.raises(UserError, match=rf"'fc.weight' holds {dtype}, not floating-point numbers") as error:
        from_arrays(tiny(), {**theirs, "fc.weight": theirs["fc.weight"].astype(dtype)}, "torchvision")
    assert "\n" not in str(error.value) and not isinstance(error.value, Mismatch)
    from_arrays(tiny(), {**theirs, "fc.weight": theirs["fc.weight"].astype(dtype)}, "torchvision", new=["head"])


@pytest.mark.parametrize(
    "name", ["w.pth", "w.PTH", "w.pt", "w.bin", "w.pth.tar", "w.PTH.TAR", "w.ckpt", "w.th", "w.model", "w.v2.Pt"]
)
def test_endings_of_torch(tmp_path, name):
    (tmp_path / name).write_bytes(TORCH["new"].tobytes())
    assert read(tmp_path / name).keys() == {"a", "b"}


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w.Npz", "w.NPZ"])
def test_endings_in_upper_case(tmp_path, name):
    write(tmp_path / name, STATE)
    assert read(tmp_path / name).keys() == STATE.keys()


@pytest.mark.parametrize("name", ["w.tar", "w.pkl", "w.h5", "w.onnx", "pth", "w"])
def test_other_endings(tmp_path, name):
    refused(
        tmp_path / name, TORCH["new"].tobytes(), message="a weights file must end in one of .safetensors, .npz, .pth"
    )


# Channels

LAID_OUT = {**SMALL, "flattened": ("lenet_300_100", {}), "imagenet": ("resnet18", TINY)}


@pytest.mark.parametrize("kind", [kind for kind, (name, _) in LAID_OUT.items() if not name.startswith("transformer")])
@pytest.mark.parametrize("channels", [1, 4])
def test_networks_adopt_the_channels_of_their_file(kind, channels):
    name, fields = LAID_OUT[kind]
    model = models.create(name, **fields)
    with lowering("plain"):
        images = models.abstract((*model.example()[0].shape[:3], channels))
        shapes = jax.eval_shape(model.init, jax.random.key(0), *images)
    variables = drawn.filled(shapes, lambda path, shape: np.broadcast_to(np.float32(0), shape))
    for layout in weights.layouts(model):
        again = from_arrays(model, to_arrays(model, variables, layout), layout)
        assert jax.tree.map(lambda leaf: leaf.shape, again) == jax.tree.map(lambda leaf: leaf.shape, dict(variables))


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_import_and_export_of_a_file_with_other_channels(tmp_path, capsys, channels):
    model, image = tiny(), drawn.images("gray", (2, 32, 32, channels))
    variables = models.initialize(model, jax.random.key(0), image.shape)
    write(
        tmp_path / "in.npz",
        {f"module.model.{name}": array for name, array in to_arrays(model, variables, "torchvision").items()},
    )
    flags = ["--model=resnet18", *(f"--set={field}={value}" for field, value in TINY.items())]
    ours, out = f"{tmp_path}/ours.safetensors", f"{tmp_path}/out.npz"
    assert main(["weights", "import", f"{tmp_path}/in.npz", "--from=torchvision", *flags, f"--out={ours}"]) == 0
    again = weights.load(ours, model)
    np.testing.assert_array_equal(model.apply(again, image), model.apply(variables, image))
    assert main(["weights", "export", ours, "--to=torchvision", f"--out={out}"]) == 0, capsys.readouterr().err
    assert {name: array.shape for name, array in read(out).items()}["conv1.weight"] == (4, channels, 7, 7)
    new = flatten(from_arrays(tiny(num_classes=5), read(out), "torchvision", new=["head"]))
    assert new["head/kernel"].shape == (8, 5) and new["stem_conv/kernel"].shape == (7, 7, channels, 4)


def test_explicit_channels_are_kept(theirs):
    gray = {**theirs, "conv1.weight": theirs["conv1.weight"][:, :1]}
    with pytest.raises(Mismatch, match="by the shape of 'stem_conv' alone"):
        from_arrays(tiny(), gray, "torchvision", inputs=(1, 32, 32, 3))
    with pytest.raises(Mismatch, match="by the shape of 'stem_conv' alone"):
        from_arrays(tiny(), gray, "torchvision", drawn=drawn.variables(tiny()))
    drawn_anew = flatten(from_arrays(tiny(), gray, "torchvision", new=["stem_conv"]))
    assert drawn_anew["stem_conv/kernel"].shape == (7, 7, 3, 4)
    with pytest.raises(Mismatch, match=r"2 arrays .*do not fit"):  # three channels, and more arrays that do not fit
        from_arrays(tiny(), {**gray, "fc.weight": np.zeros((9, 8)), "fc.bias": np.zeros(9)}, "torchvision")

"""Published networks in commands: logits beside timm's, predict, init_from, export to the hub, explain."""

import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import models
import train
from models import weights
from models.errors import UserError
from models.layers.endpoint import capture
from tests import hub_server, hub_tiny, tiny
from tests.golden import FOLDER
from tests.hub_tiny import NAME, WHERE
from tests.tiers import keep
from train import loop, restore
from train.export import graph, loaded
from train.run import build_run
from train.storage import paths

GOLDEN = dict(np.load(FOLDER / "hub.npz"))
CONFIGS = json.loads(str(GOLDEN["configs"]))


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(GOLDEN["jpeg"].tobytes())
    return file


# -- beside timm ---------------------------------------------------------------------------------------------------


def timm_repository(config):
    """Returns the files of a repository with drawn weights for a config of timm."""
    from models.weights import architectures

    network, fields = architectures.find(config["architecture"])
    classes, size = config["num_classes"], config["pretrained_cfg"]["input_size"][1]
    model = models.create(network, **fields, image_size=size, num_classes=classes or 1000)
    arrays = hub_tiny.timm_arrays(model)
    if not classes:
        arrays = {name: array for name, array in arrays.items() if not name.startswith("head.")}
    if config["architecture"] == "convnext_atto":  # timm's 1x1 convolutions
        arrays = {
            name: array[:, :, None, None] if name.endswith(("fc1.weight", "fc2.weight")) else array
            for name, array in arrays.items()
        }
    return {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors.numpy.save(arrays)}


@pytest.mark.parametrize(
    "tag", keep(("mobilenetv2_050.lamb_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"), CONFIGS)
)
def test_logits_of_a_photograph_are_those_of_timm(hub, photo, tag, monkeypatch):
    where = f"hf:timm/{tag}"
    hub.repositories[f"timm/{tag}"] = timm_repository(CONFIGS[tag])
    if CONFIGS[tag]["pretrained_cfg"].get("license", "").startswith("cc-by-nc"):
        monkeypatch.setenv("ABLATE_ACCEPT_LICENSE", "cc-by-nc-4.0")
    theirs = GOLDEN[tag]
    if CONFIGS[tag]["num_classes"]:
        network = loaded.load(where)
        ours = network.run(network.pixels(photo)[None])[1][0]
    else:
        ours = features(where, photo)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def features(where, photo):
    """Returns what the head of an encoder sees."""
    model, variables, card = models.load(where)
    opened = loaded.Loaded(
        {"preprocessing": card["preprocessing"]}, lambda pixels: (pixels, pixels), lambda: (model, {})
    )
    inputs = graph.normalized(jnp.asarray(opened.pixels(photo)[None]), card["preprocessing"])
    with pytest.raises(UserError, match="has no classes: it is an encoder without a head"):
        loaded.load(where)
    _, at = jax.jit(lambda v, x: capture(model, v, x, names=["pre_logits"], train=False))(variables, inputs)
    return np.asarray(at["pre_logits"][0])


# -- commands ------------------------------------------------------------------------------------------------------


def run_command(hub, folder, *arguments, **environment):
    """Returns (exit code, stdout, stderr) of a command that uses the hub."""
    variables = {**os.environ, **hub_server.environment(hub, str(folder)), "PYTHONPATH": str(tiny.ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, check=False, env=variables
    )
    return done.returncode, done.stdout, done.stderr


def test_predict_by_name_and_offline(hub, photo, tmp_path):
    code, out, err = run_command(hub, tmp_path, "train.predict", WHERE, photo, "--json", "--top=2")
    assert code == 0, err
    row = json.loads(out)
    network = loaded.load(WHERE)
    probabilities = network.run(network.pixels(photo)[None])[0][0]
    best = np.argsort(-probabilities)[:2]
    assert [entry["label"] for entry in row["classes"]] == [str(i) for i in best]
    again = run_command(hub, tmp_path, "train.predict", WHERE, photo, "--json", "--top=2", HF_HUB_OFFLINE="1")
    assert again[:2] == (0, out)


def test_a_file_predicts_what_its_name_does(hub, photo, tmp_path):
    model, variables, card = models.load(WHERE)
    file = tmp_path / "tiny.safetensors"
    weights.save(file, model, variables, models.weights.hub.description(card))
    by_name, by_file = train.load(WHERE), train.load(str(file))
    np.testing.assert_array_equal(by_name.logits(photo), by_file.logits(photo))
    assert by_file.card["license"] == "apache-2.0" and by_file.classes == tuple("0123456789")
    weights.save(file, model, variables, {"model": "mobilenet_v2_035", "fields": card["fields"]})
    with pytest.raises(UserError, match="does not say how images are prepared"):
        loaded.load(file)


def fine_tuning(folder, **changes):
    """Returns the config of a run on colored digits that starts from WHERE."""
    c = tiny.config(init_from=WHERE, data__channels=3, data__image_size=64, data__crop="resize", **changes)
    c.model.name = "mobilenet_v2_035"
    del c.model["width"]
    c.data.mean, c.data.std, c.data.interpolation = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), "bicubic"
    return tiny.change(c, **changes)


def test_init_from_a_name_and_its_normalization(hub, tmp_path, capsys):
    c = fine_tuning(tmp_path)
    run = build_run(c.to_dict())
    theirs = models.load(WHERE).variables["params"]
    for part in ("stem_conv", "stage3"):
        jax.tree.map(np.testing.assert_array_equal, run.state.params[part], theirs[part])
    assert "warning" not in capsys.readouterr().err
    c.data.mean = (0.5,)
    build_run(c.to_dict())
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert line == f"warning: {WHERE} was trained on other images: data.mean=0.5 instead of 0.5 0.4 0.3"


def test_names_are_no_paths(tmp_path):
    """Checks that a run's record of its paths leaves names alone, so that runs can be moved."""
    for name in (WHERE, "torchvision:resnet50/IMAGENET1K_V2", "https://x.org/a.npz"):
        assert paths.relative({"init_from": name}, tmp_path) == {}
    assert paths.relative({"init_from": str(tmp_path / "hf")}, tmp_path) == {"init_from": "hf"}


def test_init_from_mistakes(hub, tmp_path):
    c = fine_tuning(tmp_path)
    c.init_from = "hf:timm/none.tiny"
    with pytest.raises(UserError, match="init_from=hf:timm/none.tiny: the hub has no such repository"):
        build_run(c.to_dict())
    c.init_from, c.init_new = WHERE, ""
    c.model.width_multiplier = 0.5
    with pytest.raises(UserError, match="does not fit this MobileNetV2"):
        build_run(c.to_dict())


def test_export_to_the_hub_and_back(hub, tmp_path, photo):
    folder = tmp_path / "run"
    loop.train(tiny.config(duration="2 steps"), folder)
    push = ("train.export", f"--workdir={folder}", "--to=hf:me/digits", "--license=cc0-1.0", "--images=8")
    code, _, err = run_command(hub, tmp_path, *push)
    assert code == 2 and "needs a token" in err and len(err.splitlines()) == 1
    code, out, err = run_command(hub, tmp_path, *push, HF_TOKEN=hub_server.TOKEN)
    assert code == 0, err
    files = hub.repositories["me/digits"]
    assert set(files) == {"model.safetensors", "card.json", "config.json", "README.md"}
    assert f"uploaded to hf:me/digits, commit {hub.commit('me/digits')[:12]}" in out
    card = files["README.md"].decode()
    assert card.startswith('---\nlibrary_name: "ablate"\n') and 'license: "cc0-1.0"' in card and "resnet8" in card
    run, state = restore.load_network(folder)
    model, variables, about = models.load("hf:me/digits")
    assert model == run.model.clone(dtype=model.dtype) and about["labels"] == run.feed.classes
    jax.tree.map(np.testing.assert_array_equal, variables, state.evaluation_variables())
    Image.open(io.BytesIO(GOLDEN["jpeg"].tobytes())).convert("L").save(tmp_path / "gray.png")
    ours, theirs = train.load("hf:me/digits"), train.load(folder)
    np.testing.assert_allclose(ours.logits(tmp_path / "gray.png"), theirs.logits(tmp_path / "gray.png"), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--to=me/digits",), "must be hf:USER/NAME"),
        (("--to=hf:me/digits", "--format=onnx"), "needs --format=safetensors or torch"),
        (("--to=hf:me/digits",), "the hub"),
    ],
)
def test_pushes_that_fail_are_one_line(hub, tmp_path, flags, part):
    folder = tmp_path / "run"
    loop.train(tiny.config(duration="2 steps"), folder)
    hub.status = 403
    arguments = ("train.export", f"--workdir={folder}", f"--out={tmp_path / 'out'}", "--images=8", *flags)
    code, _, err = run_command(hub, tmp_path, *arguments, HF_TOKEN=hub_server.TOKEN)
    assert code == 2 and part in err and len(err.splitlines()) == 1, err


def test_another_owners_code_is_not_run(hub, tmp_path):
    (tmp_path / "net.py").write_text("raise SystemExit('run')")
    own = {"model": f"{tmp_path}/net.py:Net", "fields": {}}
    hub.repositories[NAME] = hub_tiny.repository({**hub_tiny.CONFIG, "ablate": own})
    with pytest.raises(UserError, match="a file of its owner's code, FILE.py:NAME, which is not run"):
        models.load(WHERE)


def test_explain_by_name(hub, photo, tmp_path):
    arguments = ("experiments.explain", f"--workdir={WHERE}", f"--image={photo}", "--method=saliency")
    code, _, err = run_command(hub, tmp_path, *arguments, f"--out={tmp_path / 'out'}")
    assert code == 0, err
    assert (tmp_path / "out" / "attributions.png").is_file()
    code, _, err = run_command(hub, tmp_path, *arguments[:2], f"--out={tmp_path / 'out'}")
    assert code == 2 and len(err.splitlines()) == 1 and "has no images of its own" in err

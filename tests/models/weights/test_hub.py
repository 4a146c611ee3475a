"""Pretrained networks by name, from a hub of our own: what is read, what is cached, and each mistake in one line."""

import json

import numpy as np
import pytest

import models
from models import weights
from models.errors import UserError
from models.weights import tags
from models.weights.__main__ import main
from tests import hub_server, hub_tiny
from tests.golden import drawn
from tests.hub_tiny import NAME, WHERE, changed, equal, refused, repository

# -- what is read --------------------------------------------------------------------------------------------------


def test_a_network_its_weights_and_its_images(hub):
    model, variables, card = models.load(WHERE)
    assert model == hub_tiny.model()
    equal(variables, weights.from_arrays(model, hub_tiny.timm_arrays(model), "timm"))
    facts = card["preprocessing"]
    assert (facts["size"], facts["eval_crop"], facts["interpolation"]) == (64, 0.8, "bicubic")
    assert facts["mean"] == [0.5, 0.4, 0.3] and facts["std"] == [0.2, 0.25, 0.5] and facts["crop"] == "resize"
    assert card["labels"] == tuple("0123456789") and card["license"] == "apache-2.0"
    assert card["source"] == f"{WHERE}@{hub.commit(NAME)}"


def test_the_file_keeps_what_the_config_said(hub, tmp_path, capsys):
    file = tmp_path / "tiny.safetensors"
    assert main(["", "import", WHERE, f"--out={file}"]) == 0
    printed = capsys.readouterr().out
    assert "mobilenet_v2_035" in printed and "apache-2.0" in printed and "bicubic, 64 x 64" in printed
    of_hub, of_file = models.load(WHERE), models.load(str(file))
    assert of_file.model == of_hub.model and of_file.card == of_hub.card
    equal(of_file.variables, of_hub.variables)


def test_names_of_classes(hub):
    names = [f"n{i}" for i in range(10)]
    hub.repositories[NAME] = repository({**hub_tiny.CONFIG, "label_names": names})
    assert models.load(WHERE).card["labels"] == tuple(names)
    config = {**hub_tiny.CONFIG, "label_names": names, "label_descriptions": {"n3": "tench"}}
    hub.repositories[NAME] = repository(config)
    assert models.load(WHERE).card["labels"][2:4] == ("n2", "tench")


def test_a_squeezed_image_and_a_new_head_for_an_encoder(hub):
    arrays = {name: array for name, array in hub_tiny.timm_arrays(hub_tiny.model()).items() if "classifier" not in name}
    hub.repositories[NAME] = repository(changed(num_classes=0, crop_mode="squash", crop_pct=1.0), arrays)
    model, variables, card = models.load(WHERE, num_classes=3, width_multiplier=0.35)
    assert model.num_classes == 3 and variables["params"]["head"]["kernel"].shape == (1280, 3)
    assert card["head"] == "drawn" and card["labels"] == ("0", "1", "2") and card["preprocessing"]["crop"] == "whole"
    stem = variables["params"]["stem_conv"]["kernel"]
    np.testing.assert_array_equal(stem, arrays["conv_stem.weight"].transpose(2, 3, 1, 0))


def test_revisions_and_the_cache(hub):
    models.load(f"{WHERE}@v1")
    commit = hub.commit(NAME)
    hub.requests.clear()
    models.load(f"{WHERE}@{commit}")
    assert not [path for method, path, _ in hub.requests if method == "GET"]
    refused(f"{WHERE}@v2", "has no revision 'v2'")


def test_older_files_of_the_hub(hub):
    flat = {**hub_tiny.CONFIG["pretrained_cfg"], "architecture": "mobilenetv2_035"}
    files = repository(flat)
    hub.repositories[NAME] = {"config.json": files["config.json"], "pytorch_model.bin": files["model.safetensors"]}
    refused(WHERE, "pytorch_model.bin", "damaged")  # a safetensors file is no PyTorch file


def test_offline_from_the_cache_and_without(hub, monkeypatch):
    from huggingface_hub import constants

    expected = models.load(WHERE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    equal(models.load(WHERE).variables, expected.variables)
    assert not hub.requests
    refused("hf:timm/other.tiny", "not in the cache", "offline mode is on (HF_HUB_OFFLINE)")
    refused("https://127.0.0.1/BiT.npz", "not in the cache", "offline")


# -- mistakes, and a hub that fails --------------------------------------------------------------------------------


def test_unknown_names(hub):
    refused("hf:timm/resnet50.a1_in1", "no such repository", "private", "did you mean 'hf:timm/resnet50.a1_in1k'?")
    refused("hf:resnet50", "must be hf:ORGANIZATION/NAME")
    refused("torchvision:resnet50/IMAGENET1K_V3", "torchvision:resnet50/IMAGENET1K_V2")
    refused("https://127.0.0.1/resnet50.pth", ".npz")
    refused("https://127.0.0.1/a.npz?raw=1", "without a query")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("vit_base_patch16_reg4_gap_256", "register tokens"),
        ("vit_small_patch14_dinov2", "layer scale"),
        ("vit_base_patch16_clip_224", "normalization before the first block"),
        ("resnet50d", "another stem"),
        ("convnextv2_tiny", "global response normalization"),
        ("resnest50d", "attention in its blocks"),
        ("efficientnet_b0", "unknown architecture 'efficientnet_b0'"),
        ("vit_tiny_patch16_22", "did you mean 'vit_tiny_patch16_224'?"),
    ],
)
def test_architectures_that_are_not_ours(hub, architecture, reason):
    hub.repositories[NAME] = repository(changed(architecture=architecture))
    refused(WHERE, architecture, reason)
    assert not [path for _, path, _ in hub.requests if "safetensors" in path]  # nothing large is downloaded


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (b"{", "damaged, or not a .json file"),
        (b"[]", "no architecture"),
        (b'{"model_type": "bert"}', "no architecture"),
        (changed(num_classes=-1), "num_classes=-1"),
        (changed(num_classes="ten"), "num_classes=ten"),
        (changed(mean=[0.5, "x", 0.5]), "no number"),
        (changed(mean="grey"), "mean=grey"),
        (changed(std=[0.2, 0, 0.2]), "above 0"),
        (changed(mean=[0.5, 0.5]), "a mean of 2 and a std of 3 channels"),
        (changed(crop_pct=1.5), "crop share of 1.5"),
        (changed(crop_mode="border"), "crop_mode=border"),
        (changed(crop_mode="squash"), "crop_mode=squash with crop_pct=0.8"),
        (changed(interpolation="lanczos"), "'lanczos'; allowed: bilinear, bicubic"),
        (changed(input_size=[3, 64, 32]), "input_size=[3, 64, 32]"),
        (changed(input_size=[3, 10**9, 10**9]), "allowed: 1 to 4096"),
        (changed(label_offset=1), "label_offset=1"),
        (changed(model_args={"act_layer": "silu"}), "model_args that networks here do not have: act_layer"),
        ({**hub_tiny.CONFIG, "ablate": {"model": 1}}, "'ablate' names no network"),
        ({**hub_tiny.CONFIG, "ablate": {"model": "resnet51", "fields": {}}}, "unknown model 'resnet51'"),
    ],
)
def test_configs_that_cannot_be_used(hub, config, part):
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    hub.repositories[NAME] = {**repository(), "config.json": content}
    refused(WHERE, part)


def test_weights_of_another_size_or_another_network(hub):
    hub.repositories[NAME] = repository(changed(num_classes=12))
    refused(WHERE, "by the shape of 'head' alone", "! classifier.weight")
    arrays = hub_tiny.timm_arrays(models.create("resnet18", width=8, num_classes=10))
    hub.repositories[NAME] = repository(hub_tiny.CONFIG, arrays)
    refused(WHERE, "do not fit this MobileNetV2", "missing, for", "and 355 more")
    hub.repositories[NAME] = {**repository(), "model.safetensors": b"\0" * 100}
    refused(WHERE, "model.safetensors", "damaged")
    del hub.repositories[NAME]["model.safetensors"]
    refused(WHERE, "neither model.safetensors nor pytorch_model.bin")
    del hub.repositories[NAME]["config.json"]
    refused(WHERE, "no file config.json")


def test_private_and_gated(hub, monkeypatch):
    hub.private.add(NAME)
    refused(WHERE, "private", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert models.load(WHERE).card["labels"]
    hub.gated.add("timm/gated.tiny")
    hub.repositories["timm/gated.tiny"] = repository()
    refused("hf:timm/gated.tiny", "is gated", f"{hub.url}/timm/gated.tiny")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_hub_that_only_answers_errors(hub, status):
    hub.status = status
    refused(WHERE)


def test_no_network(hub, monkeypatch):
    from huggingface_hub import constants

    closed = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    template = closed + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    refused(WHERE, f"the hub ({closed}) cannot be reached")
    refused(f"{closed}/BiT.npz", "cannot be reached")


def test_licenses_that_forbid(hub, monkeypatch):
    hub.repositories[NAME] = repository(changed(license="cc-by-nc-4.0"))
    refused(WHERE, "the license cc-by-nc-4.0, which forbids some uses", "ABLATE_ACCEPT_LICENSE=cc-by-nc-4.0")
    assert not [path for _, path, _ in hub.requests if "safetensors" in path]
    monkeypatch.setenv("ABLATE_ACCEPT_LICENSE", "other,cc-by-nc-4.0")
    assert models.load(WHERE).card["license"] == "cc-by-nc-4.0"
    monkeypatch.delenv("ABLATE_ACCEPT_LICENSE")
    refused("torchvision:vit_h_14/IMAGENET1K_SWAG_E2E_V1", "cc-by-nc-4.0")


def test_an_interrupted_download_resumes(hub, monkeypatch):
    """Checks that huggingface_hub goes on where the connection ended; it keeps whole chunks, of 10 MB by default."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.cut["model.safetensors"] = 1000
    models.load(WHERE)
    ranges = [range for method, path, range in hub.requests if method == "GET" and "safetensors" in path]
    assert ranges == [None, "bytes=1000-"]


def test_content_that_is_not_what_the_hub_promised(hub):
    hub.wrong.add("model.safetensors")
    refused(WHERE, "model.safetensors is damaged: its SHA-256 begins with", "downloads it again")
    hub.wrong.clear()
    models.load(WHERE)


# -- the table and the command -------------------------------------------------------------------------------------


def test_every_tag_is_a_network_of_ours():
    table = tags.table()
    assert len(table) > 300 and len([name for name in table if name.startswith("torchvision:")]) > 40
    for tag in table.values():
        fields = {**tag.fields, "num_classes": tag.classes or 1000, "image_size": tag.preprocessing["size"]}
        models.create(tag.network, **fields)
        assert not tag.top1 or (50 < float(tag.top1) < 95 and tag.by in ("timm", "torchvision"))
    assert len(tags.imagenet()) == 1000 and tags.imagenet()[0] == "tench"


def test_architectures_agree_with_the_table():
    from models.weights import architectures

    for name, tag in tags.table().items():
        if name.startswith("hf:timm/"):
            network, fields = architectures.find(name.removeprefix("hf:timm/").partition(".")[0])
            assert (network, json.loads(json.dumps(fields))) == (tag.network, tag.fields)


def test_crops_of_torchvision_have_whole_pixels():
    for tag in tags.table().values():
        size, share = tag.preprocessing["size"], tag.preprocessing["eval_crop"]
        if tag.name.startswith("torchvision:resnet50/IMAGENET1K_V2"):
            assert int(size / share) == 232


def test_list(capsys):
    assert main(["", "list", "resnet50.a1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["hf:timm/resnet50.a1_in1k", "hf:timm/resnet50.a1h_in1k"]
    assert main(["", "list", "torchvision:resnet50*"]) == 0
    _, second = capsys.readouterr().out.splitlines()
    assert second.split("  ") == [
        "torchvision:resnet50/IMAGENET1K_V2",
        "resnet50",
        "license not stated",
        "top-1 80.86% (torchvision)",
    ]
    assert main(["", "list", "nosuchnetwork"]) == 2
    assert "unknown weights 'nosuchnetwork'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["import", WHERE], "--out is missing"),
        (["import", WHERE, "--out=a.npz"], "must end in .safetensors"),
        (["import", WHERE, "--out=a.safetensors", "--from=timm"], "--from is for files"),
        (["import", WHERE, "--out=a.safetensors", "--model=resnet50"], "--model is for files"),
        (["import", WHERE, "--out=a.safetensors", f"--as={WHERE}"], "--as is for files"),
        (["import", "a.bin", "--out=a.safetensors", "--as=resnet50"], "unknown weights 'resnet50'"),
        (
            ["import", "a.bin", "--out=a.safetensors", "--as=hf:timm/resnet50.a1_in2k"],
            "did you mean 'hf:timm/resnet50.a1",
        ),
        (["import", "a.bin", "--out=a.safetensors", "--as=hf:timm/resnet50.a1_in1k"], "a.bin"),
        (["import", "a.safetensors", "--out=a.safetensors", "--as=hf:timm/resnet50.a1_in1k"], "is the file to read"),
        (["list", "a", "b"], "one pattern"),
    ],
)
def test_mistakes_of_the_command(hub, capsys, arguments, part):
    assert main(["", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_metadata_of_a_file_that_cannot_be_used(tmp_path):
    file, network = tmp_path / "a.safetensors", hub_tiny.model()
    good = {"model": "mobilenet_v2_035", "fields": {"num_classes": 10, "image_size": 64}}
    facts = {"size": 64, "mean": [0.5], "std": [0.5], "crop": "resize", "eval_crop": 1.0, "interpolation": "bilinear"}
    for bad, part in (
        ({"preprocessing": 3}, "no dictionary"),
        ({"preprocessing": {**facts, "mean": 0.5}}, "no list"),
        ({"preprocessing": {"size": 64}}, "has no 'mean'"),
        ({"labels": (1, 2)}, "labels are no texts"),
        ({"license": 5}, "license is no text"),
    ):
        weights.save(file, network, drawn.variables(network), {**good, **bad})
        with pytest.raises(UserError, match=part):
            models.load(str(file))

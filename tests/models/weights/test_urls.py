"""Pretrained networks by URL: .npz files of BiT and of JAX's Vision Transformers, and torchvision's files."""

import hashlib

import numpy as np
import pytest
import safetensors.numpy

import models
from models import weights
from models.errors import UserError
from models.weights import tags
from tests import hub_tiny
from tests.golden import drawn
from tests.hub_tiny import equal, refused

BIT = {"stage_sizes": (1, 1, 1, 1), "width": 64, "num_classes": 7}
VIT = {"width": 32, "depth": 2, "heads": 4, "mlp_width": 48, "patch_size": 8, "image_size": 32, "num_classes": 5}


def served(hub, name, arrays):
    hub.files[f"/{name}"] = hub_tiny.npz(arrays)
    return f"{hub.url}/{name}"


def test_bit_by_url(hub):
    network = models.create("resnetv2_50x1_bit", **BIT)
    variables = drawn.variables(network)
    url = served(hub, "BiT.npz", weights.to_arrays(network, variables, "bit"))
    loaded = models.load(url)
    assert loaded.model == network and loaded.card["source"] == url
    equal(loaded.variables, variables)
    hub.requests.clear()
    models.load(url)
    assert not hub.requests  # cached


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_vision_transformers_of_jax_by_url(hub, pool):
    network = models.create("vit_base_patch16", **VIT, pool=pool)
    variables = drawn.variables(network)
    arrays = weights.to_arrays(network, variables, "jax")
    name = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
    assert arrays[name].shape == (32, 4, 8)
    loaded = models.load(served(hub, "vit.npz", arrays))
    assert loaded.model == network
    equal(loaded.variables, variables)
    equal(models.load(served(hub, "big.npz", big_vision(arrays))).variables, variables)
    first = {**arrays, "pre_logits/kernel": np.ones((32, 32)), "pre_logits/bias": np.ones(32)}
    assert models.load(served(hub, "first.npz", first)).card["head"] == "drawn"


def big_vision(arrays):
    """Returns the arrays as big_vision stores them, with all blocks in one array."""
    names = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0"}
    names["MultiHeadDotProductAttention_1"] = "MultiHeadDotProductAttention_0"
    result, blocks = {}, {}
    for name, array in arrays.items():
        name = name.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")
        if name.startswith("Transformer/encoderblock_"):
            _, _, layer, *rest = name.split("/")
            blocks.setdefault("/".join((names.get(layer, layer), *rest)), []).append(array)
        else:
            result[f"params/{name}"] = array
    return result | {f"params/Transformer/encoderblock/{name}": np.stack(rows) for name, rows in blocks.items()}


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"a": np.ones(3)}, "neither of BiT nor of a Vision Transformer"),
        ({"params/embedding/kernel": np.ones((8, 8, 3, 4))}, "no learned positions"),
        ({"params/embedding/kernel": np.ones(3), "params/MAPHead_0/probe": np.ones(3)}, "pools by attention"),
        ({"embedding/kernel": np.ones(3), "conv_root/kernel": np.ones(3)}, "a residual network as its stem"),
    ],
)
def test_other_npz_files(hub, arrays, part):
    refused(served(hub, "other.npz", arrays), part)


def test_damaged_and_interrupted_files_by_url(hub):
    network = models.create("resnetv2_50x1_bit", **BIT)
    arrays = weights.to_arrays(network, drawn.variables(network), "bit")
    url = served(hub, "BiT.npz", arrays)
    hub.cut["BiT.npz"] = 5000
    refused(url, "broken", "the same command resumes it")
    hub.requests.clear()
    models.load(url)
    assert [range for _, _, range in hub.requests] == ["bytes=5000-"]
    hub.files["/damaged.npz"] = hub.files["/BiT.npz"][:-100]
    refused(f"{hub.url}/damaged.npz", "damaged")
    refused(f"{hub.url}/absent.npz", "404")


def test_torchvision_by_name(hub, monkeypatch):
    """The table's file is served from here; a content with another checksum is refused."""
    network = models.create("mobilenet_v2")
    arrays = hub_tiny.timm_arrays(network, "torchvision")
    content = safetensors.numpy.save(arrays)  # only PyTorch writes .pth
    name = "torchvision:mobilenet_v2/IMAGENET1K_V1"
    digest = hashlib.sha256(content).hexdigest()[:8]
    for wrong in (True, False):
        file = f"mobilenet_v2-{'0' * 8 if wrong else digest}.safetensors"
        hub.files[f"/{file}"] = content
        row = tags.table()[name]._replace(file=f"{hub.url}/{file}")
        monkeypatch.setitem(tags.table(), name, row)
        if wrong:
            with pytest.raises(UserError, match="the content is wrong: its SHA-256 begins with"):
                models.load(name)
    model, variables, card = models.load(name)
    assert model == network and card["preprocessing"]["eval_crop"] == 224 / 256
    equal(variables, weights.from_arrays(network, arrays, "torchvision"))

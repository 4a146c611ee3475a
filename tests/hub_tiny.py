"""Tiny networks in the forms of the hub, torchvision and JAX, and the state of a served hub for one test."""

import io
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import models
from models import weights
from models.errors import UserError
from tests.golden import drawn

NAME = "timm/mobilenetv2_035.tiny"
WHERE = f"hf:{NAME}"
CLASSES = 10
CONFIG = {
    "architecture": "mobilenetv2_035",
    "num_classes": CLASSES,
    "num_features": 1280,
    "pretrained_cfg": {
        "tag": "tiny",
        "input_size": [3, 64, 64],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.5],
        "num_classes": CLASSES,
        "license": "apache-2.0",
    },
}


def model(**fields):
    return models.create("mobilenet_v2_035", **{"num_classes": CLASSES, "image_size": 64, **fields})


def timm_arrays(network, layout="timm"):
    """Returns drawn weights with the names and shapes of a library."""
    shapes = weights.to_arrays(network, drawn.zeros(network), layout)
    return {name: drawn.torch_weight(name, array.shape) for name, array in shapes.items()}


def repository(config=CONFIG, arrays=None):
    """Returns the files of a repository."""
    arrays = timm_arrays(model()) if arrays is None else arrays
    return {"config.json": json.dumps(config).encode(), "model.safetensors": safetensors.numpy.save(arrays)}


def changed(**changes):
    """Returns CONFIG with keys of pretrained_cfg, or of the top level where they are there, changed."""
    top = {name: value for name, value in changes.items() if name in CONFIG or name == "model_args"}
    below = {name: value for name, value in changes.items() if name not in top}
    return {**CONFIG, **top, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **below}}


def npz(arrays):
    """Returns the bytes of an .npz file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def emptied(server, monkeypatch, folder):
    """Returns the hub with the repository NAME alone; huggingface_hub uses it, with caches in `folder` and no token."""
    from huggingface_hub import constants

    url = server.url
    server.__init__()
    server.url = url
    server.repositories[NAME] = repository()
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hf"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_STORED_TOKENS_PATH": str(folder / "tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts of huggingface_hub
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "ABLATE_ACCEPT_LICENSE"):
        monkeypatch.delenv(name, raising=False)
    return server


def refused(where, *parts, **options):
    """Loads, and checks that the error is one line that has these parts."""
    with pytest.raises(UserError) as error:
        models.load(where, **options)
    text = str(error.value)
    assert "\n" not in text
    for part in (where.partition("@")[0], *parts):
        assert part in text, text


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

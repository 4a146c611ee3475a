"""A trained ImageNet network on photographs, against what timm says on PyTorch (golden/make_imagenet_sample.py)."""

import zlib
from typing import Any, NamedTuple

import numpy as np
import pytest

import models
from models import weights
from models.layers.init import jit_once
from models.weights.__main__ import main
from tests.golden import FOLDER
from tests.golden.make_imagenet_sample import EVERY
from tests.tiny import SHARED
from train.data.load import load
from train.data.options import Options
from train.data.source import Source

WEIGHTS = SHARED / "weights/tf_efficientnet_lite0.safetensors"
pytestmark = pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs ../shared")
NAME = "hf:timm/tf_efficientnet_lite0.in1k"
BATCH = 10
# Preprocessing of timm's network, as keys of the section `data`
PREPROCESSING = {"image_size": 224, "crop": "resize", "eval_crop": 0.875, "interpolation": "bicubic", "exif": "ignore"}


class Imported(NamedTuple):
    """The network and its variables, and the photographs."""

    model: Any
    variables: dict
    photographs: Source


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns the network as a user has it, by the command line; the table knows how its images are prepared."""
    file = str(tmp_path_factory.mktemp("weights") / "lite0.safetensors")
    assert main(["weights", "import", f"--as={NAME}", str(WEIGHTS), f"--out={file}"]) == 0
    model, _, card = models.load(file)
    assert model == models.create("efficientnet_lite0") and card["source"] == NAME
    facts = {**card["preprocessing"], "image_size": card["preprocessing"]["size"], "exif": "ignore"}  # for the golden
    assert {name: facts[name] for name in PREPROCESSING} == PREPROCESSING and set(facts["mean"]) == {0.5}
    options = Options("tfds:imagenet_sample", dir=str(SHARED / "tfds"), test_split="validation", **PREPROCESSING)
    return Imported(model, weights.load(file, model), load(options, "test"))


def compared(imported, indices):
    """Returns whether pixels and class are timm's for each photograph, and the largest error of all logits."""
    golden = np.load(FOLDER / "imagenet_sample.npz")
    run = jit_once(lambda variables, pixels: imported.model.apply(variables, (pixels / 255 - 0.5) / 0.5))
    pixels, top1, errors = [], [], []
    for start in range(0, len(indices), BATCH):
        part = indices[start : start + BATCH]
        batch = np.stack([imported.photographs.example(i)["image"] for i in part])
        pixels += [zlib.crc32(image.tobytes()) == golden["pixels"][i] for image, i in zip(batch, part, strict=True)]
        logits = run(imported.variables, batch.astype(np.float32))
        top1 += list(np.asarray(logits.argmax(1)) == golden["top1"][part])
        errors.append(np.abs(logits[:, ::EVERY] - golden["logits"][part]).max())
    return np.asarray(pixels), np.asarray(top1), max(errors)


@pytest.mark.parametrize(
    "indices", [range(0, 250, 13), pytest.param(range(250), marks=pytest.mark.full)], ids=["some", "all"]
)
def test_photographs_are_what_timm_says(imported, indices):
    """Checks that pixels are equal to the bit, logits of up to 15 within 1e-4, and all classes but one at most."""
    pixels, top1, error = compared(imported, list(indices))
    assert pixels.all() and top1.sum() >= len(top1) - 1 and error < 1e-4


def test_symmetric_padding_would_be_noticed(imported):
    """Checks that the comparison fails for the padding of other networks, whose arrays are the same."""
    symmetric = imported._replace(model=imported.model.clone(padding="symmetric"))
    pixels, _, error = compared(symmetric, list(range(BATCH)))
    assert pixels.all() and error > 0.1

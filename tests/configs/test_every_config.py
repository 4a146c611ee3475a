"""Tests that every config builds a run on synthetic data of the right form, and documents its command and cost."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from configs import cifar10, digits, folder, imagenet
from experiments import study
from tests.tiers import keep_first
from train.run import build_run
from train.setup.config import load

NAMES = sorted(path.stem for path in Path(digits.__file__).parent.glob("*.py") if path.stem not in ("__init__", "base"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images: 3 classes, 10 images each."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("ash", "beech", "cedar"):
        (root / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


def small(config, images):
    """Returns the config with the synthetic images as its data; all else stays."""
    config.data.source, config.data.train_split, config.data.test_split = f"folder:{images}", "train", "test"
    config.data.image_size, config.data.workers = 32, 0
    config.data.crop = "random_resized" if config.data.crop == "none" else config.data.crop
    config.batch_size, config.eval_batch_size, config.devices, config.steps_per_call = 8, 8, 1, 1
    config.model.width = 4
    return config


@pytest.mark.parametrize(
    "config",
    keep_first(
        5,
        [
            cifar10.get_config(),
            cifar10.get_config("speedrun"),
            imagenet.get_config("recipe=modern"),
            imagenet.get_config("recipe=a3"),
            folder.get_config(),
            imagenet.get_config("recipe=deit"),
            cifar10.get_config("recipe=brief"),
            cifar10.get_config("recipe=short"),
            cifar10.get_config("resnet56,norm=group"),
            imagenet.get_config(),
        ],
    ),
    ids=[
        "cifar10",
        "speedrun",
        "imagenet-modern",
        "imagenet-a3",
        "folder",
        "imagenet-deit",
        "brief",
        "short",
        "cifar10-group",
        "imagenet-goyal",
    ],
)
def test_every_key_is_known_and_read(config, images):
    run = build_run(small(config, images))
    assert run.total > 0


@pytest.mark.parametrize(
    ("recipe", "field"), [("goyal", "zero_gamma"), ("modern", "stochastic_depth"), ("a1", "stochastic_depth")]
)
def test_recipes_for_imagenet_set_a_field_of_every_network_that_has_it(recipe, field):
    for name in models.list_models():
        if name.startswith(("transformer", "plain")):  # plain networks have the fields, but no shortcuts to drop
            continue
        fields = imagenet.get_config(f"{name},recipe={recipe}").model.to_dict()
        assert (field in fields) == (field in models.fields(name)), name
        assert (fields["act"] == "relu6") == (models.create(name).act == "relu6"), name


def test_the_recipes_are_those_of_the_papers():
    c = cifar10.get_config()
    assert (c.duration, c.batch_size) == ("64000 steps", 128)
    assert (c.optimizer.learning_rate, c.optimizer.weight_decay) == (0.1, 1e-4)
    assert c.optimizer.schedule == "step(0.1, '32000 steps', '48000 steps')" and c.data.augment == "crop(4)|flip"
    c = imagenet.get_config("batch=8192")
    assert c.optimizer.learning_rate == pytest.approx(3.2)
    assert c.optimizer.warmup_from * c.optimizer.learning_rate == pytest.approx(0.1)


def test_procedures_are_those_of_resnet_strikes_back():
    """Checks the values of table 2 of arXiv 2110.00476."""
    a1, a2, a3 = (imagenet.get_config(f"resnet50,recipe=a{number}") for number in (1, 2, 3))
    for c, epochs, rate, decay in ((a1, 600, 5e-3, 0.01), (a2, 300, 5e-3, 0.02), (a3, 100, 8e-3, 0.02)):
        assert (c.duration, c.batch_size, c.optimizer.warmup) == (f"{epochs} epochs", 2048, "5 epochs")
        assert (c.optimizer.name, c.optimizer.schedule) == ("lamb", "cosine")
        assert (c.optimizer.learning_rate, c.optimizer.weight_decay) == (rate, decay)
        assert (c.data.image_size, c.data.eval_crop, c.task.name) == (224, 0.95, "classify(loss=bce)")
    assert [c.task.label_smoothing for c in (a1, a2, a3)] == [0.1, 0.0, 0.0]
    assert [c.data.repeats for c in (a1, a2, a3)] == [3, 3, 1]
    assert [c.model.get("stochastic_depth", 0) for c in (a1, a2, a3)] == [0.05, 0.05, 0]
    assert [c.data.resolutions for c in (a1, a2, a3)] == ["", "", "160@0%"]
    assert a1.data.augment == "flip|randaugment_timm(7, 0.5)|mixup_cutmix(0.2, 1.0)"
    assert a3.data.augment == "flip|randaugment_timm(6, 0.5)|mixup_cutmix(0.1, 1.0)"
    assert imagenet.get_config("recipe=a2,batch=512").optimizer.learning_rate == pytest.approx(2.5e-3)


def test_images_grow_to_the_size_of_the_study():
    c = load("configs/study.py:cifar,epochs=3")
    assert (c.duration, c.batch_size, c.data.source) == ("3 epochs", 128, "tfds:cifar10_jpeg")
    assert (c.data.resolutions, c.data.augment) == ("16@0%|24@40%|32@75%", "crop(2, reflect)|alternate_flip")
    c = load("configs/study.py:cifar,size=64")
    assert (c.data.resolutions, c.data.augment) == ("32@0%|48@40%|64@75%", "crop(4, reflect)|alternate_flip")
    assert load("configs/study.py:cifar10,size=64").data.resolutions == ""


@pytest.mark.parametrize(
    ("spec", "name", "labels"),
    [
        (
            "initialization.py:plain20,init=xavier_normal",
            "initialization",
            {"network": "plain", "depth": 20, "init": "Xavier", "at": "end"},
        ),
        ("pruning.py:VGG-11,stage=dense", "compression", {"network": "VGG-11", "stage": "dense"}),
        ("pruning.py:LeNet-5,stage=share", "compression", {"network": "LeNet-5", "stage": "shared"}),
    ],
)
def test_a_config_is_one_trial_of_its_study(spec, name, labels):
    (trial,) = (
        trial
        for trial in study.module(name).trials("digits", range(1))
        if {**labels, "seed": 0}.items() <= trial.labels.items()
    )
    assert load(f"configs/{spec}").to_dict() == trial.config.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_name_the_command_and_the_cost(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in text
    assert "Expected" in text or "Published" in text or name == "folder"
    assert "Cost" in text or name == "digits"


def test_bad_recipe():
    with pytest.raises(ValueError, match="unknown recipe 'modrn'; allowed: goyal, modern, deit, a1, a2, a3"):
        imagenet.get_config("recipe=modrn")
    with pytest.raises(ValueError, match="unknown recipe 'breif'; allowed: he, brief, short"):
        cifar10.get_config("recipe=breif")
    with pytest.raises(ValueError, match="recipe=brief does not apply to speedrun"):
        cifar10.get_config("speedrun,recipe=brief")

"""The config of transfer learning."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import models
from configs import transfer as config
from tests import tfds_sample, tiny
from tests.tiers import keep_first
from tests.train.data.test_transfer_sets import caltech101, caltech_birds2011, cars196, picture, thing
from train import loop, restore
from train.run import build_run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.trained(tmp_path_factory.mktemp("transfer") / "run", duration="4 steps")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    return tiny.resnet18_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of ten images of each of three classes, twice as wide as high."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "gnu"):
        (root / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (16, 32, 3), np.uint8)).save(root / name / f"{i}.png")
    (root / "cat" / "notes.txt").write_text("of cats")
    return root


# -- the config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "steps", "mixup"),
    [
        (1000, (100, 200, 300, 400, 500), False),
        (19_999, (100, 200, 300, 400, 500), False),
        (20_000, (500, 3000, 6000, 9000, 10_000), True),
        (499_999, (500, 3000, 6000, 9000, 10_000), True),
        (500_000, (500, 6000, 12_000, 18_000, 20_000), True),
    ],
)
def test_the_bit_rule_is_the_papers(examples, steps, mixup):
    c = config.get_config("model=resnet50,to=caltech101")
    config.bit(c, examples, 0)
    warmup, *decays, total = steps
    assert c.optimizer.warmup == f"{warmup} steps" and c.duration == f"{total} steps"
    assert c.optimizer.schedule == "step(0.1, " + ", ".join(f"'{step} steps'" for step in decays) + ")"
    assert ("mixup(0.1)" in c.data.augment) == mixup
    assert (c.batch_size, c.optimizer.learning_rate, c.optimizer.weight_decay) == (512, 0.003, 0.0)


@pytest.mark.parametrize(("size", "image", "share"), [(32, 128, 0.8), (95, 128, 0.8), (0, 480, 0.9375)])
def test_the_bit_rules_resolution(size, image, share):
    c = config.get_config("model=resnet50,to=caltech101")
    config.bit(c, 1000, size)
    assert c.data.image_size == image and c.data.crop == "whole"
    assert c.data.crop_scale == pytest.approx((share**2, share**2))


def test_a_runs_network_and_normalization_are_taken_over(source):
    c = config.get_config(f"from={source},to=digits,labels=5")
    assert c.model.to_dict() == {**tiny.config().model.to_dict()} and c.data.mean == (0.5,)
    assert c.data.select == "per_class(5, seed=0)" and c.data.image_size == 0 and c.data.channels == 0
    run = build_run(c)
    assert len(run.feed.train) == 50 and run.config["optimizer"]["learning_rate"] == 0.01


def test_a_folder_of_ones_own_is_a_target(source, photos, tmp_path):
    c = config.get_config(f"from={source},to=folder:{photos}")
    assert (c.data.source, c.data.channels, c.data.image_size, c.data.crop) == (
        f"folder:{photos}", 1, 8, "random_resized",
    )  # fmt: skip
    assert c.batch_size == 32 and c.data.mean == (0.5,)
    c.duration, c.devices = "1 steps", 1
    run = build_run(c)
    assert run.feed.classes == ("cat", "dog", "gnu") and run.feed.train_count == 24 and run.feed.test_size() == 6
    assert run.images.image_shape == (8, 8, 1) and run.state.params["head"]["kernel"].shape[1] == 3
    start = restore.load_network(source)[1].params["stage1"]["block0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(run.state.params["stage1"]["block0"]["conv1"]["kernel"], start)
    assert config.target_of(f"folder:{photos}")[3:6] == (24, 3, 0)
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "test").symlink_to(photos)
    assert config.target_of(f"folder:{tmp_path}")[3:5] == (30, 3)


def test_other_sources_are_targets(source):
    c = config.get_config(f"from={source},to=my.py:Source(x=1),rule=bit,examples=20000")
    assert c.data.source == "my.py:Source(x=1)" and c.duration == "10000 steps" and c.data.channels == 1
    assert config.get_config("model=resnet8,to=arrays:x.npz").data.channels == 0
    assert config.target_of("tfds:cifar10") == config.TARGETS["cifar10"]


def test_freezing_decay_and_unfreezing(source):
    c = config.get_config(f"from={source},to=digits,freeze=2")
    assert c.model.norm == "frozen_batch"
    stages = [f"(stage|transition){i}/.*" for i in (1, 2, 3)]
    assert c.optimizer.groups == (("stem.*", 0.0), (stages[0], 0.0), (stages[1], 0.0), (stages[2], 1.0), (".*", 1.0))
    c = config.get_config(f"from={source},to=digits,decay=0.5,unfreeze=10%")
    assert c.optimizer.groups == (
        ("stem.*", 0.0625, "40%"),
        (stages[0], 0.125, "30%"),
        (stages[1], 0.25, "20%"),
        (stages[2], 0.5, "10%"),
        (".*", 1.0),
    )
    assert build_run(c).total > 0
    c = config.get_config(f"from={source},to=digits,unfreeze=2 epochs")
    assert c.optimizer.groups[3] == (stages[2], 1.0, "2 epochs")
    assert config.get_config(f"from={source},to=digits,decay=0.5").model.norm == "batch"
    c = config.get_config(f"from={source},to=digits,freeze=all")
    assert c.optimizer.groups == (("head/.*", 1.0), (".*", 0.0)) and build_run(c).total > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("to=digits", "set from=RUN .* or model=NAME to train from scratch"),
        ("from=/nowhere,to=digits", "from=/nowhere: No such file or directory"),
        ("model=resnet8,to=digit", "unknown to 'digit'; allowed: digits, cifar10"),
        ("model=resnet8,to=digit", "FILE.py:NAME$"),
        ("model=resnet8,to=folder:/nowhere", "to=folder:/nowhere: there is no such folder"),
        ("model=resnet8,to=folder:tests/golden", "to=folder:tests/golden: there are no images in its folders"),
        ("model=resnet8,to=text:x", "unknown to 'text:x'"),
        ("model=resnet8,to=arrays:x.npz,rule=bit", "which to=arrays:x.npz does not determine; set examples"),
        ("model=resnet8,to=digits,rule=big", "unknown rule 'big'; allowed: finetune, bit"),
        ("model=resnet8,to=digits,freeze=4", "freeze=4 must be 0 to 3, or all"),
        ("model=vit_small_patch16,to=cifar10,freeze=1", "need a network of stages, unlike vit_small_patch16"),
        ("model=resnet8,to=digits,freeze=all,decay=0.5", "freeze=all leaves no stage for unfreeze and decay"),
        ("model=resnet8,to=digits,rule=bit,steps=9", "steps=9: rule=bit sets it"),
        ("model=resnet8,to=digits,decay=2.0", r"decay=2.0 must be in \(0, 1\]"),
        ("model=resnet8,to=digits,unfreeze=soon", "unfreeze=soon: must be a duration"),
    ],
)
def test_mistakes_are_one_line(text, message):
    with pytest.raises(ValueError, match=message):
        config.get_config(text)


def test_a_model_that_differs_from_the_runs_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match=f"from={source} is a resnet8, not model=vgg11"):
        config.get_config(f"from={source},model=vgg11,to=digits")
    (tmp_path / "a.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="it does not record its network"):
        config.get_config(f"from={tmp_path / 'a.safetensors'},to=digits")


@pytest.mark.parametrize(
    ("name", "stages"),
    keep_first(
        4,
        [
            ("vgg11_bn", 5),
            ("densenet121", 4),
            ("densenet40_k12", 3),
            ("mobilenet_v2", 7),
            ("mobilenet_v1", 5),
            ("efficientnet_lite0", 7),
            ("swin_t", 4),
            ("convnext_tiny", 4),
            ("resnetv2_50x1_bit", 4),
            ("wide_resnet28_10", 3),
            ("resnet50", 4),
            ("preresnet110", 3),
        ],
    ),
)
def test_every_stage_of_a_family_has_its_group(name, stages):
    import jax

    from train.optim.groups import assign
    from train.optim.parameters import parameter_names

    c = config.get_config(f"model={name},to=caltech101,freeze=1,decay=0.5")
    model = models.create(name)
    names = parameter_names(jax.eval_shape(model.init, jax.random.key(0), *model.example())["params"])
    factors, _ = assign(names, c.optimizer.groups, lambda text: 0)  # says where an expression matches nothing
    for path, factor in factors.items():
        if path.startswith(("stem", "stage1/", "transition1/")):
            assert factor == 0, path
        elif path.startswith("stage"):
            assert factor == 0.5 ** (stages + 1 - int(path[5])), path
        elif not path.startswith("transition"):
            assert factor == 1, path


def voc(i):
    objects = [thing("dog"), thing("cat", difficult=True)] if i % 2 else [thing("car")]
    return {
        "image": picture(i),
        "image/filename": f"{i:06}.jpg",
        "objects": objects,
        "labels": sorted({one["label"] for one in objects}),
        "labels_no_difficult": sorted({one["label"] for one in objects if not one["is_difficult"]}),
    }


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Writes small synthetic versions of the five data sets of the published table."""
    root = tmp_path_factory.mktemp("sets")
    for name, make in (("caltech101", caltech101), ("caltech_birds2011", caltech_birds2011), ("cars196", cars196)):
        tfds_sample.write_as(root, name, {split: [make(i) for i in range(8)] for split in ("train", "test")})
    tfds_sample.write_as(
        root, "voc/2007", {split: [voc(i) for i in range(8)] for split in ("train", "validation", "test")}
    )
    for split in ("train", "test"):
        for name in ("707-320", "A340"):
            (root / "aircraft" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 255, (40, 60, 3), np.uint8)
                Image.fromarray(pixels).save(root / "aircraft" / split / name / f"{i}.jpg")
    return root


@pytest.mark.full
@pytest.mark.parametrize("rule", ["finetune", "bit"])
@pytest.mark.parametrize(
    ("name", "classes"), [("caltech101", 102), ("voc2007", 20), ("cub200", 200), ("cars", 196), ("aircraft", 2)]
)
def test_the_published_data_sets_fine_tune(sets, weights_file, tmp_path, name, classes, rule):
    c = config.get_config(f"from={weights_file},to={name},rule={rule},batch=8")
    c.data.dir = str(sets)
    if name == "aircraft":
        c.data.source = f"folder:{sets / 'aircraft'}"
    assert c.data.image_size == (224 if rule == "finetune" else 480)
    c.data.image_size, c.duration, c.eval_batch_size = 32, "2 steps", 8
    c.optimizer.warmup, c.optimizer.schedule, c.devices = "0 steps", "constant", 1
    if rule == "bit" and name != "caltech101":
        assert build_run(c).state.params["head"]["kernel"].shape[1] == classes
        return
    c.hooks = c.hooks.replace("figures|", "").replace("figures", "")
    summary = loop.train(c, tmp_path / "run")
    assert summary["steps"] == 2
    assert ("mean_average_precision" in summary) == (name == "voc2007")
    assert ("mean_class_accuracy" in summary) == (name != "voc2007")


def test_the_command_of_features_and_classifiers(source, tmp_path):
    command = [
        sys.executable,
        "-m",
        "train.probe",
        f"--config=configs/transfer.py:from={source},to=digits",
        "--endpoint=stage2,pre_logits",
        "--classifiers=logistic,knn",
        f"--cache={tmp_path}",
        f"--out={tmp_path / 'found.json'}",
    ]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [(row["endpoint"], row["classifier"], row["features"]) for row in rows] == [
        ("stage2", "logistic", 8),
        ("stage2", "knn", 8),
        ("pre_logits", "logistic", 16),
        ("pre_logits", "knn", 16),
    ]
    assert all(row["accuracy"] > 0.5 for row in rows) and f"{rows[0]['accuracy']:.2%}" in done.stdout
    wrong = subprocess.run(
        [*command[:4], "--endpoint=stag2"], cwd=tiny.ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("error: unknown endpoint 'stag2'; did you mean 'stage2'? allowed: stem, stage1")


# -- published weights ---------------------------------------------------------------------------------------------


def test_from_weights_by_name():
    """Checks that the table tells the network and its images, without a download."""
    c = config.get_config("from=hf:timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k@main,to=caltech101")
    assert c.model.to_dict() == {"name": "vit_tiny_patch16"} and c.data.image_size == 384
    assert c.data.mean == (0.5,) * 3 and c.data.std == (0.5,) * 3 and c.data.interpolation == "bicubic"
    assert c.init_from == "hf:timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k@main"
    c = config.get_config("from=torchvision:resnet50/IMAGENET1K_V2,to=caltech101,freeze=2")
    assert c.model.norm == "frozen_batch" and c.data.interpolation == "bilinear"
    c = config.get_config("from=hf:timm/resnet50_gn.a1h_in1k,to=caltech101,freeze=2")
    assert c.model.norm == "group:32"
    with pytest.raises(ValueError, match="tags.csv does not have these weights; import them"):
        config.get_config("from=hf:me/digits,to=caltech101")


def test_from_a_file_with_a_preprocessing(tmp_path):
    from models import weights
    from models.weights import preprocessing

    model, file = models.create("resnet18", width=8, num_classes=3), tmp_path / "r.safetensors"
    facts = preprocessing.create(96, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], interpolation="bicubic")
    fields = {"width": 8, "num_classes": 3, "image_size": 96}
    variables = models.initialize(model, jax.random.key(0), model.example())
    weights.save(file, model, variables, {"model": "resnet18", "fields": fields, "preprocessing": facts})
    c = config.get_config(f"from={file},to=caltech101")
    assert c.model.to_dict() == {"name": "resnet18", "width": 8} and c.data.image_size == 96
    assert c.data.mean == (0.1, 0.2, 0.3) and c.data.std == (0.4, 0.5, 0.6) and c.data.interpolation == "bicubic"

"""The task distill: losses of PyTorch, the teacher as a constant of training, and teachers that do not fit."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import models
from models import weights
from models.errors import UserError
from models.layers.endpoint import Endpoint
from tests import tiny
from tests.golden import drawn
from tests.golden.make_distill import CLASSES, IMAGES, MAPS, TEMPERATURE, WEIGHT
from tests.tiers import ROOT, keep_first
from tests.train.test_loop import final
from train import loop, tasks
from train.run import build_run
from train.setup import teacher as teachers
from train.storage import paths
from train.trained import load


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Returns a run whose images have another normalization than `config` has."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return tiny.trained(folder, duration="4 steps", data__mean=(0.3,), data__std=(0.2,), model__width=8)


def config(teacher, *arguments, **changes):
    text = ", ".join((f"teacher='{teacher}'", *arguments))
    return tiny.config(task__name=f"distill({text})", steps_per_call=1, model__norm="group:2", **changes)


def step(config):
    """Returns the parameters and the metrics after one step."""
    run = build_run(config)
    state, metrics = run.train_call(run.parallel.place(run.state), run.data, next(run.feed.calls(0, 1))[1])
    return run.parallel.fetch(state).params, {name: float(np.sum(x) / np.sum(n)) for name, (x, n) in metrics.items()}


class Drawn(nn.Module):
    """A network whose logits and map are parameters."""

    @nn.compact
    def __call__(self, images, train=False):
        self.param("map", nn.initializers.zeros, MAPS["ours"])
        Endpoint("map")(self.get_variable("params", "map"))
        return self.param("logits", nn.initializers.zeros, (IMAGES, CLASSES))


def create(text, model):
    return tasks.create(ml_collections.ConfigDict({"name": text, "label_smoothing": 0.0}), model, CLASSES)


def drawn_loss(text, **extra):
    """Returns the loss and the metrics of drawn logits, with a padding example besides."""
    logits = {name: 4 * drawn.images(name, (IMAGES, CLASSES)) for name in ("student", "teacher")}
    task = create(text, Drawn())
    task._sizes = {"map": MAPS["ours"][1:3]}
    batch = {"image": jnp.zeros((IMAGES, 4, 4, 1)), "label": jnp.arange(IMAGES), "mask": jnp.ones(IMAGES)}
    batch |= {"teacher_logits": jnp.asarray(logits["teacher"]), **extra}
    params = {"logits": logits["student"], "map": drawn.images("ours", MAPS["ours"])}
    return task.loss(params, {}, {}, batch, jax.random.key(0), 0)


def test_losses_are_those_of_pytorch():
    golden = np.load(ROOT / "golden" / "distill.npz")
    for kind, argument in (("soft", f"temperature={TEMPERATURE}"), ("hard", "hard=True")):
        loss, (metrics, _, _) = drawn_loss(f"distill(teacher='x', weight={WEIGHT}, {argument})")
        np.testing.assert_allclose(loss, golden[kind], rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], golden[kind], rtol=1e-5)
        assert set(metrics) == {"loss", "accuracy", "divergence", "agreement"}
    theirs = drawn.images("theirs", MAPS["theirs"])
    energy = (theirs**2).mean(-1).reshape(IMAGES, -1)
    attention = {"map": jnp.asarray(energy / np.linalg.norm(energy, axis=1, keepdims=True))}
    text = f"distill(teacher='x', weight={WEIGHT}, temperature={TEMPERATURE}, features=map, attention=100.0)"
    loss, (metrics, _, _) = drawn_loss(text, teacher_attention=attention)
    np.testing.assert_allclose(loss, golden["soft"] + 100 * golden["attention"], rtol=1e-5)
    np.testing.assert_allclose(metrics["attention"][0] / IMAGES, golden["attention"], rtol=1e-5)


def test_padding_does_not_count():
    mask = jnp.arange(IMAGES) < 2
    loss, (metrics, _, _) = drawn_loss("distill(teacher='x', weight=1.0)", mask=mask.astype(jnp.float32))
    assert metrics["divergence"][1] == 2
    np.testing.assert_allclose(loss * IMAGES, metrics["divergence"][0], rtol=1e-6)


def test_the_teacher_sees_images_as_it_was_trained_on(teacher):
    run = build_run(config(teacher, "features='stage2:stage1'"))
    pixels = next(run.feed.test_batches())["image"][:3]
    batch = run.task.annotated(run.constants, run.feed.prepare_evaluation({"image": jnp.asarray(pixels)}))
    trained = load(teacher)
    np.testing.assert_allclose(batch["teacher_logits"], trained.logits(pixels), rtol=1e-3, atol=1e-4)
    # 8 x 8 positions of the teacher become 4 x 4 of the student
    attention = np.asarray(batch["teacher_attention"]["stage2"])
    assert attention.shape == (3, 16)
    means = (trained.features(pixels, "stage1") ** 2).mean(-1)
    assert np.corrcoef(attention.ravel(), means.reshape(3, 4, 2, 4, 2).mean((2, 4)).ravel())[0, 1] > 0.8


def test_the_same_step_on_any_number_of_devices(teacher):
    small = {"model__stage_sizes": (1,)}
    whole, metrics = step(config(teacher, "features=stage1", **small))
    assert metrics["loss"] == pytest.approx(
        0.1 * step(config(teacher, "weight=0.0", **small))[1]["loss"]
        + 0.9 * metrics["divergence"]
        + 1000 * metrics["attention"],
        rel=1e-4,
    )
    for changes in ({"devices": 4}, {"devices": 4, "parallel": "fsdp"}, {"accumulate": 2}):
        params, others = step(config(teacher, "features=stage1", **small, **changes))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), params, whole)
        assert others == pytest.approx(metrics, rel=1e-4)


def test_a_run_resumes_to_the_bit_and_not_with_another_teacher(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "teacher")
    changes = {"data__augment": "crop(1)|mixup(0.2)", "optimizer__name": "adam", "model__stage_sizes": (1,)}
    c = config(tmp_path / "teacher", duration="8 steps", **changes)
    loop.train(c, tmp_path / "whole")
    loop.train(c, tmp_path / "run", until=4)
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    moved = config(shutil.move(tmp_path / "teacher", tmp_path / "moved"), duration="8 steps")
    c.task.name = moved.task.name
    loop.train(c, tmp_path / "run")
    leaves, saved = final(tmp_path / "run")
    tiny.assert_same(leaves, final(tmp_path / "whole")[0])
    assert not any("teacher" in name or name.startswith("task_state") for name in leaves)
    size = sum(leaf.size for name, leaf in leaves.items() if name.startswith("params/"))
    assert size == sum(leaf.size for name, leaf in leaves.items() if name.startswith("opt_state/") and "mu/" in name)
    assert saved["data"]["arrays that task.name reads"]
    shutil.rmtree(tmp_path / "moved")
    tiny.trained(tmp_path / "moved", duration="4 steps", model__width=8, seed=1)
    with pytest.raises(UserError, match="have changed .arrays that task.name reads: "):
        loop.train(c, tmp_path / "cut")
    shutil.rmtree(tmp_path / "moved")
    assert load(tmp_path / "run").logits(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 10)  # needs no teacher


def test_the_path_of_the_teacher_is_kept_relative_to_the_run(tmp_path):
    values = {"task": {"name": f"distill(teacher='{tmp_path}/a', weight=0.5)"}}
    assert paths.relative(values, tmp_path / "b") == {"task.name": "distill(teacher='../a', weight=0.5)"}
    assert not paths.relative({"task": {"name": "distill(teacher='hf:timm/x.y')"}}, tmp_path)


@pytest.mark.parametrize(
    "changes",
    keep_first(
        1,
        [
            {"optimizer__prune": "magnitude(0.5, start='20%', end='60%', every='20%')", "precision": "bfloat16"},
            {"optimizer__share": "linear(conv=4, dense=4)"},
            {"model__conv": "binary_weight", "ema_decay": 0.9},
        ],
    ),
    ids=lambda changes: next(iter(changes)),
)
def test_compressed_students(teacher, changes):
    params, metrics = step(config(teacher, "features=stage3", **changes))
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0 and params


def imported(folder, name="resnet8", **changes):
    """Writes weights in our layout, as `models.weights import` leaves them, and returns the file."""
    fields = {"num_classes": 10, "image_size": 8, **changes.pop("fields", {})}
    model, path = models.create(name, **fields), folder / f"{name}.safetensors"
    variables = models.initialize(model, jax.random.key(0), (1, fields["image_size"], fields["image_size"], 1))
    facts = {"size": 8, "channels": 1, "shape": [8, 8, 1], "mean": [0.4], "std": [0.3], "crop": "resize"}
    facts |= {"eval_crop": 1.0, "interpolation": "bilinear", "exact": True, "exif": "apply", "background": ""}
    weights.save(path, model, variables, {"model": name, "fields": fields, "preprocessing": facts, **changes})
    return path


def test_imported_weights_teach(tmp_path, capsys):
    vit = imported(
        tmp_path, "vit_tiny_patch16", fields={"patch_size": 2, "width": 24, "depth": 1, "heads": 2, "mlp_width": 32}
    )
    opened = teachers.load(str(vit))
    assert opened.images == ((8, 8, 1), (0.4,), (0.3,)) and opened.labels is None
    images = jnp.asarray(drawn.images("seen", (2, 8, 8, 1)))
    np.testing.assert_allclose(opened.seen(images, (0.5,), (0.5,)), (images * 0.5 + 0.5 - 0.4) / 0.3, rtol=1e-5)
    assert opened.seen(images, (0.4,), (0.3,)) is images
    _, metrics = step(config(vit, "features='stage2:block0'"))  # 16 tokens after a class token
    assert metrics["attention"] > 0 and not capsys.readouterr().err
    size = imported(tmp_path, fields={"width": 4})
    build_run(config(size, data__image_size=6, data__crop="resize"))
    assert f"{size} was trained on 8 x 8 x 1 and sees 6 x 6 x 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("weight=1.5",), r"weight=1.5 must be in \[0, 1\]; usage: distill\(teacher: str"),
        (("temperature=0.0",), "temperature=0.0 must be above 0"),
        (("hard=True", "temperature=2.0"), "hard=True uses the teacher's class"),
        (("attention=-1.0",), "attention=-1.0 must be above 0"),
        (("features=stage9",), "endpoint with positions of the student 'stage9'; did you mean 'stage"),
        (("features='stage1:pre_logits'",), "endpoint with positions of the teacher 'pre_logits'; allowed: stem"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(teacher, arguments, message):
    with pytest.raises(UserError, match=message):
        build_run(config(teacher, *arguments))


def test_teachers_that_do_not_fit_are_one_line(teacher, tmp_path):
    with pytest.raises(UserError, match="distill: missing a required .*argument: 'teacher'"):
        build_run(tiny.config(task__name="distill"))
    with pytest.raises(UserError, match="teacher=none: there is no such run or file; allowed: the folder of a run"):
        build_run(config("none"))
    with pytest.raises(UserError, match="has 10 classes, but the data have 5"):
        build_run(config(teacher, data__select="classes('0-4')", data__select_test="classes('0-4')"))
    with pytest.raises(UserError, match="takes images with 1 channels, but the data have 3: set data.channels"):
        build_run(config(teacher, data__channels=3, data__mean=(0.5,), data__std=(0.5,)))
    vit = imported(
        tmp_path, "vit_tiny_patch16", fields={"patch_size": 2, "width": 24, "depth": 1, "heads": 2, "mlp_width": 32}
    )
    with pytest.raises(UserError, match="does not take images of 16 x 16 x 1 .*; it was trained on 8 x 8 x 1"):
        build_run(config(vit, data__image_size=16, data__crop="resize"))
    labels = [*"012345678", "ten"]
    with pytest.raises(UserError, match="has no classes: it is an encoder without a head"):
        build_run(config(imported(tmp_path, labels=labels, head="drawn")))
    opened = teachers.load(str(imported(tmp_path, labels=labels)))
    with pytest.raises(UserError, match="other classes than the data: class 9 is 'ten' there and 'nine' here"):
        opened.check((8, 8, 1), [*"012345678", "nine"])
    assert not opened.check((8, 8, 1), [*"0123456789"])  # names that are only numbers say nothing


@pytest.mark.parametrize("name", ["multi_label", "multi_exit", "gated(weight=1.0)"])
def test_a_teacher_of_another_task_is_one_line(teacher, tmp_path, name):
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    settings = json.loads((folder / "config.json").read_text())
    settings["task"]["name"] = name
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as caught:
        build_run(config(folder))
    assert str(caught.value) == f"teacher={folder} was trained by task {name}; allowed: classify, distill"

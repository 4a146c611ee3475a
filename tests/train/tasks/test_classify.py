"""Binary cross-entropy of classification against timm's formula, and its arguments."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from models.errors import UserError
from tests import tiny
from train import loop, tasks
from train.run import build_run

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)).astype(np.float32)
SHARES = np.array([[1, 0, 0, 0], [0.7, 0.3, 0, 0], [0, 0.1, 0, 0.9], [0, 0, 0.5, 0.5], [0, 0.2, 0.8, 0], [0, 0, 0, 1]])


def _task(name, smoothing=0.0):
    return tasks.create(ml_collections.ConfigDict({"name": name, "label_smoothing": smoothing}), None, 4)


def _expected(targets):
    """Returns the mean of binary cross-entropies, written out."""
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    return np.mean(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)))


@pytest.mark.parametrize(
    ("name", "smoothing", "targets"),
    [
        ("classify(loss=bce)", 0.0, SHARES > 0),
        ("classify(loss=bce, threshold=0.2)", 0.0, SHARES > 0.2),
        ("classify(loss=bce, threshold=None)", 0.0, SHARES),
        ("classify(loss=bce)", 0.1, (SHARES > 0) * 0.9 + 0.1 / 4),
    ],
)
def test_binary_cross_entropy_of_mixed_images(name, smoothing, targets):
    batch = {"target": jnp.asarray(SHARES, jnp.float32), "mask": jnp.ones(6)}
    loss, metrics = _task(name, smoothing).scored(jnp.asarray(LOGITS), batch)
    assert float(loss) == pytest.approx(_expected(targets), rel=1e-5)
    right = (LOGITS.argmax(1) == SHARES.argmax(1)).sum()
    assert float(metrics["accuracy"][0]) == right  # of the class with the greatest share


def test_evaluation_has_the_loss_of_its_kind_without_smoothing():
    labels, mask = np.array([0, 1, 2, 3, 3, 0]), np.array([1, 1, 1, 1, 0, 0], np.float32)
    metrics = _task("classify(loss=bce)", 0.1).measured(
        jnp.asarray(LOGITS), {"label": jnp.asarray(labels), "mask": mask}
    )
    p = 1 / (1 + np.exp(-LOGITS[:4].astype(np.float64)))
    one_hot = np.eye(4)[labels[:4]]
    expected = -np.sum(one_hot * np.log(p) + (1 - one_hot) * np.log(1 - p)) / 4
    assert (float(metrics["loss"][0]), float(metrics["loss"][1])) == (pytest.approx(expected, rel=1e-5), 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classify(loss=bcd)", "unknown loss of a task 'bcd'; did you mean 'bce'"),
        ("classify(threshold=0.2)", "threshold=0.2 is for loss=bce"),
        ("classify(loss=bce, threshold=1.0)", r"threshold=1.0 must be in \[0, 1\), or None"),
        ("classify(loss=bce, threshold=high)", "threshold=high must be in"),
    ],
)
def test_a_wrong_argument_is_named(name, message):
    with pytest.raises(UserError, match=message):
        _task(name)


def test_tasks_without_a_choice_of_loss_refuse_it():
    for name, network in (("gated(loss=bce)", "convnet_aig50"), ("multi_label(loss=bce)", "resnet8")):
        config = tiny.config(task__name=name, model__name=network)
        with pytest.raises(UserError, match="unexpected keyword argument 'loss'; usage"):
            build_run(config)


def test_it_learns_from_mixed_digits(tmp_path):
    config = tiny.config(
        task__name="classify(loss=bce)", data__augment="crop(1)|mixup_cutmix(0.2, 1.0)", model__width=8,
        duration="90 steps", steps_per_call=30, evaluate_every="90 steps", optimizer__learning_rate=1.0,
    )  # fmt: skip
    loop.train(config, tmp_path / "run")
    assert tiny.points(tmp_path / "run")["test/accuracy", 90] > 0.4

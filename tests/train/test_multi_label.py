"""Several classes per image: the task's numbers, average precision, and a whole run."""

import io
import json
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import rich.console
from sklearn.metrics import average_precision_score

from models.errors import UserError
from tests import tfds_sample, tiny
from tests.tiers import keep_first
from tests.train.data.test_transfer_sets import thing
from tests.train.test_loop import final, logged_metrics
from tests.train.test_step import Constant
from train import evaluate, loop, tasks
from train.recording import summary
from train.run import build_run
from train.tasks import average_precision

PLAIN = {"params": {"shift": 0.0}}


def task(label_smoothing=0.0, classes=3):
    section = ml_collections.ConfigDict({"name": "multi_label", "label_smoothing": label_smoothing})
    return tasks.create(section, Constant(), classes, label_shape=(classes,))


def batch(logits, labels, mask=None):
    logits = jnp.asarray(logits, jnp.float32)
    mask = jnp.ones(len(logits)) if mask is None else jnp.asarray(mask, jnp.float32)
    return {"image": logits[:, None, None], "label": jnp.asarray(labels, jnp.int32), "mask": mask}


# The task


def test_loss_by_hand():
    """Checks the mean over an image's counted classes, then over images; labels that are not counted have no effect."""
    logits = [[2.0, -1.0, 0.5], [1.0, jnp.inf, -3.0], [0.0, 0.0, 0.0]]
    labels, mask = [[1, 0, 0], [0, -1, 1], [1, 1, 1]], [1, 1, 0]

    def cross_entropy(x, p):
        q = 1 / (1 + np.exp(-x))
        return -(p * np.log(q) + (1 - p) * np.log(1 - q))

    first = np.mean([cross_entropy(2.0, 1), cross_entropy(-1.0, 0), cross_entropy(0.5, 0)])
    second = np.mean([cross_entropy(1.0, 0), cross_entropy(-3.0, 1)])
    averages = evaluate.ratios(task().evaluate(PLAIN, {}, batch(logits, labels, mask)))
    assert averages["loss"] == pytest.approx((first + second) / 2, rel=1e-5)
    loss, (metrics, _, _) = task().loss({"shift": 0.0}, {}, {}, batch(logits, labels, mask), jax.random.key(0), 0)
    # By the share's size, not by its weight, so that the mean over devices is the mean over all images.
    assert float(loss) == pytest.approx((first + second) / 3, rel=1e-5) and metrics["loss"][1] == 2
    smooth = task(0.2).loss({"shift": 0.0}, {}, {}, batch(logits[:1], labels[:1]), jax.random.key(0), 0)[0]
    by_hand = np.mean([cross_entropy(2.0, 0.9), cross_entropy(-1.0, 0.1), cross_entropy(0.5, 0.1)])
    assert float(smooth) == pytest.approx(by_hand, rel=1e-5)
    with pytest.raises(UserError, match="label_smoothing=1.0"):
        task(1.0)


def test_uncounted_labels_give_no_gradient():
    labels, image = jnp.array([[1, -1, 0]]), jnp.array([[0.3, 0.2, 0.1]])
    gradient = jax.grad(lambda x: task().loss({"shift": 0.0}, {}, {}, batch(x, labels), jax.random.key(0), 0)[0])(image)
    assert (np.asarray(gradient)[0] != 0).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("logits", "label", "hit"),
    [
        ([2.0, 1.0, 0.0], [1, 0, 0], 1),
        ([2.0, 1.0, 0.0], [0, 1, 1], 0),
        ([2.0, 1.0, 0.0], [1, 1, 1], 1),
        ([2.0, 1.0, 0.0], [-1, 1, 0], 1),  # the highest among the counted classes
        ([1.0, 1.0, 0.0], [1, 0, 0], 0),
        ([1.0, 1.0, 0.0], [1, 1, 0], 1),  # a tie counts if both are correct
        ([2.0, 1.0, 0.0], [-1, 0, 0], 0),
        ([2.0, 1.0, 0.0], [-1, -1, -1], 0),
        ([np.nan, 1.0, 0.0], [1, 0, 0], 0),
    ],
)
def test_hit(logits, label, hit):
    total, weight = task().evaluate(PLAIN, {}, batch([logits], [label]))["hit"]
    assert (float(total), float(weight)) == (hit, 1)


# Average precision


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_average_precision_equals_scikit_learn(levels):
    """Compares with scikit-learn for many ties, few ties, and none."""
    rng = np.random.default_rng(levels)
    for count in (1, 2, 7, 200):
        scores, labels = rng.integers(0, levels, count) / 7, (rng.random(count) < 0.3).astype(int)
        labels[rng.integers(count)] = 1
        expected = average_precision_score(labels, scores)
        assert average_precision.average_precision(scores, labels) == pytest.approx(expected)
        order = rng.permutation(count)
        for formula in (average_precision.average_precision, average_precision.average_precision_11):
            assert formula(scores[order], labels[order]) == formula(scores, labels)  # ties: their order does not matter


def test_eleven_points_by_hand():
    def points(ranked):
        return average_precision.average_precision_11(np.arange(len(ranked), 0, -1.0), np.array(ranked))

    assert points([1, 1, 0]) == 1
    # Recall 1/2 at precision 1, recall 1 at 2/3: r = 0 to 0.5 give 1, the other five 2/3.
    assert points([1, 0, 1]) == pytest.approx((6 + 5 * 2 / 3) / 11)
    # Precisions 1/2, 2/3, 3/5 at recalls 1/3, 2/3, 1; the highest at higher recall counts: up to r = 0.6 it is 2/3.
    assert points([0, 1, 1, 0, 1]) == pytest.approx((7 * 2 / 3 + 4 * 3 / 5) / 11)
    # Ten positives, so that recalls are the eleven points themselves: 1 up to 0.3, which rounding can miss.
    ranked = [1, 1, 1, 0, 0, 0] + [1] * 7
    after = 10 / 13  # precisions rise toward the end: 4/7 … 10/13
    assert points(ranked) == pytest.approx((4 + 7 * after) / 11)
    tied = average_precision.average_precision_11(np.zeros(4), np.array([1, 0, 0, 0]))
    assert tied == pytest.approx(1 / 4)


def test_uncounted_labels_have_no_effect():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 4)), rng.integers(-1, 2, (50, 4))
    labels[:, 2] = np.where(labels[:, 2] == 1, -1, labels[:, 2])  # no image has class 2
    for formula in (average_precision.average_precision, average_precision.average_precision_11):
        by_class = average_precision.by_class(formula, scores, labels)
        counted = [labels[:, c] >= 0 for c in range(4)]
        assert by_class == [formula(scores[k, c], labels[k, c]) for c, k in enumerate(counted)]
        assert by_class[2] is None
        assert average_precision.mean(by_class) == pytest.approx(np.mean([by_class[0], by_class[1], by_class[3]]))
    assert average_precision.mean([None]) is None
    assert average_precision.average_precision(np.zeros(2), np.array([-1, -1])) is None
    assert average_precision.average_precision(np.zeros(0), np.zeros(0, int)) is None


# From end to end


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Writes voc/2007 in TFDS's form, with images whose channels tell which of three classes are present."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def example(i):
        here = [name for name in ("cat", "dog", "bus") if rng.random() < 0.5]
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        for channel, name in enumerate(("cat", "dog", "bus")):
            pixels[..., channel] += 150 * (name in here)
        hard = ["sofa"] * (i % 4 == 0)
        objects = [thing(name) for name in here] + [thing(name, True) for name in hard]
        return {
            "image": tfds_sample.encode(pixels),
            "image/filename": f"{i}.jpg",
            "objects": objects,
            "labels": sorted(here + hard),
            "labels_no_difficult": sorted(here),
        }

    tfds_sample.write_as(
        folder,
        "voc/2007",
        {split: [example(i) for i in range(n)] for split, n in (("train", 24), ("validation", 24), ("test", 21))},
    )
    return folder


def config(data, **changes):
    return tiny.config(
        **{
            "task__name": "multi_label", "data__source": "tfds:voc/2007", "data__dir": str(data),
            "data__train_split": "train+validation", "data__image_size": 16, "data__crop": "resize", "batch_size": 16,
            "eval_batch_size": 8, "steps_per_call": 1, "hooks": "average_precision|figures",
            "optimizer__schedule": "constant", **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize("pipeline", keep_first(1, ["resident", "stream"]))
def test_a_run_and_its_continuation(tmp_path, data, pipeline):
    run_config = config(
        data, data__pipeline=pipeline, steps_per_call=2 if pipeline == "resident" else 1, data__augment="crop(1)|flip"
    )
    result = loop.train(run_config, tmp_path / "whole")
    assert result == json.loads((tmp_path / "whole" / "summary.json").read_text())
    by_class = result["average_precision_by_class"]
    defined = [value for value in by_class if value is not None]
    assert len(by_class) == 20 and len(defined) == 3 and result["test_examples"] == 21
    assert result["mean_average_precision"] == pytest.approx(np.mean(defined))
    assert 0 < result["mean_average_precision_11"] <= 1 and 0 <= result["hit"] <= 1
    lines = logged_metrics(tmp_path / "whole")
    assert lines[-1]["mean_average_precision"] == result["mean_average_precision"]
    assert [line["step"] for line in lines if line["split"] == "test"] == [6, 12]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < losses[0] < 1.5  # it starts at log 2 and learns that most classes are absent
    assert (tmp_path / "whole" / "curves.png").exists() and not (tmp_path / "whole" / "mistakes.png").exists()

    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "12" / "about" / "metadata").write_text("")
    again = loop.train(run_config, tmp_path / "broken")
    assert again["average_precision_by_class"] == by_class and logged_metrics(tmp_path / "broken") == lines
    tiny.assert_same(final(tmp_path / "whole")[0], final(tmp_path / "broken")[0])


def test_average_precision_of_a_run_is_that_of_its_scores(data):
    """Checks all batch sizes of the test set, and several devices."""
    run = build_run(config(data, devices=4, accumulate=2))
    state = run.parallel.place(run.state)
    results = run.evaluate(state, last=True)
    source, variables = run.feed.test, run.parallel.fetch(state).evaluation_variables()
    arrays = source.arrays()
    scores = run.task.predict(variables, run.feed.prepare_evaluation({"image": jnp.asarray(arrays["image"])}))
    cat = source.classes.index("cat")
    assert results["average_precision_by_class"][cat] == pytest.approx(
        average_precision_score(arrays["label"][:, cat], np.asarray(scores)[:, cat]), rel=1e-5
    )
    assert (arrays["label"][:, source.classes.index("sofa")] == -1).any()
    assert results["average_precision_by_class"][source.classes.index("sofa")] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task__name": "classify"},
            r"task.name=classify needs one class per image, but data.source=tfds:voc/2007 has "
            r"several classes; set task.name=multi_label",
        ),
        (
            {"data__augment": "flip|mixup(0.2)"},
            r"data.augment='flip\|mixup\(0.2\)': mixup and cutmix require one class per image",
        ),
    ],
)
def test_options_that_do_not_fit_several_classes_are_one_line(tmp_path, data, changes, message):
    with pytest.raises(UserError, match=message) as error:
        loop.train(config(data, **changes), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task__name": "multi_label"},
            "task.name=multi_label needs several classes per image, but data.source=digits has one class",
        ),
        ({"hooks": "average_precision"}, "average_precision is for several classes per image"),
    ],
)
def test_options_that_do_not_fit_one_class_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        build_run(tiny.config(**changes))


def test_mean_class_accuracy_counts_every_class_equally():
    def call(state, data, items):
        return {"loss": (1.0, 10.0), "accuracy_by_class": (np.array([7.0, 0.0, 1.0, 0.0]), np.array([7, 2, 1, 0]))}

    metrics = evaluate.evaluate(call, None, [None], lambda: 10)
    assert metrics["accuracy_by_class"] == [1, 0, 1, None] and metrics["mean_class_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.full
def test_the_table_shows_the_metrics_of_the_task(tmp_path, data):
    def shown(result):
        console = rich.console.Console(file=io.StringIO(), width=120)
        console.print(summary.table(result, tmp_path))
        return console.file.getvalue()

    several = shown(loop.train(config(data, duration="1 steps"), tmp_path / "several"))
    assert "test mAP" in several and "11 points" in several and "accuracy" not in several
    one = shown(loop.train(tiny.config(duration="1 steps"), tmp_path / "one"))
    assert "mean class accuracy" in one and "mAP" not in one

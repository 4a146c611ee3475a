"""curves.png: legible for one evaluation and for many, in percent, without colliding texts."""

import math

import pytest

from tests import pictures
from train.plots.curves import curves


def lines(evaluations, steps=600, low=0.97, high=0.99):
    """Returns lines of metrics.jsonl: training every tenth of the steps, and so many evaluations."""
    train = [
        {"step": step, "split": "train", "loss": 2 / step, "accuracy": high, "learning_rate": 0.1 * step / steps}
        for step in range(steps // 10, steps + 1, steps // 10)
    ]
    at = [steps * (i + 1) // evaluations for i in range(evaluations)]
    return train + [
        {"step": step, "split": "test", "loss": 0.1, "accuracy": low + (high - low) * i / evaluations}
        for i, step in enumerate(at)
    ]


def drawn(tmp_path, *arguments, **options):
    with pictures.recorded() as figures:
        curves(*arguments, tmp_path / "curves.png", **options)
    return figures[0]


@pytest.mark.parametrize("evaluations", [1, 3, 8, 200])
@pytest.mark.parametrize("steps", [10, 600, 450_000])
def test_texts_do_not_collide(evaluations, steps, tmp_path):
    figure = drawn(tmp_path, lines(min(evaluations, steps), steps), examples=360, epoch=steps / 90)
    assert pictures.collisions(figure) == []
    texts = [text for text, _ in pictures.texts(figure)]
    assert {"accuracy (%)", "loss (nats)", "learning rate", "step", "epoch", "training", "test"} <= set(texts)
    if steps > 1000:
        assert "200,000" in texts


def test_the_accuracy_is_in_percent_and_shows_at_least_twenty_images(tmp_path):
    accuracy = drawn(tmp_path, lines(8, low=0.9917, high=0.9944), examples=360).axes[1]
    low, high = accuracy.get_ylim()
    assert high - low >= 100 * 20 / 360 and high < 101
    assert max(accuracy.lines[1].get_ydata()) == pytest.approx(99.17 + 0.27 * 7 / 8, abs=0.01)
    assert max(accuracy.get_yticks()) <= 100


def test_training_and_test_differ_in_more_than_color(tmp_path):
    training, test = drawn(tmp_path, lines(3)).axes[0].lines
    assert training.get_linestyle() != test.get_linestyle() and training.get_marker() != test.get_marker()
    training, test = drawn(tmp_path, lines(200, 60_000)).axes[0].lines
    assert training.get_linestyle() != test.get_linestyle() and test.get_marker() == ""


def test_the_title_has_the_last_value_and_the_best_where_it_is_another(tmp_path):
    points = lines(2)
    points[-2]["accuracy"], points[-1]["accuracy"] = 0.975, 0.9611
    titles = [axes.get_title(loc="left") for axes in drawn(tmp_path, points).axes]
    assert titles == ["test loss 0.1", "test accuracy 96.1%, best 97.5% at step 300", "learning rate"]


def test_losses_are_logarithmic_only_over_a_wide_range(tmp_path):
    for rate, scale in ((0.001, "linear"), (0.01, "log")):
        points = [{**line, "loss": math.exp(-rate * line["step"])} for line in lines(3)]
        assert drawn(tmp_path, points).axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    "content",
    [
        [],
        [{"step": 1, "split": "train", "loss": 0.0}],
        [{"step": 1, "split": "train", "loss": -3.0, "learning_rate": 0.0}],
        [{"step": 1, "split": "validation", "accuracy": 0.5}],
        [{"step": 0, "split": "test", "loss": 2.0, "hit": 0.5}],
    ],
)
def test_few_and_strange_lines_are_drawn(content, tmp_path):
    drawn(tmp_path, content)
    assert (tmp_path / "curves.png").stat().st_size > 500

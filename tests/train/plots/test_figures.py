"""Predictions, attention, what adaptive networks compute: percent, cells of one size, no colliding texts."""

import numpy as np
import pytest

from tests import pictures
from train.plots import figures

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)


def sentence(source, ours, seed=0):
    weights = np.random.default_rng(seed).dirichlet(np.ones(source), (4, ours))
    return {
        "source": [f"source{i}" for i in range(source)],
        "ours": [f"ours{i}" for i in range(ours)],
        "weights": weights,
    }


@pytest.mark.parametrize("sizes", [[(18, 20), (4, 3)], [(9, 9)], [(5, 6), (30, 25), (3, 3)]])
def test_attention_has_cells_of_one_size_in_percent(sizes, tmp_path):
    with pictures.recorded() as drawn:
        figures.attention([sentence(*size) for size in sizes], tmp_path / "attention.png")
    (figure,) = drawn
    assert pictures.collisions(figure) == []
    cells = []
    for axes, (source, ours) in zip(figure.axes, sizes, strict=False):
        box, width = axes.get_window_extent(), np.ptp(axes.get_xlim())
        cells.append(box.width / width)
        assert axes.images[0].get_array().shape == (ours, source)
    assert max(cells) / min(cells) < 1.15
    assert figure.axes[0].images[0].get_clim()[1] >= 20


def test_predictions_are_in_percent(tmp_path):
    rows = [
        (PIXELS, "a.png", [("0", 0.98), ("a class with a name that is long", 0.02)]),
        (PIXELS, "a file with a name that is long, too.png", [("1", 1.0)]),
    ]
    with pictures.recorded() as drawn:
        figures.predictions(rows, tmp_path / "predictions.png")
    assert pictures.collisions(drawn[0]) == []
    assert {"98.0", "2.0", "100.0", "probability (%)"} <= {text for text, _ in pictures.texts(drawn[0])}
    heights = [axes.patches[0].get_window_extent().height for axes in drawn[0].axes if axes.patches]
    assert heights[0] == pytest.approx(heights[1], rel=0.05)


def test_shares_of_classes_are_in_percent(tmp_path):
    with pictures.recorded() as drawn:
        figures.of_classes([[1.0, 0.5], None], ["cat", "dog"], "exit", tmp_path / "classes.png")
        figures.of_images([("easy", [(PIXELS, "3\n2 blocks")] * 12), ("hard", [])], tmp_path / "images.png")
    assert all(pictures.collisions(figure) == [] for figure in drawn)
    assert drawn[0].axes[0].images[0].get_clim() == (0, 100)


@pytest.mark.parametrize(
    "share, text", [(0.0, "0%"), (0.003, "<1%"), (0.5, "50%"), (0.994, "99%"), (0.9997, ">99%"), (1.0, "100%")]
)
def test_a_share_that_is_not_all_is_not_said_to_be_all(share, text):
    assert figures.percent(share) == text

"""mistakes.png: no empty half, captions in words, errors that show beside a diagonal that dominates."""

import numpy as np
import pytest

from tests import pictures
from train.plots.mistakes import confusion, mistakes

NAMES = ("golden retriever", "cat", "Egyptian Mau", "lampshade of an unusual length", "ox")


def drawn(tmp_path, classes, errors, count=200, names=None):
    """Draws a test set of `count` images, of which the first `errors` are taken for the next class."""
    labels = np.arange(count) % classes
    logits = 5.0 * np.eye(classes)[np.where(np.arange(count) < errors, (labels + 1) % classes, labels)]
    names = names or [str(i) if classes <= 10 else f"{NAMES[i % 5]} {i}" for i in range(classes)]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    with pictures.recorded() as figures:
        mistakes(logits, labels, names, tmp_path / "mistakes.png", lambda index: pixels, np.arange(count) + 1000)
    return figures[0]


@pytest.mark.parametrize("classes", [2, 10, 20, 37, 100, 1000])
@pytest.mark.parametrize("errors", [0, 1, 5, 150])
def test_texts_do_not_collide(classes, errors, tmp_path):
    figure = drawn(tmp_path, classes, errors, count=max(200, 2 * classes))
    assert pictures.collisions(figure) == []


def test_without_errors_there_is_one_panel_that_says_so(tmp_path):
    figure = drawn(tmp_path, 10, 0)
    assert len(figure.axes) == 1 and not figure.subfigs
    texts = [text for text, _ in pictures.texts(figure)]
    assert "All 200 test images are classified correctly" in texts and "errors (% of the true class)" not in texts
    box = figure.axes[0].get_window_extent()
    assert box.width > 0.6 * figure.bbox.width


def test_captions_are_words(tmp_path):
    texts = [text for text, _ in pictures.texts(drawn(tmp_path, 10, 3))]
    assert "true 0\npredicted 1\nprobability 94%, image 1000" in texts
    assert "197 of 200 test images are classified correctly (98.5%)" in texts and "All errors on test images" in texts
    assert "The most confident errors on test images" in [text for text, _ in pictures.texts(drawn(tmp_path, 10, 50))]


@pytest.mark.parametrize("classes", [10, 37])
def test_errors_have_a_color_scale_of_their_own(classes, tmp_path):
    right, wrong = drawn(tmp_path, classes, 2, count=100 * classes).subfigs[0].axes[0].images
    assert right.get_clim() == (0, 100) and wrong.get_clim() == (0, 5)  # 1 of 100 is a fifth of the scale
    assert wrong.get_array().count() == 2 and right.get_array().count() == classes
    rgb = wrong.cmap(wrong.norm(1.0))[:3]
    assert min(rgb) < 0.8  # no shade that a page hides


def test_a_thousand_classes_are_dots_that_can_be_seen_and_pairs_with_names(tmp_path):
    axes = drawn(tmp_path, 1000, 30, count=2000).subfigs[0].axes[0]
    assert not axes.images and len(axes.collections) == 2
    assert len(axes.collections[1].get_offsets()) == 30 and axes.collections[1].get_sizes()[0] >= 1.5
    assert "golden retriever… taken for cat 1: 1 of 2" in axes.get_xlabel()


def test_confusion_counts_rows_by_true_class():
    logits, labels = np.eye(3)[[0, 2, 2, 1]], np.array([0, 0, 2, 1])
    np.testing.assert_array_equal(confusion(logits, labels), [[1, 0, 1], [0, 1, 0], [0, 0, 1]])

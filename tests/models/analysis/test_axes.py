"""Axes in percent zoom in no further than the test set resolves; logarithms have ticks that people read."""

import pytest
from matplotlib.figure import Figure

from models.analysis import axes as scales


@pytest.mark.parametrize(
    "values, examples, least",
    [
        ([98.6, 98.9], 360, 100 * 20 / 360),  # one image is 0.28 points
        ([100.0, 100.0], 360, 100 * 20 / 360),
        ([0.0], 0, 5.0),
        ([75.1, 76.3], 50_000, 5.0),
        ([50.0, 90.0], 10, 100.0),
        ([30.0, 90.0], 10_000, 60.0),
        ([], 360, 100.0),
        ([float("nan"), 98.0], 360, 5.0),
        ([-2.0, 3.0], 360, 5.0),  # a difference in points
    ],
)
def test_an_axis_in_percent_shows_at_least_twenty_examples(values, examples, least):
    low, high = scales.percent_limits(values, examples)
    assert high - low >= least - 1e-9
    assert all(low < value < high for value in values if value == value)
    if all(0 <= value <= 100 for value in values):
        assert low > -4 and high < 104


def test_one_example_is_no_trend():
    low, high = scales.percent_limits([99.44, 99.72], 360)
    assert 0.28 / (high - low) < 1 / 19


@pytest.mark.parametrize(
    "values, ticks", [((0.05, 1.2), ["0.1", "0.2", "0.5", "1"]), ((2e-5, 5.0), ["0.01", "1"]), ((3, 9000), ["1,000"])]
)
def test_logarithmic_ticks_are_plain_numbers(values, ticks):
    axes = Figure().subplots()
    axes.plot(values)
    scales.logarithmic(axes, "y")
    axes.figure.draw_without_rendering()
    texts = [label.get_text() for label in axes.get_yticklabels()]
    assert set(ticks) <= set(texts) and not any("{" in text or "e-0" in text for text in texts)


def test_only_wide_ranges_are_logarithmic():
    assert scales.is_wide([0.01, 0.3]) and not scales.is_wide([0.5, 2.0])
    assert not scales.is_wide([0.0, 1.0]) and not scales.is_wide([])
    assert [scales.plain(value) for value in (0.02, 1.0, 20_000.0, 1e-5, 0.3)] == ["0.02", "1", "20,000", "1e-5", "0.3"]

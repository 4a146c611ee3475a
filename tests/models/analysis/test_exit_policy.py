"""Tests of models/analysis/exit_policy.py: shares, thresholds and exits, against the authors' loops rewritten here."""

import math
import re

import numpy as np
import pytest

from models.analysis import exit_policy
from models.errors import UserError

COSTS = (10e6, 14e6, 30e6, 31e6, 60e6)


def drawn(count=997, exits=5, seed=0):
    """Returns distinct confidences in (0.2, 1)."""
    return np.random.default_rng(seed).uniform(0.2, 1, (count, exits)).astype(np.float32)


@pytest.mark.parametrize("allowed", [10.000001e6, 12e6, 25e6, 29e6, 45e6, 59.9999e6])
def test_shares_cost_the_budget_and_are_powers(allowed):
    shares = exit_policy.shares(allowed, COSTS)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    assert shares @ np.asarray(COSTS) == pytest.approx(allowed, rel=1e-6)
    some = shares > 1e-12
    ratios = shares[1:][some[1:] & some[:-1]] / shares[:-1][some[1:] & some[:-1]]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)  # q, q^2, ...


def test_more_budget_sends_more_images_further():
    cumulated = np.array([exit_policy.shares(allowed, COSTS).cumsum() for allowed in np.linspace(11e6, 59e6, 7)])
    assert (np.diff(cumulated, axis=0)[:, :-1] < 0).all()


def test_extremes():
    np.testing.assert_allclose(exit_policy.shares(COSTS[0], COSTS), np.eye(5)[0], atol=1e-9)
    for enough in (COSTS[-1], 1e12, math.inf):
        np.testing.assert_array_equal(exit_policy.shares(enough, COSTS), np.eye(5)[-1])
    np.testing.assert_array_equal(exit_policy.shares(7.0, (7.0,)), [1])
    assert [exit_policy.anytime(allowed, COSTS) for allowed in (10e6, 13.9e6, 14e6, 59e6, 60e6, math.inf)] == [
        0, 0, 1, 3, 4, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("function", [exit_policy.shares, exit_policy.anytime])
@pytest.mark.parametrize("allowed", [9.5e6, -1.0, math.nan])
def test_below_the_cheapest_exit_both_numbers_are_named(function, allowed):
    message = re.escape(f"budget={allowed:g} mult-adds is less than the cost of the cheapest exit, 10,000,000")
    with pytest.raises(UserError, match=message):
        function(allowed, (10_000_000, 20_000_000))


def find_thresholds(confidences, shares):
    """Finds thresholds as in Huang 2018's public code (dynamic_eval_find_threshold), in plain loops.

    Counts the images that are still there, from the most confident on, until the desired number is reached.
    """
    count, exits = confidences.shape
    gone, thresholds = [False] * count, [exit_policy.NEVER] * (exits - 1)
    for k in range(exits - 1):
        target, seen = math.floor(count * shares[k]), 0
        for i in sorted(range(count), key=lambda i: -confidences[i, k]):
            seen += not gone[i]
            if not gone[i] and seen == target:
                thresholds[k] = confidences[i, k]
                break
        gone = [gone[i] or confidences[i, k] >= thresholds[k] for i in range(count)]
    return thresholds


def leave_at(confidences, limits):
    """Returns dynamic_eval_with_threshold's choice: the first exit that is confident enough."""
    return [next((k for k, limit in enumerate(limits) if row[k] >= limit), len(limits)) for row in confidences]


@pytest.mark.parametrize("allowed", [10.5e6, 15e6, 25e6, 40e6, 58e6, 60e6])
def test_thresholds_are_those_of_the_authors_loops(allowed):
    fitted, test = drawn(), drawn(411, seed=1)
    limits = exit_policy.thresholds(fitted, exit_policy.shares(allowed, COSTS))
    assert limits.tolist() == find_thresholds(fitted, exit_policy.shares(allowed, COSTS))
    assert exit_policy.leave(test, limits).tolist() == leave_at(test, limits)


@pytest.mark.parametrize("allowed", [12e6, 25e6, 45e6])
def test_planned_shares_are_those_of_the_fitted_images(allowed):
    fitted, shares = drawn(), exit_policy.shares(allowed, COSTS)
    left = exit_policy.leave(fitted, exit_policy.thresholds(fitted, shares))
    number = np.bincount(left, minlength=5)
    np.testing.assert_array_equal(number[:-1], np.floor(len(fitted) * shares[:-1]))
    assert np.asarray(COSTS)[left].mean() == pytest.approx(allowed, rel=0.02)  # rounded down


def test_no_image_leaves_at_an_exit_whose_share_is_zero():
    limits = exit_policy.thresholds(drawn(), [0, 0.5, 0, 0, 0.5])
    assert (limits[[0, 2, 3]] == exit_policy.NEVER).all() and 0.2 < limits[1] < 1
    assert set(exit_policy.leave(drawn(), limits)) == {1, 4}


def test_all_images_of_equal_confidence_leave():
    """Checks equal confidences: saturation at 1 is common."""
    confidences = np.full((10, 3), 0.5)
    confidences[:6, 0] = 1.0
    limits = exit_policy.thresholds(confidences, [0.2, 0.2, 0.6])
    assert limits.tolist() == [1.0, 0.5] == find_thresholds(confidences, [0.2, 0.2, 0.6])
    assert exit_policy.leave(confidences, limits).tolist() == [0] * 6 + [1] * 4
    everyone = exit_policy.thresholds(confidences[:, :2], [1.0, 0.0])
    assert (exit_policy.leave(confidences[:, :2], everyone) == 0).all()


def test_nan_confidences_stay_until_the_last_exit():
    confidences = drawn(100, 3)
    confidences[:5] = np.nan
    limits = exit_policy.thresholds(confidences, [0.5, 0.3, 0.2])
    assert np.isfinite(limits).all()
    left = exit_policy.leave(confidences, limits)
    assert np.bincount(left).tolist() == [50, 30, 20] and (left[:5] == 2).all()
    nothing = np.full((4, 3), np.nan)
    assert (exit_policy.leave(nothing, exit_policy.thresholds(nothing, [0.5, 0.3, 0.2])) == 2).all()

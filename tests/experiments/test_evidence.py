"""Tests of the evidence for claims, against SciPy, statsmodels and exact counts; error rates are simulated."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_ind

from experiments.study import evidence, simulate, verdicts

RNG = np.random.default_rng(0)
HIGH, LOW = RNG.normal(1.0, 1.0, 12), RNG.normal(0.0, 3.0, 15)


@pytest.mark.parametrize("by", [-2.0, 0.0, 0.5, 1.0])
def test_more_takes_the_larger_p_value_of_welch_and_a_permutation_test(by):
    one = evidence.more(HIGH, LOW, by)
    welch = stats.ttest_ind(HIGH - by, LOW, equal_var=False, alternative="greater").pvalue

    def t(x, y, axis):
        return stats.ttest_ind(x, y, equal_var=False, axis=axis).statistic

    permuted = stats.permutation_test(
        (HIGH - by, LOW), t, vectorized=True, alternative="greater", n_resamples=20_000, rng=1
    ).pvalue
    assert one.p_for == pytest.approx(max(welch, permuted) if welch <= evidence.CLEAR else welch, abs=0.01)
    interval = stats.ttest_ind(HIGH, LOW, equal_var=False).confidence_interval(evidence.LEVEL)
    np.testing.assert_allclose((one.low, one.high), (interval.low, interval.high), rtol=1e-9)
    assert one.estimate == pytest.approx(HIGH.mean() - LOW.mean()) and one.margin == by


def test_few_divisions_are_counted_exactly():
    high, low = [3.0, 4.0, 5.0], [0.0, 1.0, 2.0]
    assert evidence.more(high, low).p_for == pytest.approx(1 / math.comb(6, 3))
    assert evidence.more(low, high).p_against == pytest.approx(1 / math.comb(6, 3))
    # Three seeds of each never give a verdict by themselves; six do, if all of one group are above all of the other
    assert verdicts.p_value(evidence.more(high, low)) > evidence.ALPHA
    assert verdicts.p_value(evidence.more([*high, 3.5, 4.5, 5.5], [*low, 0.5, 1.5, 2.5])) < evidence.ALPHA / 10


@pytest.mark.parametrize("margin", [0.3, 1.0, 3.0])
def test_equivalence_is_two_one_sided_tests(margin):
    first, second = RNG.normal(0, 1, 40), RNG.normal(0.2, 1.5, 40)
    one = evidence.equivalent(first, second, margin)
    theirs = ttost_ind(first, second, -margin, margin, usevar="unequal")[0]
    assert one.p_for == pytest.approx(theirs, abs=0.02)
    assert not (one.p_for < 0.05 and one.p_against < 0.05)


def test_a_wide_interval_is_no_agreement():
    few = evidence.equivalent([0.0, 10.0, -10.0], [0.1, 9.0, -9.0], 1.0)
    assert verdicts.decide([few]) == [None]
    apart = evidence.equivalent(RNG.normal(0, 0.1, 9), RNG.normal(5, 0.1, 9), 1.0)
    assert verdicts.decide([apart]) == [False]


def test_groups_without_spread_or_seeds():
    equal = [0.980] * 4, [0.979] * 4
    assert evidence.more(*equal).p_for == pytest.approx(2 / math.comb(8, 4), rel=0.51)  # not 0: the permutation test
    assert evidence.more([1.0], [0.0]) == evidence.NOTHING == evidence.more([math.nan] * 5, [0.0] * 5)


def test_a_difference_that_is_too_small_to_matter_refutes_a_statement():
    low = 0.9 + 0.001 * stats.norm.ppf((np.arange(10) + 0.5) / 10)
    same, small = evidence.more(low, low), evidence.more(low + 0.003, low)
    assert verdicts.decide([same]) == [False] and same.high > 0
    assert small.p_against < 0.001 and verdicts.decide([small]) == [True]  # above 0, although less than what matters


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.9])
def test_one_group_is_tested_by_t_and_sign_flips(threshold):
    one = evidence.above(HIGH, threshold)
    student = stats.ttest_1samp(HIGH, threshold, alternative="greater").pvalue
    flipped = stats.permutation_test(
        (HIGH - threshold,), np.mean, permutation_type="samples", alternative="greater", n_resamples=2**12
    ).pvalue
    assert one.p_for == pytest.approx(max(student, flipped) if student <= evidence.CLEAR else student, abs=1e-9)
    assert one.estimate == pytest.approx(HIGH.mean() - threshold)
    inside = evidence.within([0.5, 0.51, 0.49, 0.5, 0.5, 0.52, 0.48, 0.5, 0.5, 0.5], 0.4, 0.6)
    assert verdicts.decide([inside]) == [True]


def test_counts_are_exact():
    assert evidence.usual(5, 5).p_for == pytest.approx(0.5**5) and evidence.usual(0, 5).p_against == pytest.approx(
        0.5**5
    )
    table = [[6, 0], [0, 6]]
    assert evidence.more_often((6, 6), (0, 6)).p_for == stats.barnard_exact(table, alternative="greater").pvalue
    for same in ((3, 3), (0, 3)):
        assert verdicts.decide([evidence.more_often(same, (same[0] * 2, 6))]) == [None]
    assert evidence.usual(0, 0) == evidence.NOTHING == evidence.more_often((0, 0), (1, 2))


def test_a_trend_is_that_of_all_settings():
    groups = [(x, x * 0.5 + RNG.normal(0, 0.3, 4)) for x in range(5)]
    one, falling = evidence.trend(groups), evidence.trend([(x, -values) for x, values in groups])
    x, y = np.repeat(range(5), 4), np.concatenate([values for _, values in groups])
    line = stats.linregress(x, y)
    assert one.p_for == pytest.approx(max(line.pvalue / 2, 1 / evidence.PERMUTATIONS))
    assert one.estimate == pytest.approx(4 * line.slope) and one.low < 2.0 < one.high
    assert verdicts.decide([one]) == [True] and verdicts.decide([falling]) == [False]
    assert evidence.trend(groups[:2]) == evidence.NOTHING


def test_a_statement_of_parts_holds_where_all_do_and_fails_where_one_does():
    sure, unclear, wrong = evidence.holds(True), evidence.Evidence(0.3, 0.7), evidence.Evidence(0.99, 0.001)
    assert evidence.all_of(sure, sure).p_for == 0 and evidence.all_of(sure, unclear).p_for == 0.3
    assert evidence.all_of(sure, unclear, wrong).p_against == pytest.approx(0.003)
    assert verdicts.decide([evidence.all_of(sure, unclear, wrong)]) == [False]
    shown = [dataclasses.replace(part, estimate=i) for i, part in enumerate((sure, unclear, wrong))]
    assert evidence.all_of(*shown).estimate == 2 and evidence.all_of(*shown[:2]).estimate == 1  # the part that decides
    opposite = evidence.negated(dataclasses.replace(wrong, estimate=2.0, low=1.0, high=4.0, margin=-3.0))
    numbers = (opposite.p_for, opposite.p_against, opposite.estimate, opposite.low, opposite.high, opposite.margin)
    assert numbers == (0.001, 0.99, -2.0, -4.0, -1.0, 3.0)


def test_a_contrast_is_welchs_test_where_it_compares_two_groups():
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=n) + n / 10 for n in (7, 9, 12))
    both = evidence.contrast([(1.0, a), (-1.0, b)])
    expected = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    assert both.p_for == pytest.approx(expected.pvalue) and both.p_against == pytest.approx(1 - expected.pvalue)
    assert (both.low, both.high) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).confidence_interval())
    mixed = evidence.contrast([(1.5, a), (-0.5, b), (-1.0, c)])
    assert mixed.estimate == pytest.approx(1.5 * a.mean() - 0.5 * b.mean() - c.mean())
    assert evidence.contrast([(1.0, a), (-1.0, b[:1])]) is evidence.NOTHING


def test_a_margin_that_is_an_outcome_itself_is_refuted_by_chance_in_no_more_than_5_percent():
    """Draws groups exactly at the limit: the projection gains half as much again as the residual network."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(400):
        residual, plain, projection = rng.normal(1.0, 1.0, 7), rng.normal(0.0, 1.0, 7), rng.normal(1.5, 1.0, 7)
        one = evidence.contrast([(1.5, residual), (-0.5, plain), (-1.0, projection)])
        false += verdicts.p_value(one) <= evidence.ALPHA
    assert false / 400 <= evidence.ALPHA + 3 * math.sqrt(evidence.ALPHA * (1 - evidence.ALPHA) / 400)


def test_claims_are_corrected_for_their_number():
    claims = [evidence.Evidence(p, 1 - p) for p in (0.001, 0.004, 0.02, 0.3)]
    two_sided = [0.002, 0.008, 0.04, 0.6]
    holm = [min(1, p * k) for p, k in zip(two_sided, (4, 3, 2, 1), strict=True)]
    np.testing.assert_allclose(verdicts.corrected(claims), holm)
    assert verdicts.decide(claims) == [True, True, None, None] and verdicts.decide([]) == []


def test_a_condition_must_hold_before_a_statement_counts():
    sure, never = evidence.holds(True), evidence.holds(False)
    statement = evidence.Evidence(0.5, 1e-4)
    assert verdicts.decide([evidence.given(sure, statement)]) == [False]
    assert evidence.given(sure, statement).note == ""
    assert evidence.given(never, statement).note == "its premise does not hold here"
    assert (
        verdicts.decide([evidence.given(never, statement)])
        == [None]
        == verdicts.decide([evidence.given(statement, sure)])
    )


def test_looks_are_combined_into_one_p_value():
    looks = [(evidence.Evidence(0.01, 0.9), 0.02), (evidence.Evidence(0.004, 0.9, 1.5), 0.01)]
    one = verdicts.sequential(looks)
    assert one.p_for == pytest.approx(min(0.01 * 0.05 / 0.02, 0.004 * 0.05 / 0.01)) and one.estimate == 1.5


def test_looks_spend_no_more_than_alpha():
    for most in (7, 9, 20, 100):
        looks = verdicts.looks(most)
        assert looks[-1][0] == most and [count for count, _ in looks] == sorted({count for count, _ in looks})
        assert sum(level for _, level in looks) == pytest.approx(evidence.ALPHA)
        assert all(level > 0 for _, level in looks)


@pytest.mark.parametrize("draws", simulate.DRAWS)
def test_no_more_than_5_percent_of_verdicts_are_false(draws):
    rounds, rng = 60, np.random.default_rng(1)
    for rates in (
        simulate.fixed(draws, 6, rounds, rng, effects=()),
        simulate.sequential(draws, 8, rounds, rng, effects=()),
    ):
        claims = rounds * simulate.CLAIMS
        for share, count in ((rates.false_claim, claims), (rates.false_study, rounds)):
            # Not above 5% by more than three standard errors of the simulation
            assert share <= evidence.ALPHA + 3 * math.sqrt(evidence.ALPHA * (1 - evidence.ALPHA) / count), rates


def test_the_simulation_finds_false_verdicts_of_a_bad_rule(monkeypatch):
    monkeypatch.setattr(evidence, "_permuted", lambda *arguments: 0.0)  # Welch alone, of two humps and three seeds
    rates = simulate.fixed("two-humped", 3, 100, np.random.default_rng(0), effects=())
    assert rates.false_study > 0.15


def test_what_matters_is_at_most_half_of_what_was_published():
    assert evidence.worth(0.0024) == evidence.worth(-0.0024) == 0.0012
    assert evidence.worth(0.05) == evidence.POINT and evidence.worth(0.9, most=0.5) == 0.45

"""Seeds until a claim is decided: who gets them, what is never run again, and when it stops."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import study
from experiments.study import (
    AGREES,
    DISAGREES,
    TOO_SMALL,
    Claim,
    Outcome,
    Study,
    Trial,
    evidence,
    forest,
    sequential,
    verdicts,
)
from experiments.study.evidence import FIRST
from experiments.study.launch import OutOfTime

CLEAR, CLOSE, HARD = 0.2, 0.012, 0.0001  # differences of groups whose outcomes have a standard deviation of 0.01
LOOKS = verdicts.looks(20)


def better(group):
    def judge(outcomes):
        groups = {name: outcomes.where(group=name).values("accuracy") for name in (group, "reference")}
        return study.more(groups, worth=0.001)

    return Claim(f"{group} is better.", "2 points", "A 2020, table 1", "it is", judge, 0.02)


def made_study(*names):
    """Returns a study that compares groups with a reference."""

    def trials(scale, seeds):
        return [Trial({"group": name, "seed": seed}, None) for name in (*names, "reference") for seed in seeds]

    return Study("s", "S", "?", {"digits": ""}, trials, [better(name) for name in names], lambda outcomes: [], ())


class Runner:
    """Runs trials by drawing accuracies, and remembers how often each one ran.

    Args:
      effects: Difference of each group from the reference.
      seconds: Duration of a trial by group.
      budget: Number of trials after which the time has ended.
    """

    def __init__(self, effects, seconds=None, budget=10_000, mean=0.5):
        self.effects, self.seconds, self.budget, self.mean = effects, seconds or {}, budget, mean
        self.known, self.runs, self.said = {}, [], []

    def __call__(self, trials):
        for trial in trials:
            group, seed = trial.labels["group"], trial.labels["seed"]
            if (group, seed) not in self.known:
                if len(self.runs) >= self.budget:
                    raise OutOfTime(1)
                self.runs.append((group, seed))
                noise = np.random.default_rng([seed, *group.encode()]).normal(0, 0.01)
                summary = {"accuracy": self.mean + self.effects.get(group, 0.0) + noise, "test_examples": 100}
                outcome = Outcome(trial.labels, summary, None, {}, {}, self.seconds.get(group, 1.0))
                self.known[group, seed] = outcome
        return [self.known[trial.labels["group"], trial.labels["seed"]] for trial in trials]

    def decide(self, this):
        planned = this.trials("digits", range(LOOKS[-1][0]))
        ran, outcomes, seen = sequential.run_until_decided(this, planned, LOOKS, self, self.said.append)
        assert len(ran) == len(outcomes)
        return sequential.records(seen, outcomes)

    def seeds(self, group):
        return sorted(seed for name, seed in self.runs if name == group)


def test_only_groups_of_undecided_claims_get_more_seeds():
    runner = Runner({"clear": CLEAR, "close": CLOSE, "hard": HARD})
    clear, close, hard = runner.decide(made_study("clear", "close", "hard"))
    assert runner.seeds("clear") == list(range(FIRST)) and clear["seeds_seen"] == FIRST
    assert len(runner.runs) == len(set(runner.runs))  # none twice
    assert runner.seeds("hard") == list(range(20)) and runner.seeds("reference") == list(range(20))
    assert runner.seeds("close") == list(range(close["seeds_seen"])) and FIRST < close["seeds_seen"] <= 20
    assert [one["verdict"] for one in (clear, close, hard)] == [AGREES, AGREES, TOO_SMALL]
    assert hard["seeds"] > 20 and "seeds" not in clear


def test_the_same_command_again_runs_nothing_and_says_the_same():
    this, runner = made_study("clear", "close"), Runner({"clear": CLEAR, "close": CLOSE})
    first, count = runner.decide(this), len(runner.runs)
    assert runner.decide(this) == first and len(runner.runs) == count


def test_a_look_sees_only_its_own_seeds():
    this, runner = made_study("clear"), Runner({"clear": CLEAR})
    planned = this.trials("digits", range(20))
    outcomes = study.Outcomes(runner(planned))  # more seeds than the first look needs, as if another claim had asked
    counts = sequential.Counts([trial.labels for trial in planned])
    early = sequential.see(this.claims[0], outcomes, counts, LOOKS[:1])
    seven = {name: outcomes.where(group=name).seeds_below(FIRST).values("accuracy") for name in ("clear", "reference")}
    assert early.seeds == FIRST and early.evidence.estimate == study.more(seven).evidence.estimate
    whole = sequential.see(this.claims[0], outcomes, counts, LOOKS)
    assert whole.seeds == 20 and whole.next is None and early.next is None


def test_the_cheapest_decision_comes_first():
    for cheap, dear in (("one", "two"), ("two", "one")):
        runner = Runner({"one": HARD, "two": HARD}, {dear: 1000.0})
        runner.decide(made_study("one", "two"))
        later = [group for group, seed in runner.runs if seed >= FIRST and group != "reference"]
        assert later and later[0] == cheap


def test_a_budget_ends_it_and_the_rest_has_a_price():
    runner = Runner({"close": CLOSE, "hard": HARD}, budget=3 * FIRST + 1)
    records = runner.decide(made_study("close", "hard"))
    assert len(runner.runs) == 3 * FIRST + 1 and {one["seeds_seen"] for one in records} == {FIRST}
    assert "the budget ended; the 2 undecided claims would need about" in runner.said[-1]
    with pytest.raises(OutOfTime):  # before the first look there is nothing to judge
        Runner({}, budget=3).decide(made_study("close"))


def test_after_the_budget_finished_trials_are_still_looked_at():
    runner = Runner({"close": CLOSE, "hard": HARD})
    runner.decide(made_study("hard"))  # its trials are in the ledger then
    runner.budget = len(runner.runs) + FIRST
    close, hard = runner.decide(made_study("close", "hard"))
    assert (close["seeds_seen"], hard["seeds_seen"]) == (FIRST, LOOKS[-1][0])
    assert "the 1 undecided claims would need about" in runner.said[-1] and close["statement"] in runner.said[-5]


def test_a_difference_too_small_to_matter_is_refuted_except_at_the_ceiling():
    def records_at(mean):
        this = made_study("same")
        planned = this.trials("digits", range(FIRST))
        runner = Runner({}, mean=mean)
        outcomes = study.Outcomes(
            [
                one._replace(summary={**one.summary, "accuracy": mean + 1e-5 * one.labels["seed"]})
                for one in runner(planned)
            ]
        )
        counts = sequential.Counts([trial.labels for trial in planned])
        seen = [sequential.see(claim, outcomes, counts, [(FIRST, 0.05)]) for claim in this.claims]
        return sequential.records(seen, outcomes)[0]

    below = records_at(0.9)
    assert below["verdict"] == DISAGREES and below["reason"] == "no difference that matters"
    at_ceiling = records_at(0.995)  # of 100 test images
    assert at_ceiling["verdict"] == TOO_SMALL and at_ceiling["reason"].startswith(
        "at ceiling: 99.50% of 100 test images"
    )


def test_a_refuted_equivalence_is_no_negligible_difference():
    this = made_study("apart")
    planned = this.trials("digits", range(FIRST))
    outcomes = study.Outcomes(Runner({"apart": CLEAR})(planned))

    def alike(outcomes):
        pair = (outcomes.where(group=name).values("accuracy") for name in ("apart", "reference"))
        return study.Judgement(evidence.equivalent(*pair, margin=0.02), "")

    counts = sequential.Counts([trial.labels for trial in planned])
    seen = sequential.see(this.claims[0]._replace(judge=alike), outcomes, counts, [(FIRST, 0.05)])
    (record,) = sequential.records([seen], outcomes)
    assert record["verdict"] == DISAGREES and record["reason"] == ""


def test_a_judge_leaves_a_record_of_what_it_reads():
    outcomes = study.Outcomes(Runner({})(made_study("a", "b").trials("digits", range(2))))
    outcomes.where(group="a").values("accuracy")
    assert outcomes.used == {study.group_of({"group": "a"}): {"accuracy"}}
    assert outcomes.distinct("group") == ["a", "b", "reference"] and len(outcomes.used) == 1
    assert len(list(outcomes)) == 6 and len(outcomes.used) == 3


def test_the_forest_plot_has_a_row_per_claim_with_an_effect():
    runner = Runner({"clear": CLEAR, "close": CLOSE})
    claims = runner.decide(made_study("clear", "close"))
    figure = Figure(layout="constrained")
    forest.draw(figure, forest.drawable([*claims, {**claims[0], "estimate": None}]))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clear is better.", "close is better."]
    assert sum("published +2.0 points" in text.get_text() for text in axes.texts) == 2
    figure.draw_without_rendering()

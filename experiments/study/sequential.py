"""Adds seeds until claims are decided: the evidence for each claim, its missing trials, and the claim to continue with.

A claim is judged at fixed numbers of seeds, its looks. A look at n seeds uses seeds 0 to n - 1 of the groups that the
judge reads, and no others. So the evidence of a look does not depend on the seeds that other claims needed.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.study import Claim, Outcome, Outcomes, Study, Trial, group_of, verdicts
from experiments.study.evidence import POINT, Evidence
from experiments.study.launch import OutOfTime

Looks = Sequence[tuple[int, float]]  # (seeds per group, level), see `verdicts.looks`


@dataclasses.dataclass(frozen=True)
class Seen:
    """A claim as judged at its latest look.

    Attributes:
      claim: The claim.
      evidence: Its evidence, over all of its looks.
      ours: Our numbers for it, in one sentence.
      used: Names of the numbers that the judge read, by group of trials.
      seeds: Number of seeds at the last look.
      next: Number of seeds at the next look; None after the last.
    """

    claim: Claim
    evidence: Evidence
    ours: str
    used: Mapping[str, set[str]]
    seeds: int
    next: int | None


class Counts:
    """The number of trials in each group, by seed."""

    def __init__(self, labels: Sequence[Mapping[str, Any]]):
        self._seeds: dict[str, list[int]] = collections.defaultdict(list)
        for one in labels:
            self._seeds[group_of(one)].append(one.get("seed", 0))

    def below(self, group: str, count: int) -> int:
        """Returns the number of a group's trials with seeds 0 to count - 1."""
        return sum(seed < count for seed in self._seeds[group])


def see(claim: Claim, outcomes: Outcomes, planned: Counts, looks: Looks) -> Seen:
    """Judges a claim at each look whose trials have finished."""
    present, evidence_by_look = Counts([o.labels for o in outcomes.all()]), []
    judgement, used, count = None, {}, 0
    for count, level in looks:
        if any(present.below(group, count) < planned.below(group, count) for group in used):
            break
        part = outcomes.seeds_below(count)
        judgement = claim.judge(part)
        used = part.used
        evidence_by_look.append((count, judgement.evidence, level))
    assert judgement is not None
    last = evidence_by_look[-1][0]
    return Seen(
        claim,
        verdicts.sequential([(one, level) for _, one, level in evidence_by_look]),
        judgement.ours,
        used,
        last,
        next((count for count, _ in looks if count > last), None),
    )


def verdict_of(holds: bool | None) -> str:
    """Returns the verdict on a claim that holds (True), is refuted (False) or is undecided (None)."""
    return verdicts.TOO_SMALL if holds is None else verdicts.AGREES if holds else verdicts.DISAGREES


def ceiling(seen: Seen, outcomes: Outcomes) -> str:
    """Returns a reason if accuracies are too close to 100% to decide a claim about them; otherwise "".

    At the ceiling, the best group misclassifies at most one test image on average.
    """
    groups = collections.defaultdict(list)
    for outcome in outcomes.all():
        group = group_of(outcome.labels)
        if "accuracy" in seen.used.get(group, ()) and outcome.summary and "test_examples" in outcome.summary:
            groups[group].append((outcome.summary["accuracy"], outcome.summary["test_examples"]))
    best = max(groups.values(), key=lambda values: statistics.mean(v for v, _ in values), default=None)
    if not best:
        return ""
    accuracy, images = statistics.mean(value for value, _ in best), best[0][1]
    return f"at ceiling: {accuracy:.2%} of {images} test images" if accuracy >= 1 - 1 / images else ""


def records(seen: Sequence[Seen], outcomes: Outcomes) -> list[dict[str, Any]]:
    """Returns the claims with their verdicts, as in results.json."""
    evidence = [one.evidence for one in seen]
    rows = []
    for one, p, holds in zip(seen, verdicts.corrected(evidence), verdicts.decide(evidence), strict=True):
        claim, verdict, reason = one.claim, verdict_of(holds), one.evidence.note
        # Refuted as too small to matter, and not because the effect is the opposite
        negligible = holds is False and math.isfinite(one.evidence.worth) and one.evidence.high >= one.evidence.margin
        if negligible:
            reason = "no difference that matters"
        near_zero = holds is None and one.evidence.unit == "points" and abs(one.evidence.estimate) < POINT
        if (near_zero or negligible) and (at_ceiling := ceiling(one, outcomes)):
            verdict, reason = verdicts.TOO_SMALL, at_ceiling
        rows.append(
            {
                **{name: getattr(claim, name) for name in ("statement", "published", "source", "expected")},
                "verdict": verdict,
                "ours": one.ours,
                **{name: _number(getattr(one.evidence, name)) for name in ("estimate", "low", "high", "margin")},
                "unit": one.evidence.unit,
                "effect": claim.effect,
                "p": p,
                "test": one.evidence.test,
                "seeds_seen": one.seeds,
                "reason": reason,
                **(
                    {"seeds": one.evidence.seeds}
                    if verdict == verdicts.TOO_SMALL and (one.evidence.seeds or 0) > one.seeds
                    else {}
                ),
            }
        )
    return rows


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Step:
    """The trials for the next look at an undecided claim.

    Attributes:
      seen: The claim.
      trials: The trials that the look needs.
      cost: Expected seconds of training and measuring until the claim is decided.
      likely: Whether the claim is expected to be decided by its last look.
    """

    seen: Seen
    trials: Sequence[Trial]
    cost: float
    likely: bool


def steps(seen: Sequence[Seen], planned: Sequence[Trial], outcomes: Outcomes, most: int) -> list[Step]:
    """Returns the possible next looks, the most promising first: those with the lowest expected cost of a decision."""
    seconds, finished = collections.defaultdict(list), set()
    for outcome in outcomes.all():
        key = _key(outcome.labels)
        seconds[key[0]].append(outcome.seconds)
        finished.add(key)
    unfinished = [(*key, trial) for trial in planned if (key := _key(trial.labels)) not in finished]
    possible = []
    for one, holds in zip(seen, verdicts.decide([one.evidence for one in seen]), strict=True):
        pending = [(group, seed, trial) for group, seed, trial in unfinished if group in one.used]
        if holds is not None or one.next is None or one.evidence.note or not pending:
            continue
        seeds_needed = max(one.evidence.seeds or most, one.next)
        cost = sum(statistics.mean(seconds[group] or [0.0]) for group, seed, _ in pending if seed < seeds_needed)
        trials = [trial for _, seed, trial in pending if seed < one.next]
        possible.append(Step(one, trials, cost, seeds_needed <= most))
    return sorted(possible, key=lambda step: (not step.likely, step.cost))


def run_until_decided(
    study: Study,
    planned: Sequence[Trial],
    looks: Looks,
    run: Callable[[Sequence[Trial]], Sequence[Outcome]],
    say: Callable[[str], None],
) -> tuple[list[Trial], Outcomes, list[Seen]]:
    """Runs the trials of the first look, then those for the most promising claims, until no claim can still be decided.

    Args:
      study: The study.
      planned: Its trials, with all seeds of the last look.
      looks: The looks.
      run: Runs trials and returns their outcomes; raises OutOfTime if the time budget has ended.
      say: Prints a line for the user.

    Returns:
      (trials that ran, their outcomes, the claims at their last looks).

    Raises:
      OutOfTime: The budget ended before the first look.
    """
    counts = Counts([trial.labels for trial in planned])
    chosen = [trial for trial in planned if trial.labels.get("seed", 0) < looks[0][0]]
    outcomes, halted = Outcomes(run(chosen)), set()
    while True:
        seen = [see(claim, outcomes, counts, looks) for claim in study.claims]
        possible = steps(seen, planned, outcomes, looks[-1][0])
        step = next((one for one in possible if one.seen.claim.statement not in halted), None)
        if step is None:
            if possible:
                rest = sum(one.cost for one in possible)
                undecided = f"the {len(possible)} undecided claims would need about {rest:.0f} s more of trials"
                say(f"the budget ended; {undecided}")
            return chosen, outcomes, seen
        ids = set(map(id, (*chosen, *step.trials)))
        say(f"seeds up to {step.seen.next} for: {step.seen.claim.statement} ({len(step.trials)} trials)")
        try:
            trials_so_far = [trial for trial in planned if id(trial) in ids]
            outcomes, chosen = Outcomes(run(trials_so_far)), trials_so_far
        except OutOfTime:  # the trials of other claims may all be in the ledger
            halted.add(step.seen.claim.statement)


def _key(labels: Mapping[str, Any]) -> tuple[str, int]:
    return group_of(labels), labels.get("seed", 0)

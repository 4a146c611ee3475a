"""Test images on which networks disagree: shares for all pairs of groups, and the images of one pair."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.comparison.groups import Comparison, Group
from experiments.comparison.results import listed
from experiments.comparison.runs import Run, Warn, printable
from models.errors import UserError

MOST = 24  # groups whose networks are opened
RIGHT = ("both right", "only the first", "only the second", "both wrong")  # keys of the counts of a pair


class Answers(NamedTuple):
    """The answers of one network to a test set.

    Attributes:
      run: The run.
      predicted: Predicted classes, [N].
      confidence: Their probabilities, [N].
      labels: True classes, [N].
      places: Place of each row in the test set, ascending; images that cannot be decoded are left out.
      classes: Names of the classes.
      image: Returns the pixels of a place in the test set, uint8 [H, W, C].
    """

    run: Run
    predicted: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    places: np.ndarray
    classes: Sequence[str]
    image: Callable[[int], np.ndarray]

    def at(self, places: np.ndarray) -> "Answers":
        """Returns the answers at some places, all of which it has."""
        rows = np.searchsorted(self.places, places)
        parts = {name: getattr(self, name)[rows] for name in ("predicted", "confidence", "labels")}
        return self._replace(**parts, places=places)


class Pair(NamedTuple):
    """Two networks on one test set.

    Attributes:
      first, second: Their groups.
      answers: Their answers, on the images that both decoded.
      counts: Number of images for each of RIGHT.
      p: p value of McNemar's exact test that both are right equally often.
    """

    first: Group
    second: Group
    answers: tuple[Answers, Answers]
    counts: dict[str, int]
    p: float

    @property
    def differ(self) -> np.ndarray:
        """Rows at which the predicted classes differ, the most confident pairs of answers first."""
        one, other = (answers.predicted for answers in self.answers)
        rows = np.flatnonzero(one != other)
        confidence = self.answers[0].confidence + self.answers[1].confidence
        return rows[np.argsort(-confidence[rows], kind="stable")]


class Matrix(NamedTuple):
    """Shares of test images on which predicted classes differ.

    Attributes:
      groups: The groups.
      shares: [groups, groups]; on the diagonal, that of two seeds of one group; NaN where there is no such pair.
      runs: The network of each group.
    """

    groups: Sequence[Group]
    shares: np.ndarray
    runs: Sequence[Run]


def answers_of(run: Run, which: str) -> Answers:
    """Reopens a run and returns its answers to its test set.

    Raises:
      UserError: The run has no readable checkpoint, it does not classify images, or its data set is not there.
    """
    from train import restore
    from train.data.image_feed import as_images

    assert run.folder
    network, state = restore.load_network(run.folder, which)
    feed = as_images(network.feed, f"its inputs are {network.feed.unit}, not images")
    if feed.label_shape:
        raise UserError("its images have several classes each")
    logits, labels, index = network.predictions(state.evaluation_variables(), feed.test_batches())
    test, total = feed.test, np.exp(logits - logits.max(1, keepdims=True)).sum(1)  # relative to the predicted class's
    return Answers(
        run,
        logits.argmax(1),
        1 / total,
        labels,
        index,
        feed.classes,
        lambda place: np.asarray(test.example(place, None)["image"]),
    )


# -- the networks to open ------------------------------------------------------------------------------------


def candidates(group: Group) -> list[Run]:
    """Returns the runs of a group whose networks may be opened: the finished ones, or else those that are not."""
    return [run for run in group.finished or group.runs if run.folder and not run.outcome.diverged]


def chosen(groups: Sequence[Group]) -> dict[str, list[Run]]:
    """Returns up to two runs for each group; the first have the seed that most groups share."""
    seeds = Counter(seed for group in groups for seed in {run.seed for run in candidates(group)} if seed is not None)
    common = min(seeds, key=lambda seed: (-seeds[seed], seed), default=None)
    return {group.name: sorted(candidates(group), key=lambda run: run.seed != common)[:2] for group in groups}


def comparable(groups: Sequence[Group], warn: Warn) -> list[Group]:
    """Returns the groups whose networks can be compared: those with weights and the test set of the first of them.

    Warns with one line for each reason why groups are left out.
    """
    opened = [group for group in groups if candidates(group)]
    without = [group.name for group in groups if group not in opened]
    if not opened:
        warn("no disagreements: there are no weights, only results")
        return []
    if without:
        warn(f"no disagreements of {listed(without)}: there are no weights")
    same = [group for group in opened if group.test.same(opened[0].test)]
    if other := [group.name for group in opened if group not in same]:
        warn(f"no disagreements between {same[0].name} and {listed(other)}: their test sets differ")
    if len(same) > MOST:
        warn(f"disagreements of the first {MOST} of {len(same)} groups")
    return same[:MOST]


# -- disagreements -------------------------------------------------------------------------------------------


def find(
    comparison: Comparison, asked: tuple[Group, Group] | None, which: str, warn: Warn
) -> tuple[Matrix | None, Pair | None]:
    """Returns the disagreements of all groups, and those of the pair that was asked for, or of the only two groups.

    None stands for what cannot be compared; a warning says why.

    Args:
      comparison: The groups.
      asked: The pair to look at, or None.
      which: The checkpoint, "last" or "best".
      warn: Is called with a line for each group that is left out.
    """
    order = [*(asked or ()), *(group for group in comparison.groups if group not in (asked or ()))]
    groups = comparable(order, warn)
    if len(groups) < 2:
        return None, None
    groups.sort(key=comparison.groups.index)
    found, answers = matrix(groups, which, warn)
    pair = asked or (tuple(comparison.groups) if len(comparison.groups) == 2 else None)
    if found is None or pair is None or not all(group.name in answers for group in pair):
        return found, None
    return found, pair_of(pair[0], pair[1], answers)


def matrix(groups: Sequence[Group], which: str, warn: Warn) -> tuple[Matrix | None, dict[str, Answers]]:
    """Opens the networks of groups, and returns their disagreements and their answers by the name of the group.

    Networks that cannot be opened are left out, with a warning for each reason. Returns None for fewer than two groups.
    """
    opened: dict[str, list[Answers]] = {}
    failed: dict[str, list[str]] = {}
    for name, runs in chosen(groups).items():
        for run in runs:
            try:
                opened.setdefault(name, []).append(answers_of(run, which))
            except (UserError, OSError) as error:
                reason = " ".join(str(error).split()).removeprefix(f"{run.folder}: ")
                failed.setdefault(reason, []).append(run.name)
    for reason, names in failed.items():
        warn(f"no disagreements of {listed(names)}: {printable(reason)}")
    kept = [group for group in groups if opened.get(group.name)]
    shares = np.full((len(kept), len(kept)), math.nan)
    for i, group in enumerate(kept):
        for j, other in enumerate(kept):
            pair = (opened[group.name][:1] + opened[other.name][:1]) if i != j else opened[group.name]
            if len(pair) == 2:
                shares[i, j] = share(*pair)
    answers = {group.name: opened[group.name][0] for group in kept}
    return (Matrix(kept, shares, [one.run for one in answers.values()]) if len(kept) > 1 else None), answers


def share(first: Answers, second: Answers) -> float:
    """Returns the share of images on which the predicted classes differ; NaN if no image was decoded by both."""
    one, other = shared(first, second)
    return float(np.mean(one.predicted != other.predicted)) if len(one.places) else math.nan


def shared(first: Answers, second: Answers) -> tuple[Answers, Answers]:
    """Returns both answers on the images that both networks decoded."""
    places = np.intersect1d(first.places, second.places)
    return first.at(places), second.at(places)


def pair_of(first: Group, second: Group, answers: dict[str, Answers]) -> Pair:
    """Returns the disagreements of two groups whose networks were opened."""
    from statsmodels.stats.contingency_tables import mcnemar

    one, other = shared(answers[first.name], answers[second.name])
    right = [part.predicted == part.labels for part in (one, other)]
    cells: list[Any] = [
        int(np.sum((right[0] == is_right) & (right[1] == is_other)))
        for is_right, is_other in ((True, True), (True, False), (False, True), (False, False))
    ]
    result: Any = mcnemar([cells[:2], cells[2:]], exact=True)
    return Pair(first, second, (one, other), dict(zip(RIGHT, cells, strict=True)), float(result.pvalue))

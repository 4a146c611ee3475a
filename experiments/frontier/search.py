"""Trains candidates, the most promising first, within a budget; goes on where it was stopped.

The dense network trains on first. It is what candidates are compared with, and it teaches them. A finished training is
a line of the ledger, as in studies and sweeps, and an exported candidate has a file of what was measured; neither is
repeated.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
from ml_collections import ConfigDict

from experiments import study
from experiments.frontier import order, points, starts
from experiments.frontier.dense import Dense
from experiments.frontier.estimates import Estimate
from experiments.frontier.methods import DENSE, Candidate, Training
from experiments.study import engines, launch, ledger, trials
from models.analysis.tables import slug
from models.errors import UserError


class Search(NamedTuple):
    """A search for the frontier of a network.

    Attributes:
      dense: The network.
      candidates: Those that fit it.
      estimates: Their costs by name, and that of the dense network, DENSE.
      measure: The measure to make small.
      lose: Percentage points of accuracy that may be lost.
      out: Folder of the results.
      seconds: Time after which no training starts that would not end in time; None for no limit.
    """

    dense: Dense
    candidates: Sequence[Candidate]
    estimates: Mapping[str, Estimate]
    measure: str
    lose: float
    out: Path
    seconds: float | None = None

    def ordered(self, passed: Mapping[str, bool]) -> list[Candidate]:
        """Returns the candidates that are left, the most promising first; see `order.plan`."""
        return order.plan(self.candidates, self.estimates, self.measure, self.estimates[DENSE], passed)

    @property
    def start(self) -> Candidate:
        """The dense network, which trains on as its candidates do."""
        portable, feed = self.dense.portable, self.dense.network.feed
        section = starts.section(portable.name, portable.fields, feed.fields)
        return Candidate(DENSE, DENSE, 0, section, (Training({}, is_taught=False),))

    def trial(self, candidate: Candidate) -> study.Trial:
        """Returns the last training of a candidate, which starts from those before it."""
        config = self.dense.trained()
        trial = study.Trial({"candidate": DENSE, "seed": config.seed}, config)
        if candidate.name == DENSE or not candidate.trainings:
            return trial
        teacher = self.root / trials.folder_name(trial)
        begin = str(self.file(candidate)) if candidate.start else None
        earlier = None
        for number, training in enumerate(candidate.trainings, 1):
            changes: dict[str, Any] = {"init_from": begin} if begin and earlier is None else {}
            if training.is_taught:
                changes["task__name"] = f"distill(teacher={str(teacher)!r})"
            config = self.dense.trained(**changes, model=ConfigDict(candidate.model))
            config = _changed(config, training.changes)
            labels = {"candidate": candidate.name, "seed": config.seed}
            is_last = number == len(candidate.trainings)
            earlier = study.Trial(labels if is_last else {**labels, "training": number}, config, start=earlier)
        assert earlier is not None
        return earlier

    def file(self, candidate: Candidate) -> Path:
        """Returns the file with the network from which a candidate starts."""
        return self.out.absolute() / "starts" / f"{slug(candidate.name)}.safetensors"

    @property
    def root(self) -> Path:
        """Folder of the trainings' folders."""
        return self.out.absolute() / "trials"


class Result(NamedTuple):
    """The result of a search.

    Attributes:
      dense: The dense network after further training.
      points: The candidates that were trained, exported and measured, by name.
      outcomes: Outcomes of their trainings, and that of the dense network, by name.
      refused: {name: reason} of the candidates that could not be trained or exported.
      left: Names of the candidates for which there was no time.
    """

    dense: points.Point
    points: Mapping[str, points.Point]
    outcomes: Mapping[str, study.Outcome]
    refused: Mapping[str, str]
    left: Sequence[str]


def _changed(config: Any, changes: Mapping[str, Any]) -> Any:
    for path, value in changes.items():
        *sections, key = path.split("__")
        functools.reduce(lambda section, name: section[name], sections, config)[key] = value
    return config


def passes(search: Search, dense: points.Point, point: points.Point) -> bool:
    """Returns whether a point loses at most `search.lose` points of accuracy on the held-out images."""
    return point.facts["held_out"] >= dense.facts["held_out"] - search.lose / 100


def run(search: Search, place: engines.Place, console: rich.console.Console, say: Callable[[str], None]) -> Result:
    """Trains, exports and measures candidates until none is left or the time is over.

    Raises:
      UserError: The dense network cannot be trained.
      Interrupted: A signal came; the same command goes on.
    """
    began, lines = time.time(), ledger.Ledger(search.out)
    outcomes: dict[str, study.Outcome] = {}

    def train(several: Sequence[Candidate]) -> None:
        for one in several:
            if one.start and not search.file(one).exists():
                starts.write(one.start(), search.file(one))
        planned = [search.trial(candidate) for candidate in several]
        every = [one for trial in planned for one in (*trials.starts(trial), trial)]
        done = launch.run_all(every, lines, search.root, place, console, keep=True)
        by_name = {trials.address(trial): outcome for trial, outcome in zip(every, done, strict=True)}
        outcomes.update({c.name: by_name[trials.address(t)] for c, t in zip(several, planned, strict=True)})

    def export(candidate: Candidate) -> points.Point:
        trial = search.trial(candidate)
        folder = search.root / trials.folder_name(trial)
        where = search.out / "exported"
        return points.export(search.dense, candidate, folder, trials.address(trial), where, search.measure)

    train([search.start])
    if outcomes[DENSE].summary is None:
        raise UserError(f"further training of --workdir={search.dense.folder} diverged: {outcomes[DENSE].diverged}")
    dense = export(search.start)
    say(f"dense: {dense.facts['held_out']:.2%} of the held-out images are right")
    found: dict[str, points.Point] = {}
    refused: dict[str, str] = {}
    passed: dict[str, bool] = {}
    while waiting := [one for one in search.ordered(passed) if one.name not in refused]:
        waiting = [one for one in waiting if _is_done(search, one, lines) or _fits(search, one, outcomes, began)]
        several = list({one.method: one for one in reversed(waiting)}.values())[::-1]
        several = sorted(several, key=waiting.index)[: place.at_once]
        if not several:
            break
        try:
            train(several)
        except (engines.Interrupted, launch.OutOfTime):
            raise
        except UserError as error:
            reason = str(error).splitlines()[0]
            for one in several:  # those of them that have finished are in the ledger
                if len(several) == 1 or _address(search, one) in reason:
                    refused[one.name] = reason
                    say(f"{one.name}: {reason}")
            if not any(one.name in refused for one in several):
                raise
            continue
        for one in several:
            if outcomes[one.name].diverged:
                passed[one.name], refused[one.name] = False, str(outcomes[one.name].diverged)
                continue
            try:
                found[one.name] = point = export(one)
            except UserError as error:
                refused[one.name] = str(error).splitlines()[0]
                say(f"{one.name}: {refused[one.name]}")
                continue
            passed[one.name] = passes(search, dense, point)
            lost = 100 * (dense.facts["held_out"] - point.facts["held_out"])
            say(f"{one.name}: {point.facts['held_out']:.2%} of the held-out images, {lost:+.2f} points lost")
    left = [one.name for one in search.ordered(passed) if one.name not in refused]
    return Result(dense, found, outcomes, refused, left)


def _address(search: Search, candidate: Candidate) -> str:
    return trials.address(search.trial(candidate))


def _is_done(search: Search, candidate: Candidate, lines: ledger.Ledger) -> bool:
    trial = search.trial(candidate)
    return bool(trials.finished(trials.merged([trial]), lines))


def _fits(search: Search, candidate: Candidate, outcomes: Mapping[str, study.Outcome], began: float) -> bool:
    """Returns whether a training would end within the budget, by the time that the dense network took."""
    if search.seconds is None:
        return True
    share = search.estimates[candidate.name].training / search.estimates[DENSE].training
    return time.time() - began + share * outcomes[DENSE].seconds <= search.seconds


def described(search: Search, several: Sequence[Candidate]) -> list[list[str]]:
    """Returns a row per candidate, in order, with its estimates beside those of the dense network."""
    whole, rows = search.estimates[DENSE], []
    for candidate in several:
        one = search.estimates[candidate.name]
        rows.append(
            [
                candidate.name,
                f"{whole.mult_adds / one.mult_adds:.1f}",
                f"{whole.bytes / one.bytes:.1f}",
                f"{whole.milliseconds / one.milliseconds:.1f}" if search.measure == "time" else "—",
                f"{one.training / whole.training:.2f}",
            ]
        )
    return rows

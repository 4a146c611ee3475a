"""Trains candidates, the most promising first, within a budget; goes on where it was stopped.

The dense network trains on first. It is what candidates are compared with, and it teaches them. A finished training is
a line of the ledger, as in studies and sweeps, and an exported candidate has a file of what was measured; neither is
repeated.
"""

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
            changes |= {"model": ConfigDict(candidate.model), **training.changes}
            config = self.dense.trained(**changes)
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


def run(search: Search, place: engines.Place, console: rich.console.Console, say: Callable[[str], None]) -> Result:
    """Trains, exports and measures candidates until none is left or the time is over.

    Raises:
      UserError: The dense network cannot be trained.
      Interrupted: A signal came; the same command goes on.
    """
    return _Runner(search, place, console, say).run()


class _Runner:
    """The state of a search while it runs."""

    def __init__(self, search: Search, place: engines.Place, console: rich.console.Console, say: Callable[[str], None]):
        self._search, self._place, self._console, self._say = search, place, console, say
        self._began, self._lines = time.time(), ledger.Ledger(search.out)
        self._outcomes: dict[str, study.Outcome] = {}
        self._points: dict[str, points.Point] = {}
        self._refused: dict[str, str] = {}
        self._passed: dict[str, bool] = {}

    def run(self) -> Result:
        """See the function `run`."""
        start = self._search.start
        self._train([start])
        if self._outcomes[DENSE].summary is None:
            folder, text = self._search.dense.folder, self._outcomes[DENSE].diverged
            raise UserError(f"further training of --workdir={folder} diverged: {text}")
        dense = self._export(start)
        self._say(f"dense: {dense.facts['held_out']:.2%} of the held-out images are right")
        while several := self._next():
            for candidate in self._trained(several):
                self._measure(candidate, dense)
        return Result(dense, self._points, self._outcomes, self._refused, [one.name for one in self._waiting()])

    def _waiting(self) -> list[Candidate]:
        return [one for one in self._search.ordered(self._passed) if one.name not in self._refused]

    def _next(self) -> list[Candidate]:
        """Returns the candidates to train at once, of different methods; [] if there is no time for any."""
        chosen: dict[str, Candidate] = {}
        for candidate in self._waiting():
            if candidate.method not in chosen and self._fits(candidate):
                chosen[candidate.method] = candidate
        return list(chosen.values())[: self._place.at_once]

    def _fits(self, candidate: Candidate) -> bool:
        """Returns whether a training has ended, or would end within the budget, by the time of the dense network."""
        search = self._search
        if search.seconds is None or trials.finished(trials.merged([search.trial(candidate)]), self._lines):
            return True
        share = search.estimates[candidate.name].training / search.estimates[DENSE].training
        return time.time() - self._began + share * self._outcomes[DENSE].seconds <= search.seconds

    def _train(self, several: Sequence[Candidate]) -> None:
        """Runs what the ledger lacks of the trainings of some candidates."""
        search = self._search
        planned = [search.trial(candidate) for candidate in several]
        every = [one for trial in planned for one in (*trials.starts(trial), trial)]
        done = launch.run_all(every, self._lines, search.root, self._place, self._console, keep=True)
        by_address = {trials.address(trial): outcome for trial, outcome in zip(every, done, strict=True)}
        for one, trial in zip(several, planned, strict=True):
            self._outcomes[one.name] = by_address[trials.address(trial)]

    def _trained(self, several: Sequence[Candidate]) -> Sequence[Candidate]:
        """Trains candidates, and returns those that could be trained; [] if one could not, which is refused."""
        several = [one for one in several if self._begun(one)]
        try:
            self._train(several)
        except (engines.Interrupted, launch.OutOfTime):
            raise
        except Exception as error:  # the others are in the ledger, or run with the next ones
            text = str(error).strip() or repr(error)
            bad = [one for one in several if text.partition(": ")[0] in self._addresses(one)]
            if not bad and (isinstance(error, UserError) or len(several) > 1):  # not of one of these trainings
                raise
            for one in bad or several:
                self._refuse(one, text.splitlines()[-1])
            return []
        return several

    def _begun(self, candidate: Candidate) -> bool:
        """Writes the network from which a candidate starts; returns False if it cannot be made, which is refused."""
        file = self._search.file(candidate)
        try:
            if candidate.start and not file.exists():
                starts.write(candidate.start(), file)
        except UserError as error:
            self._refuse(candidate, str(error).splitlines()[0])
        return candidate.name not in self._refused

    def _addresses(self, candidate: Candidate) -> list[str]:
        trial = self._search.trial(candidate)
        return [trials.address(one) for one in (*trials.starts(trial), trial)]

    def _refuse(self, candidate: Candidate, reason: str) -> None:
        self._refused[candidate.name] = reason
        self._say(f"{candidate.name}: {reason}")

    def _export(self, candidate: Candidate) -> points.Point:
        search, trial = self._search, self._search.trial(candidate)
        made = {"trial": trials.address(trial), "code": trials.training_code(trial)}
        folder, out = search.root / trials.folder_name(trial), search.out / "exported"
        return points.export(candidate, folder, made, out, search.measure, search.lose)

    def _measure(self, candidate: Candidate, dense: points.Point) -> None:
        """Exports and measures a trained candidate."""
        if text := self._outcomes[candidate.name].diverged:
            self._passed[candidate.name] = False
            self._refuse(candidate, text)
            return
        try:
            point = self._points[candidate.name] = self._export(candidate)
        except UserError as error:
            self._refuse(candidate, str(error).splitlines()[0])
            return
        right, whole = point.facts["held_out"], dense.facts["held_out"]
        self._passed[candidate.name] = order.loses_little(right, whole, self._search.lose)
        self._say(f"{candidate.name}: {right:.2%} of the held-out images, {100 * (whole - right):+.2f} points lost")


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

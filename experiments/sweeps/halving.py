"""Runs the trials of a sweep: all of them to their ends, or by successive halving.

With halving, every setting trains for a small part of its duration. The best part of the settings goes on from its
checkpoints, and so on. The learning rate follows the schedule of the whole duration, so that the networks at the end
are those of an ordinary training, to the bit.

Jamieson & Talwalkar 2016  non-stochastic best arm identification and hyperparameter optimization
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import study
from experiments.study import trials
from experiments.sweeps.metric import Metric
from experiments.sweeps.plan import Setting
from models.errors import UserError

RunAll = Callable[[Sequence[study.Trial], bool], list[study.Outcome]]  # of the trials, and whether folders stay


class Rung(NamedTuple):
    """A part of the training after which the best settings go on.

    Attributes:
      settings: Number of settings that train up to it.
      steps: The steps at which each setting of the sweep pauses; 0 for its end.
    """

    settings: int
    steps: Sequence[int]


class Result(NamedTuple):
    """The outcomes of a setting: those of each rung that it reached, one per seed."""

    setting: Setting
    rungs: Sequence[Sequence[study.Outcome]]

    @property
    def last(self) -> Sequence[study.Outcome]:
        """The outcomes of the last rung that it reached."""
        return self.rungs[-1]


def rungs(factor: int, totals: Sequence[int]) -> list[Rung]:
    """Returns the rungs of successive halving; a single one, without a pause, if `factor` is 0.

    Args:
      factor: One of `factor` settings goes on from each rung.
      totals: Number of steps of each setting.

    Raises:
      UserError: There are too few settings or steps.
    """
    count = len(totals)
    if not factor:
        return [Rung(count, [0] * count)]
    if factor == 1:
        raise UserError("--halving=1 would stop nothing; allowed: 2 or more, and 0 for no halving")
    if count < factor:
        raise UserError(f"--halving={factor} needs at least {factor} settings, not {count}")
    last = int(math.log(count, factor) + 1e-9)
    chosen = []
    for number in range(last, -1, -1):
        steps = [round(total / factor**number) if number else 0 for total in totals]
        if number and min(steps) < 1:
            raise UserError(f"--halving={factor}: a training of {min(totals)} steps is too short for {last + 1} rungs")
        chosen.append(Rung(max(1, count // factor ** (last - number)), steps))
    return chosen


def describe(planned: Sequence[Rung], totals: Sequence[int]) -> str:
    """Returns a line about the rungs, such as "rungs: 9 settings to step 75, 3 to 225, 1 to 674"."""

    def span(steps: Sequence[int]) -> str:
        ends = sorted({step or total for step, total in zip(steps, totals, strict=True)})
        return f"{ends[0]:,}" if len(ends) == 1 else f"{ends[0]:,} … {ends[-1]:,}"

    first, *others = [(rung.settings, span(rung.steps)) for rung in planned]
    return f"rungs: {first[0]} settings to step {first[1]}" + "".join(f", {n} to {end}" for n, end in others)


def run(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    planned: Sequence[Rung],
    run_all: RunAll,
    metric: Callable[[Sequence[study.Outcome]], Metric],
    root: Path,
    keep: bool,
) -> list[Result]:
    """Runs the trials, and returns the results of the settings in their order.

    Args:
      settings: The settings.
      seeds: The seeds of each.
      planned: The rungs.
      run_all: Function of trials, and of whether their folders stay, that returns their outcomes.
      metric: Function of all outcomes of a rung that returns the metric by which settings are ranked.
      root: Folder of the trials' folders.
      keep: Whether the folders of finished trials stay.
    """
    outcomes: list[list[list[study.Outcome]]] = [[] for _ in settings]
    alive = list(range(len(settings)))
    for rung, after in zip(planned, [*planned[1:], None], strict=True):
        groups = [settings[i].trials(seeds, rung.steps[i]) for i in alive]
        flat = run_all([trial for group in groups for trial in group], keep or after is not None)
        for number, i in enumerate(alive):
            outcomes[i].append(flat[number * len(seeds) : (number + 1) * len(seeds)])
        if after:
            best = metric(flat)
            ranked = sorted(alive, key=lambda i: best.key(outcomes[i][-1]))
            leaving = ranked[after.settings :]
            alive = sorted(ranked[: after.settings])
            for trial in (trial for i in leaving if not keep for trial in settings[i].trials(seeds)):
                shutil.rmtree(root / trials.folder_name(trial), ignore_errors=True)
    return [Result(setting, reached) for setting, reached in zip(settings, outcomes, strict=True)]

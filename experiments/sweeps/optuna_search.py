"""Optuna as the chooser of settings. Its trials run as those of a sweep: with a ledger, and from where they paused."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna  # pyright: ignore[reportMissingImports]  (optional: the extra optuna)
import rich.console

from experiments.study import engines, launch, ledger, trials
from experiments.sweeps import metric as metrics
from experiments.sweeps import plan, space


def objective(
    arguments: Sequence[str],
    values: Mapping[str, str],
    folder: Path,
    *,
    rungs: Sequence[int] = (),
    metric: str = "",
    seeds: Sequence[int] = (0,),
    place: engines.Place = engines.Place(),  # noqa: B008  immutable
) -> Callable[[optuna.Trial], float]:
    """Returns a function for `optuna.Study.optimize`: the mean metric over seeds of the setting that Optuna chooses.

    Args:
      arguments: The base config, such as ["--config=configs/digits.py:resnet8", "--config.model.width=8"].
      values: {key: values or distribution}, as --over of `experiments.sweep` takes them.
      folder: Folder of the ledger and of the trials' folders.
      rungs: Steps at which the trial reports its metric and may be pruned.
      metric: Name of a number of summary.json; "" for the first of `metric.DEFAULTS`.
      seeds: The seeds of each setting.
      place: Where the seeds run.
    """
    keys = space.read([f"{path}={text}" for path, text in values.items()]).keys
    console, root = rich.console.Console(quiet=True), folder / "trials"

    def run(trial: optuna.Trial) -> float:
        overs = [f"{key.path}={_suggest(trial, key)}" for key in keys]
        (setting,) = plan.read(arguments, overs).settings
        value = float("nan")
        for until in (*rungs, 0):
            chosen = setting.trials(seeds, until)
            outcomes = launch.run_all(chosen, ledger.Ledger(folder), root, place, console, keep=until > 0)
            diverged = any(outcome.diverged for outcome in outcomes)
            if not diverged:
                value = metrics.choose(outcomes, metric).mean(outcomes)
            if until and not diverged:
                trial.report(value, until)
            if diverged or (until and trial.should_prune()):
                for one in chosen:
                    shutil.rmtree(root / trials.folder_name(one), ignore_errors=True)
                raise optuna.TrialPruned
        return value

    return run


def _suggest(trial: optuna.Trial, key: space.Key) -> str:
    """Returns the value of a key that Optuna chooses, as the command line takes it."""
    if not key.kind:
        return trial.suggest_categorical(key.path, list(key.texts))
    if key.kind == "int":
        return str(trial.suggest_int(key.path, int(key.low), int(key.high)))
    return f"{trial.suggest_float(key.path, key.low, key.high, log=key.kind == 'log'):.4g}"

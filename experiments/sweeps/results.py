"""The results of a sweep: a row per setting, as a table, as JSON, as Markdown and as CSV; and the best command."""

import csv
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import study
from experiments.study.verdicts import deviation, finite
from experiments.sweeps import effects
from experiments.sweeps.halving import Result
from experiments.sweeps.metric import Metric
from experiments.sweeps.plan import Setting, Sweep
from models.analysis.cost import short
from models.analysis.tables import markdown_table
from models.errors import UserError
from train.setup.config import plain

SHARED = ("parameters", "mult_adds", "steps")  # numbers that are the same for all seeds
ENVIRONMENT = ("commit", "device", "versions")


class Row(NamedTuple):
    """A setting and its outcomes at the last rung that it reached, one per seed.

    Attributes:
      setting: The setting.
      outcomes: The outcomes.
      rungs: Number of rungs that it reached.
    """

    setting: Setting
    outcomes: Sequence[study.Outcome]
    rungs: int = 1

    def number(self, name: str) -> float | None:
        """Returns a number from the first summary; None if every seed diverged."""
        return next((outcome.summary[name] for outcome in self.outcomes if outcome.summary), None)

    def seconds(self) -> float:
        """Returns the mean seconds of a trial, over all of its rungs."""
        return statistics.mean(outcome.get("seconds", outcome.seconds) for outcome in self.outcomes)


def rows(results: Sequence[Result], metric: Metric) -> list[Row]:
    """Returns the rows, the best first; settings that trained longer stand before those that halving ended."""
    unsorted = [Row(result.setting, result.last, len(result.rungs)) for result in results]
    return sorted(unsorted, key=lambda row: (-row.rungs, metric.key(row.outcomes)))


# -- tables --------------------------------------------------------------------------------------------------


def table(sorted_rows: Sequence[Row], sweep: Sweep, metric: Metric) -> study.Table:
    """Returns the table of the settings."""
    columns = [*sweep.keys, metric.label, "seeds", "diverged", "params", "mult-adds", "steps", "s"]
    lines = []
    for row in sorted_rows:
        parameters, mult_adds, steps = (row.number(name) or 0 for name in SHARED)
        cells = [metric.spread(row.outcomes), len(row.outcomes), _diverged(row)]
        costs = [
            short(parameters).strip() or "—",
            short(mult_adds).strip() or "—",
            f"{steps:,}",
            f"{row.seconds():.1f}",
        ]
        lines.append([*map(effects.shown, row.setting.labels.values()), *cells, *costs])
    return study.Table("Settings, the best first", columns, lines)


def narrow(whole: study.Table, keys: int) -> study.Table:
    """Returns a table without the columns that are the same in every row, except the first `keys` ones."""
    varies = [i <= keys or len({row[i] for row in whole.rows}) > 1 for i in range(len(whole.columns))]
    columns, *lines = (
        [cell for cell, shown in zip(row, varies, strict=True) if shown] for row in (whole.columns, *whole.rows)
    )
    return study.Table(whole.title, columns, lines)


def _diverged(row: Row) -> int:
    return sum(outcome.summary is None for outcome in row.outcomes)


def tables_by_key(results: Sequence[Result], sweep: Sweep, metric: Metric) -> list[study.Table]:
    """Returns a table for each key but the two that matter most: each value's mean over all settings that have it."""
    points = effects.points(results, metric)
    ordered = effects.by_importance(points, list(sweep.keys))
    tables = []
    for name in ordered[2:]:
        groups = effects.groups(points, name)
        lines = [[value, metric.text(statistics.mean(means)), len(means)] for value, means in groups.items()]
        tables.append(study.Table(f"By {name}", [name, f"mean {metric.label}", "settings"], lines))
    return tables


# -- commands ------------------------------------------------------------------------------------------------


def command(sweep: Sweep, setting: Setting, name: str) -> str:
    """Returns the command that trains a setting with the first seed of the sweep, on as many devices as its trials."""
    own = {**setting.texts, "seed": str(sweep.seeds[0]), "devices": str(setting.config.devices or 1)}
    kept = [argument for argument in sweep.arguments if argument.partition("=")[0].removeprefix("--config.") not in own]
    changes = [f"--config.{key}={text}" for key, text in own.items()]
    return shlex.join(["python", "-m", "train", *kept, *changes, f"--workdir=runs/{name}-best"])


# -- files ---------------------------------------------------------------------------------------------------


def content(sorted_rows: Sequence[Row], sweep: Sweep, metric: Metric, name: str) -> dict[str, Any]:
    """Returns the part of results.json about the settings."""
    best = sorted_rows[0]
    return {
        "metric": metric.name,
        "lower_is_better": metric.lower,
        "keys": {short: key.path for short, key in sweep.keys.items()},
        "seeds": list(sweep.seeds),
        "best": {"setting": plain(best.setting.labels), "command": command(sweep, best.setting, name)},
        "settings": [_record(row, metric) for row in sorted_rows],
    }


def _record(row: Row, metric: Metric) -> dict[str, Any]:
    values = metric.values(row.outcomes)
    good = finite(values)
    return {
        "setting": plain(row.setting.labels),
        "mean": statistics.mean(good) if good else None,
        "std": deviation(values) if len(good) > 1 else None,
        "seeds": len(values),
        "diverged": _diverged(row),
        "rungs": row.rungs,
        **{name: row.number(name) for name in SHARED},
        "seconds": round(row.seconds(), 2),
        "runs": [_run(outcome, metric) for outcome in row.outcomes],
    }


def _run(outcome: study.Outcome, metric: Metric) -> dict[str, Any]:
    names = dict.fromkeys((metric.name, "accuracy", "loss", "steps", "seconds"))
    numbers = {name: outcome.summary[name] for name in names if name in outcome.summary} if outcome.summary else {}
    return {"seed": outcome.labels["seed"], **numbers, "diverged": outcome.diverged}


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the settings of results.json as CSV: a column per key and per number."""
    names = [name for name in records[0] if name not in ("setting", "runs", "rungs")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*records[0]["setting"], *names])
        for record in records:
            writer.writerow([*record["setting"].values(), *(record[name] for name in names)])


def markdown(results: Mapping[str, Any], tables: Sequence[study.Table]) -> str:
    """Returns the results as a Markdown page."""
    where = "; ".join(f"{entry['device']}, commit {entry['commit']}" for entry in results["environments"])
    count = sum(len(record["runs"]) for record in results["settings"])
    text = [f"# Sweep {results['name']}", "", f"    {results['command']}", ""]
    text += [f"{results['rungs']}.", ""] if results["rungs"] else []
    text += [f"{count} networks, {results['seconds_of_training']:.0f} s of training; {where}.", ""]
    for one in tables:
        text += [f"## {one.title}", "", markdown_table(one.columns, one.rows), ""]
    text += ["## The best setting", "", f"    {results['best']['command']}", ""]
    for figure in results["figures"]:
        text += [f"![{figure['caption']}]({figure['file']})", "", figure["caption"], ""]
    return "\n".join(text)


def of_seeds(row: Row) -> dict[str, Any]:
    """Returns a setting over its seeds, for a file of results: mean, standard deviation and every run.

    Raises:
      UserError: A seed diverged, there is a single one, there is no accuracy, or commits, devices or versions differ.
    """
    summaries = [outcome.summary for outcome in row.outcomes if outcome.summary]
    if len(summaries) < max(2, len(row.outcomes)):
        raise UserError("--json needs at least 2 seeds, none of which diverged; add e.g. --over seed=0:5")
    first = summaries[0]
    if "accuracy" not in first:
        raise UserError("--json is for tasks with an accuracy; results.json has the others")
    environments = [{name: summary[name] for name in ENVIRONMENT} for summary in summaries]
    if any(environment != environments[0] for environment in environments):
        raise UserError("--json: the runs differ in commit, device or versions; choose another --name")
    speeds = [name for name in first if name.endswith("_per_second")]
    accuracies = [summary["accuracy"] for summary in summaries]
    return {
        **{name: first[name] for name in ("model", "data", "test_examples", *SHARED)},
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies),
        "runs": [
            {name: summary[name] for name in ("seed", "accuracy", "loss", "seconds", *speeds)} for summary in summaries
        ],
        **environments[0],
        "config": plain(row.setting.config),
    }

"""The results of groups: mean and spread over seeds, the difference to the first group, tables and records."""

import csv
import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.groups import Comparison, Group
from experiments.comparison.runs import Run
from experiments.study import Table, evidence
from experiments.study.verdicts import deviation, finite
from experiments.sweeps.metric import DEFAULTS, Metric
from models.analysis.cost import short
from models.errors import UserError, choice_error

NONE = "—"
KEYS = "Keys that differ"  # title of a table
SIDEWAYS = 6  # keys above which the table of keys has a row per key
DIFFERENCE = "difference, 95%"  # title of a column
OPTIONAL = ("mult-adds", "s", "params", "steps", "test loss", "seeds")  # columns that go first where there is no room
LISTED = 5  # seeds above which only their number is shown
COSTS = {"parameters": "params", "mult_adds": "mult-adds", "steps": "steps"}  # numbers that all seeds share
RECORDED = ("accuracy", "bleu", "mean_average_precision", "hit", "loss", "parameters", "mult_adds", "steps", "seconds")


def choose(runs: Sequence[Run], name: str = "") -> Metric:
    """Returns the metric of a name; without one, the first of `metric.DEFAULTS` that all runs with results share.

    Raises:
      UserError: The runs share no such number.
    """
    numbers = [known for run in runs if (known := run.numbers())]
    if not numbers:
        raise UserError(f"nothing to compare: none of the {len(runs)} runs has been evaluated yet")
    shared = [key for key in numbers[0] if all(key in known for known in numbers)]
    if name and name not in shared:
        raise choice_error("--metric", name, shared)
    chosen = name or next((key for key in DEFAULTS if key in shared), "")
    if not chosen:
        raise UserError(f"nothing to compare: the {len(numbers)} runs share none of {', '.join(DEFAULTS)}")
    return Metric(chosen)


def difference(group: Group, first: Group, metric: Metric) -> evidence.Evidence | None:
    """Returns the difference to the first group with its interval; None if test sets differ or seeds are too few.

    The interval is Welch's at 95%, as in studies; it is not corrected for the number of groups.
    """
    if group is first or not group.test.same(first.test):
        return None
    found = _more(tuple(group.values(metric.name)), tuple(first.values(metric.name)))
    return found if math.isfinite(found.estimate) else None


@functools.cache  # tables, files and pictures ask for the same
def _more(high: tuple[float, ...], low: tuple[float, ...]) -> evidence.Evidence:
    return evidence.more(high, low)


# -- cells ---------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], metric: Metric) -> str:
    """Formats mean and standard deviation over seeds; NONE without a value."""
    good = finite(values)
    if not good:
        return NONE
    mean, several = statistics.mean(good), len(good) > 1
    if metric.is_share:
        return metric.text(mean) + f" ± {metric.text(deviation(good))}" * several
    return f"{mean:.3g}" + f" ± {deviation(good):.2g}" * several


def result(group: Group, metric: Metric) -> str:
    """Formats the metric of the finished runs; of a group without any, that of the last evaluations, in brackets."""
    if group.finished:
        return spread(group.values(metric.name), metric)
    last = [value for run in group.runs if (value := run.numbers().get(metric.name)) is not None]
    return f"({spread(last, metric)})" if last else NONE


def seeds(group: Group) -> str:
    """Formats the seeds of a group: "3 (0, 1, 2)", or their number alone if they are many."""
    count = len(group.runs)
    numbers = [str(run.seed) for run in group.runs if run.seed is not None]
    return f"{count} ({', '.join(numbers)})" if numbers and count <= LISTED else str(count)


def states(group: Group) -> str:
    """Formats the runs of a group that did not finish: "1 diverged; unfinished, step 300 of 674"."""
    counts = Counter(run.state for run in group.runs if run.state)
    return "; ".join(state if len(group.runs) == 1 else f"{count} {state}" for state, count in counts.items())


def difference_text(group: Group, first: Group, metric: Metric) -> str:
    """Formats the difference to the first group, with its interval."""
    if group is first:
        return "(first)"
    found = difference(group, first, metric)
    return (
        f"{_signed(found.estimate, metric)} [{_signed(found.low, metric)}, {_signed(found.high, metric)}]"
        if found
        else NONE
    )


def _signed(value: float, metric: Metric) -> str:
    return ("+" if value >= 0 else "−") + metric.text(abs(value))


def _cost(group: Group, name: str) -> str:
    value = next((run.numbers().get(name) for run in group.runs if name in run.numbers()), None)
    if value is None:
        return NONE
    return f"{value:,.0f}" if name == "steps" else short(value).strip()


def _seconds(group: Group) -> str:
    values = group.values("seconds")
    return f"{statistics.mean(values):.1f}" if values else NONE


# -- tables --------------------------------------------------------------------------------------------------


def tables(comparison: Comparison, metric: Metric) -> list[Table]:
    """Returns the table of the keys that differ, if any do, and that of the results."""
    keys = keys_table(comparison)
    return [*([keys] if keys else []), results_table(comparison, metric)]


def keys_table(comparison: Comparison) -> Table | None:
    """Returns the table of the keys in which groups differ: a row per group, or per key if they are many."""
    groups, keys = comparison.groups, comparison.keys
    if not keys:
        return None
    if len(keys) > SIDEWAYS and len(groups) <= len(keys):
        rows = [[key, *(group.shown(key) for group in groups)] for key in keys]
        return Table(KEYS, ["key", *(group.name for group in groups)], rows)
    return Table(KEYS, ["group", *keys], [[group.name, *(group.shown(key) for key in keys)] for group in groups])


def results_table(comparison: Comparison, metric: Metric) -> Table:
    """Returns the table of results, without columns that are empty for every group."""
    groups = comparison.groups
    loss = Metric("loss")
    columns: dict[str, Callable[[Group], str]] = {
        metric.label: lambda group: result(group, metric),
        DIFFERENCE: lambda group: difference_text(group, groups[0], metric),
        "test loss": lambda group: NONE if metric.name == "loss" else result(group, loss),
        **{label: lambda group, name=name: _cost(group, name) for name, label in COSTS.items()},
        "s": _seconds,
        "seeds": seeds,
        "state": states,
    }
    cells = {label: [cell(group) for group in groups] for label, cell in columns.items()}
    kept = [label for label, column in cells.items() if {*column} - {NONE, "", "(first)"}]
    names = [group.name for group in groups]
    return Table("Results", ["group", *kept], [list(row) for row in zip(names, *(cells[k] for k in kept), strict=True)])


def numbered(table: Table) -> Table:
    """Returns a table of several keys with numbers in place of the names of groups, which repeat the values."""
    if table.columns[0] == "key":
        return table._replace(columns=["key", *map(str, range(1, len(table.columns)))])
    if len(table.columns) == 2:
        return table
    return table._replace(rows=[[number, *row[1:]] for number, row in enumerate(table.rows, 1)])


def narrow(table: Table, width: int) -> tuple[Table, list[str]]:
    """Returns a table of results that fits a terminal, and lines about what it leaves out.

    Left out are costs that are the same for all groups, and columns for which there is no room.

    Args:
      table: From `results_table`.
      width: Characters of a line.
    """
    rows = [[f"{number}  {row[0]}", *row[1:]] for number, row in enumerate(table.rows, 1)]
    cells = {column: [str(row[i]) for row in rows] for i, column in enumerate(table.columns)}
    same = [column for column in COSTS.values() if column in cells and len({*cells[column]}) == 1]
    lines = [f"each: {', '.join(f'{cells[column][0]} {column}' for column in same)}"] if same else []
    kept, dropped = [column for column in cells if column not in same], []
    for column in OPTIONAL:
        if sum(max(map(len, (name, *cells[name]))) + 3 for name in kept) >= width and column in kept:
            kept.remove(column)
            dropped.append(column)
    if dropped:
        lines.append(f"in compare.md, too: {', '.join(dropped)}")
    return Table(table.title, kept, [list(row) for row in zip(*(cells[column] for column in kept), strict=True)]), lines


def notes(comparison: Comparison, metric: Metric) -> list[str]:
    """Returns a line for each thing that the tables alone would hide."""
    first, lines = comparison.groups[0], []
    others = [group for group in comparison.groups if group.test.examples and not group.test.same(first.test)]
    if others:
        sets = dict.fromkeys(str(group.test) for group in others)
        lines.append(
            f"not compared with {first.name}, because their test sets differ: {listed([one.name for one in others])}. "
            f"Curves and results stand side by side, without differences ({first.test}; {listed(list(sets))})"
        )
    few = [one.name for one in comparison.groups if one not in others and len(one.values(metric.name)) < 2]
    if first.name in few and len(comparison.groups) > 1:
        lines.append(
            f"no differences: {first.name}, the first group, has fewer than two finished seeds; --first names another"
        )
    elif few:
        lines.append(f"no difference without two finished seeds: {listed(few)}")
    for group in comparison.groups:
        twice = [seed for seed, count in Counter(run.seed for run in group.runs).items() if count > 1]
        if twice:
            lines.append(
                f"{group.name}: seed {twice[0]} is there several times; runs that repeat each "
                "other make the spread too small"
            )
    if len(comparison.groups) > 2:
        lines.append("intervals are for one difference each, not corrected for the number of groups")
    return lines


def listed(names: Sequence[str], most: int = 4) -> str:
    """Formats a few of many names."""
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# -- files ---------------------------------------------------------------------------------------------------


def record(group: Group, comparison: Comparison, metric: Metric) -> dict[str, Any]:
    """Returns the numbers of a group, as JSON."""
    values, found = group.values(metric.name), difference(group, comparison.groups[0], metric)
    numbers = {name: group.values(name) for name in dict.fromkeys((metric.name, *RECORDED))}
    return {
        "group": group.name,
        "keys": {key: group.first.facts.get(key) for key in comparison.keys},
        "seeds": len(group.runs),
        "finished": len(group.finished),
        "diverged": sum(bool(run.outcome.diverged) for run in group.runs),
        **{f"{name}_mean": statistics.mean(some) if some else None for name, some in numbers.items()},
        f"{metric.name}_std": deviation(values) if len(values) > 1 else None,
        "difference": found.estimate if found else None,
        "difference_low": found.low if found else None,
        "difference_high": found.high if found else None,
        "test_set": str(group.test),
        "runs": [_run(run, metric) for run in group.runs],
    }


def _run(run: Run, metric: Metric) -> dict[str, Any]:
    numbers, summary = run.numbers(), run.outcome.summary or {}
    return {
        "run": run.name,
        "seed": run.seed,
        "state": run.state or "finished",
        **{name: numbers[name] for name in dict.fromkeys((metric.name, *RECORDED)) if name in numbers},
        **{name: summary[name] for name in ("commit", "device") if name in summary},
    }


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes the groups of compare.json as CSV: a column per key that differs and per number."""
    names = [name for name in records[0] if name not in ("group", "keys", "runs")]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["group", *records[0]["keys"], *names])
        for one in records:
            writer.writerow([one["group"], *one["keys"].values(), *(one[name] for name in names)])

"""Groups of runs that differ only by their seed: the keys that tell them apart, and short names."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments.comparison.runs import Run, Test, is_number, printable
from models.errors import UserError, choice_error

ORDER = ("model.name", "model.", "task.", "optimizer.name", "optimizer.", "data.")  # of keys in names and tables
LONGEST = 48  # characters of a name
LONGEST_VALUE = 32  # characters of a value in a name
ABSENT = "absent"  # in tables, a key that a config lacks


class Group(NamedTuple):
    """Runs that differ only by their seed.

    Attributes:
      name: Its name, unique and printable.
      runs: Its runs, by seed.
    """

    name: str
    runs: Sequence[Run]

    @property
    def first(self) -> Run:
        """The first run, whose facts are those of all."""
        return self.runs[0]

    @property
    def finished(self) -> list[Run]:
        """The runs that finished and did not diverge."""
        return [run for run in self.runs if run.is_finished and not run.outcome.diverged]

    @property
    def test(self) -> Test:
        """The test set of all runs."""
        return next((run.test for run in self.runs if run.test.examples), self.first.test)

    def values(self, metric: str) -> list[float]:
        """Returns a number from the summary of each finished run that has it."""
        numbers = (run.numbers().get(metric) for run in self.finished)
        return [value for value in numbers if value is not None]

    def shown(self, key: str) -> str:
        """Returns the value of a key, in one line."""
        return written(self.first.facts[key]) if key in self.first.facts else ABSENT


class Comparison(NamedTuple):
    """Groups in the order in which they are shown, and the keys in which they differ."""

    groups: Sequence[Group]
    keys: Sequence[str]

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]

    def find(self, text: str, flag: str) -> Group:
        """Returns the group with a name, or with a number from 1.

        Raises:
          UserError: There is no such group.
        """
        by_name = {group.name: group for group in self.groups}
        if text in by_name:
            return by_name[text]
        if text.isdecimal() and 1 <= int(text) <= len(self.groups):
            return self.groups[int(text) - 1]
        raise choice_error(f"group of --{flag}", printable(text), [f"1 to {len(self.groups)}", *by_name])

    def pair(self, text: str) -> tuple[Group, Group]:
        """Returns the two groups of "A,B", each a name, which may have commas, or a number.

        Raises:
          UserError: The text does not name two different groups.
        """
        parts = text.split(",")
        if len(parts) < 2:
            raise UserError(f"--pair={printable(text)}: name two groups, by name or number, such as --pair=1,2")
        names = {group.name for group in self.groups}
        cuts = [(",".join(parts[:i]).strip(), ",".join(parts[i:]).strip()) for i in range(1, len(parts))]
        known = [cut for cut in cuts if all(name in names or name.isdecimal() for name in cut)]
        first, second = (self.find(name, "pair") for name in (known or cuts)[0])
        if first.name == second.name:
            raise UserError(f"--pair={printable(text)}: name two different groups")
        return first, second


def of(runs: Sequence[Run], names: Sequence[str] = (), first: str = "") -> Comparison:
    """Groups runs whose facts are the same.

    Groups are in the order of the arguments that they come from; those of one argument by their values.

    Args:
      runs: The runs.
      names: Names of the groups, in that order; () makes them of the keys that differ.
      first: Name or number of the group to put first, with which the others are compared; "" for the order above.

    Raises:
      UserError: `names` or `first` do not fit the groups.
    """
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(json.dumps([run.is_trial, dict(run.facts)], sort_keys=True, default=str), []).append(run)
    members = [sorted(part, key=lambda run: (run.seed is None, run.seed or 0)) for part in parts.values()]
    kinds = [[m for m in members if m[0].is_trial == is_trial] for is_trial in (False, True)]
    keys = [differing(kind) for kind in kinds]
    members.sort(key=lambda m: (min(run.place for run in m), [_sorting(m[0], key) for key in keys[m[0].is_trial]]))
    made = {id(m): name for kind, own in zip(kinds, keys, strict=True) if kind for m, name in _pairs(kind, own)}
    own = _unique([made[id(m)] for m in members])
    comparison = Comparison(
        [Group(name, m) for name, m in zip(own, members, strict=True)], list(dict.fromkeys([*keys[0], *keys[1]]))
    )
    if names:
        comparison = comparison._replace(groups=_renamed(comparison.groups, names))
    if first:
        chosen = comparison.find(first, "first")
        comparison = comparison._replace(groups=[chosen, *(one for one in comparison.groups if one is not chosen)])
    return comparison


def _pairs(members: Sequence[list[Run]], keys: Sequence[str]) -> list[tuple[list[Run], str]]:
    return list(zip(members, _names(members, keys), strict=True))


def differing(members: Sequence[Sequence[Run]]) -> list[str]:
    """Returns the keys in which groups differ, in the order in which they are shown."""
    facts = [group[0].facts for group in members]
    keys = dict.fromkeys(key for one in facts for key in one)
    differ = [key for key in keys if len({_comparable(one, key) for one in facts}) > 1]

    def place(key: str) -> int:
        return next((i for i, start in enumerate(ORDER) if key.startswith(start)), len(ORDER))

    return sorted(differ, key=place)


def _comparable(facts: Any, key: str) -> str:
    return json.dumps(facts[key], sort_keys=True, default=str) if key in facts else ABSENT


def _sorting(run: Run, key: str) -> tuple[int, float, str]:
    """Returns a key that sorts runs by a value: numbers by size, then texts; runs without the key come last."""
    value = run.facts.get(key)
    if value is None:
        return 2, 0.0, ""
    return (0, float(value), "") if is_number(value) and abs(value) < 2**63 else (1, 0.0, written(value))


def written(value: Any) -> str:
    """Returns a value of a config in one line."""
    if isinstance(value, str):
        return printable(value) if value else "''"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(value if isinstance(value, (bool, int)) else json.dumps(value, default=str))


# -- names ---------------------------------------------------------------------------------------------------


def short(keys: Iterable[str]) -> dict[str, str]:
    """Returns a short name for each key: "model" for model.name, otherwise the last part if it is unique."""
    keys = list(keys)
    names = {key: _last(key) for key in keys}
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else key for key, name in names.items()}


def _last(key: str) -> str:
    return printable(key.removesuffix(".name").rpartition(".")[2])


def _names(members: Sequence[Sequence[Run]], keys: Sequence[str]) -> list[str]:
    """Returns a name for each group, made of the keys that differ; "…" stands for keys of a config that do not fit.

    Keys that tell the groups apart come before the others. Of trials, only these are named, because a study chose the
    labels.
    """
    facts, is_trial = [group[0].facts for group in members], members[0][0].is_trial
    if not keys:
        return [printable(one.get("ledger" if is_trial else "model.name", "")) or "all" for one in facts]
    needed, names = _needed(facts, keys), short(keys)
    others = [] if is_trial else [key for key in keys if key not in needed]
    return [_name(one, keys, needed, others, names) for one in facts]


def _needed(facts: Sequence[Any], keys: Sequence[str]) -> list[str]:
    """Returns a few keys whose values tell all groups apart, each chosen because it tells most of them apart."""
    needed: list[str] = []

    def kinds(key: str) -> int:
        return len({tuple(_comparable(one, name) for name in (*needed, key)) for one in facts})

    while not needed or kinds(needed[0]) < len(facts):
        needed.append(max((key for key in keys if key not in needed), key=kinds))
    return needed


def _name(facts: Any, keys: Sequence[str], needed: Sequence[str], others: Sequence[str], names: dict[str, str]) -> str:
    parts: dict[str, str] = {}
    for key in (*needed, *others):
        if key not in facts:
            continue
        value = _cut(written(facts[key]), LONGEST_VALUE)
        part = value if key == "model.name" else f"{_cut(names[key], LONGEST_VALUE)}={value}"
        if key in others and len(", ".join((*parts.values(), part))) > LONGEST:
            parts["…"] = "…"
            break
        parts[key] = part
    ordered = [parts[key] for key in (*keys, "…") if key in parts]
    return ", ".join(ordered) or "none of " + ", ".join(names[key] for key in needed)


def _cut(text: str, longest: int) -> str:
    """Cuts the middle out of a long text, whose ends tell most."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _unique(names: Sequence[str]) -> list[str]:
    """Returns names with numbers after those that are there several times."""
    counts, seen, unique = Counter(names), Counter(), []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} #{seen[name]}" if counts[name] > 1 else name)
    return unique


def _renamed(groups: Sequence[Group], names: Sequence[str]) -> list[Group]:
    """Returns groups with other names; raises UserError unless there is one, not empty and unique, for each."""
    clean = [_cut(printable(name.strip()), LONGEST) for name in names]
    if len(clean) != len(groups):
        raise UserError(
            f"--names has {len(clean)} name{'s' * (len(clean) != 1)} for {len(groups)} groups: "
            + "; ".join(group.name for group in groups)
        )
    if len(set(clean)) < len(clean) or not all(clean):
        raise UserError(f"--names={','.join(clean)}: names must be different and not empty")
    return [group._replace(name=name) for group, name in zip(groups, clean, strict=True)]

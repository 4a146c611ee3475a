"""Strict configs: a key that nobody knows fails, and so does a key that nobody read."""

import functools
import json
import math
import runpy
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from models.errors import UserError, choice_error, has_type, nearest

ROOT = Path(__file__).parents[1]
MOST_STEPS = 2**31 - 1  # TrainState.step is int32


def load(spec: str) -> ml_collections.ConfigDict:
    """The config of "FILE.py" or "FILE.py:ARGUMENTS", as --config takes it, for programs that make runs. A relative
    path that is no file here is one of this project's: "configs/digits.py".

    Raises:
      UserError: the config refuses its arguments.
    """
    path, *arguments = spec.split(":", 1)
    try:
        return runpy.run_path(path if Path(path).is_file() else str(ROOT / path))["get_config"](*arguments)
    except ValueError as error:
        raise UserError(f"{spec}: {error}") from error


@functools.cache
def _defaults() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "configs" / "base.py"))["base"]().to_dict()


def without(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, path: str = "") -> list[str]:
    """Returns the keys of configs/base.py that a config lacks, within the sections that it has."""
    absent = []
    for key, default in (_defaults() if defaults is None else defaults).items():
        if isinstance(default, Mapping) and isinstance(config.get(key), Mapping):
            absent += without(config[key], default, f"{path}{key}.")
        elif key not in config:
            absent.append(f"{path}{key}")
    return absent


def check_types(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, path: str = "") -> None:
    """Checks that each value has the type of its default in configs/base.py, and that every number is finite.

    Args:
      config: a config, or a section of one; keys that configs/base.py lacks may have any type.
      defaults: of the same section; None for those of the whole config.
      path: of the section, "" or "optimizer.".

    Raises:
      UserError: naming the first key that is wrong.
    """
    defaults = _defaults() if defaults is None else defaults
    for key, value in config.items():
        default, name = defaults.get(key), f"{path}{key}"
        is_section = isinstance(value, (Mapping, ml_collections.ConfigDict))
        if is_section and not (default is None or isinstance(default, Mapping)):
            raise UserError(f"config key '{name}' is a section; want a value like {default!r}")
        if is_section:
            check_types(value, default or {}, f"{name}.")
        elif default is not None and not _alike(value, default):
            raise UserError(f"config key '{name}' is {_shown(value)}; want {_kind(default)}")
        elif not _is_finite(value):
            raise UserError(
                f"config key '{name}' is {_shown(value)}; numbers have to be finite, and whole ones of 64 bits"
            )


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, (tuple, list)):
        numbers = isinstance(default[0], float)  # per channel, or a range; `optimizer.groups` has parts of its own kind
        return isinstance(value, (tuple, list)) and (not numbers or all(has_type(one, float) for one in value))
    return not isinstance(default, Mapping) and has_type(value, type(default))


def _kind(default: Any) -> str:
    if isinstance(default, Mapping):
        return f"a section with {', '.join(default)}"
    if isinstance(default, (tuple, list)):
        return f"a list like {default!r}"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[type(default)]


def _is_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return math.isfinite(value) if isinstance(value, float) else not isinstance(value, int) or abs(value) < 2**63


def _shown(value: Any, write: Callable[[Any], str] = repr) -> str:
    text = write(value)
    return text if len(text) <= 80 else f"{text[:80]} …"


class Reader:
    """A read-only view of a config that remembers which keys were read.

    Attribute access reads one key (`reader.optimizer.name`), `to_dict()` reads all. When everything is set up,
    `check_all_read` fails on what is left over: a misspelt or dead key never passes silently.
    """

    @classmethod
    def of(cls, config: "Mapping[str, Any] | Reader") -> "Reader":
        """Returns the reader of a whole config, whose types are checked; a reader stays what it is."""
        if isinstance(config, cls):
            return config
        check_types(config)
        return cls(config)

    def __init__(self, values: Mapping[str, Any], path: str = ""):
        self._values = {}
        self._path = path
        self._read: set[str] = set()
        for key, value in values.items():
            is_section = isinstance(value, (Mapping, ml_collections.ConfigDict))
            self._values[key] = Reader(value, f"{path}{key}.") if is_section else value

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__"):
            raise AttributeError(key)
        if key not in self._values:
            raise choice_error("config key", f"{self._path}{key}", [f"{self._path}{k}" for k in self._values])
        self._read.add(key)
        return self._values[key]

    def to_dict(self, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """All keys of this section but `without`, as read."""
        keys = [k for k in self._values if k not in without]
        self._read.update(keys)
        return {k: v.to_dict() if isinstance(v := self._values[k], Reader) else v for k in keys}

    def values(self) -> dict[str, Any]:
        """Returns all keys, which does not count as reading them."""
        return {key: value.values() if isinstance(value, Reader) else value for key, value in self._values.items()}

    def unread(self) -> Iterator[str]:
        """Full paths of the keys that were never read."""
        for key, value in self._values.items():
            if isinstance(value, Reader):
                yield from value.unread()
            elif key not in self._read:
                yield f"{self._path}{key}"

    def known(self) -> Iterator[str]:
        """Full paths of the keys that were read."""
        for key, value in self._values.items():
            if isinstance(value, Reader):
                yield from value.known()
            elif key in self._read:
                yield f"{self._path}{key}"

    def check_all_read(self, known: Collection[str] = ()) -> None:
        """Raises UserError for the first key that nothing read, with the nearest one that something did.

        Args:
          known: keys that need not be read.
        """
        for key in self.unread():
            if key in known:
                continue
            raise UserError(f"config key '{key}' is read by nothing{nearest(key, self.known())}")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as JSON holds it: dictionaries, and lists for tuples."""
    return json.loads(json.dumps(config, default=lambda section: section.to_dict()))


def keys() -> list[str]:
    """Returns the keys of configs/base.py with their sections, as "optimizer.learning_rate"."""
    return [line.split(": ")[0] for line in lines(_defaults())]


class Durations(NamedTuple):
    """Turns times of a config into steps.

    Attributes:
      batch_size: examples per step, over all devices and processes.
      examples: examples per epoch.
      total: steps of the whole training, for "%"; None where it is not known yet.
    """

    batch_size: int
    examples: int
    total: int | None = None

    def with_total(self, duration: str) -> "Durations":
        """Returns the durations of a training that takes that long.

        Raises:
          UserError: it is less than one step.
        """
        total = self.steps(duration)
        if total < 1:
            raise UserError(f"duration='{duration}' is less than one step")
        return self._replace(total=total)

    def steps(self, duration: str) -> int:
        """Returns the number of steps; see the function `steps`."""
        return steps(duration, batch_size=self.batch_size, examples=self.examples, total=self.total)


def steps(duration: str, *, batch_size: int, examples: int, total: int | None = None) -> int:
    """Optimizer steps in a duration: "64000 steps", "90 epochs", "1.28e6 examples" or, of `total` steps, "50%".

    The one place where durations are turned into steps. Fractions round to the nearest step. "0 steps" is 0.

    Args:
      duration: number and unit.
      batch_size: examples a step, over all devices and processes.
      examples: examples an epoch.
      total: steps of the whole training, for "%".

    Raises:
      UserError: for any other text.
    """
    text = str(duration).strip()
    number, unit = (text[:-1], "%") if text.endswith("%") else (text.split() + ["", ""])[:2]
    per_unit = {"step": 1.0, "epoch": examples / batch_size, "example": 1.0 / batch_size}
    if total is not None:
        per_unit["%"] = total / 100
    try:
        value = float(number) * per_unit[unit.removesuffix("s")]
        if len(text.split()) <= 2 and 0 <= value < float("inf"):
            if value >= MOST_STEPS:
                raise UserError(f"the duration '{duration}' is {value:.3g} steps; at most {MOST_STEPS:,} are counted")
            return round(value)
    except UserError:
        raise
    except (KeyError, ValueError):
        pass
    allowed = "'N steps', 'N epochs', 'N examples'" + (", 'N%'" if total is not None else "")
    raise UserError(f"cannot read the duration '{duration}': write {allowed}")


def lines(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """ "optimizer.learning_rate: 0.1" and so on: keys as the command line takes them."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from lines(value, f"{path}{key}.")
        else:
            yield f"{path}{key}: {value!r}"


def difference(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Lines that say how two nested configs differ, e.g. "batch_size: 128 -> 64"; empty where they are equal."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, f"{path}{key}.")
        elif before == after:
            continue
        elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after) > 4:
            at = next(i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
            lines.append(f"{path}{key}[{at}]: {_shown(before[at], str)} -> {_shown(after[at], str)}")
        else:
            lines.append(f"{path}{key}: {_shown(before, str)} -> {_shown(after, str)}")
    return lines

"""Strict configs: unknown keys, unread keys and values of the wrong type are errors."""

import functools
import json
import math
import runpy
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from models.errors import UserError, choice_error, has_type
from train.setup import names

Config = Mapping[str, Any] | ml_collections.ConfigDict  # a whole config, or a section of one

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs" / "base.py"
MOST_STEPS = 2**31 - 1  # TrainState.step is int32


def load(spec: str) -> ml_collections.ConfigDict:
    """Loads a config from "FILE.py" or "FILE.py:ARGUMENTS", the form that --config takes.

    A relative path such as "configs/digits.py" is looked up in the working folder first, then in this project.

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
    return runpy.run_path(str(BASE))["base"]().to_dict()


def without(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, path: str = "") -> list[str]:
    """Returns the keys of configs/base.py that a config lacks, within the sections that it has."""
    absent = []
    for key, default in (_defaults() if defaults is None else defaults).items():
        if isinstance(default, Mapping) and isinstance(config.get(key), Mapping):
            absent += without(config[key], default, f"{path}{key}.")
        elif key not in config:
            absent.append(f"{path}{key}")
    return absent


def changed(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the values of a plain config that differ from the defaults in configs/base.py, within their sections."""
    defaults = plain(_defaults()) if defaults is None else defaults
    values = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            value = changed(value, defaults[key])
            if value:
                values[key] = value
        elif key not in defaults or value != defaults[key]:
            values[key] = value
    return values


def check_types(config: Config, defaults: Mapping[str, Any] | None = None, path: str = "") -> None:
    """Checks that each value has the type of its default in configs/base.py, and that every number is finite.

    Args:
      config: a config, or a section of one; keys that configs/base.py lacks may have any type.
      defaults: the defaults of the same section; None for those of the whole config.
      path: the path of the section, "" or "optimizer.".

    Raises:
      UserError: a value has the wrong type or is not finite. The message names the first such key.
    """
    defaults = _defaults() if defaults is None else defaults
    for key, value in config.items():
        default, name = defaults.get(key), f"{path}{key}"
        is_section = isinstance(value, (Mapping, ml_collections.ConfigDict))
        if is_section and not (default is None or isinstance(default, Mapping)):
            raise UserError(f"config key '{name}' is a section; want a value like {default!r}")
        if is_section:
            check_types(value, default or {}, f"{name}.")
        elif default is not None and not _same_kind(value, default):
            raise UserError(f"config key '{name}' is {_shown(value)}; want {_kind(default)}")
        elif not _is_finite(value):
            raise UserError(f"config key '{name}' is {_shown(value)}; numbers must be finite, and integers fit 64 bits")


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, (tuple, list)):
        # Lists of floats hold a value per channel, or a range; each entry of `optimizer.groups` mixes types.
        numbers = isinstance(default[0], float)
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

    Attribute access reads one key (`reader.optimizer.name`), `to_dict()` reads all keys. When everything is built,
    `check_all_read` fails on keys that were never read, so that no misspelled or dead key passes silently.
    """

    @classmethod
    def of(cls, config: "Config | Reader") -> "Reader":
        """Returns a reader of a whole config after checking its types; returns a reader unchanged."""
        if isinstance(config, Reader):
            return config
        check_types(config)
        return cls(config)

    def __init__(self, values: Config, path: str = ""):
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
        """Returns all keys of this section except `without`, and marks them as read."""
        keys = [k for k in self._values if k not in without]
        self._read.update(keys)
        return {k: v.to_dict() if isinstance(v := self._values[k], Reader) else v for k in keys}

    def values(self) -> dict[str, Any]:
        """Returns all keys without marking them as read."""
        return {key: value.values() if isinstance(value, Reader) else value for key, value in self._values.items()}

    def unread(self) -> Iterator[str]:
        """Yields the full paths of the keys that were never read."""
        for key, value in self._values.items():
            if isinstance(value, Reader):
                yield from value.unread()
            elif key not in self._read:
                yield f"{self._path}{key}"

    def known(self) -> Iterator[str]:
        """Yields the full paths of the keys that were read."""
        for key, value in self._values.items():
            if isinstance(value, Reader):
                yield from value.known()
            elif key in self._read:
                yield f"{self._path}{key}"

    def check_all_read(self, known: Collection[str] = ()) -> None:
        """Checks that every key was read.

        Args:
          known: keys that need not be read.

        Raises:
          UserError: a key was not read. The message suggests the key that may be meant.
        """
        for key in self.unread():
            if key in known:
                continue
            raise UserError(f"config key '{key}' is read by nothing{names.hint(key, self.known())}")


def plain(config: Config) -> dict[str, Any]:
    """Returns a config as JSON represents it: nested dictionaries, with lists for tuples."""
    return json.loads(json.dumps(config, default=lambda section: section.to_dict()))


def keys() -> list[str]:
    """Returns the full paths of the keys of configs/base.py, e.g. "optimizer.learning_rate"."""
    return [line.split(": ")[0] for line in lines(_defaults())]


class Durations(NamedTuple):
    """Conversion of a config's durations to steps.

    Attributes:
      batch_size: examples per step, over all devices and processes.
      examples: examples per epoch.
      total: steps of the whole training, for "%"; None while it is unknown.
    """

    batch_size: int
    examples: int
    total: int | None = None

    def with_total(self, duration: str) -> "Durations":
        """Returns these durations with the total set to the given duration of the training.

        Raises:
          UserError: the duration is less than one step.
        """
        total = self.steps(duration)
        if total < 1:
            raise UserError(f"duration='{duration}' is less than one step")
        return self._replace(total=total)

    def steps(self, duration: str) -> int:
        """Returns the number of steps; see the function `steps`."""
        return steps(duration, batch_size=self.batch_size, examples=self.examples, total=self.total)


def steps(duration: str, *, batch_size: int, examples: int, total: int | None = None) -> int:
    """Converts a duration to a number of optimizer steps; all durations are converted here.

    A duration is "64000 steps", "90 epochs", "1.28e6 examples" or, where `total` is given, "50%". Fractions of a step
    are rounded to the nearest step. "0 steps" is 0.

    Args:
      duration: number and unit.
      batch_size: examples per step, over all devices and processes.
      examples: examples per epoch.
      total: steps of the whole training, for "%".

    Raises:
      UserError: the text is not a duration, or is more steps than can be counted.
    """
    per_unit = {"step": 1.0, "epoch": examples / batch_size, "example": 1.0 / batch_size}
    if total is not None:
        per_unit["%"] = total / 100
    value = _scaled(str(duration).strip(), per_unit)
    if value is None:
        allowed = "'N steps', 'N epochs', 'N examples'" + (", 'N%'" if total is not None else "")
        raise UserError(f"cannot read the duration '{duration}': write {allowed}")
    if value >= MOST_STEPS:
        raise UserError(f"the duration '{duration}' is {value:.3g} steps; the maximum is {MOST_STEPS:,}")
    return round(value)


def _scaled(text: str, per_unit: Mapping[str, float]) -> float | None:
    """Returns the number in a text times its unit; None unless it is a finite number >= 0 and a known unit."""
    number, unit = (text[:-1], "%") if text.endswith("%") else (text.split() + ["", ""])[:2]
    try:
        value = float(number) * per_unit[unit.removesuffix("s")]
    except (KeyError, ValueError):
        return None
    return value if len(text.split()) <= 2 and 0 <= value < float("inf") else None


def lines(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yields one line per key, as the command line takes keys: "optimizer.learning_rate: 0.1"."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from lines(value, f"{path}{key}.")
        else:
            yield f"{path}{key}: {value!r}"


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns one line per difference between two nested configs, e.g. "batch_size: 128 -> 64"."""
    return [f"{key}: {before} -> {after}" for key, before, after in differences(old, new)]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[tuple[str, str, str]]:
    """Returns (full key, old value, new value) of each difference between two nested configs, values as text."""
    entries = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            entries += differences(before, after, f"{path}{key}.")
        elif before == after:
            continue
        elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after) > 4:
            at = next(i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
            entries.append((f"{path}{key}[{at}]", _shown(before[at], str), _shown(after[at], str)))
        else:
            entries.append((f"{path}{key}", _shown(before, str), _shown(after, str)))
    return entries

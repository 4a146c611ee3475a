"""The space of a sweep: keys of a config with the values that they take, in every combination or drawn at random."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.errors import UserError

DISTRIBUTION = re.compile(r"(log|uniform|int)\(([^,()]+),([^,()]+)\)")
MOST = 10_000  # trials of a sweep
Texts = Mapping[str, str]  # {key: its value, as the command line takes it}


class Key(NamedTuple):
    """A key of the config and its values.

    Attributes:
      path: The key, e.g. "optimizer.learning_rate".
      texts: Its values, as the command line takes them.
      kind: "log", "uniform" or "int" if values are drawn between `low` and `high` instead; otherwise "".
    """

    path: str
    texts: Sequence[str] = ()
    kind: str = ""
    low: float = 0.0
    high: float = 0.0

    def draw(self, generator: np.random.Generator) -> str:
        """Returns a random value: a member of the list, or a number with four digits of the distribution."""
        if not self.kind:
            return self.texts[int(generator.integers(len(self.texts)))]
        if self.kind == "int":
            return str(generator.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "log":
            return f"{math.exp(generator.uniform(math.log(self.low), math.log(self.high))):.4g}"
        return f"{generator.uniform(self.low, self.high):.4g}"


class Space(NamedTuple):
    """The keys of a sweep without the seed, and the seeds; None for the config's own."""

    keys: Sequence[Key]
    seeds: Sequence[int] | None


def read(overs: Sequence[str]) -> Space:
    """Returns the space of the texts KEY=V1,V2,… or KEY=log(LOW,HIGH).

    Raises:
      UserError: A text is none, or a key or a value is there twice.
    """
    keys: dict[str, Key] = {}
    seeds = None
    for over in overs:
        path, equals, text = over.partition("=")
        path = path.strip()
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", path):
            raise UserError(f"--over={over}: write KEY=VALUE,VALUE,… e.g. optimizer.learning_rate=0.05,0.1")
        if path in keys or (path == "seed" and seeds):
            raise UserError(f"--over: {path} is there twice; list all of its values once")
        if path == "seed":
            seeds = _seeds(text)
        else:
            keys[path] = _key(path, text)
    return Space(list(keys.values()), seeds)


def _key(path: str, text: str) -> Key:
    if match := DISTRIBUTION.fullmatch(text.strip()):
        kind, *bounds = match.groups()
        try:
            low, high = map(float, bounds)
        except ValueError:
            raise UserError(f"--over {path}={text}: the bounds must be numbers") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"--over {path}={text}: the first bound must be below the second")
        if not math.isfinite(high - low) or (kind == "int" and max(abs(low), abs(high)) >= 2**63):
            raise UserError(f"--over {path}={text}: the bounds are too far from 0")
        if kind == "log" and low <= 0:
            raise UserError(f"--over {path}={text}: the bounds of log must be above 0")
        if kind == "int" and not (low.is_integer() and high.is_integer()):
            raise UserError(f"--over {path}={text}: the bounds of int must be whole numbers")
        return Key(path, (), kind, low, high)
    return Key(path, split(text))


def split(text: str) -> list[str]:
    """Splits a text at its commas, except at those within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _seeds(text: str) -> list[int]:
    first, colon, end = text.partition(":")
    try:
        seeds = list(range(int(first), int(end))[: MOST + 1]) if colon else [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) > MOST:
        raise UserError(f"--over seed={text}: these are too many seeds; allowed: at most {MOST:,}")
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--over seed={text}: write FIRST:END, e.g. 0:3 for 0, 1 and 2, or a list of different seeds")
    return seeds


def combinations(keys: Sequence[Key]) -> list[Texts]:
    """Returns every combination of the keys' values.

    Raises:
      UserError: A key has a distribution.
    """
    for key in keys:
        if key.kind:
            raise UserError(f"--over {key.path}={key.kind}({key.low:g},{key.high:g}) needs --random=N")
    return [
        dict(zip((key.path for key in keys), texts, strict=True))
        for texts in itertools.product(*(key.texts for key in keys))
    ]


def draws(keys: Sequence[Key], count: int, seed: int) -> list[Texts]:
    """Returns random values of the keys, without repetitions: the same for the same arguments in every process.

    More draws with the same keys and seed begin with the fewer ones.

    Args:
      keys: The keys.
      count: Number of draws.
      seed: Seed of numpy's Generator.
    """
    if not keys:
        raise UserError("--random draws values of keys: name one besides seed, e.g. --over 'model.width=int(8,64)'")
    generator = np.random.default_rng(seed)
    drawn = dict.fromkeys(tuple(key.draw(generator) for key in keys) for _ in range(count))
    return [dict(zip((key.path for key in keys), texts, strict=True)) for texts in drawn]

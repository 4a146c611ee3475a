"""Simulates verdicts: how often they are false, and how often they are missed. See --help."""

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import flags

from experiments.study import evidence, verdicts
from models import command
from models.analysis.tables import markdown_table, terminal_table

USAGE = """Simulates studies whose true effects are known, and counts false and missed verdicts.

    python -m experiments.study.simulate
    python -m experiments.study.simulate --rounds=400 --markdown

"false" is the share of claims that get a verdict although there is no effect, and the share of studies of 10 claims
with at least one such verdict after correction. "missed" is the share of claims that get no verdict although the
effect is 1, 2 or 3 standard deviations.
"""

CLAIMS = 10
EFFECTS = (1.0, 2.0, 3.0)
SEEDS = (3, 7, 10, 20)

Draw = Callable[[np.random.Generator, int], np.ndarray]  # returns n outcomes of mean 0 and standard deviation 1


def _skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.exponential(1.0, n) - 1.0


def _two_humped(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.5, -1.0, 1.0) + 0.05 * rng.standard_normal(n)


def _divergent(rng: np.random.Generator, n: int) -> np.ndarray:
    values = rng.standard_normal(n)
    values[rng.random(n) < 0.1] = np.nan
    return values


def _normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def _wide(rng: np.random.Generator, n: int) -> np.ndarray:
    return 10 * rng.standard_normal(n)


def _collapsing(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.1, -3.0, 1 / 3) + 0.05 * rng.standard_normal(n)


DRAWS: Mapping[str, tuple[Draw, Draw | None]] = {  # kind -> distributions of two groups, or of one that has no other
    "normal": (_normal, _normal),
    "unequal spreads (1 : 10)": (_normal, _wide),
    "skewed": (_skewed, _skewed),
    "two-humped": (_two_humped, _two_humped),
    "one in ten diverges": (_divergent, _divergent),
    "normal, against a number": (_normal, None),
    "two-humped, against a number": (_two_humped, None),
}
BEYOND: Mapping[str, tuple[Draw, Draw | None]] = {  # what the tests do not cover: few seeds do not show the shape
    "skewed, against a number": (_skewed, None),
    "one in ten collapses, against a number": (_collapsing, None),
    "one in ten collapses, against normal": (_collapsing, _normal),
}
ALL = {**DRAWS, **BEYOND}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Shares of claims with a false or a missed verdict, and of studies with a false verdict after correction."""

    draws: str
    rule: str
    seeds: str
    false_claim: float
    false_study: float
    missed: tuple[float, ...]


def _claim(rng: np.random.Generator, draws: str, seeds: int, effect: float) -> list[np.ndarray]:
    """Returns the outcomes of the first group, and of the second one if there is one."""
    first, second = ALL[draws]
    return [first(rng, seeds) + effect, *([second(rng, seeds)] if second else [])]


def _evidence(groups: Sequence[np.ndarray]) -> evidence.Evidence:
    first, *second = groups
    return evidence.more(first, second[0], worth=0.0) if second else evidence.above(first, 0.0)


def two_errors(draws: str, seeds: int, rounds: int, rng: np.random.Generator) -> Rates:
    """Simulates the rule of earlier versions: means differ by more than two standard errors, without correction."""

    def decided(effect: float) -> np.ndarray:
        pairs = [_claim(rng, draws, seeds, effect) for _ in range(rounds * CLAIMS)]
        finite = [[group[np.isfinite(group)] for group in pair] for pair in pairs]
        return np.array([min(map(len, pair)) > 1 and abs(_t(*pair)) > 2 for pair in finite])

    single = decided(0.0)
    missed = tuple(1.0 - float(decided(effect).mean()) for effect in EFFECTS)
    return Rates(draws, "two errors", str(seeds), single.mean(), single.reshape(rounds, CLAIMS).any(1).mean(), missed)


def _t(high: np.ndarray, low: np.ndarray) -> float:
    return (high.mean() - low.mean()) / np.sqrt(high.var(ddof=1) / len(high) + low.var(ddof=1) / len(low))


def fixed(draws: str, seeds: int, rounds: int, rng: np.random.Generator, effects: Sequence[float] = EFFECTS) -> Rates:
    """Simulates studies with a fixed number of seeds."""
    gc.freeze()  # statsmodels collects garbage in each correction, which takes longer than all else
    single = study = 0
    for _ in range(rounds):
        claims = [_evidence(_claim(rng, draws, seeds, 0.0)) for _ in range(CLAIMS)]
        single += sum(verdicts.p_value(one) <= evidence.ALPHA for one in claims)
        study += any(one is not None for one in verdicts.decide(claims))
    missed = tuple(
        float(
            np.mean(
                [verdicts.p_value(_evidence(_claim(rng, draws, seeds, effect))) > evidence.ALPHA for _ in range(rounds)]
            )
        )
        for effect in effects
    )
    return Rates(draws, "fixed", str(seeds), single / rounds / CLAIMS, study / rounds, missed)


def sequential(
    draws: str, most: int, rounds: int, rng: np.random.Generator, effects: Sequence[float] = EFFECTS
) -> Rates:
    """Simulates studies that add seeds to undecided claims, at the looks of `verdicts.looks`."""
    gc.freeze()
    looks, single, study, missed = verdicts.looks(most), 0, 0, []
    for _ in range(rounds):
        claims = [_combined(_claim(rng, draws, most, 0.0), looks) for _ in range(CLAIMS)]
        single += sum(verdicts.p_value(one) <= evidence.ALPHA for one in claims)
        study += any(one is not None for one in verdicts.decide(claims))
    for effect in effects:
        claims = [_combined(_claim(rng, draws, most, effect), looks) for _ in range(rounds)]
        missed.append(float(np.mean([verdicts.p_value(one) > evidence.ALPHA for one in claims])))
    return Rates(
        draws, "sequential", f"{looks[0][0]} to {most}", single / rounds / CLAIMS, study / rounds, tuple(missed)
    )


def _combined(claim: Sequence[np.ndarray], looks: Sequence[tuple[int, float]]) -> evidence.Evidence:
    """Returns the evidence after all looks at a claim: the worst case, because studies stop once it is decided."""
    return verdicts.sequential([(_evidence([group[:count] for group in claim]), level) for count, level in looks])


COLUMNS = ("outcomes", "rule", "seeds", "false per claim", "false per study", *(f"missed at {e:g} sd" for e in EFFECTS))


def row(rates: Rates) -> list[str]:
    """Returns the cells of a table."""
    shares = (rates.false_claim, rates.false_study, *rates.missed)
    return [rates.draws, rates.rule, rates.seeds, *(f"{share:.1%}" for share in shares)]


def simulate(rounds: int, seed: int = 0) -> list[Rates]:
    """Returns the rates for all kinds of outcomes, fixed and sequential."""
    rng = np.random.default_rng(seed)
    rates = []
    for draws, (_, second) in ALL.items():
        rates += [two_errors(draws, seeds, rounds, rng) for seeds in SEEDS[:2] if second]
        rates += [fixed(draws, seeds, rounds, rng) for seeds in SEEDS]
        rates.append(sequential(draws, 20, rounds, rng))
    return rates


def main() -> None:
    """Simulates and prints."""
    rows = list(map(row, simulate(ROUNDS.value, SEED.value)))
    if MARKDOWN.value:
        print(markdown_table(COLUMNS, rows))
    else:
        command.console().print(terminal_table(COLUMNS, rows, texts=3))


if __name__ == "__main__":  # flags are defined only here, because absl has one table of them per process
    ROUNDS = flags.DEFINE_integer("rounds", 100, "Number of simulated studies of each kind.", lower_bound=1)
    SEED = flags.DEFINE_integer("seed", 0, "Seed of the random draws.")
    MARKDOWN = flags.DEFINE_bool("markdown", False, "Print the table as Markdown.")
    command.run(main, USAGE)

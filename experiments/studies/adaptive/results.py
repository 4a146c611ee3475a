"""Results of the study of adaptive inference: judges, tables, pictures."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.study import Outcome, Outcomes, Table, evidence, needs
from experiments.study.evidence import POINT
from experiments.study.verdicts import Judgement, finite, mean, missing, more, spread
from models.analysis.cost import short

WITH_EXITS = ("MSDNet", "ResNet with exits")
BLOCK = 0.5  # number of blocks: smallest difference that matters, and allowance of the joint training
PUBLISHED = [  # (network, accuracy in percent, its blocks or mult-adds, source)
    ("ResNet-110, CIFAR-10", "93.39", "0.5 G mult-adds", "Veit 2018, table 1"),
    ("ConvNet-AIG 110, t = 0.7", "94.24", "0.41 G, 82 % of its layers", "Veit 2018, table 1"),
    ("ConvNet-AIG 110, all layers", "94.86", "0.5 G", "Veit 2018, table 1"),
    ("ResNet-32 and BlockDrop, CIFAR-10", "92.3 and 91.3", "15 and 6.9 blocks", "Wu 2018, table 1"),
    ("ResNet-110 and BlockDrop, CIFAR-10", "93.2 and 93.6", "54 and 16.9 blocks", "Wu 2018, table 1"),
    (
        "ResNet-101 and BlockDrop, ImageNet",
        "76.4 and 76.4",
        "33 and 24.8 blocks, 20 % faster on average, up to 36 %",
        "Wu 2018, abstract; authors' page",
    ),
    (
        "MSDNet, CIFAR-100, 7 exits",
        "64.10 67.46 70.34 72.38 73.06 73.81 73.89",
        "56 101 155 198 250 298 341 M (ReLU and pooling counted)",
        "a re-run, in DFS (ECCV 2024), README",
    ),
]


def values_of(outcomes: Outcomes, way: str, field: str, diverged: float = math.nan) -> list[float]:
    """Returns a number of the row "all blocks" or "as decided" of each outcome; `diverged` if training diverged."""
    rows = (
        next((row for row in o.measured.get("decided", {}).get("rows", ()) if row["way"] == way), None)
        for o in outcomes
    )
    return [row[field] if row else diverged for row in rows]


def accuracies(outcomes: Outcomes, diverged: float = math.nan) -> list[float]:
    """Returns accuracies with the blocks that the network decides on; `diverged` if training diverged."""
    return values_of(outcomes, "as decided", "accuracy", diverged)


def _blocks(outcomes: Outcomes) -> list[float]:
    return values_of(outcomes, "as decided", "blocks")


def _with_blocks(outcomes: Outcomes) -> str:
    return f"{spread(accuracies(outcomes))} with {spread(_blocks(outcomes), percent=False)} blocks"


def _with_savings(outcomes: Outcomes) -> str:
    return f"{spread(accuracies(outcomes))} with {spread(_saved(outcomes))} saved"


def _saved(outcomes: Outcomes) -> list[float]:
    """Returns the saved share of the mult-adds of the network with all of its blocks."""
    pairs = zip(
        values_of(outcomes, "as decided", "mult_adds"), values_of(outcomes, "all blocks", "mult_adds"), strict=True
    )
    return [1 - used / whole for used, whole in pairs]


# -- judges --------------------------------------------------------------------------------------------------------


def gates_save(outcomes: Outcomes) -> Judgement:
    """Compares gates with a ResNet, and their saved mult-adds with a tenth."""
    gated = outcomes.where(method="ConvNet-AIG")
    plain = outcomes.where(method="ResNet", depth=38).values("accuracy")
    target = 0.7 if 0.7 in gated.distinct("target") else max(gated.distinct("target"))
    own = gated.where(target=target)
    cheap = evidence.above(_saved(own), 0.1)
    return Judgement(
        evidence.all_of(evidence.no_less(accuracies(own, 0.0), plain, POINT / 2), cheap),
        f"ConvNet-AIG 38, target {target}: {_with_savings(own)}; ResNet-38 {spread(plain)}",
    )


def all_better(outcomes: Outcomes) -> Judgement:
    """Compares all blocks with those decided on; means by seed over all targets."""
    own = outcomes.where(method="ConvNet-AIG")
    seeds = [group for _, group in own.groups("seed")]
    means = {
        way: [statistics.mean(values_of(group, way, "accuracy")) for group in seeds]
        for way in ("all blocks", "as decided")
    }
    return more(means, start=f"means over targets {', '.join(map(str, own.distinct('target')))}: ", digits=2)


def targets(outcomes: Outcomes) -> Judgement:
    """Tests whether accuracy rises with the target."""
    own = outcomes.where(method="ConvNet-AIG")
    groups = {target: own.where(target=target) for target in sorted(own.distinct("target"))}
    if len(groups) < 3:
        return missing("not part of this scale")
    rises = evidence.trend([(target, accuracies(group, 0.0)) for target, group in groups.items()])
    return Judgement(rises, "; ".join(f"t = {target}: {_with_savings(group)}" for target, group in groups.items()))


def _joint(outcomes: Outcomes, choose: Callable[[Iterable[float]], float]) -> tuple[Outcomes, float]:
    """Returns the joint training with the lowest (min) or highest (max) penalty, and that penalty."""
    own = outcomes.where(method="BlockDrop")
    penalty = choose(own.distinct("penalty"))
    return own.where(penalty=penalty), penalty


@needs(method="BlockDrop")
def policy_saves(outcomes: Outcomes) -> Judgement:
    """Compares a policy with the whole network, and its number of blocks with two thirds."""
    plain = outcomes.where(method="ResNet-32, twice as long").values("accuracy")
    own, penalty = _joint(outcomes, max)
    few = evidence.above([-x for x in _blocks(own)], -10, unit="blocks")
    return Judgement(
        evidence.all_of(evidence.no_less(accuracies(own, 0.0), plain), few),
        f"ResNet-32 {spread(plain)} with 15 blocks; penalty {penalty:g}: {_with_blocks(own)}",
    )


@needs(method="BlockDrop")
def joint_better(outcomes: Outcomes) -> Judgement:
    """Compares training policy and network together with the policy alone."""
    alone, (joint, penalty) = outcomes.where(method="policy alone"), _joint(outcomes, min)
    better = evidence.more(accuracies(joint, 0.0), accuracies(alone, 0.0))
    few = evidence.no_less(_blocks(alone), _blocks(joint), BLOCK, "blocks")
    ours = f"together (penalty {penalty:g}) {_with_blocks(joint)}, policy alone {_with_blocks(alone)}"
    return Judgement(evidence.all_of(better, few), ours)


@needs(method="BlockDrop")
def penalties(outcomes: Outcomes) -> Judgement:
    """Compares the blocks that remain under the highest penalty with those under the lowest."""
    used = {f"penalty {penalty:g}": _blocks(own) for own, penalty in (_joint(outcomes, f) for f in (max, min))}
    if len(used) < 2:
        return missing("not part of this scale")
    return more(used, 0.0, "blocks with ", percent=False, separator=", ", worth=BLOCK, unit="blocks")


# -- curves --------------------------------------------------------------------------------------------------------


Curve = list[tuple[float, float]]  # points (mult-adds, accuracy), ascending


def curve_of(outcome: Outcome, batch: bool) -> Curve:
    """Returns the curve of a network with exits: thresholds by budget, or each exit for all images."""
    rows = outcome.measured.get("leaving", {}).get("rows", ())
    return sorted((row["mult_adds"], row["accuracy"]) for row in rows if (row["way"] == "batch") == batch)


def _at(curve: Curve, cost: float) -> float:
    """Returns the accuracy at a cost within the curve, linearly interpolated."""
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left <= cost <= right:
            return low + (high - low) * (cost - left) / (right - left) if right > left else high
    return float("nan")


def _average(curve: Curve, low: float, high: float) -> float:
    """Returns the mean accuracy between two costs, over 50 points."""
    return statistics.mean(_at(curve, low + (high - low) * i / 49) for i in range(50))


def _means(outcomes: Outcomes, first: tuple[str, bool], second: tuple[str, bool]) -> tuple[list[float], list[float]]:
    """Returns, by seed, the mean accuracy of two curves, (method, batch), over the costs that both cover."""
    means = []
    for _, own in outcomes.groups("seed"):
        pair = [curve_of(one, batch) for method, batch in (first, second) for one in own.where(method=method)]
        if len(pair) == 2 and all(pair):
            low, high = max(curve[0][0] for curve in pair), min(curve[-1][0] for curve in pair) * (1 - 1e-9)
            means.append([_average(curve, low, high) if low < high else float("nan") for curve in pair])
    return [one for one, _ in means], [two for _, two in means]


def scales_better(outcomes: Outcomes) -> Judgement:
    """Compares exits that are the same for every image."""
    means = dict(zip(WITH_EXITS, _means(outcomes, *((method, False) for method in WITH_EXITS)), strict=True))
    return more(means, start="means over the mult-adds that both have: ", digits=2)


def batch_better(outcomes: Outcomes) -> Judgement:
    """Compares budgets spent per image with the same exit for all images, within each network."""
    parts, shown = [], []
    for method in WITH_EXITS:
        by_image, alike = _means(outcomes, (method, True), (method, False))
        parts.append(evidence.above([a - b for a, b in zip(by_image, alike, strict=True)], 0.0, POINT))
        shown.append(
            f"{method}: by image {spread(by_image, digits=2)}, the same exit for all {spread(alike, digits=2)}"
        )
    return Judgement(evidence.all_of(*parts), "; ".join(shown))


def above_resnets(outcomes: Outcomes) -> Judgement:
    """Compares MSDNet with each ResNet within its range, at the cost of the ResNet."""
    parts, shown = [], []
    curves = [curve_of(outcome, True) for outcome in outcomes.where(method="MSDNet")]
    for (depth,), own in outcomes.where(method="ResNet").groups("depth"):
        plain, cost = own.values("accuracy", 0.0), mean(own.values("mult_adds"))
        there = [_at(curve, cost) if curve else 0.0 for curve in curves]
        if not math.isnan(sum(there, cost)):
            parts.append(evidence.more(there, plain))
            shown.append(f"ResNet-{depth} {spread(plain)}, MSDNet there {spread(there)}")
    return Judgement(evidence.all_of(*parts), "; ".join(shown)) if parts else missing("no ResNet is within its range")


# -- tables --------------------------------------------------------------------------------------------------------


def _cost(values: Sequence[float]) -> str:
    return short(mean(values)).strip() if finite(values) else "diverged"


def name_of(labels: Mapping[str, Any]) -> str:
    """Returns the name of a network in tables and pictures."""
    forms = {"depth": "{}", "target": ", target {}", "penalty": ", penalty {:g}"}
    text = labels["method"] + ("-" if "depth" in labels else "")
    return text + "".join(form.format(labels[name]) for name, form in forms.items() if name in labels)


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns accuracy and cost of all networks; exits; classes."""
    return [
        _table_of_networks(outcomes),
        *(
            _table_of_exits(method, own)
            for method in WITH_EXITS
            if (own := outcomes.where(method=method).results("leaving"))
        ),
        *_table_of_heuristics(outcomes),
        _table_of_classes(first_seed(outcomes)),
        Table("Published", ("network", "accuracy, %", "computed", "source"), [list(row) for row in PUBLISHED]),
    ]


def _table_of_networks(outcomes: Outcomes) -> Table:
    rows = []
    for name in dict.fromkeys(name_of(outcome.labels) for outcome in outcomes):
        own = Outcomes([outcome for outcome in outcomes if name_of(outcome.labels) == name])
        first, whole = own.first(), _cost(own.values("mult_adds"))
        row = [name, f"{int(first['parameters']) if first else 0:,}"]
        if own[0].labels["method"] in WITH_EXITS or own[0].labels["method"].startswith("ResNet"):
            rows.append([*row, spread(own.values("accuracy"), digits=2), whole, whole, "", ""])
            continue
        cost = _cost(values_of(own, "as decided", "mult_adds"))
        paths = finite(own.measured("decided", "paths"))
        row += [spread(accuracies(own), digits=2), whole, f"{cost} ({spread(_saved(own))} saved)"]
        rows.append([*row, spread(_blocks(own), percent=False), spread(paths, percent=False, digits=0)])
    costs = ("mult-adds, all of it", "on average", "blocks", "different choices of blocks")
    return Table("Networks", ("network", "parameters", "accuracy", *costs), rows)


def _table_of_heuristics(outcomes: Outcomes) -> list[Table]:
    results = outcomes.results("heuristics")
    blocks = spread([one["blocks"] for one in results], percent=False)
    ways = ("policy", "first", "distributed", "random")
    rows = [[way, blocks, spread([one[way] for one in results])] for way in ways]
    title = "Blocks chosen otherwise, of a ResNet-32 that is not trained on"
    return [Table(title, ("which blocks", "of 15", "accuracy"), rows)] if results else []


def _table_of_exits(method: str, results: Sequence[dict[str, Any]]) -> Table:
    """Returns budgets and exits, means over seeds."""
    rows = []
    for same in zip(*(one["rows"] for one in results), strict=True):
        left = same[0].get("left")
        rows.append(
            [
                f"budget {short(same[0]['budget']).strip()}" if left else same[0]["way"],
                spread([row["accuracy"] for row in same], digits=2),
                _cost([row["mult_adds"] for row in same]),
                " ".join(f"{share:.0%}" for share in left) if left else "",
            ]
        )
    columns = ("way", "accuracy", "mult-adds on average", "images that leave at each exit, first seed")
    return Table(f"{method}: exits and budgets", columns, rows)


def _table_of_classes(outcomes: Outcomes) -> Table:
    """Returns the mean cost of each class."""
    columns, classes = {}, []
    for outcome in outcomes:
        name = name_of(outcome.labels)
        if decided := outcome.measured.get("decided"):
            classes = decided["classes"]
            columns[f"{name}: blocks"] = [f"{sum(row):.2f}" if row else "" for row in decided["by_class"]]
        elif leaving := outcome.measured.get("leaving"):
            columns[f"{name}: mult-adds"] = [short(spent or 0).strip() for spent in leaving["by_class"]]
    return Table(
        "What the images of each class take on average, first seed",
        ("class", *columns),
        [[name, *(values[i] for values in columns.values())] for i, name in enumerate(classes)],
    )


def first_seed(outcomes: Outcomes) -> Outcomes:
    """Returns the outcomes of the first seed."""
    return outcomes.where(seed=outcomes.distinct("seed")[0])

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
ALL_LAYERS, TARGETS_04_07 = 0.0062, 0.0092  # published gains: of all layers, of target 0.7 over 0.4
TARGET = 0.7  # the target that is compared with a ResNet
BLOCK = 0.5  # number of blocks: the smallest difference that matters, and the most that joint training may add
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
    """Returns a number from the row "all blocks" or "as decided" of each outcome; `diverged` if training diverged."""
    rows = (
        next((row for row in o.measured.get("decided", {}).get("rows", ()) if row["way"] == way), None)
        for o in outcomes
    )
    return [row[field] if row else diverged for row in rows]


def accuracies(outcomes: Outcomes, diverged: float = math.nan) -> list[float]:
    """Returns accuracies with the blocks that the network chooses; `diverged` if training diverged."""
    return values_of(outcomes, "as decided", "accuracy", diverged)


def _blocks(outcomes: Outcomes) -> list[float]:
    return values_of(outcomes, "as decided", "blocks")


def _with_blocks(outcomes: Outcomes) -> str:
    return f"{spread(accuracies(outcomes))} with {spread(_blocks(outcomes), percent=False)} blocks"


def _with_savings(outcomes: Outcomes) -> str:
    return f"{spread(accuracies(outcomes))} with {spread(_saved(outcomes))} saved"


def _saved(outcomes: Outcomes) -> list[float]:
    """Returns the fraction of mult-adds saved, relative to the network with all of its blocks."""
    pairs = zip(
        values_of(outcomes, "as decided", "mult_adds"), values_of(outcomes, "all blocks", "mult_adds"), strict=True
    )
    return [1 - used / whole for used, whole in pairs]


# -- judges --------------------------------------------------------------------------------------------------------


@needs(method="ConvNet-AIG", target=TARGET)
def gates_save(outcomes: Outcomes) -> Judgement:
    """Tests whether networks with gates are as accurate as a ResNet and save a tenth of the mult-adds."""
    gated = outcomes.where(method="ConvNet-AIG")
    plain = outcomes.where(method="ResNet", depth=38).values("accuracy")
    at_target = gated.where(target=TARGET)
    saves = evidence.above(_saved(at_target), 0.1)
    return Judgement(
        evidence.all_of(evidence.no_less(accuracies(at_target, 0.0), plain, POINT / 2), saves),
        f"ConvNet-AIG 38, target {TARGET}: {_with_savings(at_target)}; ResNet-38 {spread(plain)}",
    )


def all_better(outcomes: Outcomes) -> Judgement:
    """Compares all blocks with those that the gates choose, by each seed's mean over all targets."""
    gated = outcomes.where(method="ConvNet-AIG")
    seeds = [group for _, group in gated.groups("seed")]
    means = {
        way: [statistics.mean(values_of(group, way, "accuracy")) for group in seeds]
        for way in ("all blocks", "as decided")
    }
    start = f"means over targets {', '.join(map(str, gated.distinct('target')))}: "
    return more(means, start=start, digits=2, worth=evidence.worth(ALL_LAYERS))


def targets(outcomes: Outcomes) -> Judgement:
    """Tests whether accuracy rises with the target."""
    gated = outcomes.where(method="ConvNet-AIG")
    groups = {target: gated.where(target=target) for target in sorted(gated.distinct("target"))}
    if len(groups) < 3:
        return missing("not part of this scale")
    by_target = [(target, accuracies(group, 0.0)) for target, group in groups.items()]
    rises = evidence.trend(by_target, worth=evidence.worth(TARGETS_04_07))
    return Judgement(rises, "; ".join(f"t = {target}: {_with_savings(group)}" for target, group in groups.items()))


def _joint(outcomes: Outcomes, choose: Callable[[Iterable[float]], float]) -> tuple[Outcomes, float]:
    """Returns the joint training with the lowest (min) or highest (max) penalty, and that penalty."""
    joint = outcomes.where(method="BlockDrop")
    penalty = choose(joint.distinct("penalty"))
    return joint.where(penalty=penalty), penalty


@needs(method="BlockDrop")
def policy_saves(outcomes: Outcomes) -> Judgement:
    """Tests whether a policy is as accurate as the whole network with at most two thirds of its blocks."""
    plain = outcomes.where(method="ResNet-32, twice as long").values("accuracy")
    joint, penalty = _joint(outcomes, max)
    few_blocks = evidence.above([-x for x in _blocks(joint)], -10, unit="blocks")
    return Judgement(
        evidence.all_of(evidence.no_less(accuracies(joint, 0.0), plain), few_blocks),
        f"ResNet-32 {spread(plain)} with 15 blocks; penalty {penalty:g}: {_with_blocks(joint)}",
    )


@needs(method="BlockDrop")
def joint_better(outcomes: Outcomes) -> Judgement:
    """Compares training policy and network together with the policy alone."""
    alone, (joint, penalty) = outcomes.where(method="policy alone"), _joint(outcomes, min)
    better = evidence.more(accuracies(joint, 0.0), accuracies(alone, 0.0))
    few_blocks = evidence.no_less(_blocks(alone), _blocks(joint), BLOCK, "blocks")
    ours = f"together (penalty {penalty:g}) {_with_blocks(joint)}, policy alone {_with_blocks(alone)}"
    return Judgement(evidence.all_of(better, few_blocks), ours)


@needs(method="BlockDrop")
def penalties(outcomes: Outcomes) -> Judgement:
    """Compares the blocks that remain under the highest penalty with those under the lowest."""
    blocks = {f"penalty {penalty:g}": _blocks(joint) for joint, penalty in (_joint(outcomes, f) for f in (max, min))}
    if len(blocks) < 2:
        return missing("not part of this scale")
    return more(blocks, 0.0, "blocks with ", percent=False, separator=", ", worth=BLOCK, unit="blocks")


# -- curves --------------------------------------------------------------------------------------------------------


Curve = list[tuple[float, float]]  # points (mult-adds, accuracy), ascending


def curve_of(outcome: Outcome, batch: bool) -> Curve:
    """Returns the curve of a network with exits: thresholds by budget if `batch`, else each exit for all images."""
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
    for _, same_seed in outcomes.groups("seed"):
        pair = [curve_of(one, batch) for method, batch in (first, second) for one in same_seed.where(method=method)]
        if len(pair) == 2 and all(pair):
            low, high = max(curve[0][0] for curve in pair), min(curve[-1][0] for curve in pair) * (1 - 1e-9)
            means.append([_average(curve, low, high) if low < high else float("nan") for curve in pair])
    return [one for one, _ in means], [two for _, two in means]


def scales_better(outcomes: Outcomes) -> Judgement:
    """Compares MSDNet with a ResNet with exits, when all images leave at the same exit."""
    means = dict(zip(WITH_EXITS, _means(outcomes, *((method, False) for method in WITH_EXITS)), strict=True))
    return more(means, start="means over the mult-adds that both cover: ", digits=2)


def batch_better(outcomes: Outcomes) -> Judgement:
    """Compares spending a budget by image with the same exit for all images, within each network."""
    parts, texts = [], []
    for method in WITH_EXITS:
        by_image, by_exit = _means(outcomes, (method, True), (method, False))
        parts.append(evidence.above([a - b for a, b in zip(by_image, by_exit, strict=True)], 0.0, POINT))
        texts.append(
            f"{method}: by image {spread(by_image, digits=2)}, the same exit for all {spread(by_exit, digits=2)}"
        )
    return Judgement(evidence.all_of(*parts), "; ".join(texts))


def above_resnets(outcomes: Outcomes) -> Judgement:
    """Compares MSDNet with each ResNet whose cost is in its range, at the cost of the ResNet."""
    parts, texts = [], []
    curves = [curve_of(outcome, True) for outcome in outcomes.where(method="MSDNet")]
    for (depth,), resnets in outcomes.where(method="ResNet").groups("depth"):
        plain, cost = resnets.values("accuracy", 0.0), mean(resnets.values("mult_adds"))
        at_its_cost = [_at(curve, cost) if curve else 0.0 for curve in curves]
        if not math.isnan(sum(at_its_cost, cost)):
            parts.append(evidence.more(at_its_cost, plain))
            texts.append(f"ResNet-{depth} {spread(plain)}, MSDNet there {spread(at_its_cost)}")
    return Judgement(evidence.all_of(*parts), "; ".join(texts)) if parts else missing("no ResNet is within its range")


# -- tables --------------------------------------------------------------------------------------------------------


def _cost(values: Sequence[float]) -> str:
    return short(mean(values)).strip() if finite(values) else "diverged"


def name_of(labels: Mapping[str, Any]) -> str:
    """Returns the name of a network in tables and pictures."""
    forms = {"depth": "{}", "target": ", target {}", "penalty": ", penalty {:g}"}
    text = labels["method"] + ("-" if "depth" in labels else "")
    return text + "".join(form.format(labels[name]) for name, form in forms.items() if name in labels)


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of all networks, of exits, of other choices of blocks, and of classes."""
    return [
        _table_of_networks(outcomes),
        *(
            _table_of_exits(method, measured)
            for method in WITH_EXITS
            if (measured := outcomes.where(method=method).results("leaving"))
        ),
        *_table_of_heuristics(outcomes),
        _table_of_classes(first_seed(outcomes)),
        Table("Published", ("network", "accuracy, %", "computed", "source"), [list(row) for row in PUBLISHED]),
    ]


def _table_of_networks(outcomes: Outcomes) -> Table:
    rows = []
    for name in dict.fromkeys(name_of(outcome.labels) for outcome in outcomes):
        runs = Outcomes([outcome for outcome in outcomes if name_of(outcome.labels) == name])
        first, full_cost = runs.first(), _cost(runs.values("mult_adds"))
        row = [name, f"{int(first['parameters']) if first else 0:,}"]
        if runs[0].labels["method"] in WITH_EXITS or runs[0].labels["method"].startswith("ResNet"):
            rows.append([*row, spread(runs.values("accuracy"), digits=2), full_cost, full_cost, "", ""])
            continue
        cost = _cost(values_of(runs, "as decided", "mult_adds"))
        paths = finite(runs.measured("decided", "paths"))
        row += [spread(accuracies(runs), digits=2), full_cost, f"{cost} ({spread(_saved(runs))} saved)"]
        rows.append([*row, spread(_blocks(runs), percent=False), spread(paths, percent=False, digits=0)])
    costs = ("mult-adds, all of it", "on average", "blocks", "different choices of blocks")
    return Table("Networks", ("network", "parameters", "accuracy", *costs), rows)


def _table_of_heuristics(outcomes: Outcomes) -> list[Table]:
    results = outcomes.results("heuristics")
    blocks = spread([one["blocks"] for one in results], percent=False)
    ways = ("policy", "first", "distributed", "random")
    rows = [[way, blocks, spread([one[way] for one in results])] for way in ways]
    title = "Other choices of blocks, in a ResNet-32 whose weights stay the same"
    return [Table(title, ("chosen by", "blocks of 15", "accuracy"), rows)] if results else []


def _table_of_exits(method: str, results: Sequence[dict[str, Any]]) -> Table:
    """Returns a table with one row per exit and per budget; means over seeds."""
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
    columns = ("way", "accuracy", "mult-adds on average", "share of images that leave at each exit, first seed")
    return Table(f"{method}: exits and budgets", columns, rows)


def _table_of_classes(outcomes: Outcomes) -> Table:
    """Returns a table of the mean cost of each class, for the networks that decide by image."""
    columns, classes = {}, []
    for outcome in outcomes:
        name = name_of(outcome.labels)
        if decided := outcome.measured.get("decided"):
            classes = decided["classes"]
            columns[f"{name}: blocks"] = [f"{sum(row):.2f}" if row else "" for row in decided["by_class"]]
        elif leaving := outcome.measured.get("leaving"):
            columns[f"{name}: mult-adds"] = [short(spent or 0).strip() for spent in leaving["by_class"]]
    return Table(
        "Average cost of the images of each class, first seed",
        ("class", *columns),
        [[name, *(values[i] for values in columns.values())] for i, name in enumerate(classes)],
    )


def first_seed(outcomes: Outcomes) -> Outcomes:
    """Returns the outcomes of the first seed."""
    return outcomes.where(seed=outcomes.distinct("seed")[0])

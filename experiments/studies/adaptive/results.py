"""What is read off the trials of the study of adaptive inference: verdicts, tables, pictures."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps

from experiments.studies.measures import from_png
from experiments.study import (
    TOO_SMALL,
    Judgement,
    Outcome,
    Outcomes,
    Table,
    all_of,
    compare,
    finite,
    mean,
    needs,
    spread,
)
from models.analysis.cost import short
from train.plots import figures
from train.plots.figures import tidy
from train.plots.palette import BLUE, GRAY, RED, YELLOW

COLORS = {
    "ResNet": GRAY,
    "ConvNet-AIG": BLUE,
    "BlockDrop": RED,
    "policy alone": "#e8a08c",
    "MSDNet": BLUE,
    "ResNet with exits": YELLOW,
}
WITH_EXITS = ("MSDNet", "ResNet with exits")
PUBLISHED = [  # network, accuracy in percent, of its blocks or mult-adds, source
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


def _row(outcome: Outcome, way: str) -> dict[str, Any] | None:
    """Of a network with blocks, "all blocks" or "as decided"; None where training diverged."""
    rows = outcome.measured.get("decided", {}).get("rows", ())
    return next((row for row in rows if row["way"] == way), None)


def _values(outcomes: Outcomes, way: str, field: str) -> list[float]:
    """A number of that row of each."""
    rows = [_row(outcome, way) for outcome in outcomes]
    return [row[field] if row else float("nan") for row in rows]


def _saved(outcomes: Outcomes) -> list[float]:
    """The share of the mult-adds that is saved, by what the network with all of its blocks computes."""
    pairs = zip(_values(outcomes, "as decided", "mult_adds"), _values(outcomes, "all blocks", "mult_adds"), strict=True)
    return [1 - used / whole for used, whole in pairs]


def _at_least(values: Sequence[float], least: float) -> str:
    return compare(values, [least] * len(values))


def gates_save(outcomes: Outcomes) -> Judgement:
    every, plain = outcomes.where(method="ConvNet-AIG"), outcomes.where(method="ResNet", depth=38)
    target = 0.7 if 0.7 in every.distinct("target") else max(every.distinct("target"))
    own = every.where(target=target)
    accuracy, saved = _values(own, "as decided", "accuracy"), _saved(own)
    return Judgement(
        all_of([compare(accuracy, plain.values("accuracy"), by=-0.005), _at_least(saved, 0.1)]),
        f"ConvNet-AIG 38, target {target}: {spread(accuracy)} with {spread(saved)} of its mult-adds "
        f"saved; ResNet-38 {spread(plain.values('accuracy'))}",
    )


def _mean_by_seed(outcomes: Outcomes, way: str, field: str) -> list[float]:
    """Over all networks of a seed."""
    return [statistics.mean(_values(own, way, field)) for _, own in outcomes.groups("seed")]


def all_better(outcomes: Outcomes) -> Judgement:
    own = outcomes.where(method="ConvNet-AIG")
    every, some = (_mean_by_seed(own, way, "accuracy") for way in ("all blocks", "as decided"))
    return Judgement(
        compare(every, some),
        f"all blocks {spread(every, digits=2)}, as decided "
        f"{spread(some, digits=2)}, means over targets {', '.join(map(str, own.distinct('target')))}",
    )


def targets(outcomes: Outcomes) -> Judgement:
    own = outcomes.where(method="ConvNet-AIG")
    found = {target: own.where(target=target) for target in sorted(own.distinct("target"))}
    accuracy = {target: _values(some, "as decided", "accuracy") for target, some in found.items()}
    if len(found) < 2:
        return Judgement(TOO_SMALL, "not part of this scale")
    shown = "; ".join(
        f"t = {target}: {spread(values)} with {spread(_saved(found[target]))} saved"
        for target, values in accuracy.items()
    )
    return Judgement(compare(accuracy[max(found)], accuracy[min(found)]), shown)


def _joint(outcomes: Outcomes, choose: Callable) -> tuple[Outcomes, float]:
    """Those of the joint training with the lowest (min) or highest (max) penalty, and it."""
    own = outcomes.where(method="BlockDrop")
    penalty = choose(own.distinct("penalty"))
    return own.where(penalty=penalty), penalty


@needs(method="BlockDrop")
def policy_saves(outcomes: Outcomes) -> Judgement:
    plain = outcomes.where(method="ResNet-32, twice as long").values("accuracy")
    own, penalty = _joint(outcomes, max)
    accuracy, used = _values(own, "as decided", "accuracy"), _values(own, "as decided", "blocks")
    return Judgement(
        all_of([compare(accuracy, plain, by=-0.01), _at_least([-x for x in used], -10)]),
        f"ResNet-32 {spread(plain)}; penalty {penalty:g}: {spread(accuracy)} with "
        f"{spread(used, percent=False)} of 15 blocks",
    )


@needs(method="BlockDrop")
def joint_better(outcomes: Outcomes) -> Judgement:
    alone, (joint, penalty) = outcomes.where(method="policy alone"), _joint(outcomes, min)
    accuracy = [_values(own, "as decided", "accuracy") for own in (joint, alone)]
    blocks = [_values(own, "as decided", "blocks") for own in (joint, alone)]
    fewer = compare(blocks[1], blocks[0], by=-0.5)
    return Judgement(
        all_of([compare(*accuracy), fewer]),
        f"together (penalty {penalty:g}) {spread(accuracy[0])} with {spread(blocks[0], percent=False)} "
        f"blocks, policy alone {spread(accuracy[1])} with {spread(blocks[1], percent=False)}",
    )


@needs(method="BlockDrop")
def penalties(outcomes: Outcomes) -> Judgement:
    own = outcomes.where(method="BlockDrop")
    used = {p: _values(own.where(penalty=p), "as decided", "blocks") for p in sorted(own.distinct("penalty"))}
    if len(used) < 2:
        return Judgement(TOO_SMALL, "not part of this scale")
    return Judgement(
        compare(used[max(used)], used[min(used)]),
        "; ".join(f"penalty {p:g}: {spread(values, percent=False)} blocks" for p, values in used.items()),
    )


# -- curves --------------------------------------------------------------------------------------------------------


Curve = list[tuple[float, float]]  # (mult-adds, accuracy), ascending


def _curve(outcome: Outcome, batch: bool) -> Curve:
    """Of a network with exits: thresholds by budget, or each exit for all images."""
    rows = outcome.measured.get("leaving", {}).get("rows", ())
    return sorted((row["mult_adds"], row["accuracy"]) for row in rows if (row["way"] == "batch") == batch)


def _at(curve: Curve, cost: float) -> float:
    """Accuracy at a cost within the curve, linear between its points."""
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left <= cost <= right:
            return low + (high - low) * (cost - left) / (right - left) if right > left else high
    return float("nan")


def _average(curve: Curve, low: float, high: float) -> float:
    """Mean accuracy between two costs, of 50 points."""
    return statistics.mean(_at(curve, low + (high - low) * i / 49) for i in range(50))


def _means(pairs: Sequence[tuple[Curve, Curve]]) -> tuple[list[float], list[float]]:
    """Mean accuracy of each curve over the costs that both of its pair have."""
    found = []
    for a, b in pairs:
        low, high = max(a[0][0], b[0][0]), min(a[-1][0], b[-1][0]) * (1 - 1e-9)
        found.append((_average(a, low, high), _average(b, low, high)) if low < high else (float("nan"),) * 2)
    return [one for one, _ in found], [two for _, two in found]


def _pairs(outcomes: Outcomes, first: tuple[str, bool], second: tuple[str, bool]) -> list[tuple[Curve, Curve]]:
    """(method, batch) against another, by seed."""
    found = []
    for _, own in outcomes.groups("seed"):
        pair = [_curve(one, batch) for method, batch in (first, second) for one in own.where(method=method)]
        if len(pair) == 2 and all(pair):
            found.append(tuple(pair))
    return found


def scales_better(outcomes: Outcomes) -> Judgement:
    """By the exits, the same for every image."""
    values = _means(_pairs(outcomes, ("MSDNet", False), ("ResNet with exits", False)))
    return Judgement(
        compare(*values),
        f"MSDNet {spread(values[0], digits=2)}, ResNet with exits "
        f"{spread(values[1], digits=2)}, means over the mult-adds that both have",
    )


def batch_better(outcomes: Outcomes) -> Judgement:
    parts, shown = [], []
    for method in WITH_EXITS:
        values = _means(_pairs(outcomes, (method, True), (method, False)))
        parts.append(compare(*values))
        shown.append(
            f"{method}: by image {spread(values[0], digits=2)}, the same exit for all {spread(values[1], digits=2)}"
        )
    return Judgement(all_of(parts), "; ".join(shown))


def above_resnets(outcomes: Outcomes) -> Judgement:
    parts, shown = [], []
    for (depth,), own in outcomes.where(method="ResNet").groups("depth"):
        pairs = []
        for plain in own:
            curves = [_curve(one, True) for one in outcomes.where(method="MSDNet", seed=plain.labels["seed"])]
            if plain.summary and curves and curves[0]:
                pairs.append((_at(curves[0], plain.get("mult_adds")), plain.get("accuracy")))
        if pairs and not any(math.isnan(there) for there, _ in pairs):
            values = [there for there, _ in pairs], [accuracy for _, accuracy in pairs]
            parts.append(compare(*values))
            shown.append(f"ResNet-{depth} {spread(values[1])}, MSDNet there {spread(values[0])}")
    return Judgement(all_of(parts) if parts else TOO_SMALL, "; ".join(shown) or "no ResNet is within its range")


# -- tables --------------------------------------------------------------------------------------------------------


def _cost(values: Sequence[float]) -> str:
    return short(mean(values)).strip() if finite(values) else "diverged"


def _name(labels: dict[str, Any]) -> str:
    more = {"depth": "{}", "target": ", target {}", "penalty": ", penalty {:g}"}
    text = labels["method"] + ("-" if "depth" in labels else "")
    return text + "".join(form.format(labels[name]) for name, form in more.items() if name in labels)


def tables(outcomes: Outcomes) -> list[Table]:
    """Accuracy and cost of all networks; exits; classes."""
    rows, groups = [], {}
    for outcome in outcomes:
        groups.setdefault(_name(outcome.labels), []).append(outcome)
    for name, found in groups.items():
        own = Outcomes(found)
        whole, numbers = _cost(own.values("mult_adds")), next((int(o.get("parameters")) for o in own if o.summary), 0)
        if own[0].labels["method"] in WITH_EXITS or own[0].labels["method"].startswith("ResNet"):
            rows.append([name, f"{numbers:,}", spread(own.values("accuracy"), digits=2), whole, whole, "", ""])
            continue
        used = _values(own, "as decided", "blocks")
        paths = finite(own.measured("decided", "paths"))
        rows.append(
            [
                name,
                f"{numbers:,}",
                spread(_values(own, "as decided", "accuracy"), digits=2),
                whole,
                f"{_cost(_values(own, 'as decided', 'mult_adds'))} ({spread(_saved(own))} saved)",
                spread(used, percent=False),
                spread(paths, percent=False, digits=0),
            ]
        )
    found = [
        Table(
            "Networks",
            (
                "network",
                "parameters",
                "accuracy",
                "mult-adds, all of it",
                "on average",
                "blocks",
                "different choices of blocks",
            ),
            rows,
        )
    ]
    for method in WITH_EXITS:
        if own := outcomes.where(method=method).results("leaving"):
            found.append(_table_of_exits(method, own))
    if chosen := outcomes.results("heuristics"):
        blocks = spread([one["blocks"] for one in chosen], percent=False)
        found.append(
            Table(
                "Blocks chosen otherwise, of a ResNet-32 that is not trained on",
                ("which blocks", "of 15", "accuracy"),
                [
                    [way, blocks, spread([one[way] for one in chosen])]
                    for way in ("policy", "first", "distributed", "random")
                ],
            )
        )
    return [
        *found,
        _table_of_classes(_first(outcomes)),
        Table("Published", ("network", "accuracy, %", "computed", "source"), [list(row) for row in PUBLISHED]),
    ]


def _table_of_exits(method: str, found: Sequence[dict[str, Any]]) -> Table:
    """Budgets and exits, means over seeds."""
    rows = []
    for same in zip(*(one["rows"] for one in found), strict=True):
        left = same[0].get("left")
        rows.append(
            [
                f"budget {short(same[0]['budget']).strip()}" if left else same[0]["way"],
                spread([row["accuracy"] for row in same], digits=2),
                _cost([row["mult_adds"] for row in same]),
                " ".join(f"{share:.0%}" for share in left) if left else "",
            ]
        )
    return Table(
        f"{method}: exits and budgets",
        ("way", "accuracy", "mult-adds on average", "images that leave at each exit, first seed"),
        rows,
    )


def _table_of_classes(outcomes: Outcomes) -> Table:
    """What each class takes on average."""
    columns, classes = {}, []
    for outcome in outcomes:
        found = outcome.measured
        if "decided" in found:
            classes = found["decided"]["classes"]
            columns[f"{_name(outcome.labels)}: blocks"] = [
                f"{sum(row):.2f}" if row else "" for row in found["decided"]["by_class"]
            ]
        elif "leaving" in found:
            columns[f"{_name(outcome.labels)}: mult-adds"] = [
                short(spent or 0).strip() for spent in found["leaving"]["by_class"]
            ]
    return Table(
        "What the images of each class take on average, first seed",
        ("class", *columns),
        [[name, *(values[i] for values in columns.values())] for i, name in enumerate(classes)],
    )


# -- pictures ------------------------------------------------------------------------------------------------------


def _point(outcomes: Outcomes, costs: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float] | None:
    good = [(c, a) for c, a in zip(costs, accuracies, strict=True) if math.isfinite(c) and math.isfinite(a)]
    if not good:
        return None
    return statistics.mean(c for c, _ in good) / 1e6, 100 * statistics.mean(a for _, a in good)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Accuracy against mult-adds."""
    panels = figure.subplots(1, 2, sharey=True)
    plain = [
        (depth, _point(own, own.values("mult_adds"), own.values("accuracy")))
        for (depth,), own in outcomes.where(method="ResNet").groups("depth")
    ]
    for axes in panels:
        shown = [(depth, point) for depth, point in plain if point]
        axes.plot(
            *zip(*(point for _, point in shown), strict=True),
            "s-",
            color=COLORS["ResNet"],
            markersize=4,
            label="ResNet-" + ", ".join(str(depth) for depth, _ in shown),
        )
        axes.set_xlabel("mult-adds on average (millions)")
        tidy(axes)
    for method, label in (("ConvNet-AIG", "target"), ("BlockDrop", "penalty"), ("policy alone", "seed")):
        own, points = outcomes.where(method=method), []
        for value in own.distinct(label) if label != "seed" else [own.distinct("seed")]:
            some = own.where(**{label: value})
            point = _point(some, _values(some, "as decided", "mult_adds"), _values(some, "as decided", "accuracy"))
            if point:
                points.append(point)
                if label != "seed":
                    panels[0].annotate(f"{value:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=9)
        if points:
            panels[0].plot(
                *zip(*points, strict=True),
                "o-" if label != "seed" else "o",
                color=COLORS[method],
                label=method + (f", by {label}" if label != "seed" else ""),
            )
    for method in WITH_EXITS:
        own = outcomes.where(method=method).having("leaving")
        for batch, style in ((False, ".:"), (True, ".-")):
            curves = [_curve(o, batch) for o in own]
            if curves:
                points = [
                    (statistics.mean(c for c, _ in same) / 1e6, 100 * statistics.mean(a for _, a in same))
                    for same in zip(*curves, strict=True)
                ]
                panels[1].plot(
                    *zip(*points, strict=True),
                    style,
                    color=COLORS[method],
                    label=f"{method}, {'by image' if batch else 'each exit'}",
                )
    panels[0].set_ylabel("test accuracy (%)")
    for axes in panels:
        axes.legend(frameon=False, fontsize=9)


def _first(outcomes: Outcomes) -> Outcomes:
    return outcomes.where(seed=outcomes.distinct("seed")[0])


def draw_used(outcomes: Outcomes, figure: Any) -> None:
    """Distribution of blocks, and of exits."""
    left, right = figure.subplots(1, 2)
    own = [o for o in _first(outcomes).having("decided") if o.labels["method"] != "policy alone"]
    for i, outcome in enumerate(own):
        used = outcome.measured["decided"]["used"]
        total, whole = sum(used), len(used) - 1
        for count, images in enumerate(used):
            if images:
                left.scatter(
                    100 * count / whole,
                    i,
                    s=400 * images / total,
                    color=COLORS[outcome.labels["method"]],
                    alpha=0.7,
                    linewidths=0,
                )
    left.set_yticks(range(len(own)), [_name(o.labels) for o in own])
    left.set(
        xlabel="blocks computed (% of all); area: share of the images",
        xlim=(-5, 105),
        ylim=(max(len(own), 1) - 0.5, -0.5),
    )
    tidy(left)
    found = _first(outcomes).where(method="MSDNet").results("leaving")
    rows = [row for row in found[0]["rows"] if "left" in row] if found else []
    base = [0.0] * len(rows)
    for k in range(len(rows[0]["left"]) if rows else 0):
        shares = [100 * row["left"][k] for row in rows]
        right.bar(
            range(len(rows)),
            shares,
            0.8,
            bottom=base,
            label=f"exit {k + 1}",
            color=colormaps["viridis"](k / max(1, len(rows[0]["left"]) - 1)),
        )
        base = [a + b for a, b in zip(base, shares, strict=True)]
    right.set_xticks(range(len(rows)), [f"{row['budget'] / 1e6:.2g}" for row in rows], fontsize=8)
    right.set(xlabel="budget for the average image (millions of mult-adds)", ylabel="images (%)")
    if rows:
        right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(right)


def draw_classes(outcomes: Outcomes, figure: Any) -> None:
    """A panel a network, classes by blocks: the lowest target, and the joint training."""
    own = _first(outcomes).having("decided")
    chosen = [outcome for method in ("ConvNet-AIG", "BlockDrop") for outcome in own.where(method=method)[:1]]
    if not chosen:
        return
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, outcome in zip(panels, chosen, strict=True):
        found = outcome.measured["decided"]
        image = figures.classes_by_part(axes, found["by_class"], found["classes"], "block")
        axes.set_title(_name(outcome.labels))
    figure.colorbar(image, ax=panels, label="computed for (% of the class)")


def draw_extremes(outcomes: Outcomes, figure: Any) -> None:
    """Two rows a network: easy and hard images."""

    def example(one):
        return from_png(one["image"]), f"{one['label']}\n{one['says']}"

    # The first of each method
    chosen = {o.labels["method"]: o for o in reversed(_first(outcomes).having("extremes"))}
    figures.images_in_rows(
        figure,
        [
            (f"{_name(outcome.labels)}\n{kind}", list(map(example, shown)))
            for outcome in chosen.values()
            for kind, shown in outcome.measured["extremes"].items()
        ],
    )

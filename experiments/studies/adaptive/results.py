"""Results of the study of adaptive inference: judges, tables, pictures."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib import colormaps

from experiments.studies.measures import from_png
from experiments.study import (
    TOO_SMALL,
    Judgement,
    Outcome,
    Outcomes,
    Table,
    Verdict,
    all_of,
    compare,
    finite,
    mean,
    needs,
    spread,
)
from experiments.study.figures import finish, panels_by
from models.analysis.cost import short
from train.plots import figures
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


def _values(outcomes: Outcomes, way: str, field: str) -> list[float]:
    """Returns a number of the row "all blocks" or "as decided" of each; NaN where training diverged."""
    rows = (
        next((row for row in o.measured.get("decided", {}).get("rows", ()) if row["way"] == way), None)
        for o in outcomes
    )
    return [row[field] if row else float("nan") for row in rows]


def _accuracies(outcomes: Outcomes) -> list[float]:
    return _values(outcomes, "as decided", "accuracy")


def _blocks(outcomes: Outcomes) -> list[float]:
    return _values(outcomes, "as decided", "blocks")


def _saved(outcomes: Outcomes) -> list[float]:
    """Returns the saved share of the mult-adds that the network with all of its blocks computes."""
    pairs = zip(_values(outcomes, "as decided", "mult_adds"), _values(outcomes, "all blocks", "mult_adds"), strict=True)
    return [1 - used / whole for used, whole in pairs]


def _at_least(values: Sequence[float], least: float) -> Verdict:
    return compare(values, [least] * len(values))


# -- judges --------------------------------------------------------------------------------------------------------


def gates_save(outcomes: Outcomes) -> Judgement:
    """Compares gates with a ResNet, and what they save with a tenth."""
    every = outcomes.where(method="ConvNet-AIG")
    plain = outcomes.where(method="ResNet", depth=38).values("accuracy")
    target = 0.7 if 0.7 in every.distinct("target") else max(every.distinct("target"))
    own = every.where(target=target)
    return Judgement(
        all_of([compare(_accuracies(own), plain, by=-0.005), _at_least(_saved(own), 0.1)]),
        f"ConvNet-AIG 38, target {target}: {spread(_accuracies(own))} with {spread(_saved(own))} of its mult-adds "
        f"saved; ResNet-38 {spread(plain)}",
    )


def all_better(outcomes: Outcomes) -> Judgement:
    """Compares all blocks with those decided on, means by seed over all targets."""
    own = outcomes.where(method="ConvNet-AIG")
    every, some = (
        [statistics.mean(_values(group, way, "accuracy")) for _, group in own.groups("seed")]
        for way in ("all blocks", "as decided")
    )
    return Judgement(
        compare(every, some),
        f"all blocks {spread(every, digits=2)}, as decided "
        f"{spread(some, digits=2)}, means over targets {', '.join(map(str, own.distinct('target')))}",
    )


def targets(outcomes: Outcomes) -> Judgement:
    """Compares the highest target with the lowest."""
    own = outcomes.where(method="ConvNet-AIG")
    groups = {target: own.where(target=target) for target in sorted(own.distinct("target"))}
    if len(groups) < 2:
        return Judgement(TOO_SMALL, "not part of this scale")
    shown = "; ".join(
        f"t = {target}: {spread(_accuracies(group))} with {spread(_saved(group))} saved"
        for target, group in groups.items()
    )
    return Judgement(compare(_accuracies(groups[max(groups)]), _accuracies(groups[min(groups)])), shown)


def _joint(outcomes: Outcomes, choose: Callable[[Iterable[float]], float]) -> tuple[Outcomes, float]:
    """Returns the joint training with the lowest (min) or highest (max) penalty, and that penalty."""
    own = outcomes.where(method="BlockDrop")
    penalty = choose(own.distinct("penalty"))
    return own.where(penalty=penalty), penalty


@needs(method="BlockDrop")
def policy_saves(outcomes: Outcomes) -> Judgement:
    """Compares a policy with the whole network, and its blocks with two thirds."""
    plain = outcomes.where(method="ResNet-32, twice as long").values("accuracy")
    own, penalty = _joint(outcomes, max)
    accuracy, used = _accuracies(own), _blocks(own)
    return Judgement(
        all_of([compare(accuracy, plain, by=-0.01), _at_least([-x for x in used], -10)]),
        f"ResNet-32 {spread(plain)}; penalty {penalty:g}: {spread(accuracy)} with "
        f"{spread(used, percent=False)} of 15 blocks",
    )


@needs(method="BlockDrop")
def joint_better(outcomes: Outcomes) -> Judgement:
    """Compares training policy and network together with the policy alone."""
    alone, (joint, penalty) = outcomes.where(method="policy alone"), _joint(outcomes, min)
    fewer = compare(_blocks(alone), _blocks(joint), by=-0.5)
    together, apart = (
        f"{spread(_accuracies(own))} with {spread(_blocks(own), percent=False)}" for own in (joint, alone)
    )
    return Judgement(
        all_of([compare(_accuracies(joint), _accuracies(alone)), fewer]),
        f"together (penalty {penalty:g}) {together} blocks, policy alone {apart}",
    )


@needs(method="BlockDrop")
def penalties(outcomes: Outcomes) -> Judgement:
    """Compares the blocks kept under the highest penalty with those under the lowest."""
    own = outcomes.where(method="BlockDrop")
    used = {p: _blocks(own.where(penalty=p)) for p in sorted(own.distinct("penalty"))}
    if len(used) < 2:
        return Judgement(TOO_SMALL, "not part of this scale")
    return Judgement(
        compare(used[max(used)], used[min(used)]),
        "; ".join(f"penalty {p:g}: {spread(values, percent=False)} blocks" for p, values in used.items()),
    )


# -- curves --------------------------------------------------------------------------------------------------------


Curve = list[tuple[float, float]]  # (mult-adds, accuracy), ascending


def _curve(outcome: Outcome, batch: bool) -> Curve:
    """Returns the curve of a network with exits: thresholds by budget, or each exit for all images."""
    rows = outcome.measured.get("leaving", {}).get("rows", ())
    return sorted((row["mult_adds"], row["accuracy"]) for row in rows if (row["way"] == "batch") == batch)


def _at(curve: Curve, cost: float) -> float:
    """Returns the accuracy at a cost within the curve, linear between its points."""
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left <= cost <= right:
            return low + (high - low) * (cost - left) / (right - left) if right > left else high
    return float("nan")


def _average(curve: Curve, low: float, high: float) -> float:
    """Returns the mean accuracy between two costs, over 50 points."""
    return statistics.mean(_at(curve, low + (high - low) * i / 49) for i in range(50))


def _means(outcomes: Outcomes, first: tuple[str, bool], second: tuple[str, bool]) -> tuple[list[float], list[float]]:
    """Returns, by seed, the mean accuracy of two curves, (method, batch), over the costs that both have."""
    means = []
    for _, own in outcomes.groups("seed"):
        pair = [_curve(one, batch) for method, batch in (first, second) for one in own.where(method=method)]
        if len(pair) == 2 and all(pair):
            low, high = max(curve[0][0] for curve in pair), min(curve[-1][0] for curve in pair) * (1 - 1e-9)
            means.append([_average(curve, low, high) if low < high else float("nan") for curve in pair])
    return [one for one, _ in means], [two for _, two in means]


def scales_better(outcomes: Outcomes) -> Judgement:
    """Compares exits, the same for every image."""
    msdnet, resnet = _means(outcomes, ("MSDNet", False), ("ResNet with exits", False))
    return Judgement(
        compare(msdnet, resnet),
        f"MSDNet {spread(msdnet, digits=2)}, ResNet with exits "
        f"{spread(resnet, digits=2)}, means over the mult-adds that both have",
    )


def batch_better(outcomes: Outcomes) -> Judgement:
    """Compares budgets spent by image with the same exit for all."""
    parts, shown = [], []
    for method in WITH_EXITS:
        by_image, alike = _means(outcomes, (method, True), (method, False))
        parts.append(compare(by_image, alike))
        shown.append(
            f"{method}: by image {spread(by_image, digits=2)}, the same exit for all {spread(alike, digits=2)}"
        )
    return Judgement(all_of(parts), "; ".join(shown))


def above_resnets(outcomes: Outcomes) -> Judgement:
    """Compares MSDNet with each ResNet within its range, at the cost of the ResNet."""
    parts, shown = [], []
    for (depth,), own in outcomes.where(method="ResNet").groups("depth"):
        pairs = []
        for plain in own:
            curves = [_curve(one, True) for one in outcomes.where(method="MSDNet", seed=plain.labels["seed"])]
            if plain.summary and curves and curves[0]:
                pairs.append((_at(curves[0], plain.get("mult_adds")), plain.get("accuracy")))
        if pairs and not any(math.isnan(there) for there, _ in pairs):
            there, accuracies = [at for at, _ in pairs], [accuracy for _, accuracy in pairs]
            parts.append(compare(there, accuracies))
            shown.append(f"ResNet-{depth} {spread(accuracies)}, MSDNet there {spread(there)}")
    return Judgement(all_of(parts) if parts else TOO_SMALL, "; ".join(shown) or "no ResNet is within its range")


# -- tables --------------------------------------------------------------------------------------------------------


def _cost(values: Sequence[float]) -> str:
    return short(mean(values)).strip() if finite(values) else "diverged"


def _name(labels: Mapping[str, Any]) -> str:
    more = {"depth": "{}", "target": ", target {}", "penalty": ", penalty {:g}"}
    text = labels["method"] + ("-" if "depth" in labels else "")
    return text + "".join(form.format(labels[name]) for name, form in more.items() if name in labels)


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
        _table_of_classes(_first(outcomes)),
        Table("Published", ("network", "accuracy, %", "computed", "source"), [list(row) for row in PUBLISHED]),
    ]


def _table_of_networks(outcomes: Outcomes) -> Table:
    rows = []
    for name in dict.fromkeys(_name(outcome.labels) for outcome in outcomes):
        own = Outcomes([outcome for outcome in outcomes if _name(outcome.labels) == name])
        first, whole = own.first(), _cost(own.values("mult_adds"))
        row = [name, f"{int(first['parameters']) if first else 0:,}"]
        if own[0].labels["method"] in WITH_EXITS or own[0].labels["method"].startswith("ResNet"):
            rows.append([*row, spread(own.values("accuracy"), digits=2), whole, whole, "", ""])
            continue
        cost = _cost(_values(own, "as decided", "mult_adds"))
        paths = finite(own.measured("decided", "paths"))
        row += [spread(_accuracies(own), digits=2), whole, f"{cost} ({spread(_saved(own))} saved)"]
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
    """Returns what each class takes on average."""
    columns, classes = {}, []
    for outcome in outcomes:
        name = _name(outcome.labels)
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


# -- pictures ------------------------------------------------------------------------------------------------------


def _point(outcomes: Outcomes, costs: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float] | None:
    good = [(c, a) for c, a in zip(costs, accuracies, strict=True) if math.isfinite(c) and math.isfinite(a)]
    if not good:
        return None
    return statistics.mean(c for c, _ in good) / 1e6, 100 * statistics.mean(a for _, a in good)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against mult-adds."""
    left, right = figure.subplots(1, 2, sharey=True)
    plain = {
        depth: point
        for (depth,), own in outcomes.where(method="ResNet").groups("depth")
        if (point := _point(own, own.values("mult_adds"), own.values("accuracy")))
    }
    label, color = "ResNet-" + ", ".join(map(str, plain)), COLORS["ResNet"]
    for axes in (left, right):
        axes.plot(*zip(*plain.values(), strict=True), "s-", color=color, markersize=4, label=label)
    _draw_deciding(left, outcomes)
    _draw_exits(right, outcomes)
    left.set_ylabel("test accuracy (%)")
    for axes in (left, right):
        finish(axes, legend={"fontsize": 9}, xlabel="mult-adds on average (millions)")


def _draw_deciding(axes: Any, outcomes: Outcomes) -> None:
    for method, label in (("ConvNet-AIG", "target"), ("BlockDrop", "penalty"), ("policy alone", "")):
        own, points = outcomes.where(method=method), []
        for value, group in [(v, own.where(**{label: v})) for v in own.distinct(label)] if label else [(None, own)]:
            if point := _point(group, _values(group, "as decided", "mult_adds"), _accuracies(group)):
                points.append(point)
                if label:
                    axes.annotate(f"{value:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=9)
        if points:
            style, name = ("o-", f"{method}, by {label}") if label else ("o", method)
            axes.plot(*zip(*points, strict=True), style, color=COLORS[method], label=name)


def _draw_exits(axes: Any, outcomes: Outcomes) -> None:
    for method in WITH_EXITS:
        own = outcomes.where(method=method).having("leaving")
        for batch, style, name in ((False, ".:", "each exit"), (True, ".-", "by image")):
            if curves := [_curve(o, batch) for o in own]:
                points = [
                    (statistics.mean(c for c, _ in same) / 1e6, 100 * statistics.mean(a for _, a in same))
                    for same in zip(*curves, strict=True)
                ]
                axes.plot(*zip(*points, strict=True), style, color=COLORS[method], label=f"{method}, {name}")


def _first(outcomes: Outcomes) -> Outcomes:
    return outcomes.where(seed=outcomes.distinct("seed")[0])


def draw_used(outcomes: Outcomes, figure: Any) -> None:
    """Draws the distribution of blocks, and of exits."""
    left, right = figure.subplots(1, 2)
    own = [o for o in _first(outcomes).having("decided") if o.labels["method"] != "policy alone"]
    for i, outcome in enumerate(own):
        used = outcome.measured["decided"]["used"]
        total, whole = sum(used), len(used) - 1
        for count, images in enumerate(used):
            if images:
                color = COLORS[outcome.labels["method"]]
                left.scatter(100 * count / whole, i, s=400 * images / total, color=color, alpha=0.7, linewidths=0)
    left.set_yticks(range(len(own)), [_name(o.labels) for o in own])
    xlabel = "blocks computed (% of all); area: share of the images"
    finish(left, xlabel=xlabel, xlim=(-5, 105), ylim=(max(len(own), 1) - 0.5, -0.5))
    exits = _first(outcomes).where(method="MSDNet").results("leaving")
    rows = [row for row in exits[0]["rows"] if "left" in row] if exits else []
    base = [0.0] * len(rows)
    for k in range(len(rows[0]["left"]) if rows else 0):
        shares = [100 * row["left"][k] for row in rows]
        color = colormaps["viridis"](k / max(1, len(rows[0]["left"]) - 1))
        right.bar(range(len(rows)), shares, 0.8, bottom=base, label=f"exit {k + 1}", color=color)
        base = [a + b for a, b in zip(base, shares, strict=True)]
    right.set_xticks(range(len(rows)), [f"{row['budget'] / 1e6:.2g}" for row in rows], fontsize=8)
    legend = {"fontsize": 9, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    finish(right, legend=legend, xlabel="budget for the average image (millions of mult-adds)", ylabel="images (%)")


def draw_classes(outcomes: Outcomes, figure: Any) -> None:
    """Draws a panel per network, classes by blocks: the lowest target, and the joint training."""
    own = _first(outcomes).having("decided")
    chosen = [outcome for method in ("ConvNet-AIG", "BlockDrop") for outcome in own.where(method=method)[:1]]
    if not chosen:
        return
    panels, image = panels_by(figure, len(chosen)), None
    for axes, outcome in zip(panels, chosen, strict=True):
        decided = outcome.measured["decided"]
        image = figures.classes_by_part(axes, decided["by_class"], decided["classes"], "block")
        axes.set_title(_name(outcome.labels))
    figure.colorbar(image, ax=panels, label="computed for (% of the class)")


def draw_extremes(outcomes: Outcomes, figure: Any) -> None:
    """Draws two rows per network: easy and hard images."""

    def example(one: dict[str, Any]) -> tuple[Any, str]:
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

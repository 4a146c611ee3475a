"""What is read off the trials of the study of compression: values, verdicts, tables, pictures."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from experiments.studies.compression.measures import CUTS
from experiments.study import (
    AGREES,
    DISAGREES,
    TOO_SMALL,
    Judge,
    Judgement,
    Outcomes,
    Table,
    all_of,
    compare,
    deviation,
    mean,
    needs,
    spread,
)
from train.plots.figures import sensitivity_lines, tidy
from train.plots.palette import BLUE, GRAY, RED, YELLOW

# Han 2016, table 1: error before and after in percent, ratio
PUBLISHED = {
    "LeNet-300-100": (1.64, 1.58, 40),
    "LeNet-5": (0.80, 0.74, 39),
    "AlexNet": (42.78, 42.78, 35),
    "VGG-16": (31.50, 31.17, 49),
}
# Zhu 2017, CIFAR-10: error in percent with full precision, ternary
TERNARY = {20: (8.23, 8.87), 32: (7.67, 7.63), 44: (7.18, 7.02), 56: (6.80, 6.44)}
STAGES = {"dense": GRAY, "pruned": BLUE, "shared": RED}
PARTS = {
    "values": GRAY,
    "indices": RED,
    "signs": "#e8a08c",
    "jumps": BLUE,
    "codebook": YELLOW,
    "scales": "#e2d08c",
    "tables": "#6aa56a",
    "header": "#b0b0b0",
}


def _stage(outcomes: Outcomes, network: str, stage: str) -> Outcomes:
    return outcomes.where(part="stages", network=network, stage=stage)


def _lost(outcomes: Outcomes, network: str) -> list[float]:
    """Accuracy of the dense network less that of the file that was read back, by seed."""
    before = _stage(outcomes, network, "dense").values("accuracy")
    after = _stage(outcomes, network, "shared").measured("stored", "accuracy")
    return [a - b for a, b in zip(before, after, strict=True)]


def smaller(network: str, ratio: float) -> Judge:
    """Whether the file is so many times smaller, with no more than half a point of accuracy lost."""

    @needs(network=network)
    def judge(outcomes):
        ratios, lost = _stage(outcomes, network, "shared").measured("stored", "ratio"), _lost(outcomes, network)
        return Judgement(
            all_of([compare(ratios, [ratio] * len(ratios)), compare([0.005] * len(lost), lost)]),
            f"{network}: {spread(ratios, percent=False)} times smaller, {spread(lost, digits=2)} of accuracy lost",
        )

    return judge


def _curve(outcomes: Outcomes, decay: str, how: str, sparsity: float) -> list[float]:
    """Accuracy at a sparsity: "cut" without retraining, "at once" or "step by step" with."""
    own = outcomes.where(part="curves", decay=decay)
    if how == "cut":
        return own.where(how="whole").measured("cut", CUTS.index(sparsity))
    return own.where(how=how, sparsity=sparsity).values("accuracy")


def _sparsities(outcomes: Outcomes) -> list[float]:
    return outcomes.where(part="curves", decay="L2").distinct("sparsity")


def _versus(outcomes: Outcomes, high: tuple[str, str], low: tuple[str, str], sparsities: Sequence[float]) -> Judgement:
    """(decay, how) against another, over the sparsities together."""
    first, second = ([_curve(outcomes, *which, sparsity) for sparsity in sparsities] for which in (high, low))
    if not sparsities or not all(first) or not all(second):
        return Judgement(TOO_SMALL, "not part of this scale")
    means = [[sum(values) / len(sparsities) for values in zip(*series, strict=True)] for series in (first, second)]
    shown = "; ".join(
        f"{sparsity:.0%} gone: {spread(a)} against {spread(b)}"
        for sparsity, a, b in zip(sparsities, first, second, strict=True)
    )
    return Judgement(compare(*means), f"{', '.join(high)} against {', '.join(low)}: {shown}")


def retraining(outcomes: Outcomes) -> Judgement:
    return _versus(outcomes, ("L2", "step by step"), ("L2", "cut"), [s for s in _sparsities(outcomes) if s in CUTS])


def l1_before(outcomes: Outcomes) -> Judgement:
    return _versus(outcomes, ("L1", "cut"), ("L2", "cut"), [s for s in _sparsities(outcomes) if s in CUTS])


def l2_after(outcomes: Outcomes) -> Judgement:
    return _versus(outcomes, ("L2", "at once"), ("L1", "at once"), _sparsities(outcomes))


def iterative(outcomes: Outcomes) -> Judgement:
    return _versus(outcomes, ("L2", "step by step"), ("L2", "at once"), _sparsities(outcomes))


def _points(outcomes: Outcomes) -> dict[str, list[list[tuple[float, float]]]]:
    """By method, for each seed: points (times smaller, accuracy), ascending."""
    found: dict[str, list] = {"sharing alone": [], "pruning alone": [], "both": []}
    for (_,), own in outcomes.where(part="curves").groups("seed"):
        seed = own[0].labels["seed"]
        dense, stages = (
            outcomes.where(part="stages", stage=stage, seed=seed).results("bits") for stage in ("dense", "pruned")
        )
        pruned = [*own.where(decay="L2", how="step by step").results("bits"), *stages]
        if dense and pruned:
            for method, points in (
                ("sharing alone", dense[0]),
                ("pruning alone", [bits[0] for bits in pruned]),
                ("both", [point for bits in pruned for point in bits[1:]]),
            ):
                found[method].append(sorted((point["ratio"], point["accuracy"]) for point in points))
    return found


def _smallest(points: Sequence[tuple[float, float]], least: float) -> float:
    """The largest ratio of a point of at least that accuracy; 1 where there is none: the network as it is."""
    return max((ratio for ratio, accuracy in points if accuracy >= least), default=1.0)


def both(outcomes: Outcomes) -> Judgement:
    """Which gets smallest with at most a point of accuracy lost."""
    points, best = _points(outcomes), {}
    whole = [seed[0][1] for seed in points["sharing alone"]]  # the largest file: the weights as they are
    for method, seeds in points.items():
        best[method] = [_smallest(seed, least - 0.01) for seed, least in zip(seeds, whole, strict=True)]
    return Judgement(
        all_of([compare(best["both"], best[one]) for one in ("sharing alone", "pruning alone")]),
        "times smaller with at most 1 point lost: "
        + ", ".join(f"{method} {spread(values, percent=False)}" for method, values in best.items()),
    )


def linear(outcomes: Outcomes) -> Judgement:
    """k-means from even steps against the others, mean over 2, 3 and 4 bits."""
    own = outcomes.where(part="stages", stage="pruned").results("centroids")
    means = {init: [sum(one[init]) / len(one[init]) for one in own] for init in ("linear", "density", "random")}
    shown = ", ".join(f"{init} {spread(values)}" for init, values in means.items())
    return Judgement(
        all_of([compare(means["linear"], means[one]) for one in ("density", "random")]),
        f"mean accuracy with 2, 3, 4 bits: {shown}",
    )


def _low(outcomes: Outcomes, depth: int, kind: str) -> list[float]:
    return outcomes.where(part="low bits", depth=depth, kind=kind).values("accuracy")


def _low_bits(high: str, low: str, by: float) -> Judge:
    """Whether at every depth `high` is more than `by` above `low`."""

    def judge(outcomes):
        parts, shown = [], []
        for depth in outcomes.where(part="low bits").distinct("depth"):
            first, second = _low(outcomes, depth, high), _low(outcomes, depth, low)
            if first and second:
                parts.append(compare(first, second, by=by))
                shown.append(f"{depth} layers: {high} {spread(first)}, {low} {spread(second)}")
        return Judgement(all_of(parts) if parts else TOO_SMALL, "; ".join(shown) or "not part of this scale")

    return judge


ternary = _low_bits("ternary", "full", -0.01)
binary = _low_bits("binary weights", "full", -0.02)
xnor = _low_bits("binary weights", "XNOR", 0.0)


def _filters(outcomes: Outcomes, network: str) -> tuple[Outcomes, Outcomes]:
    """Whole and without; those that did not diverge."""
    both = _stage(outcomes, network, "dense"), outcomes.where(part="filters", network=network)
    return tuple(own.having("stored") for own in both)


def filters(outcomes: Outcomes) -> Judgement:
    parts, shown = [], []
    for network in outcomes.where(part="filters").distinct("network"):
        before, after = _filters(outcomes, network)
        if not before or not after:
            return Judgement(TOO_SMALL, f"{network}: diverged")
        saved = 1 - after[0].measured["stored"]["mult_adds"] / before[0].measured["stored"]["mult_adds"]
        accuracies = before.values("accuracy"), after.measured("stored", "accuracy")
        parts += [compare(accuracies[1], accuracies[0], by=-0.005), AGREES if saved > 0.3 else DISAGREES]
        shown.append(
            f"{network}: {saved:.0%} fewer mult-adds, {spread(accuracies[0])} before, {spread(accuracies[1])} after"
        )
    return Judgement(all_of(parts), "; ".join(shown))


# -- tables --------------------------------------------------------------------------------------------------------


def _error(values: Sequence[float]) -> str:
    return spread([1 - value for value in values], digits=2)


def _unhuffed(layers: Sequence[dict[str, Any]]) -> float:
    """Bytes of a file without Huffman coding: indices and jumps of fixed width."""
    total = 0.0
    for row in layers:
        parts, entries = row["parts"], row["entries"] or 0
        coded = parts.get("indices", 0) + parts.get("jumps", 0) + parts.get("tables", 0)
        width = (row["index_bits"] or 0) * ("indices" in parts) + (row["jump_bits"] or 0)
        total += row["bytes"] - coded + entries * width / 8
    return total


def _kilobytes(values: Sequence[float]) -> str:
    return spread([value / 1000 for value in values], percent=False)


def _row_of_network(outcomes: Outcomes, network: str) -> list[Any]:
    stages = {stage: _stage(outcomes, network, stage) for stage in STAGES}
    files = {stage: own.results("stored") for stage, own in stages.items()}
    kept = [
        sum(row["kept"] for row in one["layers"] if row["entries"])
        / sum(row["weights"] for row in one["layers"] if row["entries"])
        for one in files["pruned"]
    ]
    ratio = {stage: spread([one["ratio"] for one in found], percent=False) for stage, found in files.items()}
    unhuffed = spread([one["float32"] / _unhuffed(one["layers"]) for one in files["shared"]], percent=False)
    dense = next((o.summary["parameters"] for o in stages["dense"] if o.summary), None)
    return [
        network,
        f"{dense:,}" if dense else "diverged",
        *(_error(stages[stage].values("accuracy")) for stage in ("dense", "pruned")),
        _error([one["accuracy"] for one in files["shared"]]),
        spread(kept),
        *(_kilobytes([one[key] for one in files["shared"]]) for key in ("float32", "bytes")),
        ratio["pruned"],
        unhuffed,
        ratio["shared"],
        "yes" if all(one["identical"] for one in files["shared"]) else "NO",
    ]


def tables(outcomes: Outcomes) -> list[Table]:
    """Of every part of the study that its scale has."""
    from models.compress import file  # imports JAX

    networks = outcomes.where(part="stages").distinct("network")
    found = [
        Table(
            "Deep compression",
            (
                "network",
                "numbers",
                "error",
                "pruned",
                "file",
                "weights kept",
                "float32 (kB)",
                "file (kB)",
                "pruned, times",
                "shared, times",
                "Huffman, times",
                "logits equal",
            ),
            [
                *(_row_of_network(outcomes, network) for network in networks),
                *(
                    [f"{name} (Han 2016, table 1)", "", f"{before:.2f} %", "", f"{after:.2f} %", *[""] * 5, ratio, ""]
                    for name, (before, after, ratio) in PUBLISHED.items()
                ),
            ],
        )
    ]
    for network in networks:
        if shared := _stage(outcomes, network, "shared").results("stored"):
            found.append(
                Table(
                    f"{network}, layer by layer",
                    ("layer", "weights", "kept", "index bits / coded", "jump bits / coded", "bytes", "of float32"),
                    file.rows(shared[0]["layers"]),
                )
            )
    if _sparsities(outcomes):
        found.append(_table_of_curves(outcomes))
    if low := _table_of_low_bits(outcomes):
        found.append(low)
    rows = []
    for network in outcomes.where(part="filters").distinct("network"):
        before, after = _filters(outcomes, network)
        rows += [
            [
                f"{network}, {name}",
                _error(own.measured("stored", "accuracy")),
                *(f"{own[0].measured['stored'][key]:,}" for key in ("parameters", "mult_adds")),
            ]
            for name, own in (("whole", before), ("without some of its filters", after))
            if own
        ]
    return [*found, Table("Filters removed", ("network", "error", "parameters", "mult-adds"), rows)]


def _table_of_curves(outcomes: Outcomes) -> Table:
    columns = [("L2", "cut"), ("L1", "cut"), ("L2", "at once"), ("L1", "at once"), ("L2", "step by step")]
    columns = [c for c in columns if any(_curve(outcomes, *c, s) for s in _sparsities(outcomes))]
    network = outcomes.where(part="curves")
    numbers = next((o.summary["parameters"] for o in network if o.summary), 0)
    title = f"Accuracy by sparsity, {numbers:,} parameters"
    return Table(
        title,
        ("weights gone", *(f"{decay}, {how}" for decay, how in columns)),
        [
            [f"{sparsity:.0%}", *(spread(_curve(outcomes, *column, sparsity)) for column in columns)]
            for sparsity in _sparsities(outcomes)
        ],
    )


def _table_of_low_bits(outcomes: Outcomes) -> Table | None:
    own = outcomes.where(part="low bits")
    kinds, rows = own.distinct("kind"), []
    for depth in own.distinct("depth"):

        def ratio(kind, depth=depth):
            return spread(own.where(depth=depth, kind=kind).measured("stored", "ratio")[:1], percent=False)

        published = " / ".join(f"{error:.2f}" for error in TERNARY.get(depth, ())) or "—"
        rows.append(
            [
                depth,
                *(_error(_low(outcomes, depth, kind)) for kind in kinds),
                published,
                " / ".join(ratio(kind) for kind in kinds),
            ]
        )
    return (
        Table(
            "Few bits a weight: error", ("layers", *kinds, "Zhu 2017: full / ternary, %", "file, times smaller"), rows
        )
        if rows
        else None
    )


# -- pictures ------------------------------------------------------------------------------------------------------


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Accuracy against sparsity."""
    axes = figure.subplots()
    styles = {"cut": ":", "at once": "--", "step by step": "-"}
    sparsities = _sparsities(outcomes)
    for decay, color in (("L2", BLUE), ("L1", RED)):
        for how, style in styles.items():
            shown = [s for s in CUTS if s] if how == "cut" else sparsities
            values = [mean(_curve(outcomes, decay, how, s)) for s in shown]
            if not all(map(math.isnan, values)):
                axes.plot(
                    [100 * s for s in shown],
                    [100 * v for v in values],
                    style,
                    color=color,
                    marker=".",
                    label=f"{decay}, {how if how != 'cut' else 'without retraining'}",
                )
    axes.set(xlabel="weights gone (%)", ylabel="test accuracy (%)")
    axes.legend(frameon=False, fontsize=9)
    tidy(axes)


def draw_bits(outcomes: Outcomes, figure: Any) -> None:
    """Accuracy against the file's size."""
    axes = figure.subplots()
    colors = {"sharing alone": YELLOW, "pruning alone": BLUE, "both": RED}
    for method, seeds in _points(outcomes).items():
        for i, points in enumerate(seeds):
            axes.plot(
                *zip(*((ratio, 100 * accuracy) for ratio, accuracy in points), strict=True),
                "." if method == "both" else ".-",
                color=colors[method],
                alpha=0.7,
                label=method if i == 0 else None,
            )
    axes.set(xlabel="times smaller than float32", ylabel="test accuracy (%)", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    tidy(axes)


def draw_low_bits(outcomes: Outcomes, figure: Any) -> None:
    """Error by depth and kind."""
    axes = figure.subplots()
    own = outcomes.where(part="low bits")
    depths, kinds = own.distinct("depth"), own.distinct("kind")
    colors = {"full": GRAY, "ternary": BLUE, "binary weights": YELLOW, "full, preactivation": "#b0b0b0", "XNOR": RED}
    for i, kind in enumerate(kinds):
        runs = [[100 - 100 * value for value in _low(outcomes, depth, kind)] for depth in depths]
        width = 0.8 / len(kinds)
        axes.bar(
            [n + (i - len(kinds) / 2 + 0.5) * width for n in range(len(depths))],
            [mean(v) for v in runs],
            width,
            yerr=[deviation(v) for v in runs],
            capsize=3,
            color=colors[kind],
            label=kind,
        )
    axes.set_xticks(range(len(depths)), [f"{depth} layers" for depth in depths])
    axes.set_ylabel("test error (%)")
    axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    tidy(axes)


def draw_sensitivity(outcomes: Outcomes, figure: Any) -> None:
    """A panel a network, a line a layer."""
    networks = outcomes.where(part="stages").distinct("network")
    for axes, network in zip(figure.subplots(1, len(networks), sharey=True, squeeze=False)[0], networks, strict=True):
        for found in _stage(outcomes, network, "dense").results("sensitivity")[:1]:
            sensitivity_lines(axes, found["layers"], named=10)
        axes.set(title=network, xlabel="weights of the layer gone (%)")
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    figure.axes[0].set_ylabel("accuracy on training images (%)")


def draw_bytes(outcomes: Outcomes, figure: Any) -> None:
    """What the bytes of each file are for."""
    axes = figure.subplots()
    rows = [
        (f"{network}, {stage}", stored)
        for network in outcomes.where(part="stages").distinct("network")
        for stage in ("pruned", "shared")
        for stored in _stage(outcomes, network, stage).where(seed=0).results("stored")
    ]
    for i, (_, stored) in enumerate(rows):
        left, parts = 0.0, collections.Counter()
        for row in stored["layers"]:
            parts.update(row["parts"])
        for part, color in PARTS.items():
            share = 100 * parts[part] / stored["float32"]
            axes.barh(i, share, left=left, color=color, label=part if i == 0 else None)
            left += share
        axes.text(left, i, f" {stored['float32'] / stored['bytes']:.0f}x", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("bytes of the file, % of float32")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(axes)

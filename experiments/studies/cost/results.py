"""Results of the study of cost: judges, tables, pictures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies import networks
from experiments.studies.cost.networks import BLOCKS, DENSE, MOBILENETS, PLAIN, SEPARABLE
from experiments.study import Judge, Judgement, Outcomes, Table, evidence, finite, listed, missing, spread
from experiments.study.figures import (
    dots,
    errorbars,
    finish,
    fixed_ticks,
    legend_below,
    number_ticks,
    panels_by,
    percent_axis,
)
from models.analysis.axes import logarithmic
from models.analysis.palette import BLACK, BLUE, BROWN, CYAN, GREEN, PINK, PURPLE, RED, YELLOW

TOLERANCE = 0.05  # largest allowed difference of costs: the costliest over the cheapest, minus 1
SLOWER = 1.5  # factor between the times of steps at equal mult-adds
CLASSIFIER = 1024 * 1000  # mult-adds of MobileNet's classifier
KINDS = {"mult_adds": "equal mult-adds", "parameters": "equal parameters"}
COLORS = dict(zip(BLOCKS, (BLACK, BLUE, PURPLE, YELLOW, RED, GREEN), strict=True))
MARKS = {  # network -> (name, color, marker) in the picture of the time per step
    **{block: (block, color, "o") for block, color in COLORS.items()},
    "residual": (f"{PLAIN}, other sizes", COLORS[PLAIN], "s"),
    "whole": ("whole convolutions", BROWN, "^"),
    "separable": ("separable convolutions", COLORS[SEPARABLE], "^"),
    "early": ("early downsampling", PINK, "v"),
    "late": ("late downsampling", CYAN, "v"),
}


# -- judges --------------------------------------------------------------------------------------------------------


def better(field: str, high: str, low: str, published: float) -> Judge:
    """Returns a judge: one block is more accurate than another of the same cost, by `published` in the paper."""
    return networks.more_accurate(KINDS[field], field, TOLERANCE, high, low, published)


def cheaper(kind: str, cheap: str, dear: str, share: float, loss: float) -> Judge:
    """Returns a judge: `cheap` has at most `share` of the mult-adds of `dear`, and loses less accuracy than `loss`."""

    def judge(outcomes: Outcomes) -> Judgement:
        cheap_runs, dear_runs = (outcomes.where(set=kind, network=name) for name in (cheap, dear))
        work = [max(finite(one.values("mult_adds")), default=0) for one in (cheap_runs, dear_runs)]
        if not all(work):
            return missing("all runs of one network diverged")
        loses_little = evidence.no_less(cheap_runs.values("accuracy", 0.0), dear_runs.values("accuracy", 0.0), loss)
        text = networks.accuracies(outcomes.where(set=kind), cheap, dear)
        decided = evidence.all_of(evidence.holds(work[0] <= share * work[1]), loses_little)
        return Judgement(decided, f"{text}; {work[0] / work[1]:.0%} of the mult-adds")

    return judge


def efficient(outcomes: Outcomes) -> Judgement:
    """Compares the largest residual network with the largest dense one of at most half as many parameters."""
    sizes = {
        family: [
            (max(finite(group.values("parameters")), default=0), group)
            for _, group in outcomes.where(set="sizes", network=family).groups("size")
        ]
        for family in ("residual", "dense")
    }
    largest, residual = max(sizes["residual"], key=lambda pair: pair[0])
    small = [pair for pair in sizes["dense"] if 0 < pair[0] <= largest / 2]
    if not small:
        return missing("no dense network has so few parameters")
    parameters, dense = max(small, key=lambda pair: pair[0])
    good, reference = (group.values("accuracy", diverged=0.0) for group in (dense, residual))
    text = f"dense, {parameters:,} parameters, {spread(good)}; residual, {largest:,} parameters, {spread(reference)}"
    return Judgement(evidence.no_less(good, reference), text)


def reused(outcomes: Outcomes) -> Judgement:
    """Compares the mean weights on the earlier half of each layer's sources with those on the later half.

    Only layers with at least four sources count. The result is that of the block with the smallest ratio.
    """
    measured = outcomes.where(set="re-use").results("reuse")
    if not measured:
        return missing("all runs diverged")

    def ratio(row: Sequence[float]) -> float:
        return statistics.mean(row[: len(row) // 2]) / statistics.mean(row[len(row) // 2 :])

    least = [
        min(statistics.mean(ratio(row) for row in block if len(row) >= 4) for block in one["blocks"])
        for one in measured
    ]
    moved = [one["moved"] for one in measured]
    trained = evidence.above(moved, 0.5)
    return Judgement(
        evidence.given(trained, evidence.above(least, 0.5, unit="of the weight")),
        f"earlier sources have {spread(least, False, 2)} of the later ones' weight in the block where they "
        f"have the least; training moved the weights by {spread(moved)} of their initial size",
    )


def timed(outcomes: Outcomes) -> Judgement:
    """Compares the times per training step of the slowest and the fastest network at equal mult-adds.

    The first median of each network chooses the two, and the others are compared, by their logarithms.
    """
    times = {
        o.labels["network"]: o.measured["step_time"].get("medians", [o.measured["step_time"]["milliseconds"]])
        for o in outcomes.where(set="step time", of=KINDS["mult_adds"])
    }
    fast, slow = (choose(times, key=lambda network: times[network][0]) for choose in (min, max))
    text = listed({network: times[network][1:] or times[network] for network in (fast, slow)}, percent=False)
    if min(map(len, times.values())) < 3:
        return missing(f"{text} ms per step, measured once: without repetitions, the error is unknown")
    quick, long = ([math.log10(one) for one in times[network][1:]] for network in (fast, slow))
    return Judgement(evidence.more(long, quick, math.log10(SLOWER), unit="decades"), f"{text} ms per step")


def _counted() -> list[tuple[str, Any, int, float, str]]:
    """Counts the costs of MobileNets at ImageNet's size, beside the published millions of mult-adds and parameters."""
    return [
        (label, networks.cost("imagenet", network), mult_adds, parameters, source)
        for label, network, mult_adds, parameters, source in MOBILENETS
    ]


def table_4(outcomes: Outcomes) -> Judgement:
    """Compares our counts with Howard 2017, table 4."""
    del outcomes  # counted, not trained
    rows = [row for row in _counted() if row[-1].endswith("table 4")]
    exact = all(
        round(cost.params / 1e6, 1) == parameters
        and any(
            mult_adds in (int(millions), round(millions))
            for millions in (cost.mult_adds / 1e6, (cost.mult_adds - CLASSIFIER) / 1e6)
        )
        for _, cost, mult_adds, parameters, _ in rows
    )
    return Judgement(
        evidence.holds(exact),
        "; ".join(
            f"{label} {cost.mult_adds / 1e6:.2f} M "
            f"({(cost.mult_adds - CLASSIFIER) / 1e6:.2f} M without its classifier), "
            f"{cost.params / 1e6:.2f} M parameters"
            for label, cost, *_ in rows
        ),
    )


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of MobileNets' costs, of accuracies at equal cost, of sizes, of pairs, and of times per step."""
    counted = [
        [label, f"{cost.mult_adds / 1e6:.1f}", mult_adds, f"{cost.params / 1e6:.2f}", parameters, source]
        for label, cost, mult_adds, parameters, source in _counted()
    ]
    times = [
        [
            _name(o.labels),
            o.labels["of"],
            f"{(measured := o.measured['step_time'])['mult_adds']:,}",
            f"{measured['milliseconds']:.2f}",
            f"{3 * measured['mult_adds'] * measured['images'] / measured['milliseconds'] / 1e6:.1f}",
        ]
        for o in outcomes.where(set="step time")
    ]
    titles = {
        **{kind: f"At {kind}" for kind in KINDS.values()},
        "sizes": "Sizes",
        "convolution": "Whole and separable",
        "downsampling": "Early and late downsampling",
    }
    return [
        Table(
            "Counts of MobileNets",
            ["network", "mult-adds, M", "published", "parameters, M", "published", "source"],
            counted,
        ),
        *(_table_of_networks(title, outcomes.where(set=kind)) for kind, title in titles.items()),
        Table(
            "Time of a training step",
            ["network", "compared", "mult-adds", "ms", "G mult-adds/s, forward and backward"],
            times,
        ),
    ]


def _table_of_networks(title: str, outcomes: Outcomes) -> Table:
    """Returns a table with one row per network, and per size if there are several."""
    cells = {**networks.CELLS, "training loss at the end": lambda group: spread(_final_losses(group), False, 3)}
    rows = []
    for name in dict.fromkeys(_name(o.labels) for o in outcomes):
        group = Outcomes([o for o in outcomes if _name(o.labels) == name])
        rows.append([name, *(cell(group) for cell in cells.values())])
    return Table(title, ["network", *cells], rows)


def _final_losses(outcomes: Outcomes) -> list[float]:
    return [o.history["train"]["loss"][-1] for o in outcomes if o.summary]


def _name(labels: Mapping[str, Any]) -> str:
    return f"{labels['network']} {labels['size'] + 1}" if "size" in labels else labels["network"]


def draw_equal(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy at equal cost, one point per run."""
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (field, kind) in zip(panels, KINDS.items(), strict=True):
        for x, block in enumerate(BLOCKS):
            dots(axes, x, outcomes.where(set=kind, network=block).values("accuracy"), COLORS[block])
        costs = finite(outcomes.where(set=kind).values(field))
        number_ticks(axes, [block.replace(" ", "\n") for block in BLOCKS])
        finish(axes, title=f"{kind}: {min(costs):,} to {max(costs):,}" if costs else kind)
    percent_axis(panels[0], outcomes)


def draw_sizes(outcomes: Outcomes, figure: Any) -> None:
    """Draws accuracy against parameters."""
    axes = figure.subplots()
    for family, color in (("residual", COLORS[PLAIN]), ("dense", COLORS[DENSE])):
        groups = [group for _, group in outcomes.where(set="sizes", network=family).groups("size")]
        x = [max(finite(group.values("parameters")), default=0) for group in groups]
        errorbars(axes, x, [group.values("accuracy") for group in groups], color=color, label=family)
    logarithmic(axes, "x")
    finish(axes, xlabel="parameters")
    percent_axis(axes, outcomes)
    legend_below(figure, axes)


def draw_reuse(outcomes: Outcomes, figure: Any) -> None:
    """Draws the mean weights between the layers of dense blocks."""
    measured = [one["blocks"] for one in outcomes.where(set="re-use").results("reuse")]
    if not measured:
        return
    panels, heat = panels_by(figure, len(measured[0])), None
    for stage, axes in enumerate(panels):
        rows = [
            [statistics.mean(values) for values in zip(*runs, strict=True)]
            for runs in zip(*(one[stage] for one in measured), strict=True)
        ]
        size = len(rows)
        image = [[row[source] / max(row) if source < len(row) else math.nan for row in rows] for source in range(size)]
        heat = axes.imshow(image, vmin=0.5, vmax=1, cmap="viridis")
        fixed_ticks(axes.xaxis, range(size), [*range(1, size), "out"])
        fixed_ticks(axes.yaxis, range(size), ["input", *range(1, size)])
        axes.set(title=f"dense block {stage + 1}", xlabel="to layer")
    panels[0].set_ylabel("from layer")
    label = "mean absolute weight,\nrelative to the column's largest"
    figure.colorbar(heat, ax=panels, label=label, shrink=0.8, extend="min")


def draw_step_time(outcomes: Outcomes, figure: Any) -> None:
    """Draws the time per step against mult-adds."""
    axes, timed = figure.subplots(), outcomes.where(set="step time")
    for name, (label, color, marker) in MARKS.items():
        points = [(one["mult_adds"], one["milliseconds"]) for one in timed.where(network=name).results("step_time")]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=color, markersize=6, alpha=0.85, label=label)
    first = timed[0].measured["step_time"]
    logarithmic(axes, "x")
    logarithmic(axes, "y")
    ylabel = f"training step of {first['images']} images (ms)"
    finish(axes, title=first["device"], xlabel="mult-adds of one image, forward", ylabel=ylabel)
    figure.legend(loc="outside right center")

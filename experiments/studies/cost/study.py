"""Cost: what bottlenecks, groups, depthwise convolutions, inverted residuals and dense connections buy at equal cost.

  He et al. 2016         Deep residual learning, arXiv 1512.03385                        bottleneck
  Xie et al. 2017        Aggregated residual transformations, arXiv 1611.05431           groups
  Howard et al. 2017     MobileNets, arXiv 1704.04861                                    depthwise separable
  Sandler et al. 2018    MobileNetV2, arXiv 1801.04381                                   inverted residuals
  Huang et al. 2017      Densely connected convolutional networks, arXiv 1608.06993      dense connections

Mult-adds and parameters are counted in the traced programs (models/analysis/cost.py); a claim about equal cost is
judged only where the costs counted are equal within TOLERANCE. experiments/bench/costs.py has the costs of the papers'
networks beside their published accuracies.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, LogLocator

from experiments.studies import networks
from experiments.studies.cost.networks import (
    BLOCKS,
    BOTTLENECK,
    DENSE,
    EQUAL,
    GROUPED,
    INVERTED,
    MOBILENETS,
    PAIRS,
    PLAIN,
    REUSED,
    SEPARABLE,
    SIZES,
)
from experiments.studies.networks import Network
from experiments.study import (
    TOO_SMALL,
    Claim,
    Judge,
    Judgement,
    Measure,
    Outcomes,
    Picture,
    Study,
    Table,
    Trial,
    all_of,
    compare,
    finite,
    holds,
    more,
    spread,
)
from experiments.study.figures import dots, finish, panels_by
from train.plots.palette import BLACK, BLUE, BROWN, CYAN, GREEN, PINK, PURPLE, RED, YELLOW

SEEDS = (0, 1, 2)
EPOCHS = {"digits": 6, "cifar10": 60, "imagenet": 90}  # on digits half of the recipe's, which reach 99 %
TOLERANCE = 0.05  # costliest over cheapest, less 1
TIMED = 15  # training steps of which the median is taken
CLASSIFIER = 1024 * 1000  # mult-adds of MobileNet's
KINDS = {"mult_adds": "equal mult-adds", "parameters": "equal parameters"}
COLORS = dict(zip(BLOCKS, (BLACK, BLUE, PURPLE, YELLOW, RED, GREEN), strict=True))

COSTS = {
    "digits": "about 5 minutes on 2 cores",
    "cifar10": "60 runs, 5e16 mult-adds: half an hour at 3e13 a second, hours at what small networks reach on a GPU",
    "imagenet": "72 runs, 1.05e20 mult-adds: 1000 GPU hours at 3e13 a second, as ResNet-50 on an A100",
}


def trials(scale: str) -> list[Trial]:
    """Lists blocks at equal cost; sizes of dense and residual networks; an early stem, whole convolutions; timing."""
    planned, timed = [], {}

    def add(network: Network, labels: Mapping[str, Any], epochs: int = EPOCHS[scale], measures: Sequence[Measure] = ()):
        timed.setdefault(str(network), (network, labels))
        for seed in SEEDS:
            config = networks.config(scale, network, seed, epochs)
            planned.append(Trial({**labels, "seed": seed}, config, measures=measures))

    for block, equal in EQUAL[scale].items():
        for kind, network in zip(KINDS.values(), equal, strict=True):
            add(network, {"set": kind, "network": block})
    for family, series in SIZES[scale].items():
        for size, network in enumerate(series):
            add(network, {"set": "sizes", "network": family, "size": size})
    for kind, pair in PAIRS[scale].items():
        for label, network in pair.items():
            add(network, {"set": kind, "network": label})
    add(REUSED[scale], {"set": "re-use", "network": DENSE}, 24 if scale == "digits" else 0, (reuse,))
    for network, labels in timed.values():
        labels = {**labels, "of": labels["set"], "set": "step time"}
        planned.append(Trial(labels, networks.config(scale, network, 0, EPOCHS[scale]), False, (step_time,)))
    return planned


def step_time(run: Any, state: Any) -> dict[str, Any]:
    """Measures milliseconds of the compiled training step for `images` images: the median of TIMED after three."""
    import jax

    from models.analysis.cost import analyze
    from train import summary

    state, seconds = run.parallel.place(state), []
    for _, items in run.feed.calls(0, 3 + TIMED):
        began = time.perf_counter()
        state = jax.block_until_ready(run.train_call(state, run.feed.data, items))[0]
        seconds.append(time.perf_counter() - began)
    cost = analyze(run.task.model, (1, *run.feed.image_shape))
    return {
        "milliseconds": 1000 * statistics.median(seconds[3:]),
        "images": run.config["batch_size"],
        "mult_adds": cost.mult_adds,
        "parameters": cost.params,
        "device": summary.device(run.parallel.devices),
    }


def reuse(run: Any, state: Any) -> dict[str, Any]:
    """Measures the mean absolute weight from each earlier layer to each later one (Huang 2017, fig. 5).

    Returns:
      "blocks": by dense block, `weights[l][s]`: of layer l's first convolution over the channels that come from source
      s, which is the block's input for s = 0, else layer s - 1. After the layers there is one more row, what follows
      the block: the transition's convolution, or the classifier.
      "moved": sum of |w - w before training| over that of |w before training|, of the same kernels.
    """
    import numpy as np

    model, blocks, changes, before = run.task.model, [], 0.0, 0.0
    for stage, size in enumerate(model.stage_sizes, 1):
        paths: list[Sequence[str]] = [(f"stage{stage}", f"layer{i}", "conv1") for i in range(size)]
        paths.append((f"transition{stage}", "conv") if stage < len(model.stage_sizes) else ("head",))
        weights, width = [], None
        for path in paths:
            now, first = (np.asarray(_at(s.params, path)["kernel"], np.float64) for s in (state, run.state))
            channels = np.abs(now).reshape(-1, *now.shape[-2:]).mean((0, 2))  # [taps, in, out] -> [in]
            width = width or len(channels)  # of the block's input
            ends = range(width, len(channels) + 1, model.growth)
            weights.append([float(part.mean()) for part in np.split(channels, ends) if len(part)])
            changes, before = changes + np.abs(now - first).sum(), before + np.abs(first).sum()
        blocks.append(weights)
    return {"blocks": blocks, "moved": float(changes / before)}


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


# -- judges --------------------------------------------------------------------------------------------------------


def _better(field: str, high: str, low: str) -> Judge:
    return networks.more_accurate(KINDS[field], field, TOLERANCE, high, low)


def _cheaper(kind: str, cheap: str, dear: str, share: float, loss: float) -> Judge:
    """Returns a judge: `cheap` has at most `share` of the mult-adds and is less than `loss` below in accuracy."""

    def judge(outcomes: Outcomes) -> Judgement:
        pair = [outcomes.where(set=kind, network=name) for name in (cheap, dear)]
        work = [max(finite(one.values("mult_adds")), default=0) for one in pair]
        if not all(work):
            return Judgement(TOO_SMALL, "all runs of one diverged")
        verdict = compare(pair[0].values("accuracy"), pair[1].values("accuracy"), by=-loss)
        text = networks.accuracies(outcomes.where(set=kind), cheap, dear)
        return Judgement(
            all_of([holds(work[0] <= share * work[1]), verdict]), f"{text}; {work[0] / work[1]:.0%} of the mult-adds"
        )

    return judge


def _efficient(outcomes: Outcomes) -> Judgement:
    """Compares the largest dense network that has half of the parameters of the largest residual one with it."""
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
        return Judgement(TOO_SMALL, "no dense network that small")
    parameters, dense = max(small, key=lambda pair: pair[0])
    names = (f"dense, {parameters:,} parameters,", f"residual, {largest:,} parameters,")
    return more(dict(zip(names, (dense.values("accuracy"), residual.values("accuracy")), strict=True)), by=-0.01)


def _reused(outcomes: Outcomes) -> Judgement:
    """Compares mean weights from the earlier half of the sources with those from the later half, in each block.

    It counts layers that read at least four sources, and the block where the ratio is smallest.
    """
    measured = outcomes.where(set="re-use").results("reuse")
    if not measured:
        return Judgement(TOO_SMALL, "all runs diverged")

    def ratio(row: Sequence[float]) -> float:
        return statistics.mean(row[: len(row) // 2]) / statistics.mean(row[len(row) // 2 :])

    least = min(
        statistics.mean(ratio(row) for row in block if len(row) >= 4) for one in measured for block in one["blocks"]
    )
    moved = statistics.mean(one["moved"] for one in measured)
    return Judgement(
        TOO_SMALL if moved < 0.5 else holds(least >= 0.5),
        f"earlier sources have {least:.2f} of the later ones' weight in the block where "
        f"they have least; training moved the weights by {moved:.0%} of what they were",
    )


def _timed(outcomes: Outcomes) -> Judgement:
    times = {
        o.labels["network"]: o.measured["step_time"]["milliseconds"]
        for o in outcomes.where(set="step time", of=KINDS["mult_adds"])
    }
    fast, slow = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    text = f"{fast} {times[fast]:.1f} ms, {slow} {times[slow]:.1f} ms a step"
    return Judgement(holds(times[slow] > 1.5 * times[fast]), text)


def _counted() -> list[tuple[str, Any, int, float, str]]:
    """Counts MobileNets at ImageNet's size, beside the published millions of mult-adds and of parameters."""
    return [
        (label, networks.cost("imagenet", network), mult_adds, parameters, source)
        for label, network, mult_adds, parameters, source in MOBILENETS
    ]


def _table_4(outcomes: Outcomes) -> Judgement:
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
        holds(exact),
        "; ".join(
            f"{label} {cost.mult_adds / 1e6:.2f} M "
            f"({(cost.mult_adds - CLASSIFIER) / 1e6:.2f} M without its classifier), "
            f"{cost.params / 1e6:.2f} M parameters"
            for label, cost, *_ in rows
        ),
    )


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns MobileNet's counts; accuracies at equal costs, of sizes and of pairs; the time of a step."""
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
            ["network", "of", "mult-adds", "ms", "G mult-adds/s, forward and backward"],
            times,
        ),
    ]


def _table_of_networks(title: str, outcomes: Outcomes) -> Table:
    """Returns a table with a row per network, and per size where there are several."""
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


def _draw_equal(outcomes: Outcomes, figure: Any) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (field, kind) in zip(panels, KINDS.items(), strict=True):
        for x, block in enumerate(BLOCKS):
            accuracies = outcomes.where(set=kind, network=block).values("accuracy")
            dots(axes, x, accuracies, COLORS[block], 0.25, {"color": COLORS[block], "linewidth": 2})
        costs = finite(outcomes.where(set=kind).values(field))
        axes.set_title(f"{kind}, {min(costs):,} to {max(costs):,}" if costs else kind, fontsize=10)
        axes.set_xticks(range(len(BLOCKS)), [block.replace(" ", "\n") for block in BLOCKS], fontsize=9)
        finish(axes)
    panels[0].set_ylabel("test accuracy, %")


def _tick(axis: Axis) -> None:
    """Writes plain numbers at 1, 2 and 5 of each decade of a logarithmic axis."""
    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(EngFormatter(sep=""))


def _draw_sizes(outcomes: Outcomes, figure: Any) -> None:
    axes = figure.subplots()
    for family, color in (("residual", COLORS[PLAIN]), ("dense", COLORS[DENSE])):
        groups = [group for _, group in outcomes.where(set="sizes", network=family).groups("size")]
        points = [
            (max(finite(group.values("parameters"))), [100 * value for value in accuracies])
            for group in groups
            if (accuracies := finite(group.values("accuracy")))
        ]
        for x, ys in points:
            axes.plot([x] * len(ys), ys, "o", color=color, alpha=0.5, markersize=4)
        axes.plot([x for x, _ in points], [statistics.mean(ys) for _, ys in points], color=color, label=family)
    axes.set(xscale="log")
    _tick(axes.xaxis)
    finish(axes, grid="both", legend={}, xlabel="parameters", ylabel="test accuracy, %")


def _draw_reuse(outcomes: Outcomes, figure: Any) -> None:
    measured = [one["blocks"] for one in outcomes.where(set="re-use").results("reuse")]
    if not measured:
        return
    panels, drawn = panels_by(figure, len(measured[0])), None
    for stage, axes in enumerate(panels):
        rows = [
            [statistics.mean(values) for values in zip(*runs, strict=True)]
            for runs in zip(*(one[stage] for one in measured), strict=True)
        ]
        size = len(rows)
        image = [
            [row[source] / max(row) if source < len(row) else float("nan") for row in rows] for source in range(size)
        ]
        drawn = axes.imshow(image, vmin=0, vmax=1, cmap="viridis")
        last = "transition" if stage < len(panels) - 1 else "classifier"
        axes.set_xticks(range(size), [*map(str, range(1, size)), last])
        axes.set_yticks(range(size), ["input", *map(str, range(1, size))])
        axes.get_xticklabels()[-1].set(rotation=30, ha="right")
        axes.set(title=f"dense block {stage + 1}", xlabel="to layer")
    panels[0].set_ylabel("from layer")
    figure.colorbar(drawn, ax=panels, label="mean |weight|, over the column's largest", shrink=0.8)


def _draw_step_time(outcomes: Outcomes, figure: Any) -> None:
    axes, timed = figure.subplots(), outcomes.where(set="step time")
    pairs = {"whole": BROWN, "early": PINK, "late": CYAN, "separable": COLORS[SEPARABLE]}
    colors = {**COLORS, "residual": "#999999", **pairs}
    for (name,), group in timed.groups("network"):
        points = [(one["mult_adds"], one["milliseconds"]) for one in group.results("step_time")]
        axes.plot(*zip(*points, strict=True), "o", color=colors[name], label=name)
    first = timed[0].measured["step_time"]
    axes.set(xscale="log", yscale="log", xlabel="mult-adds, one image forward")
    axes.set_title(first["device"], fontsize=10)
    _tick(axes.xaxis)
    _tick(axes.yaxis)
    legend = {"fontsize": 9, "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    finish(axes, grid="both", legend=legend, ylabel=f"training step of {first['images']} images, ms")


STUDY = Study(
    name="cost",
    title="Cost",
    question="At equal mult-adds and at equal parameters, which block is best, what does dense connection save, and do "
    "mult-adds tell the time of a step?",
    would_change="Harder images: on digits most blocks are within three points of all right, so equal costs differ by "
    "less than seeds do; cifar10 scale has room for a difference. Wider networks for separable "
    "convolutions: the published loss of a point is that of up to 1,024 channels and 224x224 pixels. A "
    "longer training for the weights of dense blocks, which have to move further from where they began.",
    cost=COSTS,
    trials=trials,
    claims=(
        Claim(
            "Depthwise separable convolutions take about an eighth of the work and a seventh of the parameters.",
            "569 M mult-adds and 4.2 M parameters, whole 4866 M and 29.3 M",
            "Howard 2017, table 4",
            "our networks, counted at 224 x 224, have these numbers to the digits printed, with or without the "
            "classifier's 1.02 M and rounded or cut, which the paper does not say",
            _table_4,
        ),
        Claim(
            "Depthwise separable convolutions cost little accuracy.",
            "70.6 %, whole 71.7 %",
            "Howard 2017, table 4",
            "separable ones are less than 3 points below whole ones, with at most a fourth of the mult-adds",
            _cheaper("convolution", "separable", "whole", 0.25, 0.03),
        ),
        Claim(
            "Bottlenecks are more accurate than pairs of 3x3 convolutions of the same cost.",
            "top-1 error 22.85 % (50 layers, 3.8e9 mult-adds), 24.19 % (34 layers, 3.6e9)",
            "He 2016, tables 1 and 3",
            "at equal mult-adds their accuracy is higher by two standard errors",
            _better("mult_adds", BOTTLENECK, PLAIN),
        ),
        Claim(
            "Grouped bottlenecks are more accurate than whole ones of the same cost.",
            "top-1 error 22.2 % (32x4d), 23.9 % (1x64d)",
            "Xie 2017, table 3",
            "at equal mult-adds their accuracy is higher by two standard errors",
            _better("mult_adds", GROUPED, BOTTLENECK),
        ),
        Claim(
            "Inverted residuals are more accurate than separable convolutions.",
            "72.0 % with 300 M mult-adds, 70.6 % with 575 M",
            "Sandler 2018, table 4",
            "at equal mult-adds their accuracy is higher by two standard errors",
            _better("mult_adds", INVERTED, SEPARABLE),
        ),
        Claim(
            "Dense networks need fewer parameters for the accuracy of residual ones.",
            "CIFAR-10, error 4.51 % with 0.8 M (DenseNet-BC), 6.61 % with 1.7 M (ResNet-110)",
            "Huang 2017, table 2; He 2016, table 6",
            "the largest dense network with at most half of the parameters of the largest residual one is less than "
            "1 point below it",
            _efficient,
        ),
        Claim(
            "Dense networks are more accurate than residual ones of equal parameters.",
            "the same",
            "the same",
            "at equal parameters their accuracy is higher by two standard errors than that of pairs of 3x3",
            _better("parameters", DENSE, PLAIN),
        ),
        Claim(
            "Layers of a dense block use features of early layers directly.",
            "weights are spread over many inputs; no numbers printed",
            "Huang 2017, section 5 and fig. 5",
            "in each block, the earlier half of a layer's inputs has at least half of the later half's mean weight "
            "(where training moved the weights by less than half of what they were: too small to tell)",
            _reused,
        ),
        Claim(
            "Downsampling early saves most of the work at little loss.",
            "VGG-19 19.6e9 mult-adds, ResNet-34, with a stem of stride 4, 3.6e9",
            "He 2016, section 4.1 and table 1",
            "a stem that halves the resolution leaves at most half of the mult-adds and less than 3 points lost",
            _cheaper("downsampling", "early", "late", 0.5, 0.03),
        ),
        Claim(
            "Mult-adds do not tell the time.",
            "on a phone 75 ms with 300 M (v2), 113 ms with 575 M (v1)",
            "Sandler 2018, table 4",
            "at equal mult-adds the slowest training step takes more than 1.5 times as long as the fastest",
            _timed,
        ),
    ),
    tables=tables,
    pictures=(
        Picture(
            "equal",
            "Test accuracy at equal cost; a point is a run, a line the mean of three seeds.",
            _draw_equal,
            (12, 4.5),
        ),
        Picture(
            "sizes",
            "Test accuracy against parameters; a point is a run, lines join means of three seeds.",
            _draw_sizes,
            (7, 4.5),
        ),
        Picture(
            "reuse",
            "Mean absolute weight of each layer's first convolution over the channels that come from each "
            "earlier layer, divided by the largest of the column, mean of three seeds (Huang 2017, fig. 5). All "
            "equal before training.",
            _draw_reuse,
            (13, 5),
        ),
        Picture(
            "step_time",
            f"Median of {TIMED} compiled training steps against mult-adds, of every network of the "
            "study. Trials that run at once share the machine.",
            _draw_step_time,
            (9, 5),
        ),
    ),
)

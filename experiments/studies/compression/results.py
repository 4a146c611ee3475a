"""Results of the study of compression: values and judges."""

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

from experiments.studies.compression.measures import CUTS
from experiments.study import Judge, Outcomes, evidence, needs
from experiments.study.evidence import Evidence
from experiments.study.verdicts import Judgement, listed, mean, missing, more, spread

STAGES = ("dense", "pruned", "shared")
# The stage and the kind of weights that train on, as long as pruned networks and as ternary weights
LONGER, FULL_LONGER = "dense, longer", "full, longer"
LOSS = 0.005  # largest loss of accuracy that counts as none
LITTLE = 0.01  # largest loss of accuracy that counts as little
FEWEST = 3  # sparsities from which the sizes of files are compared
TIMES = 1.0  # smallest difference that matters between ratios of sizes


def stage_of(outcomes: Outcomes, network: str, stage: str) -> Outcomes:
    """Returns the outcomes of a network at a stage."""
    return outcomes.where(part="stages", network=network, stage=stage)


def _reference(outcomes: Outcomes, network: str) -> Outcomes:
    """Returns the dense network that trains as long as a pruned one; where the scale has none, the dense network."""
    return stage_of(outcomes, network, LONGER) or stage_of(outcomes, network, "dense")


def _stored(outcomes: Outcomes) -> list[float]:
    """Returns accuracies of the networks as read back from their files; 0 for a network that diverged."""
    return [0.0 if math.isnan(value) else value for value in outcomes.measured("stored", "accuracy")]


def smaller(network: str, ratio: float) -> Judge:
    """Returns a judge: the file is `ratio` times smaller, and loses at most LOSS of the dense network's accuracy."""

    @needs(network=network)
    def judge(outcomes: Outcomes) -> Judgement:
        ratios = stage_of(outcomes, network, "shared").measured("stored", "ratio")
        lost = [
            mean(_reference(same_seed, network).values("accuracy"))
            - mean(_stored(stage_of(same_seed, network, "shared")))
            for _, same_seed in outcomes.groups("seed")
        ]
        return Judgement(
            evidence.all_of(evidence.above(ratios, ratio, unit="times"), evidence.above([-x for x in lost], -LOSS)),
            f"{network}: {spread(ratios, percent=False)} times smaller, {spread(lost, digits=2)} of accuracy lost",
        )

    return judge


def curve_at(outcomes: Outcomes, decay: str, how: str, sparsity: float, diverged: float = math.nan) -> list[float]:
    """Returns accuracies at a sparsity: "cut" without retraining; with it "at once", "step by step" or "taught".

    `diverged` is the accuracy of a network whose retraining diverged.
    """
    of_decay = outcomes.where(part="curves", decay=decay)
    if how == "cut":
        return of_decay.where(how="whole").measured("cut", CUTS.index(sparsity))
    return of_decay.where(how=how, sparsity=sparsity).values("accuracy", diverged)


def sparsities_of(outcomes: Outcomes) -> list[float]:
    """Returns the sparsities of the curves."""
    return outcomes.where(part="curves", decay="L2").distinct("sparsity")


def _versus(high: tuple[str, str], low: tuple[str, str], cut: bool = False) -> Judge:
    """Returns a judge: one pair (decay, how) is more accurate than another, by the mean over sparsities.

    With `cut`, only the sparsities in CUTS count, because the others are not measured without retraining.
    """

    def judge(outcomes: Outcomes) -> Judgement:
        sparsities = [s for s in sparsities_of(outcomes) if s in CUTS or not cut]
        every = outcomes.where(part="curves")
        if not sparsities or not all(every.where(decay=d, how="whole" if h == "cut" else h) for d, h in (high, low)):
            return missing("not part of this scale")
        seeds = [same_seed for _, same_seed in every.groups("seed")]
        means = {
            ", ".join(pair): [
                statistics.mean(mean(curve_at(same_seed, *pair, s, 0.0)) for s in sparsities) for same_seed in seeds
            ]
            for pair in (high, low)
        }
        return more(means, start=f"mean over {', '.join(f'{s:.0%}' for s in sparsities)} pruned: ")

    return judge


retraining = _versus(("L2", "step by step"), ("L2", "cut"), cut=True)
l1_before = _versus(("L1", "cut"), ("L2", "cut"), cut=True)
l2_after = _versus(("L2", "at once"), ("L1", "at once"))
iterative = _versus(("L2", "step by step"), ("L2", "at once"))


def points_of(outcomes: Outcomes) -> dict[str, list[list[tuple[float, float]]]]:
    """Returns the points (times smaller, accuracy) of each method, by seed, in ascending order."""
    methods: dict[str, list[list[tuple[float, float]]]] = {"sharing alone": [], "pruning alone": [], "both": []}
    for (seed,), curves in outcomes.where(part="curves").groups("seed"):
        dense, stages = (
            outcomes.where(part="stages", stage=stage, seed=seed).results("bits") for stage in ("dense", "pruned")
        )
        pruned = [*curves.where(decay="L2", how="step by step").results("bits"), *stages]
        if dense and pruned:
            by_method = (dense[0], [bits[0] for bits in pruned], [point for bits in pruned for point in bits[1:]])
            for seeds, points in zip(methods.values(), by_method, strict=True):
                seeds.append(sorted((point["ratio"], point["accuracy"]) for point in points))
    return methods


def _smallest(points: Sequence[tuple[float, float]], least: float) -> float:
    """Returns the largest ratio among points with at least that accuracy; 1 (the network itself) if there is none."""
    return max((ratio for ratio, accuracy in points if accuracy >= least), default=1.0)


def both(outcomes: Outcomes) -> Judgement:
    """Compares how small each method makes the file while it loses at most one point of accuracy."""
    points = points_of(outcomes)
    if len(sparsities_of(outcomes)) < FEWEST:
        return missing(f"fewer than {FEWEST} sparsities at this scale")
    whole = [seed[0][1] for seed in points["sharing alone"]]  # the largest file has the unchanged weights
    best = {
        method: [_smallest(seed, least - 0.01) for seed, least in zip(seeds, whole, strict=True)]
        for method, seeds in points.items()
    }
    parts = (evidence.more(best["both"], best[f"{one} alone"], 0.0, TIMES, "times") for one in ("sharing", "pruning"))
    ours = f"times smaller with at most 1 point lost: {listed(best, percent=False, separator=', ')}"
    return Judgement(evidence.all_of(*parts), ours)


def linear(outcomes: Outcomes) -> Judgement:
    """Compares k-means from evenly spaced values with the other initializations; mean over 2, 3 and 4 bits."""
    measured = outcomes.where(part="stages", stage="pruned").results("centroids")
    means = {init: [mean(one[init]) for one in measured] for init in ("linear", "density", "random")}
    parts = (evidence.more(means["linear"], means[other]) for other in ("density", "random"))
    ours = f"mean accuracy with 2, 3, 4 bits: {listed(means, separator=', ')}"
    return Judgement(evidence.all_of(*parts), ours)


def low_bits(outcomes: Outcomes, depth: int, kind: str, diverged: float = math.nan) -> list[float]:
    """Returns accuracies of a depth and a kind of weights; `diverged` for a run that diverged."""
    return outcomes.where(part="low bits", depth=depth, kind=kind).values("accuracy", diverged)


def _low_bits(first: str, second: str, test: Callable[..., Evidence], diverged: float = math.nan) -> Judge:
    """Returns a judge: `test` of two kinds of weights holds at every depth.

    A run that diverged has accuracy 0 if it is of the first kind, and `diverged` if it is of the second. NaN leaves it
    out, because a reference that diverged cannot show a loss of accuracy.
    """

    def judge(outcomes: Outcomes) -> Judgement:
        parts, texts = [], []
        for depth in outcomes.where(part="low bits").distinct("depth"):
            reference = low_bits(outcomes, depth, f"{second}, longer", diverged) if first == "ternary" else []
            pair = low_bits(outcomes, depth, first, 0.0), reference or low_bits(outcomes, depth, second, diverged)
            if all(pair):
                parts.append(test(*pair))
                name = f"{second}, longer" if reference else second
                texts.append(f"{depth} layers: {first} {spread(pair[0])}, {name} {spread(pair[1])}")
        return Judgement(evidence.all_of(*parts), "; ".join(texts)) if parts else missing("not part of this scale")

    return judge


ternary = _low_bits("ternary", "full", partial(evidence.no_less, margin=0.01))
binary = _low_bits("binary weights", "full", partial(evidence.no_less, margin=0.02))
xnor = _low_bits("binary weights", "XNOR", evidence.more, 0.0)


def with_and_without_filters(outcomes: Outcomes, network: str) -> tuple[Outcomes, Outcomes]:
    """Returns the outcomes of whole networks and of those without some of their filters."""
    return _reference(outcomes, network), outcomes.where(part="filters", network=network)


def filters(outcomes: Outcomes) -> Judgement:
    """Compares networks before and after whole filters are removed."""
    parts, texts = [], []
    for network in outcomes.where(part="filters").distinct("network"):
        before, after = with_and_without_filters(outcomes, network)
        cost, reduced = (mean(group.measured("stored", "mult_adds")) for group in (before, after))
        if math.isnan(cost + reduced):
            return missing(f"{network}: diverged")
        whole, pruned, saved = before.values("accuracy"), _stored(after), 1 - reduced / cost
        parts += [evidence.no_less(pruned, whole, LOSS), evidence.holds(saved > 0.3)]
        texts.append(f"{network}: {saved:.0%} fewer mult-adds, {spread(whole)} before, {spread(pruned)} after")
    return Judgement(evidence.all_of(*parts), "; ".join(texts))


def int8(outcomes: Outcomes) -> Judgement:
    """Compares networks with their own int8 versions, seed by seed."""
    parts, texts = [], []
    for network in outcomes.where(part="stages").distinct("network"):
        measured = stage_of(outcomes, network, "int8").results("int8")
        if not measured:
            return missing(f"{network}: not measured")
        parts.append(evidence.above([one["accuracy"] - one["float32"] for one in measured], -LITTLE))
        accuracies = {name: [one[name] for one in measured] for name in ("accuracy", "float32")}
        texts.append(f"{network}: int8 {spread(accuracies['accuracy'])}, float32 {spread(accuracies['float32'])}")
    return Judgement(evidence.all_of(*parts), "; ".join(texts))


def taught(outcomes: Outcomes) -> Judgement:
    """Compares pruned networks that learn from their dense network and from the labels with those of labels alone."""
    curves = outcomes.where(part="curves", decay="L2")
    sparsities = curves.where(how="taught").distinct("sparsity")
    if not sparsities:
        return missing("not part of this scale")
    means = {
        name: [
            statistics.mean(mean(curve_at(same_seed, "L2", how, s, 0.0)) for s in sparsities)
            for _, same_seed in curves.groups("seed")
            if all(curve_at(same_seed, "L2", how, s, 0.0) for s in sparsities)
        ]
        for name, how in (("with a teacher", "taught"), ("alone", "step by step"))
    }
    return more(means, start=f"mean over {', '.join(f'{s:.0%}' for s in sparsities)} pruned: ")

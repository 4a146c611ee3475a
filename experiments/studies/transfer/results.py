"""Results of the study of transfer: values, judges, tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.transfer.measures import ALL
from experiments.study import Judge, Outcomes, Table, evidence, needs
from experiments.study.evidence import POINT
from experiments.study.verdicts import Judgement, finite, listed, mean, missing, more, spread

# data set: (non-convolutional method, its result, pretrained + classifier, fine-tuned), accuracy or mAP in %
PUBLISHED = {
    "Caltech-101": ("MKL", 84.3, 87.7, 88.4),
    "VOC 2007": ("SIFT+FK", 61.7, 79.7, 82.4),
    "CUB-200": ("SIFT+FK", 18.8, 61.0, 70.4),
    "Aircraft": ("SIFT+FK", 61.0, 45.0, 74.1),
    "Cars": ("SIFT+FK", 59.2, 36.5, 79.8),
}
HANDCRAFTED, CLASSIFIER = "sift_fv:16", "logistic"  # our counterparts of the first two columns of results
PER_CLASS = ("caltech101", "aircraft")  # accuracy is reported as the mean over classes


def values_of(outcomes: Outcomes, target: str, how: str, count: Any, diverged: float = math.nan) -> list[float]:
    """Returns accuracies (or mean average precisions) by seed; `diverged` for a run that diverged.

    Fisher vectors represent hand-crafted features, and logistic regression represents classifiers. Both were chosen
    before any run.
    """
    runs = outcomes.where(part="transfer", target=target, how=how)
    if how == "hand-crafted":
        return [value for one in runs.results("handcrafted") for value in one[HANDCRAFTED].get(str(count), [])]
    if how == "classifier":
        probes = [outcome.measured.get("probe") for outcome in runs]
        return [
            _score(probe[str(count)][CLASSIFIER], target) if probe else diverged
            for probe in probes
            if not probe or str(count) in probe
        ]
    runs = runs.where(labels=count)
    return runs.values(_metric(runs.first() or {}, target), diverged)


def most_labels(outcomes: Outcomes, target: str) -> Any:
    """Returns ALL, or the largest number of labels per class from which hand-crafted features learn if it is not."""
    runs = outcomes.where(part="transfer", target=target, how="hand-crafted")
    counts = {count for one in runs.results("handcrafted") for count in one[HANDCRAFTED]}
    return ALL if not counts or ALL in counts else max(map(int, counts))


def _metric(numbers: Mapping[str, Any], target: str) -> str:
    """Returns the metric's name: mean average precision, mean class accuracy if papers report that, or accuracy."""
    names = ("mean_average_precision", *(("mean_class_accuracy",) if target in PER_CLASS else ()))
    return next((name for name in names if name in numbers), "accuracy")


def _score(numbers: Mapping[str, Any], target: str) -> float:
    return numbers[_metric(numbers, target)]


def targets_of(outcomes: Outcomes) -> list[str]:
    """Returns the data sets to which networks are transferred."""
    return outcomes.where(part="transfer").distinct("target")


def counts_of(outcomes: Outcomes, target: str) -> list[Any]:
    """Returns the numbers of labels per class."""
    return outcomes.where(part="transfer", target=target).distinct("labels")


# -- judges --------------------------------------------------------------------------------------------------------


def better(high: str, low: str) -> Judge:
    """Returns a judge: with all labels, one way is more accurate than another on every target.

    Hand-crafted features that learn from a part of the labels are compared with a classifier of as many.
    """

    def judge(outcomes: Outcomes) -> Judgement:
        parts, texts = [], []
        for target in targets_of(outcomes):
            count = most_labels(outcomes, target) if "hand-crafted" in (high, low) else ALL
            first, second = (values_of(outcomes, target, how, count, 0.0) for how in (high, low))
            constant = len(second) == 1  # hand-crafted features have no seeds
            parts.append(evidence.above(first, second[0], POINT) if constant else evidence.more(first, second))
            name = target if count == ALL else f"{target}, {count:,} labels per class"
            texts.append(f"{name}: {high} {spread(first)}, {low} {spread(second)}")
        return Judgement(evidence.all_of(*parts), "; ".join(texts))

    return judge


def few_labels(outcomes: Outcomes) -> Judgement:
    """Tests whether fine-tuning gains over scratch with the fewest labels, and less with more labels."""
    target = targets_of(outcomes)[0]
    gains = {
        count: [
            mean(values_of(same_seed, target, "fine-tuned", count, 0.0))
            - mean(values_of(same_seed, target, "scratch", count, 0.0))
            for _, same_seed in outcomes.groups("seed")
        ]
        for count in counts_of(outcomes, target)
    }
    text = f"gain of fine-tuning over scratch by labels per class: {listed(gains, separator=', ')}"
    if len(gains) < 3:
        return missing(f"{text} (only all labels at this scale)")
    fewest, *_ = gains.values()
    falls = evidence.trend([(-rank, gain) for rank, gain in enumerate(gains.values())])
    return Judgement(evidence.all_of(falls, evidence.above(fewest, 0.0, POINT)), text)


def faster(outcomes: Outcomes) -> Judgement:
    """Compares accuracies after the first tenth of the steps; 0 for a run that diverged before."""
    runs = outcomes.where(part="transfer", target=targets_of(outcomes)[0], labels=ALL)
    early = {
        how: [(o.history.get("test", {}).get("accuracy") or [0.0])[0] for o in runs.where(how=how)]
        for how in ("fine-tuned", "scratch")
    }
    return more(early, start="after a tenth of the steps: ", separator=", ")


def on_grid(outcomes: Outcomes, width: int, share: float) -> list[float]:
    """Returns accuracies of a width that was trained on a share of the source."""
    return outcomes.where(part="grid", width=width, share=share).measured("logistic", "accuracy")


def axes_of_grid(outcomes: Outcomes) -> tuple[list[int], list[float]]:
    """Returns the widths and the shares of the source, ascending."""
    grid = outcomes.where(part="grid")
    return sorted(grid.distinct("width")), sorted(grid.distinct("share"))


def _rises(groups: Mapping[Any, Sequence[float]], start: str) -> Judgement:
    """Tests whether outcomes rise with the logarithm of a setting."""
    rises = evidence.trend([(math.log(setting), values) for setting, values in groups.items()])
    return Judgement(rises, start + listed(groups, separator=", "))


@needs(part="grid")
def more_data(outcomes: Outcomes) -> Judgement:
    """Tests whether accuracy rises with the share of the source, for the widest network."""
    (*_, width), shares = axes_of_grid(outcomes)
    return _rises({share: on_grid(outcomes, width, share) for share in shares}, f"width {width}, by source share: ")


@needs(part="grid")
def bigger(outcomes: Outcomes) -> Judgement:
    """Tests whether accuracy rises with the network's width, with all of the source."""
    widths, (*_, whole) = axes_of_grid(outcomes)
    return _rises({width: on_grid(outcomes, width, whole) for width in widths}, "from all of the source, by width: ")


@needs(part="grid")
def together(outcomes: Outcomes) -> Judgement:
    """Tests whether the gain from more source data rises with width."""
    widths, (smallest, *_, largest) = axes_of_grid(outcomes)
    seeds = [same_seed for _, same_seed in outcomes.groups("seed")]
    gains = {
        w: [mean(on_grid(same_seed, w, largest)) - mean(on_grid(same_seed, w, smallest)) for same_seed in seeds]
        for w in widths
    }
    return _rises(gains, "gain from more source data, by width: ")


def logistic(outcomes: Outcomes, part: str, source: str, name: str = "accuracy") -> list[float]:
    """Returns a number of logistic regression on the features of a source."""
    return finite(outcomes.where(part=part, source=source, how="classifier").measured("logistic", name))


@needs(part="relation")
def related(outcomes: Outcomes) -> Judgement:
    """Compares a near source with a far one."""
    return more({name: logistic(outcomes, "relation", name) for name in ("near", "far", "any")}, separator=", ")


def _lost(outcomes: Outcomes, source: str, how: str) -> list[float]:
    """Returns by seed the accuracy that the cue on test images costs."""
    runs = outcomes.where(part="bias", source=source, how=how)
    return [one["clean"] - one["painted"] for one in runs.results("logistic" if how == "classifier" else "cue")]


def biased(how: str) -> Judge:
    """Returns a judge: the cue costs more if the source had it."""

    @needs(part="bias")
    def judge(outcomes: Outcomes) -> Judgement:
        names = {"if the source had it": "cue", "if the source did not": "clean"}
        lost = {name: _lost(outcomes, source, how) for name, source in names.items()}
        return more(lost, start="the cue costs: ", separator=", ")

    return judge


@needs(part="bias")
def imbalanced(outcomes: Outcomes) -> Judgement:
    """Compares a balanced source with an imbalanced one of the same number of images."""
    return more(
        {name: logistic(outcomes, "bias", name) for name in ("balanced", "imbalanced", "clean")}, separator=", "
    )


# -- tables --------------------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns the published table, and ours: targets, labels, methods, the grid, and parts and biases of the source."""
    columns = ["data set", "non-convnet", "from scratch", "pretrained + classifier", "fine-tuned", "improvement"]
    published = [
        [name, f"{base} ({method})", "—", first, tuned, f"{tuned - base:+.1f}"]
        for name, (method, base, first, tuned) in PUBLISHED.items()
    ]
    ours, by_labels = [], []
    for target in targets_of(outcomes):
        for count in counts_of(outcomes, target):
            hows = ("hand-crafted", "scratch", "classifier", "fine-tuned")
            values = [values_of(outcomes, target, how, count) for how in hows]
            row = [spread(value) for value in values]
            gain = mean(values[3]) - mean(values[0])
            by_labels.append([target, count, *row])
            if count == ALL:
                if (most := most_labels(outcomes, target)) != ALL:
                    by_hand = values_of(outcomes, target, "hand-crafted", most)
                    row[0], gain = f"{spread(by_hand)} ({most:,} labels per class)", mean(values[3]) - mean(by_hand)
                ours.append([target, *row, f"{100 * gain:+.1f}" if math.isfinite(gain) else "—"])
    return [
        Table("Transfer, published", columns, published),
        Table("Transfer, ours", columns, ours),
        Table("Labels per class", ["data set", "labels per class", *columns[1:5]], by_labels),
        _methods(outcomes),
        *_table_of_grid(outcomes),
        *_table_of_sources(outcomes),
    ]


def _table_of_grid(outcomes: Outcomes) -> list[Table]:
    widths, shares = axes_of_grid(outcomes)
    rows = [[width, *(spread(on_grid(outcomes, width, share)) for share in shares)] for width in widths]
    columns = ["width", *(f"{share:.1%} of the source" for share in shares)]
    return [Table("Source data and size of the network", columns, rows)] if rows else []


def _table_of_sources(outcomes: Outcomes) -> list[Table]:
    rows = []
    for part in ("relation", "bias"):
        for name in outcomes.where(part=part).distinct("source"):
            tuned = _lost(outcomes, name, "fine-tuned")
            read = [spread(logistic(outcomes, part, name, number)) for number in ("accuracy", "painted", "changed")]
            rows.append([part, name, *read, spread(tuned) if tuned else "—"])
    columns = [
        "part",
        "source",
        "accuracy on the target",
        "with the cue on test images",
        "predictions that the cue changes",
        "accuracy that the cue costs after fine-tuning",
    ]
    return [Table("Parts and biases of the source", columns, rows)] if rows else []


def _methods(outcomes: Outcomes) -> Table:
    """Returns a table of every classifier and every kind of hand-crafted features, with all labels."""
    rows = []
    for target in targets_of(outcomes):
        runs = outcomes.where(part="transfer", target=target)
        probes = [one[ALL] for one in runs.results("probe")]
        rows += [
            [target, "pretrained features", kind, spread([_score(one[kind], target) for one in probes])]
            for kind in (probes[0] if probes else ())
        ]
        rows += [
            [target, kind, "svm", spread(by_count[str(most_labels(outcomes, target))])]
            for one in runs.results("handcrafted")
            for kind, by_count in one.items()
        ]
    return Table("Methods, all labels", ["data set", "features", "classifier", "accuracy"], rows)

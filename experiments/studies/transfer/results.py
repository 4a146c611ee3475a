"""What is read off the trials of the study of transfer: values, verdicts, tables, pictures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.transfer.measures import ALL
from experiments.study import (
    TOO_SMALL,
    Judge,
    Judgement,
    Outcomes,
    Table,
    all_of,
    compare,
    deviation,
    errorbars,
    finite,
    mean,
    needs,
    spread,
)
from train.plots.figures import tidy
from train.plots.palette import BLUE, GRAY, RED, YELLOW

# data set: (non-convolutional method, its result, pretrained + classifier, fine-tuned), accuracy or mAP in percent
PUBLISHED = {
    "Caltech-101": ("MKL", 84.3, 87.7, 88.4),
    "VOC 2007": ("SIFT+FK", 61.7, 79.7, 82.4),
    "CUB-200": ("SIFT+FK", 18.8, 61.0, 70.4),
    "Aircraft": ("SIFT+FK", 61.0, 45.0, 74.1),
    "Cars": ("SIFT+FK", 59.2, 36.5, 79.8),
}
HANDCRAFTED, CLASSIFIER = "sift_fv:16", "logistic"  # what stands for each in the table
PER_CLASS = ("caltech101", "aircraft")  # reported as the mean over classes
COLORS = {"scratch": GRAY, "hand-crafted": YELLOW, "classifier": BLUE, "fine-tuned": RED}


def _values(outcomes: Outcomes, target: str, how: str, count: Any) -> list[float]:
    """Accuracies (or mean average precisions), by seed, NaN for a run that diverged. Of hand-crafted features those of
    Fisher vectors, of classifiers logistic regression: said before anything ran.
    """
    own = outcomes.where(part="transfer", target=target, how=how)
    if how == "hand-crafted":
        return [value for one in own.results("handcrafted") for value in one[HANDCRAFTED].get(str(count), [])]
    if how == "classifier":
        return [
            _score(o.measured["probe"][str(count)][CLASSIFIER], target) if "probe" in o.measured else math.nan
            for o in own
            if str(count) in o.measured.get("probe", {str(count): None})
        ]
    return [_score(o.summary, target) if o.summary else math.nan for o in own.where(labels=count)]


def _score(found: Any, target: str) -> float:
    """Mean average precision; the mean over classes where the field reports that; accuracy."""
    names = ("mean_average_precision", *(("mean_class_accuracy",) if target in PER_CLASS else ()), "accuracy")
    return next(found[name] for name in names if name in found)


def _first(outcomes: Outcomes) -> str:
    return outcomes.where(part="transfer").distinct("target")[0]


def _counts(outcomes: Outcomes, target: str) -> list[Any]:
    return outcomes.where(part="transfer", target=target).distinct("labels")


def better(high: str, low: str) -> Judge:
    """Whether one way is better than another on every target, with all labels."""

    def judge(outcomes):
        parts, texts = [], []
        for target in outcomes.where(part="transfer").distinct("target"):
            first, second = (_values(outcomes, target, how, ALL) for how in (high, low))
            repeated = second * len(first) if len(second) == 1 else second  # what has no seed is a constant
            parts.append(compare(first, repeated))
            texts.append(f"{target}: {high} {spread(first)}, {low} {spread(second)}")
        return Judgement(all_of(parts), "; ".join(texts))

    return judge


def few_labels(outcomes: Outcomes) -> Judgement:
    target = _first(outcomes)
    counts, gains = _counts(outcomes, target), {}
    for count in counts:
        tuned, scratch = (_values(outcomes, target, how, count) for how in ("fine-tuned", "scratch"))
        gains[count] = [a - b for a, b in zip(tuned, scratch, strict=True)]  # of the same seed
    text = "gain of fine-tuning over scratch: " + ", ".join(
        f"{spread(gain)} with {count} labels{'' if count == ALL else ' a class'}" for count, gain in gains.items()
    )
    few = min((count for count in counts if count != ALL), default=None)
    if few is None:
        return Judgement(TOO_SMALL, f"{text} (only all labels at this scale)")
    return Judgement(all_of([compare(gains[few], gains[ALL]), compare(gains[few], [0.0] * len(gains[few]))]), text)


def faster(outcomes: Outcomes) -> Judgement:
    """Accuracy after the first tenth of the training."""
    target = _first(outcomes)
    early = {
        how: [
            o.history["test"]["accuracy"][0]
            for o in outcomes.where(part="transfer", target=target, how=how, labels=ALL)
            if o.history.get("test")
        ]
        for how in ("fine-tuned", "scratch")
    }
    return Judgement(
        compare(early["fine-tuned"], early["scratch"]),
        "after a tenth of the steps: " + ", ".join(f"{how} {spread(v)}" for how, v in early.items()),
    )


def _grid(outcomes: Outcomes, width: int, share: float) -> list[float]:
    return outcomes.where(part="grid", width=width, share=share).measured("logistic", "accuracy")


def _last_above_first(values: Mapping[str, Sequence[float]], start: str) -> Judgement:
    """Of values by what was done for them, in ascending order."""
    series = list(values.values())
    return Judgement(
        compare(series[-1], series[0]), start + ", ".join(f"{spread(value)} {name}" for name, value in values.items())
    )


def _axes_of_grid(outcomes: Outcomes) -> tuple[list[int], list[float]]:
    grid = outcomes.where(part="grid")
    return sorted(grid.distinct("width")), sorted(grid.distinct("share"))


@needs(part="grid")
def more_data(outcomes: Outcomes) -> Judgement:
    widths, shares = _axes_of_grid(outcomes)
    return _last_above_first(
        {f"from {share:.1%} of the source": _grid(outcomes, widths[-1], share) for share in shares},
        f"width {widths[-1]}: ",
    )


@needs(part="grid")
def bigger(outcomes: Outcomes) -> Judgement:
    widths, shares = _axes_of_grid(outcomes)
    return _last_above_first(
        {f"with width {width}": _grid(outcomes, width, shares[-1]) for width in widths}, "from all of the source: "
    )


@needs(part="grid")
def together(outcomes: Outcomes) -> Judgement:
    widths, shares = _axes_of_grid(outcomes)
    little, much = ({width: _grid(outcomes, width, share) for width in widths} for share in (shares[0], shares[-1]))
    return _last_above_first(
        {
            f"with width {width}": [b - a for a, b in zip(little[width], much[width], strict=True)]
            for width in (widths[0], widths[-1])
        },
        "gain by more source data: ",
    )


def _logistic(outcomes: Outcomes, part: str, source: str, name: str = "accuracy") -> list[float]:
    return finite(outcomes.where(part=part, source=source, how="classifier").measured("logistic", name))


@needs(part="relation")
def related(outcomes: Outcomes) -> Judgement:
    names = outcomes.where(part="relation").distinct("source")
    values = {name: _logistic(outcomes, "relation", name) for name in names}
    return Judgement(
        compare(values["near"], values["far"]), ", ".join(f"{name} {spread(v)}" for name, v in values.items())
    )


def _lost(outcomes: Outcomes, source: str, how: str) -> list[float]:
    """Accuracy that the cue on test images costs."""
    measure = "logistic" if how == "classifier" else "cue"
    own = outcomes.where(part="bias", source=source, how=how)
    return [one["clean"] - one["painted"] for one in own.results(measure)]


def biased(how: str) -> Judge:
    @needs(part="bias")
    def judge(outcomes):
        cued, clean = (_lost(outcomes, source, how) for source in ("cue", "clean"))
        return Judgement(
            compare(cued, clean),
            f"the cue costs {spread(cued)} where the source had it, {spread(clean)} where it had not",
        )

    return judge


@needs(part="bias")
def imbalanced(outcomes: Outcomes) -> Judgement:
    values = {name: _logistic(outcomes, "bias", name) for name in ("balanced", "imbalanced", "clean")}
    return Judgement(
        compare(values["balanced"], values["imbalanced"]),
        ", ".join(f"{name} {spread(v)}" for name, v in values.items()),
    )


def tables(outcomes: Outcomes) -> list[Table]:
    """The published table and ours of the same columns; by labels; the grid; parts and biases of the source."""
    columns = ["data set", "non-convnet", "from scratch", "pretrained + classifier", "fine-tuned", "improvement"]
    published = [
        [name, f"{base} ({method})", "—", first, tuned, f"{tuned - base:+.1f}"]
        for name, (method, base, first, tuned) in PUBLISHED.items()
    ]
    ours, by_labels = [], []
    hows = ("hand-crafted", "scratch", "classifier", "fine-tuned")
    for target in outcomes.where(part="transfer").distinct("target"):
        for count in _counts(outcomes, target):
            values = [_values(outcomes, target, how, count) for how in hows]
            row = [spread(value) for value in values]
            gain = mean(values[3]) - mean(values[0])
            by_labels.append([target, count, *row])
            if count == ALL:
                ours.append([target, *row, f"{100 * gain:+.1f}" if math.isfinite(gain) else "—"])
    found = [
        Table("Transfer, published", columns, published),
        Table("Transfer, ours", columns, ours),
        Table("Labels a class", ["data set", "labels a class", *columns[1:5]], by_labels),
        _methods(outcomes),
    ]
    widths, shares = _axes_of_grid(outcomes)
    if widths:
        found.append(
            Table(
                "Source data and size of the network",
                ["width", *(f"{share:.1%} of the source" for share in shares)],
                [[width, *(spread(_grid(outcomes, width, share)) for share in shares)] for width in widths],
            )
        )
    rows = []
    for part in ("relation", "bias"):
        for name in outcomes.where(part=part).distinct("source"):
            tuned = _lost(outcomes, name, "fine-tuned")
            read = [spread(_logistic(outcomes, part, name, what)) for what in ("accuracy", "painted", "changed")]
            rows.append([part, name, *read, spread(tuned) if tuned else "—"])
    if rows:
        found.append(
            Table(
                "Source of another kind",
                [
                    "part",
                    "source",
                    "accuracy on the target",
                    "with the cue on test images",
                    "predictions that it changes",
                    "accuracy that it costs after fine-tuning",
                ],
                rows,
            )
        )
    return found


def _methods(outcomes: Outcomes) -> Table:
    """Each classifier and each kind of hand-crafted features, with all labels."""
    rows = []
    for target in outcomes.where(part="transfer").distinct("target"):
        own = outcomes.where(part="transfer", target=target)
        probes = [found[ALL] for found in own.results("probe")]
        rows += [
            [target, "pretrained features", kind, spread([_score(one[kind], target) for one in probes])]
            for kind in (probes[0] if probes else ())
        ]
        rows += [
            [target, kind, "svm", spread(found[ALL])]
            for one in own.results("handcrafted")
            for kind, found in one.items()
        ]
    return Table("Methods, all labels", ["data set", "features", "classifier", "accuracy"], rows)


def draw_labels(outcomes: Outcomes, figure: Any) -> None:
    target = _first(outcomes)
    counts = _counts(outcomes, target)
    axes = figure.subplots()
    for how, color in COLORS.items():
        errorbars(
            axes,
            range(len(counts)),
            [_values(outcomes, target, how, count) for count in counts],
            color=color,
            label=how,
        )
    axes.set(xticks=range(len(counts)), xlabel="labels a class", ylabel=f"accuracy on {target} (%)")
    axes.set_xticklabels([str(count) for count in counts])
    if axes.lines:
        axes.legend(frameon=False)
    tidy(axes)


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    target = _first(outcomes)
    counts = [
        count
        for count in _counts(outcomes, target)
        if count in (ALL, *sorted(count for count in _counts(outcomes, target) if count != ALL)[-1:])
    ]
    for axes, count in zip(figure.subplots(1, max(len(counts), 1), squeeze=False)[0], counts, strict=False):
        for how in ("scratch", "fine-tuned"):
            for i, o in enumerate(outcomes.where(part="transfer", target=target, how=how, labels=count)):
                if o.history.get("test"):
                    axes.plot(
                        o.history["test"]["step"],
                        [100 * a for a in o.history["test"]["accuracy"]],
                        color=COLORS[how],
                        marker=".",
                        label=how if i == 0 else None,
                    )
        axes.set(
            xlabel="step",
            ylabel=f"test accuracy on {target} (%)",
            title="all labels" if count == ALL else f"{count} labels a class",
        )
        if axes.lines:
            axes.legend(frameon=False)
        tidy(axes)


def draw_grid(outcomes: Outcomes, figure: Any) -> None:
    axes, (widths, shares) = figure.subplots(), _axes_of_grid(outcomes)
    if not widths:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not part of this scale", ha="center")
        return
    means = [[100 * mean(_grid(outcomes, width, share)) for share in shares] for width in widths]
    image = axes.imshow(means, cmap="viridis", aspect="auto", origin="lower")
    middle = (max(map(max, means)) + min(map(min, means))) / 2
    for i, row in enumerate(means):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if value < middle else "black")
    axes.set(
        xticks=range(len(shares)),
        yticks=range(len(widths)),
        xlabel="share of the source",
        ylabel="width of the network",
    )
    axes.set_xticklabels([f"{share:.1%}" for share in shares])
    axes.set_yticklabels([str(width) for width in widths])
    figure.colorbar(image, label=f"accuracy on {_first(outcomes)} (%)")


def draw_sources(outcomes: Outcomes, figure: Any) -> None:
    parts = [part for part in ("relation", "bias") if len(outcomes.where(part=part))] or ["relation"]
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        names = outcomes.where(part=part).distinct("source")
        for offset, (key, label, color) in enumerate(
            (("accuracy", "test images as they are", BLUE), ("painted", "with the cue", RED))
        ):
            if key == "painted" and part == "relation":
                continue
            values = [_logistic(outcomes, part, name, key) for name in names]
            x = [i + 0.36 * offset for i in range(len(names))]
            axes.bar(
                x,
                [100 * statistics.mean(v) if v else 0.0 for v in values],
                0.34,
                color=color,
                label=label,
                yerr=[100 * deviation(v) for v in values],
                capsize=3,
            )
        axes.set(ylabel="accuracy on the target (%)", title={"relation": "Its classes", "bias": "Its biases"}[part])
        axes.set_xticks([i + (0.18 if part == "bias" else 0) for i in range(len(names))], names)
        tidy(axes)
        if part == "bias":
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def draw_embedding(outcomes: Outcomes, figure: Any) -> None:
    shown = [(o.labels["how"], o.measured["embedding"]) for o in outcomes.where(part="transfer").having("embedding")]
    order = {"scratch": 1, "classifier": 0, "fine-tuned": 2}
    shown.sort(key=lambda pair: order[pair[0]])
    titles = {"classifier": "pretrained, as it is", "scratch": "trained from scratch", "fine-tuned": "fine-tuned"}
    for axes, (how, found) in zip(figure.subplots(1, max(len(shown), 1), squeeze=False)[0], shown, strict=False):
        for label, name in enumerate(found["classes"]):
            points = [point for point, own in zip(found["x"], found["labels"], strict=True) if own == label]
            if points:
                axes.scatter(*zip(*points, strict=True), s=6, color=f"C{label % 10}", label=name)
        axes.set(xticks=[], yticks=[], title=titles[how])
    if shown:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=10,
            frameon=False,
            markerscale=2,
        )

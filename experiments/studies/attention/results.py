"""Results of the study of attention: judges, tables, pictures."""

import statistics
from typing import Any

from experiments.studies import networks
from experiments.study import Judge, Judgement, Outcomes, Table, evidence, finite, listed, missing, spread
from experiments.study.figures import BELOW, dots, errorbars, finish, fixed_ticks, heatmap, number_ticks, percent_axis
from experiments.study.tables import table_by
from models.analysis.axes import logarithmic
from models.analysis.palette import BLUE, RED

PATCHES, CONVOLUTIONS = STEMS = ("ViT_P", "ViT_C")
CHOOSER = 0  # the seed that chooses learning rates, and is not judged
NEAR = 0.05  # an error at most this far above a network's best counts as near it
OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd(momentum=0.9)"}
ROWS = {  # name: (row of models/convnext_ladder.py, published top-1 in percent with the recipe of row 1)
    "0 ResNet": ("00_resnet50", "78.82 ± 0.07"),
    "2 stage ratio": ("02_stage_ratio", "79.36 ± 0.07"),
    "3 patchify": ("03_patchify_stem", "79.51 ± 0.18"),
    "4 depthwise": ("04_depthwise", "78.28 ± 0.08"),
    "5 width": ("05_width96", "80.50 ± 0.02"),
    "6 inverted": ("06_inverted_bottleneck", "80.64 ± 0.03"),
    "7 moved up": ("07_depthwise_first", "79.92 ± 0.08"),
    "8 kernel 5": ("08_kernel5", "80.35 ± 0.08"),
    "9 kernel 7": ("09_kernel7", "80.57 ± 0.14"),
    "10 GELU": ("10_gelu", "80.62 ± 0.14"),
    "11 fewer acts": ("11_fewer_activations", "81.27 ± 0.06"),
    "12 fewer norms": ("12_fewer_norms", "81.41 ± 0.09"),
    "13 layer norm": ("13_layer_norm", "81.47 ± 0.09"),
    "14 ConvNeXt": ("14_separate_downsampling", "81.97 ± 0.06"),
}
EQUAL = "equal mult-adds"
NAMES = {"adamw": "AdamW", "sgd": "SGD"}
COLORS = {PATCHES: RED, CONVOLUTIONS: BLUE}


# -- judges --------------------------------------------------------------------------------------------------------


def _errors(outcomes: Outcomes) -> list[float]:
    """Returns test errors; 1 for a run that diverged."""
    return [1 - accuracy for accuracy in outcomes.values("accuracy", diverged=0.0)]


def _at_middle(outcomes: Outcomes, stem: str, optimizer: str) -> dict[float, dict[int, float]]:
    """Returns errors by learning rate, ascending, and seed, at the middle weight decay, which has all seeds."""
    grid = outcomes.where(set="grid", stem=stem, optimizer=optimizer)
    decays = sorted(grid.distinct("decay"))
    middle = grid.where(decay=decays[len(decays) // 2]) if decays else grid
    return {
        rate: dict(zip((o.labels["seed"] for o in group.all()), _errors(group), strict=True))
        for (rate,), group in sorted(middle.groups("rate"), key=lambda pair: pair[0])
    }


def _best(outcomes: Outcomes, stem: str, optimizer: str) -> tuple[str, dict[int, float]]:
    """Returns the best learning rate by seed CHOOSER, as a text, and its errors by seed, without that seed.

    A rate that is chosen and judged on the same seeds would look better than it is.
    """
    by_rate = {rate: seeds for rate, seeds in _at_middle(outcomes, stem, optimizer).items() if CHOOSER in seeds}
    if not by_rate:
        return "", {}
    rate = min(by_rate, key=lambda one: by_rate[one][CHOOSER])
    ends = (min(by_rate), max(by_rate))
    others = {seed: error for seed, error in by_rate[rate].items() if seed != CHOOSER}
    return f"{rate:g}, an edge of the grid" if rate in ends else f"{rate:g}", others


def optimizers(outcomes: Outcomes) -> Judgement:
    """Compares the stems by each seed's gap between optimizers, each at its best learning rate."""
    gaps, texts = {}, []
    for stem in STEMS:
        (fast, adamw), (slow, sgd) = (_best(outcomes, stem, optimizer) for optimizer in OPTIMIZERS)
        gaps[stem] = [sgd[seed] - error for seed, error in adamw.items() if seed in sgd]
        if len(gaps[stem]) < 2:
            return missing("one seed chooses the learning rates, so at least three are needed")
        first, second = (spread(list(errors.values())) for errors in (adamw, sgd))
        texts.append(f"{stem}: error {first} with AdamW ({fast}), {second} with SGD ({slow})")
    return Judgement(evidence.more(gaps[PATCHES], gaps[CONVOLUTIONS]), "; ".join(texts))


def near(outcomes: Outcomes) -> Judgement:
    """Compares by seed the share of the settings at the middle decay that come near the best one of each network."""
    shares = {}
    for stem in STEMS:
        settings = [errors for optimizer in OPTIMIZERS for errors in _at_middle(outcomes, stem, optimizer).values()]
        seeds = set.intersection(*map(set, settings)) if settings else set()
        shares[stem] = [
            statistics.mean(errors[seed] <= min(one[seed] for one in settings) + NEAR for errors in settings)
            for seed in sorted(seeds)
        ]
    return Judgement(evidence.more(shares[CONVOLUTIONS], shares[PATCHES]), f"near the best: {listed(shares)}")


def _by_length(outcomes: Outcomes, stem: str) -> dict[int, list[float]]:
    return {epochs: _errors(group) for (epochs,), group in outcomes.where(set="length", stem=stem).groups("epochs")}


def lengths(outcomes: Outcomes) -> Judgement:
    """Compares by how much a seed's error after the short training exceeds its error after the long one."""
    gaps, texts = {}, []
    for stem in STEMS:
        errors = _by_length(outcomes, stem)
        short, long = min(errors), max(errors)
        gaps[stem] = [a - b for a, b in zip(errors[short], errors[long], strict=True)]
        texts.append(f"{stem}: error {spread(errors[short])} after {short} epochs, {spread(errors[long])} after {long}")
    return Judgement(evidence.more(gaps[PATCHES], gaps[CONVOLUTIONS]), "; ".join(texts))


def stems(outcomes: Outcomes) -> Judgement:
    """Compares the errors of both stems after the middle length."""
    errors = {stem: _by_length(outcomes, stem) for stem in STEMS}
    middle = sorted(errors[PATCHES])[1]
    return Judgement(
        evidence.more(errors[PATCHES][middle], errors[CONVOLUTIONS][middle]),
        "; ".join(f"{stem}: error {spread(errors[stem][middle])}" for stem in STEMS),
    )


def rows(*pairs: tuple[str, str, float]) -> Judge:
    """Returns a judge: in each pair of rows of the ladder, the first is more accurate, by so much in the paper."""

    def judge(outcomes: Outcomes) -> Judgement:
        ladder = outcomes.where(set="ladder")
        names = list(dict.fromkeys(row for *pair, _ in pairs for row in pair))
        values = {row: [1 - error for error in _errors(ladder.where(network=row))] for row in names}
        parts = [
            evidence.more(values[first], values[second], worth=evidence.worth(published))
            for first, second, published in pairs
        ]
        return Judgement(evidence.all_of(*parts), networks.accuracies(ladder, *names))

    return judge


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of training lengths, the ladder, the families and the grid."""
    lengths = {stem: _by_length(outcomes, stem) for stem in STEMS}
    ladder = {**networks.CELLS, "published, ImageNet, %": lambda group: ROWS[group[0].labels["network"]][1]}
    by_network = {"network": "network"}
    labels = {"stem": "network", "optimizer": "optimizer", "rate": "learning rate", "decay": "weight decay"}
    grid = table_by(
        "Test error over the grid", outcomes.where(set="grid"), labels, {"test error": lambda g: spread(_errors(g))}
    )
    grid_rows = [
        [stem, optimizer, f"{rate:g}", f"{decay:g}", *cells] for stem, optimizer, rate, decay, *cells in grid.rows
    ]
    return [
        Table(
            "Test error over training length",
            ["network", *(f"{epochs} epochs" for epochs in lengths[PATCHES])],
            [[stem, *(spread(errors) for errors in by_epochs.values())] for stem, by_epochs in lengths.items()],
        ),
        table_by("From ResNet to ConvNeXt", outcomes.where(set="ladder"), by_network, ladder),
        table_by("Families at equal mult-adds", outcomes.where(set=EQUAL), by_network, networks.CELLS),
        grid._replace(rows=grid_rows),
    ]


def draw_grid(outcomes: Outcomes, figure: Any) -> None:
    """Draws the grid as heat maps, one panel per stem and optimizer."""
    grid, panels, heat = outcomes.where(set="grid"), list(figure.subplots(1, 4)), None
    for axes, (stem, optimizer) in zip(panels, [(s, o) for s in STEMS for o in OPTIMIZERS], strict=True):
        panel_runs = grid.where(stem=stem, optimizer=optimizer)
        rates, decays = panel_runs.distinct("rate"), panel_runs.distinct("decay")
        groups = [[panel_runs.where(rate=rate, decay=decay) for decay in decays] for rate in rates]
        texts = [
            [f"{100 * statistics.mean(_errors(g)):.1f}" if finite(g.values("accuracy")) else "—" for g in line]
            for line in groups
        ]
        image = [[100 * statistics.mean(_errors(group)) for group in line] for line in groups]
        rows, columns = ([f"{value:g}".replace("e-0", "e-") for value in values] for values in (rates, decays))
        style = {"vmin": 0, "vmax": 100, "cmap": "viridis_r", "texts": texts}
        heat = heatmap(axes, image, rows, columns, lambda value: value > 50, **style)
        axes.set(title=f"{stem}, {NAMES[optimizer]}", xlabel="weight decay")
    panels[0].set_ylabel("learning rate")
    figure.colorbar(heat, ax=panels, label="test error (%)")


def draw_distributions(outcomes: Outcomes, figure: Any) -> None:
    """Draws the distribution of the grid's errors, and error by training length."""
    left, right = figure.subplots(1, 2)
    for stem in STEMS:
        for optimizer, style in (("adamw", "-"), ("sgd", "--")):
            part = outcomes.where(set="grid", stem=stem, optimizer=optimizer, seed=0)
            x = [0, *(100 * error for error in sorted(_errors(part))), 100]
            y = [*(100 * i / len(part) for i in range(len(part) + 1)), 100]
            left.step(x, y, style, where="post", color=COLORS[stem], label=f"{stem}, {NAMES[optimizer]}")
        errors = _by_length(outcomes, stem)
        errorbars(right, errors, list(errors.values()), color=COLORS[stem], label=stem)
    logarithmic(right, "x")
    fixed_ticks(right.xaxis, _by_length(outcomes, PATCHES))
    ylabel = "settings with at most this error (%)"
    finish(left, legend=BELOW, xlabel="test error (%)", ylabel=ylabel, title="learning rates and weight decays")
    finish(right, legend=BELOW, xlabel="epochs", title="lengths of training")
    percent_axis(right, outcomes, "test error (%)")


def draw_ladder(outcomes: Outcomes, figure: Any) -> None:
    """Draws the ladder's rows and the families, one point per run."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for axes, kind, title in ((left, "ladder", "from ResNet to ConvNeXt"), (right, EQUAL, "at equal mult-adds")):
        part = outcomes.where(set=kind)
        names = part.distinct("network")
        for x, name in enumerate(names):
            dots(axes, x, [1 - error for error in _errors(part.where(network=name))], BLUE)
        number_ticks(axes, [name.replace(" ", "\n") for name in names])
        finish(axes, title=title)
        percent_axis(axes, part)
    left.set_xlabel("row of the ladder")

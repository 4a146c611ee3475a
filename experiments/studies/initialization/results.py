"""Results of the study of initialization: judges, tables, pictures."""

import statistics
from typing import Any

from experiments.study import Judge, Outcomes, Table
from experiments.study.figures import curves, finish, legend_below
from experiments.study.tables import table_by
from experiments.study.verdicts import AGREES, DISAGREES, TOO_SMALL, Judgement, all_of, compare, holds, listed, spread
from train.plots.palette import BLUE, BROWN, CYAN, GREEN, PURPLE, RED, YELLOW

# label -> (model.init, data_init)
INITS = {
    "normal 0.01": ("normal:0.01", "none"),
    "Xavier": ("xavier_normal", "none"),
    "LeCun": ("lecun", "none"),
    "MSRA fan-in": ("msra_fan_in", "none"),
    "MSRA fan-out": ("msra_fan_out", "none"),
    "orthogonal": ("orthogonal", "none"),
    "LSUV": ("orthogonal", "lsuv"),
}
CURED = ("normal 0.01", "Xavier", "MSRA fan-in")
NETWORKS = {  # label -> (model without its depth, norm)
    "plain": ("plain", "none"),
    "plain, batch norm": ("plain", "batch"),
    "residual, no norm": ("resnet", "none"),
    "residual, batch norm": ("resnet", "batch"),
}
SEEDS = (0, 1, 2)
CONVERGED = 0.5  # test accuracy far from both chance (10 %) and the best
COLORS = dict(zip(INITS, (RED, YELLOW, BROWN, BLUE, CYAN, PURPLE, GREEN), strict=True))
PAIR = ("MSRA fan-in", "Xavier")


# -- judges --------------------------------------------------------------------------------------------------------


def _end(outcomes: Outcomes, network: str, role: str, init: str) -> Outcomes:
    return outcomes.where(at="end", network=network, role=role, init=init)


def _depth(outcomes: Outcomes, role: str) -> int:
    return outcomes.where(at="end", role=role).distinct("depth")[0]


def _share(outcomes: Outcomes, network: str, role: str, init: str) -> tuple[int, int]:
    """Returns the number of runs that converged, and the number of all runs."""
    values = _end(outcomes, network, role, init).values("accuracy")
    return sum(value >= CONVERGED for value in values), len(values)


def _factor(outcomes: Outcomes, init: str, direction: str, network: str = "plain") -> float:
    """Returns the geometric mean, over layers and seeds, of the factor between standard deviations of adjacent layers.

    The factor is taken in the direction in which the signal travels, over the layers before the first that halves the
    resolution. There, the padding of small maps, which also lowers the deviation, matters least.
    """
    factors = []
    for one in outcomes.where(at="step 0", network=network, init=init).results("signal"):
        stds = [std for name, std in zip(one["layers"], one[direction], strict=True) if "stage1/" in name]
        first, last = (stds[0], stds[-1]) if direction == "forward" else (stds[-1], stds[0])
        factors.append((last / first) ** (1 / (len(stds) - 1)) if first and last else 0.0)
    return statistics.geometric_mean(factors) if min(factors) > 0 else 0.0


def _accuracies(outcomes: Outcomes, role: str) -> str:
    values = {init: _end(outcomes, "plain", role, init).values("accuracy") for init in PAIR}
    return f"{_depth(outcomes, role)} layers: {listed(values)}"


def rule(outcomes: Outcomes) -> Judgement:
    """Compares the factor per layer with MSRA and Xavier."""
    msra, xavier = (_factor(outcomes, init, "forward") for init in PAIR)
    return Judgement(
        holds(0.9 <= msra <= 1.05 and abs(xavier / msra - 0.5**0.5) <= 0.02),
        f"a layer multiplies the standard deviation by {msra:.3f} (MSRA) "
        f"and {xavier:.3f} (Xavier), {xavier / msra:.3f} of it",
    )


def deepest(outcomes: Outcomes) -> Judgement:
    """Compares MSRA and Xavier in the deepest networks."""
    chance = 0.1  # a diverged run counts as one that guesses
    good, bad = (_end(outcomes, "plain", "deep", init).values("accuracy", diverged=chance) for init in PAIR)
    stalled = _share(outcomes, "plain", "deep", "Xavier")[0] == 0
    verdict = compare(good, bad, by=0.2)
    return Judgement(verdict if stalled or verdict != AGREES else DISAGREES, _accuracies(outcomes, "deep"))


def earlier(outcomes: Outcomes) -> Judgement:
    """Compares early losses in the shallowest networks, which must all converge."""
    early = {init: _end(outcomes, "plain", "shallow", init).early_losses() for init in PAIR}
    both = all(_share(outcomes, "plain", "shallow", init)[0] == len(SEEDS) for init in PAIR)
    return Judgement(
        all_of([holds(both), compare(early["Xavier"], early["MSRA fan-in"])]),
        f"{_accuracies(outcomes, 'shallow')}; training loss over the first third {listed(early, False, 2)}",
    )


def shallow(outcomes: Outcomes) -> Judgement:
    """Decides whether MSRA and Xavier differ in the shallowest networks."""
    msra, xavier = (_end(outcomes, "plain", "shallow", init).values("accuracy") for init in PAIR)
    same = all(min(run) >= CONVERGED for run in (msra, xavier)) and compare(msra, xavier) == TOO_SMALL
    apart = AGREES in (compare(msra, xavier, by=0.01), compare(xavier, msra, by=0.01))
    return Judgement(holds(not apart) if apart or same else TOO_SMALL, _accuracies(outcomes, "shallow"))


def cured(network: str) -> Judge:
    """Returns a judge: inits that never converge plain always do in this network."""

    def judge(outcomes: Outcomes) -> Judgement:
        shares = {init: _share(outcomes, network, "deep", init) for init in ("normal 0.01", "Xavier")}
        before = {init: _share(outcomes, "plain", "deep", init) for init in shares}
        fails = all(good == 0 for good, _ in before.values())
        cured = all(good == count for good, count in shares.values())
        text = "; ".join(
            f"{init}: {before[init][0]} of {before[init][1]} converge plain, {good} of {count} with it"
            for init, (good, count) in shares.items()
        )
        return Judgement(holds(cured) if fails else TOO_SMALL, text)

    return judge


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns accuracy by init and depth; the cures; the factor per layer."""
    end = outcomes.where(at="end")
    plain = [
        [init, *(spread(group.values("accuracy")) for _, group in runs.groups("depth"))]
        for (init,), runs in end.where(network="plain").groups("init")
    ]
    cures = [
        [network, *(spread(_end(outcomes, network, "deep", init).values("accuracy")) for init in CURED)]
        for network in NETWORKS
    ]

    def factor(direction: str) -> Any:
        return lambda group: f"{_factor(group, group[0].labels['init'], direction, group[0].labels['network']):.3f}"

    return [
        Table(
            "Test accuracy of plain networks without normalization",
            ["init", *(f"{depth} layers" for depth in end.distinct("depth"))],
            plain,
        ),
        Table(f"Test accuracy of {_depth(outcomes, 'deep')} layers with a cure", ["network", *CURED], cures),
        table_by(
            "Factor on the standard deviation from layer to layer at step 0, first stage",
            outcomes.where(at="step 0"),
            {"network": "network", "init": "init"},
            {"activations forward": factor("forward"), "gradients backward": factor("backward")},
        ),
    ]


def draw_signal(outcomes: Outcomes, figure: Any) -> None:
    """Draws standard deviations by layer at step 0."""
    panels = figure.subplots(2, len(NETWORKS), sharex=True, sharey="row", squeeze=False)
    for row, direction in zip(panels, ("forward", "backward"), strict=True):
        for axes, network in zip(row, NETWORKS, strict=True):
            for (init,), group in outcomes.where(at="step 0", network=network).groups("init"):
                runs = [one[direction] for one in group.results("signal")]
                means = [statistics.mean(values) or None for values in zip(*runs, strict=True)]
                axes.plot(range(1, len(means) + 1), means, color=COLORS[init], label=init, linewidth=1.4)
            finish(axes, yscale="log")
    for top, bottom, network in zip(*panels, NETWORKS, strict=True):
        top.set_title(network, fontsize=10)
        bottom.set_xlabel("layer")
    panels[0][0].set_ylabel("std of activations")
    panels[1][0].set_ylabel("std of gradients")
    legend_below(figure, panels[0][0])


def draw_training(outcomes: Outcomes, figure: Any) -> None:
    """Draws training losses, one line per run."""
    plain = outcomes.where(at="end", network="plain")
    panels = figure.subplots(1, len(plain.distinct("depth")), sharey=True)
    for axes, ((depth,), runs) in zip(panels, plain.groups("depth"), strict=True):
        for (init,), group in runs.groups("init"):
            curves(axes, group, "train", "loss", init, color=COLORS[init], alpha=0.8, linewidth=1.2)
        finish(axes, title=f"{depth} layers", xlabel="step")
    panels[0].set_ylabel("training loss (nats)")
    legend_below(figure, panels[0])

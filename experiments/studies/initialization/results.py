"""Results of the study of initialization: judges, tables, pictures."""

import math
import statistics
from typing import Any

from experiments.study import Judge, Outcomes, Table, evidence
from experiments.study.figures import curves, finish, fixed_ticks, legend_below
from experiments.study.tables import table_by
from experiments.study.verdicts import Judgement, listed, spread
from models.analysis.palette import BLUE, BROWN, CYAN, GREEN, PURPLE, RED, YELLOW

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
NATS = 0.01  # smallest difference of training losses that matters
CONVERGED = 0.5  # test accuracy far from both chance (10 %) and the best
# The same for 5 epochs of scale cifar, where 32 plain layers from MSRA reach 46 % (one run, commit b79859d).
CONVERGED_BRIEFLY, BRIEF = 0.25, "tfds:cifar10_jpeg"
COLORS = dict(zip(INITS, (RED, YELLOW, BROWN, BLUE, CYAN, PURPLE, GREEN), strict=True))
PAIR = ("MSRA fan-in", "Xavier")


# -- judges --------------------------------------------------------------------------------------------------------


def _end(outcomes: Outcomes, network: str, role: str, init: str) -> Outcomes:
    return outcomes.where(at="end", network=network, role=role, init=init)


def _depth(outcomes: Outcomes, role: str) -> int:
    return outcomes.where(at="end", role=role).distinct("depth")[0]


def _converged(runs: Outcomes) -> tuple[int, int]:
    """Returns the number of runs that converged, and the number of all runs."""
    values = runs.values("accuracy")
    least = CONVERGED_BRIEFLY if (runs.first() or {}).get("data") == BRIEF else CONVERGED
    return sum(value >= least for value in values), len(values)


def _share(outcomes: Outcomes, network: str, role: str, init: str) -> tuple[int, int]:
    return _converged(_end(outcomes, network, role, init))


def _factors(outcomes: Outcomes, init: str, direction: str, network: str = "plain") -> list[float]:
    """Returns by seed the factor on the standard deviation from layer to layer (geometric mean over layers).

    The direction is that of the signal. Only the layers before the first halving of the resolution count, because there
    padding, which also lowers the deviation of small maps, matters least.
    """
    factors = []
    for one in outcomes.where(at="step 0", network=network, init=init).results("signal"):
        stds = [std for name, std in zip(one["layers"], one[direction], strict=True) if "stage1/" in name]
        first, last = (stds[0], stds[-1]) if direction == "forward" else (stds[-1], stds[0])
        factors.append((last / first) ** (1 / (len(stds) - 1)) if first and last else 0.0)
    return factors


def _accuracies(outcomes: Outcomes, role: str) -> str:
    values = {init: _end(outcomes, "plain", role, init).values("accuracy") for init in PAIR}
    return f"{_depth(outcomes, role)} layers: {listed(values)}"


def rule(outcomes: Outcomes) -> Judgement:
    """Tests the factor per layer with MSRA, and the factor with Xavier relative to that."""
    msra, xavier = (_factors(outcomes, init, "forward") for init in PAIR)
    ratios = [low / high for low, high in zip(xavier, msra, strict=True)]
    decided = evidence.all_of(
        evidence.within(msra, 0.9, 1.05, unit="a layer"),
        evidence.within(ratios, 0.5**0.5 - 0.02, 0.5**0.5 + 0.02, unit="a layer"),
    )
    factors = [statistics.mean(values) for values in (msra, xavier, ratios)]
    text = "a layer multiplies the standard deviation by {:.3f} (MSRA) and {:.3f} (Xavier), {:.3f} of it"
    return Judgement(decided, text.format(*factors))


def deepest(outcomes: Outcomes) -> Judgement:
    """Tests whether most runs of the deepest networks converge with MSRA, and most do not with Xavier."""
    msra, xavier = (_share(outcomes, "plain", "deep", init) for init in PAIR)
    decided = evidence.all_of(evidence.usual(*msra), evidence.negated(evidence.usual(*xavier)))
    text = f"{msra[0]} of {msra[1]} runs converge with MSRA, {xavier[0]} of {xavier[1]} with Xavier"
    return Judgement(decided, f"{text}; {_accuracies(outcomes, 'deep')}")


def earlier(outcomes: Outcomes) -> Judgement:
    """Compares early losses in the shallowest networks, most of which must converge."""
    early = {init: _end(outcomes, "plain", "shallow", init).early_losses() for init in PAIR}
    both = (evidence.usual(*_share(outcomes, "plain", "shallow", init)) for init in PAIR)
    lower = evidence.more(early["Xavier"], early["MSRA fan-in"], worth=NATS, unit="nats")
    text = f"{_accuracies(outcomes, 'shallow')}; training loss over the first third {listed(early, False, 2)}"
    return Judgement(evidence.all_of(*both, lower), text)


def shallow(outcomes: Outcomes) -> Judgement:
    """Tests whether MSRA and Xavier are equivalent in the shallowest networks."""
    msra, xavier = (_end(outcomes, "plain", "shallow", init).values("accuracy") for init in PAIR)
    return Judgement(evidence.equivalent(msra, xavier), _accuracies(outcomes, "shallow"))


def cured(network: str) -> Judge:
    """Returns a judge: inits with which plain networks stall make most runs of this network converge."""

    def judge(outcomes: Outcomes) -> Judgement:
        parts, texts = [], []
        for init in ("normal 0.01", "Xavier"):
            plain, other = (_share(outcomes, name, "deep", init) for name in ("plain", network))
            parts.append(evidence.given(evidence.negated(evidence.usual(*plain)), evidence.usual(*other)))
            texts.append(f"{init}: {plain[0]} of {plain[1]} converge plain, {other[0]} of {other[1]} with it")
        return Judgement(evidence.all_of(*parts), "; ".join(texts))

    return judge


# -- tables and pictures -------------------------------------------------------------------------------------------


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of accuracy by init and depth, of the remedies, and of the factor per layer."""
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
        return lambda group: spread(
            _factors(group, group[0].labels["init"], direction, group[0].labels["network"]), False, 3
        )

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
    """Draws standard deviations by layer at step 0: the mean over seeds, in a band from the least to the largest."""
    panels = figure.subplots(2, len(NETWORKS), sharex=True, sharey="row", squeeze=False)
    for row, direction in zip(panels, ("forward", "backward"), strict=True):
        for axes, network in zip(row, NETWORKS, strict=True):
            for (init,), group in outcomes.where(at="step 0", network=network).groups("init"):
                runs = [one[direction] for one in group.results("signal")]
                columns = list(zip(*runs, strict=True))
                x = range(1, len(columns) + 1)
                means = [statistics.mean(values) or None for values in columns]
                axes.plot(x, means, color=COLORS[init], label=init)
                low, high = ([end(values) or math.nan for values in columns] for end in (min, max))
                axes.fill_between(x, low, high, color=COLORS[init], alpha=0.2, linewidth=0)
            finish(axes, yscale="log")
    for top, bottom, network in zip(*panels, NETWORKS, strict=True):
        top.set_title(network)
        bottom.set_xlabel("layer")
    panels[0][0].set_ylabel("standard deviation\nof activations")
    panels[1][0].set_ylabel("standard deviation\nof gradients")
    legend_below(figure, panels[0][0])


def draw_training(outcomes: Outcomes, figure: Any) -> None:
    """Draws training losses, one line per run, and how many runs converge."""
    plain = outcomes.where(at="end", network="plain")
    inits = plain.distinct("init")
    panels = figure.subplots(2, len(plain.distinct("depth")), sharey="row", squeeze=False, height_ratios=(5, 3))
    for (above, below), ((depth,), runs) in zip(panels.T, plain.groups("depth"), strict=True):
        for (init,), group in runs.groups("init"):
            curves(above, group, "train", "loss", init, color=COLORS[init], alpha=0.7, linewidth=0.9)
            good, count = _converged(group)
            below.barh(inits.index(init), 100 * good / count, color=COLORS[init])
            below.text(100 * good / count, inits.index(init), f" {good} of {count}", va="center")
        finish(above, title=f"{depth} layers", xlabel="step")
        finish(below, xlabel="runs that converge (%)", xlim=(0, 125))
        fixed_ticks(below.xaxis, range(0, 101, 25))
    panels[0][0].set_ylabel("training loss (nats)")
    fixed_ticks(panels[1][0].yaxis, range(len(inits)), inits)
    panels[1][0].invert_yaxis()

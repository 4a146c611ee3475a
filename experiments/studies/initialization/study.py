"""Initialization: which scale of the first weights lets a deep network train, and what cures a bad one.

  Glorot & Bengio 2010     Understanding the difficulty of training deep feedforward neural networks
  He et al. 2015           Delving deep into rectifiers, arXiv 1502.01852
  Mishkin & Matas 2016     All you need is a good init, arXiv 1511.06422 (LSUV)

The gradient by an early layer is a product of the Jacobians of all later ones: where each shrinks it by a factor, it
vanishes exponentially in the depth, where each stretches it, it explodes. At step 0 that is measured layer by layer.
"""

import functools
import statistics
from typing import Any

from experiments.studies.measures import layers
from experiments.study import (
    AGREES,
    DISAGREES,
    TOO_SMALL,
    Claim,
    Judge,
    Judgement,
    Outcomes,
    Picture,
    Study,
    Table,
    Trial,
    all_of,
    compare,
    holds,
    listed,
    recipe,
    spread,
)
from experiments.study.figures import curves, finish, legend_below
from experiments.study.tables import table_by
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
DEPTHS = {"digits": (8, 14, 20), "cifar10": (14, 20, 32)}  # the first is "shallow" below, the last "deep"
STEP_0 = 44  # layers of the networks that are measured at step 0
CURED = ("normal 0.01", "Xavier", "MSRA fan-in")
NETWORKS = {  # label -> (model without its depth, norm)
    "plain": ("plain", "none"),
    "plain, batch norm": ("plain", "batch"),
    "residual, no norm": ("resnet", "none"),
    "residual, batch norm": ("resnet", "batch"),
}
SEEDS = (0, 1, 2)
CONVERGED = 0.5  # test accuracy that is far from chance (10 %) and from the best
COLORS = dict(zip(INITS, (RED, YELLOW, BROWN, BLUE, CYAN, PURPLE, GREEN), strict=True))
PAIR = ("MSRA fan-in", "Xavier")


def trials(scale: str) -> list[Trial]:
    """Lists all inits in plain networks by depth; the inits of CURED in the deepest ones with each cure; step 0."""
    depths = DEPTHS[scale]
    roles = {depths[0]: "shallow", depths[-1]: "deep"}

    def trial(network: str, depth: int, init: str, seed: int, **options: Any) -> Trial:
        family, norm = NETWORKS[network]
        first, data_init = INITS[init]
        options_text = f"norm={norm},init={first},data_init={data_init},scale={scale},seed={seed}"
        config = recipe(f"configs/initialization.py:{family}{depth},{options_text}")
        labels = {"network": network, "depth": depth, "role": roles.get(depth, "between"), "init": init, "seed": seed}
        return Trial({**labels, "at": "end" if options.get("train", True) else "step 0"}, config, **options)

    planned = []
    for network in NETWORKS:
        inits = INITS if network == "plain" else CURED
        for seed in SEEDS:
            planned += [trial(network, STEP_0, init, seed, train=False, measures=(signal,)) for init in inits]
            planned += [
                trial(network, depth, init, seed)
                for depth in (depths if network == "plain" else depths[-1:])
                for init in inits
            ]
    return planned


def signal(run: Any, state: Any) -> dict[str, Any]:
    """Measures standard deviations by layer with a kernel, in order, on one batch of training images.

    Returns:
      "layers" (without the classifier), and for each the standard deviation of its output ("forward") and that of the
      gradient of the loss by its output ("backward").
    """
    import jax
    import jax.numpy as jnp
    import optax

    from models.layers.endpoint import capture

    batch = run.feed.examples(128)
    order = [name for name in layers(run, state, batch["image"]) if name != "head"]

    @jax.jit
    def measured(variables, images, labels):
        read = functools.partial(
            capture,
            run.task.model,
            variables,
            images,
            train=True,
            layers=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=list(state.model_state),
        )
        _, shapes = jax.eval_shape(read)

        def loss(add):
            (logits, _), outputs = read(add=add)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), {name: jnp.std(outputs[name]) for name in order}

        gradients, forward = jax.grad(loss, has_aux=True)(
            {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in order}
        )
        return forward, {name: jnp.std(g) for name, g in gradients.items()}

    forward, backward = measured(state.variables(), batch["image"], batch["label"])
    return {
        "layers": order,
        "forward": [float(forward[name]) for name in order],
        "backward": [float(backward[name]) for name in order],
    }


# -- judges --------------------------------------------------------------------------------------------------------


def _end(outcomes: Outcomes, network: str, role: str, init: str) -> Outcomes:
    return outcomes.where(at="end", network=network, role=role, init=init)


def _depth(outcomes: Outcomes, role: str) -> int:
    return outcomes.where(at="end", role=role).distinct("depth")[0]


def _share(outcomes: Outcomes, network: str, role: str, init: str) -> tuple[int, int]:
    """Returns how many of the runs converged, and how many there are."""
    values = _end(outcomes, network, role, init).values("accuracy")
    return sum(value >= CONVERGED for value in values), len(values)


def _factor(outcomes: Outcomes, init: str, direction: str, network: str = "plain") -> float:
    """Returns the geometric mean over layers and seeds of the change of the standard deviation from layer to layer.

    It is taken in the direction in which the signal travels, and over the layers before the first that halves the
    resolution. There the padding of small maps, which lowers the deviation as well, does least.
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


def _rule(outcomes: Outcomes) -> Judgement:
    msra, xavier = (_factor(outcomes, init, "forward") for init in PAIR)
    return Judgement(
        holds(0.9 <= msra <= 1.05 and abs(xavier / msra - 0.5**0.5) <= 0.02),
        f"a layer multiplies the standard deviation by {msra:.3f} (MSRA) "
        f"and {xavier:.3f} (Xavier), {xavier / msra:.3f} of it",
    )


def _deepest(outcomes: Outcomes) -> Judgement:
    chance = 0.1  # what a run that diverged knows
    good, bad = (_end(outcomes, "plain", "deep", init).values("accuracy", diverged=chance) for init in PAIR)
    stalled = _share(outcomes, "plain", "deep", "Xavier")[0] == 0
    verdict = compare(good, bad, by=0.2)
    return Judgement(verdict if stalled or verdict != AGREES else DISAGREES, _accuracies(outcomes, "deep"))


def _earlier(outcomes: Outcomes) -> Judgement:
    early = {init: _end(outcomes, "plain", "shallow", init).early_losses() for init in PAIR}
    both = all(_share(outcomes, "plain", "shallow", init)[0] == len(SEEDS) for init in PAIR)
    return Judgement(
        all_of([holds(both), compare(early["Xavier"], early["MSRA fan-in"])]),
        f"{_accuracies(outcomes, 'shallow')}; training loss over the first third {listed(early, False, 2)}",
    )


def _shallow(outcomes: Outcomes) -> Judgement:
    msra, xavier = (_end(outcomes, "plain", "shallow", init).values("accuracy") for init in PAIR)
    same = all(min(run) >= CONVERGED for run in (msra, xavier)) and compare(msra, xavier) == TOO_SMALL
    apart = AGREES in (compare(msra, xavier, by=0.01), compare(xavier, msra, by=0.01))
    return Judgement(holds(not apart) if apart or same else TOO_SMALL, _accuracies(outcomes, "shallow"))


def _cured(network: str) -> Judge:
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


def _draw_signal(outcomes: Outcomes, figure: Any) -> None:
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


def _draw_training(outcomes: Outcomes, figure: Any) -> None:
    plain = outcomes.where(at="end", network="plain")
    panels = figure.subplots(1, len(plain.distinct("depth")), sharey=True)
    for axes, ((depth,), runs) in zip(panels, plain.groups("depth"), strict=True):
        for (init,), group in runs.groups("init"):
            curves(axes, group, "train", "loss", init, color=COLORS[init], alpha=0.8, linewidth=1.2)
        finish(axes, title=f"{depth} layers", xlabel="step")
    panels[0].set_ylabel("training loss (nats)")
    legend_below(figure, panels[0])


STUDY = Study(
    name="initialization",
    title="Initialization",
    question="Which scale of the initial weights lets a plain network of 8 to 32 layers train, and do batch "
    "normalization and residual connections cure a bad one?",
    would_change="More seeds for very deep plain networks: at the depth that is run, whether one with MSRA starts to "
    "learn differs from seed to seed, and three runs do not give a rate. A longer schedule for the "
    "shallowest, where Xavier is behind because it begins to learn later. For residual connections no "
    "number of seeds: a longer warm-up, or blocks whose branches begin at zero, would have to make "
    "normal 0.01 learn.",
    cost={
        "digits": "about 9 minutes on 2 cores",
        "cifar10": "138 trials, 90 of them of 60 epochs: half a day of one GPU",
    },
    trials=trials,
    claims=(
        Claim(
            "Behind a ReLU, a variance of 2 / fan-in keeps the signal's scale; Xavier's lowers it by 1/sqrt(2) a "
            "layer.",
            "1/sqrt(2) = 0.707 a layer",
            "He 2015, eq. 10 and the discussion after it",
            f"in the first stage of {STEP_0} layers at step 0 the factor a layer is 0.9 to 1.05 with MSRA (padding "
            "lowers it), and Xavier's is 0.707 of that to within 0.02",
            _rule,
        ),
        Claim(
            "Very deep plain networks converge with MSRA and stall with Xavier.",
            "30 layers: MSRA converges, Xavier stalls",
            "He 2015, fig. 3",
            "in the deepest of ours (digits: 20 layers, cifar10: 32) MSRA is more than 20 points above Xavier, which "
            f"never reaches {CONVERGED:.0%}",
            _deepest,
        ),
        Claim(
            "Moderately deep plain networks converge with Xavier, too, but earlier with MSRA.",
            "22 layers: both converge, MSRA reduces its error earlier",
            "He 2015, fig. 2",
            f"in the shallowest of ours (8, 14) all runs reach {CONVERGED:.0%}, and the training loss over the first "
            "third is lower with MSRA",
            _earlier,
        ),
        Claim(
            "In shallower plain networks MSRA or Xavier makes no clear difference.",
            "14 layers: 33.82 % error with MSRA, 33.90 % with Xavier",
            "He 2015, section 2.2",
            "in the shallowest of ours all runs converge, and means differ by less than two standard errors (more "
            "than a point and two standard errors: disagrees)",
            _shallow,
        ),
        Claim(
            "Batch normalization makes training insensitive to the initial scale.",
            "larger learning rates and less careful initialization",
            "Ioffe & Szegedy 2015, abstract",
            "in the deepest of ours normal 0.01 and Xavier never converge plain, and always with batch norm",
            _cured("plain, batch norm"),
        ),
        Claim(
            "Residual connections make training insensitive to the initial scale.",
            "gradients reach early layers through the identity",
            "He 2016b, eq. 5",
            "there they never converge plain, and always with residual connections and no normalization",
            _cured("residual, no norm"),
        ),
    ),
    tables=tables,
    pictures=(
        Picture(
            "signal",
            f"Standard deviation of each layer's output and of the gradient by it, {STEP_0} layers at "
            "step 0, mean of three seeds. Straight lines are exponential decay; steps are where the resolution is "
            "halved.",
            _draw_signal,
            (13, 6),
        ),
        Picture(
            "training",
            "Training loss of plain networks without normalization; a line is a run. Lines at "
            "ln 10 = 2.3 have not begun to learn.",
            _draw_training,
            (13, 4),
        ),
    ),
)

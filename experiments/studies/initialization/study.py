"""Initialization: the scale of initial weights at which a deep network trains, and cures of a bad scale.

  Glorot & Bengio 2010     Understanding the difficulty of training deep feedforward neural networks
  He et al. 2015           Delving deep into rectifiers, arXiv 1502.01852
  Mishkin & Matas 2016     All you need is a good init, arXiv 1511.06422 (LSUV)

The gradient at an early layer is a product of the Jacobians of all later ones. If each shrinks it by a factor, it
vanishes exponentially in the depth; if each stretches it, it explodes. At step 0 this is measured layer by layer.
"""

import functools
from typing import TYPE_CHECKING, Any

from experiments.studies.initialization import results
from experiments.studies.initialization.results import CONVERGED, CURED, INITS, NETWORKS, SEEDS
from experiments.studies.measures import layers
from experiments.study import Claim, Picture, Study, Trial, recipe

if TYPE_CHECKING:  # modules that train are imported only when a measure runs
    from train.run import Run
    from train.state import TrainState


DEPTHS = {"digits": (8, 14, 20), "cifar10": (14, 20, 32)}  # below, the first is "shallow", the last is "deep"
STEP_0 = 44  # depth of the networks that are measured at step 0


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


def signal(run: "Run", state: "TrainState") -> dict[str, Any]:
    """Measures standard deviations for each layer with a kernel, in order, on one batch of training images.

    Returns:
      "layers" (without the classifier), and for each the standard deviation of its output ("forward") and of the loss's
      gradient with respect to its output ("backward").
    """
    import jax
    import jax.numpy as jnp
    import optax

    from models.layers.endpoint import capture

    batch = run.images.examples(128)
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
            results.rule,
        ),
        Claim(
            "Very deep plain networks converge with MSRA and stall with Xavier.",
            "30 layers: MSRA converges, Xavier stalls",
            "He 2015, fig. 3",
            "in the deepest of ours (digits: 20 layers, cifar10: 32) MSRA is more than 20 points above Xavier, which "
            f"never reaches {CONVERGED:.0%}",
            results.deepest,
        ),
        Claim(
            "Moderately deep plain networks converge with Xavier, too, but earlier with MSRA.",
            "22 layers: both converge, MSRA reduces its error earlier",
            "He 2015, fig. 2",
            f"in the shallowest of ours (8, 14) all runs reach {CONVERGED:.0%}, and the training loss over the first "
            "third is lower with MSRA",
            results.earlier,
        ),
        Claim(
            "In shallower plain networks MSRA or Xavier makes no clear difference.",
            "14 layers: 33.82 % error with MSRA, 33.90 % with Xavier",
            "He 2015, section 2.2",
            "in the shallowest of ours all runs converge, and means differ by less than two standard errors (more "
            "than a point and two standard errors: disagrees)",
            results.shallow,
        ),
        Claim(
            "Batch normalization makes training insensitive to the initial scale.",
            "larger learning rates and less careful initialization",
            "Ioffe & Szegedy 2015, abstract",
            "in the deepest of ours normal 0.01 and Xavier never converge plain, and always with batch norm",
            results.cured("plain, batch norm"),
        ),
        Claim(
            "Residual connections make training insensitive to the initial scale.",
            "gradients reach early layers through the identity",
            "He 2016b, eq. 5",
            "there they never converge plain, and always with residual connections and no normalization",
            results.cured("residual, no norm"),
        ),
    ),
    tables=results.tables,
    pictures=(
        Picture(
            "signal",
            f"Standard deviation of each layer's output and of the gradient by it, {STEP_0} layers at "
            "step 0, mean of three seeds. Straight lines are exponential decay; steps are where the resolution is "
            "halved.",
            results.draw_signal,
            (13, 6),
        ),
        Picture(
            "training",
            "Training loss of plain networks without normalization; a line is a run. Lines at "
            "ln 10 = 2.3 have not begun to learn.",
            results.draw_training,
            (13, 4),
        ),
    ),
)

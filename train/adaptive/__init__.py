"""Dynamic inference: accuracy and cost of networks that decide per image what to compute.

Such a network skips blocks (by gates or a policy), or returns the prediction of one of several exits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax.numpy as jnp
import numpy as np

from models.analysis import exit_policy
from models.errors import UserError
from models.gated import gates
from models.layers.exit_router import confidence
from train.evaluate import predictions
from train.state import TrainState
from train.tasks.gated import Skipping, block_costs
from train.tasks.multi_exit import MultiExit, exit_costs

if TYPE_CHECKING:  # import Grain and Orbax, which --help does not need
    from train.data.image_feed import ImageFeed
    from train.run import Network

POINTS = 8  # number of budgets between the cheapest and the most expensive exit if none are given

Batches = Iterable[Mapping[str, np.ndarray]]


def _images(network: "Network") -> "ImageFeed":
    return cast("ImageFeed", network.feed)  # the tasks of this module have no other


def outputs(
    predict: Callable[..., Any], network: "Network", state: TrainState, batches: Batches
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns predict(variables, batch) of all images of some batches, their labels, and their dataset indices."""
    return predictions(predict, state.evaluation_variables(), network.feed.prepare_evaluation, batches)


def blocks(network: "Network", state: TrainState, everything: bool = False) -> dict[str, Any]:
    """Measures a network that skips blocks on the test set.

    Args:
      network: a network whose task is a `train.tasks.gated.Skipping`.
      state: the state, as numpy arrays.
      everything: whether to compute all blocks instead of deciding.

    Returns:
      {"right": bool [N], "computed": bool [N, blocks], "mult_adds": [N], "labels": [N], "places": dataset indices [N]}.
    """
    task = network.task
    assert isinstance(task, Skipping)
    model = task.model

    def predict(variables, batch):
        if everything:
            keep = jnp.ones((len(batch["image"]), len(model.blocks)))
            logits, computed = gates(model, variables, batch["image"], keep=keep)
        else:
            logits, computed = task.decided(variables, state.task_state, batch["image"])
        return jnp.concatenate([logits, computed], 1)

    rows, labels, indices = outputs(predict, network, state, network.feed.test_batches())
    logits, computed = np.split(rows, [len(network.feed.classes)], 1)
    cost = block_costs(model, _images(network).image_shape)
    spent = cost.always + (0 if everything else cost.deciding) + (computed > 0) @ np.asarray(cost.blocks)
    return {
        "right": logits.argmax(1) == labels,
        "computed": computed > 0,
        "labels": labels,
        "mult_adds": spent,
        "places": indices,
    }


def exits(network: "Network", state: TrainState, batches: Batches) -> dict[str, np.ndarray]:
    """Measures a network with exits on the images of some batches.

    Returns:
      {"right": bool [N, exits], "confidence": float32 [N, exits], "labels": [N], "places": dataset indices [N]}.
    """
    task = network.task
    assert isinstance(task, MultiExit)

    def predict(variables, batch):
        logits = task.exits(variables, batch["image"])[1]
        return jnp.stack([jnp.argmax(logits, -1).astype(jnp.float32), confidence(logits)], -1)

    rows, labels, indices = outputs(predict, network, state, batches)
    return {"right": rows[..., 0] == labels[:, None], "confidence": rows[..., 1], "labels": labels, "places": indices}


def held_out(network: "Network", split: str = "") -> Batches:
    """Returns batches of images on which to fit thresholds.

    Args:
      network: a network on images.
      split: a split of its data; "" for the images that its training split leaves out.

    Raises:
      UserError: the run used `split`, or it is not known which images its training split leaves out.
    """
    from train.data import hold_out

    data = network.config["data"]
    trained = data["train_split"]
    if split in (trained, data["test_split"]):
        use = "trained" if split == trained else "tested"
        raise UserError(f"--validation={split} is the split that the run was {use} on")
    split = split or hold_out.left_out(trained)
    if not split:
        raise UserError(
            "a budget for the average image needs images that were not trained on, but "
            f"data.train_split='{trained}' does not say which ones: train with 'train[:90%]' (digits and "
            "folders: 'train_fit'), or name a split by --validation"
        )
    feed = _images(network)
    return feed.batches(feed.split(split, select_test=data["select"]))


def between(costs: Sequence[int], count: int) -> list[float]:
    """Returns evenly spaced budgets between the costs of the cheapest and the most expensive exit, without these."""
    return np.linspace(costs[0], costs[-1], count + 2)[1:-1].tolist()


def budgeted(
    test: Mapping[str, np.ndarray], fitted: Mapping[str, np.ndarray], costs: Sequence[int], allowed: float
) -> dict[str, Any]:
    """Measures the use of a network with exits under a budget for the average image.

    Args:
      test: the result of `exits` on the test set.
      fitted: the result of `exits` on the images to which thresholds are fitted.
      costs: mult-adds up to each exit.
      allowed: the budget, in mult-adds.

    Returns:
      {"budget", "accuracy", "mult_adds" on average, "thresholds", "left": share of the images at each exit}.
    """
    limits = exit_policy.thresholds(fitted["confidence"], exit_policy.shares(allowed, costs).tolist())
    left = exit_policy.leave(test["confidence"], limits)
    return {
        "budget": allowed,
        "accuracy": float(test["right"][np.arange(len(left)), left].mean()),
        "mult_adds": float(np.asarray(costs)[left].mean()),
        "thresholds": limits.tolist(),
        "left": (np.bincount(left, minlength=len(costs)) / len(left)).tolist(),
    }


def entry(network: "Network", state: TrainState, share: float, fitted: Batches | None = None) -> dict[str, Any]:
    """Fits the thresholds with which an exported network leaves at its exits.

    Args:
      network: a network with exits.
      state: its state, as numpy arrays.
      share: mult-adds that the average image may take, as a share of the whole network's.
      fitted: the images to fit to; None for those of `held_out`.

    Returns:
      {"share", "thresholds", and on these images "mult_adds" on average and "left", the share of them at each exit}.

    Raises:
      UserError: the network has no exits, the first one takes more, or no images were held out.
    """
    if not isinstance(network.task, MultiExit):
        has = "was not trained by task.name=multi_exit" if hasattr(network.model, "num_exits") else "has no exits"
        raise UserError(
            f"{network.config['model']['name']} {has}: --exits={share:g} needs a network such as msdnet_cifar_anytime"
        )
    costs = exit_costs(network.task.model, _images(network).image_shape)
    if share * costs[-1] < costs[0]:
        raise UserError(f"--exits={share:g}: the first exit alone takes {costs[0] / costs[-1]:.3g} of the mult-adds")
    results = exits(network, state, held_out(network) if fitted is None else fitted)
    found = budgeted(results, results, costs, share * costs[-1])
    return {"share": share, **{name: found[name] for name in ("thresholds", "mult_adds", "left")}}


def by_class(values: np.ndarray, labels: np.ndarray, classes: int) -> list[Any]:
    """Returns the mean of values [N, ...] over the images of each class; None for classes without images."""
    return [values[labels == label].mean(0).tolist() if (labels == label).any() else None for label in range(classes)]


def tested(network: "Network", state: TrainState) -> dict[str, Any]:
    """Measures the network on the test set: calls `blocks` if it skips blocks, or `exits` if it has exits."""
    if kind(network) == "blocks":
        return blocks(network, state)
    return exits(network, state, network.feed.test_batches())


def extremes(
    network: "Network", state: TrainState, count: int, results: Mapping[str, Any] | None = None
) -> dict[str, list[tuple[int, str]]]:
    """Returns test images that are easy or hard for the network.

    If the network skips blocks, these are correct predictions with the fewest and with the most computed blocks. If it
    has exits, easy images are those that the first exit predicts correctly with the highest confidence. Hard images are
    those that only the last exit predicts correctly (Huang 2018).

    Args:
      network: the network.
      state: its state, as numpy arrays.
      count: the maximum number of images of each kind.
      results: the result of `tested`, if it is known already.

    Returns:
      {"easy", "hard": [(dataset index, description), …]}.
    """
    results = results or tested(network, state)
    if kind(network) == "blocks":
        block_counts = results["computed"].sum(1)
        right = np.flatnonzero(results["right"])
        order = right[np.argsort(block_counts[right], kind="stable")]
        easy, hard, descriptions = order, order[::-1], [f"{number} blocks" for number in block_counts]
    else:
        right, sure = results["right"], results["confidence"]
        first, late = np.flatnonzero(right[:, 0]), np.flatnonzero(right[:, -1] & ~right[:, :-1].any(1))
        easy, hard = first[np.argsort(-sure[first, 0], kind="stable")], late[np.argsort(-sure[late, -1], kind="stable")]
        descriptions = [f"exit 1: {p:.0%}" for p in sure[:, 0]]
    return {
        name: [(int(results["places"][i]), descriptions[i]) for i in indices[:count]]
        for name, indices in (("easy", easy), ("hard", hard))
    }


def kind(network: "Network") -> str:
    """Returns what the network decides on, "blocks" or "exits"; raises UserError if it decides on nothing."""
    if isinstance(network.task, Skipping):
        return "blocks"
    if isinstance(network.task, MultiExit):
        return "exits"
    name, task = network.config["model"]["name"], network.config["task"]["name"]
    raise UserError(
        f"this run trained {name} by task.name={task}; allowed: networks with gates, a policy or exits, "
        "trained by task.name=gated, policy or multi_exit"
    )


def measure(
    network: "Network", state: TrainState, budgets: Sequence[float] = (), everyone: bool = False, validation: str = ""
) -> list[dict[str, Any]]:
    """Measures the ways to use the network of a finished run on its test set.

    Args:
      network: the network.
      state: its state, as numpy arrays.
      budgets: budgets in mult-adds, for networks with exits.
      everyone: whether budgets hold for every image instead of the average image.
      validation: see `held_out`.

    Returns:
      A row {"way", "accuracy", "mult_adds" on average, …} for each way.

    Raises:
      UserError: the network decides on nothing, or a budget is below the cheapest exit.
    """
    if kind(network) == "exits":
        return _measure_exits(network, state, budgets, everyone, validation)
    if budgets or everyone or validation:
        raise UserError(
            "--budget, --anytime and --validation are for networks with exits; what gates and policies "
            "compute is decided in training (task.name, model.target)"
        )
    rows = []
    for way, everything in (("all blocks", True), ("as decided", False)):
        results = blocks(network, state, everything)
        rows.append(
            {
                "way": way,
                "accuracy": float(results["right"].mean()),
                "mult_adds": float(results["mult_adds"].mean()),
                "blocks": float(results["computed"].sum(1).mean()),
            }
        )
    return rows


def _measure_exits(
    network: "Network", state: TrainState, budgets: Sequence[float], everyone: bool, validation: str
) -> list[dict[str, Any]]:
    costs = exit_costs(network.task.model, _images(network).image_shape)
    for allowed in budgets:
        exit_policy.anytime(allowed, costs)  # raises for a budget that is too small, before anything is computed
    test = exits(network, state, network.feed.test_batches())
    each = [
        {"way": f"exit {k + 1}", "accuracy": float(test["right"][:, k].mean()), "mult_adds": float(cost)}
        for k, cost in enumerate(costs)
    ]
    if everyone and validation:
        raise UserError(
            "--validation does not work with --anytime: it names the images on which thresholds for an "
            "average budget are fitted"
        )
    if everyone:
        return [{**each[exit_policy.anytime(allowed, costs)], "budget": allowed} for allowed in budgets] or each
    try:
        fitted = exits(network, state, held_out(network, validation))
    except UserError as error:
        if budgets or validation:
            raise
        return [*each[:-1], {**each[-1], "note": f"no budgets: {error}"}]  # the default needs no budgets
    budgets = budgets or between(costs, POINTS)
    return each + [{"way": "batch", **budgeted(test, fitted, costs, allowed)} for allowed in budgets]

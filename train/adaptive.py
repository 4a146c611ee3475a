"""What networks compute of each image that decide so themselves, and how right they are. See --help."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import rich.table
from absl import flags

from models import command
from models.analysis import exit_policy
from models.analysis.cost import short
from models.errors import UserError
from models.gated import gates
from models.layers.exit_router import confidence
from train import cli
from train.evaluate import predictions
from train.files import write_json
from train.tasks.gated import Skipping, block_costs
from train.tasks.multi_exit import MultiExit, exit_costs

USAGE = """Accuracy against average mult-adds of a finished run of a network that decides by image what to compute.

    python -m train.adaptive --workdir=runs/aig                                   with gates or a policy
    python -m train.adaptive --workdir=runs/msdnet                                each exit, and a range of budgets
    python -m train.adaptive --workdir=runs/msdnet --budget=25e6,50e6             these, for the average image
    python -m train.adaptive --workdir=runs/msdnet --budget=25e6 --anytime        for every image

--out=DIR keeps the numbers, and draws what each class takes, and images that are easy and hard.
Thresholds of a budget are fitted on --validation, images that were neither trained on nor are the test set: by default
what the run's data.train_split leaves, "validation" of "train_fit", "train[45000:]" of "train[:45000]".
"""
SHOWN = 12  # images that are easy, and hard
POINTS = 8  # budgets between the cheapest and the costliest exit, where none is asked for


def outputs(predict: Any, run: Any, state: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """predict(variables, batch) of all images of some batches, [N, ...], their labels and places in the set, [N]."""
    return predictions(predict, state.evaluation_variables(), run.feed.prepare_evaluation, batches)


def blocks(run: Any, state: Any, everything: bool = False) -> dict[str, Any]:
    """Of the test set: {"right" bool [N], "computed" bool [N, blocks], "mult_adds" [N], "labels" [N], "places"
    [N] in the set}.

    Args:
      run: whose task is a `train.tasks.gated.Skipping`.
      state: on the host.
      everything: whether all blocks are computed, and nothing is decided.
    """
    model = run.task.model

    def predict(variables, batch):
        if everything:
            keep = jnp.ones((len(batch["image"]), len(model.blocks)))
            logits, computed = gates(model, variables, batch["image"], keep=keep)
        else:
            logits, computed = run.task.decided(variables, state.task_state, batch["image"])
        return jnp.concatenate([logits, computed], 1)

    found, labels, places = outputs(predict, run, state, run.feed.test_batches())
    logits, computed = np.split(found, [len(run.feed.classes)], 1)
    cost = block_costs(model, run.feed.image_shape)
    spent = cost.always + (0 if everything else cost.deciding) + (computed > 0) @ np.asarray(cost.blocks)
    return {
        "right": logits.argmax(1) == labels,
        "computed": computed > 0,
        "labels": labels,
        "mult_adds": spent,
        "places": places,
    }


def exits(run: Any, state: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of the images of some batches: {"right" bool [N, exits], "confidence" float32 [N, exits], "labels" [N], "places"
    [N] in the set}.
    """

    def predict(variables, batch):
        logits = run.task.exits(variables, batch["image"])[1]
        return jnp.stack([jnp.argmax(logits, -1).astype(jnp.float32), confidence(logits)], -1)

    found, labels, places = outputs(predict, run, state, batches)
    return {"right": found[..., 0] == labels[:, None], "confidence": found[..., 1], "labels": labels, "places": places}


def held_out(run: Any, split: str = "") -> Iterable[Mapping[str, np.ndarray]]:
    """Batches of the images on which thresholds are fitted.

    Args:
      run: of a task on images.
      split: of its data; "": what its training split leaves.

    Raises:
      UserError: it leaves none.
    """
    data = run.config["data"]
    trained, part = data["train_split"], re.fullmatch(r"(\w+)\[:([\d%]+)\]", data["train_split"])
    if split in (trained, data["test_split"]):
        raise UserError(f"--validation={split} is what the run was {'trained' if split == trained else 'tested'} on")
    if not split and trained == "train_fit":
        split = "validation"
    elif not split and part:
        split = f"{part[1]}[{part[2]}:]"
    if not split:
        raise UserError(
            f"a budget for the average image needs images that were not trained on, and what "
            f"data.train_split='{trained}' leaves cannot be told: train with 'train[:90%]' (digits and "
            "folders: 'train_fit'), or name some by --validation"
        )
    return run.feed.batches(run.feed.split(split, select_test=data["select"]))


def between(costs: Sequence[int], count: int) -> list[float]:
    """Budgets at even steps between the cheapest and the costliest exit."""
    return np.linspace(costs[0], costs[-1], count + 2)[1:-1].tolist()


def budgeted(
    test: Mapping[str, np.ndarray], fitted: Mapping[str, np.ndarray], costs: Sequence[int], allowed: float
) -> dict[str, Any]:
    """What a budget for the average image gives on the test set.

    Args:
      test, fitted: of `exits`; thresholds are those of the second.
      costs: mult-adds until each exit.
      allowed: the budget.

    Returns:
      {"budget", "accuracy", "mult_adds" on average, "thresholds", "left": share of the images at each exit}.
    """
    limits = exit_policy.thresholds(fitted["confidence"], exit_policy.shares(allowed, costs))
    left = exit_policy.leave(test["confidence"], limits)
    return {
        "budget": allowed,
        "accuracy": float(test["right"][np.arange(len(left)), left].mean()),
        "mult_adds": float(np.asarray(costs)[left].mean()),
        "thresholds": limits.tolist(),
        "left": (np.bincount(left, minlength=len(costs)) / len(left)).tolist(),
    }


def by_class(values: np.ndarray, labels: np.ndarray, classes: int) -> list[Any]:
    """Of values [N, ...], the mean over the images of each class; None for a class without images."""
    return [values[labels == label].mean(0).tolist() if (labels == label).any() else None for label in range(classes)]


def tested(run: Any, state: Any) -> dict[str, Any]:
    """`blocks` as the network decides, or `exits`, of the test set."""
    return blocks(run, state) if kind(run) == "blocks" else exits(run, state, run.feed.test_batches())


def extremes(
    run: Any, state: Any, count: int, found: Mapping[str, Any] | None = None
) -> dict[str, list[tuple[int, str]]]:
    """Test images that are easy and hard: {"easy", "hard": at most `count` of (place in the set, what is said of it)}.

    With blocks: those that are right with the fewest and with the most. With exits: those that the first is surest of
    and right about, and those that only the last is right about, as in Huang 2018.

    Args:
      run, state: of `train.restore.load`.
      count: see above.
      found: of `tested`, where it is there already.
    """
    found = found or tested(run, state)
    if kind(run) == "blocks":
        used = found["computed"].sum(1)
        right = np.flatnonzero(found["right"])
        order = right[np.argsort(used[right], kind="stable")]
        easy, hard, said = order, order[::-1], [f"{number} blocks" for number in used]
    else:
        right, sure = found["right"], found["confidence"]
        first, late = np.flatnonzero(right[:, 0]), np.flatnonzero(right[:, -1] & ~right[:, :-1].any(1))
        easy, hard = first[np.argsort(-sure[first, 0], kind="stable")], late[np.argsort(-sure[late, -1], kind="stable")]
        said = [f"exit 1: {p:.0%}" for p in sure[:, 0]]
    return {
        name: [(int(found["places"][i]), said[i]) for i in indices[:count]]
        for name, indices in (("easy", easy), ("hard", hard))
    }


def kind(run: Any) -> str:
    """What its network decides on, "blocks" or "exits"; UserError where it is nothing."""
    if isinstance(run.task, Skipping):
        return "blocks"
    if isinstance(run.task, MultiExit):
        return "exits"
    name, task = run.config["model"]["name"], run.config["task"]["name"]
    raise UserError(
        f"this run, of {name}, was trained by task.name={task}: want a network with gates, a policy or "
        "exits, and task.name=gated, policy or multi_exit"
    )


def measure(
    run: Any, state: Any, budgets: Sequence[float] = (), everyone: bool = False, validation: str = ""
) -> list[dict[str, Any]]:
    """Ways to use the network of a finished run, on its test set: [{"way", "accuracy", "mult_adds" on average, ...}].

    Args:
      run, state: of `train.restore.load`.
      budgets: in mult-adds, of networks with exits.
      everyone: whether budgets are those of every image, instead of the average one.
      validation: see `held_out`.

    Raises:
      UserError: the network decides nothing; a budget below the cheapest exit.
    """
    if kind(run) == "blocks":
        if budgets or everyone or validation:
            raise UserError(
                "--budget, --anytime and --validation are for networks with exits; what gates and policies "
                "compute is decided in training (task.name, model.target)"
            )
        rows = []
        for way, everything in (("all blocks", True), ("as decided", False)):
            found = blocks(run, state, everything)
            rows.append(
                {
                    "way": way,
                    "accuracy": float(found["right"].mean()),
                    "mult_adds": float(found["mult_adds"].mean()),
                    "blocks": float(found["computed"].sum(1).mean()),
                }
            )
        return rows
    costs = exit_costs(run.task.model, run.feed.image_shape)
    for allowed in budgets:
        exit_policy.anytime(allowed, costs)  # refuses what is too small before anything is computed
    test = exits(run, state, run.feed.test_batches())
    each = [
        {"way": f"exit {k + 1}", "accuracy": float(test["right"][:, k].mean()), "mult_adds": float(cost)}
        for k, cost in enumerate(costs)
    ]
    if everyone and validation:
        raise UserError(
            "--validation is for budgets of the average image, whose thresholds are fitted on it, not for --anytime"
        )
    if everyone:
        return [{**each[exit_policy.anytime(allowed, costs)], "budget": allowed} for allowed in budgets] or each
    try:
        fitted = exits(run, state, held_out(run, validation))
    except UserError as error:
        if budgets or validation:
            raise
        return [*each[:-1], {**each[-1], "note": f"no budgets: {error}"}]  # nothing was asked for that needs them
    budgets = budgets or between(costs, POINTS)
    return each + [{"way": "batch", **budgeted(test, fitted, costs, allowed)} for allowed in budgets]


def draw(run: Any, state: Any, folder: Path) -> None:
    """Pictures: classes.png, for how much of each class each block is computed, or how many of it each exit is right
    about; images.png, easy and hard ones.
    """
    from train.plots import figures

    found, classes = tested(run, state), run.feed.classes
    what, values = ("block", found["computed"]) if kind(run) == "blocks" else ("exit", found["right"])
    figures.of_classes(by_class(values, found["labels"], len(classes)), classes, what, folder / "classes.png")

    def shown(place, said):
        example = run.feed.test.example(place, None)
        return example["image"], f"{classes[int(example['label'])]}\n{said}"

    figures.of_images(
        [(name, [shown(*image) for image in images]) for name, images in extremes(run, state, SHOWN, found).items()],
        folder / "images.png",
    )


def table(rows: Sequence[Mapping[str, Any]], whole: int) -> rich.table.Table:
    """For the terminal; `whole`: mult-adds of the whole network."""
    made = rich.table.Table()
    for i, column in enumerate(("way", "accuracy", "mult-adds on average", "of the whole", "")):
        made.add_column(column, justify="right" if 0 < i < 4 else "left")
    for row in rows:
        more = {
            "budget": lambda x: f"budget {short(x)}",
            "blocks": lambda x: f"{x:.1f} blocks",
            "left": lambda x: "left at " + " ".join(f"{share:.0%}" for share in x),
            "note": str,
        }
        made.add_row(
            row["way"],
            f"{row['accuracy']:.2%}",
            short(row["mult_adds"]),
            f"{row['mult_adds'] / whole:.1%}",
            ", ".join(say(row[name]) for name, say in more.items() if name in row),
        )
    return made


def main() -> None:
    """Loads the run, measures, prints and writes."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/aig")
    out = Path(OUT.value) if OUT.value else None
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; want a folder")
    try:
        budgets = [float(text) for text in BUDGET.value]
        if not all(0 < value < math.inf for value in budgets):
            raise ValueError
    except ValueError:
        raise UserError(f"--budget={','.join(BUDGET.value)}: want mult-adds, e.g. 25e6 or 25e6,50e6") from None
    import jax

    from train import restore, summary  # not for --help: with them comes Orbax

    run, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    rows = measure(run, state, budgets, ANYTIME.value, VALIDATION.value)
    costs = exit_costs(run.task.model, run.feed.image_shape) if kind(run) == "exits" else None
    whole = costs[-1] if costs else round(rows[0]["mult_adds"])
    command.console().print(table(rows, whole))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        draw(run, state, out)
        write_json(
            out / "adaptive.json",
            {
                "workdir": WORKDIR.value,
                "model": run.config["model"]["name"],
                "rows": rows,
                **summary.environment(jax.devices()),
            },
        )


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    WORKDIR = command.define_path("workdir", None, "Folder of the run.")
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Of the run: last, or best (on its test set).")
    BUDGET = flags.DEFINE_list("budget", [], "Mult-adds, several with commas; of a network with exits.")
    ANYTIME = flags.DEFINE_bool("anytime", False, "The budget is every image's, not that of the average image.")
    VALIDATION = flags.DEFINE_string("validation", "", "Split on which thresholds are fitted.")
    OUT = command.define_path("out", "", "Folder for adaptive.json, classes.png and images.png.")
    cli.run(main, USAGE)

"""Measures networks that decide per image what to compute. See --help."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.table
from absl import flags

from models import command
from models.analysis.cost import short
from models.errors import UserError
from train import adaptive, cli
from train.data import imagenet
from train.state import TrainState
from train.storage.files import write_json
from train.tasks.multi_exit import exit_costs

if TYPE_CHECKING:  # imports Orbax, which --help does not need
    from train.run import Network

USAGE = """Measures accuracy and average mult-adds of a finished run whose network decides per image what to compute.

    python -m train.adaptive --workdir=runs/aig                                   with gates or a policy
    python -m train.adaptive --workdir=runs/msdnet                                each exit, and a range of budgets
    python -m train.adaptive --workdir=runs/msdnet --budget=25e6,50e6             these budgets, for the average image
    python -m train.adaptive --workdir=runs/msdnet --budget=25e6 --anytime        the budget of every image

--out=DIR writes the numbers, a figure of what is computed per class, and a figure of easy and hard images.
Thresholds for a budget are fitted on --validation, a split that the run was neither trained nor tested on. The default
is what the run's data.train_split leaves out: "validation" for "train_fit", "train[45000:]" for "train[:45000]".
"""
SHOWN = 12  # number of easy images, and of hard ones, to draw


def draw(network: "Network", state: TrainState, folder: Path) -> None:
    """Draws classes.png and images.png.

    classes.png shows how often each block is computed, or each exit is right, per class. images.png shows easy and hard
    images.
    """
    from train.data.image_feed import as_images
    from train.plots import figures

    results, feed = adaptive.tested(network, state), as_images(network.feed)
    classes = imagenet.shown(feed.classes)
    if adaptive.kind(network) == "blocks":
        what, values = "block", results["computed"]
    else:
        what, values = "exit", results["right"]
    shares = adaptive.by_class(values, results["labels"], len(classes))
    figures.of_classes(shares, classes, what, folder / "classes.png")

    def shown(index, description):
        example = feed.test.example(index, None)
        return example["image"], f"{classes[int(example['label'])]}\n{description}"

    rows = adaptive.extremes(network, state, SHOWN, results)
    figures.of_images(
        [(name, [shown(*image) for image in images]) for name, images in rows.items()], folder / "images.png"
    )


def table(rows: Sequence[Mapping[str, Any]], whole: int) -> rich.table.Table:
    """Returns the results as a table for the terminal; `whole` is the cost of the whole network, in mult-adds."""
    table = rich.table.Table()
    for i, column in enumerate(("way", "accuracy", "mult-adds on average", "of the whole", "")):
        table.add_column(column, justify="right" if 0 < i < 4 else "left")
    for row in rows:
        more = {
            "budget": lambda x: f"budget {short(x)}",
            "blocks": lambda x: f"{x:.1f} blocks",
            "left": lambda x: "left at " + " ".join(f"{share:.0%}" for share in x),
            "note": str,
        }
        table.add_row(
            row["way"],
            f"{row['accuracy']:.2%}",
            short(row["mult_adds"]),
            f"{row['mult_adds'] / whole:.1%}",
            ", ".join(say(row[name]) for name, say in more.items() if name in row),
        )
    return table


def main() -> None:
    """Loads the run, measures its network, and prints and writes the results."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/aig")
    out = Path(OUT.value) if OUT.value else None
    if out and out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it must be a folder")
    budgets = _budgets(BUDGET.value)
    import jax

    from train import restore
    from train.data.image_feed import as_images
    from train.recording import summary  # import Orbax, which --help does not need

    network, state = restore.load_network(WORKDIR.value, CHECKPOINT.value)
    rows = adaptive.measure(network, state, budgets, ANYTIME.value, VALIDATION.value)
    if adaptive.kind(network) == "exits":
        whole = exit_costs(network.task.model, as_images(network.feed).image_shape)[-1]
    else:
        whole = round(rows[0]["mult_adds"])
    command.console().print(table(rows, whole))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        draw(network, state, out)
        start = {"workdir": WORKDIR.value, "model": network.config["model"]["name"]}
        write_json(out / "adaptive.json", {**start, "rows": rows, **summary.environment(jax.devices())})


def _budgets(texts: Sequence[str]) -> list[float]:
    try:
        budgets = [float(text) for text in texts]
        if not all(0 < value < math.inf for value in budgets):
            raise ValueError
    except ValueError:
        raise UserError(f"--budget={','.join(texts)}: must be mult-adds, e.g. 25e6 or 25e6,50e6") from None
    return budgets


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    WORKDIR = command.define_path("workdir", None, "Folder of the run.", remote=True)
    CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "Checkpoint of the run: last, or best (on its test set).")
    BUDGET = flags.DEFINE_list("budget", [], "Mult-adds, separated by commas, for a network with exits.")
    ANYTIME = flags.DEFINE_bool("anytime", False, "Apply the budget to every image instead of the average image.")
    VALIDATION = flags.DEFINE_string("validation", "", "Split on which thresholds are fitted.")
    OUT = command.define_path("out", "", "Folder for adaptive.json, classes.png and images.png.")
    cli.run(main, USAGE)

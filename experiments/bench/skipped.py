"""Speedups from skipping computation on this machine. See --help."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.console
from absl import flags

from experiments.bench.timing import Timed, timed
from models import command
from models.analysis.cost import short
from models.analysis.tables import markdown_table, terminal_table
from models.errors import UserError
from models.kernels import runtime
from train import cli

if TYPE_CHECKING:  # modules that train are imported only when a measure runs
    from train.run import Run
    from train.state import TrainState


USAGE = """Times networks that decide per image what to compute: the whole network, masked, and actually skipping.

    python -m experiments.bench.skipped                                    trains missing networks: 10 minutes, 2 cores
    python -m experiments.bench.skipped --workdirs=runs/aig,runs/msdnet    finished runs of yours

whole      computes everything for every image, without decisions; in a network with exits, the last exit alone
masked     the network decides, but everything is computed
skipping   the network decides, and unneeded parts are not computed (models/layers/conditional.py)

For a network with exits, the thresholds are those of the smallest budget that loses at most --lost of the last exit's
accuracy, on images held out from training. The programs take turns on the same test images, one at a time and in
batches; times are medians per image; accuracies are on the test set. Results go to --out.

Without --workdirs: a ResNet-32 with gates that start from a trained one, one with a policy, one with exits, and an
MSDNet, at their widths for CIFAR, trained in --train on scikit-learn's digits at 32x32.
"""
PARTS = 8  # batch sizes that are compiled, see models.layers.conditional
COLUMNS = ("network", "batch", "program", "accuracy", "mult-adds on average", "time per image", "times faster")


def runs(folder: Path, console: rich.console.Console) -> list[Path]:
    """Returns the folders of the default networks; trains those that are missing."""
    from experiments.study import recipe
    from train import loop

    def trained(name, method, model, epochs, more=(), start=None):
        workdir = folder / name
        if not (workdir / "summary.json").exists():
            console.print(f"training {name}", highlight=False)
            where = f",from={start}" if start else ""
            file = "configs/study.py:digits" if method is None else f"configs/adaptive.py:{method}"
            c = recipe(f"{file},model={model},epochs={epochs}{where}")
            c.hooks = ""
            c.data.image_size, c.data.crop, c.data.eval_crop, c.data.augment = 32, "resize", 1.0, "crop(4)"
            c.data.train_split, c.checkpoint_every, c.eval_batch_size = "train_fit", "100%", 72
            for key, value in more:
                c.update_from_flattened_dict({key: value})
            loop.train(c, workdir)
        return workdir

    plain, small, rate = ("model.width", 16), ("model.policy_width", 8), "optimizer.learning_rate"
    whole = trained("resnet32", None, "resnet32", 10, [plain])
    policy = trained("policy", "blockdrop", "blockdrop32", 20, [small, (rate, 3e-3)], whole)
    gated = [
        ("model.target", 0.5),
        ("model.shortcut", "A"),
        ("model.stage_sizes", (5, 5, 5)),
        (rate, 0.05),
        ("init_from", str(whole)),
        ("init_new", "*/gate"),
    ]
    shallow = [("model.stage_sizes", (5, 5, 5)), ("model.exits", (3, 6, 9, 12)), ("model.exit_width", 32)]
    return [
        trained("convnet_aig32", "aig", "convnet_aig38", 20, gated),
        trained(
            "blockdrop32",
            "blockdrop_joint",
            "blockdrop32",
            15,
            [small, (rate, 1e-3), ("task.name", "policy(penalty=2.0, entropy=0.0, joint=True)")],
            policy,
        ),
        trained("msdnet_cifar_budgeted", "msdnet", "msdnet_cifar_budgeted", 10),
        trained("early_exit_resnet32", "early_exit", "early_exit_resnet62", 30, shallow),
    ]


def programs(run: "Run", state: "TrainState", lost: float) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Returns {program: function (variables, images) -> logits} of a run, and {"accuracy", "mult_adds"} of each."""
    import jax.numpy as jnp

    from models.analysis.cost import analyze
    from models.layers.conditional import skipping
    from models.layers.exit_router import last_alone
    from train import adaptive
    from train.tasks.multi_exit import exit_costs

    model = run.task.model
    cost = analyze(model, run.feed.inputs)
    if adaptive.kind(run) == "blocks":
        rows = adaptive.measure(run, state)

        def whole(variables, images):
            return model.apply(variables, images, keep=jnp.ones((len(images), len(model.blocks))))

        decide = model.apply
    else:
        costs = exit_costs(model, run.images.image_shape)
        fitted = adaptive.exits(run, state, adaptive.held_out(run))
        test = adaptive.exits(run, state, run.feed.test_batches())
        least = fitted["right"][:, -1].mean() - lost
        budgets = np.linspace(costs[0], costs[-1], 40)
        budget = next(a for a in budgets if adaptive.budgeted(fitted, fitted, costs, a)["accuracy"] >= least)
        row = adaptive.budgeted(test, fitted, costs, budget)
        rows = [{"accuracy": float(test["right"][:, -1].mean()), "mult_adds": last_alone(cost, len(costs))}, row]
        limits = jnp.asarray(row["thresholds"], jnp.float32)
        whole = model.apply

        def decide(variables, images):
            return model.apply(variables, images, leave=limits)

    def skip(variables, images):
        with skipping(PARTS):
            return decide(variables, images)

    functions = {"whole": whole, "masked": decide, "skipping": skip}
    costs_of = {name: {key: rows[name != "whole"][key] for key in ("accuracy", "mult_adds")} for name in functions}
    costs_of["masked"]["mult_adds"] = cost.mult_adds
    return functions, costs_of


def time_run(workdir: Path, batches: Sequence[int], images: int, rounds: int, lost: float) -> list[dict[str, Any]]:
    """Returns the rows of one run, and the largest difference of logits when skipping."""
    import jax

    from train import restore

    run, state = restore.load(workdir)
    feed: Any = run.feed  # batches of images
    functions, facts = programs(run, state, lost)
    variables = jax.device_put(state.evaluation_variables())
    count = min(images, len(feed.test))
    pixels = feed.test.read(np.arange(count))["image"]
    data = f"{run.config['data']['source']} at {'x'.join(map(str, feed.image_shape[:2]))}"
    prepared = feed.prepare_evaluation({"image": jax.numpy.asarray(pixels)})["image"]
    rows = []
    for batch in batches:
        parts = [jax.device_put(prepared[i : i + batch]) for i in range(0, count - batch + 1, batch)]
        if not parts:
            raise UserError(f"--batches={batch}: there are only {count} images (--images)")
        compiled = {name: jax.jit(function) for name, function in functions.items()}
        logits = {
            name: np.concatenate([np.asarray(f(variables, part)) for part in parts]) for name, f in compiled.items()
        }

        def call(f, parts=parts):
            return lambda: [jax.block_until_ready(f(variables, part)) for part in parts]

        times = timed([Timed(name, call(f), round(facts[name]["mult_adds"])) for name, f in compiled.items()], rounds)
        apart = float(np.abs(logits["masked"] - logits["skipping"]).max())
        for row in times:
            rows.append(
                {
                    "network": workdir.name,
                    "data": data,
                    "batch": batch,
                    **row,
                    **facts[row["program"]],
                    "milliseconds": row["milliseconds"] / (len(parts) * batch),
                    "images": len(parts) * batch,
                    "skipping_differs_by": apart,
                }
            )
    return rows


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row as strings."""
    return [
        row["network"],
        str(row["batch"]),
        row["program"],
        f"{row['accuracy']:.2%}",
        f"{short(row['mult_adds']).strip()} ({row['of_mult_adds']:.0%})",
        f"{row['milliseconds']:.3f} ms",
        f"{row['times_faster']:.2f}",
    ]


def markdown(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    """Returns the results as a page."""
    apart = max(row["skipping_differs_by"] for row in rows)
    return f"""# Speedups from skipping

Forward pass, float32. The programs of a network and batch took turns on the same test images. Times are medians;
"times faster" is relative to the whole network. Accuracies are on the whole test set
({environment["data"]}). The largest difference of a logit between masked and skipping: {apart:.1e}.
{environment["device"]}, commit {environment["commit"]}, on {environment["cores"]} cores.

{markdown_table(COLUMNS, list(map(cells, rows)))}
"""


def main() -> None:
    """Trains missing networks, times all, prints and writes."""
    import jax

    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    console, out = command.console(), Path(OUT.value)
    try:
        batches = [int(text) for text in BATCHES.value]
    except ValueError:
        batches = [0]
    if min(batches, default=0) < 1:
        raise UserError(f"--batches={','.join(BATCHES.value)}: must be batch sizes, e.g. 1,64")
    folders = [Path(name) for name in WORKDIRS.value] or runs(Path(TRAIN.value), console)
    rows = []
    for folder in folders:
        rows_of_run = time_run(folder, batches, IMAGES.value, ROUNDS.value, LOST.value)
        for batch in batches:
            console.print(
                f"{folder.name}, batch {batch}: "
                + ", ".join(
                    f"{row['program']} {row['milliseconds']:.3f} ms" for row in rows_of_run if row["batch"] == batch
                ),
                soft_wrap=True,
                highlight=False,
            )
        rows += rows_of_run
    data = ", ".join(dict.fromkeys(row["data"] for row in rows))
    environment = {"cores": runtime.cores(), "data": data, **summary.environment(jax.devices())}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "skipped.json", {"rows": rows, **environment})
    write_atomically(out / "skipped.md", markdown(rows, environment))
    console.print(terminal_table(COLUMNS, list(map(cells, rows)), texts=3))


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    WORKDIRS = command.define_paths("workdirs", [], "Folders of finished runs.")
    TRAIN = command.define_path("train", "runs/skipped", "Folder of the networks that are trained without --workdirs.")
    BATCHES = flags.DEFINE_list("batches", ["1", "64"], "Batch sizes.")
    IMAGES = flags.DEFINE_integer("images", 128, "Number of test images on which each program is timed.", lower_bound=1)
    ROUNDS = flags.DEFINE_integer("rounds", 9, "Number of passes over them; the median counts.", lower_bound=3)
    LOST = flags.DEFINE_float(
        "lost", 0.005, "Largest loss of accuracy on the held-out images from leaving early.", lower_bound=0.0
    )
    OUT = command.define_path("out", "experiments/results/bench/skipped", "Folder of skipped.json and skipped.md.")
    cli.run(main, USAGE)

"""Runs that differ only in their seed, trained together in one compiled program or one after another. See --help."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from models import command
from models.analysis.tables import markdown_table, terminal_table
from models.analysis.timing import medians
from models.errors import UserError
from models.kernels import runtime
from train import cli

USAGE = """Measures whether runs that differ only in their seed are faster in one program (vmap over the states).

    python -m experiments.bench.together --config=configs/study.py:digits,model=resnet8
    python -m experiments.bench.together --seeds=2,4,8,16 --config=configs/study.py:cifar10,model=resnet20      on a GPU

The programs take turns; times are medians per step of all runs. Results are added to together.json and together.md in
--out, one row per config.
"""


def main() -> None:
    """Measures, prints and adds to the results."""
    config, console, counts = CONFIG(), command.console(), [int(n) for n in SEEDS.value if n.isdecimal()]
    if len(counts) != len(SEEDS.value) or min(counts, default=0) < 2:
        raise UserError(f"--seeds={','.join(SEEDS.value)}: must be numbers of runs, at least 2")
    rows = [measure(config, count, ROUNDS.value) for count in counts]
    write(rows, Path(OUT.value))
    console.print(terminal_table(COLUMNS, list(map(cells, rows)), rows[0]["device"]))


def measure(config: Any, count: int, rounds: int) -> dict[str, Any]:
    """Measures the milliseconds per step of `count` runs, one after another and together, and their compilation times.

    Args:
      config: Config of the loop; seeds 0, 1, … are set.
      count: Number of runs.
      rounds: Number of steps; the median counts.
    """
    import jax
    import jax.numpy as jnp

    from train.recording import summary
    from train.run import build_run

    runs = []
    for seed in range(count):
        config.seed, config.steps_per_call = seed, 1
        runs.append(build_run(config.copy_and_resolve_references()))
    first = runs[0]
    items = [next(run.feed.calls(0, 1))[1] for run in runs]
    # vmap adds an axis for the runs to the function that Run.train_call lifts: the first axis of states, and the axis
    # before the examples of items.
    axis = 2 if first.parallel.kind == "pmap" else 1
    together = first.parallel.lift(jax.vmap(first.program, in_axes=(0, None, 1)))
    alone = first.parallel.lift(first.program)
    states = [run.parallel.replicate(run.state) for run in runs]
    stacked = first.parallel.replicate(jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run.state for run in runs)))
    stacked_items = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *items)

    def apart():
        return jax.block_until_ready(
            [alone(state, first.data, item) for state, item in zip(states, items, strict=True)]
        )

    def at_once():
        return jax.block_until_ready(together(stacked, first.data, stacked_items))

    calls = {"apart": apart, "together": at_once}
    compiling = medians(calls, 1)
    same = max(
        float(jnp.max(jnp.abs(ours[0] - theirs["loss"][0][0])))
        for ours, theirs in zip(at_once()[1]["loss"][0], (metrics for _, metrics in apart()), strict=True)
    )
    seconds = medians(calls, rounds)
    return {
        "model": first.config["model"]["name"],
        "width": first.config["model"].get("width"),
        "image": list(first.feed.image_shape),
        "batch": first.config["batch_size"],
        "runs": count,
        "milliseconds": {name: round(1000 * value, 3) for name, value in seconds.items()},
        "compile_seconds": {name: round(value, 2) for name, value in compiling.items()},
        "ratio": round(seconds["together"] / seconds["apart"], 3),
        "difference_of_loss": same,
        "cores": runtime.cores(),
        **summary.environment(first.parallel.devices),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Adds rows to the results in the folder.

    A row replaces an earlier one with the same model, image, batch, runs, cores and device.
    """
    from train.storage.files import read_json, write_atomically, write_json

    def key(row):
        return [row[name] for name in ("model", "width", "image", "batch", "runs", "cores", "device")]

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "together.json"
    before = read_json(path, {"type": "object", "required": ["rows"]})["rows"] if path.exists() else []
    rows = [*(row for row in before if key(row) not in [key(one) for one in rows]), *rows]
    write_json(path, {"rows": rows})
    columns = [*COLUMNS, "device, commit"]
    lines = [[*cells(row), f"{row['device']}, {row['commit']}"] for row in rows]
    write_atomically(
        folder / "together.md",
        f"""# Runs of one shape, together in one program

Time of one training step of all runs, which differ only in their seed, one after another and by vmap over their states;
medians, in turn. Compiling: the first call, with nothing cached except the machine's own loops.

{markdown_table(columns, lines)}
""",
    )


COLUMNS = ["network", "image", "batch", "cores", "runs", "one after another", "together", "ratio", "compiling"]


def cells(row: dict[str, Any]) -> list[str]:
    """Returns a row as strings."""
    name = row["model"] + (f", width {row['width']}" if row["width"] else "")
    return [
        name,
        "x".join(map(str, row["image"])),
        str(row["batch"]),
        str(row["cores"]),
        str(row["runs"]),
        *(f"{row['milliseconds'][how]:.1f} ms" for how in ("apart", "together")),
        f"{row['ratio']:.2f}",
        " / ".join(f"{row['compile_seconds'][how]:.1f} s" for how in ("apart", "together")),
    ]


if __name__ == "__main__":  # only here: absl has one table of flags for the process, and tests import this module
    CONFIG = cli.define_config()
    SEEDS = flags.DEFINE_list("seeds", ["3", "6"], "Numbers of runs.")
    ROUNDS = flags.DEFINE_integer("rounds", 15, "Number of steps; the median counts.", lower_bound=3)
    OUT = command.define_path("out", "experiments/results/bench/together", "Folder of together.json and together.md.")
    cli.run(main, USAGE)

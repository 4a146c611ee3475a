"""Runs one config with several seeds and records the mean and spread of its accuracy. See --help."""

import math
import statistics
from pathlib import Path
from typing import Any

from absl import flags

from models import command
from models.analysis.tables import terminal_table
from models.errors import UserError
from train import cli

USAGE = """Runs a config with several seeds in the training loop, and records the results.

    python -m experiments.seeds --config=configs/digits.py --workdir=runs/seeds --out=experiments/results/digits.json

Each seed has its own folder in --workdir; finished seeds are not run again.
"""

COLUMNS = ("seed", "accuracy", "loss", "seconds", "images_per_second")


def main() -> None:
    """Runs the seeds that are missing, and prints and writes the results."""
    for flag in (WORKDIR, OUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing")
    config: Any = CONFIG()
    console, runs = command.console(), []
    from train import loop
    from train.recording import summary
    from train.storage import workdir
    from train.storage.files import read_json, write_json

    folders = [Path(WORKDIR.value) / f"seed{seed}" for seed in range(SEEDS.value)]
    finished = [read_json(path, summary.SCHEMA) for folder in folders if (path := folder / "summary.json").exists()]
    others = {run["commit"] for run in finished} - {summary.commit()}
    if others and len(finished) < len(folders):
        raise UserError(
            f"--workdir={WORKDIR.value}: it holds runs of commit {', '.join(sorted(others))}, but this checkout is "
            f"{summary.commit()}; choose another folder"
        )
    for seed, folder in enumerate(folders):
        config.seed = seed
        result = loop.train(config.copy_and_resolve_references(), folder, console)
        if "interrupted" in result:
            raise UserError(f"{result['interrupted']} at seed {seed}: run the same command to resume")
        runs.append(result)
    accuracies = [run["accuracy"] for run in runs]
    table = terminal_table(
        [name.replace("_", " ") for name in COLUMNS],
        [[run[name] if name == "seed" else f"{run[name] or math.nan:.4g}" for name in COLUMNS] for run in runs],
        f"{runs[0]['model']} on {runs[0]['data']}",
    )
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    console.print(table)
    console.print(f"accuracy {mean:.2%}, standard deviation {spread:.2%} over {len(runs)} seeds")
    shared = {name: runs[0][name] for name in ("model", "data", "test_examples", "parameters", "mult_adds", "steps")}
    environments = [{name: run[name] for name in ("commit", "device", "versions")} for run in runs]
    if any(environment != environments[0] for environment in environments):
        raise UserError(
            f"--workdir={WORKDIR.value}: its runs differ in commit, device or versions; choose another folder"
        )
    out = Path(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        out,
        {
            **shared,
            "accuracy_mean": mean,
            "accuracy_std": spread,
            "runs": [{name: run[name] for name in COLUMNS} for run in runs],
            **environments[0],
            "config": workdir.plain(config),
        },
    )
    console.print(f"written to {out}")


if __name__ == "__main__":  # flags are defined only here, because absl has one table of them per process
    CONFIG = cli.define_config()
    SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds: 0, 1, …", lower_bound=2)
    WORKDIR = command.define_path("workdir", None, "Folder of the runs.")
    OUT = command.define_path("out", None, "JSON file to write.")
    cli.run(main, USAGE)

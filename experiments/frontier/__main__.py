"""Finds smaller and faster networks in place of a trained one. See --help."""

import functools
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments.study import launch
from models import command
from models.errors import UserError, choice_error
from train import cli

USAGE = """Tries ways to make a trained classifier smaller, and gives the Pareto front of accuracy and cost.

    python -m experiments.frontier --workdir=runs/x --measure=bytes --dry_run
    python -m experiments.frontier --workdir=runs/x --measure=bytes --lose=0.5 --budget=30m
    python -m experiments.frontier --workdir=runs/x --measure=time --methods=filters,blocks,exits --budget=2h
    python -m experiments.frontier --workdir=runs/x --measure=mult_adds --duration="3 epochs" --jobs=1

Methods: removed filters (filters), removed blocks (blocks), narrower students (narrow), early exits (exits), weights in
blocks of zeros ("zero blocks"), int8, pruned weights (prune), shared values (share), ternary and binary weights ("low
bits"), and combinations of these: blocks+filters, filters+int8, prune+share, filters+prune+share, "filters+low bits".

First the dense network trains on, for half of its steps (--duration). Candidates train for as many, taught by it. Those
with the largest expected gain by cheap estimates (mult-adds, bytes, time of the untrained program) come first.
Candidates are compared on images that are held out of the training set. The table has the accuracy on test images.

Results go to --out: frontier.md, .csv, .json, .png, and exported/ with a folder per candidate. The same command goes on
where it was stopped; nothing is trained twice. --dry_run prints the candidates with their estimates, in order.
"""


def main() -> None:
    """Searches, prints and writes."""
    if not WORKDIR.value:
        raise UserError("--workdir is missing, e.g. --workdir=runs/x")
    if not 0 <= LOSE.value < 100:
        raise UserError(f"--lose={LOSE.value:g} must be in [0, 100), in percentage points of accuracy")

    from experiments import run
    from experiments.frontier import dense as dense_run
    from experiments.frontier import estimates, methods, output, search
    from experiments.study import ledger, page, trials

    if MEASURE.value not in estimates.MEASURES:
        raise choice_error("--measure", MEASURE.value, estimates.MEASURES)
    for name in METHODS.value:
        if name not in methods.METHODS:
            raise choice_error("--methods", name, methods.METHODS)
    seconds = run.seconds(BUDGET.value) if BUDGET.value else None
    dense = dense_run.read(WORKDIR.value, DURATION.value)
    console = command.console()
    say = functools.partial(console.print, soft_wrap=True, highlight=False)
    fitting, refused = methods.candidates(dense, MEASURE.value, METHODS.value)
    out = Path(OUT.value or Path(WORKDIR.value) / f"frontier_{MEASURE.value}")
    empty = search.Search(dense, [], {}, MEASURE.value, LOSE.value, out, seconds)
    costs, bad = estimates.estimate(dense, [empty.start, *fitting], MEASURE.value)
    fitting, refused = [one for one in fitting if one.name not in bad], {**refused, **bad}
    planned = empty._replace(candidates=fitting, estimates=costs)
    for name, reason in refused.items():
        say(f"{name}: {reason}")
    if not fitting:
        names = ",".join(METHODS.value) or "all"
        raise UserError(f"no method of --methods={names} fits {dense.portable.name} and --measure={MEASURE.value}")
    columns = ("candidate", "times fewer mult-adds", "times smaller", "times faster", "training")
    if DRY_RUN.value:
        from models.analysis.tables import terminal_table

        console.print(terminal_table(columns, search.described(planned, planned.ordered({})), "in order, by estimates"))
        return
    dense_run.own(page.writable(out), dense)
    every = [planned.trial(one) for one in (planned.start, *fitting)]
    place = PLACE(every, ledger.Ledger(out))
    result = search.run(planned, place, console, say)
    measured = output.measured(planned, result)
    content = {**_about(dense, planned, result, trials.address(every[0])), **measured}
    content["refused"] = {**refused, **result.refused}
    output.write(out, content)
    from models.analysis.tables import terminal_table

    console.print(terminal_table(output.narrow(output.COLUMNS), list(map(output.narrow, output.table(content)))))
    for line in (*output.sentences(content), f"written to {out}: frontier.md, .csv, .json, .png, exported/"):
        say(line)


def _about(dense: Any, planned: Any, result: Any, address: str) -> dict[str, Any]:
    """Returns the entries of frontier.json that tell how it was made."""
    import jax

    from models.kernels import runtime
    from train.recording import summary

    config = dense.network.config
    return {
        "command": shlex.join(["python", "-m", "experiments.frontier", *sys.argv[1:]]),
        "model": config["model"]["name"],
        "data": config["data"]["source"],
        "measure": planned.measure,
        "lose": planned.lose,
        "before": dense.before,
        "steps": dense.steps,
        "seed": config["seed"],
        "formats": sorted({point.facts["format"] for point in (result.dense, *result.points.values())}),
        "left": list(result.left),
        "dense_trial": address,
        "cores": runtime.cores(),
        **summary.environment(jax.devices()),
        "config": config,
    }


if __name__ == "__main__":  # absl has one table of flags per process, and tests import this module
    WORKDIR = command.define_path("workdir", None, "Folder of the run.")
    MEASURE = flags.DEFINE_string("measure", "time", "Cost to make small: time, bytes or mult_adds.")
    LOSE = flags.DEFINE_float("lose", 0.5, "Percentage points of accuracy that may be lost.")
    BUDGET = flags.DEFINE_string("budget", "", "Time that trainings may take, such as 90s, 30m, 2.5h; default: any.")
    DURATION = flags.DEFINE_string("duration", "", "Length of further training; default: half of the run's steps.")
    METHODS = flags.DEFINE_list("methods", [], "Methods to try; default: all.")
    OUT = command.define_path("out", "", "Folder of the results; default: frontier_MEASURE/ in the run's folder.")
    PLACE = launch.define_flags()
    DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the candidates with their estimates, in order; then exit.")
    command.define_figures()
    cli.run(main, USAGE)

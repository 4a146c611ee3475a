"""Trains a config with other values of some keys, and compares them. See --help."""

import functools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
from absl import flags

from experiments import study
from experiments.study import engines, launch, ledger, page, trials
from experiments.sweeps import halving, plan, results
from experiments.sweeps import metric as metrics
from models import command
from models.analysis.tables import slug, terminal_table
from models.errors import UserError
from train import cli

USAGE = """Trains a config with other values of some keys, and compares the settings: table, pictures, the best command.

    python -m experiments.sweep --config=configs/digits.py --over optimizer.learning_rate=0.05,0.1,0.2 --over seed=0:3
    python -m experiments.sweep --config=configs/cifar10.py:resnet20 --over model.norm=batch,group:8 --on=slurm
    python -m experiments.sweep --config=configs/digits.py --over 'optimizer.learning_rate=log(1e-3,1)' --random=50
    python -m experiments.sweep --config=configs/digits.py --over model.width=8,16,32 --halving=3 --dry_run
    python -m experiments.sweep --config=configs/digits.py --over seed=0:5 --json=experiments/results/digits.json

Every combination of the values is a setting; each runs with every seed. With --random=N, N settings are drawn instead,
and log(LOW,HIGH), uniform(LOW,HIGH) and int(LOW,HIGH) are allowed, too. With --halving=N, all settings train for a part
of the duration, and the best of N goes on from its checkpoints, several times.

Results go to --out/NAME. There, trials.jsonl keeps the outcome of each finished trial, so that it is never run again;
the same command resumes. Trials run as those of a study do.
"""


class Options(NamedTuple):
    """Options of a sweep.

    Attributes:
      out: Folder of the results, which go to out/NAME.
      name: Name of the sweep.
      choose: Function of (trials, ledger) that returns where they run; see `launch.define_flags`.
      halving: One of so many settings goes on from each rung; 0 for no halving.
      metric: Name of the metric; "" for the default.
      json: File for the mean over seeds of a single setting; None for none.
      accept: Commits whose finished trials count although the code has changed.
      keep: Keeps the folders of finished trials.
      dry: Only says what is finished, what is left, and how long it takes.
    """

    out: Path
    name: str
    choose: Callable[[Sequence[study.Trial], ledger.Ledger], engines.Place] = lambda planned, lines: engines.Place()
    halving: int = 0
    metric: str = ""
    json: Path | None = None
    accept: Sequence[str] = ()
    keep: bool = False
    dry: bool = False


def main() -> None:
    """Runs the sweep of the flags."""
    CONFIG()
    arguments = cli.config_arguments()
    sweep = plan.read(arguments, OVER.value, RANDOM.value, RANDOM_SEED.value)
    options = Options(
        Path(OUT.value),
        NAME.value or default_name(sweep),
        PLACE,
        HALVING.value,
        METRIC.value,
        Path(JSON.value) if JSON.value else None,
        ACCEPT_COMMITS.value,
        KEEP.value,
        DRY_RUN.value,
    )
    execute(sweep, options, command.console(), shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]]))


def default_name(sweep: plan.Sweep) -> str:
    """Returns a name made of the config's file, its arguments and the swept keys."""
    file, _, arguments = sweep.arguments[0].partition("=")[2].partition(":")
    return "-".join(filter(None, map(slug, [Path(file).stem, arguments, *sweep.keys]))) or "sweep"


def execute(sweep: plan.Sweep, options: Options, console: rich.console.Console, text: str = "") -> dict[str, Any]:
    """Runs the missing trials of a sweep and writes its results.

    Args:
      sweep: The sweep.
      options: How the trials run.
      console: Console for progress and results.
      text: The command, for the results.

    Returns:
      The content of results.json; {} with `options.dry`.

    Raises:
      UserError: A setting cannot be trained, a trial failed, or a signal interrupted it.
    """
    start, folder = time.time(), page.writable(options.out / options.name)
    if options.json and len(sweep.settings) > 1:
        raise UserError(f"--json={options.json}: it holds the seeds of one setting; sweep seed alone")
    lines, say = ledger.Ledger(folder), functools.partial(console.print, soft_wrap=True, highlight=False, markup=False)
    counts = {"setting": len(sweep.settings), "seed": len(sweep.seeds)}
    settings, seeds = (f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())
    say(f"{settings}, {seeds} each: {folder}")
    place = options.choose([trial for setting in sweep.settings for trial in setting.trials(sweep.seeds)], lines)
    totals = _totals(sweep, options, lines, folder / "checked.json")
    rungs = halving.rungs(options.halving, totals)
    described = halving.describe(rungs, totals) if options.halving else ""
    say(described, end="\n" * bool(described))
    if options.dry:
        _list_settings(sweep, console)
        pairs = zip(sweep.settings, rungs[0].steps, strict=True)
        first = [trial for setting, step in pairs for trial in setting.trials(sweep.seeds, step)]
        say(launch.preview(first, lines, place, options.accept) + " of the first rung" * bool(described))
        return {}

    def run_all(planned: Sequence[study.Trial], keep: bool) -> list[study.Outcome]:
        return launch.run_all(planned, lines, folder / "trials", place, console, options.accept, keep=keep)

    metric = functools.partial(metrics.choose, name=options.metric)
    reached = halving.run(
        sweep.settings, sweep.seeds, rungs, run_all, metric, root=folder / "trials", keep=options.keep
    )
    about = {"name": options.name, "command": text, "rungs": described}
    content = _write(sweep, options, reached, folder, about, start, console)
    say(f"written to {folder}\n{content['best']['command']}")
    return content


def _totals(sweep: plan.Sweep, options: Options, lines: ledger.Ledger, file: Path) -> list[int]:
    """Checks the settings that are not finished, all of them for halving; returns their steps, 0 for the others."""
    merged = [trials.merged(setting.trials(sweep.seeds)) for setting in sweep.settings]
    done = [len(trials.finished(one, lines, options.accept)) == len(one) and not options.halving for one in merged]
    left = [setting for setting, over in zip(sweep.settings, done, strict=True) if not over]
    steps = iter(plan.check(left, file))
    return [0 if over else next(steps) for over in done]


def _list_settings(sweep: plan.Sweep, console: rich.console.Console) -> None:
    if sweep.keys:
        rows = [list(setting.labels.values()) for setting in sweep.settings]
        console.print(terminal_table(list(sweep.keys), rows, texts=len(sweep.keys)))


def _write(
    sweep: plan.Sweep,
    options: Options,
    reached: Sequence[halving.Result],
    folder: Path,
    about: dict[str, Any],
    start: float,
    console: rich.console.Console,
) -> dict[str, Any]:
    """Prints and writes the results; returns the content of results.json."""
    from experiments.study import figures
    from experiments.sweeps import pictures
    from train.setup.config import plain
    from train.storage.files import write_atomically, write_json

    outcomes = [outcome for result in reached for rung in result.rungs for outcome in rung]
    metric = metrics.choose(outcomes, options.metric)
    rows = results.rows(reached, metric)
    tables = [results.table(rows, sweep, metric), *results.tables_by_key(reached, sweep, metric)]
    for table in (results.narrow(tables[0], len(sweep.keys)), *tables[1:]):
        console.print(terminal_table(table.columns, table.rows, table.title, len(sweep.keys)))
    is_random = any(key.kind for key in sweep.keys.values())
    content = {
        **about,
        **results.content(rows, sweep, metric, options.name),
        "figures": figures.write(folder, pictures.choose(reached, list(sweep.keys), metric, is_random), pictures.NAMES),
        "seconds_of_training": round(sum(outcome.seconds for outcome in outcomes), 1),
        "seconds_of_this_command": round(time.time() - start, 1),
        "environments": page.environments(study.Outcomes(outcomes)),
        "config": plain(cli.read_config(sweep.arguments)),
    }
    write_json(folder / "results.json", content)
    write_atomically(folder / "results.md", results.markdown(content, tables))
    results.write_csv(folder / "table.csv", content["settings"])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, results.of_seeds(rows[0]))
    return content


if __name__ == "__main__":  # flags are defined only here, because absl has one table of them per process
    CONFIG = cli.define_config()
    OVER = flags.DEFINE_multi_string(
        "over", [], "KEY=V1,V2,…: a key of the config and its values; seed=0:3 stands for the seeds 0, 1 and 2."
    )
    RANDOM = flags.DEFINE_integer("random", 0, "Draw so many settings; 0: every combination.", lower_bound=0)
    RANDOM_SEED = flags.DEFINE_integer("random_seed", 0, "Seed of the draws.", lower_bound=0)
    HALVING = flags.DEFINE_integer(
        "halving", 0, "Successive halving: one of so many settings goes on from each rung; 0: none.", lower_bound=0
    )
    METRIC = flags.DEFINE_string("metric", "", "Number of summary.json to compare by; default: accuracy, BLEU or loss.")
    NAME = flags.DEFINE_string("name", "", "Name of the sweep; default: made of the config and the keys.")
    OUT = command.define_path("out", "runs/sweeps", "Folder of the results, which go to OUT/NAME.")
    JSON = command.define_path("json", None, "Write the mean over seeds, without --over of other keys, to this file.")
    PLACE = launch.define_flags()
    ACCEPT_COMMITS = flags.DEFINE_list(
        "accept_commits",
        [],
        "Commits whose finished trials count although the code has changed; all accepts every commit.",
    )
    command.define_figures()
    KEEP = flags.DEFINE_bool("keep_runs", False, "Keep the folders of finished trials, with their checkpoints.")
    DRY_RUN = flags.DEFINE_bool(
        "dry_run", False, "List the settings, and say what is finished, what is left and how long it takes; then exit."
    )
    cli.run(main, USAGE)

"""Runs a study: its trials in the training loop, then tables, pictures and verdicts. See --help."""

import functools
import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.table
from absl import flags

from experiments import study
from experiments.study import engines, launch, ledger, page, sequential, verdicts, watch
from experiments.study.evidence import ALPHA, FIRST
from models import command
from models.analysis.tables import terminal_table
from models.errors import UserError, choice_error
from train import cli

USAGE = """Runs a study and writes its results: tables (Markdown, CSV), figures (PNG), verdicts.

    python -m experiments.run --list                             the studies, their questions and costs
    python -m experiments.run initialization --scale=digits --seeds=7
    python -m experiments.run depth --until=decided --most_seeds=20 --budget=2h
    python -m experiments.run all --scale=digits                 continues after a study that fails
    python -m experiments.run my_study.py                        a file of yours that defines STUDY
    python -m experiments.run depth --dry_run                    what is finished, what is left, how long it takes
    python -m experiments.run depth --watch                      a live table of the trials of a running study
    python -m experiments.run depth --on=slurm --partition=gpu --gres=gpu:1 --time=2:00:00 --workers=16

Results go to --out/STUDY/SCALE. There, trials.jsonl keeps the outcome of each finished trial, so that it is never run
again; interrupted trials resume in --workdir. With --until=decided, undecided claims get more seeds, the most promising
first.
"""


class Options(NamedTuple):
    """Options of the trials of a study.

    Attributes:
      workdir: Folder of the trials' folders.
      out: Folder of the results, which go to out/STUDY/SCALE.
      choose: Function of (trials, ledger) that returns where they run; see `launch.define_flags`.
      seeds: Seeds per group; the maximum if `decided`.
      decided: Whether the groups of undecided claims get more seeds, in the steps of `verdicts.looks`.
      deadline: Time after which no trial starts, as `time.time`; None for no limit.
      accept: Commits whose finished trials count although the code has changed.
      keep: Keeps the folders of finished trials.
      dry: Only says what is finished, what is left, and how long it takes.
    """

    workdir: Path
    out: Path
    choose: Callable[[Sequence[study.Trial], ledger.Ledger], engines.Place] = lambda planned, lines: engines.Place()
    seeds: int = FIRST
    decided: bool = False
    deadline: float | None = None
    accept: tuple[str, ...] = ()
    keep: bool = False
    dry: bool = False


def main(arguments: Sequence[str]) -> None:
    """Runs the studies named by the arguments."""
    console = command.console()
    if LIST.value:
        console.print(catalogue())
        return
    if len(arguments) != 2:
        raise UserError("name one study, or 'all' for all of them; studies: " + ", ".join(study.STUDIES))
    names = [name for name in study.STUDIES if SCALE.value in study.module(name).STUDY.cost]
    decided = UNTIL.value == "decided"
    if not decided and MOST_SEEDS.present:
        raise UserError(f"--most_seeds={MOST_SEEDS.value} needs --until=decided; without it, set --seeds")
    if decided and SEEDS.present:
        raise UserError(f"--seeds={SEEDS.value} needs a run without --until=decided; with it, set --most_seeds")
    options = Options(
        Path(WORKDIR.value),
        Path(OUT.value),
        PLACE,
        MOST_SEEDS.value if decided else SEEDS.value,
        decided,
        time.time() + seconds(BUDGET.value) if BUDGET.value else None,
        tuple(ACCEPT_COMMITS.value),
        KEEP.value,
        DRY_RUN.value,
    )
    if WATCH.value:
        if arguments[1] == "all":
            raise UserError("--watch follows one study; name it")
        one = study.module(arguments[1]).STUDY
        watch.follow(options.workdir / SCALE.value, options.out / one.name / SCALE.value / ledger.NAME, console)
        return
    run_each(names if arguments[1] == "all" else arguments[1:], SCALE.value, options, console)


def seconds(budget: str) -> float:
    """Returns the seconds of a text such as "90s", "30m" or "2.5h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if not match:
        raise UserError(f"--budget={budget} is not a time; allowed: a number and s, m or h, such as 90s, 30m, 2.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def run_each(specs: Sequence[str], scale: str, options: Options, console: rich.console.Console) -> None:
    """Runs several studies, and continues after one that fails.

    Raises:
      UserError: Some studies failed because of mistakes of the user.
      RuntimeError: Some studies failed, at least one of them because of a fault in the code.
      Interrupted, OutOfTime: A signal arrived, or the budget ended. They are raised at once.
    """
    failed = {}
    for spec in specs:
        try:
            run(spec, scale, options, console)
        except (engines.Interrupted, launch.OutOfTime):
            raise
        except Exception as error:
            if len(specs) == 1:
                raise
            failed[spec] = error
            text = str(error) if isinstance(error, UserError) else traceback.format_exc()
            console.print(f"{spec} failed: {text}", style="bold", soft_wrap=True, highlight=False, markup=False)
    if failed:
        kind = UserError if all(isinstance(error, UserError) for error in failed.values()) else RuntimeError
        raise kind(
            f"{len(failed)} of {len(specs)} studies failed: "
            + "; ".join(f"{spec}: {error}" for spec, error in failed.items())
        )


def catalogue() -> rich.table.Table:
    """Returns a table of the studies, with their questions and their costs by scale."""
    studies = {name: study.module(name).STUDY for name in study.STUDIES}
    return terminal_table(
        ("study", "question", "cost"),
        [
            (name, one.question, "\n".join(f"{scale}: {cost}" for scale, cost in one.cost.items()))
            for name, one in studies.items()
        ],
        texts=3,
        lines=True,
    )


def run(spec: str, scale: str, options: Options, console: rich.console.Console) -> dict[str, Any]:
    """Runs the missing trials of a study and writes its results.

    Args:
      spec: Name or path of the study.
      scale: One of its scales.
      options: How the trials run.
      console: Console for progress and results.

    Returns:
      The content of results.json.

    Raises:
      UserError: The study or scale does not exist, a trial cannot run, or a signal interrupted it.
    """
    current_study = study.module(spec).STUDY
    if scale not in current_study.cost:
        raise choice_error(f"scale of study {current_study.name}", scale, current_study.cost)
    folder = page.writable(options.out / current_study.name / scale)
    console.print(f"[bold]{current_study.title}[/]: {current_study.question}", markup=True)
    for claim in current_study.claims:  # expectations are printed before anything runs
        console.print(
            f"  expected: {claim.expected} [dim]({claim.source}: {claim.published})[/]", soft_wrap=True, markup=True
        )
    start_time, lines, first = time.time(), ledger.Ledger(folder), current_study.trials(scale, range(options.seeds))
    place = options.choose(first, lines)
    if options.dry:
        console.print(launch.preview(first, lines, place, options.accept), soft_wrap=True)
        return {}
    looks = verdicts.looks(options.seeds) if options.decided else [(options.seeds, ALPHA)]
    planned, outcomes, seen = sequential.run_until_decided(
        current_study,
        first,
        looks,
        functools.partial(
            launch.run_all,
            lines=lines,
            root=options.workdir / scale,
            place=place,
            console=console,
            accept=options.accept,
            deadline=options.deadline,
            keep=options.keep,
            others=first,
        ),
        lambda text: console.print(text, soft_wrap=True, highlight=False, markup=False),
    )
    records = [page.record_of(trial, outcome) for trial, outcome in zip(planned, outcomes.all(), strict=True)]
    how = f"--until=decided --most_seeds={options.seeds}" if options.decided else f"--seeds={options.seeds}"
    seconds_by_folder = {
        record["folder"]: outcome.seconds for record, outcome in zip(records, outcomes.all(), strict=True)
    }
    results = {
        **page.content(current_study, spec, scale, outcomes, seen, how),
        "looks": [[count, level] for count, level in looks],
        "trials_at_once": place.at_once,
        "seconds_of_training": round(sum(seconds_by_folder.values()), 1),
        "seconds_of_this_command": round(time.time() - start_time, 1),
        "finished": max(
            (o.summary["finished"] for o in outcomes.all() if o.summary),
            default=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        ),
        "trials": records,
    }
    page.write(current_study, results, outcomes, folder)
    page.show(results, console)
    console.print(f"written to {folder}", soft_wrap=True)
    return results


if __name__ == "__main__":  # flags are defined only here, because absl has one table of them per process
    SCALE = flags.DEFINE_enum(
        "scale",
        "digits",
        study.SCALES,
        "Size of the study: digits takes minutes on a CPU, cifar hours; cifar10 needs a GPU, imagenet many GPUs.",
    )
    WORKDIR = command.define_path("workdir", "runs/studies", "Folder of the trials.")
    OUT = command.define_path("out", "experiments/results/studies", "Folder of the results.")
    PLACE = launch.define_flags()
    SEEDS = flags.DEFINE_integer("seeds", FIRST, "Seeds per group of trials: 0, 1, …", lower_bound=1)
    UNTIL = flags.DEFINE_enum("until", None, ["decided"], "Add seeds until claims are decided.")
    MOST_SEEDS = flags.DEFINE_integer(
        "most_seeds", 20, "Maximum number of seeds per group with --until=decided.", lower_bound=FIRST
    )
    BUDGET = flags.DEFINE_string("budget", "", "Time after which no trial starts, such as 90s, 30m, 2.5h.")
    ACCEPT_COMMITS = flags.DEFINE_list(
        "accept_commits",
        [],
        "Commits whose finished trials count although the code has changed; all accepts every commit.",
    )
    command.define_figures()
    KEEP = flags.DEFINE_bool("keep_runs", False, "Keep the folders of finished trials, with their checkpoints.")
    DRY_RUN = flags.DEFINE_bool(
        "dry_run", False, "Say what is finished, what is left and how long it takes; then exit."
    )
    WATCH = flags.DEFINE_bool(
        "watch", False, "Follow a study that another process runs; ctrl-C ends only the watching."
    )
    LIST = flags.DEFINE_bool("list", False, "List the studies, and exit.")
    cli.run(main, USAGE, positional=True)

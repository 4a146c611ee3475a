"""Launches the trials of a study and reports what has finished.

The queue hands out the trials. A launcher only keeps enough workers alive, so it may end at any moment; the same
command goes on.
"""

import contextlib
import os
import secrets
import shutil
import signal
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
from absl import flags

from experiments import study
from experiments.study import engines, ledger, queue, slurm, trials
from models import command
from models.errors import UserError
from models.kernels import runtime
from train.recording import summary

flags.disclaim_key_flags()  # absl assigns flags that are defined here to the calling command, so that --help lists them


class OutOfTime(UserError):
    """An end of the time budget before the last trial started."""

    exit_code = command.PREEMPTED

    def __init__(self, left: int):
        super().__init__(f"the time budget ended with {left} trials left to run; run the same command to resume")


def run_all(
    planned: Sequence[study.Trial],
    lines: ledger.Ledger,
    root: Path,
    place: engines.Place,
    console: rich.console.Console,
    accept: Collection[str] = (),
    deadline: float | None = None,
    keep: bool = False,
    others: Sequence[study.Trial] = (),
) -> list[study.Outcome]:
    """Runs the trials that the ledger lacks; trials with equal configs run once.

    Args:
      planned: Trials of the study.
      lines: The ledger.
      root: Folder of the trials' folders.
      place: Where they run.
      console: Console for progress: a bar on a terminal, otherwise one line per trial.
      accept: Commits whose lines count although their code differs; "all" for every commit.
      deadline: Time after which no trial starts, as `time.time`.
      keep: Keeps the folders of finished trials, with their checkpoints. Folders that other trials start from always
        stay.
      others: Trials of the study that may run later. Where their config is that of a planned trial, their measures are
        taken now.

    Returns:
      The outcomes, in the order of the trials.

    Raises:
      UserError: A trial failed, or the deadline came.
      Interrupted: SIGTERM or SIGINT ended it; the same command resumes.
    """
    lines.refresh()
    names, every = set(map(trials.address, planned)), trials.merged([*planned, *others])
    merged = {name: trial for name, trial in every.items() if name in names}
    have = trials.finished(merged, lines, accept)
    jobs = trials.left(merged, lines, root, accept, keep, others)
    if jobs:
        root.mkdir(parents=True, exist_ok=True)
        plan = queue.Plan(jobs, 2 if place.on == "slurm" else 1, deadline)
        with _bar(console, len(jobs)) as show:
            for count, job in enumerate(_launched(plan, lines, root, place, console.print), 1):
                if not job.is_start and (line := lines.get(job.name, job.code)):
                    have[job.name] = line
                show(count, job.trial, have.get(job.name))
    pairs = [(trial.labels, have[trials.address(trial)]) for trial in planned]
    return [study.Outcome(labels, **line["outcome"], seconds=line["seconds"]) for labels, line in pairs]


def _launched(
    plan: queue.Plan, lines: ledger.Ledger, root: Path, place: engines.Place, say: Callable[[str], None]
) -> Iterator[trials.Job]:
    """Yields the jobs of a plan as they finish."""
    launch, plans, current = secrets.token_hex(4), queue.Plans(root, lines.path), queue.Queue(root, lines)
    for name in plan.jobs:
        if current.holder(name) is None:
            current.forget(name)  # failures of an earlier launch
    for other in plans.launches():
        if not plans.is_live(other):
            plans.remove(other)  # its launcher was killed; this plan has its trials, too
    plans.folder.mkdir(parents=True, exist_ok=True)
    signals = _Signals()
    with plans.lock(launch), command.handling((signal.SIGTERM, signal.SIGINT), signals.note):
        on_slurm = place.on == "slurm"
        stop = f"scancel --name={plans.job_name}" if on_slurm else f"`kill {os.getpid()}` on {queue.host()}"
        plan = plan._replace(stop=stop, versions=summary.versions())
        here = place.on == "local" and place.at_once == 1
        engine: engines.Engine = (
            engines.Here(plan, current) if here else engines.Workers(plans, launch, lines.path, place, current, say)
        )
        try:
            for job in _follow(plan, current, engine, signals, lambda: plans.keep(launch, plan)):
                current.finish(job)  # its worker may have been killed before it could
                yield job
        except BaseException as error:
            if isinstance(error, engines.Interrupted) and on_slurm:
                raise engines.Interrupted(error.name, engine.hint()) from None
            plans.remove(launch)
            engine.stop()
            engine.wait()
            raise
        plans.remove(launch)
        engine.stop()  # idle workers end by themselves
        if not plans.launches():
            shutil.rmtree(plans.folder, ignore_errors=True)


def _follow(
    plan: queue.Plan, current: queue.Queue, engine: engines.Engine, signals: "_Signals", keep: Callable[[], None]
) -> Iterator[trials.Job]:
    """Yields the jobs as they finish, and keeps the engine running.

    Args:
      plan: The plan.
      current: The queue.
      engine: The engine.
      signals: The signal that came.
      keep: Makes sure that workers see the plan.

    Raises:
      UserError, RuntimeError: Trials failed; the others have finished, or none can.
      Interrupted: A signal came.
      OutOfTime: The deadline came.
    """
    left, before = dict(plan.jobs), len(plan.jobs)
    while left:
        keep()
        current.lines.refresh()
        for name in [name for name, job in left.items() if current.is_done(job)]:
            yield left.pop(name)
        failed = [name for name, job in left.items() if current.is_over(job, plan)]
        waiting = left.keys() - {*failed, *current.blocked(plan)}
        if failed and (not waiting or (len(left) == before and len(failed) >= engines.DEATHS)):
            raise _failure([(name, current.failures(name)[-1]) for name in failed], len(left) - len(failed))
        if signals.name:
            raise engines.Interrupted(signals.name)
        if left and plan.is_late() and not engine.is_busy():
            raise OutOfTime(len(left))
        if left:
            held = sum(current.holder(name) is not None for name in waiting)
            engine.step(len(waiting) - held, held)


def _failure(failed: Sequence[tuple[str, queue.Failure]], others: int) -> Exception:
    """Returns the error for the trials that failed: of the user if all of them are mistakes of the user."""
    kind = UserError if all(failure.is_mistake for _, failure in failed) else RuntimeError
    first, failure = next((pair for pair in failed if not pair[1].is_mistake), failed[0])
    more = f"; {len(failed) - 1} other trials failed, too" if len(failed) > 1 else ""
    wait = f"; {others} trials have not run" if others else ""
    return kind(f"{first}: {failure.text.strip()}{more}{wait}")


# -- flags ---------------------------------------------------------------------------------------------------


def define_flags() -> Callable[[Sequence[study.Trial], ledger.Ledger], engines.Place]:
    """Defines the flags that say where trials run, and returns a function of (trials, ledger) that reads them."""
    on = flags.DEFINE_enum("on", "local", ["local", "slurm"], "Where trials run: on this host, or in jobs of Slurm.")
    jobs = flags.DEFINE_integer(
        "jobs",
        0,
        "Trials at once on this host; 0: one per core on a CPU (up to 8), one per accelerator; 1: in this process.",
        lower_bound=0,
    )
    devices = flags.DEFINE_integer(
        "devices_per_trial", 0, "Accelerators of this host for each trial; 0: as many as its config asks for.", 0
    )
    workers = flags.DEFINE_integer("workers", 4, "Jobs of Slurm at once; each runs one trial after another.", 1)
    partition = flags.DEFINE_string("partition", "", "Slurm: the partition.")
    limit = flags.DEFINE_string(
        "time", "", "Slurm: time limit of a job, such as 2:00:00; it is requeued until no trial is left."
    )
    gres = flags.DEFINE_string("gres", "", "Slurm: generic resources of a job, such as gpu:1.")
    sbatch = command.define_path("sbatch", "", "Slurm: file with one more option of sbatch per line.")

    def place(planned: Sequence[study.Trial], lines: ledger.Ledger) -> engines.Place:
        if on.value == "local":
            for holder in (workers, sbatch, partition, limit, gres):
                if holder.present:
                    raise UserError(f"--{holder.name}={holder.value} needs --on=slurm")
            return local(planned, jobs.value, devices.value)
        for holder in (jobs, devices):
            if holder.present:
                raise UserError(f"--{holder.name}={holder.value} needs --on=local; --workers sets the jobs of Slurm")
        given = slurm.read_options(Path(sbatch.value)) if sbatch.value else {}
        given |= {holder.name: holder.value for holder in (partition, limit, gres) if holder.value}
        return on_slurm(planned, lines, given, workers.value)

    return place


def on_slurm(
    planned: Sequence[study.Trial], lines: ledger.Ledger, options: Mapping[str, str], workers: int
) -> engines.Place:
    """Returns the place for trials on Slurm.

    Args:
      planned: The trials.
      lines: The study's ledger, which tells how long its trials take.
      options: Options of sbatch by their names.
      workers: Jobs at once.

    Raises:
      UserError: Slurm refuses the options, or their time limit is shorter than a trial.
    """
    slurm.check(options)
    longest = max((line["seconds"] for line in map(lines.get, trials.merged(planned)) if line), default=0)
    if "time" in options and longest > 60 * slurm.minutes(options["time"]):
        limit = f"--time={options['time']}: a trial of this study took {longest / 60:.1f} minutes"
        raise UserError(f"{limit}; allow more than that")
    return engines.Place("slurm", workers, options=options)


def local(planned: Sequence[study.Trial], jobs: int = 0, devices: int = 0) -> engines.Place:
    """Returns the place for trials on this host.

    Args:
      planned: The trials.
      jobs: Trials at once; 0 for one per core on a CPU (up to 8), and as many as fit on accelerators.
      devices: Accelerators for each trial; 0 for as many as the trials ask for.

    Raises:
      UserError: A trial asks for more devices than it would get.
    """
    need = max((trial.config.devices or 1 for trial in planned), default=1)
    count = engines.accelerators()
    if not count:
        return engines.Place("local", jobs or min(runtime.cores(), 8))
    if 0 < devices < need:
        raise UserError(f"--devices_per_trial={devices}: a trial's config asks for {need} devices")
    size = devices or need
    if size * (jobs or 1) > count:
        wants = f"{jobs or 1} trials at once with {size} devices each"
        raise UserError(f"{wants} do not fit: this host has {count} (--jobs, --devices_per_trial)")
    return engines.Place("local", jobs or count // size, size)


def preview(
    planned: Sequence[study.Trial], lines: ledger.Ledger, place: engines.Place, accept: Collection[str] = ()
) -> str:
    """Returns a text about the trials that are finished, those that are left, and the time that they take."""
    merged = trials.merged(planned)
    have = trials.finished(merged, lines, accept)
    seconds: dict[str, list[float]] = {}
    for name, line in ((name, lines.get(name)) for name in merged):
        if line:
            seconds.setdefault(study.group_of(merged[name].labels), []).append(line["seconds"])
    known = [second for group in seconds.values() for second in group]
    text = f"{len(merged)} trials: {len(have)} finished, {len(merged) - len(have)} left"
    if not known or len(have) == len(merged):
        return text
    each = [seconds.get(study.group_of(trial.labels), known) for name, trial in merged.items() if name not in have]
    hours = sum(map(statistics.mean, each)) / 3600
    return f"{text}, {hours:.1f} hours of trials, about {hours / place.at_once:.1f} hours with {place.at_once} at once"


# -- progress ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _bar(console: rich.console.Console, total: int) -> Iterator[Callable[..., None]]:
    """Shows a bar on a terminal, otherwise one line per trial; yields a function of (count, trial, line)."""
    bar = rich.progress.Progress(
        rich.progress.TextColumn("[bold]{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[last]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("trials", total=total, last="")

    def show(count: int, trial: study.Trial, line: Mapping[str, Any] | None) -> None:
        labels = ", ".join(f"{key} {value}" for key, value in trial.labels.items())
        results = line["outcome"]["summary"] or {} if line else {}
        accuracy = f"accuracy {results['accuracy']:.1%}" if "accuracy" in results else "measured"
        result = (line and line["outcome"]["diverged"]) or accuracy
        bar.update(task, advance=1, last=labels)
        if not console.is_terminal:
            console.print(f"{count}/{total}  {labels}: {result}", soft_wrap=True, highlight=False)

    with bar:
        yield show


class _Signals:
    """The signal that ended a launch; a second one ends this process, and its workers on this host follow."""

    name: str | None = None

    def note(self, number: int, frame: Any) -> None:
        """Handles a signal."""
        del frame
        if self.name:
            os._exit(command.INTERRUPTED)
        self.name = signal.Signals(number).name

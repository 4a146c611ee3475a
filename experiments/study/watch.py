"""A live table of a running study, read from its queue; it changes nothing and may come and go."""

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

import rich.console
import rich.live

from experiments.study import ledger, queue, trials
from models.analysis.tables import terminal_table
from models.errors import UserError

PERIOD = 2.0  # seconds between two looks
STATES = ("done", "running", "lost", "waiting", "failed")


class Row(NamedTuple):
    """A trial that is not done.

    Attributes:
      name: Address of the trial.
      labels: Its labels in one line.
      state: One of STATES.
      where: Host that runs it, or "".
      seconds: Duration of the current attempt.
      progress: Its last logged step, or the last line of its failure.
    """

    name: str
    labels: str
    state: str
    where: str = ""
    seconds: float = 0.0
    progress: str = ""


def rows(plan: queue.Plan, current: queue.Queue) -> list[Row]:
    """Returns the trials of a plan that are not done; those that run come first."""
    current.lines.refresh()
    left = [_row(job, plan, current) for job in plan.jobs.values() if not current.is_done(job)]
    return sorted(left, key=lambda row: STATES.index(row.state))


def _row(job: trials.Job, plan: queue.Plan, current: queue.Queue) -> Row:
    name = job.name
    labels = ", ".join(f"{key} {value}" for key, value in job.trial.labels.items())
    if failures := current.failures(name)[plan.attempts - 1 :]:
        return Row(name, labels, "failed", failures[-1].host, progress=failures[-1].text.strip().splitlines()[-1])
    holder = current.holder(name)
    if holder is None:
        return Row(name, labels, "waiting")
    record = current.record(name)
    host, silent = holder
    is_lost = silent > queue.SILENT or (host == queue.host() and not _exists(record.get("pid", 0)))
    seconds = time.time() - record.get("since", time.time())
    return Row(name, labels, "lost" if is_lost else "running", host, seconds, _step(job.folder))


def _exists(process: int) -> bool:
    """Returns whether a process of this host exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, 0)
        return True
    return False


def _step(folder: Path) -> str:
    """Returns a text about the last step that a run has logged."""
    from train.storage import workdir  # imports Orbax, which --help does not need

    log = folder / "metrics.jsonl"
    with contextlib.suppress(UserError, OSError):  # a line that is being written
        lines = workdir.read_metrics(log) if log.exists() else []
        return f"step {lines[-1]['step']:,}" if lines else ""
    return ""


def counts(plan: queue.Plan, left: list[Row]) -> dict[str, int]:
    """Returns the number of trials in each state."""
    number = {state: sum(row.state == state for row in left) for state in STATES}
    return {**number, "done": len(plan.jobs) - len(left)}


def time_left(plan: queue.Plan, current: queue.Queue, left: list[Row]) -> str:
    """Returns a text about the time that the other trials need, from the mean of those that are done; "" if unknown."""
    lines = filter(None, (current.lines.get(name, job.code) for name, job in plan.jobs.items()))
    seconds = [line["seconds"] for line in lines]
    running = sum(row.state == "running" for row in left)
    if not seconds or not running:
        return ""
    need = sum(row.state != "failed" for row in left) * sum(seconds) / len(seconds) / running
    return f"about {need / 60:.0f} minutes left with {running} at once"


def view(plan: queue.Plan, current: queue.Queue, height: int = 20) -> rich.console.RenderableType:
    """Returns the table of a plan: the counts as its title, and the first trials that are not done."""
    left = rows(plan, current)
    number = ", ".join(f"{count} {state}" for state, count in counts(plan, left).items() if count)
    title = "; ".join(filter(None, (number, time_left(plan, current, left))))
    shown = [
        (row.labels, row.state, row.where, f"{row.seconds:.0f} s" if row.seconds else "", row.progress)
        for row in left[:height]
    ]
    return terminal_table(("trial", "state", "host", "since", "progress"), shown, title, texts=5)


def follow(root: Path, path: Path, console: rich.console.Console) -> None:
    """Shows the launches of a study until they end; without a terminal, once.

    Args:
      root: Folder of the trials' folders.
      path: The study's ledger.
      console: Console to show the table.

    Raises:
      UserError: No launch is there.
    """
    plans, current = queue.Plans(root, path), queue.Queue(root, ledger.Ledger(path.parent))
    last = plan = _merged(plans)
    if last is None:
        raise UserError(
            f"--watch: no launch of this study is in {root}; start one with the same command without --watch"
        )
    if not console.is_terminal:
        console.print(view(last, current))
        return
    try:
        with rich.live.Live(view(last, current), console=console, refresh_per_second=1) as live:
            while plan:
                last = plan
                live.update(view(plan, current, max(5, console.height - 8)))
                time.sleep(PERIOD)
                plan = _merged(plans)
            live.update(view(last, current))
    except KeyboardInterrupt:
        text = f"The workers go on. The same command follows them again; {last.stop} ends them."
        console.print(text, soft_wrap=True, highlight=False)


def _merged(plans: queue.Plans) -> queue.Plan | None:
    """Returns a plan with the jobs of all launches; None without one."""
    present = [plan for launch in plans.launches() if (plan := plans.read(launch))]
    if not present:
        return None
    return present[0]._replace(jobs={name: job for plan in present for name, job in plan.jobs.items()})

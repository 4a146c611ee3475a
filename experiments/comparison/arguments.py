"""The runs that the arguments of a command name: workdirs, every run below a folder, ledgers of studies and sweeps."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.comparison import ledgers, runs
from experiments.comparison.runs import Run, Warn, printable
from models.errors import UserError

DEPTH = 4  # levels of folders below an argument in which runs are looked for
MOST_FOLDERS = 20_000  # folders that are looked through in all


def read(paths: Sequence[str], warn: Warn) -> list[Run]:
    """Returns the runs that paths name, each once, in the order of the paths.

    Args:
      paths: Workdirs, folders with runs or ledgers below them, ledgers (`trials.jsonl`) and their folders.
      warn: Is called with a line for each run that is left out because it is damaged.

    Raises:
      UserError: A path does not exist, or no run is left.
    """
    from train.storage.remote import fetched

    found: dict[str, Run] = {}
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        warn(line)

    for place, path in enumerate(paths):
        local = fetched(path)
        if not os.path.exists(local):
            raise UserError(f"{printable(path)}: there is no such file or folder")
        for run in _runs(local, path, place, say):
            found.setdefault(str(run.folder or run.name), run)
    if not found:
        raise UserError("no run is left to compare" + f"; {lines[-1]}" * bool(lines))
    return list(found.values())


def _runs(local: Path, path: str, place: int, warn: Warn) -> Iterator[Run]:
    """Yields the runs of one argument, or warns that it has none."""
    if ledgers.is_ledger(local):
        folder = local.parent if os.path.isfile(local) else local
        yield from ledgers.read(local, path if "://" in path else runs.relative(folder.resolve()), place, warn)
        return
    if not os.path.isdir(local):
        warn(f"{printable(path)} is left out: it is neither a folder nor a ledger ({ledgers.NAME})")
        return
    folders = [local.resolve()] if runs.is_run(local) else list(_below(local, DEPTH, warn, [0]))
    if not folders:
        warn(f"{printable(path)} is left out: neither it nor a folder up to {DEPTH} levels below is that of a run")
    for folder in folders:
        if ledgers.is_ledger(folder):
            yield from ledgers.read(folder, runs.relative(folder), place, warn)
        elif run := runs.run_of(folder, place, warn):
            yield run


def _below(folder: Path, depth: int, warn: Warn, seen: list[int]) -> Iterator[Path]:
    """Yields the folders of runs and ledgers below a folder; what is in them is not searched, nor are hidden folders.

    Raises:
      UserError: There are too many folders.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name for entry in entries if entry.is_dir()), key=natural)
    except OSError as error:
        warn(f"{printable(folder)} is left out: {error.strerror}")
        return
    for name in names:
        seen[0] += 1
        if seen[0] > MOST_FOLDERS:
            raise UserError(f"{printable(folder)}: there are more than {MOST_FOLDERS:,} folders; name the runs")
        if name.startswith("."):
            continue
        if runs.is_run(folder / name) or ledgers.is_ledger(folder / name):
            yield (folder / name).resolve()
        elif depth > 1:
            yield from _below(folder / name, depth - 1, warn, seen)


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Returns a key that sorts texts with numbers by their size: run2 before run10."""
    parts = re.findall(r"([0-9]{1,18})|([^0-9]+)", text)
    return [(not number, int(number or 0), other) for number, other in parts]

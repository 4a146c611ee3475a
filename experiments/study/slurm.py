"""Slurm, seen from the launcher: options of its jobs, whether it takes them, and which of them it has."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import UserError

POLL = 2.0  # seconds between questions to the controller
_OPTION = re.compile(r"(?:#SBATCH\s+)?--([a-z][\w-]*)(?:[= ]\s*(.*))?")
_OWN = {"job-name": "the launcher names its jobs", "array": "set --workers", "output": "logs go to the workdir"}


def read_options(path: Path) -> dict[str, str]:
    """Returns {name: value} of a file with one option of sbatch in each line, such as "--account=me".

    Lines may begin with #SBATCH; other lines that begin with # are comments.

    Raises:
      UserError: The file is missing, or a line is not an option.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sbatch={path}: {error.strerror if isinstance(error, OSError) else 'not a text'}") from None
    options = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or (line.startswith("#") and not line.startswith("#SBATCH")):
            continue
        match = _OPTION.fullmatch(line)
        if not match:
            raise UserError(
                f"--sbatch={path}, line {number}: write an option of sbatch, such as --account=me, not {line!r}"
            )
        options[match[1]] = match[2] or ""
    return options


def minutes(time: str) -> int:
    """Returns the minutes of a time limit as sbatch takes it: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS[:MINUTES].

    Raises:
      UserError: It is none.
    """
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not (all(part.isdecimal() for part in parts) and len(parts) <= 3 and (days.isdecimal() or not dash)):
        raise UserError(f"--time={time}: write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES")
    numbers = [int(part) for part in parts]
    if dash:
        hours, mins, secs = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, mins, secs = numbers
    else:
        hours, mins, secs = 0, *[*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + mins) + (secs > 0)


def check(options: Mapping[str, str]) -> None:
    """Asks Slurm whether it would take a job with these options.

    Raises:
      UserError: There is no Slurm here, it does not answer, or it refuses them.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "--on=slurm: there is no sbatch here; launch from a login node of the cluster, or use --on=local"
        )
    for name, reason in _OWN.items():
        if name in options:
            raise UserError(f"--sbatch: {name} is not allowed: {reason}")
    minutes(options.get("time", "0"))
    arguments = [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
    done = _call("sbatch", "--test-only", *arguments, "--wrap", "true")
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        text = "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines)
        raise UserError(f"--on=slurm: Slurm refuses {' '.join(arguments) or 'the job'}: {text}")


def parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """Returns the options as submitit takes them."""
    rest = {name: value for name, value in options.items() if name != "time"}
    limit = {"time": minutes(options["time"])} if "time" in options else {"time": 365 * 24 * 60}
    rest = {name: value or True for name, value in rest.items()}
    return {**limit, "additional_parameters": {"requeue": True, **rest}}


def queued(name: str) -> set[str]:
    """Returns the ids of this user's jobs of a name that wait or run.

    Raises:
      UserError: Slurm does not answer.
    """
    done = _call("squeue", "--me", "--noheader", "--array", "--format=%i", f"--name={name}")
    if done.returncode:
        raise UserError(f"squeue: {done.stderr.strip()}")
    return set(done.stdout.split())


def cancel_pending(name: str) -> None:
    """Cancels this user's jobs of a name that have not started."""
    _call("scancel", f"--user={getpass.getuser()}", "--state=PENDING", f"--name={name}")


def _call(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(error.cmd, 1, "", "no answer within 60 seconds")

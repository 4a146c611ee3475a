"""The checkpoints of a run: written beside training, atomic, verified when read. The last and the best are kept."""

import concurrent.futures
import contextlib
import errno
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models.errors import UserError
from train import checkpoint_format, details
from train.files import remove
from train.parameters import named

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path, e.g. {"params/stem/conv/kernel": …}: a layout that any reader of the file can use."""
    return {name: np.asarray(leaf) for name, leaf in named(tree).items()}


def unflatten(template: Any, leaves: Mapping[str, np.ndarray], what: str) -> Any:
    """Puts the leaves into the structure of `template` (arrays or ShapeDtypeStructs).

    Raises:
      UserError: where names, shapes or types differ, listing up to five of them, - (missing) and + (unexpected).
    """
    wanted = named(template)
    faults = [f"- {name}" for name in wanted.keys() - leaves.keys()]
    faults += [f"+ {name}" for name in leaves.keys() - wanted.keys()]
    faults += [
        f"{name}: {leaves[name].dtype}{list(leaves[name].shape)} is not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in leaves and (leaves[name].shape != leaf.shape or leaves[name].dtype != leaf.dtype)
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{what} does not fit this network: {'; '.join(sorted(faults)[:5])}{more}")
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in wanted])


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def read(
    folder: Path, best: str = "", warn: Callable[[str], None] = _warn
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the newest checkpoint in a run's folder, or the one with the highest score.

    Args:
      folder: the workdir of a run, which may be training. Nothing in it is changed.
      best: name of a metric; the checkpoint in which it is highest is read instead of the newest.
      warn: is told of each damaged checkpoint that is passed over, and of the step that is read instead.

    Returns:
      The leaves by path, and what was said about them (`Checkpoints.save`).

    Raises:
      UserError: there is no checkpoint, or all are damaged.
    """
    with (
        contextlib.closing(Checkpoints(folder / "checkpoints", headline=best, read_only=True)) as saved,
        details.kept(None),
    ):
        step, found, damaged = saved.first_whole(best=bool(best))
    if found is None and damaged:
        step = max(damaged)
        raise UserError(
            f"{folder}: checkpoint {step} is damaged: {damaged[step]}"
            f"{'; so is every one before it' * (len(damaged) > 1)}"
        )
    if found is None:
        raise UserError(f"{folder}: this run has no checkpoint {f'with {best} ' * bool(best)}yet")
    for other, reason in damaged.items():
        warn(f"{folder}: checkpoint {other} is damaged ({reason}); using the one of step {step}")
    return found


class Checkpoints:
    """The checkpoints of one run, by step.

    Args:
      folder: created if it is missing; what an interrupted save or removal left there is removed.
      keep: so many of the latest are kept, and the best.
      headline: metric by which "best" is decided, higher is better.
      read_only: the folder is another run's, which may be writing: nothing in it is made or removed.
    """

    def __init__(self, folder: Path, keep: int = 2, headline: str | None = None, read_only: bool = False):
        self.folder = Path(folder).absolute()
        self.headline = headline
        self._keep, self._read_only = keep, read_only
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, concurrent.futures.Future] | None = None
        if not read_only:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot use {self.folder}: {error.strerror}") from error
            for pattern in (".*.tmp", "*.orbax-checkpoint-tmp*"):  # ours, and those of earlier versions
                for leftover in self.folder.glob(pattern):
                    remove(leftover)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(entry.name) for entry in entries if re.fullmatch("0|[1-9][0-9]*", entry.name, re.ASCII))

    def best(self) -> int | None:
        """The step with the best headline metric; None where there is none."""
        return self._best({})

    def _best(self, damaged: dict[int, str]) -> int | None:
        """Returns the best step that is not `damaged`; adds the steps whose scores cannot be read to `damaged`."""
        scored = []
        for step in self.steps():
            if step in damaged:
                continue
            try:
                score = checkpoint_format.read_about(self._path(step))["scores"].get(self.headline)
            except ValueError as error:
                damaged[step] = str(error)
                continue
            if type(score) in (int, float) and math.isfinite(score):
                scored.append((score, step))
        return max(scored, default=(None, None))[1]

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: Any, about: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Starts writing, after the save before it has ended; `state` must stay as it is until `wait` returns.

        Args:
          step: of the checkpoint, by which it is found again.
          state: numpy leaves.
          about: JSON that `restore` returns beside the leaves.
          scores: metrics on the test set, by which the best is found.

        Raises:
          UserError: where the disk cannot hold it, or the save before it failed; the checkpoints before that stay.
        """
        self.wait()
        leaves = flatten(state)
        needed = 1.1 * sum(leaf.nbytes for leaf in leaves.values()) + 2**20  # with what is written beside the arrays
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._no_space(step, f"it needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free")
        about = json.loads(json.dumps({**about, "step": step, "scores": dict(scores)}))
        self._writing = step, self._writer.submit(self._write, step, leaves, about)

    def _write(self, step: int, leaves: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
        temporary = self.folder / f".new-{step}.tmp"
        try:
            remove(temporary)
            checkpoint_format.write(temporary, leaves, about)
            self._discard(step)  # a damaged one that could not be moved aside
            temporary.rename(self._path(step))
        except BaseException:
            remove(temporary)  # so that a full disk has space again
            raise
        steps = self.steps()
        for old in set(steps[: -self._keep]) - {self.best()}:
            with contextlib.suppress(OSError):  # the new one is there; the next save tries again
                self._discard(old)

    def _discard(self, step: int) -> None:
        """Removes a checkpoint at once as far as readers see, whatever ends this process meanwhile."""
        trash = self.folder / f".old-{step}.tmp"
        remove(trash)
        with contextlib.suppress(FileNotFoundError):
            self._path(step).rename(trash)
        remove(trash)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: where it could not be written, e.g. since the disk was full.
        """
        if self._writing is None:
            return
        step, future = self._writing
        concurrent.futures.wait([future])
        self._writing, problem = None, None
        try:
            future.result()
        except (OSError, ValueError) as error:  # of the file system, of tensorstore
            logging.getLogger(__name__).warning("checkpoint %d", step, exc_info=True)
            why = checkpoint_format.brief(error)
            problem = UserError(f"cannot write checkpoint {step} in {self.folder}: {why}; {self.kept()}")
            if is_full(error):
                problem = self._no_space(step, "no space left on the device")
        if problem:
            del future  # nor does `problem` keep the error alive: what dies with it is logged, see details.kept
            raise problem

    def close(self) -> None:
        """Waits, and ends the writer's thread. To know whether the last save succeeded, `wait` before it."""
        with contextlib.suppress(UserError):  # it is in the log, and something else may be on its way to the user
            self.wait()
        self._writer.shutdown()
        if not self._read_only:
            for leftover in self.folder.glob(".new-*.tmp"):  # threads of Orbax may write after a save has failed
                remove(leftover)

    def kept(self) -> str:
        """Says which checkpoint is there to go on from."""
        last = max(self.steps(), default=None)
        if last is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {last} is kept, and the same command goes on from it"

    def _no_space(self, step: int, why: str) -> UserError:
        return UserError(f"no disk space for checkpoint {step} in {self.folder}: {why}; {self.kept()}")

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reads the leaves by path, and what was said about them, of one step.

        Raises:
          ValueError: it is damaged: unreadable, incomplete, or with other bits than were written.
        """
        return checkpoint_format.read(self._path(step))

    def first_whole(
        self, best: bool = False
    ) -> tuple[int | None, tuple[dict[str, np.ndarray], dict[str, Any]] | None, dict[int, str]]:
        """Reads the newest checkpoint, or the best, that is not damaged.

        Returns:
          its step, and what `restore` returns of it, None where there is none; and the reasons, by step, for which
          others before it in that order were passed over.
        """
        damaged, step = {}, None
        while True:
            left = [other for other in self.steps() if other not in damaged]
            step = self._best(damaged) if best else max(left, default=None)
            if step is None:
                break
            try:
                found = self.restore(step)
                break
            except ValueError as error:
                logging.getLogger(__name__).warning("checkpoint %d", step, exc_info=True)
                damaged[step] = str(error)
        # A run that trains meanwhile may have removed one of them
        damaged = {other: reason for other, reason in damaged.items() if self._path(other).exists()}
        return step, found if step is not None else None, damaged

    def restore_newest(self, warn: Callable[[str], None]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole; returns None where there is none at all.

        Damaged ones are passed over and moved aside, and `warn` is told.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        step, found, damaged = self.first_whole()
        if found is None and damaged:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged (that of step {max(damaged)}: "
                f"{damaged[max(damaged)]}); choose another --workdir to start afresh"
            )
        for other, reason in damaged.items():
            aside = self.folder.parent / f"damaged-checkpoint-{other}"
            try:
                remove(aside)
                self._path(other).rename(aside)
                where = f"moved to {aside}"
            except OSError as error:
                where = f"it stays where it is ({error.strerror})"
            warn(f"checkpoint {other} is damaged ({reason}); {where}, using the one before it, of step {step}")
        return found


@contextlib.contextmanager
def full_disk_is_said(folder: Path) -> Iterator[None]:
    """Within it, a disk that is full while something is written becomes a UserError that says what is kept.

    Args:
      folder: the workdir.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        kept = Checkpoints(folder / "checkpoints", read_only=True).kept()
        raise UserError(f"no disk space in {folder}: {error.strerror}; {kept}") from error


def is_full(error: Exception) -> bool:
    """Tells whether the cause is a full disk."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return "No space left" in str(error) or "quota exceeded" in str(error)

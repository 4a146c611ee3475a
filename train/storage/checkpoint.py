"""The checkpoints of a run: written in the background, atomic, verified when read; the last and the best are kept."""

import concurrent.futures
import contextlib
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
from train.optim.parameters import named
from train.storage import checkpoint_format, details
from train.storage.files import is_full, remove


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Returns the leaves of a tree by path, e.g. {"params/stem/conv/kernel": …}, which any reader can interpret."""
    return {name: np.asarray(leaf) for name, leaf in with_elements(tree).items()}


def with_elements(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by path, except those without elements, of which Orbax writes none."""
    return {name: leaf for name, leaf in named(tree).items() if np.prod(np.shape(leaf))}


def arranged(template: Any, leaves: Mapping[str, Any]) -> Any:
    """Returns leaves by path, those of `with_elements`, in the structure of a template, with those that they lack."""
    values = [
        leaves[name] if name in leaves else np.zeros(leaf.shape, leaf.dtype) for name, leaf in named(template).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(template), values)


def unflatten(template: Any, leaves: Mapping[str, np.ndarray], what: str) -> Any:
    """Arranges leaves in the structure of a template.

    Args:
      template: a tree of arrays or ShapeDtypeStructs.
      leaves: arrays by path.
      what: names the leaves in errors, e.g. "the checkpoint in runs/x".

    Raises:
      UserError: names, shapes or types differ. The message lists up to five missing (-), unexpected (+) or other ones.
    """
    check_fits(template, leaves, what)
    return arranged(template, leaves)


def check_fits(template: Any, leaves: Mapping[str, Any], what: str) -> None:
    """Raises UserError as `unflatten` does; the leaves need only a shape and a dtype."""
    expected = with_elements(template)
    faults = [f"- {name}" for name in expected.keys() - leaves.keys()]
    faults += [f"+ {name}" for name in leaves.keys() - expected.keys()]
    faults += [
        f"{name}: {leaves[name].dtype}{list(leaves[name].shape)} is not {leaf.dtype}{list(leaf.shape)}"
        for name, leaf in expected.items()
        if name in leaves and (leaves[name].shape != leaf.shape or leaves[name].dtype != leaf.dtype)
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(f"{what} does not fit this network: {'; '.join(sorted(faults)[:5])}{more}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def read(
    folder: Path, best: str = "", warn: Callable[[str], None] = _warn
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the newest checkpoint in a run's folder, or the one with the highest score.

    Args:
      folder: the workdir of a run, which may be training. Nothing in it is changed.
      best: name of a metric; if given, the checkpoint in which it is highest is read instead of the newest.
      warn: is called with a line for each damaged checkpoint that is skipped.

    Returns:
      The leaves by path, and the JSON that was saved with them (`Checkpoints.save`).

    Raises:
      UserError: there is no checkpoint, or all of them are damaged.
    """
    with (
        contextlib.closing(Checkpoints(folder / "checkpoints", headline=best, read_only=True)) as saved,
        details.redirect(None),
    ):
        step, content, damaged = saved.first_whole(best=bool(best))
    if content is None and damaged:
        step = max(damaged)
        raise UserError(
            f"{folder}: checkpoint {step} is damaged: {damaged[step]}{'; so are all earlier ones' * (len(damaged) > 1)}"
        )
    if content is None:
        raise UserError(f"{folder}: this run has no checkpoint {f'with {best} ' * bool(best)}yet")
    for other, reason in damaged.items():
        warn(f"{folder}: checkpoint {other} is damaged ({reason}); using the one of step {step}")
    return content


class Checkpoints:
    """The checkpoints of one run, by step.

    Args:
      folder: created if it is missing; leftovers of an interrupted save or removal are removed.
      keep: number of latest checkpoints to keep, besides the best one.
      headline: the metric that decides which checkpoint is best; higher is better.
      read_only: the folder belongs to another run, which may be writing: nothing is created or removed.
      published: is called in the background after each save.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        headline: str | None = None,
        read_only: bool = False,
        published: Callable[[], None] = lambda: None,
    ):
        self.folder = Path(folder).absolute()
        self.headline = headline
        self._keep, self._read_only, self._published = keep, read_only, published
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, concurrent.futures.Future] | None = None
        if not read_only:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot use {self.folder}: {error.strerror}") from error
            for pattern in (".*.tmp", "*.orbax-checkpoint-tmp*"):  # leftovers of this version, and of earlier ones
                for leftover in self.folder.glob(pattern):
                    remove(leftover)

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(entry.name) for entry in entries if re.fullmatch("0|[1-9][0-9]*", entry.name, re.ASCII))

    def best(self) -> int | None:
        """Returns the step with the best headline metric; None if no checkpoint has one."""
        return self._best({})

    def _best(self, damaged: dict[int, str]) -> int | None:
        """Returns the best step that is not in `damaged`; adds steps whose scores cannot be read to `damaged`."""
        scored = []
        for step in self.steps():
            if step in damaged:
                continue
            try:
                score = checkpoint_format.read_metadata(self._path(step))["scores"].get(self.headline)
            except ValueError as error:
                damaged[step] = str(error)
                continue
            if type(score) in (int, float) and math.isfinite(score):
                scored.append((score, step))
        return max(scored, default=(None, None))[1]

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Waits for the previous save, then starts to write; `state` must not change until `wait` returns.

        Args:
          step: the step of the checkpoint, which names its folder.
          state: numpy leaves.
          metadata: JSON that `restore` returns with the leaves.
          scores: metrics on the test set, which decide which checkpoint is best.

        Raises:
          UserError: the disk is too full, or the previous save failed; earlier checkpoints stay.
        """
        self.wait()
        leaves = flatten(state)
        self._check_space(step, leaves)
        self._start(step, lambda content: self._write(step, leaves, content), metadata, scores)

    def _check_space(self, step: int, leaves: Mapping[str, Any]) -> None:
        """Raises UserError if the disk has no space for arrays."""
        needed = 1.1 * sum(leaf.nbytes for leaf in leaves.values()) + 2**20  # a margin for metadata
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise self._no_space(step, f"it needs {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free")

    def _start(
        self,
        step: int,
        write: Callable[[dict[str, Any]], None],
        metadata: Mapping[str, Any],
        scores: Mapping[str, float],
    ) -> None:
        """Starts `write` in the background, with the JSON of a checkpoint."""
        content = json.loads(json.dumps({**metadata, "step": step, "scores": dict(scores)}))
        self._writing = step, self._writer.submit(write, content)

    def _write(self, step: int, leaves: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> None:
        temporary = self._temporary(step)
        try:
            remove(temporary)
            checkpoint_format.write(temporary, leaves, content)
            self._publish(step)
        except BaseException:
            remove(temporary)  # frees space on a full disk
            raise
        self._conclude()

    def _temporary(self, step: int) -> Path:
        """Returns the folder in which a checkpoint is written."""
        return self.folder / f".new-{step}.tmp"

    def _publish(self, step: int) -> None:
        """Makes a written checkpoint visible, atomically."""
        self._discard(step)  # a damaged checkpoint of this step that could not be moved aside
        self._temporary(step).rename(self._path(step))

    def _conclude(self) -> None:
        """Removes old checkpoints, except the best, and says that there is a new one."""
        steps = self.steps()
        for old in set(steps[: -self._keep]) - {self.best()}:
            with contextlib.suppress(OSError):  # the new checkpoint is complete; the next save tries again
                self._discard(old)
        self._published()

    def _discard(self, step: int) -> None:
        """Removes a checkpoint atomically: readers see all of it or nothing, even if this process is killed."""
        trash = self.folder / f".old-{step}.tmp"
        remove(trash)
        with contextlib.suppress(FileNotFoundError):
            self._path(step).rename(trash)
        remove(trash)

    def wait(self) -> None:
        """Waits until the save in progress is on disk.

        Raises:
          UserError: it could not be written, e.g. because the disk is full.
        """
        if self._writing is None:
            return
        step, future = self._writing
        concurrent.futures.wait([future])
        self._writing, problem = None, None
        try:
            future.result()
        except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:  # from disks, tensorstore, other processes
            logging.getLogger(__name__).warning("checkpoint %d", step, exc_info=True)
            why = checkpoint_format.brief(error)
            problem = UserError(f"cannot write checkpoint {step} in {self.folder}: {why}; {self.resume_hint()}")
            if is_full(error):
                problem = self._no_space(step, "no space left on the device")
        if problem:
            # Drops the last reference to the error, so that its destructors run while their output goes to details.log
            del future
            raise problem

    def close(self) -> None:
        """Waits for the save in progress and ends the writer's thread; call `wait` first to learn whether it failed."""
        with contextlib.suppress(UserError):  # the error is in the log, and another one may be on its way to the user
            self.wait()
        self._writer.shutdown()
        if not self._read_only:
            for leftover in self.folder.glob(".new-*.tmp"):  # threads of Orbax may write after a save has failed
                remove(leftover)

    def resume_hint(self) -> str:
        """Returns a sentence that says from which checkpoint the run can resume."""
        last = max(self.steps(), default=None)
        if last is None:
            return "there is no checkpoint yet"
        return f"the checkpoint of step {last} is kept, and the same command resumes from it"

    def _no_space(self, step: int, why: str) -> UserError:
        return UserError(f"no disk space for checkpoint {step} in {self.folder}: {why}; {self.resume_hint()}")

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Reads the leaves of a step by path, and the JSON that was saved with them.

        Raises:
          ValueError: the checkpoint is unreadable or incomplete, or its bits differ from those that were written.
        """
        return checkpoint_format.read(self._path(step))

    def first_whole(
        self, best: bool = False
    ) -> tuple[int | None, tuple[dict[str, np.ndarray], dict[str, Any]] | None, dict[int, str]]:
        """Reads the newest (or best) checkpoint that is not damaged.

        Returns:
          (step, content, damaged). `content` is what `restore` returns for the step. `step` and `content` are None if
          there is no undamaged checkpoint. `damaged` gives the reason for each skipped step.
        """
        damaged: dict[int, str] = {}
        step = content = None
        while content is None:
            left = [other for other in self.steps() if other not in damaged]
            step = self._best(damaged) if best else max(left, default=None)
            if step is None:
                break
            try:
                content = self.restore(step)
            except ValueError as error:
                logging.getLogger(__name__).warning("checkpoint %d", step, exc_info=True)
                damaged[step] = str(error)
        # If the run is training, it may have removed some of them in the meantime.
        damaged = {other: reason for other, reason in damaged.items() if self._path(other).exists()}
        return step, content, damaged

    def restore_newest(self, warn: Callable[[str], None]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Reads the newest undamaged checkpoint; returns None if there are no checkpoints.

        Damaged checkpoints are skipped and moved aside, each with a line for `warn`.

        Raises:
          UserError: there are checkpoints, but all of them are damaged.
        """
        step, content, damaged = self.first_whole()
        self._move_aside(step, damaged, warn)
        return content

    def _move_aside(self, step: int | None, damaged: Mapping[int, str], warn: Callable[[str], None]) -> None:
        """Moves damaged checkpoints aside, unless there is no other; see `restore_newest`."""
        if step is None and damaged:
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


@contextlib.contextmanager
def full_disk_is_said(folder: Path) -> Iterator[None]:
    """Turns an OSError of a full disk into a UserError that says which checkpoint is kept.

    Args:
      folder: the workdir.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        resume_hint = Checkpoints(folder / "checkpoints", read_only=True).resume_hint()
        raise UserError(f"no disk space in {folder}: {error.strerror}; {resume_hint}") from error

"""Checkpoints by Orbax: asynchronous, atomic, verified when read; the last ones and the best are kept."""

import errno
import math
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from models.errors import UserError
from train.parameters import named

policies = ocp.checkpoint_managers
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


def _digest(leaves: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: zlib.crc32(np.ascontiguousarray(leaf)) for name, leaf in leaves.items()}


def read(folder: Path, best: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the leaves of a run's newest checkpoint, or of the one with the highest metric `best`, and its `about`.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = folder / "checkpoints"
    saved = Checkpoints(path, headline=best, read_only=True)
    try:
        step = (saved.best() if best else max(saved.steps(), default=None)) if path.is_dir() else None
        found = saved.restore(step) if step is not None else None
    except ValueError as error:
        raise UserError(f"{folder}: checkpoint {step} is damaged: {error}") from error
    finally:
        saved.close()
    if found is None:
        raise UserError(f"{folder}: this run has no checkpoint {f'with {best} ' * bool(best)}yet")
    return found


class Checkpoints:
    """The checkpoints of one run, by step.

    Args:
      folder: created if it is missing; what an interrupted save left there is removed.
      keep: so many of the latest are kept, and the best.
      headline: metric by which "best" is decided, higher is better.
      read_only: the folder is another run's, which may be writing: nothing in it is made or removed.
    """

    def __init__(self, folder: Path, keep: int = 2, headline: str | None = None, read_only: bool = False):
        self.folder = Path(folder).absolute()
        def score(metrics):
            return metrics.get(headline, -math.inf)

        if not read_only:
            self.folder.mkdir(parents=True, exist_ok=True)
        kept = [policies.LatestN(keep), policies.BestN(get_metric_fn=score, n=1)]
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept), best_fn=score,
            cleanup_tmp_directories=not read_only, create=False,
            # What is saved is whole in numpy: of several processes one does it, and waits for no other
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()})))
        self.headline = headline

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the best headline metric; None where there is none."""
        scored = [(self._scores(step), step) for step in self.steps()]
        scored = [(scores[self.headline], step) for scores, step in scored if self.headline in scores]
        return max(scored, default=(None, None))[1]

    def _scores(self, step: int) -> Mapping[str, float]:
        try:
            return self._manager.metrics(step) or {}
        except (OSError, ValueError):  # damaged: it is no candidate
            return {}

    def save(self, step: int, state: Any, about: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Starts writing; returns as soon as `state` (numpy leaves) may no longer be needed by the caller.

        Raises:
          UserError: where the disk cannot hold it; the checkpoints before it stay.
        """
        leaves = flatten(state)
        size = sum(leaf.nbytes for leaf in leaves.values())
        free = shutil.disk_usage(self.folder).free
        if free < 1.1 * size + 2**20:
            raise self._no_space(step, f"it needs {size / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free")
        about = {**about, "step": step, "crc32": _digest(leaves)}
        try:
            self._manager.save(step, metrics=dict(scores), args=ocp.args.Composite(
                state=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(about)))
        except Exception as error:
            self._explain(step, error)
            raise

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: where the disk was full.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._explain("being written", error)
            raise

    def close(self) -> None:
        """Waits, and ends the writer's threads."""
        self.wait()
        self._manager.close()

    def _explain(self, step: int | str, error: Exception) -> None:
        """Raises UserError where the cause is a full disk."""
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if full or "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            raise self._no_space(step, "no space left on the device") from error

    def _no_space(self, step: int | str, why: str) -> UserError:
        last = max(self.steps(), default=None)
        kept = f"the one of step {last} is kept" if last is not None else "there is none yet"
        return UserError(f"no disk space for checkpoint {step} in {self.folder}: {why}; {kept}")

    def restore(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Leaves by path, and what was said about them, of one step.

        Raises:
          ValueError: it is damaged: unreadable, incomplete, or with other bits than were written.
        """
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()))
            leaves, about = found["state"], found["about"]
            wrong = [name for name, crc in about["crc32"].items() if _digest({name: leaves[name]})[name] != crc]
        except Exception as error:  # Orbax, tensorstore and JSON each raise their own
            raise ValueError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
        if wrong:
            raise ValueError(f"checksum of {wrong[0]} differs")
        return leaves, about

    def restore_newest(self, warn: Callable[[str], None]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        A damaged one is passed over and moved aside, and `warn` told about it.

        Raises:
          UserError: there are checkpoints, but all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step)
            except ValueError as error:
                aside = self.folder.parent / f"damaged-checkpoint-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                shutil.move(self.folder / str(step), aside)
                self._manager.reload()
                warn(f"checkpoint {step} is damaged ({error}); moved to {aside}, using the one before it")
        if steps:
            raise UserError(f"every checkpoint in {self.folder} is damaged; choose another --workdir to start afresh")
        return None

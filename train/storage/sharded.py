"""The checkpoints of a run whose state is sharded over processes: each process writes and reads only its own shards.

The folder of a checkpoint is that of train/storage/checkpoint_format.py, so any number of devices and processes reads
it. In state/, Orbax keeps a folder for the shards of each process. Each process digests the files that it wrote, and
process 0 collects the digests; when a run resumes, each process verifies a part of all files.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from models.errors import UserError
from train.devices import multihost
from train.storage import checkpoint, checkpoint_format
from train.storage.files import read_json, remove, write_json

SECONDS = 1800  # longest wait for other processes to write their shards; that of a dead process ends much sooner
_OTHERS = re.compile(r"ocdbt\.process_[1-9]\d*/")  # files that processes other than 0 have written
_numbers = itertools.count()  # names of barriers must not occur twice


class ShardedCheckpoints(checkpoint.Checkpoints):
    """The checkpoints of one run, of which each process has an object; all processes call each method.

    Args:
      folder: as all processes see it.
      keep: see `checkpoint.Checkpoints`.
      headline: see `checkpoint.Checkpoints`.
      published: see `checkpoint.Checkpoints`; called on process 0.
    """

    def __init__(self, folder: Path, keep: int, headline: str, published: Callable[[], None] = lambda: None):
        self._is_primary = jax.process_index() == 0
        super().__init__(folder, keep, headline, read_only=not self._is_primary, published=published)
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), timeout_secs=SECONDS)

    def save(self, step: int, state: Any, metadata: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Copies this process's shards to host memory, then starts to write them; see `checkpoint.Checkpoints.save`.

        Args:
          step: the step of the checkpoint.
          state: arrays on the devices of all processes. They may be donated once this method returns.
          metadata: JSON; that of process 0 counts.
          scores: metrics on the test set.
        """
        self.wait()
        leaves, temporary = checkpoint.with_elements(state), self._temporary(step)

        def reserve():
            self._check_space(step, leaves)
            remove(temporary)
            (temporary / "about").mkdir(parents=True)

        multihost.on_primary(reserve)
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(checkpoint_format.plain_path(temporary))
            self._orbax.save(plain / "state", args=ocp.args.StandardSave(leaves))
            link = stack.pop_all()  # Orbax goes on to write there
        self._start(step, lambda content: self._finish(step, link, content), metadata, scores)

    def _finish(self, step: int, link: contextlib.ExitStack, content: Mapping[str, Any]) -> None:
        """Waits until all processes have written their shards; process 0 then publishes the checkpoint."""
        temporary = self._temporary(step)
        try:
            with link:
                self._orbax.wait_until_finished()
            files = _digests_of_all(temporary)
            if not self._is_primary:
                return
            checkpoint_format.write_metadata(temporary, content, files)
            self._publish(step)
        except BaseException:
            if self._is_primary:
                remove(temporary)
            raise
        self._conclude()

    def newest_whole(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Returns the JSON of the newest undamaged checkpoint, None if there are no checkpoints.

        Raises:
          UserError: as `checkpoint.Checkpoints.restore_newest`, which also says what happens to damaged ones.
        """
        damaged: dict[int, str] = {}
        while True:
            metadata, _ = multihost.from_primary(lambda: (self._candidate(damaged), ()), ())
            if metadata is None:
                break
            reasons = multihost.gather(_damage(self._path(metadata["step"]), metadata))
            if not any(reasons):
                break
            damaged[metadata["step"]] = next(filter(None, reasons))
        multihost.on_primary(lambda: self._move_aside(metadata and metadata["step"], damaged, warn))
        return metadata

    def _candidate(self, damaged: dict[int, str]) -> dict[str, Any] | None:
        """Returns the JSON of the newest checkpoint that is not in `damaged`; adds those whose JSON is damaged."""
        for step in reversed(self.steps()):
            if step in damaged:
                continue
            try:
                return checkpoint_format.read_metadata(self._path(step))
            except ValueError as error:
                damaged[step] = str(error)
        return None

    def read(self, step: int, template: Any) -> Any:
        """Reads this process's shards of a verified checkpoint, written by any number of processes.

        Args:
          step: the step of the checkpoint.
          template: ShapeDtypeStructs with shardings.

        Returns:
          Arrays in the structure of the template, on the devices.

        Raises:
          UserError: the arrays are not those of the template, or a process cannot read them.
        """
        reason, leaves = "", {}
        try:
            leaves = read_shards(self._path(step), template, f"checkpoint {step} in {self.folder.parent}")
        except (UserError, ValueError) as error:
            reason = str(error)
        if reason := next(filter(None, multihost.gather(reason)), ""):
            raise UserError(reason)
        return checkpoint.arranged(template, leaves)

    def close(self) -> None:
        """Waits for the save in progress and ends the threads."""
        super().close()
        self._orbax.close()


def read_shards(folder: Path, template: Any, what: str) -> dict[str, jax.Array]:
    """Returns the arrays of a checkpoint by path, of which this process reads its shards, without other processes.

    Args:
      folder: the folder of a verified checkpoint.
      template: ShapeDtypeStructs with shardings.
      what: names the checkpoint in errors.

    Raises:
      UserError: the arrays are not those of the template.
      ValueError: they cannot be read.
    """
    try:
        with checkpoint_format.plain_path(folder) as plain:
            checkpoint.check_fits(template, checkpoint_format.shapes(plain / "state"), what)
            restored = ocp.args.StandardRestore(checkpoint.with_elements(template))
            return checkpoint_format.orbax_alone().restore(plain / "state", args=restored)
    except UserError:
        raise
    except Exception as error:  # Orbax, tensorstore and the file system raise different types
        raise ValueError(f"{what} cannot be read: {checkpoint_format.brief(error)}") from error


def _digests_of_all(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file in state/, on process 0; each process digests what it wrote."""
    state, process = folder / "state", jax.process_index()

    def is_own(name: str) -> bool:
        return not _OTHERS.match(name) if process == 0 else name.startswith(f"ocdbt.process_{process}/")

    own = checkpoint_format.digests(state, filter(is_own, checkpoint_format.files(state)))
    if process:
        write_json(_part(folder, process), own)
    ocp.multihost.get_barrier_sync_fn()(key=f"digests of {folder.name}, {next(_numbers)}", timeout_ms=SECONDS * 1000)
    for other in range(1, jax.process_count() if process == 0 else 0):
        own |= read_json(_part(folder, other))
        remove(_part(folder, other))
    return own


def _part(folder: Path, process: int) -> Path:
    """Returns the file in which a process passes its digests to process 0."""
    return folder / "about" / f"files-{process}.json"


def _damage(folder: Path, metadata: Mapping[str, Any]) -> str:
    """Returns why a checkpoint is damaged, as far as this process's part of its files shows; "" if it is not."""
    try:
        if "files" not in metadata:  # an earlier version, whose checksums are of whole arrays
            checkpoint_format.read(folder)
            return ""
        names = sorted(metadata["files"])[jax.process_index() :: jax.process_count()]
        present = [name for name in names if (folder / "state" / name).is_file()]
        expected = {name: metadata["files"][name] for name in names}
        checkpoint_format.verify_files(expected, checkpoint_format.digests(folder / "state", present))
    except (OSError, ValueError) as error:
        return checkpoint_format.brief(error)
    return ""

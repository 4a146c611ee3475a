"""The format of a checkpoint's folder, every byte of which is verified when it is read.

    state/           the arrays, as Orbax's StandardCheckpointHandler writes them
    about/metadata   JSON: step, scores and what the loop needs to resume; the SHA-256 of each file in state/; and the
                     SHA-256 of all of that

The checksum of each file in state/ is verified before a decoder reads it. Earlier versions only stored a CRC-32 of each
array, and kept the scores in metrics/metrics. Their checkpoints are read by separate rules.
"""

import contextlib
import hashlib
import json
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import numpy as np

from models.errors import UserError
from train.storage.files import sha256

if TYPE_CHECKING:  # imported where it is used: training starts sooner, and the first save comes later
    import orbax.checkpoint as ocp

# Orbax misreads these parts of a path as patterns ("runs[1]") or protocols ("a:/b"), and rejects paths not in UTF-8.
_MISREAD = re.compile("[*?[\ud800-\udfff]|:/")
EARLIER = {"step", "seconds", "data", "recorder", "crc32"}  # the keys that versions without SHA-256 wrote


def write(folder: Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint into a new folder; the caller makes this atomic.

    Args:
      folder: must not exist yet.
      leaves: arrays by path.
      metadata: JSON with at least "step" and "scores".
    """
    import orbax.checkpoint as ocp

    folder.mkdir()
    with plain_path(folder) as plain:
        orbax_alone().save(plain / "state", args=ocp.args.StandardSave(dict(leaves)))
    (folder / "about").mkdir()
    write_metadata(folder, metadata, digests(folder / "state"))


def write_metadata(folder: Path, metadata: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Writes the JSON of a checkpoint whose arrays are written.

    Args:
      folder: the folder of the checkpoint, with a folder about/.
      metadata: as of `write`.
      files: the SHA-256 of each file in state/.
    """
    metadata = {**metadata, "files": dict(files)}
    (folder / "about" / "metadata").write_text(json.dumps({**metadata, "checksum": _checksum(metadata)}))


def read_metadata(folder: Path) -> dict[str, Any]:
    """Reads and verifies the JSON of a checkpoint without its arrays.

    Raises:
      ValueError: it is damaged. The message is a reason of a few words.
    """
    try:
        metadata = _json(folder / "about" / "metadata")
        if "checksum" in metadata:
            if metadata.pop("checksum") != _checksum(metadata):
                raise ValueError("the checksum of about/metadata differs")
        else:
            _check_earlier(metadata)
            metadata["scores"] = _earlier_scores(folder)
        if str(metadata["step"]) != folder.name:
            raise ValueError(f"it belongs to step {metadata['step']}")
        return metadata
    except Exception as error:  # damaged bytes can raise anything
        raise ValueError(brief(error)) from error


def read(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads and verifies the arrays of a checkpoint, by path, and its JSON.

    Raises:
      ValueError: the checkpoint is damaged. The message is a reason of a few words.
    """
    metadata = read_metadata(folder)
    try:
        if "files" in metadata:
            verify_files(metadata["files"], digests(folder / "state"))
        with plain_path(folder) as plain:
            leaves = _whole(plain / "state")
        if "crc32" in metadata:
            _verify_earlier(metadata, leaves)
        return leaves, metadata
    except Exception as error:  # Orbax, tensorstore and the file system raise different types
        raise ValueError(brief(error)) from error


def _whole(state: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a folder that Orbax has written, by path, as numpy arrays."""
    import orbax.checkpoint as ocp

    if not (state / "_sharding").exists():  # numpy arrays, from one process
        return orbax_alone().restore(state, args=ocp.args.StandardRestore())
    whole = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes(state)}
    return orbax_alone(ocp.PyTreeCheckpointHandler).restore(state, args=ocp.args.PyTreeRestore(restore_args=whole))


def shapes(state: Path) -> dict[str, Any]:
    """Returns objects with the shape and the dtype of each array in a folder that Orbax has written."""
    import orbax.checkpoint as ocp

    return cast(Any, orbax_alone(ocp.PyTreeCheckpointHandler).metadata(state)).item_metadata.tree


@contextlib.contextmanager
def plain_path(folder: Path) -> Iterator[Path]:
    """Yields a path that Orbax does not misread: that of the folder, or of a temporary link to it."""
    if not _MISREAD.search(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ablate-") as temporary:
        link = Path(temporary) / "checkpoint"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def orbax_alone(handler: Callable[..., Any] | None = None) -> "ocp.Checkpointer":
    """Returns Orbax's reader and writer, which waits for no other process; by default, of arrays."""
    import orbax.checkpoint as ocp

    handler = handler or ocp.StandardCheckpointHandler
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    return ocp.Checkpointer(handler(multiprocessing_options=alone), multiprocessing_options=alone)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():  # reading a pipe would wait forever
        raise ValueError(f"{path.parent.name}/{path.name} is missing")
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is not a JSON object")
    return content


def _checksum(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def files(folder: Path) -> list[str]:
    """Returns the paths of all files in a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def digests(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Returns the SHA-256 of files in a folder by their relative paths; by default, of all."""
    return {name: sha256(folder / name) for name in (files(folder) if names is None else names)}


def verify_files(expected: Mapping[str, str], actual: Mapping[str, str]) -> None:
    """Raises ValueError if a file in state/ is missing or its digest differs from the expected one."""
    for name, digest in expected.items():
        if name not in actual:
            raise ValueError(f"state/{name} is missing")
        if actual[name] != digest:
            raise ValueError(f"the checksum of state/{name} differs")


def brief(error: Exception) -> str:
    """Returns an error message of a few words; messages of tensorstore can fill a screen."""
    if isinstance(error, UserError) or (type(error) is ValueError and len(str(error)) < 120):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:100]}{'…' * (len(first) > 100)}"


# -- checkpoints of earlier versions, in which only arrays have checksums --------------------------------------------


def _check_earlier(metadata: Mapping[str, Any]) -> None:
    """Raises ValueError if something has a type that no earlier version wrote."""

    def is_number(value):
        return type(value) in (int, float) and math.isfinite(value)

    recorder = metadata.get("recorder")
    sums = recorder.get("sums") if isinstance(recorder, dict) else None
    fits = (
        metadata.keys() == EARLIER
        and type(metadata["step"]) is int
        and is_number(metadata["seconds"])
        and isinstance(metadata["data"], dict)
        and isinstance(metadata["crc32"], dict)
        and isinstance(recorder, dict)
        and recorder.keys() == {"sums", "logged"}
        and type(recorder["logged"]) is int
        and (
            sums is None
            or (
                isinstance(sums, dict)
                and all(
                    isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in sums.values()
                )
            )
        )
    )
    if not fits:
        raise ValueError("about/metadata has unexpected keys or types")


def _earlier_scores(folder: Path) -> dict[str, Any]:
    try:
        return _json(folder / "metrics" / "metrics")
    except (OSError, ValueError, RecursionError):  # without scores, it is not the best checkpoint
        return {}


def _verify_earlier(metadata: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> None:
    if leaves.keys() != metadata["crc32"].keys():
        raise ValueError("arrays are missing")
    for name, leaf in leaves.items():
        if zlib.crc32(np.ascontiguousarray(leaf).tobytes()) != metadata["crc32"][name]:
            raise ValueError(f"the checksum of {name} differs")
    if "step" in leaves and int(leaves["step"]) != metadata["step"]:
        raise ValueError(f"its arrays belong to step {int(leaves['step'])}")

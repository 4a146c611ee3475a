"""Downloads a TFDS set and prepares it: the only thing here that needs TensorFlow. See --help."""

import errno
from collections.abc import Sequence
from types import ModuleType

from models import command
from models.errors import UserError
from train import cli

USAGE = """Downloads a TFDS set and prepares it for random access, once.

    python -m train.data.prepare cifar10 [--data_dir=DIR]

The set is written as array_record; training then reads it without TensorFlow as data.source=tfds:NAME, data.dir=DIR.
"""


def prepare(name: str, folder: str) -> str:
    """Prepares set `name` (name, name/config or name:version) in `folder`, or finds it prepared.

    Returns lines that say where it lies and what its splits are. Raises UserError for an unknown name, missing
    TensorFlow, a failed download, a full disk, and a set that lies there in a format without random access.
    """
    from train.data.sources.tfds import known_names, unknown_name  # not for --help: with it comes TFDS

    base = name.partition("/")[0].partition(":")[0]
    if base not in known_names(folder):
        raise unknown_name(base, folder)
    tfds = _tensorflow_datasets()
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, the disk and the set's own script come up with
        disk = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
        what = "write" if disk else "download or prepare"
        raise UserError(f"cannot {what} data set '{name}' in {folder}: {_line(error)}") from error
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"data set '{name}' lies in {builder.data_path} as {file_format}, which has no random access: "
            "move that folder away, or choose another --data_dir"
        )
    splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in sorted(builder.info.splits.items()))
    return f"{name} is prepared in {builder.data_path}\nsplits: {splits}"


def _tensorflow_datasets() -> ModuleType:
    try:
        import importlib_resources  # noqa: F401  TFDS 4.9 wants it where TensorFlow is, and does not say so
        import tensorflow  # noqa: F401  what TFDS writes with
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"preparing data sets needs TensorFlow ({_line(error)}): pip install -e '.[prepare]'; training does not"
        ) from error
    return tensorflow_datasets


def _line(error: BaseException) -> str:
    """The first line of what an error says, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def main(argv: Sequence[str]) -> None:
    """Prints the folder and the splits."""
    if len(argv) != 2:
        raise UserError("want the name of one TFDS data set, as in: python -m train.data.prepare cifar10")
    from train.data.sources.tfds import data_dir

    print(prepare(argv[1], data_dir(DATA_DIR.value)))


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    DATA_DIR = command.define_path(
        "data_dir", "", "Where to write; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
    )
    cli.run(main, USAGE, positional=True)

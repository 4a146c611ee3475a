"""Downloads a TFDS set and prepares it; only this command needs TensorFlow. See --help."""

import errno
from collections.abc import Sequence
from types import ModuleType

from models import command
from models.errors import UserError
from train import cli

USAGE = """Downloads a TFDS set and prepares it for random access, once.

    python -m train.data.prepare cifar10
    python -m train.data.prepare cifar10 --data_dir=/data/tfds

The set is written as array_record; training then reads it without TensorFlow as data.source=tfds:NAME, data.dir=DIR.
"""


def prepare(name: str, folder: str) -> str:
    """Prepares a TFDS set in a folder, unless it is prepared there already.

    Args:
      name: name, name/config or name:version of the set.
      folder: where to write.

    Returns:
      Lines that name the set's folder and its splits.

    Raises:
      UserError: the name is unknown, TensorFlow is missing, the download fails, the folder cannot be written, or the
        set is there in a format without random access.
    """
    from train.data.sources.tfds import known_names, unknown_name  # imports TFDS, which --help does not need

    base = name.partition("/")[0].partition(":")[0]
    if base not in known_names(folder):
        raise unknown_name(base, folder)
    tfds = _tensorflow_datasets()
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # the network, the disk and the set's own script can raise anything
        disk = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
        action = "write" if disk else "download or prepare"
        raise UserError(f"cannot {action} data set '{name}' in {folder}: {_line(error)}") from error
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"data set '{name}' is in {builder.data_path} as {file_format}, which has no random access: "
            "move that folder away, or choose another --data_dir"
        )
    splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in sorted(builder.info.splits.items()))
    return f"{name} is prepared in {builder.data_path}\nsplits: {splits}"


def _tensorflow_datasets() -> ModuleType:
    try:
        # TFDS 4.9 imports it together with TensorFlow, without requiring it; the extra `prepare` has both
        import importlib_resources  # noqa: F401  # pyright: ignore[reportMissingImports]  an optional library
        import tensorflow  # noqa: F401  TFDS writes with it
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"preparing data sets needs TensorFlow ({_line(error)}): pip install -e '.[prepare]'; "
            "training does not need it"
        ) from error
    return tensorflow_datasets


def _line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def main(argv: Sequence[str]) -> None:
    """Prepares the set and prints its folder and splits."""
    if len(argv) != 2:
        raise UserError(
            "the command takes the name of one TFDS data set, such as: python -m train.data.prepare cifar10"
        )
    from train.data.sources.tfds import data_dir

    print(prepare(argv[1], data_dir(DATA_DIR.value)))


if __name__ == "__main__":  # flags are defined only here, since absl has one table of flags per process
    DATA_DIR = command.define_path(
        "data_dir", "", "Where to write; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
    )
    cli.run(main, USAGE, positional=True)

"""Runs that were trained: what their folders hold, to evaluate, export and look into."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import choice_error
from train import checkpoint, loop, state, workdir
from train.files import expanded
from train.optim import pruning

# Keys that runs of earlier versions do not have, and what these did
EARLIER = {"lookahead": "", "ema_warmup": False}
EARLIER_OPTIMIZER = {"multiplied": "update"}
EARLIER_IMAGES = {"exif": "ignore"}  # in the section `data`, of runs on images
CHECKPOINTS = ("last", "best")


def load(folder: str | Path, which: str = "last") -> tuple[loop.Run, state.TrainState]:
    """The run of a folder, set up again, and the state of one of its checkpoints, as numpy.

    Args:
      folder: of the run.
      which: "last", or "best": of those that are kept, the one with the best headline metric on the test set.

    The data set need not be there: class names, shapes and preprocessing are those that the run has recorded. A split
    is opened when it is used, and compared with the record then.

    Raises:
      UserError: there is no run or no checkpoint, or one of them is damaged.
    """
    if which not in CHECKPOINTS:
        raise choice_error("--checkpoint", which, CHECKPOINTS)
    folder = expanded(folder)
    config = {**EARLIER, **workdir.read_config(folder)}
    # What made the run start as it did may be gone, there may be fewer devices, and the checkpoint holds whole arrays
    config |= {"init_from": "", "data_init": "none", "devices": 1, "parallel": "pmap"}
    config["optimizer"] = {**EARLIER_OPTIMIZER, **config.get("optimizer", {})}
    if "crop" in config.get("data", {}):
        config["data"] = {**EARLIER_IMAGES, **config["data"]}
    config["optimizer"]["prune"] = pruning.without_file(config["optimizer"].get("prune", ""))
    leaves, about = checkpoint.read(folder)
    run = loop.setup(config, recorded(folder, about), fresh=False)
    if which == "best":
        leaves, _ = checkpoint.read(folder, run.task.headline)
    return run, checkpoint.unflatten(run.state, leaves, f"the checkpoint in {folder}")


def recorded(folder: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what a run has recorded of its data: see `train.data.feed.Feed.record`.

    Runs of version 0.1.0 recorded too little. For these it is None, and a warning says that the data set decides.
    """
    if "identity" in about["data"]:
        return about["data"]
    print(
        f"warning: {folder} is of an earlier version, which did not record the classes and shapes of its data: they "
        "are taken from the data set as it is now",
        file=sys.stderr,
    )
    return None


def restored(run: loop.Run, folder: Path) -> state.TrainState:
    """Returns the state of the last checkpoint in a run's folder, as numpy; raises UserError as `load` does."""
    leaves, _ = checkpoint.read(folder)
    return checkpoint.unflatten(run.state, leaves, f"the checkpoint in {folder}")

"""Runs that were trained: what their folders hold, to evaluate, export and look into."""

from pathlib import Path

from models.errors import UserError, choice_error
from train import checkpoint, loop, prune, state, workdir

# Keys that runs of earlier versions do not have, and what these did
EARLIER = {"lookahead": "", "ema_warmup": False}
EARLIER_OPTIMIZER = {"multiplied": "update"}
CHECKPOINTS = ("last", "best")


def load(folder: str | Path, which: str = "last") -> tuple[loop.Run, state.TrainState]:
    """The run of a folder, set up again, and the state of one of its checkpoints, as numpy.

    Args:
      folder: of the run.
      which: "last", or "best": of those that are kept, the one with the best headline metric on the test set.

    Raises:
      UserError: there is no run or no checkpoint, one of them is damaged, or the run's data are not there.
    """
    if which not in CHECKPOINTS:
        raise choice_error("--checkpoint", which, CHECKPOINTS)
    folder = Path(folder)
    try:
        config = {**EARLIER, **workdir.read_config(folder)}
    except UserError as error:
        raise UserError(f"--workdir={error}") from None
    # What made the run start as it did may be gone, there may be fewer devices, and the checkpoint holds whole arrays
    config |= {"init_from": "", "data_init": "none", "devices": 1, "parallel": "pmap"}
    config["optimizer"] = {**EARLIER_OPTIMIZER, **config.get("optimizer", {})}
    config["optimizer"]["prune"] = prune.without_file(config["optimizer"].get("prune", ""))
    run = loop.setup(config, fresh=False)
    return run, restored(run, folder, best=which == "best")


def restored(run: loop.Run, folder: Path, best: bool = False) -> state.TrainState:
    """The state of the last or of the best checkpoint in a run's folder, as numpy; UserError as of `load`."""
    leaves = checkpoint.read(folder, run.task.headline if best else "")
    return checkpoint.unflatten(run.state, leaves, f"the checkpoint in {folder}")

"""Runs that were trained: what their folders hold, to evaluate, export and look into."""

import json
from pathlib import Path

import ml_collections

from models.errors import UserError
from train import checkpoint, loop, prune, state

# Keys that runs of earlier versions do not have, and what these did
EARLIER = {"lookahead": "", "optimizer.multiplied": "update"}


def load(folder: str | Path) -> tuple[loop.Run, state.TrainState]:
    """The run of a folder, set up again, and the state of its newest checkpoint, as numpy.

    Raises:
      UserError: there is no run or no checkpoint, one of them is damaged, or the run's data are not there.
    """
    folder = Path(folder)
    try:
        config = ml_collections.ConfigDict(json.loads((folder / "config.json").read_text()))
        for key, value in EARLIER.items():
            *sections, name = key.split(".")
            section = getattr(config, sections[0]) if sections else config
            section[name] = section.get(name, value)
        config.init_from, config.data_init = "", "none"  # where it started; that network may be gone
        config.optimizer.prune = prune.without_file(config.optimizer.prune)
        config.devices, config.parallel = 1, "pmap"  # there may be fewer here, and the checkpoint holds whole arrays
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"--workdir={folder}: it is no run's folder: its config.json cannot be read ({error})"
                        ) from None
    run = loop.setup(config)
    return run, restored(run, folder)


def restored(run: loop.Run, folder: Path) -> state.TrainState:
    """The state of the newest checkpoint in a run's folder, as numpy; UserError where it is damaged or missing."""
    saved = checkpoint.Checkpoints(folder / "checkpoints", read_only=True)
    try:
        if not saved.steps():
            raise UserError(f"the run in {folder} has no checkpoint yet")
        leaves, _ = saved.restore(max(saved.steps()))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the newest checkpoint in {folder} is damaged: {error}") from error
    finally:
        saved.close()
    return checkpoint.unflatten(run.state, leaves, f"the checkpoint in {folder}")

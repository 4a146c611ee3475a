"""Reopening of trained runs, to evaluate, export and explain their networks."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.errors import choice_error
from train import published
from train.optim import pruning
from train.run import Network, Run, build_network, build_run
from train.setup.config import Reader, keys
from train.state import TrainState
from train.storage import checkpoint, paths, workdir
from train.storage.remote import fetched

# Keys that configs of earlier versions lack, with the values that reproduce their behavior
EARLIER = {"lookahead": "", "ema_warmup": False}
EARLIER_OPTIMIZER = {"multiplied": "update", "adaptive_clip": 0.0, "sam": ""}
# In the section `data` of runs on images
EARLIER_IMAGES = {"exif": "ignore", "interpolation": "bilinear", "resolutions": "", "repeats": 1}
CHECKPOINTS = ("last", "best")

Leaves = Mapping[str, np.ndarray]


def load_network(folder: str | Path, which: str = "last") -> tuple[Network, TrainState]:
    """Returns the network of a run and its state in a checkpoint, as numpy arrays.

    The optimizer is not built; of its state, only the masks of pruning are read. Class names, shapes and preprocessing
    come from the run's record. A split of the data set is opened, and compared with the record, when it is first used.

    Args:
      folder: the folder of the run, or published weights, see train/published.py.
      which: "last", or "best" for the kept checkpoint with the best headline metric on the test set.

    Raises:
      UserError: there is no run or no checkpoint, or one of them is damaged.
    """
    if published.is_published(folder):
        return published.open_network(folder)
    folder, config, leaves, recorded = _read(folder, which)
    reader = Reader.of(config)
    network = build_network(reader, recorded)
    reader.check_all_read(known=keys())
    if which == "best":
        leaves, _ = checkpoint.read(folder, network.task.headline)
    shapes = _shapes(network, with_average=any(name.startswith("ema/") for name in leaves))
    without_optimizer = {name: leaf for name, leaf in leaves.items() if not name.startswith("opt_state/")}
    state = checkpoint.unflatten(shapes, without_optimizer, f"the checkpoint in {folder}")
    return network, state.replace(opt_state=pruning.saved_masks(leaves))


def load(folder: str | Path, which: str = "last") -> tuple[Run, TrainState]:
    """Returns the whole run of a folder, rebuilt, and its state in a checkpoint; see `load_network`."""
    folder, config, leaves, recorded = _read(folder, which)
    run = build_run(config, recorded, fresh=False)
    if which == "best":
        leaves, _ = checkpoint.read(folder, run.task.headline)
    return run, checkpoint.unflatten(run.state, leaves, f"the checkpoint in {folder}")


def _read(folder: str | Path, which: str) -> tuple[Path, dict[str, Any], Leaves, dict[str, Any] | None]:
    """Returns a run's folder, its config for reopening, the leaves of the last checkpoint, and the data's record.

    The config is changed so that it opens on one device of any machine, without the files that the run started from.
    """
    if which not in CHECKPOINTS:
        raise choice_error("--checkpoint", which, CHECKPOINTS)
    path = fetched(folder)
    config = {**EARLIER, **paths.located(workdir.read_config(path), path)}
    # Files that the run started from may be gone, and there may be fewer devices; checkpoints hold unsharded arrays.
    config |= {"init_from": "", "data_init": "none", "devices": 1, "parallel": "pmap"}
    config["optimizer"] = {**EARLIER_OPTIMIZER, **config.get("optimizer", {})}
    if "crop" in config.get("data", {}):
        config["data"] = {**EARLIER_IMAGES, **config["data"]}
    config["optimizer"]["prune"] = pruning.without_file(config["optimizer"].get("prune", ""))
    leaves, saved = checkpoint.read(path)
    return path, config, leaves, recorded(path, saved)


def _shapes(network: Network, with_average: bool) -> TrainState:
    """Returns the shapes of a state whose opt_state is empty."""
    variables, task_state = network.shapes
    model_state = dict(variables)
    params = model_state.pop("params")
    step, rng = jax.eval_shape(lambda: (jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32)))
    return TrainState(
        step=step,
        params=params,
        model_state=model_state,
        task_state=task_state,
        opt_state={},
        ema={"params": params, "model_state": model_state} if with_average else {},
        rng=rng,
    )


def recorded(folder: Path, saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the data's record in a checkpoint; see `train.data.feed.Feed.record`.

    Runs of version 0.1.0 recorded too little. For these, returns None and prints a warning.

    Args:
      folder: the folder of the run.
      saved: the JSON of a checkpoint.
    """
    if "identity" in saved["data"]:
        return saved["data"]
    print(
        f"warning: {folder} is from an earlier version, which did not record the classes and shapes of its data; they "
        "are taken from the data set as it is now",
        file=sys.stderr,
    )
    return None


def restored(run: Run, folder: Path) -> TrainState:
    """Returns the state of the last checkpoint in a run's folder, as numpy arrays; raises UserError as `load` does."""
    leaves, _ = checkpoint.read(folder)
    return checkpoint.unflatten(run.state, leaves, f"the checkpoint in {folder}")

"""The variables that a run starts with: drawn, loaded from another network, fitted to the data, or quantized."""

import sys
from typing import Any

import jax

from models.errors import choice_error
from models.layers import init
from train.data.feed import Feed
from train.optim import weight_sharing
from train.setup import pretrained
from train.setup.config import Reader
from train.tasks.base import Task

DATA_INITS = ("none", "lsuv", "whiten")
WHITENED_IMAGES = 5000  # number of images whose patches data_init=whiten uses


def variables(
    config: Reader, task: Task, feed: Feed, part: int, sharing: weight_sharing.Plan | None = None
) -> tuple[Any, Any, str | None]:
    """Returns the network's variables, the task's state, and a digest of the arrays of init_from.

    The digest is None without init_from.

    Args:
      config: a whole config; the keys seed, init_from, init_new and data_init are read.
      task: the task, which draws the variables.
      feed: the data.
      part: number of images that batch norm sees at a time.
      sharing: which weights share values from the first step on; None for none.

    Raises:
      UserError: a value is unknown, or arrays do not fit the network.
    """
    if config.data_init not in DATA_INITS:
        raise choice_error("data_init", config.data_init, DATA_INITS)
    model, key, digest = task.model, jax.random.key(config.seed), None
    new = [start for start in config.init_new.split("|") if start]
    drawn, state = task.init(key, feed.inputs)
    if config.init_from:
        source = pretrained.load(config.init_from)
        if feed.unit == "images" and (line := pretrained.differences(source, config.data)):
            print(line, file=sys.stderr)
        drawn, digest = pretrained.start(model, drawn, source, new), source.digest()
    if config.data_init == "lsuv":
        drawn = init.lsuv(model, drawn, next(feed.training_images(1, part)), jax.random.fold_in(key, 2))
    if config.data_init == "whiten":
        images = next(feed.training_images(1, min(WHITENED_IMAGES, feed.train_count)))
        drawn = init.whiten(model, drawn, images)
    if sharing:
        drawn = {**drawn, "params": sharing.snap(drawn["params"])}
    return drawn, state, digest

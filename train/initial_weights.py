"""The variables that a run starts with: drawn, taken from another network, fitted to the data, at few values."""

from typing import Any

import jax

from models.errors import UserError, choice_error
from models.gated import GatedResNet
from models.layers import init
from train import pretrained
from train.optim import weight_sharing

DATA_INITS = ("none", "lsuv", "whiten")
WHITENED_IMAGES = 5000  # whose patches data_init=whiten looks at


def variables(
    config: Any, model: Any, task: Any, feed: Any, part: int, sharing: weight_sharing.Plan | None
) -> tuple[Any, Any, str | None]:
    """The network's variables, the task's state, and a digest of the arrays of init_from, None where there is none.

    Args:
      config: of the run; its keys seed, init_from, init_new and data_init are read.
      model, task, feed: of the run.
      part: images that batch norm sees at a time.
      sharing: which weights share values from the first step on.

    Raises:
      UserError: what does not fit the network or each other.
    """
    if config.data_init not in DATA_INITS:
        raise choice_error("data_init", config.data_init, DATA_INITS)
    if config.init_from and config.data_init != "none":
        raise UserError(f"data_init={config.data_init} would undo init_from={config.init_from}")
    if config.data_init == "lsuv" and isinstance(model, GatedResNet):
        raise UserError("data_init=lsuv would scale the kernels of gates, which start near 0 so that they are open")
    key, new, digest = jax.random.key(config.seed), [part for part in config.init_new.split("|") if part], None
    made, state = task.init(key, feed.inputs)
    if config.init_from:
        found = pretrained.load(config.init_from)
        made, digest = pretrained.start(model, made, found, new), found.digest()
    if config.data_init == "lsuv":
        made = init.lsuv(model, made, next(feed.training_images(1, part)), jax.random.fold_in(key, 2))
    if config.data_init == "whiten":
        made = init.whiten(model, made, next(feed.training_images(1, min(WHITENED_IMAGES, len(feed.train)))))
    if sharing:
        made = {**made, "params": sharing.snap(made["params"])}
    return made, state, digest

"""Hooks, additions to training that the config names: hooks="recalibrate(200)|figures"."""

from typing import Any

from train.setup import spec

# Modules are imported when a config names them, because Matplotlib and sacreBLEU are slow to import.
HOOKS = {
    "recalibrate": "train.hooks.recalibrate:Recalibrate",
    "figures": "train.hooks.figures:Figures",
    "bleu": "train.hooks.translation:Bleu",
    "average_precision": "train.hooks.average_precision:AveragePrecision",
    "sparsity": "train.hooks.sparsity:Sparsity",
    "sensitivity": "train.hooks.sensitivity:Sensitivity",
    "wandb": "train.hooks.trackers:Wandb",
    "mlflow": "train.hooks.trackers:MLflow",
}


def create(text: str) -> list[Any]:
    """Returns the hooks (`train.run.Hook`) that the config's value of `hooks` names.

    Raises:
      UserError: a hook is unknown, or its arguments do not fit.
    """
    return [spec.resolve("hooks", call, HOOKS) for call in spec.parse("hooks", text)]

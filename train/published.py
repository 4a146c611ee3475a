"""Published networks as if they were runs: `models.load`'s networks with their own preprocessing and classes.

Commands that open a run (predict, explain, export) also open weights by name, such as hf:timm/resnet50.a1_in1k, and
files of `python -m models.weights import` that hold a preprocessing. These have no data set.
"""

import functools
import runpy
from pathlib import Path
from typing import Any

import jax.numpy as jnp

import models
from models.errors import UserError
from models.weights import hub
from train.run import Network, build_network
from train.setup.config import ROOT
from train.state import TrainState
from train.storage.files import expanded


def is_published(where: str | Path) -> bool:
    """Returns True for a name of published weights, and for a .safetensors file."""
    return hub.is_name(where) or (str(where).lower().endswith(".safetensors") and expanded(where).is_file())


def open_network(where: str | Path) -> tuple[Network, TrainState]:
    """Returns a published network and its state, as `train.restore.load_network` does for a run.

    Raises:
      UserError: There are no such weights (see `models.load`), a file does not say how images are prepared, or the
        network has no trained head.
    """
    model, variables, card = models.load(str(where) if hub.is_name(where) else str(expanded(where)))
    if card["head"] == "drawn":
        raise UserError(
            f"{where} has no classes: it is an encoder without a head, to be trained by --config.init_from={where} or "
            "models.load"
        )
    if card["preprocessing"] is None:
        raise UserError(
            f"{where} does not say how images are prepared; import it by its name (python -m models.weights list)"
        )
    network = build_network(_config(str(where), card), _record(card))
    parameters = dict(variables)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=parameters.pop("params"),
        model_state=parameters,
        task_state={},
        opt_state={},
        ema={},
        rng=jnp.zeros(2, jnp.uint32),
    )
    return network, state


@functools.cache
def _base() -> Any:
    return runpy.run_path(str(ROOT / "configs" / "base.py"))["base"]


def _config(where: str, card: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a run of this network; "weights" is in no run's."""
    facts, config = card["preprocessing"], _base()().to_dict()
    fields = {name: value for name, value in card["fields"].items() if name not in ("num_classes", "image_size")}
    data = {name: facts[name] for name in ("channels", "crop", "eval_crop", "exif", "interpolation")}
    data |= {
        "source": f"weights:{where}",
        "image_size": facts["size"],
        "mean": tuple(facts["mean"]),
        "std": tuple(facts["std"]),
    }
    return {
        **config,
        "duration": "1 steps",
        "batch_size": 1,
        "eval_batch_size": 1,
        "devices": 1,
        "hooks": "",
        "model": {"name": card["model"], **fields},
        "data": {**config["data"], **data},
        "weights": {"source": card["source"], "license": card["license"]},
    }


def _record(card: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run would have recorded about its data; see `train.data.feed.Feed.record`."""
    facts = card["preprocessing"]
    names = ("crop", "size", "channels", "eval_crop", "exif", "interpolation", "exact")
    decoder = {name: facts[name] for name in names}
    return {
        "classes": list(card["labels"]),
        "identity": {"train": {"images": 1}, "test": {"images": 0}},
        "image_shape": facts["shape"],
        "label_shape": [],
        "decoder": decoder,
        "background": "",
    }

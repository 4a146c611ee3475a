"""Pretrained networks to start from: runs of this project, and imported weights of other libraries."""

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from models import weights
from models.compress import file
from models.errors import UserError
from models.layers import int8, low_bit
from models.weights import hub
from train.export import cards
from train.setup.config import Reader
from train.storage import checkpoint, paths, workdir
from train.storage.remote import fetched

SHOWN = 5  # number of mismatched arrays that an error lists


class Pretrained(NamedTuple):
    """A pretrained network.

    Attributes:
      where: the path or name that it was loaded from.
      name: the name of the network, or None if a file does not say.
      arrays: arrays by this project's paths.
      preprocessing: how its images were prepared (models/weights/preprocessing.py), or None if that is not known.
      facts: what else is known of it, for `train.setup.teacher`: "fields" of `models.create`, "labels" (names of the
        classes), "task", and "images", the "shape", "mean" and "std" of its input.
    """

    where: str
    name: str | None
    arrays: dict[str, np.ndarray]
    preprocessing: dict[str, Any] | None = None
    facts: Mapping[str, Any] = {}

    def digest(self) -> str:
        """Returns a digest of the names and bits of all arrays."""
        return digest(self.arrays)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a digest of the names and bits of arrays."""
    sums = hashlib.sha256()
    for name, leaf in sorted(arrays.items()):
        sums.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return sums.hexdigest()[:16]


def load(where: str | Path, key: str = "init_from") -> Pretrained:
    """Loads a pretrained network.

    From a run, the newest checkpoint is read, and of it the averaged weights if there are any, which are the weights
    that the run evaluates.

    Args:
      where: the folder of a run or of an exported network (`python -m train.export`, in a format that holds weights), a
        .safetensors file (`python -m models.weights import`), a compressed file, or published weights by name
        (models/weights/hub.py).
      key: the setting that names it, for errors.

    Raises:
      UserError: there is no such network, or it is damaged.
    """
    try:
        if hub.is_name(where):
            return _load_published(str(where))
        path = fetched(where)
        if path.is_dir():
            return _load_export(path) if cards.is_in(path) else _load_run(path)
        if path.suffix.lower() == file.SUFFIX and path.exists():
            return _load_compressed(path)
    except UserError as error:
        raise UserError(f"{key}={error}") from None
    if not path.exists():
        raise UserError(
            f"{key}={where}: there is no such run or file; allowed: the folder of a run or of an exported network, "
            f"a {file.SUFFIX} or a .safetensors file, or {hub.FORMS}"
        )
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"{key}={where}: must be the folder of a run or of an exported network, a {file.SUFFIX} or a "
            ".safetensors file; convert other files by python -m models.weights import"
        )
    stored = weights.description(path)
    facts = {name: stored[name] for name in ("fields", "labels", "head") if name in stored}
    if images := stored.get("preprocessing"):
        facts["images"] = images
    return Pretrained(str(where), stored.get("model"), weights.read(path), images, facts)


def _load_published(where: str) -> Pretrained:
    """Loads weights by name; a head that had to be drawn is left out."""
    _, variables, card = hub.load(where)
    arrays = weights.flatten(variables)
    if card["head"] == "drawn":
        arrays = {name: array for name, array in arrays.items() if not name.startswith("head/")}
    facts = {name: card[name] for name in ("fields", "labels", "head")} | {"images": card["preprocessing"]}
    return Pretrained(where, card["model"], arrays, card["preprocessing"], facts)


def differences(pretrained: Pretrained, data: Reader) -> str:
    """Returns a warning if a run normalizes or resizes images in another way than its pretrained network, or ""."""
    if pretrained.preprocessing is None:
        return ""
    texts = []
    for name in ("mean", "std", "interpolation"):
        theirs, ours = pretrained.preprocessing[name], getattr(data, name)
        ours = ours if isinstance(ours, str) else [float(number) for number in ours]
        if (ours != theirs) if isinstance(ours, str) else not _same_numbers(ours, theirs):
            texts.append(f"data.{name}={_text(ours)} instead of {_text(theirs)}")
    return f"warning: {pretrained.where} was trained on other images: {'; '.join(texts)}" if texts else ""


def _same_numbers(ours: list[float], theirs: list[float]) -> bool:
    return bool(np.allclose(ours, theirs, atol=5e-4)) if len(ours) in (1, len(theirs)) else False


def _text(value: str | list[float]) -> str:
    return value if isinstance(value, str) else " ".join(f"{number:g}" for number in value)


def _load_export(folder: Path) -> Pretrained:
    content = cards.read(folder)
    arrays = weights.flatten(cards.network(folder, content)[1])
    facts = {
        "fields": content["fields"],
        "labels": content["labels"],
        "task": "classify" if content["probabilities"] == "softmax" else "multi_label",
        "images": content["preprocessing"],
    }
    return Pretrained(str(folder), content["architecture"], arrays, facts=facts)


def _load_compressed(path: Path) -> Pretrained:
    data = file.read(path)
    arrays, about = file.load(data, path)[1], file.description(data)
    return Pretrained(str(path), about["model"], weights.flatten(arrays), facts={"fields": about["fields"]})


def _load_run(folder: Path) -> Pretrained:
    config, (leaves, saved) = workdir.read_config(folder), checkpoint.read(folder)
    start = "ema/" if any(path.startswith("ema/") for path in leaves) else ""
    arrays = {}
    for part in ("params/", "model_state/"):
        # from_arrays expects paths without the collection, e.g. "stem_norm/mean".
        arrays |= {
            path.removeprefix(start + part): leaf for path, leaf in leaves.items() if path.startswith(start + part)
        }
    arrays = {path.removeprefix("batch_stats/").removeprefix(f"{int8.RANGES}/"): leaf for path, leaf in arrays.items()}
    return Pretrained(str(folder), config.get("model", {}).get("name"), arrays, facts=_of_run(folder, config, saved))


def _of_run(folder: Path, config: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `Pretrained.facts` of a run, by its config and the JSON of its checkpoint."""
    config, record = paths.located(config, folder), saved.get("data", {})
    facts: dict[str, Any] = {
        "fields": {name: value for name, value in config.get("model", {}).items() if name != "name"},
        "task": config.get("task", {}).get("name", "classify"),
    }
    if "classes" in record and "image_shape" in record:  # neither of text, nor of version 0.1.0
        shape, data = record["image_shape"], config["data"]
        facts["labels"] = record["classes"]
        facts["fields"] |= {"num_classes": len(record["classes"]), "image_size": shape[0]}
        facts["images"] = {"shape": shape, "mean": data["mean"], "std": data["std"]}
    return facts


def _check_head(pretrained: Pretrained, model: nn.Module, error: weights.Mismatch) -> None:
    """Raises a UserError that suggests init_new if nothing but the number of classes does not fit."""
    heads = [match for line in error.lines if (match := re.match(r"! (exit\d+/)?head/", line))]
    kernel = pretrained.arrays.get("head/kernel", pretrained.arrays.get("exit1/head/kernel"))  # some have no bias
    if kernel is not None and len(heads) == len(error.lines):
        new = "|".join(sorted({"*/head" if head[1] else "head" for head in heads}, reverse=True))
        what = "its head" if new == "head" else "its heads"
        raise UserError(
            f"init_from={pretrained.where} has {kernel.shape[-1]} classes, but the data have "
            f"{getattr(model, 'num_classes', '')}: init_new={new} initializes {what} randomly"
        ) from None


def start(model: nn.Module, variables: Any, pretrained: Pretrained, new: Collection[str]) -> Any:
    """Returns the pretrained variables to start from, except for the parts `new`, which keep their drawn values.

    Ternary layers also load full-precision kernels, from which their scales are computed. The ranges of int8 layers may
    be missing, and start empty.

    Args:
      model: the network to initialize.
      variables: its drawn variables.
      pretrained: see `load`.
      new: prefixes of paths, e.g. "head" if the classes differ.

    Raises:
      UserError: the arrays do not fit the network, or `new` names no part of it. The message lists some of the arrays
        that are missing (-), unexpected (+) or of a different shape (!).
    """
    drawn = weights.flatten(variables)
    arrays = low_bit.with_scales(pretrained.arrays, drawn)
    arrays = int8.with_ranges(arrays, {name: leaf.shape for name, leaf in drawn.items()})
    try:
        return weights.from_arrays(model, arrays, "ablate", new=new, drawn=variables)
    except weights.Mismatch as error:
        _check_head(pretrained, model, error)
        more = f" and {len(error.lines) - SHOWN} more" if len(error.lines) > SHOWN else ""
        raise UserError(
            f"init_from={pretrained.where}, a {pretrained.name or 'network'}, does not fit this {type(model).__name__}"
            f": {'; '.join(error.lines[:SHOWN])}{more} (parts named by init_new are initialized randomly)"
        ) from None

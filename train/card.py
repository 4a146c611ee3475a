"""What an exported network says of itself: card.json, beside the file of its format (train/export)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

import models
from models import weights
from models.compress import file
from models.errors import UserError, has_type

NAME = "card.json"
_TYPES = {"format": str, "file": str, "architecture": str, "fields": dict, "inputs": list, "preprocessing": dict,
          "labels": list, "probabilities": str, "folded": list}
_PREPROCESSING = {"crop": str, "size": int, "channels": int, "eval_crop": float, "shape": list, "mean": list,
                  "std": list, "exif": str}
_EARLIER = {"exif": "ignore"}  # preprocessing of cards that do not say it


def is_in(folder: Path) -> bool:
    """Whether the folder is an exported network."""
    return (folder / NAME).is_file()


def read(folder: Path) -> dict[str, Any]:
    """The card of an exported network; UserError where it is missing or damaged.

    Keys: "format", "file" (beside the card), "architecture" and "fields" (for `models.create`), "inputs" (shape of one
    example [1, H, W, C]), "ingredients", "parameters", "mult_adds", "preprocessing", "labels", "probabilities"
    ("softmax" or, of several classes an image, "sigmoid"), "folded", "views" (over which
    the run's own evaluation averages; the file is the network alone), "metrics" (of that evaluation), "data", "config",
    "license", "made", "usage", "verified"; of the format torch also "torch": library, name and arguments there.
    """
    try:
        found = dict(json.loads((folder / NAME).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: it is no exported network: its {NAME} cannot be read ({error})") from None
    if isinstance(found.get("preprocessing"), dict):
        found["preprocessing"] = {**_EARLIER, **found["preprocessing"]}
    for wanted, parts in ((_TYPES, found), (_PREPROCESSING, found.get("preprocessing")), (
            {"library": str} if found.get("format") == "torch" else {}, found.get("torch"))):
        for key, kind in wanted.items():
            if not isinstance(parts, dict) or not has_type(parts.get(key), kind):
                raise UserError(f"{folder}: its {NAME} is damaged: '{key}' must be of type {kind.__name__}")
    if Path(found["file"]).name != found["file"] or not (folder / found["file"]).is_file():
        raise UserError(f"{folder}: there is no {found['file']} in it")
    return found


def network(folder: Path, card: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a format that holds weights, and its variables.

    Raises:
      UserError: the format holds a program; the file is damaged, or of another network than the card's.
    """
    path, kind = folder / card["file"], card["format"]
    if kind == "compressed":
        return file.load(file.read(path), path)
    if kind not in ("safetensors", "torch"):
        raise UserError(f"{folder} holds a program ({kind}), in which weights have no names; safetensors, torch "
                        "and compressed hold weights")
    model = models.create(card["architecture"], **card["fields"])
    layout = card["torch"]["library"] if kind == "torch" else "ablate"
    return model, weights.from_arrays(model, weights.read(path), layout, inputs=card["inputs"])

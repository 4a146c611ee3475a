"""What an exported network says of itself: card.json, beside the file of its format (train/export)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

import models
from models import weights
from models.compress import file
from models.errors import UserError

NAME = "card.json"


def is_in(folder: Path) -> bool:
    """Whether the folder is an exported network."""
    return (folder / NAME).is_file()


def read(folder: Path) -> dict[str, Any]:
    """The card of an exported network; UserError where it is missing or damaged.

    Keys: "format", "file" (beside the card), "architecture" and "fields" (for `models.create`), "inputs" (shape of one
    example [1, H, W, C]), "ingredients", "parameters", "mult_adds", "preprocessing", "labels", "probabilities"
    ("softmax" or, of several classes an image, "sigmoid"), "folded", "metrics", "data", "config", "license", "made",
    "usage", "verified"; of the format torch also "torch": library, name and arguments there.
    """
    try:
        found = json.loads((folder / NAME).read_text())
        missing = [key for key in ("format", "file", "architecture", "fields", "inputs", "preprocessing", "labels",
                                   "probabilities", "folded") if key not in found]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: it is no exported network: its {NAME} cannot be read ({error})") from None
    if missing:
        raise UserError(f"{folder}: its {NAME} does not say {', '.join(missing)}")
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

"""card.json, which describes an exported network, beside the file with the network itself."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

import models
from models import weights
from models.compress import file, two_four
from models.errors import UserError
from models.weights.foreign import Damaged
from train.data.decode import CROPS
from train.storage.files import read_json, sha256, write_json

NAME = "card.json"


def _object(kinds: Mapping[str, Mapping[str, Any]], **optional: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(kinds), "properties": {**kinds, **optional}}


_TEXT, _NUMBER, _SIZE = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
_TEXTS, _NUMBERS = {"type": "array", "items": _TEXT}, {"type": "array", "items": _NUMBER}
_SIZES = {"type": "array", "items": _SIZE}


def _shape(least: int, most: int) -> dict[str, Any]:
    return {**_SIZES, "minItems": least, "maxItems": most}


SCHEMA = {
    **_object(
        {
            "format": _TEXT,
            "file": {"type": "string", "pattern": r"^[^/\\]+$"},
            "architecture": _TEXT,
            "fields": {"type": "object"},
            "inputs": _shape(4, 4),
            "labels": _TEXTS,
            "probabilities": {"enum": ["softmax", "sigmoid"]},
            "folded": _TEXTS,
            "preprocessing": _object(
                {
                    "crop": {"enum": list(CROPS)},
                    "size": _SIZE,
                    "channels": _SIZE,
                    "eval_crop": _NUMBER,
                    "shape": _shape(3, 3),
                    "mean": _NUMBERS,
                    "std": _NUMBERS,
                    "exif": {"enum": ["apply", "ignore"]},
                },
                interpolation={"enum": ["bilinear", "bicubic"]},
                exact={"type": "boolean"},
            ),
            "sha256": {"type": "object", "additionalProperties": _TEXT},
            "card_sha256": _TEXT,
        },
        exits=_object({"thresholds": _NUMBERS}),
    ),
    "allOf": [
        {"if": {"properties": {"format": {"const": "torch"}}}, "then": _object({"torch": _object({"library": _TEXT})})},
        {
            "if": {"properties": {"format": {"const": "semi_structured"}}},
            "then": _object({"packed": {"type": "object", "additionalProperties": _shape(2, 4)}}),
        },
    ],
}


def is_in(folder: Path) -> bool:
    """Returns True if the folder is an exported network."""
    return (folder / NAME).is_file()


def write(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the card of a folder, with the checksums of its other files and of the card itself, and returns it."""
    files = sorted(path for path in folder.iterdir() if path.name != NAME)
    content = json.loads(json.dumps(dict(card)))  # as it is read back
    content["sha256"] = {path.name: sha256(path) for path in files}
    content["card_sha256"] = _digest(content)
    write_json(folder / NAME, content)
    return content


def read(folder: Path) -> dict[str, Any]:
    """Reads the card of an exported network, and compares the files with their checksums.

    Returns:
      The card. Its keys are:
        "format", "file": the format, and the name of the file beside the card.
        "architecture", "fields": arguments of `models.create`.
        "inputs": shape of one example, [1, H, W, C].
        "ingredients", "parameters", "mult_adds": facts about the network.
        "preprocessing": from pixels to the network's input.
        "labels": names of the classes; for ImageNet's ids, their words.
        "probabilities": "softmax" or, for several classes per image, "sigmoid".
        "folded": operations that are part of the program.
        "views": the views over which the run's own evaluation averages; the file holds only the network.
        "metrics": results of that evaluation.
        "data", "config": the data set and the config of the run.
        "license", "made", "usage": the license, the environment of the export, and code that opens the file.
        "verified": the comparison with the run's network.
        "sha256", "card_sha256": checksums by file, and of all other keys.
        "quantized": of a quantized network, from `train.export.quantize.quantize`.
        "exits": where images leave, from `train.adaptive.entry`.
        "torch": of the format torch, library, name and arguments there.
        "packed": of the format semi_structured, shapes of the packed kernels by name.

    Raises:
      UserError: the card or a file is missing, damaged, or differs from the export.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} is not an exported network: there is no {NAME} in it")
    if "card_sha256" not in read_json(path):
        raise UserError(f"{path} has no checksums: it is of an earlier version; export the network again")
    card = read_json(path, SCHEMA)
    if card["card_sha256"] != _digest(card):
        raise UserError(f"{path} is not what was exported: its checksum differs; export the network again")
    for name, digest in {card["file"]: "", **card["sha256"]}.items():
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{folder}: there is no {name} in it")
        if sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is damaged: its checksum is not that of the export; export it again")
    return card


def _digest(card: Mapping[str, Any]) -> str:
    content = {key: value for key, value in card.items() if key != "card_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def network(folder: Path, card: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a format that holds weights, and its variables.

    Raises:
      UserError: the format holds a program, the file is damaged, or it does not fit the card's network.
    """
    path, kind = folder / card["file"], card["format"]
    if kind == "compressed":
        return file.load(file.read(path), path)
    if kind not in ("safetensors", "semi_structured", "torch"):
        raise UserError(
            f"{folder} holds a program ({kind}), which does not name its weights; export "
            "safetensors, torch or compressed"
        )
    model = models.create(card["architecture"], **card["fields"])
    layout = card["torch"]["library"] if kind == "torch" else "ablate"
    arrays = weights.read(path)
    if kind == "semi_structured":
        shapes = {name: tuple(shape) for name, shape in card["packed"].items()}
        try:
            arrays = two_four.load(arrays, shapes)
        except Damaged as error:
            raise UserError(f"{path}: {error}") from None
    return model, weights.from_arrays(model, arrays, layout, inputs=card["inputs"])

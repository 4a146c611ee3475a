"""Preprocessing that belongs to weights: size, crop, interpolation and normalization of their images.

It is a dictionary with the keys of a card's "preprocessing" (train/export/cards.py). Sources of it are the config.json
of timm, the table of tags, and the metadata of a file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.weights.foreign import Damaged

CROPS = ("resize", "whole")
INTERPOLATIONS = ("bilinear", "bicubic")
LARGEST = 4096  # height and width of images


def create(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: str = "resize",
    share: float = 0.875,
    interpolation: str = "bilinear",
    exact: bool = True,
) -> dict[str, Any]:
    """Returns the description of a preprocessing.

    Args:
      size: Height and width of the images.
      mean: Mean per channel, of pixels in [0, 1].
      std: Standard deviation per channel.
      crop: "resize" crops the center, "whole" squeezes the whole image to a square.
      share: Side of the central crop, as a share of the shorter side.
      interpolation: One of INTERPOLATIONS, both with antialiasing.
      exact: Whether pixels are those of torchvision to the bit; see train/data/decode.py.

    Raises:
      Damaged: A value is not allowed.
    """
    channels = len(mean)
    _need(type(size) is int and 1 <= size <= LARGEST, f"images of {size} pixels; allowed: 1 to {LARGEST}")
    _need(channels in (1, 3) and len(std) == channels, f"a mean of {channels} and a std of {len(std)} channels")
    _need(all(map(_is_number, (*mean, *std, share))), "a mean, std or crop share that is no number")
    _need(all(number > 0 for number in std), f"std={tuple(std)}, which must be above 0")
    _need(crop in CROPS, f"the crop '{crop}'; allowed: {', '.join(CROPS)}")
    _need(0 < share <= 1, f"a crop share of {share}; allowed: above 0 to 1")
    _need(interpolation in INTERPOLATIONS, f"the interpolation '{interpolation}'; allowed: {', '.join(INTERPOLATIONS)}")
    return {
        "crop": crop,
        "size": size,
        "channels": channels,
        "eval_crop": float(share),
        "interpolation": interpolation,
        "exact": exact,
        "exif": "apply",
        "shape": [size, size, channels],
        "background": "",
        "mean": list(map(float, mean)),
        "std": list(map(float, std)),
        "pixels": "uint8, [N, H, W, C]" + ", RGB" * (channels == 3),
        "normalized": "(pixels / 255 - mean) / std",
    }


def crop_share(size: int, resized: int) -> float:
    """Returns the share of a central crop before which the shorter side has exactly `resized` pixels."""
    share = size / resized
    return share if int(size / share) == resized else math.nextafter(share, 0)


def checked(literals: Any) -> dict[str, Any]:
    """Returns a description that a file holds; raises Damaged unless `create` could have returned it."""
    _need(isinstance(literals, Mapping), "a preprocessing that is no dictionary")
    try:
        values = {name: literals[name] for name in ("size", "mean", "std", "crop", "eval_crop", "interpolation")}
    except KeyError as error:
        raise Damaged(f"its preprocessing has no {error}") from None
    _need(all(isinstance(values[name], (list, tuple)) for name in ("mean", "std")), "a mean or std that is no list")
    values["share"] = values.pop("eval_crop")
    return create(**values, exact=bool(literals.get("exact", True)))


def of_card(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the evaluation of a run, as a card describes it, in the form of `create`; None if it is not square."""
    height, width, channels = facts["shape"]
    if height != width or channels not in (1, 3):
        return None
    crop = "whole" if facts["crop"] in ("whole", "none") or height != facts["size"] else "resize"
    mean, std = ([*facts[name]] * (channels if len(facts[name]) == 1 else 1) for name in ("mean", "std"))
    how = facts.get("interpolation", "bilinear"), facts.get("exact", False)  # earlier cards lack both
    return create(height, mean, std, crop, facts["eval_crop"], *how)


class Config:
    """A network as timm's config.json describes it.

    Attributes:
      architecture: timm's name of the network.
      classes: Number of classes; 0 for a network without a head.
      preprocessing: See `create`.
      labels: Names of the classes, or ().
      pool: timm's name of the pooling before the head, "avg" or "token", or "" if the file does not say.
      license: License of the weights, or "".
      own: The network's name and fields here, in a repository that this project wrote; {} in others.
    """

    def __init__(self, path: Path):
        """Reads the file; raises Damaged, or any other error of damaged JSON (see `foreign.reading`)."""
        content = json.loads(path.read_bytes())
        _need(isinstance(content, dict) and isinstance(content.get("architecture"), str), "no architecture in it")
        nested = content.get("pretrained_cfg", content)  # older files have one level
        _need(isinstance(nested, dict), "a pretrained_cfg that is no object")
        self.architecture: str = content["architecture"]
        self.own: dict[str, Any] = content.get("ablate", {})
        _need(isinstance(self.own, dict), "an entry 'ablate' that is no object")
        self.classes = content.get("num_classes", nested.get("num_classes", 1000))
        _need(type(self.classes) is int and self.classes >= 0, f"num_classes={self.classes}")
        arguments = content.get("model_args") or {}
        own = self.own.get("preprocessing")
        self.preprocessing = _of_timm(nested, arguments) if own is None else checked(own)
        self.pool = str(arguments.get("global_pool") or content.get("global_pool") or "")
        self.labels = _labels(content, nested, self.classes)
        self.license = nested.get("license") or ""
        _need(isinstance(self.license, str), f"license={self.license}")
        _need(not nested.get("label_offset"), f"label_offset={nested.get('label_offset')}, which is not supported")


# Arguments of timm's networks that change neither weights nor logits, or that the config's other values tell
_HARMLESS = ("img_size", "in_chans", "num_classes", "global_pool", "drop_rate", "drop_path_rate", "proj_drop_rate")


def _of_timm(config: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    _need(isinstance(arguments, dict), "model_args that are no object")
    others = [name for name in arguments if name not in _HARMLESS]
    _need(not others, f"model_args that networks here do not have: {', '.join(others)}")
    shape = config.get("input_size", [3, 224, 224])
    _need(isinstance(shape, list) and len(shape) == 3 and shape[1] == shape[2], f"input_size={shape}")
    size: Any = arguments.get("img_size", shape[1])
    size = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
    mode, share = config.get("crop_mode") or "center", config.get("crop_pct") or 0.875
    _need(mode in ("center", "squash"), f"crop_mode={mode}; allowed: center, squash")
    _need(mode != "squash" or share == 1, f"crop_mode=squash with crop_pct={share}; allowed: 1")
    mean, std = config.get("mean", [0.485, 0.456, 0.406]), config.get("std", [0.229, 0.224, 0.225])
    _need(isinstance(mean, list) and isinstance(std, list), f"mean={mean}, std={std}")
    crop = "whole" if mode == "squash" else "resize"
    return create(size, mean, std, crop, share, config.get("interpolation") or "bilinear")


def _labels(content: Mapping[str, Any], nested: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    names = content.get("label_names") or nested.get("label_names") or ()
    texts = content.get("label_descriptions") or nested.get("label_descriptions") or {}
    if not isinstance(names, (list, tuple)) or len(names) != classes or not all(isinstance(n, str) for n in names):
        return ()  # they are optional, and older files have other forms
    texts = texts if isinstance(texts, dict) else {}
    return tuple(str(texts.get(name, name)) for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _need(is_right: bool, what: str) -> None:
    if not is_right:
        raise Damaged(f"it has {what}")

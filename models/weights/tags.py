"""The table of pretrained weights of networks that are ours, tags.csv; tests/golden/make_tags.py writes it."""

import csv
import fnmatch
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from models.weights import preprocessing

_FOLDER = Path(__file__).parent
# Licenses that allow any use
OPEN = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "isc", "mit", "unlicense")


class Tag(NamedTuple):
    """Pretrained weights.

    Attributes:
      name: What commands take: "hf:timm/resnet50.a1_in1k", "torchvision:resnet50/IMAGENET1K_V2", or a URL.
      network: The network's name here.
      fields: Its fields, without classes and image size.
      classes: Number of classes; 0 without a head.
      license: SPDX identifier, or "" if its source states none.
      top1: Published accuracy on ImageNet-1k, in percent, or "".
      by: Who measured it, "timm" or "torchvision", or "".
      preprocessing: See preprocessing.py.
      file: URL of the file; "" on the hub.
    """

    name: str
    network: str
    fields: dict[str, Any]
    classes: int
    license: str
    top1: str
    by: str
    preprocessing: dict[str, Any]
    file: str


@functools.cache
def table() -> dict[str, Tag]:
    """Returns all tags by name."""
    with (_FOLDER / "tags.csv").open(newline="") as file:
        return {row["tag"]: _tag(row) for row in csv.DictReader(file)}


def _tag(row: dict[str, str]) -> Tag:
    mean, std = (tuple(map(float, row[name].split())) for name in ("mean", "std"))
    size, (share, _, resized) = int(row["size"]), row["share"].partition("/")
    part = preprocessing.crop_share(size, int(resized)) if resized else float(share)
    facts = preprocessing.create(size, mean, std, row["crop"], part, row["interpolation"])
    return Tag(
        row["tag"],
        row["network"],
        json.loads(row["fields"] or "{}"),
        int(row["classes"]),
        row["license"],
        row["top1"],
        row["by"],
        facts,
        row["file"],
    )


def matching(pattern: str = "*") -> list[Tag]:
    """Returns the tags whose name or network matches a pattern such as "*resnet50*"; a plain text may be anywhere."""
    pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [
        tag
        for tag in table().values()
        if fnmatch.fnmatchcase(tag.name, pattern) or fnmatch.fnmatchcase(tag.network, pattern)
    ]


@functools.cache
def imagenet() -> tuple[str, ...]:
    """Returns the names of ImageNet-1k's classes, as in torchvision."""
    return tuple((_FOLDER / "imagenet1k.txt").read_text().splitlines())


def labels(classes: int, names: Iterable[str] = ()) -> tuple[str, ...]:
    """Returns `names`, or if there are none, those of ImageNet-1k for 1000 classes and numbers for other counts."""
    return tuple(names) or (imagenet() if classes == 1000 else tuple(map(str, range(classes))))

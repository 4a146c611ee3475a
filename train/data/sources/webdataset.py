"""Shards of webdataset: tar files in which the members NAME.jpg and NAME.cls are one example."""

import functools
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import glob as files_matching
from glob import has_magic
from pathlib import Path

import numpy as np

from models.errors import UserError
from models.weights.foreign import Damaged
from train.data import hold_out, identity
from train.data.options import Options
from train.data.source import Source
from train.data.sources import class_names, listing, tar_index, tar_members
from train.storage.files import is_remote
from train.storage.remote import fetched

SEPARATOR = "::"  # between patterns, as in webdataset
LABELS = ("cls", "json", "txt")  # endings of members that hold a label; the first that is there counts
_LARGEST = 1 << 20  # bytes of such a member
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 100_000
_SHOWN = 3


def source(patterns: str, split: str, options: Options) -> Source:
    """Returns a split of a set of shards.

    Shards belong to the split that their names or else their folders tell ("train-{000..146}.tar", "val/0.tar"), and to
    the training split if none of them tell one.

    Args:
      patterns: shards with ranges such as {000..146} or {a,b}, a glob, or a folder of shards; several are separated by
        "::".
      split: see `hold_out.opened`.
      options: see `Options`.

    Raises:
      UserError: shards are missing or damaged, or an example has no image, no label, or a label beyond the classes.
    """
    title = f"webdataset {patterns}"
    shards = _by_split([path for pattern in patterns.split(SEPARATOR) for path in _paths(pattern)])

    @functools.cache
    def index(name: str) -> tar_index.Index:
        return tar_index.index("webdataset", shards[name], _scan)

    def open_split(name: str) -> tar_index.TarSource:
        first, own = index("train" if "train" in shards else name), index(name)
        classes, beside = class_names.classes(first.groups, [Path(path) for path in shards[name]])
        numbered = class_names.are_numbers(first.groups)
        labels = class_names.labels(own.groups, classes, numbered)[own.code]
        rows = np.arange(len(own))
        if not len(own):
            raise UserError(f"{title}: its shards hold no images ({listing.words(own.left_out) or 'nothing at all'})")
        opened = tar_index.TarSource(own, rows, labels, classes, options)
        if (wrong := np.flatnonzero(labels < 0)).size:
            label, where = own.groups[own.code[wrong[0]]], identity.shown(str(beside or "the training shards"))
            raise UserError(
                f"{opened.name(int(wrong[0]))} has the label '{identity.shown(label[:60])}'; allowed: the "
                f"{len(classes):,} classes of {where}"
            )
        opened.report = tar_index.report(title, opened, shards[name], own.left_out)
        return opened

    return hold_out.opened(split, list(shards), open_split, title)


def _paths(pattern: str) -> list[str]:
    """Returns the shards that a pattern stands for; raises UserError if there are none, or one is missing."""
    if is_remote(pattern) and has_magic(pattern):
        raise UserError(f"{pattern}: write the shards of an object store as a range, {{000..146}}, or as their folder")
    names = [str(fetched(name)) for name in expand(pattern)]
    if has_magic(pattern) and not os.path.exists(names[0]):
        found = [file for name in names for file in sorted(files_matching(name, recursive=True))]
        if not found:
            raise UserError(f"data.source=webdataset:{pattern}: no file has such a name")
        return found
    missing = [name for name in names if not os.path.isfile(name) and not os.path.isdir(name)]
    if missing:
        some = ", ".join(missing[:_SHOWN]) + f" and {len(missing) - _SHOWN:,} more" * (len(missing) > _SHOWN)
        raise UserError(
            f"data.source=webdataset:{pattern}: there is no such file or folder"
            if len(names) == 1
            else f"data.source=webdataset:{pattern}: {len(missing):,} of the {len(names):,} shards are missing: {some}"
        )
    return [file for name in names for file in (_in_folder(name) if os.path.isdir(name) else [name])]


def _in_folder(folder: str) -> list[str]:
    """Returns the shards in a folder and in the folders in it."""
    places = [folder, *(f"{folder}/{name}" for name in listing.folders(folder))]
    names = [name for place in places for name in listing.tars(place)]
    if not names:
        packed = next((name for place in places for name in sorted(os.listdir(place)) if ".tar." in name), "")
        hint = f"; {identity.shown(packed)} is compressed: {tar_members.UNPACK}" if packed else ""
        raise UserError(f"folder {identity.shown(folder)} has no .tar files{hint}")
    return names


def expand(pattern: str) -> list[str]:
    """Returns the texts that a pattern with braces stands for, as in webdataset: "a{0..2}" is a0, a1, a2.

    Raises:
      UserError: a range runs backward, or there are too many texts.
    """
    texts = {pattern: None}  # a dictionary, because nested braces stand for some texts several times
    while True:
        expanded: dict[str, None] = {}
        for text in texts:
            match = _BRACES.search(text)
            parts = _parts(pattern, match) if match else [""]
            if len(expanded) + len(parts) > _MOST_SHARDS:
                raise UserError(f"{pattern}: these are more than {_MOST_SHARDS:,} shards")
            start, end = match.span() if match else (len(text), len(text))
            expanded |= dict.fromkeys(text[:start] + part + text[end:] for part in parts)
        if expanded == texts:
            return list(texts)
        texts = expanded


def _parts(pattern: str, braces: re.Match[str]) -> list[str]:
    """Returns the texts that innermost braces of a pattern stand for."""
    ends = _RANGE.fullmatch(braces[1])
    if not ends:
        return braces[1].split(",")
    low, high = int(ends[1]), int(ends[2])
    if not 0 <= high - low < _MOST_SHARDS:
        raise UserError(f"{pattern}: the range {braces[0]} must rise, and name at most {_MOST_SHARDS:,} shards")
    return [f"{number:0{len(ends[1])}}" for number in range(low, high + 1)]


def _by_split(paths: Sequence[str]) -> dict[str, list[str]]:
    """Returns the shards of each split."""
    paths = list(dict.fromkeys(paths))
    for splits in (
        [hold_out.split_in(Path(path).stem) for path in paths],
        [hold_out.split_of(Path(path).absolute().parent.name) for path in paths],
    ):
        if any(splits):
            break
    else:
        splits = ["train"] * len(paths)
    by_split: dict[str, list[str]] = {}
    for path, split in zip(paths, splits, strict=True):
        if not split:
            named = next(other for other, name in zip(paths, splits, strict=True) if name)
            raise UserError(
                f"{identity.shown(path)}: its name tells no split (train, val, test), but that of "
                f"{identity.shown(Path(named).name)} does"
            )
        by_split.setdefault(split, []).append(path)
    return by_split


def _scan(file: int, path: str, left_out: Counter) -> Iterator[tar_index.Entry]:
    """Yields the examples of a shard; the group of an example is its label as it is written."""
    del path
    hashes, images, used = array("q"), _image_kinds(), {*_image_kinds(), *LABELS}
    for name, parts in _examples(file, left_out):
        kinds = [kind for kind in parts if kind in images]
        if not kinds:
            left_out["without an image"] += 1
            continue
        if len(kinds) > 1:
            raise Damaged(f"example '{_shown(name)}' has {len(kinds)} images, .{', .'.join(kinds)}; allowed: one")
        for kind in parts:
            if kind not in used:
                left_out[f".{kind}"] += 1
        label = _label(file, parts)
        if not label:
            raise Damaged(f"example '{_shown(name)}' has no label: add a member .cls, or .json with \"label\", or .txt")
        hashes.append(hash(name))
        yield name + b"." + kinds[0].encode(), label, *parts[kinds[0]]
    if len(np.unique(np.frombuffer(hashes, np.int64))) < len(hashes):
        raise Damaged("two examples have the same name, with others between them")


@functools.cache
def _image_kinds() -> frozenset[str]:
    return frozenset(ending.removeprefix(".") for ending in listing.endings())


def _shown(name: bytes) -> str:
    return identity.shown(os.fsdecode(name))[:200]


def _examples(file: int, left_out: Counter) -> Iterator[tuple[bytes, dict[str, tuple[int, int]]]]:
    """Yields (name, {ending: (offset, size)}) for members that follow each other and have one name."""
    current, parts = b"", {}
    for name, offset, size, is_file in tar_members.members(file):
        folder, slash, base = name.rpartition(b"/")
        stem, dot, ending = base.partition(b".")
        if not is_file:
            left_out["link or special file"] += not name.endswith(b"/")
            continue
        if not stem or not dot or b"__MACOSX" in folder:
            left_out["hidden" if not stem else "without an ending"] += 1
            continue
        key = (folder + slash + stem).removeprefix(b"./")
        if key != current:
            if parts:
                yield current, parts
            current, parts = key, {}
        kind = ending.decode("utf-8", "backslashreplace").lower()
        if kind in parts:
            raise Damaged(f"member '{_shown(name)}' is there twice")
        parts[kind] = offset, size
    if parts:
        yield current, parts


def _label(file: int, parts: dict[str, tuple[int, int]]) -> str:
    """Returns the label of an example as text, "" if it has none."""
    for kind in LABELS:
        if kind not in parts:
            continue
        offset, size = parts[kind]
        content = os.pread(file, min(size, _LARGEST), offset).decode("utf-8", "surrogateescape")
        if kind != "json":
            return content.strip()
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise Damaged(f"a member .json at byte {offset:,} is not JSON") from None
        label = value.get("label") if isinstance(value, dict) else None
        if type(label) in (int, str):
            return str(label).strip()
    return ""

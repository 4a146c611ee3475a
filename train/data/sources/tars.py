"""Tar files of images in folders, and ImageNet's archives as they are downloaded; nothing is unpacked."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.errors import UserError, nearest
from models.weights.foreign import Damaged
from train.data import hold_out, identity
from train.data.options import Options
from train.data.source import Source
from train.data.sources import listing, tar_index, tar_labels, tar_members
from train.storage.remote import fetched

_ILSVRC = {"ILSVRC2012_img_train.tar": "train", "ILSVRC2012_img_val.tar": "validation"}
_SHOWN = 5

Folder = tuple[str, ...]  # the parts of a path


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a split.

    Attributes:
      index: the index of the files that hold them.
      rows: their numbers in the index, int64 [n].
      code: the class of each as a number in `classes`, int32 [n].
      classes: names of classes, each once, in any order.
      keys: by group of the index, the beginning of the keys of its images.
    """

    index: tar_index.Index
    rows: np.ndarray
    code: np.ndarray
    classes: list[str]
    keys: list[str]


def source(path: str, split: str, options: Options) -> Source:
    """Returns a split of the images in tar files.

    PATH is a tar file that holds CLASS/FILE, SPLIT/CLASS/FILE or CLASS.tar; or a folder of such files whose names tell
    splits ("train.tar"); or a folder of files CLASS.tar, or with a folder of them for each split. A folder around all
    members is passed over. Images without folders need their labels beside the tar, see tar_labels.py.

    Args:
      path: the file or folder.
      split: see `hold_out.opened`.
      options: see `Options`.

    Raises:
      UserError: there are no such files; one is damaged, compressed, or holds images without a class.
    """
    title = f"tar {identity.shown(path)}"
    files, others = _files(fetched(path), f"data.source=tar:{path}")
    splits: dict[str, Images] = {}
    for name, paths in files.items():
        for found, images in _splits(name, paths, title).items():
            if found in splits:
                raise UserError(f"{title}: there are several tars or folders for split '{found}'")
            splits[found] = images
    if not splits:
        raise UserError(f"{title} holds no images")
    first = splits.get("train") or next(iter(splits.values()))
    classes = tuple(sorted({first.classes[code] for code in np.unique(first.code).tolist()}))

    def open_split(name: str) -> Source:
        opened = _opened(splits[name], classes, options, f"{title}: split '{name}'")
        used = [path for paths in files.values() for path in paths if path in splits[name].index.paths]
        opened.report = tar_index.report(title, opened, used, splits[name].index.left_out)
        opened.report += f"; not used: {', '.join(others[:_SHOWN])}{', …' * (len(others) > _SHOWN)}" * bool(others)
        return opened

    return hold_out.opened(split, list(splits), open_split, title)


def _opened(images: Images, classes: tuple[str, ...], options: Options, title: str) -> Source:
    numbers = {name: number for number, name in enumerate(classes)}
    number_of = np.array([numbers.get(name, -1) for name in images.classes], np.int32)
    labels = number_of[images.code]
    if (labels < 0).any():
        unknown = sorted({images.classes[code] for code in np.unique(images.code[labels < 0]).tolist()})
        raise UserError(
            f"{title} has images of classes that training lacks: {', '.join(unknown[:_SHOWN])}"
            f"{nearest(unknown[0], classes)}"
        )
    order = np.argsort(labels, kind="stable") if len(images.index.groups) > 1 else np.arange(len(labels))
    return tar_index.TarSource(images.index, images.rows[order], labels[order], classes, options, images.keys)


def _files(path: Path, option: str) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the tar files of each split, and the names of others that are not used.

    The split is "" if only their members tell it, and ends with "/" if the names of the files are those of classes.
    """
    if path.is_file():
        return {"": [str(path)]}, []
    if not path.is_dir():
        raise UserError(f"{option}: there is no such file or folder")
    tars = listing.tars(str(path))
    names = [Path(tar).name for tar in tars]
    if set(names) & set(_ILSVRC):
        return {_ILSVRC[n]: [t] for n, t in zip(names, tars, strict=True) if n in _ILSVRC}, sorted(
            {*names} - {*_ILSVRC}
        )
    splits = [hold_out.split_in(Path(tar).stem) for tar in tars]
    if tars and (all(splits) or ("train" in splits and len({*splits, ""}) > 2)):
        files = {split: [t for t, s in zip(tars, splits, strict=True) if s == split] for split in splits if split}
        return files, [name for name, split in zip(names, splits, strict=True) if not split]
    if tars:
        return {"train/": tars}, []
    folders = {f"{hold_out.split_of(name)}/": f"{path}/{name}" for name in listing.folders(str(path))}
    files = {split: listing.tars(folder) for split, folder in folders.items() if split != "/"}
    if not any(files.values()):
        packed = next((name for name in sorted(os.listdir(path)) if ".tar." in name or name.endswith(".tgz")), "")
        hint = f"; {identity.shown(packed)} is compressed: {tar_members.UNPACK}" if packed else ""
        raise UserError(f"{option}: there are no .tar files in this folder{hint}")
    return {split: tars for split, tars in files.items() if tars}, []


def _splits(name: str, paths: list[str], title: str) -> dict[str, Images]:
    """Returns the images of the splits in some files; `name` is a key of what `_files` returns."""
    kind, scan = ("class-tar", _scan_class) if name.endswith("/") else ("tar", _scan)
    index = tar_index.index(kind, paths, scan, by_name=True)
    if not len(index):
        raise UserError(
            f"{title}: {Path(paths[0]).name} holds no images ({listing.words(index.left_out) or 'nothing'})"
        )
    folders = [tuple(part for part in group.split("/") if part) for group in index.groups]
    parted = False
    if not name.endswith("/"):
        folders = _without_root(folders)
        parted = not name and _are_splits(folders)
    rest = [folder[1:] if parted else folder for folder in folders]
    present = {code: folder for code, folder in enumerate(rest) if folder}
    own = name.rstrip("/") or hold_out.split_in(Path(paths[0]).stem) or "train"
    split_of = [hold_out.split_of(folder[0]) if parted and folder else own for folder in folders]
    keys = ["".join(f"{part}/" for part in folder) for folder in folders]
    if not present:
        return {own: _flat(index, keys, paths[0])}
    if loose := sum(int((index.code == code).sum()) for code in range(len(folders)) if code not in present):
        index.left_out["outside of the folders"] += loose
    return {
        split: _in_folders(index, keys, {c: f for c, f in present.items() if split_of[c] == split})
        for split in dict.fromkeys(split_of[code] for code in present)
        if split
    }


def _in_folders(index: tar_index.Index, keys: list[str], folders: dict[int, Folder]) -> Images:
    """Returns images whose class is the first of their folders, by folder and name."""
    classes = list(dict.fromkeys(identity.shown(folder[0]) for folder in folders.values()))
    place, class_of = (np.full(len(index.groups), -1, np.int32) for _ in range(2))
    for number, code in enumerate(sorted(folders, key=lambda code: folders[code])):
        place[code], class_of[code] = number, classes.index(identity.shown(folders[code][0]))
    rows = np.flatnonzero(place[index.code] >= 0)
    rows = rows[np.argsort(place[index.code[rows]], kind="stable")]
    return Images(index, rows, class_of[index.code[rows]], classes, keys)


def _flat(index: tar_index.Index, keys: list[str], path: str) -> Images:
    """Returns images that lie in no folders; their labels lie beside the tar."""
    names = list(index.names)
    order = sorted(range(len(names)), key=lambda row: names[row])  # the names of several tars follow each other
    ordered = [names[row] for row in order]
    if twice := [name for name, following in itertools.pairwise(ordered) if name == following]:
        raise UserError(f"{path}: {identity.shown(twice[0])} is in several tars, so labels beside them are ambiguous")
    labels = [text for _, text in sorted(zip(order, tar_labels.beside(Path(path), ordered), strict=True))]
    classes = list(dict.fromkeys(labels))
    numbers = {name: number for number, name in enumerate(classes)}
    code = np.array([numbers[label] for label in labels], np.int32)
    return Images(index, np.arange(len(index)), code, classes, keys)


def _without_root(folders: list[Folder]) -> list[Folder]:
    """Returns folders without the first ones that all of them share, such as the name of the archive."""
    while folders and all(len(folder) > 1 and folder[0] == folders[0][0] for folder in folders):
        folders = [folder[1:] for folder in folders]
    if len(folders) == 1 and len(folders[0]) == 1 and hold_out.split_of(folders[0][0]):
        return [()]  # a tar val.tar of val/FILE
    return folders


def _are_splits(folders: list[Folder]) -> bool:
    """Returns whether the outer folders are splits, as for folders of images (folder.py)."""
    splits = {hold_out.split_of(folder[0]) for folder in folders if len(folder) > 1}
    flat = {folder[0] for folder in folders if len(folder) == 1 and hold_out.split_of(folder[0])}
    return "train" in splits and len(splits - {""}) > 1 and not flat


def _scan(file: int, path: str, left_out: Counter) -> Iterator[tar_index.Entry]:
    """Yields the images of a tar, and of tars in it; the group is the folder, in which such a tar counts as one."""
    del path
    yield from _images(tar_members.members(file), left_out, file, "")


def _scan_class(file: int, path: str, left_out: Counter) -> Iterator[tar_index.Entry]:
    """Yields the images of a tar of one class, whose name counts as the outer folder."""
    yield from _images(tar_members.members(file), left_out, None, f"{Path(path).stem}/")


def _images(
    members: Iterator[tar_members.Member], left_out: Counter, file: int | None, above: str
) -> Iterator[tar_index.Entry]:
    groups: dict[bytes, tuple[str, bool]] = {}
    for path, offset, size, is_file in members:
        if not is_file:
            left_out["link or special file"] += not path.endswith(b"/")
            continue
        folder, _, name = path.rpartition(b"/")
        if folder not in groups:
            text = "/".join(part for part in os.fsdecode(folder).split("/") if part not in ("", "."))
            groups[folder] = f"{above}{text}", any(map(listing.is_hidden, text.split("/") if text else ()))
        group, is_hidden = groups[folder]
        text = os.fsdecode(name)
        if is_hidden or listing.is_hidden(text):
            left_out["hidden"] += 1
        elif listing.is_image(text):
            yield name, group, offset, size
        elif file is not None and listing.ending(text) == ".tar":
            inner = f"{group}/{text[:-4]}/" if group else f"{text[:-4]}/"
            try:
                yield from _images(tar_members.members(file, offset, offset + size), left_out, None, inner)
            except Damaged as error:
                raise Damaged(f"member {identity.shown(text)}: {error}") from None
        else:
            left_out[listing.ending(text) or "without an ending"] += 1

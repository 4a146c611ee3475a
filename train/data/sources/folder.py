"""A user's own images: one folder per class, or such folders for each split; `listing` decides which files count."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.errors import UserError, choice_error, nearest
from train.data import identity
from train.data.options import Options
from train.data.source import Indices, Source
from train.data.sources import listing
from train.storage.remote import fetched

_HELD_OUT = 5  # one image in five is held out where the user made no split
_SPLITS = ("train", "test", "train_fit", "validation")
_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}  # split by the name of its folder, in lower case
_NEEDED = "it must have one folder of images for each class"

File = tuple[str, int]  # name relative to the data set's folder, and label


class FolderSource(Source):
    """A source of the files PATH/CLASS/FILE or PATH/SPLIT/CLASS/FILE; images may lie at any depth in a class folder.

    A folder is a split if its name says so in any case (train, training; test, testing; val, valid, validation) and it
    holds folders but no images itself. This holds only if there are a training folder and a test or validation folder.
    Any other folder is a class, even one that is called "train".

    "train" and "test" are the user's folders; a validation folder is the test split if there is no test folder. Without
    such folders a fifth of each class is held out for testing. If there are both a test and a validation folder,
    "validation" is the validation folder, and "train_fit" is all of "train". Otherwise, "validation" is a fifth of
    "train", and "train_fit" is the rest.

    Labels number the sorted class folders of the training split; names match in any Unicode normalization. A class
    without a training image is an error, but the test split may lack classes.

    A million images are listed in 4 s, and ten thousand classes of twenty images in 1.4 s (warm cache, AMD EPYC core).
    """

    def __init__(self, path: str, split: str, options: Options):
        """Lists the images of a split; raises UserError if the folder is not as described above."""
        self.root = fetched(path)
        if split not in _SPLITS:
            raise choice_error(f"split of folder {path}", split, _SPLITS)
        if not self.root.is_dir():
            raise UserError(f"data.source=folder:{path}: there is no such folder")
        classes, files, self.report = _split_files(str(self.root), split)
        self.files, self.labels = tuple(name for name, _ in files), tuple(label for _, label in files)
        super().__init__(len(files), classes, (None, None, 3), options)

    def fetch(self, indices: Indices) -> list[tuple[Path, int]]:
        return [(self.root / self.files[index], self.labels[index]) for index in indices]

    def name(self, index: int) -> str:
        return identity.shown(str(self.root / self.files[index]))

    def known_labels(self) -> np.ndarray:
        return np.array(self.labels, np.int32)

    def identity(self) -> dict[str, str | int]:
        return {"images": self.count, "content": identity.of_files(self.root, self.files)}


def _split_files(root: str, split: str) -> tuple[list[str], list[File], str]:
    """Returns the class names, the images of the split, and the report on them."""
    splits, remarks = _split_folders(root)
    left_out = listing.beside(root)
    if not splits:
        classes = _classes(root)
        files = _images(root, "", list(classes), left_out)
        report = _report(root, files, classes, left_out)
        train, test = _hold_out(root, files, "test")
        if split in ("train", "test"):
            report += f"; {len(test):,} of them are held out for testing"
            return list(classes), train if split == "train" else test, "; ".join([report, *remarks])
    else:
        classes = _classes(f"{root}/{splits['train']}")
        folders = {"train": splits["train"], "test": splits.get("test", splits.get("validation"))}
        if "test" in splits and "validation" in splits:
            folders |= {"validation": splits["validation"], "train_fit": splits["train"]}
        folder = folders.get(split, splits["train"])
        left_out += listing.beside(f"{root}/{folder}")
        files = _images(root, folder, list(classes), left_out, is_training=folder == splits["train"])
        report = _report(f"{root}/{folder}", files, classes, left_out)
        if split in folders:
            return list(classes), files, "; ".join([report, *remarks])
        train = files
    fit, validation = _hold_out(root, train, "validation")
    report += f"; {len(validation):,} of the {len(train):,} to train are held out for validation"
    return list(classes), fit if split == "train_fit" else validation, "; ".join([report, *remarks])


def images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder, at any depth, by name."""
    files, _ = listing.images(str(folder), ".")
    return [folder / file for file in files]


def _split_folders(root: str) -> tuple[dict[str, str], list[str]]:
    """Returns the folder of each split, {} if the folders are classes, and remarks on folders that look ambiguous."""
    names = listing.folders(root)
    if not names:
        raise UserError(f"folder {identity.shown(root)} has no folders: {_NEEDED}")
    candidates = [name for name in names if name.casefold() in _NAMES]
    splits = {}
    for name in candidates:
        if listing.folders(f"{root}/{name}") and not listing.holds_images(f"{root}/{name}"):
            split = _NAMES[name.casefold()]
            if split in splits:
                raise UserError(f"folder {identity.shown(root)} has two folders for one split: {splits[split]}, {name}")
            splits[split] = name
    if "train" in splits and len(splits) > 1:
        others = [identity.shown(name) for name in names if name not in splits.values()]
        return splits, [f"not searched, since it is not a split: {', '.join(others)}"] if others else []
    if candidates and len(candidates) == len(names):
        mixed = [name for name in candidates if listing.holds_images(f"{root}/{name}")]
        raise UserError(
            f"folder {identity.shown(root)} has no folders except {', '.join(candidates)}: it must have a training "
            "folder and a test or validation folder, each with one folder of images for each class"
            + f"; images lie directly in {', '.join(mixed)}"
            * bool(mixed)
        )
    return {}, [f"used as a class, not as a split: {', '.join(candidates)}"] if candidates else []


def _classes(folder: str) -> dict[str, list[str]]:
    """Returns the folders of each class by its name; one name may be there in two Unicode normalizations."""
    classes = {}
    for name in listing.folders(folder):
        classes.setdefault(identity.shown(name), []).append(name)
    if not classes:
        raise UserError(f"folder {identity.shown(folder)} has no folders: {_NEEDED}")
    return dict(sorted(classes.items()))


def _images(root: str, split: str, classes: list[str], left_out: Counter, is_training: bool = True) -> list[File]:
    """Returns the images of the class folders in root/split, by class and name, and adds to the counts `left_out`."""
    above = f"{split}/" if split else ""
    listed = {
        name: [listing.images(root, above + folder) for folder in folders]
        for name, folders in _classes(f"{root}/{split}").items()
    }
    class_names = set(classes)
    unknown = [name for name, parts in listed.items() if name not in class_names and any(files for files, _ in parts)]
    if unknown:
        raise UserError(
            f"folder {identity.shown(f'{root}/{split}')} has images of classes that the training folder "
            f"lacks: {', '.join(unknown)}{nearest(unknown[0], classes)}"
        )
    for name in classes if is_training else ():
        if not any(files for files, _ in listed[name]):
            others = listing.words(sum((counts for _, counts in listed[name]), Counter()))
            raise UserError(
                f"class folder {identity.shown(f'{root}/{above}{name}')} has no images"
                + (f", only {others}" if others else "")
                + ": fill it or remove it"
            )
    files = []
    for label, name in enumerate(classes):
        for part, counts in listed.get(name, ()):
            files += [(file, label) for file in part]
            left_out += counts
    return files


def _report(folder: str, files: list[File], classes: dict[str, list[str]], left_out: Counter) -> str:
    """Returns "folder x: 480 images in 3 classes (12 hidden, 4 .heic left out)"."""
    others = listing.words(left_out)
    present = len({label for _, label in files})
    count = f"{present:,} of {len(classes):,}" if present < len(classes) else f"{present:,}"
    return (
        f"folder {identity.shown(folder)}: {len(files):,} images in {count} classes"
        + f" ({others} left out)" * bool(others)
    )


def _hold_out(root: str, files: list[File], what: str) -> tuple[list[File], list[File]]:
    """Parts files into those that are kept and those that are held out for `what`, "test" or "validation".

    The files of each class are sorted by a hash of `what` and the file's name, and the first ones are held out. So the
    choice does not depend on a seed, and adding a file changes the choice of only a few others.
    """
    by_label: dict[int, list[File]] = {}
    for file in files:
        by_label.setdefault(file[1], []).append(file)
    rest, held_out = [], []
    for own, quota in zip(by_label.values(), _quotas([len(own) for own in by_label.values()]), strict=True):
        first = set(sorted(own, key=lambda file: (_rank(f"{what} {file[0]}"), file))[:quota])
        held_out += [file for file in own if file in first]
        rest += [file for file in own if file not in first]
    if not held_out:
        raise UserError(
            f"folder {identity.shown(root)} has only one image of each class, so that none can be held out "
            f"for {'testing' if what == 'test' else 'validation'}: add images, or a folder of that split"
        )
    return rest, held_out


def _quotas(counts: Sequence[int]) -> list[int]:
    """Returns how many images of each class are held out.

    The total is a fifth of all images, rounded, and at least 1. Each class gives a fifth, rounded down or up: the
    largest remainders are rounded up, the first of equal ones first. The only image of a class is kept.
    """
    total = max(1, round(sum(counts) / _HELD_OUT))
    quotas = [count // _HELD_OUT for count in counts]
    growing = sorted(
        (i for i, count in enumerate(counts) if count % _HELD_OUT and count > 1), key=lambda i: -(counts[i] % _HELD_OUT)
    )
    for i in growing[: total - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _rank(name: str) -> bytes:
    """Returns a hash of a name, the same for all Unicode normalizations."""
    return hashlib.sha256(identity.name_bytes(name)).digest()[:8]

"""A user's own images: one folder a class, or one such folder for each split."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError, choice_error
from train.data.source import Options, Source

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_VALIDATION_NAMES = ("val", "valid", "validation")
_HELD_OUT = 0.2  # of each class, where the user made no split
_SPLITS = ("train", "test", "train_fit", "validation")


class FolderSource(Source):
    """PATH/CLASS/FILE, or PATH/SPLIT/CLASS/FILE where PATH has a folder "train".

    Splits "train" and "test": the user's folders (the validation folder is the test split where there is no folder
    "test"), else a split of 80:20 made for them. "validation" is a validation folder beside "test", else 20% of
    "train", with "train_fit" the rest. Labels number the sorted class folders of "train".
    """

    def __init__(self, path: str, split: str, options: Options):
        self.root = Path(path).expanduser()
        if split not in _SPLITS:
            raise choice_error(f"split of folder {path}", split, _SPLITS)
        if not self.root.is_dir():
            raise UserError(f"data.source=folder:{path}: there is no such folder")
        classes, files = _split_files(self.root, split)
        self.files, self.labels = zip(*files, strict=True) if files else ((), ())
        super().__init__(len(files), classes, (None, None, 3), options)

    def fetch(self, indices: Sequence[int]) -> list[tuple[Path, int]]:
        return [(self.root / self.files[index], self.labels[index]) for index in indices]

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])


def _split_files(root: Path, split: str) -> tuple[list[str], list[tuple[str, int]]]:
    """The class names, and (file name relative to `root`, label) for each image of the split."""
    if (root / "train").is_dir():
        folders = {"train": "train"}
        validation = next((name for name in _VALIDATION_NAMES if (root / name).is_dir()), None)
        test = "test" if (root / "test").is_dir() else validation
        if test is None:
            raise UserError(f"folder {root} has a folder 'train' but neither 'test' nor 'val'")
        folders["test"] = test
        if validation not in (None, test):
            folders |= {"validation": validation, "train_fit": "train"}
        classes = _class_names(root / "train")
        if split in folders:
            return classes, _images(root, root / folders[split], classes)
        train = _images(root, root / "train", classes)
    else:
        classes = _class_names(root)
        train, test = _hold_out(_images(root, root, classes), "test")
        if split in ("train", "test"):
            return classes, train if split == "train" else test
    fit, validation = _hold_out(train, "validation")
    return classes, fit if split == "train_fit" else validation


def images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder, at any depth, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"folder {folder} has no folders: want one folder of images for each class")
    return names


def _images(root: Path, folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    found = [name for name in _class_names(folder) if name not in classes]
    if found:
        raise choice_error(f"class folder in {folder}", found[0], classes)
    files = []
    for label, name in enumerate(classes):
        paths = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not paths:
            raise UserError(f"class folder {folder / name} has no images ({', '.join(sorted(_SUFFIXES))})")
        files += [(path.relative_to(root).as_posix(), label) for path in paths]
    return files


def _hold_out(files: list[tuple[str, int]], what: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Parts each class by a hash of its file names (a different one for each `what`): which side a file falls on
    depends on its name alone, so adding files moves no other, unless chance had left one side of its class empty.
    A class's only image is kept.
    """
    kept, held = [], []
    for label in sorted({label for _, label in files}):
        ranked = sorted((_share(f"{what} {name}"), name, label) for name, of in files if of == label)
        count = sum(share < _HELD_OUT for share, _, _ in ranked)
        count = min(max(count, 1), len(ranked) - 1)
        held += [(name, label) for _, name, _ in ranked[:count]]
        kept += [(name, label) for _, name, _ in ranked[count:]]
    return sorted(kept, key=lambda file: (file[1], file[0])), sorted(held, key=lambda file: (file[1], file[0]))


def _share(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64

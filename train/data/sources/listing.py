"""Lists the images of a user's folder, and counts by reason the files that are left out."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from models.errors import UserError
from train.data.decode import endings
from train.data.identity import shown

# Files and folders that Windows, macOS, archives and network drives leave behind, in lower case; names that begin with
# a dot are hidden as well
_DROPPINGS = frozenset(
    {
        "__macosx",
        "$recycle.bin",
        "#recycle",
        "@eadir",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
_HIDDEN = "hidden"
_RUN = "folder of a run"
_ENDINGS_SHOWN = 5


def folders(path: str) -> list[str]:
    """Returns the sorted names of the folders in a folder, with links to folders, without hidden folders and runs."""
    return sorted(
        entry.name
        for entry in _entries(path)
        if not is_hidden(entry.name) and _kind(entry) == "folder" and not _is_run(entry.path)
    )


def tars(path: str) -> list[str]:
    """Returns the sorted paths of the tar files in a folder, without hidden ones."""
    return sorted(
        entry.path
        for entry in _entries(path)
        if ending(entry.name) == ".tar" and not is_hidden(entry.name) and _kind(entry) == "file"
    )


def holds_images(path: str) -> bool:
    """Returns True if an image lies directly in a folder."""
    return any(
        is_image(entry.name) and not is_hidden(entry.name) and _kind(entry) == "file" for entry in _entries(path)
    )


def beside(path: str) -> Counter:
    """Counts, by reason, the entries of a folder of folders that are not searched for images."""
    left_out = Counter()
    for entry in _entries(path):
        if is_hidden(entry.name):
            left_out[_HIDDEN] += _count(entry)
        elif is_image(entry.name) and _kind(entry) == "file":
            left_out["outside of the folders"] += 1
        elif _is_run(entry.path):
            left_out[_RUN] += 1
    return left_out


def images(root: str, folder: str) -> tuple[list[str], Counter]:
    """Finds the images at any depth below root/folder; follows links, but visits each folder once.

    Returns:
      Sorted names relative to `root`, and the number of files left out by reason.

    Raises:
      UserError: a folder cannot be read.
    """
    own = os.path.realpath(f"{root}/{folder}")
    # A link to a folder above would bring in other classes, or the whole disk
    names, left_out, visited = [], Counter(), {_key(str(above)) for above in Path(own).parents}
    pending, links = [folder], []
    while pending or links:
        # Folders come before links: a folder that is also linked is listed under its own name
        name = pending.pop() if pending else links.pop()
        path = f"{root}/{name}"
        if (key := _key(path)) in visited:
            left_out["linked twice"] += 1
            continue
        visited.add(key)
        for entry in _entries(path):
            kind = _kind(entry)
            if is_hidden(entry.name):
                left_out[_HIDDEN] += _count(entry)
            elif kind == "folder" and _is_run(entry.path):
                left_out[_RUN] += 1
            elif kind == "folder":
                (links if entry.is_symlink() else pending).append(f"{name}/{entry.name}")
            elif not is_image(entry.name):
                left_out[ending(entry.name) or "without an ending"] += 1
            elif kind == "file":
                names.append(f"{name}/{entry.name}")
            else:
                left_out["broken link" if entry.is_symlink() else "not a file"] += 1
        links.sort(reverse=True)
    return sorted(names, key=lambda name: name.split("/")), left_out


def words(left_out: Counter) -> str:
    """Writes counts as "12 hidden, 4 .heic", with only the most frequent endings by name."""
    counts = {reason: count for reason, count in left_out.most_common() if count}
    kinds = [reason for reason in counts if reason.startswith(".")]
    for reason in kinds[_ENDINGS_SHOWN:]:
        counts["of other endings"] = counts.get("of other endings", 0) + counts.pop(reason)
    order = sorted(counts, key=lambda reason: (reason != _HIDDEN, reason == "of other endings"))
    return ", ".join(f"{counts[reason]:,} {shown(reason)}" for reason in order)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is one that people do not see, or that a system left behind."""
    return name.startswith(".") or name.casefold() in _DROPPINGS


def _is_run(path: str) -> bool:
    """Returns True if a folder is a --workdir, whose pictures are not for training."""
    return os.path.isfile(f"{path}/config.json") and os.path.isdir(f"{path}/checkpoints")


def ending(name: str) -> str:
    """Returns the ending of a file's name in lower case, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Returns whether a file's name ends as that of a picture."""
    return ending(name) in endings()


def _kind(entry: os.DirEntry) -> str:
    """Returns "folder", "file", or "" for anything else, such as a link to nothing or to itself."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:
        return ""


def _count(entry: os.DirEntry) -> int:
    """Returns how many files a hidden entry stands for."""
    if entry.is_dir(follow_symlinks=False):
        return sum(len(files) for _, _, files in os.walk(entry.path))
    return 1


def _entries(path: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        raise UserError(f"folder {shown(path)} cannot be read: {error.strerror}") from error


def _key(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino

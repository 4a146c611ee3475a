"""Small sets of images in every form that sources read: folders, tars, shards and tables."""

import io
import tarfile

import numpy as np

from tests import hostile_pictures as pictures
from train.data.load import load
from train.data.source import Options

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def png(number):
    """Returns a small image that differs for each number below 256."""
    return pictures.saved(np.full((8, 8), number, np.uint8), "PNG")


def images(classes=("cat", "dog", "eel"), count=7):
    """Returns the bytes of images by name, CLASS/NUMBER.png."""
    names = [f"{name}/{number}.png" for name in classes for number in range(count)]
    return {name: png(number) for number, name in enumerate(names)}


def write_folder(root, members):
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar(members, kind="gnu"):
    """Returns the bytes of a tar file with these members: bytes, or a whole TarInfo of a member without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def written(path, members, kind="gnu"):
    """Writes the bytes of a tar, or a tar with these members, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(members if isinstance(members, bytes) else tar(members, kind))
    return path


def shard(members, numbers=None):
    """Returns members of webdataset: each image CLASS/FILE.png with its label in a member .cls."""
    classes = sorted({name.split("/")[0] for name in members})
    parts = {}
    for name, content in members.items():
        label = name.split("/")[0] if numbers is None else str(classes.index(name.split("/")[0]))
        parts |= {name: content, name.removesuffix(".png") + ".cls": label.encode()}
    return parts


def opened(source, split="train", **changes):
    return load(Options(source, image_size=8, crop="resize", **changes), split)


def same(one, other):
    """Asserts that two sources give the same bits in the same order, and call the examples the same."""
    assert one.classes == other.classes and one.label_shape == other.label_shape
    first, second = one.arrays(), other.arrays()
    for key in ("image", "label", "mask"):
        assert np.array_equal(first[key], second[key]), key
    assert [one.key(i) for i in range(len(one))] == [other.key(i) for i in range(len(other))]

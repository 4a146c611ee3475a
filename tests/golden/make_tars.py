"""Writes tars.npz: small archives of GNU tar, bsdtar and webdataset's TarWriter, gzipped.

pip install webdataset (into a venv of its own); apt-get install libarchive-tools
PYTHONPATH=. python -m tests.golden.make_tars
"""

import gzip
import importlib.util
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

FOLDER = pathlib.Path(__file__).parent
COMMANDS = {
    "gnu": ("tar", "--format=gnu"),
    "gnu_posix": ("tar", "--format=posix"),
    "gnu_ustar": ("tar", "--format=ustar"),
    "gnu_v7": ("tar", "--format=v7"),
    "gnu_sparse": ("tar", "--format=gnu", "--sparse"),
    "gnu_posix_sparse": ("tar", "--format=posix", "--sparse"),
    "bsdtar": ("bsdtar",),
    "bsdtar_gnutar": ("bsdtar", "--format", "gnutar"),
}
SHORT = ("gnu_ustar", "gnu_v7")  # formats without long names


def tree(root: pathlib.Path, is_short: bool) -> None:
    names = ["cat/1.png", "cat/ü.png", "dog/2.png"]
    names += [] if is_short else ["dog/" + "long" * 40 + "/" + "name" * 40 + ".png"]
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * (300 * number + 100))
    (root / "cat" / "link.png").symlink_to("1.png")
    os.link(root / "cat" / "1.png", root / "dog" / "hard.png")
    with (root / "cat" / "holes.png").open("wb") as file:
        for _ in range(9):  # more holes than a header holds
            file.seek(1 << 16, os.SEEK_CUR)
            file.write(b"x")
    (root / "dog" / "last.png").write_bytes(b"last")


def main() -> None:
    archives = {}
    for name, command in COMMANDS.items():
        if not shutil.which(command[0]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            tree(root / "set", name in SHORT)
            if "sparse" not in name:
                (root / "set" / "cat" / "holes.png").unlink()
            subprocess.run([*command, "-cf", "a.tar", "-C", "set", "cat", "dog"], cwd=root, check=True)
            archives[name] = (root / "a.tar").read_bytes()
    if importlib.util.find_spec("webdataset"):
        import webdataset  # pyright: ignore[reportMissingImports]

        with tempfile.TemporaryDirectory() as folder:
            with webdataset.TarWriter(f"{folder}/a.tar") as writer:
                for number in range(3):
                    writer.write(
                        {"__key__": f"cat/{number}", "png": b"image", "cls": number, "json": {"label": number}}
                    )
            archives["webdataset"] = pathlib.Path(folder, "a.tar").read_bytes()
    packed = {name: np.frombuffer(gzip.compress(content, mtime=0), np.uint8) for name, content in archives.items()}
    np.savez(FOLDER / "tars.npz", **packed)
    print({name: len(content) for name, content in packed.items()})


if __name__ == "__main__":
    main()

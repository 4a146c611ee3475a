"""Measures how long sources of 1.3 million tiny images take to open, and the memory that this takes.

  python -m tests.train.data.measure_open FOLDER tar|webdataset|csv     (twice: the second time with the kept index)

The sets are written to FOLDER once (4 GB). XDG_CACHE_HOME says where the index is kept.
"""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from train.data import hold_out
from train.data.load import load
from train.data.source import Options

SHARDS, EACH = 130, 10_000
IMAGE = b"x" * 64
SOURCES = {
    "tar": "tar:{}/classes",
    "webdataset": "webdataset:{}/shards/train-{{000..129}}.tar",
    "csv": "csv:{}/labels.csv",
}


def member(name: str, content: bytes) -> bytes:
    """Returns a member of a tar; tarfile would take minutes for all of them."""
    header = bytearray(512)
    fields = {0: name.encode(), 124: b"%011o\0" % len(content), 148: b" " * 8, 156: b"0", 257: b"ustar\x0000"}
    for place, field in fields.items():
        header[place : place + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content.ljust(512, b"\0")


def write(root: Path) -> None:
    """Writes the sets in all forms."""
    for name in ("classes", "shards"):
        (root / name).mkdir(parents=True)
    for shard in range(SHARDS):
        images = [member(f"n{shard:08}_{i}.JPEG", IMAGE) for i in range(EACH)]
        (root / "classes" / f"n{shard:08}.tar").write_bytes(b"".join(images) + bytes(1024))
        keys = [f"{shard * EACH + i:08}" for i in range(EACH)]
        parts = [member(f"{key}.jpg", IMAGE) + member(f"{key}.cls", b"%d" % (int(key) * 7 % 1000)) for key in keys]
        (root / "shards" / f"train-{shard:03}.tar").write_bytes(b"".join(parts) + bytes(1024))
    rows = (f"n{i % 1000:08}/{i}.JPEG,n{i % 1000:08}\n" for i in range(SHARDS * EACH))
    with (root / "labels.csv").open("w") as file:
        file.write("path,label\n")
        file.writelines(rows)


def memory() -> float:
    """Returns the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(root: Path, kind: str) -> None:
    """Writes what is missing, opens a set, and prints a line."""
    if not root.exists():
        write(root)
    if kind == "csv":  # its images are not written; 64 of them would be looked for
        os.path.isfile = lambda path: True
    hold_out.opened = lambda split, present, open_split, title: open_split(split)  # opening alone
    before, start, cpu = memory(), time.perf_counter(), time.process_time()
    source = load(Options(SOURCES[kind].format(root), image_size=8, crop="resize"), "train")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    line = (
        f"{kind}: {len(source):,} images opened in {seconds:.1f} s ({cpu:.1f} s of a core), {memory() - before:.0f} MB"
    )
    if kind != "csv":
        order = np.random.default_rng(0).permutation(len(source))[:50_000]
        start = time.perf_counter()
        source.fetch(order)
        line += f", {len(order) / (time.perf_counter() - start):,.0f} images per second read in random order"
    print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

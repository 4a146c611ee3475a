"""Measures image sources: opening 1.3 million entries, random access, decoding, restarts. See --help."""

import hashlib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from models import command
from train import cli

USAGE = """Measures every form in which image sets lie on disks.

    python -m experiments.bench.sources --folder=/tmp/sources
    python -m experiments.bench.sources --folder=/tmp/sources --entries=10000 --forms=tar,csv

Two sets are made in each form below --folder: one of many tiny entries, which is only opened and looked up (5 GB for
1.3 million), and one of JPEGs at the sizes of ImageNet's (the TFDS set imagenet_sample, else crops of two photographs),
whose random-resized crops at 224 a stream decodes in threads. Each set is opened in processes of its own, twice; the
second time, indexes are kept. Forms take turns in decoding, and the median of the rounds counts.
"""
FORMS = {  # text of data.source for the sets of entries and of JPEGs
    "folder": "folder:{}",
    "tar": "tar:{}",
    "webdataset": "webdataset:{}",
    "csv": "csv:{}/labels.csv",
    "parquet": "parquet:{}",
    "tfds": "tfds:imagenet_sample",  # of JPEGs alone, where it is prepared
}
FILES, ROUNDS, BATCH, LOOKUPS = 130, 3, 32, 20_000


# -- sets that are made --------------------------------------------------------------------------------------------


def member(name: str, content: bytes) -> bytes:
    """Returns a member of a tar; tarfile would take minutes for all of them."""
    header = bytearray(512)
    fields = {0: name.encode(), 124: b"%011o\0" % len(content), 148: b" " * 8, 156: b"0", 257: b"ustar\x0000"}
    for place, field in fields.items():
        header[place : place + len(field)] = field
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


def write(root: Path, form: str, images: Iterator[tuple[int, bytes]], count: int, is_small: bool) -> None:
    """Writes `count` images with their classes in one form, as a training and a test split; both are the same files."""
    (root / "train").mkdir(parents=True)
    (root / "test").symlink_to(root / "train")
    if form == "csv":
        _write_table(root, images, count if is_small else 0)
        return
    each = -(-count // FILES)
    for number in range(-(-count // each)):
        part = [(f"class{label}", content) for label, content in itertools.islice(images, each)]
        path = root / "train" / f"{number:03}"
        if form == "parquet":
            _write_parquet(path.with_suffix(".parquet"), part)
        elif form == "folder":
            for i, (name, content) in enumerate(part):
                (root / "train" / name).mkdir(exist_ok=True)
                (root / "train" / name / f"{number}_{i}.jpg").write_bytes(b"" if is_small else content)
        else:
            members = []
            for i, (name, content) in enumerate(part):
                above = f"{name}/" if form == "tar" else ""
                members.append(member(f"{above}{number}_{i}.jpg", content))
                members += [member(f"{number}_{i}.cls", name.encode())] * (form == "webdataset")
            path.with_suffix(".tar").write_bytes(b"".join(members) + bytes(1024))


def _write_table(root: Path, images: Iterator[tuple[int, bytes]], count: int) -> None:
    """Writes a table and its files; of `count` files only those that opening looks for, all if `count` is 0."""
    from train.data.identity import sample

    rows, looked_for = ["path,label,split"], set(sample(count))
    for i, (label, content) in enumerate(images):
        rows += [f"{i}.jpg,class{label},{split}" for split in ("train", "test")]
        if not count or i in looked_for:
            (root / f"{i}.jpg").write_bytes(content)
    (root / "labels.csv").write_text("\n".join(rows))


def _write_parquet(path: Path, images: list[tuple[str, bytes]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"image": [{"bytes": content} for _, content in images], "label": [name for name, _ in images]}
    pq.write_table(pa.table(columns), path, row_group_size=100)


def entries(count: int) -> Iterator[tuple[int, bytes]]:
    """Yields tiny entries of 1,000 classes, which are no images."""
    return ((i % 1000, b"x" * 64) for i in range(count))


def jpegs(folder: Path) -> list[tuple[int, bytes]]:
    """Returns the JPEGs of the benchmark's case `data`."""
    from experiments.bench import pipelines

    pipelines.jpegs(folder, pipelines.tfds_folder(pipelines.SAMPLE))
    files = sorted((folder / "train").rglob("*.jpg"))
    return [(int(file.parent.name.removeprefix("class")), file.read_bytes()) for file in files]


# -- measurements --------------------------------------------------------------------------------------------------


def source(form: str, root: Path, size: int = 224) -> Any:
    """Opens the training split of a set in one form."""
    from experiments.bench import pipelines
    from train.data import load
    from train.data.options import Options

    folder, split = (pipelines.tfds_folder(pipelines.SAMPLE) or "", "validation") if form == "tfds" else ("", "train")
    options = Options(FORMS[form].format(root), folder, split, image_size=size, crop="random_resized")
    return load.load(options, "train")


def opened(form: str, root: str) -> dict[str, Any]:
    """Opens a set in this process; returns seconds, the memory that this adds in MiB, and lookups per second."""
    from train.data import load  # noqa: F401  imports are not part of opening

    def peak() -> float:
        # The peak of getrusage would be that of the parent, if that is larger
        kilobytes = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(kilobytes[1]) / 1024 if kilobytes else 0.0

    before, start = peak(), time.perf_counter()
    images = source(form, Path(root))
    images.known_labels()
    result = {"entries": len(images), "seconds": time.perf_counter() - start, "mib": peak() - before}
    if form not in ("folder", "csv"):  # whose entries are files of their own, which are empty or missing here
        from train.data import shuffle

        order, start = shuffle.Order(len(images), 0, images.groups), time.perf_counter()
        count = min(LOOKUPS, len(images))
        for position in range(0, count, 500):
            images.fetch(order.indices(position, 500))
        result["lookups"] = count / (time.perf_counter() - start)
    return result


def decoded(form: str, root: Path) -> float:
    """Returns images per second from a set of JPEGs to batches, in threads."""
    from train.data import shuffle, stream

    images = source(form, root)
    order = shuffle.Order(len(images), 0, images.groups)
    batches = stream.stream(images, order, BATCH, 0, 3 + 2 * len(images) // BATCH)
    for _ in range(3):
        next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["mask"])
    return count / (time.perf_counter() - start)


def digest(form: str, root: Path, start: int, shard: tuple[int, int] = (0, 1)) -> list[str]:
    """Returns digests of four batches from step `start`, of one process of several."""
    from train.data import shuffle, stream

    images = source(form, root)
    batches = stream.stream(images, shuffle.Order(len(images), 0, images.groups), BATCH, start, 4, shard=shard)
    return [hashlib.sha256(row.tobytes()).hexdigest() for batch in batches for row in batch["image"]]


def is_exact(form: str, root: Path) -> dict[str, bool]:
    """Returns whether a restart gives the same bits, and whether two processes give those of one."""
    whole = digest(form, root, 3)
    parts = [digest(form, root, 3, (process, 2)) for process in range(2)]
    half = BATCH // 2
    united = [row for i in range(4) for part in parts for row in part[i * half : (i + 1) * half]]
    return {"restart": whole[BATCH:] == digest(form, root, 4)[: 3 * BATCH], "shards": united == whole}


def measure(folder: Path, forms: list[str], count: int) -> list[dict[str, Any]]:
    """Makes the sets that are missing, and returns a row per form."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    shutil.rmtree(folder / "cache", ignore_errors=True)
    pictures = jpegs(folder / "jpegs") if not (folder / "jpegs").exists() else []
    rows = []
    for form in forms:
        for name, images, size in (("entries", entries(count), count), ("images", iter(pictures), len(pictures))):
            if form != "tfds" and not (folder / name / form).exists():
                write(folder / name / form, form, images, size, name == "entries")
        call = f"s.opened({form!r}, {str(folder / 'entries' / form)!r})"
        code = f"import json; from experiments.bench import sources as s; print(json.dumps({call}))"
        runs = []
        for _ in range(0 if form == "tfds" else 2):  # the second one finds the index that the first one kept
            process = [sys.executable, "-c", code]
            output = subprocess.run(process, env=environment, check=True, stdout=subprocess.PIPE).stdout
            runs.append(json.loads(output))
        facts = {"first": runs[0]["seconds"], "first_mib": runs[0]["mib"], **runs[1]} if runs else {}
        rows.append({"form": form, **facts, **is_exact(form, folder / "images" / form)})
    speeds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(ROUNDS):
        for form in forms:
            speeds[form].append(decoded(form, folder / "images" / form))
    return [{**row, "images_per_second": statistics.median(speeds[row["form"]])} for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    from models.analysis.tables import markdown_table

    shown = {  # key of a row: column and format
        "entries": ("entries", ",.0f"),
        "first": ("opened first (s)", ".1f"),
        "first_mib": ("memory (MiB)", ".0f"),
        "seconds": ("again (s)", ".1f"),
        "mib": ("memory (MiB)", ".0f"),
        "lookups": ("lookups/s", ",.0f"),
        "images_per_second": ("images/s", ".0f"),
    }
    columns = ("source", *(column for column, _ in shown.values()), "restart", "2 processes")
    cells = [
        (
            f"`{row['form']}:`",
            *(format(row[key], form) if key in row else "" for key, (_, form) in shown.items()),
            *("same bits" if row[key] else "DIFFERENT" for key in ("restart", "shards")),
        )
        for row in rows
    ]
    return markdown_table(columns, cells)


def main() -> None:
    """Measures, prints the table, and writes it with its rows."""
    import jax

    from models.errors import UserError, choice_error
    from train.recording import summary
    from train.storage.files import write_atomically, write_json

    for form in (names := FLAGS.forms):
        if form not in FORMS:
            raise choice_error("--forms", form, FORMS)
    if not FLAGS.folder:
        raise UserError("--folder is missing: where the sets are made, e.g. --folder=/tmp/sources")
    rows = measure(Path(FLAGS.folder), names, FLAGS.entries)
    text = table(rows)
    command.console().print(text, soft_wrap=True)
    if FLAGS.out:
        out = Path(FLAGS.out)
        out.mkdir(parents=True, exist_ok=True)
        environment = summary.environment(jax.local_devices())
        write_json(out / "sources.json", {"rows": rows, **environment})
        where = f"{environment['device']}, commit {environment['commit']}"
        write_atomically(out / "sources.md", "\n\n".join(("# Image sources", where, text)) + "\n")


if __name__ == "__main__":  # only here: absl has one table of flags for the process
    FLAGS = flags.FLAGS
    command.define_path("folder", "", "Folder in which the sets are made; kept, so that a second call is fast.")
    flags.DEFINE_list("forms", list(FORMS), "Forms to measure.")
    flags.DEFINE_integer("entries", 1_300_000, "Entries of the sets that are only opened.", lower_bound=1000)
    command.define_path("out", "", "Folder of the results, sources.json and sources.md.")
    cli.run(main, USAGE)

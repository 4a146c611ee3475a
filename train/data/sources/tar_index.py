"""An index of the members of tar files, and sources that read the members by it, without unpacking anything.

A scan says which members of a tar are examples; see webdataset.py and tars.py. The index has 28 bytes and a name per
example, and is kept in the machine's cache (kept.py).
"""

import concurrent.futures
import itertools
import json
import os
import threading
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from models.weights.foreign import Damaged, reading
from train.data import identity
from train.data.identity import Digest
from train.data.names import Names
from train.data.options import Options
from train.data.source import Indices, Source
from train.data.sources import kept, listing

MOST_OPEN = 64  # files that a process holds open at once
_THREADS = 4
_CHUNK = 1 << 16  # keys that are hashed at once

Entry = tuple[bytes, str, int, int]  # name, group (a text on which the label depends), offset, size
Scan = Callable[[int, str, Counter], Iterable[Entry]]  # (descriptor, path, counts of what it leaves out)


class Index:
    """The examples in some tar files.

    Attributes:
      paths: the files.
      shard: number of the file of each example, int32 [N].
      offset, size: where its image lies in the file, in bytes, int64 [N].
      names: its name within the file or its group.
      code: number of its group in `groups`, int32 [N].
      groups: texts on which labels depend: folders, or labels as they are written.
      left_out: numbers of members that are no examples, by reason.
    """

    def __init__(self, paths: Sequence[str], arrays: Mapping[str, np.ndarray]):
        self.paths = tuple(paths)
        self.shard, self.offset, self.size, self.code = (arrays[name] for name in ("shard", "offset", "size", "code"))
        self.names = Names.of_lengths(arrays["blob"].tobytes(), arrays["length"])
        self.groups: tuple[str, ...] = tuple(json.loads(arrays["groups"].tobytes()))
        self.left_out = Counter(json.loads(arrays["left_out"].tobytes()))

    def __len__(self) -> int:
        return len(self.shard)


def index(kind: str, paths: Sequence[str], scan: Scan, by_name: bool = False) -> Index:
    """Returns the index of tar files, the kept one where they have not changed.

    1.3 million images in 130 tars take 12 s of a core the first time, and half a second with the kept index; the
    memory of the process grows by 190 MB at most (AMD EPYC, files in the system's cache).

    Args:
      kind: names the scan in the cache.
      paths: the files.
      scan: see the top of this file.
      by_name: whether to sort the examples of a file by group and name, and to refuse a name that is there twice.

    Raises:
      UserError: a file cannot be read or is not a whole, uncompressed tar, or as `scan` does.
    """
    # Scans leave out what PIL cannot read, and another version of PIL reads other formats
    kind = f"{kind}-{Digest().add(*sorted(listing.endings())).short()}"
    return Index(paths, kept.kept(kind, paths, lambda: _build(paths, scan, by_name)))


def _build(paths: Sequence[str], scan: Scan, by_name: bool) -> kept.Arrays:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(lambda path: _Part(path, scan, by_name), paths))
    codes: dict[str, int] = {}
    numbers = [np.array([codes.setdefault(group, len(codes)) for group in part.groups], np.int32) for part in parts]
    left_out = sum((part.left_out for part in parts), Counter())

    return {
        "shard": np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.offset) for part in parts]),
        "offset": np.concatenate([part.offset for part in parts]),
        "size": np.concatenate([part.size for part in parts]),
        "code": np.concatenate([number[part.code] for number, part in zip(numbers, parts, strict=True)]),
        "length": np.concatenate([part.length for part in parts]),
        "blob": np.concatenate([part.blob for part in parts]),
        "groups": np.frombuffer(json.dumps(list(codes)).encode(), np.uint8),
        "left_out": np.frombuffer(json.dumps(left_out).encode(), np.uint8),
    }


class _Part:
    """The index of one file."""

    def __init__(self, path: str, scan: Scan, by_name: bool):
        offsets, sizes, codes, lengths = array("q"), array("q"), array("i"), array("i")
        blob, groups, self.left_out = bytearray(), {}, Counter()
        with reading(identity.shown(path), ".tar"), open(path, "rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # reading ahead would read the images, too
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for name, group, offset, size in scan(file.fileno(), path, self.left_out):
                offsets.append(offset)
                sizes.append(size)
                codes.append(groups.setdefault(group, len(groups)))
                lengths.append(len(name))
                blob += name
            self.groups = tuple(groups)
            self.offset, self.size = np.frombuffer(offsets, np.int64), np.frombuffer(sizes, np.int64)
            self.code, self.length = np.frombuffer(codes, np.int32), np.frombuffer(lengths, np.int32)
            self.blob = np.frombuffer(blob, np.uint8)
            if by_name:
                self._sort(bytes(blob))

    def _sort(self, blob: bytes) -> None:
        """Sorts the examples by group and name; raises Damaged if a name is there twice."""
        names, order = Names.of_lengths(blob, self.length), np.argsort(self.code, kind="stable")
        ends = np.cumsum(np.bincount(self.code, minlength=len(self.groups)))
        for group, start, stop in zip(self.groups, [0, *ends], ends, strict=False):
            texts = [(names[i], i) for i in order[start:stop].tolist()]
            texts.sort()
            order[start:stop] = [i for _, i in texts]
            if twice := next((a for (a, _), (b, _) in itertools.pairwise(texts) if a == b), None):
                raise Damaged(f"member '{identity.shown(f'{group}/{twice}'[:200])}' is there twice")
        self.offset, self.size, self.code = self.offset[order], self.size[order], self.code[order]
        self.length, self.blob = self.length[order], np.frombuffer(names.take(order).joined(), np.uint8)


class OpenFiles:
    """Files that are read at any place, of which few are open at once; each process opens them for itself."""

    def __init__(self, paths: Sequence[str]):
        self.paths = tuple(paths)
        self._lock, self._open, self._users = threading.Lock(), OrderedDict(), Counter()

    def __getstate__(self) -> tuple[str, ...]:
        return self.paths

    def __setstate__(self, paths: tuple[str, ...]) -> None:
        self.__init__(paths)

    def __del__(self, close: Callable[[int], None] = os.close):  # `os` may be gone when the interpreter ends
        for file in self._open.values():
            close(file)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of file `number`; raises UserError if they are not there any more."""
        path = self.paths[number]
        with reading(identity.shown(path), ".tar"):
            file = self._taken(number)
            try:
                content = os.pread(file, size, offset)
                while len(content) < size and (more := os.pread(file, size - len(content), offset + len(content))):
                    content += more
            finally:
                with self._lock:
                    self._users[number] -= 1
            if len(content) < size:
                raise Damaged("it was cut short after it was opened")
            return content

    def _taken(self, number: int) -> int:
        """Returns the descriptor of a file, which stays open until its number of users falls to zero."""
        with self._lock:
            if number not in self._open:
                for other in [other for other in self._open if not self._users[other]]:
                    if len(self._open) < MOST_OPEN:
                        break
                    os.close(self._open.pop(other))
                self._open[number] = os.open(self.paths[number], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self._open.move_to_end(number)
            self._users[number] += 1
            return self._open[number]


class TarSource(Source):
    """Images that are members of tar files.

    Attributes:
      keys: by group, the beginning of an example's key, which ends with its name.
    """

    def __init__(
        self,
        index: Index,
        rows: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        options: Options,
        keys: Sequence[str] = (),
    ):
        """Takes some of the examples of an index.

        Args:
          index: the index.
          rows: numbers of the examples in the index, int64 [n].
          labels: their labels, int32 [n].
          classes: names of the classes.
          options: see `Options`.
          keys: see the class; none where the names are the keys.
        """
        self._files, self.keys = OpenFiles(index.paths), tuple(keys)
        self._shard, self._offset, self._size = index.shard[rows], index.offset[rows], index.size[rows]
        self._names, self._code, self._labels = index.names.take(rows), index.code[rows], labels
        super().__init__(len(rows), classes, (None, None, 3), options)

    def fetch(self, indices: Indices) -> list[tuple[bytes, int]]:
        return [
            (self._files.read(int(self._shard[i]), int(self._offset[i]), int(self._size[i])), int(self._labels[i]))
            for i in indices
        ]

    def key(self, index: int) -> str:
        return (self.keys[self._code[index]] if self.keys else "") + self._names[index]

    def name(self, index: int) -> str:
        return identity.shown(f"{self._files.paths[self._shard[index]]}: {self.key(index)}")

    def known_labels(self) -> np.ndarray:
        return self._labels

    def identity(self) -> dict[str, str | int]:
        """Covers all names, sizes and labels, and both ends of a sample of the images, but not how they are packed."""
        digest = Digest().add_array(self._size).add_array(self._labels).add(self.classes)
        for start in range(0, self.count, _CHUNK):
            keys = [self.key(i) for i in range(start, min(start + _CHUNK, self.count))]
            digest.add("\0".join(keys).encode("utf-8", "surrogateescape"))
        for i in identity.sample(self.count):
            content = self.fetch([i])[0][0]
            digest.add(content[: identity.EDGE], content[-identity.EDGE :])
        return {"images": self.count, "content": digest.short()}


def report(title: str, source: Source, paths: Sequence[str], left_out: Counter) -> str:
    """Returns "tar x: 480 images in 3 classes, in 2 files (4 .txt left out)"."""
    labels = source.known_labels()
    classes = len(np.unique(labels)) if labels is not None else len(source.classes)
    count = f"{classes:,} of {len(source.classes):,}" if classes < len(source.classes) else f"{classes:,}"
    others = listing.words(left_out)
    files = f", in {len(paths):,} files" * (len(paths) > 1)
    return f"{title}: {len(source):,} images in {count} classes{files}" + f" ({others} left out)" * bool(others)

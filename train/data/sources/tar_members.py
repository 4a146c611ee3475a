"""Reads the headers of a tar file without its contents, and checks them: tarfile takes three times as long.

All of V7, ustar, GNU's and POSIX's (pax) formats are read, as GNU tar, bsdtar, Python's tarfile and webdataset write
them: POSIX.1-2017, `pax`, "ustar Interchange Format", and the manual of GNU tar, "Basic Tar Format".
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from models.weights.foreign import Damaged

BLOCK = 512
LONGEST = 1 << 14  # bytes of a name
_LARGEST = 1 << 20  # bytes of a pax header, which holds names and times
_PADDING = 1 << 26  # bytes of zeros that a tar may have behind its end
_NEAR, _FAR = 1 << 18, 1 << 12  # bytes read at once, where members are small and where they are large
_CHECKED = 1024  # headers whose checksums are compared at once
_FILES = (b"0", b"7", b"\0")
_WITHOUT_CONTENT = b"123456"  # links, devices and folders: their size says nothing
_SPARSE = b"GNU.sparse."
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")  # what such files begin with
UNPACK = "unpack it once, to a .tar, by gunzip (bunzip2, unxz, zstd -d)"


class Member(NamedTuple):
    """One member of a tar.

    Attributes:
      name: its path.
      offset: of its first byte in the file.
      size: in bytes.
      is_file: False for folders, links, devices and sparse files, whose bytes are not there as they are.
    """

    name: bytes
    offset: int
    size: int
    is_file: bool


def members(file: int, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Yields the members of a tar, in its order.

    Args:
      file: descriptor of the open file.
      start: where the tar begins in the file, which may be a tar of tars.
      stop: where it ends; None for the end of the file.

    Raises:
      Damaged: the tar was cut short, is compressed, or is damaged. The text does not name the file.
      OSError: it cannot be read.
    """
    walk = _Walk(file, start, os.fstat(file).st_size if stop is None else stop)
    try:
        yield from walk.members()
    except (ValueError, IndexError) as error:  # a checksum may explain why a field makes no sense
        walk.check()
        raise error if isinstance(error, Damaged) else walk.damaged() from None
    walk.check()


class _Walk:
    """The state of reading one tar: a window of the file, and headers whose checksums are not compared yet."""

    def __init__(self, file: int, start: int, stop: int):
        self.file, self.start, self.stop, self.position = file, start, stop, start
        self._window, self._base, self._last = b"", start, start
        self._headers: list[bytes] = []

    def members(self) -> Iterator[Member]:
        name, size, is_sparse = b"", -1, False  # of a header that describes the next one
        while (header := self._header()) is not None:
            kind, length = header[156:157], _number(header[124:136])
            if kind in (b"L", b"x"):
                content = self._content(length)
                if kind == b"L":
                    name = content.split(b"\0", 1)[0]
                else:
                    name, size, is_sparse = _pax(content, name)
                continue
            if kind in (b"K", b"g"):
                self._content(length)
                continue
            length = size if size >= 0 else length
            path, at = name or _path(header), self.position
            if len(path) > LONGEST:
                raise Damaged(f"a name has {len(path):,} bytes; allowed: {LONGEST:,}")
            if kind == b"S":
                self._skip_sparse_maps(header)
            if kind not in _WITHOUT_CONTENT:
                self._skip(length, path)
            is_file = kind in _FILES and not path.endswith(b"/") and not is_sparse
            yield Member(path, at, length, is_file)
            name, size, is_sparse = b"", -1, False

    def _header(self) -> bytes | None:
        """Returns the next header, None at the end mark."""
        header = self._read(BLOCK)
        if self.position == self.start and header.startswith(_COMPRESSED):
            raise Damaged(f"it is compressed, and has no random access: {UNPACK}")
        if len(header) < BLOCK:
            if self.position == self.start:
                raise Damaged("it is empty, not a tar" if self.start == self.stop else "this is not a tar")
            raise Damaged(f"it was cut short: it ends at byte {self.stop:,} without the end mark of a tar")
        if not header[0] and header.count(0) == BLOCK:
            left = self.stop - self.position
            if left > _PADDING or self._has_more():
                raise Damaged(f"{left:,} bytes follow its end mark: join tars by tar --concatenate, not by cat")
            return None
        self._headers.append(header)
        if len(self._headers) >= _CHECKED or self.position == self.start:
            self.check()
        self.position += BLOCK
        return header

    def check(self) -> None:
        """Compares the checksums of the headers that were read.

        Raises:
          Damaged: one is wrong.
        """
        headers, self._headers = self._headers, []
        if not headers:
            return
        blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
        outside = np.r_[:148, 156:BLOCK]  # the checksum itself counts as spaces
        unsigned = blocks[:, outside].sum(1, dtype=np.int64) + 8 * ord(" ")
        for header, total in zip(headers, unsigned.tolist(), strict=True):
            try:
                stated = _number(header[148:156])
            except ValueError:
                stated = -1
            if stated != total and stated != total - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
                raise self.damaged()

    def damaged(self) -> Damaged:
        """Returns the error for a header that makes no sense."""
        if self.position <= self.start + BLOCK:
            return Damaged("this is not a tar")
        return Damaged(f"a header before byte {self.position:,} is damaged")

    def _read(self, length: int) -> bytes:
        """Returns up to `length` bytes at the position, without moving it."""
        at = self.position - self._base
        if not 0 <= at <= at + length <= len(self._window):
            ahead = _NEAR if self.position - self._last < _NEAR // 8 else _FAR
            self._last = self._base = self.position
            most = min(max(length, ahead), self.stop - self.position)
            self._window, at = os.pread(self.file, max(0, most), self.position), 0
        self._last = self.position
        return self._window[at : at + length]

    def _content(self, length: int) -> bytes:
        """Returns the content of a header that describes the next one, and moves behind it."""
        if length > _LARGEST:
            raise Damaged(f"a header has {length:,} bytes; allowed: {_LARGEST:,}")
        content = self._read(length)
        self._skip(length, b"(header)")
        return content

    def _skip(self, length: int, name: bytes) -> None:
        left = self.stop - self.position
        if length > left:
            self.check()  # the size may be damaged
            shown = name[:100].decode("utf-8", "backslashreplace")
            raise Damaged(f"it was cut short: member '{shown}' has {length:,} bytes, of which {left:,} are there")
        self.position += -(-length // BLOCK) * BLOCK

    def _skip_sparse_maps(self, header: bytes) -> None:
        """Moves behind the maps of an old sparse file of GNU's, which come before its content."""
        more = header[482:483] not in (b"", b"\0")
        while more:
            block = self._read(BLOCK)
            more = block[504:505] not in (b"", b"\0")
            self._skip(BLOCK, b"(map)")

    def _has_more(self) -> bool:
        """Returns whether anything but zeros follows the end mark."""
        parts = (os.pread(self.file, min(_NEAR, self.stop - at), at) for at in range(self.position, self.stop, _NEAR))
        return any(part.count(0) < len(part) for part in parts)


def _number(field: bytes) -> int:
    """Returns a number in octal digits, or in GNU's binary form; raises ValueError for anything else."""
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] == 0xFF or number >= 1 << 62:
            raise ValueError
        return number
    digits = field.split(b"\0", 1)[0].strip()
    if not digits.isdigit() and digits:
        raise ValueError
    return int(digits or b"0", 8)


def _path(header: bytes) -> bytes:
    """Returns the path in a header; only POSIX's formats part long paths into two fields."""
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _pax(content: bytes, name: bytes) -> tuple[bytes, int, bool]:
    """Returns the path, the size (-1 if not stated) and whether the file is sparse, by the records of a pax header."""
    size, is_sparse, position = -1, False, 0
    while position < len(content):
        space = content.index(b" ", position, position + 20)
        length = int(content[position:space])
        record = content[space + 1 : position + length]
        if length < 5 or position + length > len(content) or record[-1:] != b"\n":
            raise ValueError
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise ValueError
        if key == b"path":
            name = value.rstrip(b"\0")
        elif key == b"size":
            size = int(value)
            if size < 0:
                raise ValueError
        is_sparse = is_sparse or key.startswith(_SPARSE)
        position += length
    return name, size, is_sparse

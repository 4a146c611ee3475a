"""Files with arbitrary content, built byte by byte, and an assertion that a file is refused."""

import io
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models import weights
from models.errors import UserError

TORCH = dict(np.load(Path(__file__).with_name("torch_files.npz")))  # make_torch_files.py describes them
A, B = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4, dtype=np.float32)
MOST_MEMORY = 48 << 20  # bytes for a hostile file of a few hundred: nothing that it claims is allocated


def archive(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def npy(shape="(2,)", descr="'<f4'", data=bytes(8), version=1, order="False"):
    """Returns an .npy file with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def edited(data, offset, form, value):
    """Returns a zip archive with a changed field in the directory entry of its only member."""
    changed, start = bytearray(data), data.index(b"PK\x01\x02")
    struct.pack_into(form, changed, start + offset, value)
    return bytes(changed)


def refused(path, data, act=weights.read, message=None):
    """Asserts that a file is refused in one line, quickly, and without allocating what it claims to hold."""
    path.write_bytes(data)
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            act(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 700 and str(error.value).isprintable()
    assert peak < MOST_MEMORY and time.perf_counter() - start < 5
    return str(error.value)

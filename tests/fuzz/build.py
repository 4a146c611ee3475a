"""Files with anything in them, built byte by byte, and the check that one is refused."""

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

TORCH = dict(np.load(Path(__file__).with_name("torch_files.npz")))  # make_torch_files.py says what they are
A, B = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4, dtype=np.float32)
MOST_MEMORY = 48 << 20  # bytes for a hostile file of a few hundred: none of what it claims is allocated


def archive(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def npy(shape="(2,)", descr="'<f4'", data=bytes(8), version=1, order="False"):
    """An .npy array with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def edited(data, offset, form, value):
    """A zip archive with another value in a field of its only entry in the directory."""
    changed, start = bytearray(data), data.index(b"PK\x01\x02")
    struct.pack_into(form, changed, start + offset, value)
    return bytes(changed)


def refused(path, data, act=weights.read, message=None):
    """Asserts that a file is refused in one line, quickly, and without memory for what it claims."""
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

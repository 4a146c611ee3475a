"""Native code for CPUs: compiles C++ once per machine and loads it, where there is a compiler ($CXX, or g++).

Libraries are in $XDG_CACHE_HOME/ablate (~/.cache/ablate), under names that change with the sources, the options, the
compiler and the processor.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.kernels import runtime

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")


def library(name: str, sources: Sequence[Path], options: Sequence[str] = (), key: bytes = b"") -> ctypes.CDLL | None:
    """Loads a library; the first call on a machine compiles it.

    Args:
      name: the beginning of its file's name.
      sources: C++ files, and the headers of this project that they include.
      options: further arguments of the compiler, such as libraries to link.
      key: anything else on which the machine code depends, such as versions.

    Returns:
      The library, or None: native code is disabled (see runtime.py), there is no working compiler, a header or a
      library is missing, or there is no folder to write to.
    """
    if not runtime.enabled():
        return None
    try:
        return ctypes.CDLL(str(_compiled(name, sources, options, key)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(name: str, sources: Sequence[Path], options: Sequence[str], key: bytes) -> Path:
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    parts = [*(path.read_bytes() for path in sources), *map(os.fsencode, options), version, key, runtime.processor()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    folder = runtime.cache_folder()
    path = folder / f"{name}-{digest[:16]}.so"
    if not _is_intact(path):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as build:  # other processes may compile it too: the last one wins
            files = [str(source) for source in sources if source.suffix == ".cc"]
            command = [compiler, *_FLAGS, *files, *options, "-o", f"{build}/{name}.so"]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            _digest_of(path).write_text(hashlib.sha256(Path(f"{build}/{name}.so").read_bytes()).hexdigest())
            os.replace(f"{build}/{name}.so", path)
    return path


def _digest_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_intact(path: Path) -> bool:
    """Returns whether a library has the compiler's checksum; loading a damaged one would crash the process."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_of(path).read_text()
    except (OSError, ValueError):
        return False

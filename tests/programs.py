"""Compiled programs that one run of the tests leaves for the next one.

The processes of a run share a folder, JAX_COMPILATION_CACHE_DIR. The key of a program holds all that it depends on: its
operations, the flags, and the version of jaxlib; the place holds the processor. A run links the kept programs into its
folder, and keeps what is new in it at its end, so a process that is killed while it writes harms one run alone.

    python -m tests.programs

prints the ten programs that took longest to compile.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

MOST_BYTES = 2 * 2**30  # the programs of a run take about a third


def begin():
    """Makes the folder of a run, names it in the environment, links the kept programs into it, and returns it."""
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablate"  # links need one file system
    with contextlib.suppress(OSError):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob("ablate-tests-*"):  # by runs that were killed
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix="ablate-tests-", dir=parent if os.access(parent, os.W_OK) else None)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"  # a cache for GPUs, whose path would be in the keys
    with contextlib.suppress(OSError):
        for file in kept().iterdir():
            os.link(file, Path(folder) / file.name)
    return Path(folder)


def kept():
    """Returns the folder of the kept programs for this kind of processor."""
    from models.kernels import runtime  # imports JAX, which reads the environment

    return runtime.cache_folder() / f"tests-{hashlib.sha256(runtime.processor()).hexdigest()[:16]}"


def end(folder):
    """Keeps the new programs of a run that are whole, and removes its folder."""
    with contextlib.suppress(OSError):
        kept().mkdir(parents=True, exist_ok=True)
        for name in set(os.listdir(folder)) - set(os.listdir(kept())):
            with contextlib.suppress(Exception):  # whatever a part of a file makes of it
                seconds(folder / name)
                os.link(folder / name, kept() / name)
        files = sorted(kept().iterdir(), key=lambda file: file.stat().st_mtime)
        excess = sum(file.stat().st_size for file in files) - MOST_BYTES
        for file in files:
            if excess > 0:
                excess -= file.stat().st_size
                file.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def seconds(file):
    """Returns the whole seconds that a program took to compile; raises an error for a part of a file."""
    from jax._src import compilation_cache as jax_cache

    return jax_cache.extract_executable_and_time(jax_cache.decompress_executable(file.read_bytes()))[1]


if __name__ == "__main__":
    longest = sorted(((seconds(file), file.stat().st_size, file.name) for file in kept().iterdir()), reverse=True)
    for time_of, size, name in longest[:10]:
        print(f"{time_of:3d} s {size / 2**10:8,.0f} KiB  {name}")

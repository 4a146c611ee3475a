"""Native code for CPUs: compiles conv.cc and signs.cc once per machine, and lets XLA's CPU programs call them.

It is used if the settings of models/kernels/runtime.py are enabled and there is a C++ compiler ($CXX, or g++). The
library is in $XDG_CACHE_HOME/ablate (~/.cache/ablate), under a name that changes with the source, jaxlib, the compiler
and the processor. Without it, convolutions use lowerings that XLA compiles.
"""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from models.kernels import runtime

SOURCES = [Path(__file__).with_name(name) for name in ("conv.cc", "signs.cc")]
_HEADER = Path(__file__).with_name("native.h")
TARGETS = ("conv_forward", "conv_input_gradient", "conv_kernel_gradient", "conv_signs")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")


@functools.cache
def available() -> bool:
    """Returns whether CPU programs can call the library; the first call on a machine compiles it (8 s)."""
    if not runtime.enabled():
        return False
    try:
        library = ctypes.CDLL(str(_compiled()))
        targets = [getattr(library, name) for name in TARGETS]
    except (OSError, AttributeError, subprocess.SubprocessError):  # no working compiler, or no writable folder
        return False
    for name, target in zip(TARGETS, targets, strict=True):
        jax.ffi.register_ffi_target(f"ablate_{name}", jax.ffi.pycapsule(target), platform="cpu")
    return True


def _compiled() -> Path:
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    sources = [path.read_bytes() for path in (_HEADER, *SOURCES)]
    key = hashlib.sha256(b"\0".join([*sources, version, jaxlib.version.__version__.encode(), runtime.processor()]))
    folder = runtime.cache_folder()
    library = folder / f"conv-{key.hexdigest()[:16]}.so"
    if not _is_intact(library):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as build:  # other processes may compile it too: the last one wins
            command = [compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}", *map(str, SOURCES), "-o", f"{build}/conv.so"]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            _digest_of(library).write_text(hashlib.sha256(Path(f"{build}/conv.so").read_bytes()).hexdigest())
            os.replace(f"{build}/conv.so", library)
    return library


def _digest_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_intact(library: Path) -> bool:
    """Returns whether a library has the compiler's checksum; loading a damaged one would crash the process."""
    try:
        return hashlib.sha256(library.read_bytes()).hexdigest() == _digest_of(library).read_text()
    except (OSError, ValueError):
        return False


def call(
    target: str, a: jax.Array, b: jax.Array, shape: Sequence[int], groups: int, strides, padding, dilation
) -> jax.Array:
    """Calls one of TARGETS on two arrays and returns a float32 array of `shape`.

    conv_forward          x [N, H, W, C], kernel [kh, kw, C / groups, D] -> y [N, H', W', D]
    conv_input_gradient   dy [N, H', W', D], kernel with swapped channels [kh, kw, D / groups, C] -> dx
    conv_kernel_gradient  x, dy -> dk [kh, kw, C / groups, D]
    conv_signs            x, bits of a kernel's signs uint32 [kh, kw, C / 32, D, rounded up to 16] -> y; 1 group
    """
    pairs = {"strides": strides, "low": [low for low, _ in padding], "dilation": dilation}
    run = jax.ffi.ffi_call(f"ablate_{target}", jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential")
    attributes = {name: np.asarray(pair, np.int64) for name, pair in pairs.items()}
    return run(a, b, groups=np.int64(groups), **attributes)

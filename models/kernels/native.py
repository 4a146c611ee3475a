"""Native convolutions for CPUs: conv.cc, signs.cc, blocks.cc and fused.cc, which XLA's CPU programs call.

They are used if the settings of models/kernels/runtime.py are enabled and there is a C++ compiler (build.py). Without
them, convolutions use lowerings that XLA compiles.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from models.kernels import build

SOURCES = [Path(__file__).with_name(name) for name in ("conv.cc", "signs.cc", "blocks.cc", "fused.cc", "native.h")]
TARGETS = ("conv_forward", "conv_input_gradient", "conv_kernel_gradient", "conv_signs", "conv_blocks", "conv_fused")


@functools.cache
def available() -> bool:
    """Returns whether CPU programs can call the library; the first call on a machine compiles it (8 s)."""
    library = build.library("conv", SOURCES, [f"-I{jax.ffi.include_dir()}"], key=jaxlib.version.__version__.encode())
    try:
        targets = [getattr(library, name) for name in TARGETS]
    except AttributeError:  # there is no library
        return False
    for name, target in zip(TARGETS, targets, strict=True):
        jax.ffi.register_ffi_target(f"ablate_{name}", jax.ffi.pycapsule(target), platform="cpu")
    return True


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

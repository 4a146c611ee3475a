"""Process settings that make JAX fast on a CPU; set before JAX starts a backend, switched off by ABLATE_CPU_TUNING=0.

Two things, measured in ../shared/reference/CPU_SPEED.md (ResNet-20 training step, 2 cores):
  memory   XLA's CPU client frees its large buffers after every step and glibc returns them to the kernel, so each
           step faults in hundreds of megabytes again. Told to keep them, the stock step falls from 670 to 560 ms.
  YNNPACK  jaxlib carries this library for matrix products, convolutions, reductions and elementwise chains, but does
           not use it by default: 560 to 300 ms.
"""

import ctypes
import importlib.metadata
import os
import sys

SWITCH = "ABLATE_CPU_TUNING"
_YNN_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_YNN_DEFAULT = "dot,eltwise,reduce"
# jaxlib aborts the process on a flag that it does not know, so only releases where this one was tried get it.
_YNN_RELEASES = ((0, 10), (0, 11))

# glibc's mallopt numbers (malloc.h) and the values: one arena for all threads (a buffer freed by one thread serves the
# next), nothing through mmap (such blocks go back to the kernel when freed), and a heap that does not shrink.
_MALLOPT = (
    (-8, 1),  # M_ARENA_MAX
    (-4, 0),  # M_MMAP_MAX
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD, bytes
    (-2, 64 * 2**20),  # M_TOP_PAD, bytes that the heap grows by at least
)


def enabled() -> bool:
    """Whether the settings are wanted: yes, unless ABLATE_CPU_TUNING is 0, false, off or no."""
    return os.environ.get(SWITCH, "1").strip().lower() not in ("0", "false", "off", "no")


def _has_ynn() -> bool:
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) in _YNN_RELEASES


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory in the process. Returns whether it could (not glibc: it changes nothing)."""
    if not sys.platform.startswith("linux"):
        return False
    # a user's own choice of allocator settings stands
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, mallopt = libc.gnu_get_libc_version, libc.mallopt
    except (OSError, AttributeError):
        return False
    accepted = [mallopt(option, value) == 1 for option, value in _MALLOPT]  # every one is set, whatever the others say
    return all(accepted)


def xla_flags(flags: str) -> str:
    """XLA_FLAGS with what is missing appended; a flag that `flags` sets already is left as it is."""
    if _YNN_OPTION in flags or not _has_ynn():
        return flags
    return f"{flags} --{_YNN_OPTION}={_YNN_DEFAULT}".strip()


def tune() -> None:
    """Applies the settings to this process. Call it before JAX starts a backend; it does not import JAX.

    On a machine with an accelerator they act on the host alone: the allocator's on the input pipeline, the XLA flag on
    what is compiled for the CPU backend.
    """
    if not enabled():
        return
    keep_freed_memory()
    flags = xla_flags(os.environ.get("XLA_FLAGS", ""))
    if flags:
        os.environ["XLA_FLAGS"] = flags


def compiler_options(fusions: str) -> dict[str, str]:
    """Options for `jax.jit(..., compiler_options=...)`: which kinds of operation YNNPACK gets in this function.

    fusions: comma-separated from "dot", "eltwise", "reduce". Returns {} where the settings are switched off, where
    XLA_FLAGS names the option without us, or where jaxlib has no such option.
    """
    if not enabled() or not _has_ynn() or f"{_YNN_OPTION}={_YNN_DEFAULT}" not in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_YNN_OPTION: ",".join(f"LIBRARY_FUSION_TYPE_{kind.strip().upper()}" for kind in fusions.split(","))}

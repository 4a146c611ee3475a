"""Process settings that make JAX fast on a CPU, and the cache of compiled programs.

`tune` must run before JAX starts a backend; ABLATE_CPU_TUNING=0 disables it. It has two parts, measured on training
steps (2 cores with AVX-512, jax 0.10.2):
  memory   XLA's CPU client frees its large buffers after every step and glibc returns them to the kernel, so each
           step faults in hundreds of megabytes again. Keeping them reduces a step of ResNet-20 from 670 to 560 ms. The
           disadvantage is that a process never shrinks below its peak. The memory is also requested in pages of 2 MiB,
           which most kernels provide: a step of DenseNet-121 at 32x32 takes 298 instead of 354 ms.
  YNNPACK  jaxlib has this library for matrix products, convolutions, reductions and elementwise chains, but does not
           use it for all of them by default. Steps in ms with "dot", "dot,reduce", "dot,eltwise,reduce":
             ResNet-20, 32x32, batch 128    247  209  231          DenseNet-121, 32x32, batch 64    279  241  297
             ConvNeXt-T, 32x32, batch 64    263  250  320          ViT-S, 32x32, batch 64           263  259  300
`keep_programs` enables JAX's persistent compilation cache; JAX_ENABLE_COMPILATION_CACHE=false disables it.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

SWITCH = "ABLATE_CPU_TUNING"
_YNN_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_YNN_DEFAULT = "dot,reduce"
# jaxlib aborts the process on an unknown flag, so the flag is set only for releases that were tested with it.
_YNN_RELEASES = ((0, 10), (0, 11))

# glibc's mallopt options (malloc.h) and their values: one arena for all threads, so that threads reuse each other's
# buffers; no mmap, whose blocks return to the kernel when freed; and a heap that does not shrink.
_MALLOPT = (
    (-8, 1),  # M_ARENA_MAX
    (-4, 0),  # M_MMAP_MAX
    (-1, -1),  # M_TRIM_THRESHOLD, bytes; -1 means never
    (-2, 64 * 2**20),  # M_TOP_PAD, minimum growth of the heap in bytes
)
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 * 2**20  # madvise(2) on Linux
# Size of the cache of compiled programs; the least recently used are deleted. A step of ResNet-50 takes 0.6 MB.
_PROGRAM_BYTES = 2 * 2**30
_ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def enabled() -> bool:
    """Returns whether the settings are enabled: unless ABLATE_CPU_TUNING is 0, false, off or no."""
    return os.environ.get(SWITCH, "1").strip().lower() not in ("0", "false", "off", "no")


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Returns the bytes of this machine's memory."""
    import psutil

    return psutil.virtual_memory().total


def cache_folder() -> Path:
    """Returns the folder for files that are made once per machine: $XDG_CACHE_HOME/ablate or ~/.cache/ablate."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablate"


def processor() -> bytes:
    """Returns the processor's model and features, on which compiled machine code depends."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(line for line in lines if line.startswith((b"model name", b"flags", b"Features")))[:8192]


def keep_programs() -> None:
    """Makes JAX load programs that an earlier process compiled from `cache_folder()`; imports JAX.

    Nothing changes if the user has chosen a folder (JAX_COMPILATION_CACHE_DIR) or disabled the cache, or if the folder
    is not writable. Each kind of processor has its own folder, because programs for a CPU are machine code, and
    different machines may share a home.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    try:
        folder = cache_folder() / f"xla-{hashlib.sha256(processor()).hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    if not os.access(folder, os.W_OK):
        return
    # JAX writes a program and then its access time. If a process was killed in between, JAX would fail on the program
    # whenever it looks for programs to delete.
    names = set(os.listdir(folder))
    for name in names:
        if name.endswith("-cache") and name.removesuffix("-cache") + "-atime" not in names:
            (folder / name).unlink(missing_ok=True)
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": _PROGRAM_BYTES,
        # JAX's default is 1 s, but start-up consists of smaller programs. Tiny ones compile faster than they load.
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _has_ynn() -> bool:
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) in _YNN_RELEASES


def computes_on_cpu() -> bool:
    """Decides without JAX, by JAX_PLATFORMS or the device files of GPUs and TPUs."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(map(os.path.exists, _ACCELERATORS))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory in the process, and returns whether it does.

    Nothing changes with another C library, or if the user has configured the allocator. Nothing changes with an
    accelerator either: the host then has many threads, which are faster with one arena each.
    """
    if not sys.platform.startswith("linux") or not computes_on_cpu():
        return False
    # the user's own allocator settings take precedence
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        libc = ctypes.CDLL(None)
        _, mallopt = libc.gnu_get_libc_version, libc.mallopt  # AttributeError: not glibc
    except (OSError, AttributeError):
        return False
    accepted = [mallopt(option, value) == 1 for option, value in _MALLOPT]  # sets all options, even if one fails
    if all(accepted):
        _ask_for_huge_pages(libc)
    return all(accepted)


def on_host() -> contextlib.AbstractContextManager:
    """Returns a context in which JAX computes on the host's CPU, with full float32 precision and a large memory.

    On GPUs, products of float32 have fewer digits. The context does nothing if JAX_PLATFORMS excludes the host.
    """
    import jax

    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Makes the heap grow in huge pages.

    It reserves the next addresses, half of the machine's memory, marks them, and frees them. Addresses cost nothing
    until they are written to. If the kernel refuses, nothing changes.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    block = libc.malloc(size)
    if block:
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
        libc.free(block)


def xla_flags(flags: str) -> str:
    """Appends missing flags to the value of XLA_FLAGS; a flag that it already sets is not changed."""
    if _YNN_OPTION in flags or not _has_ynn():
        return flags
    return f"{flags} --{_YNN_OPTION}={_YNN_DEFAULT}".strip()


def tune() -> None:
    """Applies the settings to this process; must be called before JAX starts a backend, and does not import JAX.

    The user's XLA_FLAGS take precedence. The flag affects only programs for the CPU backend.
    """
    if not enabled():
        return
    keep_freed_memory()
    flags = xla_flags(os.environ.get("XLA_FLAGS", ""))
    if flags:
        os.environ["XLA_FLAGS"] = flags

"""Process settings: what makes JAX fast on a CPU, and the cache of compiled programs.

`tune` comes before JAX starts a backend and is switched off by ABLATE_CPU_TUNING=0. Two things, measured on training
steps (2 cores with AVX-512, jax 0.10.2):
  memory   XLA's CPU client frees its large buffers after every step and glibc returns them to the kernel, so each
           step faults in hundreds of megabytes again. Told to keep them, ResNet-20's falls from 670 to 560 ms. The
           price: a process never shrinks below its peak. Kept memory is also asked for in pages of 2 MiB where the
           kernel gives them on request, as most do: a step of DenseNet-121 at 32x32 falls from 354 to 298 ms.
  YNNPACK  jaxlib carries this library for matrix products, convolutions, reductions and elementwise chains, but does
           not give it all of them by default. Steps in ms with "dot", "dot,reduce", "dot,eltwise,reduce":
             ResNet-20, 32x32, batch 128    247  209  231          DenseNet-121, 32x32, batch 64    279  241  297
             ConvNeXt-T, 32x32, batch 64    263  250  320          ViT-S, 32x32, batch 64           263  259  300
`keep_programs` turns JAX's persistent compilation cache on; JAX_ENABLE_COMPILATION_CACHE=false is its switch.
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
# jaxlib aborts the process on a flag that it does not know, so only releases where this one was tried get it.
_YNN_RELEASES = ((0, 10), (0, 11))

# glibc's mallopt numbers (malloc.h) and the values: one arena for all threads (a buffer freed by one thread serves the
# next), nothing through mmap (such blocks go back to the kernel when freed), and a heap that does not shrink.
_MALLOPT = (
    (-8, 1),  # M_ARENA_MAX
    (-4, 0),  # M_MMAP_MAX
    (-1, -1),  # M_TRIM_THRESHOLD, bytes; -1: never
    (-2, 64 * 2**20),  # M_TOP_PAD, bytes that the heap grows by at least
)
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 * 2**20  # madvise(2) on Linux
# Of compiled programs that are kept, those that were used last; a step of ResNet-50 takes 0.6 MB.
_PROGRAM_BYTES = 2 * 2**30
_ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def enabled() -> bool:
    """Whether the settings are wanted: yes, unless ABLATE_CPU_TUNING is 0, false, off or no."""
    return os.environ.get(SWITCH, "1").strip().lower() not in ("0", "false", "off", "no")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Returns the bytes of this machine's memory."""
    import psutil

    return psutil.virtual_memory().total


def cache_folder() -> Path:
    """Of what is made once a machine: $XDG_CACHE_HOME/ablate, ~/.cache/ablate."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablate"


def processor() -> bytes:
    """What machine code that was compiled for this machine depends on: the processor's model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(line for line in lines if line.startswith((b"model name", b"flags", b"Features")))[:8192]


def keep_programs() -> None:
    """Has JAX load the programs that an earlier process has compiled, from `cache_folder()`; imports JAX.

    Nothing changes where the user has chosen a folder (JAX_COMPILATION_CACHE_DIR), has switched the cache off, or where
    nothing can be written. The folder is that of a kind of processor: programs for a CPU are machine code, and machines
    of several kinds may share a home.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = cache_folder() / f"xla-{hashlib.sha256(processor()).hexdigest()[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # the latter where nobody knows the user's home
        return
    if not os.access(folder, os.W_OK):
        return
    # JAX writes a program and then its time: one without was being written by a process that was killed, and JAX would
    # fail on it whenever it looks for what to throw away.
    names = set(os.listdir(folder))
    for name in names:
        if name.endswith("-cache") and name.removesuffix("-cache") + "-atime" not in names:
            (folder / name).unlink(missing_ok=True)
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": _PROGRAM_BYTES,
        # JAX's own is 1 s, and start-up is smaller programs; the smallest cost more to keep than to compile.
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


def _computes_on_cpu() -> bool:
    """Judged without JAX: by JAX_PLATFORMS, or else by the device files of GPUs and TPUs."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(map(os.path.exists, _ACCELERATORS))


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory in the process; returns whether it does.

    Nothing changes where the C library is another, where the user has set the allocator, or where an accelerator
    computes: there the host's many threads are better off with an arena each.
    """
    if not sys.platform.startswith("linux") or not _computes_on_cpu():
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
    if all(accepted):
        _ask_for_huge_pages(libc)
    return all(accepted)


def on_host() -> contextlib.AbstractContextManager:
    """Within it JAX computes on the host's CPU, where float32 is float32 (on GPUs a product of it has fewer digits) and
    memory is large; does nothing where JAX_PLATFORMS leaves the host out.
    """
    import jax

    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Has the heap grow in huge pages: its next addresses, half of the machine's memory, are taken, marked and freed.

    Addresses cost nothing until they are written to. Where the kernel refuses, nothing is lost.
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
    """XLA_FLAGS with what is missing appended; a flag that `flags` sets already is left as it is."""
    if _YNN_OPTION in flags or not _has_ynn():
        return flags
    return f"{flags} --{_YNN_OPTION}={_YNN_DEFAULT}".strip()


def tune() -> None:
    """Applies the settings to this process. Call it before JAX starts a backend; it does not import JAX.

    What the user has set in XLA_FLAGS stays as it is. The flag concerns programs for the CPU backend alone, so that it
    does nothing to those of an accelerator.
    """
    if not enabled():
        return
    keep_freed_memory()
    flags = xla_flags(os.environ.get("XLA_FLAGS", ""))
    if flags:
        os.environ["XLA_FLAGS"] = flags

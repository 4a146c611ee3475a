"""Topologies of accelerators that are not there: XLA compiles programs for them on any machine, and nothing runs.

libtpu (the extra `topology`) compiles for TPUs, and JAX's CUDA plugin (the extra `topology_cuda`) for GPUs.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.errors import UserError, choice_error
from models.kernels.tracing import for_platform

# Number of dimensions of the grid of chips, and options that the description needs
_TPUS: dict[str, tuple[int, dict[str, Any]]] = {
    "v4": (3, {"chip_config_name": "megacore"}),  # JAX sees the two cores of a chip as one device
    "v5e": (2, {}),
    "v5p": (3, {}),
    "v6e": (2, {}),
    "tpu7x": (3, {}),  # two devices per chip
}
# What XLA asks about a GPU, from NVIDIA's data sheets and CUDA's table of compute capabilities:
# (compute capability, cores, float32 units per core, KiB of shared memory per core, bytes of memory, bytes per second,
# bytes of the second-level cache, GHz)
_GPUS: dict[str, tuple[int, int, int, int, int, int, int, float]] = {
    "a100": (8, 108, 64, 164, 85_899_345_920, 2_039_000_000_000, 41_943_040, 1.41),
    "h100": (9, 132, 128, 228, 85_899_345_920, 3_350_000_000_000, 52_428_800, 1.98),
    "h200": (9, 132, 128, 228, 151_397_597_184, 4_800_000_000_000, 52_428_800, 1.98),
}
_HOST = (2, 2, 1)  # chips per host by default, along each dimension
_GPUS_PER_HOST = 8
_SMALL = 8  # at most this many chips can be one host
_CACHE = "jax_enable_compilation_cache"
ALLOWED = (
    "TPUs as KIND:AxB or KIND:AxBxC[,slices=N], e.g. v5e:4x4, v6e:2x4, v4:2x2x2, v5p:2x2x1, tpu7x:2x2x1; "
    "GPUs as KIND:COUNT, e.g. h100:8, h200:8, a100:16"
)
_INSTALL = {  # by JAX's name of the platform
    "tpu": "pip install --no-deps 'libtpu==0.0.42.*'",
    "cuda": "pip install --no-deps jax-cuda12-plugin=={0} jax-cuda12-pjrt=={0} 'nvidia-cudnn-cu12>=9.8'",
}


class Topology(NamedTuple):
    """A topology, for which programs can be compiled.

    Attributes:
      name: its text, such as "v5e:4x4".
      platform: "tpu" or "gpu".
      devices: descriptions of its devices, on which nothing can be placed.
      memory: bytes of memory per device that a program can use.
      options: options of XLA's compiler.
    """

    name: str
    platform: str
    devices: tuple[Any, ...]
    memory: int
    options: dict[str, Any]

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Returns a context in which to trace, lower and compile programs for the topology."""
        with for_platform(self.platform), _without_cache():
            yield

    def __str__(self) -> str:
        hosts = len({device.process_index for device in self.devices})
        return f"{len(self.devices)} x {self.devices[0].device_kind}, {hosts} host{'s' * (hosts > 1)}"


def read(text: str) -> Topology:
    """Describes the topology that a text names.

    Args:
      text: see ALLOWED.

    Raises:
      UserError: the topology is unknown, or the package that compiles for it is missing, too old, or in use.
    """
    kind, _, size = text.partition(":")
    if kind in _TPUS:
        return _tpu(text, kind, size)
    if kind in _GPUS:
        return _gpu(text, kind, size)
    raise UserError(f"{choice_error('topology', kind, [*_TPUS, *_GPUS])}; {ALLOWED}")


def _tpu(text: str, kind: str, size: str) -> Topology:
    dimensions, options = _TPUS[kind]
    match = re.fullmatch(rf"([1-9]\d*(?:x[1-9]\d*){{{dimensions - 1}}})(?:,slices=([1-9]\d*))?", size)
    if not match:
        example = "x".join("2" * dimensions)
        raise UserError(
            f"topology {text}: {kind} has {dimensions} dimensions, as in {kind}:{example} or {kind}:{example},slices=2"
        )
    grid, slices = [int(length) for length in match[1].split("x")], int(match[2] or 1)
    if importlib.util.find_spec("libtpu") is None:
        raise _missing("libtpu", "tpu")
    # libtpu would look for the metadata of a TPU's host, and print what it does not find
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    padded = [*grid, 1][:3]
    if any(length % host for length, host in zip(padded, _HOST, strict=True)) and math.prod(grid) <= _SMALL:
        options = {**options, "chips_per_host_bounds": padded}
    if slices > 1:
        options = {**options, "num_slices": slices}
    devices = _described(text, "tpu", topology_name=f"{kind}:{match[1]}", **options)
    return Topology(text, "tpu", devices, _available(devices[0]), {})


def _gpu(text: str, kind: str, size: str) -> Topology:
    count = int(size) if re.fullmatch(r"[1-9]\d*", size) else 0
    if not count or (count > _GPUS_PER_HOST and count % _GPUS_PER_HOST):
        raise UserError(f"topology {text}: {kind} takes a number of GPUs, up to 8 or a multiple of 8, as in {kind}:8")
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise _missing("jax-cuda12-plugin", "cuda")
    major, cores, units, shared, memory, bandwidth, cache, clock = _GPUS[kind]
    config = f"""
      gpu_device_info {{
        cuda_compute_capability {{ major: {major} }}
        core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock}
        threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        shared_memory_per_block: 49152 shared_memory_per_core: {shared * 1024}
        shared_memory_per_block_optin: {(shared - 1) * 1024}
        device_memory_size: {memory} memory_bandwidth: {bandwidth} l2_cache_size: {cache}
      }}
      platform_name: "CUDA" device_description_str: "NVIDIA {kind.upper()}"
      dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 8 patch: 0 }}
    """
    hosts = math.ceil(count / _GPUS_PER_HOST)
    devices = _described(text, "cuda", target_config=config, topology=f"1x{hosts}x{count // hosts}")
    # Some products cannot be tuned without the GPU
    return Topology(text, "gpu", devices, memory, {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0})


def _described(text: str, platform: str, **options: Any) -> tuple[Any, ...]:
    """Returns the devices of a description.

    Raises:
      UserError: the compiler's package refuses it.
    """
    from jax.experimental import topologies

    try:
        return tuple(topologies.get_topology_desc(platform=platform, **options).devices)
    except Exception as error:  # JaxRuntimeError, and others from plugins of another version
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "lockfile" in str(error) or "in use" in str(error):
            raise UserError(
                f"topology {text}: another process compiles with libtpu; wait until it ends ({first})"
            ) from None
        if "divisible" in first or "topology" in first.lower():
            raise UserError(f"topology {text}: {first}; {ALLOWED}") from None
        install = _INSTALL[platform].format(jax.__version__)
        raise UserError(f"topology {text}: {first}; the version that fits jax {jax.__version__}: {install}") from None


def _missing(package: str, platform: str) -> UserError:
    install = _INSTALL[platform].format(jax.__version__)
    device = {"tpu": "TPU", "cuda": "GPU"}[platform]
    return UserError(f"compiling for a {device} needs the package {package}: {install}")


def _available(device: Any) -> int:
    """Returns the bytes of a TPU's memory that programs can use.

    The compiler states them when it refuses a program that is too large.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)

    def too_large(x):
        return jnp.broadcast_to(x[:, None], (x.size, 1 << 30)) + jnp.arange(1 << 30, dtype=jnp.float32)

    try:
        with _without_cache():
            shape = jax.ShapeDtypeStruct((1 << 12,), jnp.float32, sharding=sharding)
            jax.jit(too_large, out_shardings=sharding).lower(shape).compile()
    except jax.errors.JaxRuntimeError as error:
        if sizes := re.findall(r"available HBM \(([\d.]+)G\)|of ([\d.]+)G hbm", str(error)):
            return int(float(sizes[0][0] or sizes[0][1]) * 2**30)
        raise
    raise AssertionError("a program of 16 TiB was compiled")


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Disables JAX's cache of compiled programs, which cannot hold programs for a described topology."""
    before = getattr(jax.config, _CACHE)
    jax.config.update(_CACHE, False)
    try:
        yield
    finally:
        jax.config.update(_CACHE, before)

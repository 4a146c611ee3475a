"""Every test process has four CPU devices, so that what is lifted over devices can be tested anywhere.

Most of the tests' time is compilation. So what one process compiles, the others of the same run load; LLVM does not
optimize, nor is a program cut into parts for it, and fusions do not go through MLIR. XLA_FLAGS, where set, decide
(`make test-all` compiles as users do).
"""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tests of correctness compare with references made on a CPU
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and subprocesses inherit it
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ablate-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)

# Files of minutes: workers start with them, so that none is alone with one at the end (`make test` keeps this order).
LONG = (
    "models/any_network",
    "models/registry",
    "models/parity",
    "train/devices/multihost",
    "train/export",
    "train/resume",
    "models/explain/gradients",
    "train/tasks/adaptive",
    "models/analysis/cost",
    "train/optim/pruning",
    "train/loop",
    "train/adaptive",
    "train/devices/parallel",
    "experiments/trials",
    "models/compress/shrink",
    "experiments/explain",
    "models/layers/low_bit",
    "configs/every_config",
    "models/decoding",
    "models/transformer",
    "models/msdnet",
    "train/translate",
    "train/cli",
    "configs/transfer",
    "experiments/studies",
    "train/data/augment",
    "models/layers/conv",
    "experiments/compression_study",
    "experiments/cost_study",
    "train/step",
    "models/gated",
    "train/pretrained",
    "models/vit",
    "models/layers/xnor",
    "models/mobilenet",
    "models/convnext",
    "experiments/bench",
    "train/data/stream",
)


def pytest_collection_modifyitems(items):
    place = {
        Path(__file__).parent / room / f"test_{name}.py": i
        for i, (room, _, name) in enumerate(file.rpartition("/") for file in LONG)
    }
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


MOST_MAPS = 20_000  # of 65,530, the number that Linux allows a process


def maps():
    """Returns how many pieces of memory the process maps."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MOST_MAPS  # not a Linux; nobody knows


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Gives up the programs of the last files where they are many, and does not search for garbage in what lives on.

    Each program maps memory, and LLVM aborts at Linux's limit. Streams and Orbax collect garbage often, and modules are
    a million objects.
    """
    if maps() >= MOST_MAPS:
        jax.clear_caches()
        gc.unfreeze()  # objects that were alive when the last file began may be garbage now
        gc.collect()
    gc.freeze()

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

from tests import tiers

jax.config.update("jax_num_cpu_devices", 4)

# The longest files first, by measured time: no worker is alone with one at the end (`make test` keeps this order).
LONG = """
models/test_any_network.py
models/test_registry.py
models/test_parity.py
train/devices/test_multihost.py
train/test_export.py
train/test_resume.py
models/explain/test_gradients.py
train/tasks/test_adaptive.py
models/analysis/test_cost.py
train/optim/test_pruning.py
train/test_loop.py
train/test_adaptive.py
train/devices/test_parallel.py
experiments/test_trials.py
models/compress/test_shrink.py
experiments/test_explain.py
models/layers/test_low_bit.py
configs/test_every_config.py
models/test_decoding.py
models/test_transformer.py
models/test_msdnet.py
train/test_translate.py
train/test_cli.py
configs/test_transfer.py
experiments/test_studies.py
train/data/test_augment.py
models/layers/test_conv.py
experiments/test_compression_study.py
experiments/test_cost_study.py
train/test_step.py
models/test_gated.py
train/test_pretrained.py
models/test_vit.py
models/layers/test_xnor.py
models/test_mobilenet.py
models/test_convnext.py
experiments/test_bench.py
train/data/test_stream.py
""".strip().splitlines()


def pytest_configure(config):
    config.addinivalue_line("markers", "check: unit tests of `make check` (tests/tiers.py)")


@pytest.hookimpl(tryfirst=True)  # before -m decides
def pytest_collection_modifyitems(config, items):
    tiers.mark(items)
    if config.args == [str(Path(__file__).parent)] or config.args == ["tests"]:
        assert not (rows := tiers.unknown(items)), f"tests/tiers.py names tests that are not there: {sorted(rows)}"
    place = {file: i for i, file in enumerate(LONG)}
    names = {item.path: item.path.relative_to(tiers.ROOT).as_posix() for item in items}
    items.sort(key=lambda item: place.get(names[item.path], len(LONG)))


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

"""Every test process has four CPU devices, so that multi-device code can be tested anywhere.

Compilation takes most of the tests' time, so the processes of one run share a compilation cache, which starts with the
programs of earlier runs (programs.py). LLVM does not optimize, does not split programs for parallel compilation, and
does not use MLIR for fusions. XLA_FLAGS, where set, takes precedence (`make test-all` compiles as users do).
"""

import atexit
import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # correctness tests compare with references recorded on a CPU
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and subprocesses inherit it
    from tests import programs

    atexit.register(programs.end, programs.begin())

import jax
import pytest

from models.analysis import timing
from tests import tiers
from tests.browser import browser  # noqa: F401  (a fixture)

jax.config.update("jax_num_cpu_devices", 4)
timing.SPINNING = 0.0  # exports and frontiers wait before each timed call, and no test compares their times

# The longest files come first, by measured time, so that no worker is left alone with one at the end (`make test` keeps
# this order).
LONG = """
models/test_any_network.py
train/test_published.py
experiments/test_studies.py
experiments/test_launch_slurm.py
train/test_export_int8.py
models/weights/test_hub.py
models/test_registry.py
experiments/test_sweep.py
experiments/test_trials.py
train/test_export.py
train/devices/test_multihost.py
train/devices/test_parallel.py
models/test_parity.py
train/tasks/test_distill.py
train/optim/test_structures.py
train/test_adaptive.py
train/serving/test_server.py
train/data/test_augment.py
experiments/test_frontier.py
train/test_loop.py
train/test_step.py
models/test_derivatives.py
train/test_reopened.py
train/optim/test_catalogue.py
train/test_remote.py
train/tasks/test_adaptive.py
train/test_resume.py
train/serving/test_app.py
train/test_trained.py
train/data/test_stream.py
train/test_extension.py
models/test_gated.py
models/layers/test_low_bit.py
train/test_moved.py
train/optim/test_pruning.py
models/test_vit.py
experiments/test_queue.py
train/optim/test_runs.py
experiments/test_plain.py
models/test_msdnet.py
models/test_hostile.py
experiments/test_compare.py
experiments/test_optimizers.py
train/test_translate.py
experiments/test_costs.py
models/explain/test_gradients.py
train/optim/test_sam.py
train/data/test_resolutions.py
train/devices/test_sharded_checkpoints.py
train/test_hostile_workdir.py
experiments/test_explain.py
train/test_hostile_more.py
""".strip().splitlines()


def pytest_configure(config):
    config.addinivalue_line("markers", "check: unit tests of `make check` (tests/tiers.py)")


@pytest.hookimpl(tryfirst=True)  # run before -m selects tests
def pytest_collection_modifyitems(config, items):
    tiers.mark(items)
    if config.args == [str(Path(__file__).parent)] or config.args == ["tests"]:
        assert not (rows := tiers.unknown(items)), f"tests/tiers.py names tests that do not exist: {sorted(rows)}"
    place = {file: i for i, file in enumerate(LONG)}
    names = {item.path: item.path.relative_to(tiers.ROOT).as_posix() for item in items}
    items.sort(key=lambda item: place.get(names[item.path], len(LONG)))


MOST_MAPS = 20_000  # Linux allows a process 65,530


def maps():
    """Returns the number of memory maps of this process."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MOST_MAPS  # not Linux: the number is unknown


@pytest.fixture(scope="module")
def server():
    """Serves published weights on the loopback, as the hub does."""
    from tests import hub_server  # most tests need no server

    with hub_server.serving() as hub:
        yield hub


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """Returns the server without repositories; huggingface_hub asks it, with caches of its own."""
    from tests import hub_tiny

    return hub_tiny.emptied(server, monkeypatch, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Clears compiled programs once they are many, and freezes live objects so that garbage collection skips them.

    Each program maps memory, and LLVM aborts at Linux's limit. Streams and Orbax collect garbage often, and the
    imported modules hold a million objects.
    """
    if maps() >= MOST_MAPS:
        jax.clear_caches()
        gc.unfreeze()  # objects that were alive when the last file started may be garbage now
        gc.collect()
    gc.freeze()

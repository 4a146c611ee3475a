"""Every test process has four CPU devices, so that what is lifted over devices can be tested anywhere.

What one process compiles, the others of the same run load: half of the tests' time is compilation.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tests of correctness compare with references made on a CPU
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers and subprocesses inherit it
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ablate-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

import jax

jax.config.update("jax_num_cpu_devices", 4)

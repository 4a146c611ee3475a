"""Every test process has four CPU devices, so that what is lifted over devices can be tested anywhere."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tests of correctness compare with references made on a CPU

import jax

jax.config.update("jax_num_cpu_devices", 4)

"""models.runtime: what it sets, what it leaves alone, and the switch; each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models import runtime

OPTION = "xla_cpu_experimental_ynn_fusion_type"
ROOT = Path(__file__).parents[1]


def _run(code: str, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", runtime.SWITCH)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# loaded by path: models/__init__ imports JAX, and this is about the module alone
LOAD = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("runtime", "models/runtime.py")
runtime = importlib.util.module_from_spec(spec); spec.loader.exec_module(runtime)
"""
FLAGS = LOAD + "runtime.tune(); print(os.environ.get('XLA_FLAGS', '-'), 'jax' in sys.modules)"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, f"--{OPTION}=dot,reduce"),
        ({"ABLATE_CPU_TUNING": "0"}, "-"),
        ({"ABLATE_CPU_TUNING": "off", "XLA_FLAGS": "--xla_dump_to=/tmp/x"}, "--xla_dump_to=/tmp/x"),
        ({"XLA_FLAGS": f"--{OPTION}=dot"}, f"--{OPTION}=dot"),
        ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"},
         f"--xla_cpu_enable_fast_math=false --{OPTION}=dot,reduce"),
    ],
)
def test_flags(env, expected):
    assert _run(FLAGS, **env) == f"{expected} False"


def test_jax_accepts_the_settings():
    code = LOAD + """
runtime.tune()
import jax, jax.numpy as jnp
print(float(jax.jit(lambda x: jnp.tanh(x @ x) * 2)(jnp.full((64, 64), 0.01))[0, 0]))
"""
    for env in ({}, {"ABLATE_CPU_TUNING": "0"}):
        assert float(_run(code, JAX_PLATFORMS="cpu", **env)) == pytest.approx(0.0128, rel=1e-3)


def test_unknown_release_gets_no_flag(monkeypatch):
    for version, flags in (("0.9.1", ""), ("0.12.0", ""), ("0.11.2", f"--{OPTION}=dot,reduce")):
        monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _, version=version: version)
        assert runtime.xla_flags("") == flags


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_freed_memory_stays_in_the_process():
    code = LOAD + """
import ctypes, resource
if not hasattr(ctypes.CDLL(None), "mallopt"): raise SystemExit(print("no glibc"))
runtime.tune()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p; libc.free.argtypes = [ctypes.c_void_p]
faults = []
for _ in range(5):
    block = libc.malloc(ctypes.c_size_t(64 << 20)); ctypes.memset(ctypes.c_void_p(block), 1, 64 << 20); libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""
    cpu = {"JAX_PLATFORMS": "cpu"}
    tuned, untuned = _run(code, **cpu), _run(code, ABLATE_CPU_TUNING="0", **cpu)
    if tuned != "no glibc":
        assert int(tuned) < 100 < int(untuned)


def test_the_user_s_allocator_settings_stand(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not runtime.keep_freed_memory()


def test_no_allocator_settings_where_an_accelerator_computes(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not runtime.keep_freed_memory()

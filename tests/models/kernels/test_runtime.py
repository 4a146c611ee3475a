"""Tests of models.kernels.runtime: what it sets, what it leaves alone, and the switch; each in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.kernels import runtime

OPTION = "xla_cpu_experimental_ynn_fusion_type"
ROOT = Path(__file__).parents[3]


def _run(code: str, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", runtime.SWITCH)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Loaded by path: models/__init__ imports JAX, and these tests concern the module alone.
LOAD = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("runtime", "models/kernels/runtime.py")
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
        ({"XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}, f"--xla_cpu_enable_fast_math=false --{OPTION}=dot,reduce"),
    ],
)
def test_flags(env, expected):
    assert _run(FLAGS, **env) == f"{expected} False"


def test_jax_accepts_the_settings():
    code = (
        LOAD
        + """
runtime.tune()
import jax, jax.numpy as jnp
print(float(jax.jit(lambda x: jnp.tanh(x @ x) * 2)(jnp.full((64, 64), 0.01))[0, 0]))
"""
    )
    for env in ({}, {"ABLATE_CPU_TUNING": "0"}):
        assert float(_run(code, JAX_PLATFORMS="cpu", **env)) == pytest.approx(0.0128, rel=1e-3)


def test_unknown_release_gets_no_flag(monkeypatch):
    for version, flags in (("0.9.1", ""), ("0.12.0", ""), ("0.11.2", f"--{OPTION}=dot,reduce")):
        monkeypatch.setattr(runtime.importlib.metadata, "version", lambda _, version=version: version)
        assert runtime.xla_flags("") == flags


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_stays_in_the_process():
    code = (
        LOAD
        + """
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
    )
    cpu = {"JAX_PLATFORMS": "cpu"}
    tuned, untuned = _run(code, **cpu), _run(code, ABLATE_CPU_TUNING="0", **cpu)
    if tuned != "no glibc":
        assert int(tuned) < 100 < int(untuned)


def test_allocator_settings_of_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not runtime.keep_freed_memory()


def test_no_allocator_settings_where_an_accelerator_computes(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not runtime.keep_freed_memory()


PROGRAM = (
    LOAD
    + """
import jax, jax.monitoring
hits = []
jax.monitoring.register_event_listener(lambda name, **kwargs: hits.extend([name] * name.endswith("cache_hits")))
runtime.keep_programs()
jax.jit(lambda x: x * 3)(2.0)
print(jax.config.jax_compilation_cache_dir, len(hits))
"""
)


def test_programs_are_kept_for_the_next_process_of_the_same_kind_of_processor(tmp_path):
    env = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)}
    (first, none), (second, hits), (other, again) = (
        _run(code, **env).split()
        for code in (
            PROGRAM,
            PROGRAM,
            PROGRAM.replace("runtime.keep", "runtime.processor = lambda: b'other'; runtime.keep"),
        )
    )
    assert first == second and Path(first).parent == tmp_path / "ablate" and any(Path(first).glob("*-cache"))
    assert none == again == "0" and int(hits) > 0
    for time in Path(first).glob("*-atime"):  # as if that process had been killed while writing
        time.unlink()
    assert _run(PROGRAM, **env).split() == [first, "0"] and _run(PROGRAM, **env).split() == [first, hits]
    assert other != first


@pytest.mark.parametrize(
    "env,folder",
    [
        ({"JAX_COMPILATION_CACHE_DIR": "own"}, "own"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "None"),  # where nothing can be written
    ],
)
def test_the_choice_of_a_cache_by_the_user_is_kept(tmp_path, env, folder):
    if folder == "own":
        folder = env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "own")
    assert _run(PROGRAM, JAX_PLATFORMS="cpu", **{"XDG_CACHE_HOME": str(tmp_path), **env}).split() == [folder, "0"]

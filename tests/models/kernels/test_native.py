"""Tests of models/kernels/native.py: where the library lies, when it is built, and fallbacks without a compiler."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = "import models; from models.kernels import native; print(native.available())"


def _available(tmp_path, **env):
    clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "ABLATE_CPU_TUNING")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**clean, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.full
def test_the_library_is_compiled_once_and_reused(tmp_path):
    if not _available(tmp_path):
        pytest.skip("no C++ compiler here")
    files = sorted((tmp_path / "ablate").iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    assert _available(tmp_path) and files == sorted((tmp_path / "ablate").iterdir())
    assert [path.suffix for path in files] == [".sha256", ".so"]
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"no library",
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:5000] + bytes(2000) + data[7000:],
    ],
)
def test_a_damaged_library_is_compiled_again(tmp_path, change):
    if not _available(tmp_path):
        pytest.skip("no C++ compiler here")
    (library,) = (tmp_path / "ablate").glob("*.so")
    data = library.read_bytes()
    library.write_bytes(change(data))
    assert _available(tmp_path) and len(library.read_bytes()) == len(data)


@pytest.mark.parametrize("env", [{"CXX": "no-such-compiler"}, {"CXX": "false"}, {"ABLATE_CPU_TUNING": "0"}])
def test_works_without_the_library(tmp_path, env):
    assert not _available(tmp_path, **env)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.full
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are instruction sets of x86-64")
@pytest.mark.parametrize("instructions", ["x86-64", "x86-64-v3"])  # vectors of 4 and 8 floats
def test_vectors_of_other_processors_give_the_same_convolutions(tmp_path, instructions):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec g++ "$@" -march={instructions}\n')
    compiler.chmod(0o755)
    env = {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    if not _available(tmp_path / "cache", CXX=str(compiler)):
        pytest.skip("no C++ compiler here")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "native"]
    files = [f"tests/models/{name}.py" for name in ("layers/test_conv", "layers/test_xnor", "kernels/test_fused")]
    done = subprocess.run(
        [*command, *files], capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, **env}
    )
    assert done.returncode == 0 and "...." in done.stdout, done.stdout  # dots of tests that ran

"""models/layers/native.py: where the library lies, when it is made, and that nothing breaks without a compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = "import models; from models.layers import native; print(native.available())"


def _available(tmp_path, **env):
    clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "ABLATE_CPU_TUNING")}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=False,
                          env={**clean, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), **env})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


@pytest.mark.full
def test_compiled_once_and_found_again(tmp_path):
    if not _available(tmp_path):
        pytest.skip("no C++ compiler here")
    (library,) = (tmp_path / "ablate").iterdir()
    made = library.stat().st_mtime_ns
    assert _available(tmp_path) and [library] == list((tmp_path / "ablate").iterdir())
    assert library.stat().st_mtime_ns == made


@pytest.mark.full
def test_a_damaged_library_is_not_loaded(tmp_path):
    if not _available(tmp_path):
        pytest.skip("no C++ compiler here")
    (library,) = (tmp_path / "ablate").iterdir()
    library.write_bytes(b"no library")
    assert not _available(tmp_path)


@pytest.mark.parametrize("env", [{"CXX": "no-such-compiler"}, {"CXX": "false"}, {"ABLATE_CPU_TUNING": "0"}])
def test_goes_without(tmp_path, env):
    assert not _available(tmp_path, **env)
    assert not list(tmp_path.rglob("*.so"))

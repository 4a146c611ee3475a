"""The rooms of the house: imports run one way, configs are plain data, nothing else lies at the top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ["models", "train", "experiments"]  # each may import itself and those before it


def imported(path):
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    forbidden = {*ROOMS[ROOMS.index(room) + 1:], "configs", "tests"}
    for path in files:
        assert not forbidden & set(imported(path)), path


def test_configs_import_ml_collections_alone():
    for path in (ROOT / "configs").rglob("*.py"):
        assert set(imported(path)) <= {"ml_collections", "configs", *sys.stdlib_module_names}, path


def test_the_top_level_holds_what_the_design_names():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    allowed = {"models", "train", "configs", "experiments", "tests", ".ci", "setup.cfg", "pyproject.toml", "Makefile",
               "README.md", "LICENSE", "constraints.txt", ".gitignore"}
    assert {name.split("/")[0] for name in tracked} <= allowed

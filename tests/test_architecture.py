"""The rooms of the house: imports run one way, configs are plain data, nothing else lies at the top."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import commands

ROOT = Path(__file__).parent.parent
ROOMS = ["models", "train", "experiments"]  # each may import itself and those before it


def imported(path):
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def at_import(path):
    """The modules that a file imports when it is imported itself, and their packages."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            parts = name.split(".")
            yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


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
               "README.md", "LICENSE", "constraints.txt", ".gitignore", "CHANGELOG.md", "docs"}
    assert {name.split("/")[0] for name in tracked} <= allowed


SLOW = {"array_record", "cv2", "grain", "matplotlib", "onnxruntime", "orbax", "sacrebleu", "scipy", "skimage",
        "sklearn", "tensorboardX", "tensorflow_datasets", "tensorstore", "timm", "tokenizers", "torch"}


def test_help_waits_for_no_slow_import():
    """Of each command: what is imported before its flags are parsed, by its modules and those of ours they import."""
    assert {"train", "train.export", "models.complexity", "experiments.run"} <= set(commands.names())
    for command in commands.names():
        left, seen = [Path(importlib.util.find_spec(command).origin)], set()
        if left[0].name == "__init__.py":
            left.append(left[0].with_name("__main__.py"))
        while left:
            for name in set(at_import(left.pop())) - seen:
                assert name.split(".")[0] not in SLOW, (command, name)
                seen.add(name)
                path = ROOT / name.replace(".", "/")
                left += [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]

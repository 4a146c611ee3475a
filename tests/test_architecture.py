"""Rules of the architecture: imports run one way, configs are plain data, and the top level holds nothing else."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import models
from experiments.bench import commands

ROOT = Path(__file__).parent.parent
ROOMS = ["models", "train", "experiments"]  # each may import itself and the rooms before it


def imported(path):
    """Returns the top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def at_import(path):
    """Returns the modules that are loaded when a file is imported, with their packages."""
    tree = ast.parse(path.read_text())
    tree.body = [
        node
        for node in tree.body
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in modules:
            parts = name.split(".")
            yield from (".".join(parts[:i]) for i in range(1, len(parts) + 1))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "configs", "tests"}
    for path in files:
        assert not forbidden & set(imported(path)), path


def modules():
    """Returns the file of each module in the rooms, by the module's name."""
    paths = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def test_imports_have_no_cycles_and_no_private_names():
    files, uses = modules(), {}
    for name, path in files.items():
        uses[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                uses[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ROOMS:
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path} imports {private} of {node.module}"
                uses[name] |= {
                    full if (full := f"{node.module}.{alias.name}") in files else node.module for alias in node.names
                }
    left = {name: used & files.keys() - {name} for name, used in uses.items()}
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "files that import each other in a circle, or import such files"


def test_configs_only_import_ml_collections():
    for path in (ROOT / "configs").rglob("*.py"):
        assert set(imported(path)) <= {"ml_collections", "configs", *sys.stdlib_module_names}, path


def test_the_top_level_matches_the_design():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    allowed = {
        "models",
        "train",
        "configs",
        "experiments",
        "tests",
        ".ci",
        "setup.cfg",
        "pyproject.toml",
        "Makefile",
        "README.md",
        "LICENSE",
        "constraints.txt",
        ".gitignore",
        ".git-blame-ignore-revs",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "docs",
    }
    assert {name.split("/")[0] for name in tracked} <= allowed


def test_version_citation_and_changelog_agree():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == models.__version__
    releases = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == models.__version__
    assert "version = attr: models.__version__" in (ROOT / "setup.cfg").read_text()


@pytest.mark.parametrize("room", [*ROOMS, "configs", "tests", "docs"])
def test_each_top_folder_has_a_short_readme(room):
    lines = (ROOT / room / "README.md").read_text().splitlines()
    assert 10 <= len(lines) <= 25
    for name in re.findall(r"`([a-z_/]+(?:\.py|/))`", "\n".join(lines)):
        assert any((folder / name).exists() for folder in (ROOT / room, ROOT)), name


SLOW = {
    "array_record", "cv2", "grain", "matplotlib", "onnxruntime", "orbax", "sacrebleu", "scipy", "skimage", "sklearn",
    "tensorboardX", "tensorflow_datasets", "tensorstore", "timm", "tokenizers", "torch",
}  # fmt: skip


def test_help_waits_for_no_slow_import():
    """Checks that no command imports a slow module, directly or through our own modules, before it parses its flags."""
    assert {"train", "train.export", "models.analysis", "experiments.run"} <= set(commands.names())
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

"""Runs the code blocks of the pages: `make test` runs Python that needs no trained run, `make test-all` the others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.pages import PAGES, README
from tests.tiny import ROOT

AS_PRINTED = (README, ROOT / "docs" / "quickstart.md")  # whose trainings keep their lengths
NEEDS_A_RUN = "runs/"


def run(text, folder):
    """Runs a block of a shell; returns the process."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def shortened(line):
    """Shortens a training to two epochs unless the line sets its length."""
    if line.startswith("python -m train --config") and not any(
        word in line for word in ("config.duration", "epochs=", "dry_run")
    ):
        return f'{line} --config.duration="2 epochs"'
    return line


def is_file(block):
    return block.language == "python" and block.text.startswith("# my_")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The run that `make train` makes."""
    folder = tmp_path_factory.mktemp("start")
    done = run(f"python -m train --config={ROOT}/configs/digits.py --workdir=digits", folder)
    assert not done.returncode, done.stderr
    return folder / "digits"


@pytest.fixture
def start(tmp_path, first_run):
    """A folder with the configs, the sample pictures and that run."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "samples").symlink_to(ROOT / "experiments" / "samples")
    shutil.copytree(first_run, tmp_path / "runs" / "digits")
    return tmp_path


def with_blocks(*languages):
    """Returns the pages with blocks to run in these languages."""
    return [page for page in PAGES if any(b.language in languages and b.mark != "not run" for b in pages.blocks(page))]


@pytest.mark.parametrize("page", with_blocks("python"), ids=pages.label)
def test_python_that_needs_no_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in pages.blocks(page):
        if block.language != "python" or block.mark:
            continue
        if NEEDS_A_RUN in block.text:
            break
        if is_file(block):
            compile(block.text, page.name, "exec")
        else:
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), names)


@pytest.mark.full
@pytest.mark.parametrize("page", with_blocks("sh", "python"), ids=pages.label)
def test_all_blocks_of_a_page(page, start, monkeypatch):
    monkeypatch.chdir(start)
    names = {}
    expected = None
    for block in pages.blocks(page):
        where = f"{page.name}:{block.line}"
        if expected is not None:  # the text after a command that fails
            assert " ".join(block.text.split()) in expected, where
            expected = None
        elif block.mark == "not run" or block.language not in ("sh", "python"):
            continue
        elif is_file(block):
            Path(block.text.partition("\n")[0].removeprefix("# ")).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), names)
        else:
            whole = page in AS_PRINTED or block.mark == "fails"
            done = run("\n".join(block.lines if whole else map(shortened, block.lines)), start)
            if block.mark == "fails":
                assert done.returncode == 2, f"{where}: {done.stdout}{done.stderr}"
                expected = " ".join(done.stderr.split())
            else:
                assert not done.returncode, f"{where}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

"""`make docs`: the site has every page and every link leads somewhere; a broken link of each kind is reported."""

import importlib.util

import pytest

from experiments.report import site
from models.errors import UserError
from tests.docs import pages
from tests.tiny import ROOT

PAGE = "# Start\n\n[a](docs/a.md#the-norm-bn) [file](models/x.py) [folder](models) ![p](p.png) [web](https://x.org)\n"


@pytest.fixture
def root(tmp_path):
    """A repository with a page of each kind, and links of each kind."""
    root = tmp_path / "root"
    for folder in ("docs", "models"):
        (root / folder).mkdir(parents=True)
    for name in site.AT_TOP:
        (root / name).write_text("# Page\n")
    (root / "README.md").write_text(PAGE)
    (root / "docs" / "a.md").write_text("## The norm: `bn`\n\n[up](../README.md#start) [here](#the-norm-bn)\n")
    (root / "models" / "x.py").write_text("x = 1\n")
    (root / "p.png").write_bytes(b"")
    return root


def test_links_lead_to_pages_headings_files_and_folders(root, tmp_path):
    assert site.build(root, tmp_path / "out", with_api=False) == []
    home = (tmp_path / "out" / "index.html").read_text()
    assert 'href="docs/a.html#the-norm-bn"' in home and 'href="https://x.org"' in home
    assert 'id="the-norm-bn"' in (tmp_path / "out" / "docs" / "a.html").read_text()
    assert 'href="x.py"' in (tmp_path / "out" / "models" / "index.html").read_text()
    assert site.build(root, tmp_path / "out", with_api=False) == []  # replaces its own folder
    with pytest.raises(UserError, match="this folder holds something else"):
        site.build(root, root, with_api=False)


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("docs/b.md", "docs/b.html"),
        ("docs/a.md#the-norm", "docs/a.html#the-norm"),
        ("#no-heading", "#no-heading"),
        ("models/y.py", "models/y.py"),
        ("../outside.md", "../outside.html"),
    ],
)
def test_a_broken_link_is_reported(root, tmp_path, link, fault):
    (root / "CHANGELOG.md").write_text(f"[text]({link}) ![picture](gone.png)\n")
    (tmp_path / "outside.md").write_text("# Not of this repository\n")
    faults = site.build(root, tmp_path / "out", with_api=False)
    assert faults == sorted([f"CHANGELOG.html: {fault}", "CHANGELOG.html: gone.png"])


def test_the_pages_of_this_repository(tmp_path):
    assert site.build(ROOT, tmp_path / "out", with_api=False) == []
    for page in pages.PAGES:
        assert (tmp_path / "out" / site.address(page.relative_to(ROOT))).is_file()


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc is not installed")
def test_the_api_of_this_repository(tmp_path):
    assert site.build(ROOT, tmp_path / "out") == []
    assert "def</span>" in (tmp_path / "out" / "api" / "models.html").read_text()
    assert (tmp_path / "out" / "api" / "train" / "trained.html").is_file()

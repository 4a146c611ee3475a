"""The pages for users: links lead somewhere, commands name what exists, the README keeps its size."""

import re

import pytest

from tests.docs import pages
from tests.docs.pages import PAGES, README
from tests.tiny import ROOT


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=pages.label)
def test_links_and_anchors_lead_somewhere(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in pages.anchors(file), f"{page.name}: {target}; {sorted(pages.anchors(file))}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=pages.label)
def test_files_that_the_text_names_exist(page):
    """Checks paths such as `models/layers/norm.py`; a part in capitals stands for any name."""
    named = re.findall(r"`((?:models|train|configs|experiments|tests|docs)/[\w/.]+)`", pages.prose(page))
    assert not [path for path in named if not re.search("[A-Z]{3}", path) and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=pages.label)
def test_blocks_say_what_they_are(page):
    assert page.read_text().count("```") == 2 * len(pages.blocks(page))
    for block in pages.blocks(page):
        assert block.language in ("sh", "python", "text", "yaml", "bibtex", ""), f"{page.name}, line {block.line}"
        assert block.language or not re.search("^(python|make|pip) ", block.text, re.MULTILINE), block.text


@pytest.mark.parametrize("page", PAGES, ids=pages.label)
def test_commands_name_what_exists(page):
    faults = [(line, words, pages.fault(words)) for line, words in pages.shell_commands(page)]
    assert not [fault for fault in faults if fault[2]]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python -m train --config=configs/digits.py:resnet8,norm=group --config.model.width=8 --workdir=x", ""),
        ("python -m train --config=configs/digits.py:nrom=group", "has no arguments ['nrom']"),
        ("python -m train --config=configs/digit.py", "no config configs/digit.py"),
        ("python -m train --config.optimizer.lr=1", "no config key config.optimizer.lr"),
        ("python -m train --no-such", "train has no flag --no-such"),
        ("python -m trian", "trian is no command"),
        ("python -m models.analysis resnet50 --set norm=group --chart=x.png", ""),
        ("python -m models.weights import --to x", ""),
        ("make tests", "no target tests"),
        ("pip install -e '.[cpu]'", "no extra cpu"),
        ("rm -r x", "unknown program rm"),
        ("gcloud ssh --command='cd x && .venv/bin/python -m trian'", "trian is no command"),
    ],
)
def test_faults_of_commands_are_found(command, problem):
    fault = next(filter(None, map(pages.fault, pages._split(command))), "")
    assert fault.endswith(problem) and bool(fault) == bool(problem)


def test_the_list_of_pages_has_every_page():
    listed = {target.partition("#")[0] for target in pages.links(ROOT / "docs" / "README.md")}
    assert listed == {page.name for page in PAGES if page.parent.name == "docs"} - {"README.md"}


def test_the_readme_is_one_page_and_names_the_commands_of_ci():
    text = README.read_text()
    assert len(text.splitlines()) <= 220 and len(text.split()) <= 1500
    top = text.splitlines()[:60]
    assert any("make train" in line for line in top) and any("make test" in line for line in top)

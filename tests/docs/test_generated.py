"""Pages and blocks that `make report` writes are what the code and the results give."""

import csv
import re

import pytest

import models
from experiments.report import errors, readme, reference
from tests.docs import pages
from tests.networks import PARAMETERS
from tests.tiny import ROOT

MODELS = ROOT / "docs" / "models.md"
CHEAP = ("lenet5", "resnet20", "plain8", "vit_tiny_patch16", "mobilenet_v2")


def generated(text):
    return re.findall(r"<!-- generated: (.*?) -->\n(.*?)<!-- end -->", text, re.DOTALL)


def test_blocks_are_what_the_results_give():
    names = []
    for page in pages.PAGES:
        text = page.read_text()
        assert readme.update(text, ROOT / "experiments" / "results") == text, f"{page.name}: make report"
        names += [name for name, block in generated(text)]
        assert all("Not measured" not in block for _, block in generated(text))
    assert sorted(names) == sorted(readme.BLOCKS)


def test_configs_md_is_current():
    assert (ROOT / "docs" / "configs.md").read_text() == reference.configs_page(), "make report"


def test_errors_md_is_current():
    assert (ROOT / "docs" / "errors.md").read_text() == errors.page(), "make report"


def test_every_key_has_a_meaning():
    keys = [key for section in reference.sections() for key in section.keys]
    assert {key.path for key in keys if not key.meaning} == set()
    assert {key.path for key in keys} == set(reference.key_defaults())


def rows():
    return {row.split(" | ")[0].strip("| `"): row for row in MODELS.read_text().splitlines() if row.startswith("| `")}


def test_models_md_has_every_network_with_its_parameters():
    assert list(rows()) == [name for names in reference.families().values() for name in names]
    assert set(rows()) == set(models.list_models())
    for name, row in rows().items():
        assert f" {PARAMETERS[name]:,} " in row, name


def test_networks_csv_has_the_rows_of_models_md():
    with (ROOT / "models" / "networks.csv").open(newline="") as file:
        listed = {row[0]: f"| `{row[0]}` | {' | '.join(row[1:])} |" for row in list(csv.reader(file))[1:]}
    assert listed == rows(), "make report"


@pytest.mark.parametrize("name", [*CHEAP, *(pytest.param(n, marks=pytest.mark.full) for n in models.list_models())])
def test_rows_of_models_md_are_current(name):
    assert rows()[name] == "| " + " | ".join(reference.network(name).cells) + " |", "make report"

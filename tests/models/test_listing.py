"""models.list_models and `python -m models`."""

import csv
import re

import pytest

import models
from models.__main__ import COLUMNS, TABLE, main
from models.analysis.cost import short
from tests.networks import PARAMETERS


def test_list_models_takes_a_pattern_of_file_names():
    assert models.list_models() == sorted(PARAMETERS)
    assert models.list_models("*resnet*") == sorted(name for name in PARAMETERS if "resnet" in name)
    assert models.list_models("resnet?") == ["resnet8"]
    assert models.list_models("resnet50") == ["resnet50"] and models.list_models("ResNet*") == []


def test_the_table_has_every_network_with_its_parameters():
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"]: int(row["parameters"].replace(",", "")) for row in rows} == PARAMETERS
    assert set(COLUMNS) <= set(rows[0]) and all(row["source"] and row["mult-adds"] for row in rows)


def test_the_command_lists_what_matches(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^│ (\w+) ", shown, re.MULTILINE) == sorted(PARAMETERS)
    assert f"{len(PARAMETERS)} networks" in shown
    assert main(["models", "resnet50"]) == 0
    row, fields = (
        re.search(r"^│ resnet50 .*", shown := capsys.readouterr().out, re.MULTILINE)[0],
        shown.split("fields: ")[1].split("maps, ")[0],
    )
    assert all(text in row for text in ("He 2016", "224 x 224 x 3", "25,557,032", short(4089284608), "torchvision"))
    assert " ".join(fields.split()) == ", ".join(models.fields("resnet50"))
    assert "stage1 4 x 256, stage2 8 x 512, stage3 16 x 1024, last_map 32 x 2048" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resnet"], f"no network is named 'resnet'; '*resnet*' matches {len(models.list_models('*resnet*'))}"),
        (["resnte50"], "no network is named 'resnte50'; did you mean 'resnet50'?"),
        (["*xyz*"], "no network is named '*xyz*'; python -m models lists all"),
        (["a", "b"], "expected one pattern, not 2: put it in quotes, e.g. python -m models '*resnet*'"),
        (["--nrom=1"], "Unknown command line flag 'nrom'"),
    ],
)
def test_mistakes_are_one_line(arguments, line, capsys):
    assert main(["models", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_help_has_the_examples(capsys):
    assert main(["models", "--help"]) == 0
    assert 'python -m models "*resnet*"' in capsys.readouterr().out

"""The table of optimizers: each learns the digits on one and on four devices, and resumes to the bit."""

import pytest

from experiments.bench import optimizers
from models.errors import UserError
from tests.tiers import keep
from tests.tiny import ROOT
from train.optim import catalogue
from train.storage.files import read_json

NAMES = [*catalogue.ENTRIES, *optimizers.WRAPPED]
LEAST = 0.75  # of the digits after 15 epochs at the usual learning rate
SLOW = {"dog": 0.5, "sign_sgd": 0.5}  # need more epochs
ROUNDING = {"galore": 0.05}  # its projection, a singular value decomposition, amplifies differences of rounding


def assert_learns(row):
    assert row["resumes"] and min(row["one"], row["four"]) > SLOW.get(row["name"], LEAST), row
    assert row["fsdp"] is None or row["fsdp"] < ROUNDING.get(row["name"], 1e-4), row
    assert (row["fsdp"] is None) == (row["name"] == "sophia")


@pytest.mark.parametrize("name", keep(("muon",), NAMES))
def test_an_optimizer_learns_and_resumes(name, tmp_path):
    assert_learns(optimizers.trained(name, 15, tmp_path))


def test_the_committed_table_is_that_of_the_catalogue():
    rows = read_json(ROOT / "experiments" / "results" / "bench" / "optimizers" / "optimizers.json")["rows"]
    measured = [row["name"] for row in rows]
    assert measured and measured == [name for name in NAMES if name in measured]
    for row in rows:
        assert_learns(row)
        assert len(optimizers.cells(row)) == len(optimizers.COLUMNS)
        entry = catalogue.ENTRIES[row["name"].partition("+")[0]]
        assert (row["rate"], row["decay"]) == (entry.usual, entry.decay)


def test_the_time_of_an_update():
    with pytest.raises(UserError, match="optimizer.name"):
        optimizers.milliseconds(optimizers.config("nonsense", 1).optimizer)

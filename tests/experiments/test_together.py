"""Tests of runs that train in one program: their losses equal those of separate runs, and results are merged."""

import json

from experiments.bench import together
from tests import tiny


def test_together_and_apart_have_the_same_losses(tmp_path):
    row = together.measure(tiny.config(), 2, 3)
    assert row["difference_of_loss"] < 1e-5 and row["runs"] == 2
    assert row["ratio"] > 0 and set(row["milliseconds"]) == {"apart", "together"}
    together.write([row], tmp_path)
    together.write([{**row, "runs": 3}], tmp_path)
    together.write([row], tmp_path)
    rows = json.loads((tmp_path / "together.json").read_text())["rows"]
    assert [one["runs"] for one in rows] == [3, 2]
    assert (tmp_path / "together.md").read_text().count(row["device"]) == 2

"""Tests of the ledger: one line per finished trial, even if the process that writes it is killed."""

import multiprocessing
import sys

import pytest

from experiments.study import ledger
from experiments.study.ledger import Ledger
from models.errors import UserError


def line(trial="resnet8-1", code="a", **changes):
    return {
        "trial": trial,
        "labels": {"seed": 0},
        "outcome": {"summary": {"accuracy": 0.5}, "diverged": None, "history": {}, "measured": {"gap": 1.0}},
        "code": code,
        "commit": "0" * 12,
        "device": "1 x cpu",
        "versions": {},
        "seconds": 2.0,
        **changes,
    }


def test_a_trial_is_read_back_only_for_the_same_code(tmp_path):
    Ledger(tmp_path / "new").add(line())
    ledger_again = Ledger(tmp_path / "new")
    assert (
        ledger_again.get("resnet8-1", "a") == line()
        and ledger_again.get("resnet8-1") == line()
        and len(ledger_again) == 1
    )
    assert ledger_again.get("resnet8-1", "b") is None and ledger_again.get("resnet8-2") is None


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_that_a_kill_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path, cut):
    for trial in ("a", "b"):
        Ledger(tmp_path).add(line(trial))
    path = tmp_path / ledger.NAME
    path.write_bytes(path.read_bytes()[:-cut])
    assert Ledger(tmp_path).get("a") and (Ledger(tmp_path).get("b") is None) == (cut > 1)
    Ledger(tmp_path).add(line("c"))
    ledger_again = Ledger(tmp_path)
    assert ledger_again.get("a") and ledger_again.get("c") and len(ledger_again) == len(path.read_bytes().splitlines())
    assert (ledger_again.get("b") is None) == (cut > 1)  # a whole line that only lacks its end stays


def test_a_damaged_line_is_named(tmp_path):
    for trial in ("a", "b"):
        Ledger(tmp_path).add(line(trial))
    path = tmp_path / ledger.NAME
    path.write_bytes(b"{}" + path.read_bytes()[2:])
    with pytest.raises(UserError, match=r"trials.jsonl, line 1 is damaged"):
        Ledger(tmp_path)


def test_a_line_that_is_none_is_not_written(tmp_path):
    with pytest.raises(UserError, match="a line for the ledger"):
        Ledger(tmp_path).add({"trial": "a"})
    assert not (tmp_path / ledger.NAME).exists()


def test_concatenated_ledgers_merge_measures_of_the_same_code(tmp_path):
    for name, measured in (("one", {"gap": 1.0}), ("two", {"time": 2.0})):
        Ledger(tmp_path / name).add(line(outcome={**line()["outcome"], "measured": measured}))
    Ledger(tmp_path / "two").add(line("other"))
    both = tmp_path / "both"
    both.mkdir()
    (both / ledger.NAME).write_bytes(b"".join((tmp_path / n / ledger.NAME).read_bytes() for n in ("one", "two")))
    merged = Ledger(both)
    assert len(merged) == 2 and merged.get("resnet8-1")["outcome"]["measured"] == {"gap": 1.0, "time": 2.0}
    Ledger(both).add(line(code="b", outcome={**line()["outcome"], "measured": {}}))
    assert Ledger(both).get("resnet8-1", "b")["outcome"]["measured"] == {}


@pytest.mark.parametrize("order", [("old", "new"), ("new", "old")])
def test_in_a_merged_ledger_the_line_of_the_same_code_counts_whatever_its_place(tmp_path, order):
    for code in order:
        Ledger(tmp_path).add(line(code=code, commit=code * 4))
    both = Ledger(tmp_path)
    assert both.get("resnet8-1", "new")["commit"] == "newnewnewnew" and len(both) == 1
    assert both.get("resnet8-1", "other", ["oldoldoldold"])["code"] == "old" and both.get("resnet8-1", "other") is None
    assert both.get("resnet8-1", "other", ["all"])["code"] == order[-1] == both.lines()[0]["code"]


def add(folder, trial):
    Ledger(folder).add(line(trial))


def test_processes_at_once_lose_no_line(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add, args=(tmp_path, f"t{i}")) for i in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(Ledger(tmp_path)) == 8


def test_the_digest_of_code_ignores_comments_and_docstrings(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "ROOMS", ("made_up", "made_up_too"))
    monkeypatch.syspath_prepend(tmp_path)

    def digest(first, second="X = 1\n"):
        for name, text in (("made_up", first), ("made_up_too", second)):
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        ledger._module.cache_clear()
        return ledger.code(["made_up"])

    first = 'import made_up_too\n\n\ndef f(x):\n    """Doubles."""\n    return 2 * x  # twice\n'
    before = digest(first)
    assert digest(first.replace("Doubles", "Returns twice x").replace("# twice", "")) == before
    assert digest(first.replace("2 * x", "(2 *\n        x)")) == before
    assert digest(first.replace("2 * x", "3 * x")) != before
    within = "def f():\n    import made_up_too\n"
    assert digest(within, "X = 2\n") != digest(within)
    assert digest(first, "X = 2\n") != before and digest(first.replace("import made_up_too", ""), "X = 2\n") != before
    ledger._module.cache_clear()


def test_the_code_of_a_trial_reaches_the_step():
    modules = {"train.loop"}
    ledger.code(modules)
    import train.step  # noqa: F401

    assert ledger._module.cache_info().currsize > 50
    assert ledger.code(["train.loop"]) != ledger.code(["train.loop", "models.lenet"])

"""A finished run is trained on to a longer duration: the same bits as one long run, and one line about the schedule."""

import io
import json

import numpy as np
import pytest
import rich.console

from models.errors import UserError
from tests import tiny
from tests.train.test_hostile_process import assert_each_point_once
from tests.train.test_loop import final, logged_metrics
from train import loop
from train.devices.parallel import Parallel
from train.run import build_data
from train.setup import extension
from train.setup.config import Durations, plain
from train.storage import workdir

CHANGES = dict(
    batch_size=96,
    ema_decay=0.9,
    data__augment="crop(1)|mixup(0.2)",
    optimizer__schedule="constant",
    optimizer__warmup="0 steps",
    log_every="15 steps",
    evaluate_every="15 steps",
    hooks="figures",
)


def config(duration, **changes):
    """Returns a run of a constant schedule; an epoch is 15 steps."""
    return tiny.config(**{**CHANGES, "duration": duration, **changes})


def said(config, folder, **options):
    """Trains and returns the summary and what was printed."""
    out = io.StringIO()
    summary = loop.train(config, folder, rich.console.Console(file=out, width=400), **options)
    return summary, out.getvalue()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of a finished run of 2 epochs."""
    folder = tmp_path_factory.mktemp("extended") / "run"
    loop.train(config("2 epochs"), folder)
    return folder


def test_without_the_flag_and_with_other_changes_it_is_refused(short):
    with pytest.raises(UserError, match=r"\(duration: 2 epochs -> 4 epochs\): .* --extend trains on"):
        loop.train(config("4 epochs"), short)
    with pytest.raises(UserError, match=r"\(batch_size: 96 -> 64; duration: 2 epochs -> 4 epochs\)"):
        loop.train(config("4 epochs", batch_size=64), short, extend=True)
    for duration in ("1 epochs", "30 steps"):
        with pytest.raises(UserError, match=f"duration='{duration}' is .* which must be more than the 30 steps"):
            loop.train(config(duration), short, extend=True)
    with pytest.raises(UserError, match="holds no run"):
        loop.train(config("4 epochs"), short.parent / "nothing", extend=True)
    assert json.loads((short / "config.json").read_text())["duration"] == "2 epochs"
    assert json.loads((short / "summary.json").read_text())["steps"] == 30


def test_an_extended_run_equals_a_long_one_to_the_bit(short, tmp_path):
    whole = tmp_path / "whole"
    loop.train(config("4 epochs", hooks=""), whole)
    summary, text = said(config("4 epochs"), short, extend=True)
    assert "extending the run from 30 to 60 steps: the learning rate stays 0.1\n" in text
    assert "resuming from step 30 of 60" in text and "step 60/60" in text
    tiny.assert_same(final(short)[0], final(whole)[0])
    assert logged_metrics(short) == logged_metrics(whole)
    assert summary == json.loads((short / "summary.json").read_text())
    assert summary["steps"] == 60 and summary["extended"] == [{"step": 30, "duration": "2 epochs"}]
    long = json.loads((whole / "summary.json").read_text())
    assert summary["loss"] == long["loss"] and "extended" not in long
    assert json.loads((short / "config.json").read_text()) == plain(config("4 epochs"))
    assert_each_point_once(short)
    assert (short / "curves.png").stat().st_mtime_ns > (short / "extensions.json").stat().st_mtime_ns
    again, text = said(config("4 epochs"), short, extend=True)  # the same command on a finished run changes nothing
    assert again == summary and "already finished" in text


def test_a_kill_between_the_files_of_an_extension_loses_nothing(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(plain(config("4 steps"))))
    (tmp_path / "summary.json").write_text("{}")
    with workdir.Workdir(tmp_path) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(workdir, "write_json", kill)
            with pytest.raises(KeyboardInterrupt):
                folder.extend("6 steps", 4)
        assert not (tmp_path / "summary.json").exists() and workdir.read_config(tmp_path)["duration"] == "4 steps"
        folder.extend("6 steps", 4)
        assert folder.extensions() == [{"step": 4, "duration": "4 steps"}]
        assert workdir.read_config(tmp_path)["duration"] == "6 steps"


def kill(path, value):
    """Writes every file but config.json, at which the process ends."""
    if path.name == "config.json":
        raise KeyboardInterrupt
    path.write_text(json.dumps(value))


def test_the_line_says_what_happens_to_the_schedule():
    c = plain(tiny.config(duration="40 steps", optimizer__schedule="cosine", evaluate_every="10%"))
    line = extension.effect(c, Durations(32, 1437).with_total("40 steps"), "20 steps", 20)
    want = 0.05 * (1 + np.cos(np.pi * 18 / 38))  # tiny.config warms up over 5% of the steps
    assert line == (
        "extending the run from 20 to 40 steps: optimizer.schedule=cosine is laid over the new length, so the learning "
        f"rate goes from {0.05 * (1 + np.cos(np.pi * 18 / 19)):.4g} to {want:.4g} at step 20; shares are of the new "
        "length: evaluate_every='10%', optimizer.warmup='5%'"
    )
    c["optimizer"]["prune"] = "magnitude(0.5, start='20%', end='60%', every='5%')"
    with pytest.raises(UserError, match="--extend: optimizer.prune=.* prunes at shares of the duration"):
        extension.effect(c, Durations(32, 1437).with_total("40 steps"), "20 steps", 20)


def test_calls_of_several_steps_begin_at_multiples_wherever_a_run_goes_on():
    feed = build_data(tiny.config(steps_per_call=4), Parallel("pmap", 1))
    assert [count for count, _ in feed.calls(0, 10)] == [4, 4, 2]
    assert [count for count, _ in feed.calls(10, 17)] == [2, 4, 1]

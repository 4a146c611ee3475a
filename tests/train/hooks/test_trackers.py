"""Weights & Biases offline and an MLflow store on disk, read back by their own libraries; servers that do not answer.

Nothing here leaves the machine. Each half is skipped where its library is not installed (the extras wandb and mlflow).
"""

import contextlib
import importlib.util
import io
import json
import shutil
import socket
import subprocess
import sys
import time

import pytest
import rich.console

from tests import tiny
from train import loop
from train.recording import tracking

with_wandb = pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="the extra wandb is not installed")
with_mlflow = pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="the extra mlflow is not installed")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    """Keeps the libraries from the network and from the home folder."""
    home = tmp_path_factory.mktemp("home")
    for name, value in {
        "HOME": home,
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": home,
        "WANDB_CACHE_DIR": home,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        monkeypatch.setenv(name, str(value))
    for name in ("WANDB_API_KEY", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # W&B reads its environment once


def interrupted(folder, hooks):
    """Trains a run that loses the checkpoint of step 8 after its points were logged, and so resumes at step 4."""
    config = tiny.config(hooks=hooks, evaluate_every="4 steps")
    loop.train(config, folder, until=8)
    shutil.rmtree(folder / "checkpoints" / "8")
    return loop.train(config, folder)


def without_speed(points):
    return {key: value for key, value in points.items() if "per_second" not in key[0]}


# -- Weights & Biases -------------------------------------------------------------------------------------------------


def records(folder):
    """Returns the records of an offline run, as the command of W&B prints them, by type."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for record in map(json.loads, lines):
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


@with_wandb
def test_an_offline_run_of_wandb_has_each_point_once_after_an_interruption(tmp_path):
    folder = tmp_path / "a run: with 'characters' #1"
    summary = interrupted(folder, hooks="wandb")
    first, last = (records(path) for path in sorted((folder / "tracking" / "wandb").glob("offline-run-*")))
    points = [
        ((name, item["item"]["step"]), value)
        for item in last["history"]
        for name, value in item["item"].items()
        if "/" in name
    ]
    assert len(dict(points)) == len(points) and dict(points) == tiny.points(folder)
    assert first["run"][0]["run_id"] == last["run"][0]["run_id"]
    assert last["run"][0]["project"] == "ablate" and last["run"][0]["display_name"] == folder.name
    config = last["run"][0]["config"]["update"]
    assert config["model"]["name"] == "resnet8" and config["commit"] == summary["commit"] and "device" in config
    assert any(update.get("update", {}).get("accuracy") == summary["accuracy"] for update in last["summary"])
    assert last["metric"][0]["glob_name"] == "*" and last["metric"][0]["step_metric"] == "step"
    assert first["exit"][0]["exit_code"] == 1 and "preempting" in first and not last["exit"][0].get("exit_code")


# -- MLflow -----------------------------------------------------------------------------------------------------------


@with_mlflow
def test_a_store_of_mlflow_has_each_point_once_after_an_interruption(tmp_path):
    import mlflow

    folder, uri = tmp_path / "a run: with 'characters' #1", f"sqlite:///{tmp_path}/mlflow.db"
    summary = interrupted(folder, hooks=f"mlflow('my / experiment', uri='{uri}')")
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("my / experiment").experiment_id])
    assert run.info.run_name == folder.name and run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "resnet8" and run.data.params["optimizer.learning_rate"] == "0.1"
    assert run.data.tags["commit"] == summary["commit"] and run.data.tags["device"] == summary["device"]
    assert run.data.metrics["summary/accuracy"] == summary["accuracy"]
    names = [name for name in run.data.metrics if not name.startswith("summary/")]
    points = [
        ((name, metric.step), metric.value)
        for name in names
        for metric in client.get_metric_history(run.info.run_id, name)
    ]
    assert len(dict(points)) == len(points)
    assert without_speed(dict(points)) == pytest.approx(without_speed(tiny.points(folder)))


@with_mlflow
def test_a_run_that_was_deleted_in_mlflow_is_tracked_anew(tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = tiny.config(hooks=f"mlflow(uri='{uri}')")
    loop.train(config, tmp_path / "run", until=6)
    client = mlflow.MlflowClient(uri)
    experiments = [client.get_experiment_by_name("ablate").experiment_id]
    (run,) = client.search_runs(experiments)
    assert run.info.status == "KILLED"
    client.delete_run(run.info.run_id)
    loop.train(config, tmp_path / "run")
    (run,) = client.search_runs(experiments)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [4, 8, 12]


# -- servers that are down --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening():
    """Yields the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def closed():
    """Yields an address where nothing listens."""
    with listening() as address:
        pass
    yield address


@pytest.mark.parametrize("server", [closed, listening])
@pytest.mark.parametrize("hook", [pytest.param("wandb", marks=with_wandb), pytest.param("mlflow", marks=with_mlflow)])
def test_a_server_that_is_down_costs_one_line(tmp_path, monkeypatch, server, hook):
    monkeypatch.setattr(tracking, "PATIENCE", {"finished": 3.0, "stopped": 3.0, "failed": 3.0})
    for name, value in {"WANDB_MODE": "online", "WANDB_API_KEY": "a" * 40}.items():
        monkeypatch.setenv(name, value)
    with server() as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        screen = io.StringIO()
        began = time.monotonic()
        summary = loop.train(tiny.config(hooks=hook, duration="2 steps"), tmp_path, rich.console.Console(file=screen))
        assert summary["steps"] == 2 and (tmp_path / "summary.json").exists()
        assert time.monotonic() - began < summary["seconds"] + 3 + 5
    (line,) = [line for line in screen.getvalue().splitlines() if "warning" in line]
    assert line.startswith(f"warning: {hook}: ")


@with_wandb
def test_a_user_who_is_not_logged_in_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    screen = io.StringIO()
    loop.train(tiny.config(hooks="wandb", duration="2 steps"), tmp_path, rich.console.Console(file=screen))
    assert "warning: wandb: UsageError: No API key configured. Use `wandb login` to log in;" in screen.getvalue()

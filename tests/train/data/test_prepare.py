"""The command that prepares a TFDS set: messages without TensorFlow, and failures of TFDS."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.errors import UserError
from train.data import prepare

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "train.data.prepare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_without_tensorflow():
    result = run("cifar10")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: preparing data sets needs TensorFlow (No module named '")
    assert "pip install -e '.[prepare]'" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["cifar1O"], "error: unknown TFDS data set 'cifar1O'; did you mean 'cifar10'? the nearest of "),
        ([], "error: the command takes the name of one TFDS data set"),
        (["cifar10", "--data_dirr=x"], "error: Unknown command line flag 'data_dirr'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2 and result.stderr.startswith(message) and result.stderr.count("\n") == 1
    assert not result.stdout


def test_help():
    result = run("--help")
    assert result.returncode == 0 and "python -m train.data.prepare cifar10" in result.stdout
    assert "--data_dir" in result.stdout


def fake_tfds(monkeypatch, failure: Exception | None = None, file_format: str = "array_record") -> list:
    calls = []

    def download_and_prepare():
        if failure:
            raise failure

    splits = {name: SimpleNamespace(num_examples=count) for name, count in (("train", 50000), ("test", 10000))}
    info = SimpleNamespace(file_format=SimpleNamespace(value=file_format), splits=splits)
    built = SimpleNamespace(download_and_prepare=download_and_prepare, info=info, data_path="/d/cifar10/3.0.2")
    tfds = SimpleNamespace(builder=lambda name, **keywords: calls.append((name, keywords)) or built)
    monkeypatch.setattr(prepare, "_tensorflow_datasets", lambda: tfds)
    return calls


def test_the_folder_and_the_splits_are_printed(monkeypatch):
    calls = fake_tfds(monkeypatch)
    text = prepare.prepare("cifar10:3.*.*", "/d")
    assert text == "cifar10:3.*.* is prepared in /d/cifar10/3.0.2\nsplits: test 10,000, train 50,000"
    assert calls == [("cifar10:3.*.*", {"data_dir": "/d", "file_format": "array_record"})]


@pytest.mark.parametrize(
    "failure, message",
    [
        (OSError(28, "No space left on device"), "cannot write data set 'mnist' in /d: .*No space left"),
        (
            ConnectionError("no route to host\nmore"),
            "cannot download or prepare data set 'mnist' in /d: no route to host$",
        ),
        (AssertionError(), "cannot download or prepare data set 'mnist' in /d: AssertionError"),
    ],
)
def test_external_failures_are_one_line(monkeypatch, failure, message):
    fake_tfds(monkeypatch, failure)
    with pytest.raises(UserError, match=message):
        prepare.prepare("mnist", "/d")


def test_a_set_prepared_before_in_another_format_is_refused(monkeypatch):
    fake_tfds(monkeypatch, file_format="tfrecord")
    with pytest.raises(UserError, match=r"is in /d/cifar10/3.0.2 as tfrecord, which has no random access"):
        prepare.prepare("cifar10", "/d")

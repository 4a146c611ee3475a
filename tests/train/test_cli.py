"""The command line: help, the dry run, and errors, each one line on stderr with exit code 2."""

import os

import pytest

from tests import tiny
from tests.tiers import keep_first


def test_help():
    done = tiny.run("--help")
    assert done.returncode == 0
    for text in ("--config=configs/digits.py", "--workdir", "--[no]dry_run", "Exit code"):
        assert text in done.stdout


def test_dry_run_prints_the_table_and_the_config_and_writes_nothing(tmp_path):
    done = tiny.run(
        "--config=configs/digits.py:resnet8,norm=group",
        "--config.model.width=4",
        "--dry_run",
        "--layers",
        f"--workdir={tmp_path / 'run'}",
        "--config.optimizer.learning_rate=0.0625",
        env={"COLUMNS": "200", "XLA_FLAGS": os.environ["XLA_FLAGS"]},  # compiles faster than as users do
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "stage1/block0/conv1",
        "mult-adds",
        "optimizer.learning_rate: 0.0625",
        "model.norm: 'group'",
        "1,437 training images",
    ):
        assert text in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    keep_first(
        5,
        [
            (("--config=configs/nothing.py",), "--config=configs/nothing.py: there is no such file"),
            (("--confg=x",), "Unknown command line flag 'confg'"),
            (
                ("--config=configs/digits.py", "--config.modle.name=x", "--workdir=W"),
                "unknown config key 'modle' Did you mean \"model\"",
            ),
            (
                ("--config=configs/digits.py", "--config.model=resnet20", "--workdir=W"),
                "config key 'model' is a section, not 'resnet20'; did you mean 'model.name'?",
            ),
            (
                ("--config=configs/digits.py", "--config.optim.lr=1", "--workdir=W"),
                "unknown config key 'optim.lr'; did you mean 'optimizer.learning_rate'?",
            ),
            (("--config=configs/digits.py:resnet8,depth=3",), "unknown config argument 'depth=3'; allowed: model="),
            (
                ("--config=configs/digits.py", "--config.batch_size=63", "--config.devices=2", "--workdir=W"),
                "batch_size=63",
            ),
            (("--config=configs/digits.py",), "--workdir is missing"),
            (("--config=configs/digits.py", "--workdir=W", "--layers"), "--layers prints a table with --dry_run"),
            (("--config=configs/digits.py", "--extend", "--dry_run"), "leave one of them out"),
            (("--config=configs/digits.py", "--topology=v5e:2x2", "--workdir=W"), "--topology compiles with --dry_run"),
            (("--config=configs/digits.py", "--dry_run", "--topology=v5e:2x2", "--layers"), "without --topology"),
            (("--config=configs/digits.py", "--dry_run", "--topology=v7:2x2"), "unknown topology 'v7'"),
            ((), "--config is missing"),
            (("--config=configs/digits.py", "--config.batch_size=many"), "--config.batch_size=many"),
            (
                ("--config=configs/cifar10.py", "--config.data.dir=/nowhere", "--workdir=W"),
                "data set 'cifar10' is not prepared: nothing in /nowhere/cifar10; "
                "run: python -m train.data.prepare cifar10",
            ),
            (
                (
                    "--config=configs/cifar10.py:vit_tiny_patch16",
                    "--config.model.patch_size=4",
                    "--config.data.dir=/nowhere",
                    "--dry_run",
                ),
                "data set 'cifar10' is not prepared: nothing in /nowhere/cifar10",
            ),
            (("--config=configs/folder.py:images=/nowhere", "--workdir=W"), "/nowhere"),
        ],
    ),
)
def test_mistakes(tmp_path, flags, message):
    flags = [flag.replace("--workdir=W", f"--workdir={tmp_path / 'run'}") for flag in flags]
    done = tiny.run(*flags, devices=2)
    assert done.returncode == 2, (done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_workdir_that_cannot_be_written():
    done = tiny.run(*tiny.TINY_FLAGS, "--workdir=/proc/run")
    assert done.returncode == 2 and "cannot use --workdir=/proc/run" in done.stderr

"""Tests docs/extend.md: its files work as printed, and a mistake in one gives a one-line error."""

import importlib
import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import models
from experiments import run as runner
from experiments import study
from experiments.report import content
from models import plugins
from models.analysis.__main__ import main as command_line
from models.errors import UserError
from models.explain import cam
from models.layers import norm as norms
from tests import tiny
from train import hooks, loop, restore, tasks
from train.data import load
from train.export import loaded, network, write
from train.run import build_run
from train.setup import config as configs
from train.setup import spec
from train.storage import workdir

PAGE = (tiny.ROOT / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
QUICK = {"duration": "4 steps", "checkpoint_every": "4 steps", "evaluate_every": "4 steps", "eval_batch_size": 64}


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """Returns a working folder with the files.

    It is not the project's own folder, because configs are named by their paths.
    """
    folder = tmp_path_factory.mktemp("mine")
    (folder / "configs").symlink_to(tiny.ROOT / "configs")
    for name, code in FILES.items():
        (folder / name).write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_an_architecture_is_trained_explained_counted_and_exported(tmp_path, capsys):
    result = loop.train(tiny.config(model__name="my_net.py:mynet8", **QUICK), tmp_path / "run")
    # 3x3 kernels 1 -> 4 -> 8 -> 16 with batch norms, and the head
    assert result["parameters"] == 9 * (4 + 32 + 128) + 2 * (4 + 8 + 16) + 16 * 10 + 10
    trained, state = restore.load(tmp_path / "run")
    exported = network.network(trained, state)
    write.export(trained, exported, "safetensors", tmp_path / "out", {}, images=8)  # also reads the file back
    opened = loaded.load(tmp_path / "out")
    assert opened.card["architecture"] == "my_net.py:mynet8"
    probabilities, logits = opened.run(np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), rtol=1e-5)
    maps, *_ = cam.grad_cam(exported.create(), exported.variables, jnp.ones((1, 8, 8, 1)), jnp.zeros(1, int))
    assert maps.shape == (1, 2, 2)  # from the last stage
    assert command_line(["", "my_net.py:mynet8", "--resolution=8", "--channels=1", "--set=width=4"]) == 0
    assert f"{result['parameters'] + 990 * 17:,}" in capsys.readouterr().out  # 1,000 classes


def test_a_norm_a_loss_and_a_data_set_in_one_run(tmp_path):
    c = tiny.config(
        model__name="my_net.py:mynet8",
        model__norm="my_norm.py:RMSNorm",
        task__name="my_loss.py:Focal(gamma=1.0)",
        data__source="my_data.py:bars(count=96)",
        **QUICK,
    )
    result = loop.train(c, tmp_path / "run")
    assert result["test_examples"] == 96 and 0 < result["loss"] < 10
    assert result["parameters"] == 9 * (4 + 32 + 128) + (4 + 8 + 16) + 16 * 2 + 2  # no biases, two classes
    task = spec.resolve_one("task", c.task.name, {}, None, 2, c.task)
    np.testing.assert_allclose(
        task.losses(jnp.log(jnp.array([[0.2, 0.8]])), jnp.array([[1.0, 0.0]])), [-0.8 * np.log(0.2)], rtol=1e-5
    )


def test_a_tracker_has_each_number_of_the_metrics_once(tmp_path):
    config = tiny.config(hooks="my_tracker.py:Csv", **{**QUICK, "duration": "8 steps"})
    loop.train(config, tmp_path / "run", until=4)
    loop.train(config, tmp_path / "run")
    rows = [line.split(",") for line in (tmp_path / "run" / "tracking" / "numbers.csv").read_text().splitlines()]
    assert sorted((name, step) for step, name, _ in rows) == sorted(
        (f"{line['split']}/{name}", str(line["step"]))
        for line in workdir.read_metrics(tmp_path / "run" / "metrics.jsonl")
        for name, value in line.items()
        if isinstance(value, (int, float)) and name != "step"
    )


def test_a_study_has_a_verdict_and_its_place_in_the_report(tmp_path, monkeypatch):
    module = study.module("my_study.py")
    assert len(module.trials("digits", range(3))) == 6
    results = runner.run(
        "my_study.py",
        "digits",
        runner.Options(tmp_path / "work", tmp_path / "results" / "studies", seeds=1),
        rich.console.Console(quiet=True),
    )
    assert [claim["verdict"] in study.VERDICTS for claim in results["claims"]] == [True]
    assert len({trial["folder"] for trial in results["trials"] if trial["folder"].startswith("mynet8-")}) == 2
    report = content.gather(tmp_path / "results", tmp_path / "pictures")
    assert "Root mean squares" in [section.title for section in report.sections]
    assert [claim.study for claim in report.claims] == ["Root mean squares"]


def test_one_line_registers_each(monkeypatch, folder):
    monkeypatch.syspath_prepend(str(folder))
    lines = re.findall(r'`("\w+": "[\w.]+(?::\w+)?"),` in `(\w+)` of `([\w/]+)\.py`', PAGE)
    assert [table for _, table, _ in lines] == ["FAMILIES", "NORMS", "TASKS", "KINDS", "HOOKS", "STUDIES"]
    for line, table, path in lines:
        module = importlib.import_module(path.replace("/", ".").removesuffix(".__init__"))
        name, where = line.replace('"', "").split(": ")
        monkeypatch.setitem(getattr(module, table), name, where.split(".")[-1])  # the module, as the table names it
    assert models.create("mynet16").width == 16
    assert norms.norm("rms", train=True)(name="n").epsilon == 1e-6
    assert spec.resolve_one("task", "focal(gamma=0.5)", tasks.TASKS, None, 2, tiny.config().task).gamma == 0.5
    assert load.load(tiny.config(data__source="bars").data, "test").image_shape == (8, 8, 1)
    assert [type(hook).__name__ for hook in hooks.create("csv(name='a.csv')")] == ["Csv"]
    assert study.module("rms").STUDY.name == "rms"


def test_configs_take_it_as_an_argument_and_other_processes_find_it():
    assert configs.load("configs/digits.py:my_net.py:mynet8").model.name == "my_net.py:mynet8"
    layer = plugins.load("my_norm.py:RMSNorm")()
    assert plugins.load("./my_norm.py:RMSNorm") is type(layer)  # loaded once
    sent = pickle.dumps(layer)
    sys.modules.pop(type(layer).__module__)
    assert pickle.loads(sent).epsilon == layer.epsilon
    assert plugins.load("my_norm.py:RMSNorm") is type(pickle.loads(sent))


@pytest.mark.parametrize(
    ("code", "use", "message"),
    [
        (None, lambda: models.create("gone.py:net"), "gone.py: there is no such file"),
        (
            "import math\nx = (1,\n",
            lambda: models.create("wrong.py:net"),
            "wrong.py, line 2: SyntaxError: '(' was never",
        ),
        (
            "x = 1\ny = z\n",
            lambda: models.create("wrong.py:net"),
            "wrong.py, line 2: NameError: name 'z' is not defined",
        ),
        (
            "import gone\n",
            lambda: study.module("wrong.py"),
            "wrong.py, line 1: ModuleNotFoundError: No module named 'gon",
        ),
        (
            "x = 1\n",
            lambda: models.create("wrong.py:net"),
            "wrong.py: it has no dictionary VARIANTS; it must define VARIANTS with a key net",
        ),
        (
            "VARIANTS = {'net': 1}\n",
            lambda: models.create("wrong.py:nets"),
            "unknown name in VARIANTS of wrong.py 'nets'; did you mean 'net'?",
        ),
        (
            "VARIANTS = {'net': 1}\n",
            lambda: models.create("wrong.py:net"),
            "model wrong.py:net is 1, not a flax module",
        ),
        (
            "import math\ndef good(x): ...\nx = 1\n",
            lambda: models.create("resnet8", act="wrong.py:god"),
            "unknown name in wrong.py 'god'; did you mean 'good'? allowed: good",
        ),
        (
            "class N:\n  def __init__(self, name, epsilon): ...\n",
            lambda: models.create("resnet8", norm="wrong.py:N"),
            "norm wrong.py:N takes no scale_init: a norm must take name, scale_init, epsilon",
        ),
        ("", lambda: models.create("resnet8", norm="my_norm.py:RMSNorm", sync_norm=True), "has nothing to synchronize"),
        ("", lambda: models.create("resnet8", conv="wrong.py:Conv"), "unknown name in wrong.py 'Conv'"),
        ("", lambda: models.create("resnet8", init="wrong.py:x"), "unknown name in wrong.py 'x'"),
        (
            "",
            lambda: build_run(tiny.config(task__name="my_loss.py:Focal(gama=1.0)")),
            "task.name my_loss.py:Focal: got an unexpected keyword argument 'gama'; usage: my_loss.py:Focal("
            "gamma: float = 2.0",
        ),
        ("", lambda: build_run(tiny.config(data__source="my_data.py:bars(count=few)")), "count must be int, not 'few'"),
        ("STUDY = 1\n", lambda: study.module("wrong.py"), "study wrong.py: it does not define STUDY"),
    ],
)
def test_a_mistake_is_one_line(folder, monkeypatch, code, use, message):
    # Bytecode is matched to a file by its modification time in whole seconds, and the next case comes sooner.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop((folder / "wrong.py").as_uri().replace(".", "%2E"), None)
    (folder / "wrong.py").write_text(code or "")
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        use()
    assert "\n" not in str(raised.value)

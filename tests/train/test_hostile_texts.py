"""Users' texts appear unchanged in pictures and on the terminal; paths may begin with ~; JSON is checked."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from models.analysis.drawing import save
from models.errors import UserError
from tests import tiny
from train import loop
from train.plots import figures, mistakes
from train.setup import config
from train.storage import files, workdir

NAMES = (
    "$1",
    "$5",
    "$a^2$",
    "a_b^c",
    r"\$",
    r"\frac{1}",
    "100%",
    "{x}",
    "<b>&",
    "#",
    "~",
    "a\tb",
    "two\nlines",
    "é",
    "e\u0301",
    "日本語",
    "🐈",
    "\udcff\udcfe",
    "x" * 300,
    " ",
    "[red]x[/red]",
    "[/]",
)


def quiet(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font lacks
        return function()


@pytest.mark.parametrize("name", NAMES)
def test_pictures_show_any_name(name, tmp_path):
    rng = np.random.default_rng(0)
    pixels, classes = rng.integers(0, 256, (12, 8, 8, 3), np.uint8), [name, f"{name}2", f"$5 {name}"]
    quiet(
        lambda: mistakes.mistakes(
            rng.normal(size=(12, 3)),
            np.arange(12) % 3,
            classes,
            tmp_path / "mistakes.png",
            image=lambda i: pixels[i],
            index=np.arange(12),
        )
    )
    quiet(lambda: figures.predictions([(pixels[0], name, [(one, 0.3) for one in classes])], tmp_path / "said.png"))
    assert all((tmp_path / f"{picture}.png").stat().st_size > 3000 for picture in ("mistakes", "said"))


def shown(text, folder, on_axis=False):
    """Returns the texts of a saved picture that are parsed as mathematics."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 1000])
    axes.set(xscale="log", title=text)
    if on_axis:
        axes.set_yticks([1, 500], [text, "b"])
    save(figure, folder / "shown.png")
    return {one.get_text() for one in figure.findobj(Text) if one.get_parse_math() and one.get_text()}, figure


@pytest.mark.parametrize("on_axis", [False, True])
def test_only_powers_of_ten_are_typeset_as_mathematics(tmp_path, on_axis):
    mathematical, figure = shown("$1 and $5", tmp_path, on_axis)
    assert "$1 and $5" not in mathematical and figure.axes[0].get_title() == "$1 and $5"
    assert any("10^{2}" in text for text in mathematical)


def test_a_picture_that_fails_is_a_warning_and_the_run_is_finished(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise ValueError("no font\nat all")

    monkeypatch.setattr(mistakes, "mistakes", fail)
    summary = loop.train(tiny.config(hooks="figures", duration="2 steps"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "mistakes.png was not drawn: ValueError: no font at all" in lines[0]
    assert (tmp_path / "run" / "curves.png").exists()


# -- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        "train", "train.export", "train.adaptive", "train.probe", "train.predict", "experiments.explain",
        "experiments.run", "experiments.sweep", "experiments.compare",
    ],
)  # fmt: skip
def test_paths_may_begin_with_a_tilde(module, tmp_path):
    """Checks each path flag: the command expands it, then fails with an error that names the expanded path."""
    flag = {
        "train.predict": "--out=~/nowhere/x.png",
        "train.probe": "--cache=~/x",
        "experiments.run": "--out=~/x",
        "experiments.sweep": "--out=~/x",
        "experiments.compare": "--out=~/x",
    }.get(module, "--workdir=~/nowhere")
    script = (
        f"import sys; sys.argv = ['x', {flag!r}]\n"
        f"import runpy; from absl import flags; from train import cli\n"
        f"def run(main, usage, **options):\n"
        f"    flags.FLAGS(sys.argv); print(flags.FLAGS[{flag.split('=')[0][2:]!r}].value)\n"
        f"cli.run = run\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tiny.ROOT,
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.stdout.strip() == flag.split("=")[1].replace("~", str(tmp_path)), done.stderr


# -- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"3", b'"x"', b"{} {}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}',
        b"\xff\xfe{", b"{'a': 1}", b"[" * 100_000, b'{"a": ' * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b"\0" * 100,
    ],
)  # fmt: skip
def test_files_that_hold_no_json_object_are_one_line(content, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x.json is damaged") as error:
        files.read_json(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            files.read_json(path)


CONFIG = json.loads(json.dumps(workdir.plain(tiny.config())))
WRONG = [
    ("seed", "x"), ("seed", 1.5), ("seed", True), ("seed", None), ("seed", -1), ("seed", 2**64), ("seed", [1]),
    ("batch_size", "32"), ("batch_size", 0), ("batch_size", -32), ("batch_size", 10**9), ("batch_size", 10**30),
    ("eval_batch_size", 10**9), ("eval_batch_size", 0), ("steps_per_call", 10**9), ("accumulate", 0), ("duration", 5),
    ("duration", "1e300 steps"), ("duration", "-1 epochs"), ("duration", "nan epochs"), ("precision", 32),
    ("precision", "float64"), ("ema_decay", "high"), ("ema_decay", 1.5), ("hooks", 3), ("hooks", None),
    ("data.image_size", 3), ("data.dir", 1), ("optimizer.learning_rate", float("inf")),
    ("optimizer.learning_rate", float("nan")), ("optimizer.learning_rate", "0.1"), ("optimizer.weight_decay", None),
    ("optimizer.groups", "all"), ("optimizer.groups", [1, 2]), ("optimizer", 3), ("optimizer", None), ("data", []),
    ("model", "resnet8"), ("data.mean", [float("nan")]), ("data.mean", 0.5), ("data.mean", ["a"]), ("data.mean", []),
    ("data.std", [0.0]), ("data.std", [float("inf")]), ("data.workers", -1), ("data.workers", 10**9),
    ("data.image_size", 10**9), ("data.source", 3), ("data.crop_scale", [1]), ("data.augment", 1), ("model.name", 8),
    ("model.width", "wide"), ("model.width", 10**9), ("task.label_smoothing", "much"), ("task.label_smoothing", 7.0),
    ("keep_checkpoints", 0), ("optimizer.name", "[" * 5000), ("data.augment", "crop(" * 5000),
    ("hooks", "a(" + "(" * 300), ("devices", -1), ("devices", 10**9), ("log_every", 3), ("parallel", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_config_values_of_another_kind_are_one_line(key, value, tmp_path):
    changed = json.loads(json.dumps(CONFIG))
    *sections, last = key.split(".")
    section = changed
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError) as error:
        loop.train(changed, tmp_path / "run")
    assert last in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_configs_of_the_project_have_the_types_of_their_defaults():
    for path in sorted((tiny.ROOT / "configs").glob("*.py")):
        if "def get_config" in path.read_text() and path.stem not in ("transfer", "pruning"):
            config.check_types(config.load(f"configs/{path.name}"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the folder of a finished run, whose summary a test may overwrite."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    loop.train(tiny.config(), folder)
    return folder


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"accuracy": 1.0}', '{"model": 3}', "null", "", '{"model": "resnet8"']
)
def test_a_summary_that_is_damaged_does_not_count_as_a_finished_run(content, finished):
    (finished / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary.json is damaged"):
        loop.train(tiny.config(), finished)


def test_damaged_lines_of_metrics_are_left_out_with_a_warning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [{"step": step, "split": "train", "loss": 1.0} for step in (1, 2, 3)]
    bad = [
        "null", "[]", '{"step": "x", "split": "train"}', '{"split": "train"}', '{"step": 2, "split": 3}', "\\udc",
        '{"step": 1, "split": "train", "loss": NaN}',
    ]  # fmt: skip
    path.write_text("\n".join([json.dumps(good[0]), *bad, *map(json.dumps, good[1:])]) + '\n{"step": 4, "spl')
    with pytest.warns(UserWarning, match="8 damaged lines are skipped; the first is line 2"):
        assert workdir.read_metrics(path) == good
    path.write_text("\n".join(map(json.dumps, good)) + '\n{"step": 4, "spl')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert workdir.read_metrics(path) == good

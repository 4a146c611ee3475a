"""Tests of python -m experiments.compare: it says what files and networks of runs say, and bad input is one line."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rich.console
from PIL import Image
from scipy import stats

import train
from experiments import compare
from experiments.comparison import arguments, groups, mosaic, pictures, results, runs
from experiments.study import figures, ledger
from models.analysis.tables import markdown_code
from models.errors import UserError
from tests import tiny
from train.data.image_feed import ImageFeed
from train.storage import workdir

DEPTH = tiny.ROOT / "experiments" / "results" / "studies" / "depth" / "digits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds each of two norms, barely trained, so that the networks disagree."""
    folder = tmp_path_factory.mktemp("compared")
    for norm in ("batch", "group:2"):
        for seed in (0, 1):
            tiny.trained(folder / f"{norm[:5]}{seed}", model__norm=norm, seed=seed, evaluate_every="4 steps")
    return folder


@pytest.fixture
def fake(tmp_path):
    """Writes the folder of a finished run that was never trained; "section__key" changes its config."""
    identity = {"train": {"images": 1437, "content": "a"}, "test": {"images": 360, "content": "b"}}

    def write(name, accuracy=0.9, finished=True, test=None, lines=(3, 6, 12), **changes):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = workdir.plain(tiny.config(**changes))
        (folder / "config.json").write_text(json.dumps(config))
        record = {"classes": ["a", "b"], "identity": {**identity, "test": {**identity["test"], **(test or {})}}}
        (folder / "data.json").write_text(json.dumps(record))
        metrics = [
            {"step": step, "split": split, "loss": 2 / step, "accuracy": accuracy * step / 12}
            for step in lines
            for split in ("train", "test")
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        if finished:
            summary = {
                "model": config["model"]["name"], "data": "digits", "test_examples": 360, "parameters": 1000,
                "mult_adds": 10**6, "steps": 12, "seconds": 3.0, "seed": config["seed"], "commit": "c", "device": "d",
                "versions": {}, "loss": 0.5, "accuracy": accuracy,
            }  # fmt: skip
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write


def read(*paths):
    """Returns the runs of paths and the lines about those that were left out."""
    lines = []
    return arguments.read([str(path) for path in paths], lines.append), lines


def execute(paths, out, width=100, **options):
    """Runs a comparison in this process; returns the content of compare.json, and the output."""
    output = io.StringIO()
    console = rich.console.Console(file=output, width=width, markup=False, emoji=False)
    content = compare.compare([str(path) for path in paths], compare.Options(out, **options), console, "the command")
    return content, output.getvalue()


def is_drawn(path):
    with Image.open(path) as picture:
        return np.ptp(np.asarray(picture.convert("L"))) > 100


# -- what it says --------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_summaries_and_answers_those_of_the_networks(trained, tmp_path):
    content, output = execute([trained], tmp_path / "out")
    first, second = content["groups"]
    assert [first["group"], second["group"]] == ["norm=batch", "norm=group:2"] and content["keys"] == ["model.norm"]
    assert [[run["seed"] for run in group["runs"]] for group in content["groups"]] == [[0, 1], [0, 1]]

    def accuracies(norm):
        return [json.loads((trained / f"{norm}{i}" / "summary.json").read_text())["accuracy"] for i in range(2)]

    high, low = accuracies("group"), accuracies("batch")
    assert second["accuracy_mean"] == pytest.approx(np.mean(high)) and second["accuracy_std"] == pytest.approx(
        np.std(high, ddof=1)
    )
    welch = stats.ttest_ind(high, low, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert second["difference"] == pytest.approx(np.mean(high) - np.mean(low))
    assert [second["difference_low"], second["difference_high"]] == pytest.approx([interval.low, interval.high])

    opened = {name: train.load(trained / name) for name in ("batch0", "batch1", "group0")}
    images, labels = opened["batch0"].data("test")
    probabilities = {name: one.predict(images) for name, one in opened.items()}
    answers = {name: one.argmax(-1) for name, one in probabilities.items()}
    found, differ = content["disagreements"], answers["batch0"] != answers["group0"]
    assert found["shares"][0][1] == found["shares"][1][0] == pytest.approx(differ.mean())
    assert found["shares"][0][0] == pytest.approx((answers["batch0"] != answers["batch1"]).mean())  # by chance alone
    right = [answers[name] == labels for name in ("batch0", "group0")]
    only = [int((right[i] & ~right[1 - i]).sum()) for i in range(2)]
    pair = found["pair"]
    assert [pair["counts"][name] for name in ("only the first", "only the second")] == only
    assert sum(pair["counts"].values()) == len(labels) == 360
    assert pair["mcnemar_p"] == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert sorted(image["index"] for image in pair["images"]) == np.flatnonzero(differ).tolist()
    surest = pair["images"][0]
    sums = sum(probabilities[name].max(-1) for name in ("batch0", "group0"))
    assert surest["index"] == np.where(differ, sums, 0).argmax()
    assert surest["probabilities"][1] == pytest.approx(probabilities["group0"][surest["index"]].max(), abs=1e-4)

    for name in ("curves.png", "results.png", "disagreements.png"):
        assert is_drawn(tmp_path / "out" / name) and name in output
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["model.norm"] for row in rows] == ["batch", "group:2"]
    assert float(rows[1]["difference"]) == second["difference"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == content
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "| norm=group:2 | group:2 |" in page and "![disagreements](disagreements.png)" in page
    assert f"differ on {differ.sum()} of 360 test images" in output


def test_the_trials_of_a_study_by_their_ledger(tmp_path):
    content, output = execute([DEPTH, f"{DEPTH}/", DEPTH / "trials.jsonl"], tmp_path / "out")  # the same ledger
    lines = [json.loads(line) for line in (DEPTH / "trials.jsonl").read_text().splitlines()]
    for group in content["groups"]:
        accuracy = [
            line["outcome"]["summary"]["accuracy"]
            for line in lines
            if line["outcome"]["summary"]
            and all(line["labels"].get(key) == group["keys"][key] for key in content["keys"])
        ]
        assert group["accuracy_mean"] == pytest.approx(np.mean(accuracy)) and group["seeds"] == len(accuracy)
    assert {"network", "depth"} <= set(content["keys"]) and len(content["groups"]) > 10
    assert output.count("no weights") == 1 and "disagreements.png" not in output
    assert not {"disagreement", "pair"} & content["disagreements"].keys()
    assert is_drawn(tmp_path / "out" / "curves.png") and is_drawn(tmp_path / "out" / "results.png")


def line_of(folder, config_labels, **changes):
    """Returns the line of a ledger for the run in a folder."""
    summary = json.loads((folder / "summary.json").read_text())
    outcome = {"summary": summary, "diverged": None, "history": {"test": {"step": [3, 12], "loss": [1.0, 0.5]}}}
    return {
        "trial": folder.name, "labels": config_labels, "outcome": {**outcome, **changes}, "code": "", "commit": "c",
        "device": "d", "versions": {}, "seconds": 1.0,
    }  # fmt: skip


def test_a_sweep_is_read_from_folders_that_were_kept_or_from_its_ledger(fake, tmp_path):
    folders = [
        fake(f"sweep/trials/{rate}-{seed}", optimizer__learning_rate=rate, seed=seed)
        for rate in (0.5, 0.1)
        for seed in (0, 1)
    ]
    sweep = folders[0].parents[1]
    path = sweep / ledger.NAME
    lines = [
        line_of(folder, {"learning_rate": float(folder.name[:3]), "seed": int(folder.name[-1])}) for folder in folders
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for argument in (sweep, sweep.parent, path):
        kept = groups.of(read(argument)[0])
        assert kept.keys == ["optimizer.learning_rate"] and [group.first.facts["model.name"] for group in kept.groups]
        assert [group.name for group in kept.groups] == ["learning_rate=0.1", "learning_rate=0.5"]  # by value
    shutil.rmtree(folders[0])
    gone = groups.of(read(sweep)[0])
    assert gone.keys == ["learning_rate"] and [len(group.runs) for group in gone.groups] == [2, 2]
    assert [bool(run.folder) for run in gone.groups[1].runs] == [False, True]


def test_diverged_and_untrained_trials(fake, tmp_path):
    folder = fake("a", seed=0)
    lines = [
        line_of(folder, {"rate": 1, "seed": 0}),
        {**line_of(folder, {"rate": 9, "seed": 0}, summary=None, diverged="the loss is nan"), "trial": "b"},
        {**line_of(folder, {"rate": 9, "seed": 1}, summary=None), "trial": "c"},
        {**line_of(folder, {"rate": 9, "seed": 2}, summary="x"), "trial": "d"},
    ]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content, output = execute([tmp_path / "trials.jsonl"], tmp_path / "out")
    assert [group["diverged"] for group in content["groups"]] == [0, 1] and "diverged" in output
    assert "1 trial damaged, left out" in output and "1 trial without training, left out" in output


# -- groups and names ----------------------------------------------------------------------------------------


def named(*paths, **options):
    comparison = groups.of(read(*paths)[0], **options)
    return [group.name for group in comparison.groups]


def test_seeds_and_where_a_run_computes_make_no_groups(fake):
    folders = [
        fake("a", seed=0, devices=1, log_every="1 steps", evaluate_every="2 steps", hooks="figures"),
        fake("b", seed=1, devices=2, data__workers=3, hooks="", data__dir="/elsewhere"),
    ]
    (group,) = groups.of(read(*folders)[0]).groups
    assert group.name == "resnet8" and [run.seed for run in group.runs] == [0, 1]


def test_each_seed_may_start_from_a_run_of_its_own_seed(fake):
    starts = [fake(f"start{seed}", seed=seed, model__width=8) for seed in (0, 1)]
    other = fake("other", model__width=16)
    tuned = [fake(f"tuned{i}", seed=i, init_from=str(start)) for i, start in enumerate((*starts, other))]
    comparison = groups.of(read(*tuned)[0])
    assert [[run.seed for run in group.runs] for group in comparison.groups] == [[0, 1], [2]]
    assert comparison.keys == ["init_from"] and "run of resnet8" in comparison.groups[0].name


def test_names_tell_all_groups_apart_and_are_short(fake):
    for i, (width, rate) in enumerate([(4, 0.1), (4, 0.2), (8, 0.1), (8, 0.2)]):
        fake(
            f"run{i}",
            model__width=width,
            optimizer__learning_rate=rate,
            model__norm="group:2" if width == 8 else "batch",
        )
    found, _ = read(fake("vit", model__name="resnet14").parent)
    comparison = groups.of(found)
    assert comparison.keys == ["model.name", "model.norm", "model.width", "optimizer.learning_rate"]
    names = [group.name for group in comparison.groups]
    assert len(set(names)) == 5 and max(map(len, names)) <= groups.LONGEST + groups.LONGEST_VALUE
    assert "resnet8, norm=batch, width=4, learning_rate=0.1" in names
    (shown,) = [group.shown("model.norm") for group in comparison.groups if group.name.startswith("resnet14")]
    assert shown == "batch"


def test_a_key_that_a_config_lacks_is_shown_as_such(fake):
    fake("new", model__width=8)
    old = fake("old")
    config = json.loads((old / "config.json").read_text())
    del config["ema_warmup"], config["model"]["width"]
    (old / "config.json").write_text(json.dumps(config))
    comparison = groups.of(read(old.parent)[0])
    (lacking,) = [group for group in comparison.groups if group.first.name.endswith("old")]
    assert lacking.shown("ema_warmup") == lacking.shown("model.width") == groups.ABSENT
    assert results.keys_table(comparison).columns[1:] == ["model.width", "ema_warmup"]


def test_names_first_and_pair_of_the_user(fake):
    folders = [fake(str(i), optimizer__learning_rate=i / 10) for i in (1, 2, 3)]
    assert named(*folders, names=["a", " b", "c"]) == ["a", "b", "c"]
    assert named(*folders, names=["a", "b", "c"], first="c") == ["c", "a", "b"]
    assert named(*folders, first="learning_rate=0.2")[0] == named(*folders, first="2")[0] == "learning_rate=0.2"
    comparison = groups.of(read(*folders)[0])
    assert [group.name for group in comparison.pair("1,learning_rate=0.3")] == [
        "learning_rate=0.1",
        "learning_rate=0.3",
    ]
    with_commas = comparison._replace(groups=[g._replace(name=f"x={i}, y") for i, g in enumerate(comparison.groups)])
    assert [group.name for group in with_commas.pair("x=0, y,x=2, y")] == ["x=0, y", "x=2, y"]
    for options, message in (
        ({"names": ["a"]}, "--names has 1 name for 3 groups: learning_rate=0.1; "),
        ({"names": ["a", "a", "b"]}, "names must be different and not empty"),
        ({"names": ["a", " ", "b"]}, "names must be different and not empty"),
        ({"first": "4"}, "unknown group of --first '4'.* allowed: 1 to 3, learning_rate=0.1"),
        ({"first": "learning_rate=0.4"}, "did you mean 'learning_rate=0"),
    ):
        with pytest.raises(UserError, match=message):
            named(*folders, **options)
    for text, message in (("1", "name two groups"), ("1,1", "two different"), ("1,x", "unknown group of --pair 'x'")):
        with pytest.raises(UserError, match=message):
            comparison.pair(text)


def test_the_metric(fake, tmp_path):
    folders = [fake("a", accuracy=0.5), fake("b", accuracy=0.75, model__width=8)]
    content, output = execute(folders, tmp_path / "out", metric="loss", disagreements=False)
    assert content["metric"] == "loss" and "accuracy" not in output and "no disagreements" not in output
    with pytest.raises(UserError, match=r"unknown --metric 'acuracy'; did you mean 'accuracy'"):
        execute(folders, tmp_path / "out", metric="acuracy")


# -- curves --------------------------------------------------------------------------------------------------


def test_curves_of_different_steps_are_compared_where_all_have_been():
    steps, values = pictures.aligned([([0, 10, 20], [0.0, 1.0, 2.0]), ([5, 10, 30], [2.0, 1.0, 5.0]), ([], [])])
    assert steps.tolist() == [5, 10, 20] and values.tolist() == [[0.5, 1.0, 2.0], [2.0, 1.0, 3.0]]
    assert pictures.aligned([([], [])])[1].size == 0


def test_many_groups_are_legible(fake, tmp_path):
    for i in range(20):
        fake(f"run{i}", accuracy=i / 20, optimizer__learning_rate=(i + 1) / 100)
    comparison = groups.of(read(tmp_path / "runs")[0])
    looks = pictures.styles(comparison, results.choose(comparison.runs))
    assert [look.label for look in looks if look.label] == [f"learning_rate={(i + 1) / 100:g}" for i in range(12, 20)]
    content, _ = execute([tmp_path / "runs"], tmp_path / "out", disagreements=False)
    assert "8 best of 20 groups" in content["figures"][0]["caption"] and is_drawn(tmp_path / "out" / "curves.png")


# -- bad input -----------------------------------------------------------------------------------------------


def test_unfinished_runs_are_compared_as_far_as_they_go(fake, tmp_path):
    fake("a", seed=0), fake("b", seed=1)
    fake("c", seed=2, finished=False, lines=(3, 6))
    fake("d", finished=False, lines=(3,), model__width=8)
    content, output = execute([tmp_path / "runs"], tmp_path / "out", disagreements=False, width=160)
    first, second = content["groups"]
    assert (first["seeds"], first["finished"], first["accuracy_mean"]) == (3, 2, pytest.approx(0.9))
    assert first["runs"][2]["state"] == "unfinished, step 6 of 12" and second["difference"] is None
    assert "1 unfinished, step 6 of 12" in output and "(22.50)" in output and "unfinished, step 3 of 12" in output
    assert "ones that did not finish" not in content["figures"][0]["caption"]
    assert "did not finish" in content["figures"][0]["caption"]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", "{", "config.json is damaged: it is not JSON"),
        ("config.json", "{}", "config.json is not of a run: it has no data"),
        ("config.json", '{"seed": "x"}', "config key 'seed' is 'x'"),
        ("config.json", '{"a": ' * 900 + "1" + "}" * 900, "left out"),
        (
            "metrics.jsonl",
            '{"step": 3, "split": "train"}\nnonsense\n{"step": 6, "split": "train"}\n',
            "1 damaged lines",
        ),
        ("metrics.jsonl", '{"step": ' + "9" * 400 + ', "split": "train"}\n', "damaged"),
        ("summary.json", '{"accuracy": 1.0}', "summary.json is damaged"),
        ("summary.json", "\0", "summary.json is damaged"),
        ("data.json", "[]", "data.json is damaged"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(fake, tmp_path, file, damage, message):
    fake("good")
    (fake("bad", model__width=8) / file).write_text(damage)
    found, lines = read(tmp_path / "runs")
    assert [os.path.basename(run.name) for run in found] == ["good"]
    assert len(lines) == 1 and "\n" not in lines[0] and message in lines[0] and "/bad is left out: " in lines[0]
    with pytest.raises(UserError, match="no run is left to compare; .*bad is left out"):
        read(tmp_path / "runs" / "bad")


def test_a_run_without_a_checkpoint_is_compared_without_its_network(trained, fake, tmp_path):
    shutil.copytree(trained / "batch0", tmp_path / "runs" / "batch0")
    shutil.copytree(trained / "group0", tmp_path / "runs" / "group0")
    shutil.rmtree(tmp_path / "runs" / "group0" / "checkpoints")
    content, output = execute([tmp_path / "runs"], tmp_path / "out")
    assert len(content["groups"]) == 2 and "shares" not in content["disagreements"]
    assert output.count("no disagreements of ") == 1 and "group0: this run has no checkpoint yet" in " ".join(
        output.split()
    )


def test_without_the_data_set_the_rest_is_written(trained, tmp_path, monkeypatch):
    def missing(*arguments, **options):
        raise UserError("the data set is not prepared")

    monkeypatch.setattr(ImageFeed, "split", missing)
    content, output = execute([trained], tmp_path / "out")
    assert output.count("the data set is not prepared") == 1 and not content["disagreements"]
    assert is_drawn(tmp_path / "out" / "curves.png") and (tmp_path / "out" / "compare.md").exists()


def test_different_test_sets_stand_side_by_side(fake, tmp_path):
    folders = [fake(f"a{seed}", seed=seed, accuracy=0.8 + seed / 10) for seed in (0, 1)]
    folders += [fake(f"b{seed}", seed=seed, data__source="arrays:x.npz", test={"images": 100}) for seed in (0, 1)]
    content, output = execute(folders, tmp_path / "out")
    assert [group["difference"] for group in content["groups"]] == [None, None]
    texts = " ".join(output.split())
    assert texts.count("not compared with source=digits, because their test sets differ: source=arrays:x.npz") == 1
    assert "digits (360 examples); arrays:x.npz (100 examples)" in texts
    assert "no disagreements between" in texts and is_drawn(tmp_path / "out" / "curves.png")


def test_nothing_to_compare(fake, tmp_path):
    (tmp_path / "empty" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("x")
    new = fake("new", finished=False, lines=())
    for paths, message in (
        ([tmp_path / "none"], "none: there is no such file or folder"),
        ([tmp_path / "empty"], "no run is left to compare; .*empty is left out: neither it nor a folder"),
        ([tmp_path / "file.txt"], "file.txt is left out: it is neither a folder nor a ledger"),
        ([new], "nothing to compare: none of the 1 runs has been evaluated yet"),
    ):
        with pytest.raises(UserError, match=message):
            execute(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found, lines = read(tmp_path / "file.txt", fake("good"), tmp_path / "runs" / "good")
    assert len(found) == len(lines) == 1  # a run that is named twice counts once
    (tmp_path / "readonly").write_text("a file")
    with pytest.raises(UserError, match="readonly cannot be written to"):
        execute([tmp_path / "runs" / "good"], tmp_path / "readonly")


HOSTILE = [
    "a|b", "a\nb", "$x_1$", "[red]x[/red]", "\u202eabc", "`a``b`", "<b>", "*a* _b_", "\udcff\udcfe", "x" * 150,
    "\x1b[31m", "../../x", "א", "a b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_any_name_is_shown_in_every_file(fake, tmp_path, name):
    folders = [
        fake(f"a{name[:60].replace('/', '')}{seed}", model__act=name, seed=seed, accuracy=0.5 + seed / 10)
        for seed in (0, 1)
    ]
    folders += [fake(f"plain{seed}", seed=seed) for seed in (0, 1)]
    content, output = execute([tmp_path / "runs"], tmp_path / "out", disagreements=False)
    group = next(group["group"] for group in content["groups"] if group["keys"]["model.act"] != "relu")
    assert group.isprintable() and len(group) < 80 and "\x1b" not in output and "\u202e" not in output
    page = (tmp_path / "out" / "compare.md").read_text()  # is UTF-8
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows[:4]}) == 1
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 3
    assert is_drawn(tmp_path / "out" / "curves.png") and is_drawn(tmp_path / "out" / "results.png")


def test_code_in_markdown_is_only_code():
    from markdown_it import MarkdownIt

    for text in (*HOSTILE, "a`", "``", " a"):
        text = runs.printable(text)
        assert [token.type for token in MarkdownIt().parseInline(markdown_code(text))[0].children] == ["code_inline"]


def test_pictures_of_any_classes_and_of_no_disagreement(trained, tmp_path):
    comparison = groups.of(read(trained)[0])
    from experiments.comparison import disagreement

    answers = {
        group.name: disagreement.Answers(
            group.first, np.array([0, i, 2]), np.array([0.5, 1.0, 0.9]), np.array([0, 1, 1]), np.array([0, 4, 7]),
            ["$a", "x" * 99, "\udcff"], lambda place: np.full((8, 8, 3), place, np.uint8),
        )
        for i, group in enumerate(comparison.groups)
    }  # fmt: skip
    pair = disagreement.pair_of(*comparison.groups, answers)
    assert pair.differ.tolist() == [1] and list(pair.counts.values()) == [1, 0, 1, 1] and pair.p == 1
    figures.write(tmp_path, [mosaic.of_pair(pair)], pictures.FILES)
    assert is_drawn(tmp_path / "disagreements.png")
    same = dict.fromkeys(answers, answers[comparison.groups[0].name])
    assert mosaic.of_pair(disagreement.pair_of(*comparison.groups, same)) is None
    figures.write(tmp_path, [], pictures.FILES)
    assert not list(tmp_path.glob("*.png"))


def test_images_that_one_network_could_not_decode_are_left_out():
    from experiments.comparison import disagreement

    def answers(places):
        places = np.array(places)
        return disagreement.Answers(
            None, places % 3, places / 10, places % 2, places, ("a", "b", "c"), lambda place: place
        )

    first, second = disagreement.shared(answers([0, 1, 4, 5]), answers([1, 2, 5, 7]))
    assert first.places.tolist() == second.places.tolist() == [1, 5]
    assert first.predicted.tolist() == second.predicted.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name runs, or folders with runs in them"),
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["x", "--pair=1,2", "--nodisagreements"], "--pair and --nodisagreements exclude each other"),
    ],
)
def test_the_command_refuses_in_one_line(words, message, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert not os.listdir(tmp_path)

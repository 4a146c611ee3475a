"""Tests of experiments/bench: its tables, targets and charts, and workers and runs that end early."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import models
from experiments.bench import __main__ as command
from experiments.bench import charts, commands, mfu, networks, output, pipelines, profile, speedrun, targets, workers
from experiments.bench.workers import Call, Settings, Spec
from models.analysis.tables import slug
from models.errors import UserError
from tests import pictures
from train.data import load, source

ROOT = Path(__file__).parents[2]
USUAL = {"what": "step", "side": "ours", "batch": 256, "precision": "bfloat16"}  # as ResNet-50 is measured on an H200
SPECS = [Spec("PyTorch", "peer", {}), Spec("torch.compile", "peer", {}), Spec("ours", "ours", {})]


def samples(**milliseconds):
    return {("step", name): [{"ms": ms, "preempted": 0}] * 3 for name, ms in milliseconds.items()}


def stamped(rows, case="resnet50, 224x224", subject="resnet50/224", device="1 x NVIDIA H200"):
    return [{"case": case, "subject": subject, "device": device, "commit": "abc", **row} for row in rows]


def test_ours_is_compared_with_the_first_and_with_the_best_of_the_peer():
    by_call = samples(PyTorch=30.0, ours=10.0) | {("step", "torch.compile"): [{"ms": 18.0, "preempted": 0}] * 3}
    eager, compiled, ours = workers.table(SPECS, [Call("step", 2, 64)], by_call, {"ours": {"peak_mib": 7}}, {})
    assert (eager["ms"], eager["times_first"], eager["images_per_second"]) == (15.0, 1.0, 4266.7)
    assert (ours["ms"], ours["times_first"], ours["times_best"], ours["peak_mib"]) == (5.0, 3.0, 1.8, 7)
    assert compiled["times_first"] == 1.667 and "times_best" not in compiled


def test_a_worker_that_failed_is_compared_with_nothing():
    by_call = samples(PyTorch=30.0, ours=10.0)
    _, compiled, ours = workers.table(SPECS, [Call("step")], by_call, {}, {"torch.compile": "no compiler"})
    assert compiled["failed"] == "no compiler" and "ms" not in compiled
    assert ours["times_best"] == 3.0
    *_, ours = workers.table(SPECS, [Call("step")], samples(ours=10.0), {}, {"PyTorch": "x", "torch.compile": "x"})
    assert ours["ms"] == 10.0 and not {"times_first", "times_best"} & set(ours)


def test_disturbed_samples_are_left_out_where_enough_others_remain():
    by_call = {("step", "ours"): [{"ms": 1.0, "preempted": 0}] * 5 + [{"ms": 9.0, "preempted": 99}] * 7}
    (row,) = workers.table(SPECS[2:], [Call("step")], by_call, {}, {})
    assert (row["ms"], row["samples"]) == (1.0, 5)
    by_call["step", "ours"] = by_call["step", "ours"][1:]
    (row,) = workers.table(SPECS[2:], [Call("step")], by_call, {}, {})
    assert (row["ms"], row["samples"]) == (9.0, 11)


def test_workers_that_fail_leave_the_others_running():
    small = {"case": "matmul", "precision": "float32", "sizes": [8], "repeat": 1}
    specs = [Spec("no PyTorch", "peer", small), Spec("ours", "ours", small), Spec("unknown", "ours", {"case": "x"})]
    settings = Settings(peer_python="/bin/false", processes=1, rounds=2, inner=2, overlap=True)
    gone, ours, unknown = workers.interleaved(specs, [Call("8")], settings)
    assert gone["failed"] == "ended with exit code 1" and unknown["failed"] == "KeyError: 'x'"
    assert ours["samples"] == 4 and ours["ms"] > 0 and ours["peak_mib"] > 10
    with pytest.raises(UserError, match="no worker of the case ran: no PyTorch: ended"):
        workers.interleaved(specs[:1], [Call("8")], settings)


@pytest.mark.parametrize(
    ("module", "library"), [("peer", "torch"), ("peer_speedrun", "torch"), ("tf_data", "tensorflow"), ("ours", "")]
)
def test_workers_print_help_and_miss_a_library_in_one_line(module, library):
    def run(*arguments):
        command = [sys.executable, "-m", f"experiments.bench.{module}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    done = run("--help")
    assert done.returncode == 0 and f"python -m experiments.bench.{module}" in done.stdout and not done.stderr
    if library and importlib.util.find_spec(library) is None:
        done = run("{}")
        line = f"error: {library} is missing in {sys.executable}: pip install {library}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_peak_memory_of_a_process_is_its_own():
    large = np.ones(2**26)  # 512 MiB, which a forked process would count as its own
    small, grown = (workers.watched([sys.executable, "-S", "-c", code]) for code in ("", "b'1' * 2**27"))
    assert 2 < small.peak_mib < 100 < grown.peak_mib < 400 and small.seconds > 0 and large[0]
    with pytest.raises(workers.WorkerFailed, match="^ZeroDivisionError: division by zero$"):
        workers.watched([sys.executable, "-c", "1 / 0"])


def test_durations_of_tests_are_listed_by_file_and_the_longest_alone(tmp_path):
    inside = ("", ".TestThem")
    cases = "".join(
        f'<testcase classname="tests.test_{name}{inside[i % 2]}" name="test_{i}" time="{i / 2}"/>'
        for name in "ab"
        for i in range(15)
    )
    path = tmp_path / "tests.xml"
    path.write_text(
        f'<testsuites><testsuite name="abc" tests="30" time="70.5" timestamp="T">{cases}</testsuite></testsuites>'
    )
    whole, a, _, longest, *others = commands.tests(path)
    assert (whole["ms"], whole["samples"], whole["commit"], whole["measured"]) == (70_500, 30, "abc", "T")
    assert (a["who"], a["ms"], a["samples"]) == ("tests/test_a.py", 52_500, 15)
    assert (longest["who"], longest["ms"]) == ("tests/test_a.py::test_14", 7_000) and len(others) == 19
    for text in ("", "<testsuites/>", '<testsuite name="abc" tests="30"/>'):
        path.write_text(text)
        with pytest.raises(UserError, match="tests.xml is not a report that make test has written"):
            commands.tests(path)
    with pytest.raises(UserError, match="gone.xml is missing: make test writes it"):
        commands.tests(tmp_path / "gone.xml")


def test_flops_are_counted_as_said():
    assert mfu.mult_adds("resnet50", 224) == pytest.approx(4.09e9, rel=0.005)
    assert mfu.model_flops("step", 10, 4) == 3 * mfu.model_flops("forward", 10, 4) == 3 * 2 * 10 * 4
    assert mfu.utilization(2e12, 500, 8e12) == 0.5
    assert mfu.ceiling([{"tflops": 2.0}, {"failed": "no memory"}, {"tflops": 3.5}]) == 3.5e12


def test_every_target_names_an_existing_case():
    subjects = {
        f"{name}/{size}"
        for name, network in networks.NETWORKS.items()
        for size in {**network.cpu, **network.accelerator}
    }
    subjects |= {"cifar/resnet20", "start/digits", "start/resnet50", "speedrun/airbench94", "minute/resnet20"}
    for target in targets.TARGETS:
        assert target.subject in subjects, target
        assert target.measure in targets.SHOWN, target
        network = networks.NETWORKS.get(target.subject.partition("/")[0])
        if network and target.device == targets.CPU:
            assert int(target.subject.partition("/")[2]) in network.cpu, target


def test_a_missed_target_states_its_shortfall():
    row, peer = USUAL | {"who": "ours", "ms": 1.0, "times_best": 1.2}, USUAL | {"who": "torch.compile", "side": "peer"}
    assert [one["verdict"] for one in targets.judged(stamped([peer, row]))] == ["met"]
    (one,) = targets.judged(stamped([peer, {**row, "times_best": 0.9}], device="1 x NVIDIA H100"))
    assert one["verdict"] == "missed by 25% (on 1 x NVIDIA H100; the target is for an H200)" and not one["met"]
    assert targets.judged(stamped([peer, row], device="1 x cpu (toy, 2 cores)")) == []
    start = {"what": "start", "who": "ours, warm", "side": "ours", "ms": 15_000}
    (one,) = targets.judged(stamped([start], subject="start/digits"))
    assert one["verdict"] == "missed by 50%"
    loops = [
        USUAL | {"who": "PyTorch, DataLoader", "side": "peer", "ms": 8.0, "batch": 128},
        USUAL | {"who": "PyTorch, resident, torch.compile", "side": "peer", "ms": 12.0, "batch": 128},
        USUAL | {"who": "ours, resident", "ms": 2.0, "times_best": 6.0, "batch": 128},
    ]
    assert [(one["measured"], one["met"]) for one in targets.judged(stamped(loops, subject="cifar/resnet20"))] == [
        (6.0, True),
        (4.0, False),
    ]
    loops[1] = {**loops[1], "failed": "no compiler"}
    assert [one["met"] for one in targets.judged(stamped(loops, subject="cifar/resnet20"))] == [None, False]


def test_each_target_is_judged_by_its_own_measure():
    row, peer = USUAL | {"who": "ours", "ms": 1.0, "times_best": 1.2}, USUAL | {"who": "torch.compile", "side": "peer"}
    for changes in ({"precision": "float32"}, {"batch": 1}):
        assert targets.judged(stamped([peer, row | changes])) == [], changes
    (one,) = targets.judged(stamped([{**peer, "who": "PyTorch"}, row]))
    assert one["met"] is None and one["verdict"] == "not judged: torch.compile did not run"
    (one,) = targets.judged(stamped([{**peer, "failed": "no compiler"}, row]))
    assert one["met"] is None and one["verdict"] == "not judged: torch.compile failed"
    run = {"what": "command", "who": "ours", "side": "ours", "ms": 66_000.0, "accuracy": 0.912}
    assert [one["verdict"] for one in targets.judged(stamped([run], subject="minute/resnet20"))] == [
        "met",
        "missed by 10%",
    ]
    assert targets.judged(stamped([run], subject="minute/other")) == []


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_both_sides_train_the_same_network_without_noise(name):
    case = networks.on_both_sides(name, 224)
    model = models.create(name, image_size=224, **case["fields"])
    assert not getattr(model, "dropout", 0.0) and not getattr(model, "stochastic_depth", 0.0)
    if name == "resnet20":
        assert "timm" not in case
        return
    assert case["timm"]["num_classes"] == model.num_classes and set(case["fields"].values()) <= {0.0}
    if name == "swin_t":  # whose default there is 0.1
        assert case["timm"] == {
            "model_name": "swin_tiny_patch4_window7_224",
            "num_classes": 1000,
            "img_size": 224,
            "drop_path_rate": 0.0,
        }


def test_the_original_images_are_recognized():
    pixels = np.empty((50_000, 32, 32, 3), np.uint8)
    for channel, total in enumerate((6_415_714_204, 6_295_060_180, 5_829_907_619)):
        level, more = divmod(total, pixels[..., 0].size)
        pixels[..., channel] = level
        pixels.reshape(-1, 3)[:more, channel] += 1
    assert speedrun.original(pixels[::-1])
    pixels[7, 0, 0, 1] += 1
    assert not speedrun.original(pixels) and not speedrun.original(pixels[:10])


def test_whole_trainings_are_summarized_by_median_and_mean():
    def failing(seed):
        raise workers.WorkerFailed("no compiler")

    runs = {
        "PyTorch": ("peer", lambda seed: ([8.0, 30.0, 9.0][seed], 0.94)),
        "torch.compile": ("peer", failing),
        "ours": ("ours", lambda seed: (3.0, [0.93, 0.94, 0.95][seed])),
    }
    peer, compiled, ours = speedrun._rows("training", runs, Settings(processes=3))
    assert (peer["ms"], peer["min_ms"], peer["samples"]) == (9.0, 8.0, 3) and compiled["failed"] == "no compiler"
    assert (ours["accuracy"], ours["times_best"]) == (0.94, 3.0)


def test_results_of_a_killed_run_stay_until_their_case_is_measured_again(tmp_path):
    result = {"device": "1 x NVIDIA H200", "commit": "abc", "peer": "PyTorch 9", "measured": "2026-01-01T00:00:00Z"}
    rows = stamped(
        [
            USUAL | {"who": "PyTorch", "side": "peer", "failed": "no | compiler"},
            USUAL | {"who": "torch.compile", "side": "peer", "ms": 2.0},
            USUAL | {"who": "ours", "ms": 1.6, "times_best": 1.25, "mfu": 0.4321, "accuracy": 0.94},
        ]
    )
    swept = stamped(
        [
            {
                "what": "step",
                "who": "ours",
                "side": "ours",
                "ms": float(n),
                "images_per_second": 9.0,
                "value": n,
                "sweep": "batch",
            }
            for n in (1, 2, 4)
        ],
        "by batch",
        "resnet50/batch",
    )
    spent = [{"case": "resnet50, 224x224", "kind": "fusion", "share": 0.5, "ms": 1.0, "count": 3}]
    output.write(tmp_path, {**result, "rows": rows + swept, "profiles": spent})
    before = output.read(tmp_path)
    assert before == {"rows": rows + swept, "profiles": spent}
    page = (tmp_path / "bench.md").read_text()
    for text in (
        "| resnet50, 224x224 |",
        "no / compiler",
        "43.2%",
        "94.00%",
        "at least 1.2 times",
        "1.25",
        "| not judged: PyTorch failed |",
        "abc",
        "![bench.png](bench.png)",
        "![resnet50-batch.png](resnet50-batch.png)",
        "| fusion | 50.0% | 1 | 3 |",
    ):
        assert text in page, text
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("bench.png", "resnet50-batch.png"))
    assert output.merged(before["rows"], [{"case": "by batch", "ms": 5}]) == [*rows, {"case": "by batch", "ms": 5}]
    output.write(tmp_path, {**result, "rows": stamped([{"what": "", "who": "", "side": "", "failed": "all of it"}])})
    assert output.read(tmp_path) == {"rows": [], "profiles": []}
    assert output.read(tmp_path / "elsewhere") == {"rows": [], "profiles": []}


def test_the_chart_groups_calls_and_names_networks_as_papers_do():
    case, base = "resnet50, 224x224, batch 16, float32", {"side": "peer", "who": "PyTorch", "ms": 2.0, "min_ms": 1.0}
    calls = [("step", 1.5, 1.2), ("forward", 0.5, 1.25)]
    ours = [{"what": what, "who": "ours", "times_best": ratio, "min_ms": least} for what, ratio, least in calls]
    rows = stamped([*(base | {"what": what} for what, *_ in calls), *ours], case=case)
    figure = Figure(layout="constrained", figsize=(8, 3))
    charts.ratios(figure, rows, "a toy")
    (axes,) = figure.axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(1, 0.5), (1, -0.5)]  # from equal speed
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ResNet-50, 224 px, batch 16"]
    ends = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert ends == pytest.approx([1 / 1.2, 1 / 1.25])  # of the fastest repeats
    texts = [text for text, _ in pictures.texts(figure)]
    assert {"training step", "forward pass", "PyTorch's best", "1.50", "0.50"} <= set(texts)
    assert axes.get_xscale() == "log" and pictures.collisions(figure) == []


@pytest.mark.parametrize(
    "case, words",
    [
        ("vit_small_patch16, 32x32, batch 64, float32", "ViT small patch 16, 32 px, batch 64"),
        ("mobilenet_v2, 224x224, batch 8, bfloat16", "MobileNet v2, 224 px, batch 8, bfloat16"),
        ("resnext50_32x4d, 32x32", "ResNeXt-50 32x4d, 32 px"),
        ("efficientnet_lite0, 224x224", "EfficientNet-Lite0, 224 px"),
        ("command to first step, ResNet-8 on digits", "command to first step, ResNet-8 on digits"),
    ],
)
def test_cases_in_words(case, words):
    assert charts.words(case) == words


@pytest.mark.parametrize("name", ["xeon", "xeon_families", "families"])
def test_the_charts_of_the_results_have_no_colliding_labels(name, tmp_path):
    content = json.loads((ROOT / f"experiments/results/bench/{name}/bench.json").read_text())
    with pictures.recorded() as figures:
        assert charts.charts(tmp_path, content["rows"], content["device"]) == ["bench.png"]
    assert pictures.collisions(figures[0]) == []


def test_nested_operations_are_counted_once():
    events = [(0, 100, "while.1"), (10, 20, "fusion.3"), (40, 50, "fusion.12.clone"), (100, 30, "dot.7")]
    own = profile.own_times(events)
    assert sorted(own) == [("dot.7", 30), ("fusion.12.clone", 50), ("fusion.3", 20), ("while.1", 30)]
    assert profile.idle(events) == 0 and profile.idle([*events, (150, 10, "dot.7"), (140, 15, "dot.8")]) == 10
    rows = profile.by_kind([(name, 1e6 * time) for name, time in own], calls=2)
    assert [(row["kind"], row["ms"]) for row in rows] == [("fusion", 35.0), ("while", 15.0), ("dot", 15.0)]
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-3)


def test_a_trace_names_the_operations():
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a: jnp.sort(a @ a))
    a = jnp.ones((300, 300))
    product(a).block_until_ready()
    kinds = {row["kind"]: row for row in profile.traced(lambda: product(a).block_until_ready())}
    assert any("sort" in name for name in kinds) and profile.IDLE in kinds
    assert all(row["count"] >= 1 for name, row in kinds.items() if name != profile.IDLE)


def test_jpegs_are_photographs_where_there_is_no_data_set(tmp_path):
    assert pipelines.jpegs(tmp_path / "jpegs", None) == "256 crops of 500x375 of two photographs"
    options = source.Options(source=f"folder:{tmp_path / 'jpegs'}", image_size=64, crop="random_resized")
    images = load.load(options, "train")
    assert len(images) == 256 and images.example(3)["image"].std() > 10
    (tmp_path / "tfds" / pipelines.SAMPLE).mkdir(parents=True)
    assert pipelines.tfds_folder(pipelines.SAMPLE, str(tmp_path / "tfds")) == str(tmp_path / "tfds")


def test_cases_are_checked():
    check = command.check
    check(["resnet20", "cifar"], ["32"], ["default"], "", [])
    check(["resnet20"], ["224"], [], "batch", ["1", "16"])
    for arguments, message in (
        ((["resnet21"], [], [], "", []), "did you mean 'resnet20'"),
        (([], ["64"], [], "", []), "size '64'"),
        (([], [], ["fast"], "", []), "unknown mode of torch.compile 'fast'"),
        ((["data"], [], [], "batch", []), "--sweep=batch measures networks only"),
        (([], [], [], "batch", []), "--sweep=batch measures networks only"),
        ((["resnet20"], [], [], "batch", ["0"]), "whole numbers above 0"),
    ):
        with pytest.raises(UserError, match=message):
            check(*arguments)
    for accelerator in (True, False):
        check(command.usual(accelerator), [], [], "", [])
    assert slug("1 x cpu (AMD EPYC, 2 cores)") == "1_x_cpu_amd_epyc_2_cores"


@pytest.mark.full
def test_the_command_measures_ours_alone_and_keeps_what_a_sweep_measured(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.bench",
            "--cases=resnet20",
            "--sweep=batch",
            f"--values=2,{10**15}",
            "--quick",
            "--rounds=1",
            "--inner=1",
            "--compile=",
            "--peer_python=",
            f"--out={tmp_path}",
        ],
        cwd=ROOT,
        check=True,
    )
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    peer, ours, failed = rows
    assert peer["failed"] == "no Python with PyTorch; --peer_python names one" and peer["side"] == "peer"
    assert ours["ms"] > 0 and ours["params"] == 269_722 and (ours["value"], failed["value"]) == (2, 10**15)
    assert "ours: " in failed["failed"] and all(row["commit"] and row["device"] for row in rows)
    assert "resnet20-batch.png" in (tmp_path / "bench.md").read_text() and (tmp_path / "resnet20-batch.png").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
def test_the_command_measures_and_writes(tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.bench",
            "--cases=resnet20",
            "--quick",
            "--batch=2",
            "--rounds=1",
            "--inner=1",
            "--compile=",
            f"--out={tmp_path}",
        ],
        cwd=ROOT,
        check=True,
    )
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    step = {row["who"]: row for row in rows if row["subject"] == "resnet20/32"}
    assert set(step) == {"PyTorch", "ours"} and step["PyTorch"]["params"] == step["ours"]["params"] == 269_722
    assert 0 < step["ours"]["mfu"] < 1 and step["ours"]["times_best"] > 0
    assert all(row["commit"] and row["device"] for row in rows)

"""Tests of the compression study: its config, verdicts on synthetic outcomes, tiny runs, and timings."""

import numpy as np
import pytest
import rich.console
from matplotlib.figure import Figure

from configs import pruning as config
from experiments.bench import smaller, timing
from experiments.studies.compression import figures, results, tables
from experiments.studies.compression import study as compression
from experiments.study import Outcome, Outcomes, engines, launch, ledger, verdicts
from models.analysis import drawing
from models.compress import file, packed
from tests import pictures, tiny
from train import loop
from train.run import build_run
from train.setup import spec

NET = "LeNet-300-100"
TINY = {  # of the study's constants
    "NETWORKS": {"digits": (NET,)},
    "FILTERS": {"digits": {NET: ("hidden1/kernel", 0.3)}},
    "SPARSITIES": {"digits": (0.9,)},
    "TAUGHT": 0.9,
    "DEPTHS": {"digits": (8,)},
    "LENGTHS": {"digits": (1, 1)},
    "KINDS": {kind: compression.KINDS[kind] for kind in ("full", "ternary")},
}
EPOCHS = {"30 epochs": "6 epochs", "90 epochs": "4 epochs", "5 epochs": "1 epochs"}


@pytest.mark.parametrize("by", ["std", "global", "layer", "runs/x/sensitivity.json"])
def test_what_a_config_writes_of_pruning_can_be_read(by):
    text = config.get_config(f"LeNet-5,stage=prune,from=runs/x,by={by}").optimizer.prune
    assert spec.parse("optimizer.prune", text)[0].kwargs["by"] == by


def shrink(c):
    """Makes the LeNet of a trial small, in place: two narrow layers, few epochs."""
    if c.model.name == "lenet_300_100":
        c.model.hidden, c.duration = (30, 20), EPOCHS[c.duration]
        c.data.image_size, c.data.augment = 8, "crop(1)"
        c.optimizer.prune = c.optimizer.prune.replace("(0.92,", "(0.8,")
        c.optimizer.share = c.optimizer.share.replace("6", "4")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs the whole study with a network of two small layers and with ResNet-8."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(compression, name, value)
        planned = compression.trials("digits", range(1))
    for trial in planned:
        shrink(trial.config)
    folder = tmp_path_factory.mktemp("study")
    lines = ledger.Ledger(folder / "ledger")
    return Outcomes(launch.run_all(planned, lines, folder / "runs", engines.Place(), rich.console.Console(quiet=True)))


@pytest.mark.full
def test_every_stage_is_measured(outcomes):
    for stage in results.STAGES:
        stored = outcomes.where(part="stages", stage=stage, seed=0)[0].measured["stored"]
        assert stored["identical"] and stored["bytes"] > 0
    dense, pruned, shared = (
        outcomes.where(part="stages", stage=stage)[0].measured["stored"] for stage in results.STAGES
    )
    assert dense["ratio"] < 1.1 < pruned["ratio"] < shared["ratio"]
    weights_left = sum(row["kept"] for row in pruned["layers"] if row["entries"])
    assert weights_left == pytest.approx(0.2 * (64 * 30 + 30 * 20 + 20 * 10), abs=1)
    assert tables._unhuffed(shared["layers"]) > shared["bytes"]
    whole = outcomes.where(part="stages", stage="dense", seed=0)[0]
    accuracies = (whole.measured["cut"][0], whole.measured["bits"][0]["accuracy"])
    assert accuracies == pytest.approx([whole.summary["accuracy"]] * 2)
    assert whole.measured["bits"][1]["ratio"] > whole.measured["bits"][-1]["ratio"] > 2
    assert set(whole.measured["sensitivity"]["layers"]) == {"hidden1/kernel", "hidden2/kernel", "head/kernel"}
    int8 = outcomes.where(part="stages", stage="int8")[0].measured["int8"]
    assert int8["float32"] == pytest.approx(accuracies[0]) and int8["share"] == 1 and int8["accuracy"] > 0.5
    filters = outcomes.where(part="filters", seed=0)[0].measured["stored"]
    assert filters["parameters"] == 64 * 21 + 21 + 21 * 20 + 20 + 210 < whole.summary["parameters"]


@pytest.mark.full
def test_the_ternary_network_starts_from_the_full_one(outcomes):
    ternary, full = (outcomes.where(part="low bits", kind=kind)[0] for kind in ("ternary", "full"))
    assert ternary.measured["stored"]["ratio"] > 3 * full.measured["stored"]["ratio"]
    assert ternary.history["train"]["loss"][-1] < full.history["train"]["loss"][-1]  # it goes on from there
    assert ternary.measured["stored"]["identical"]


@pytest.mark.full
def test_a_taught_network_starts_from_the_network_that_teaches_it(outcomes):
    ours, alone = (outcomes.where(part="curves", decay="L2", how=how)[0] for how in ("taught", "step by step"))
    assert ours.history["test"]["step"] == alone.history["test"]["step"]
    assert ours.history["train"]["loss"] != alone.history["train"]["loss"]


@pytest.mark.full
def test_claims_tables_and_pictures(outcomes, tmp_path):
    for claim in compression.CLAIMS:
        judgement = claim.judge(outcomes)
        assert judgement.ours and holds(judgement) is not True, judgement  # one seed of tiny runs confirms no claim
    table_of = {table.title: table for table in compression.STUDY.tables(outcomes)}
    rows = {row[0]: row for row in table_of["Deep compression"].rows}
    assert rows[NET][-1] == "yes" and rows["VGG-16 (Han 2016, table 1)"][-2] == 49
    assert [row[0] for row in table_of[f"{NET}, layer by layer"].rows][-3:] == [
        "biases, norms",
        "header, checksum",
        "total",
    ]
    assert table_of["Error with low-bit weights"].rows[0][:1] == [8] and table_of["Filters removed"].rows
    for table in table_of.values():
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
    for picture in compression.STUDY.pictures:
        with drawing.figure(tmp_path / "picture.png", picture.size) as figure:
            picture.draw(outcomes, figure)
        assert any(axes.lines or axes.patches for axes in figure.axes), picture.name
        assert not pictures.collisions(figure), picture.name


def test_layers_are_drawn_from_the_image_to_the_logits():
    """A ledger has their names in alphabetical order, so the head comes before all others."""
    curve = {"sparsity": [0.0, 0.5], "accuracy": [1.0, 0.5]}
    layers = dict.fromkeys(("head/kernel", "stage1/conv1/kernel", "stage2/conv1/kernel", "stem_conv/kernel"), curve)
    labels = {"part": "stages", "network": "ResNet-20", "stage": "dense", "seed": 0}
    figure = Figure()
    outcomes = Outcomes([Outcome(labels, None, None, {}, {"sensitivity": {"layers": layers}})])
    figures.draw_sensitivity(outcomes, figure)
    drawn = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert drawn == ["stem_conv", "stage1/conv1", "stage2/conv1", "head"]


@pytest.mark.parametrize("scale", ["digits", "cifar"])
def test_trials_have_distinct_labels_and_start_from_other_trials(scale):
    planned = compression.trials(scale, range(2))
    labels = [tuple(sorted(trial.labels.items())) for trial in planned]
    assert len(set(labels)) == len(labels)
    for trial in planned:
        starts_from_another = (
            trial.labels.get("stage") in ("pruned", "shared", "int8")
            or trial.labels["part"] == "filters"
            or trial.labels.get("kind") in ("ternary", results.FULL_LONGER)
            or trial.labels.get("stage") == results.LONGER
            or trial.labels.get("how") in ("at once", "step by step", "taught")
        )
        assert (trial.start is not None) == starts_from_another
        assert not (trial.config.optimizer.prune and trial.config.optimizer.share)
    if scale == "digits":
        sizes = {
            trial.labels["network"]: build_run(trial.config).task.model
            for trial in planned
            if trial.labels.get("stage") == "dense" and trial.labels["seed"] == 0
        }
        assert sizes["LeNet-5"].convs == (20, 50) and sizes["LeNet-300-100"].hidden == (300, 100)


def test_on_photographs_dense_networks_go_on_as_long_as_the_compressed_ones():
    planned = compression.trials("cifar", range(1))

    def only(**labels):
        (trial,) = [t for t in planned if all(t.labels.get(key) == value for key, value in labels.items())]
        return trial

    pairs = [
        (only(network=network, stage="pruned"), only(network=network, stage=results.LONGER))
        for network in compression.NETWORKS["cifar"]
    ]
    for compressed, dense in (*pairs, (only(kind="ternary"), only(kind=results.FULL_LONGER))):
        assert compressed.start == dense.start and dense.start is not None
        for key in ("duration", "batch_size", "seed"):
            assert compressed.config[key] == dense.config[key]
        for key in ("learning_rate", "schedule", "warmup", "weight_decay"):
            assert compressed.config.optimizer[key] == dense.config.optimizer[key]
        assert not dense.config.optimizer.prune and "conv" not in dense.config.model
    sparsities = {trial.labels["sparsity"] for trial in planned if "sparsity" in trial.labels}
    assert len(sparsities) >= results.FEWEST


# -- verdicts ------------------------------------------------------------------------------------------------------


SEEDS = range(10)


def holds(judgement):
    """Returns True for a claim that agrees, False for one that disagrees, None for one that is undecided."""
    return verdicts.decide([judgement.evidence])[0]


def outcome_of(labels, accuracy, **measured):
    return Outcome(labels, {"accuracy": accuracy, "parameters": 10}, None, {}, measured)


def stages(ratio, lost):
    return Outcomes(
        [
            outcome
            for seed in SEEDS
            for outcome in (
                outcome_of({"part": "stages", "network": "N", "stage": "dense", "seed": seed}, 0.9 + seed / 1000),
                outcome_of(
                    {"part": "stages", "network": "N", "stage": "shared", "seed": seed},
                    0.5,
                    stored={
                        "ratio": ratio + (seed - 4.5) / 10,
                        "accuracy": 0.9 + seed / 1000 - lost + (seed - 4.5) / 10_000,
                    },
                ),
            )
        ]
    )


@pytest.mark.parametrize(
    ("ratio", "lost", "verdict"),
    [(40, 0.001, True), (30, 0.001, False), (40, 0.02, False), (40, 0.0051, None), (35, 0.0, None)],
)
def test_smaller_is_by_ratio_and_by_loss(ratio, lost, verdict):
    assert holds(results.smaller("N", 35)(stages(ratio, lost))) == verdict
    assert results.smaller("M", 35)(stages(ratio, lost)) == verdicts.missing("not part of this scale")


def test_a_network_that_trains_as_long_is_the_reference_where_there_is_one():
    outcomes = stages(40, 0.001)
    longer = [
        outcome_of({**o.labels, "stage": results.LONGER}, 0.95 + o.labels["seed"] / 1000)
        for o in outcomes.all()
        if o.labels["stage"] == "dense"
    ]
    assert holds(results.smaller("N", 35)(Outcomes([*outcomes.all(), *longer]))) is False


def curves(better, spread=0.001):
    """Returns outcomes in which `better` ("L1 cut", …) exceeds all others by 5 points."""
    outcomes = []
    for seed in SEEDS:
        for decay in ("L2", "L1"):

            def level(how, decay=decay, seed=seed):
                return 0.8 + 0.05 * (f"{decay} {how}" == better) + spread * (seed - 4.5)

            outcomes.append(
                outcome_of(
                    {"part": "curves", "decay": decay, "how": "whole", "seed": seed},
                    0.9,
                    cut=[level("cut")] * len(results.CUTS),
                )
            )
            outcomes += [
                outcome_of({"part": "curves", "decay": decay, "how": how, "sparsity": 0.9, "seed": seed}, level(how))
                for how in ("at once", "step by step", "taught")
            ]
    return Outcomes(outcomes)


@pytest.mark.parametrize(
    ("judge", "better", "worse"),
    [
        (results.retraining, "L2 step by step", "L2 cut"),
        (results.l1_before, "L1 cut", "L2 cut"),
        (results.l2_after, "L2 at once", "L1 at once"),
        (results.iterative, "L2 step by step", "L2 at once"),
        (results.taught, "L2 taught", "L2 step by step"),
    ],
)
def test_curves_are_compared(judge, better, worse):
    assert [holds(judge(curves(which))) for which in (better, worse, "")] == [True, False, False]
    assert holds(judge(curves(better, 0.05))) is None and judge(Outcomes([])).evidence.note
    kind = better.split(" ", 1)[1]
    without = [o for o in curves(better).all() if o.labels["how"] != ("whole" if kind == "cut" else kind)]
    assert judge(Outcomes(without)) == verdicts.missing("not part of this scale")


def test_filters_have_to_save_a_third_and_lose_little():
    def outcomes_of(saved, lost):
        return Outcomes(
            [
                outcome_of(
                    {"part": part, "network": "N", "seed": seed, **more},
                    0.9,
                    stored={"mult_adds": cost, "accuracy": 0.9 - fewer + seed / 1000},
                )
                for part, more, cost, fewer in (
                    ("stages", {"stage": "dense"}, 100, 0.0),
                    ("filters", {}, 100 - saved, lost),
                )
                for seed in SEEDS
            ]
        )

    assert [holds(results.filters(outcomes_of(*case))) for case in ((35, 0.0), (5, 0.0), (35, 0.05))] == [
        True,
        False,
        False,
    ]


def test_bits_of_an_index_count_the_zero():
    def row(values):
        weights = np.random.default_rng(0).choice(np.float32(values), (64, 64))
        weights[0, :3] = [1, 1, -2]  # magnitudes that differ within a filter: no `signs`
        return file.table(packed.pack({}, {"w": weights}), {"params": {"w": weights}})[0]

    ternary, binary = row([-1, 0, 1]), row([-1, 1, -2])
    assert ternary["index_bits"] == binary["index_bits"] == 2 and row([1, -2])["index_bits"] == 1
    for one, values in ((ternary, 4), (binary, 3)):
        assert one["values"] + (one["entries"] > one["kept"]) == values
        assert tables._unhuffed([one]) == 4 * one["values"] + 4096 * 2 / 8 < one["bytes"] + 1024


def test_both_together_are_compared_where_a_point_is_lost():
    def points(*pairs):
        return [{"bits": i, "ratio": ratio, "accuracy": accuracy} for i, (ratio, accuracy) in enumerate(pairs)]

    curve = {"part": "curves", "decay": "L2", "how": "step by step"}

    def outcomes_of(smallest):
        return Outcomes(
            [
                o
                for seed in SEEDS
                for o in (
                    outcome_of(
                        {"part": "stages", "stage": "dense", "seed": seed},
                        0.9,
                        bits=points((1, 0.9), (8 + seed / 10, 0.9), (16, 0.5)),
                    ),
                    outcome_of(
                        {"part": "stages", "stage": "pruned", "seed": seed},
                        0.9,
                        bits=points((9 + seed / 10, 0.895), (smallest + seed / 10, 0.893), (60, 0.7)),
                    ),
                    *(outcome_of({**curve, "sparsity": sparsity, "seed": seed}, 0.9) for sparsity in (0.5, 0.7, 0.9)),
                )
            ]
        )

    assert holds(results.both(outcomes_of(30))) and "both 30.4" in results.both(outcomes_of(30)).ours
    assert holds(results.both(outcomes_of(3))) is False
    few = [o for o in outcomes_of(30).all() if o.labels.get("sparsity") != 0.5]
    assert "fewer than 3 sparsities" in results.both(Outcomes(few)).evidence.note


@pytest.mark.parametrize(("lost", "verdict"), [(0.002, True), (0.02, False), (0.0101, None)])
def test_int8_is_compared_seed_by_seed_in_every_network(lost, verdict):
    """Accuracies of seeds differ by much more than int8 loses, which is no obstacle."""
    outcomes = Outcomes(
        [
            outcome_of(
                {"part": "stages", "network": network, "stage": "int8", "seed": seed},
                0.0,
                int8={
                    "float32": 0.5 + seed / 20,
                    "accuracy": 0.5 + seed / 20 - now + (seed - 4.5) / 10_000,
                    "share": 1.0,
                },
            )
            for network, now in (("N", 0.001), ("M", lost))
            for seed in SEEDS
        ]
    )
    assert holds(results.int8(outcomes)) == verdict
    assert [row[0] for row in tables._table_of_int8(outcomes)[0].rows] == ["N", "M"]
    assert results.int8(stages(40, 0.0)) == verdicts.missing("N: not measured")


def test_low_bits_are_compared_at_every_depth():
    def outcomes_of(lost):
        return Outcomes(
            [
                outcome_of(
                    {"part": "low bits", "depth": depth, "kind": kind, "seed": seed},
                    0.9 + seed / 1000 - (kind == "ternary") * lost * (depth == 32),
                )
                for depth in (20, 32)
                for kind in ("full", "ternary")
                for seed in SEEDS
            ]
        )

    assert holds(results.ternary(outcomes_of(0.0))) and holds(results.ternary(outcomes_of(0.05))) is False
    assert results.xnor(outcomes_of(0.0)) == verdicts.missing("not part of this scale")
    worse = Outcomes(
        [
            outcome_of({"part": "low bits", "depth": 20, "kind": kind, "seed": seed}, accuracy + seed / 1000)
            for kind, accuracy in (("full", 0.9), ("binary weights", 0.89), ("XNOR", 0.7))
            for seed in SEEDS
        ]
    )
    assert holds(results.xnor(worse)) and holds(results.binary(worse))
    lost = Outcomes([o._replace(summary=None) if o.labels["kind"] != "XNOR" else o for o in worse.all()])
    assert holds(results.xnor(lost)) is False and holds(results.binary(lost)) is None  # no reference


# -- time ----------------------------------------------------------------------------------------------------------


def test_programs_take_turns_and_are_compared_to_the_first(monkeypatch):
    clock, order = [0.0], []

    def program(name, seconds, cost):
        def call():
            order.append(name)
            clock[0] += seconds

        return timing.Timed(name, call, cost)

    monkeypatch.setattr("models.analysis.timing.time.perf_counter", lambda: clock[0])
    rows = timing.timed([program("whole", 0.2, 100), program("half", 0.1, 50), program("bits", 0.05, None)], 5)
    assert order[-6:] == ["whole", "half", "bits"] * 2
    assert [row["times_faster"] for row in rows] == [1, 2, 4]
    assert [row["of_mult_adds"] for row in rows] == [1, 0.5, None]
    text = smaller.markdown([{"case": "c", **row} for row in rows], {"device": "d", "commit": "x", "cores": 2})
    assert "| c | half | 50 | 50% | 100.00 ms | 2.00 |" in text


@pytest.mark.full
def test_networks_are_timed_packed_and_not(monkeypatch):
    import models

    model = models.create("preresnet20", stage_sizes=(1, 1), width=4, conv="xnor", act="identity")
    variables, images = smaller._drawn(model, (1, 8, 8, 3))
    floats, bits = (smaller.network("n", model, variables, images, packed=packed) for packed in (False, True))
    np.testing.assert_allclose(floats.call(), bits.call(), rtol=1e-4, atol=1e-5)
    assert floats.mult_adds > 0 and bits.mult_adds is None


# -- the config ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_run_is_pruned_and_then_shared_by_the_config(tmp_path):
    loop.train(tiny.config(duration="6 steps"), tmp_path / "whole")
    path = tmp_path / "whole" / "config.json"
    path.write_text(path.read_text().replace('"multiplied": "update",', ""))  # as runs of earlier versions
    c = config.get_config(f"from={tmp_path / 'whole'},stage=prune,sparsity=0.8")
    assert c.duration == "6 steps" and c.optimizer.learning_rate == 0.05 and c.model.width == 4
    summary = loop.train(c, tmp_path / "pruned")
    assert summary["sparsity"] == pytest.approx(0.8, abs=1e-3)
    c = config.get_config(f"from={tmp_path / 'pruned'},stage=share,conv=4,dense=3,epochs=1")
    assert c.optimizer.share == "linear(conv=4, dense=3)" and not c.optimizer.prune and "sparsity" not in c.hooks
    assert c.duration == "1 epochs" and c.optimizer.learning_rate == pytest.approx(0.0005)
    assert build_run(c).state.params["head"]["kernel"].shape == (16, 10)
    assert config.get_config(f"from={tmp_path / 'pruned'},stage=share").duration == "1 steps"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from=/nowhere", r"from=/nowhere: must be the folder of a run \(config.json: No such file"),
        ("from=/nowhere,stage=cut", "unknown stage 'cut'; allowed: dense, prune, share"),
        ("sparsity=0.5", "must be the folder of a run"),
        ("LeNet-3", "unknown network 'LeNet-3'; allowed: LeNet-300-100, LeNet-5, VGG-11, ResNet-20"),
        ("LeNet-5,scale=imagenet", "unknown scale 'imagenet'; allowed: digits, cifar"),
        ("from=/nowhere,stage=dense", "stage=dense needs a named network"),
    ],
)
def test_impossible_configs_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message):
        config.get_config(text)

"""Tests of every study without training: trials, verdicts on synthetic outcomes, tables, pictures and measures."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

import models
from experiments import study
from experiments.studies import measures
from experiments.studies.initialization.measures import signal
from experiments.study import AGREES, DISAGREES, TOO_SMALL, evidence, figures, sequential, trials
from models.analysis import axes as percent
from models.analysis import drawing
from tests import pictures, tiny
from tests.experiments.worlds import INITIALS, SEEDS, WITHOUT_TRAINING, WORLDS, diverged, planned
from train.run import build_run

SCALES = [(name, scale) for name in study.STUDIES for scale in study.module(name).STUDY.cost]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Points the largest scales to what they require: a folder of texts and a file of weights."""
    header = json.dumps({"__metadata__": {"ablate": repr({"model": "resnet50"})}}).encode()
    (tmp_path / "resnet50.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    monkeypatch.setenv("ABLATE_RESNET50", str(tmp_path / "resnet50.safetensors"))
    monkeypatch.setenv("ABLATE_MULTI30K", str(tmp_path))


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_trials_are_distinct_and_complete(name, scale, sets):
    every = planned(name, "digits") if scale == "digits" else study.module(name).trials(scale, range(3))
    labels = [tuple(sorted((key, str(value)) for key, value in trial.labels.items())) for trial in every]
    assert every and len(set(labels)) == len(labels)
    assert {trial.config.model.name for trial in every} <= set(models.list_models())
    for trial in every:
        assert trial.start is None or trial.start.labels["seed"] == trial.labels["seed"]


@pytest.mark.parametrize("name", ("initialization", "normalization", "depth"))
def test_trials_have_all_seeds_and_folders_of_their_own(name):
    for scale in study.module(name).STUDY.cost:
        every = study.module(name).trials(scale, range(3))
        assert len(every) == 3 * len({study.group_of(trial.labels) for trial in every})
        by_address = {}
        for trial in every:
            by_address.setdefault(trials.address(trial), []).append(trial)
        shared = [group for group in by_address.values() if len(group) > 1]
        if name == "normalization":  # group normalization at 32 images is one of the numbers of groups, too
            assert [[trial.labels["part"] for trial in group] for group in shared] == [["size", "groups"]] * 3
        else:
            assert not shared


def test_batch_norm_sees_the_images_per_device():
    for scale in study.SCALES:
        for trial in study.module("normalization").trials(scale, range(1)):
            c = trial.config
            assert c.batch_size // c.devices // c.accumulate == trial.labels["images"]
            if trial.labels.get("norm") in ("GN", "LN", "IN", "BN") and trial.labels["part"] == "size":
                rates = {"digits": 0.1 / 64, "cifar": 0.2 / 128, "cifar10": 0.1 / 128, "imagenet": 0.1 / 256}
                assert c.optimizer.learning_rate == pytest.approx(rates[scale] * c.batch_size)


def test_at_cifar_normalization_trains_only_what_is_read():
    planned = study.module("normalization").trials("cifar", range(1))
    sizes = {}
    for trial in planned:
        if trial.labels["part"] == "size":
            sizes.setdefault(trial.labels["norm"], []).append(trial.labels["images"])
    assert {norm: len(images) for norm, images in sizes.items()} == {"BN": 5, "GN": 5, "LN": 1, "IN": 1, "none": 1}
    smooth = [trial for trial in planned if trial.labels["part"] == "smoothness"]
    assert {trials.folder_name(trial).partition("@")[0] for trial in smooth if trial.labels["norm"] == "BN"} == {
        trials.folder_name(smooth[0])
    }
    assert [trial.until for trial in smooth[:4]] == [391, 782, 1564, 0]
    assert {trial.config.duration for trial in smooth} == {"8 epochs"}


# -- made outcomes -------------------------------------------------------------------------------------------------


@functools.cache
def outcomes_of(case):
    return WORLDS[case][0]()


def records_of(name, outcomes):
    """Returns the claims of a study with their verdicts, judged once on all seeds."""
    counts = sequential.Counts([outcome.labels for outcome in outcomes.all()])
    looks = [(SEEDS, evidence.ALPHA)]
    seen = [sequential.see(claim, outcomes, counts, looks) for claim in study.module(name).STUDY.claims]
    return sequential.records(seen, outcomes)


@pytest.mark.parametrize("case", WORLDS, ids=" ".join)
def test_verdicts_follow_the_outcomes(case):
    claims = records_of(case[0], outcomes_of(case))
    pairs = zip(claims, WORLDS[case][1], strict=True)
    wrong = [one for one, initial in pairs if INITIALS.get(initial, one["verdict"]) != one["verdict"]]
    assert not wrong
    assert all(claim["ours"] and "nan" not in claim["ours"] for claim in claims)


CHANGES = {
    "whole": lambda outcomes: outcomes,
    "some diverged": functools.partial(diverged, seeds=(0,)),
    "all diverged": diverged,
}
DRAWN = [case for case in WORLDS if case[1] in ("as published", "grammar", "digits", "one seed")]
CASES = [(case, change) for case in DRAWN for change in CHANGES]
CASES += [(case, "whole") for case in WORLDS if case[1] == "cifar"]


@pytest.mark.parametrize(("case", "change"), CASES, ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_tables_and_pictures(case, change, tmp_path):
    description, outcomes = study.module(case[0]).STUDY, CHANGES[change](outcomes_of(case))
    for table in description.tables(outcomes):
        assert {len(row) for row in table.rows} <= {len(table.columns)}, table.title
        assert table.rows or change != "whole", table.title
    for picture in description.pictures:
        with drawing.figure(tmp_path / "x.png", picture.size) as figure:
            picture.draw(outcomes, figure)
        if change == "whole":
            assert any(axes.has_data() or axes.texts for axes in figure.axes), picture.name
            assert not unfit(figure), picture.name


def unfit(figure):
    """Returns what makes a figure unfit for a paper: texts that collide or are small, wide paper, tight percent."""
    faults = pictures.collisions(figure)
    if not 6 <= figure.get_figwidth() <= 11:
        faults.append(f"{figure.get_figwidth()} inches wide")
    faults += [text.get_text() for text in figure.findobj(Text) if text.get_text().strip() and text.get_fontsize() < 8]
    faults += [
        f"{axes.get_ylabel()}: {axes.get_ylim()}"
        for axes in figure.axes
        if "(%)" in axes.get_ylabel() and np.ptp(axes.get_ylim()) < percent.POINTS
    ]
    return faults


def test_twenty_images_fill_an_axis_in_percent():
    outcomes = study.Outcomes([study.Outcome({"seed": 0}, {"test_examples": 360}, None, {}, {})])
    axes = Figure().subplots()
    figures.errorbars(axes, range(2), [[0.99], [0.9927]])
    figures.percent_axis(axes, outcomes)
    low, high = axes.get_ylim()
    assert high - low > 100 * 20 / 360 > 5 and low < 99 and high < 100.5


@pytest.mark.parametrize("name", [name for name, world in WORLDS if world == "as published"])
def test_where_all_diverged_nothing_that_needs_training_agrees(name):
    outcomes = diverged(outcomes_of((name, "as published")))
    if name == "translation":  # its judges decide on runs that ended
        return
    for i, claim in enumerate(records_of(name, outcomes)):
        assert claim["verdict"] != AGREES or i in WITHOUT_TRAINING.get(name, ()), claim


# -- small effects -------------------------------------------------------------------------------------------------

SMALL = [  # (study, world, labels of the better and of the worse network), with published effects below two points
    ("depth", "as published", {"network": "pre-activation"}, {"network": "residual", "role": "deep"}),
    ("depth", "as published", {"network": "residual", "role": "deep"}, {"network": "residual", "role": "shallow"}),
    ("cost", "as published", {"network": "bottleneck"}, {"network": "two 3x3"}),
    ("cost", "as published", {"network": "grouped bottleneck"}, {"network": "bottleneck"}),
    ("cost", "as published", {"network": "inverted residual"}, {"network": "depthwise separable"}),
    ("attention", "as published", {"network": "ConvNeXt"}, {"network": "Swin"}),
    ("attention", "as published", {"network": "Swin"}, {"network": "ViT"}),
]
STATEMENTS = ("Pre-activation", "A deeper residual", "Bottlenecks", "Grouped", "Inverted", "ConvNeXt is", "Swin is")


@pytest.mark.parametrize(("case", "statement"), list(zip(SMALL, STATEMENTS, strict=True)), ids=STATEMENTS)
def test_a_faithful_replication_of_a_small_effect_is_not_refuted(case, statement):
    name, world, better, worse = case
    (claim,) = [one for one in study.module(name).STUDY.claims if one.statement.startswith(statement)]
    outcomes = outcomes_of((name, world))

    def replicated(o):
        above = all(o.labels.get(key) == value for key, value in better.items())
        below = all(o.labels.get(key) == value for key, value in worse.items())
        if not o.summary or not (above or below):
            return o
        return o._replace(summary={**o.summary, "accuracy": 0.9 + claim.effect * above + o.labels["seed"] / 1e4})

    judged = claim.judge(study.Outcomes([replicated(o) for o in outcomes.all()])).evidence
    assert judged.estimate == pytest.approx(claim.effect) and judged.p_for < 0.01 and judged.p_against > 0.5


def test_a_short_training_does_not_refute_the_level_of_a_long_one():
    outcomes = outcomes_of(("translation", "as published"))
    short = [o._replace(summary={**o.summary, "bleu": 14.3, "steps": 906}) for o in outcomes.all()]
    judged = study.module("translation").STUDY.claims[-1].judge(study.Outcomes(short)).evidence
    assert (judged.p_for, judged.p_against) == (1, 1) and "after 906 steps" in judged.note


# -- losses --------------------------------------------------------------------------------------------------------


def losses_of(*runs):
    """Returns outcomes of (losses, whether it diverged)."""
    return study.Outcomes(
        [
            study.Outcome({"seed": i}, None if bad else {}, "nan" if bad else None, {"train": {"loss": list(run)}}, {})
            for i, (run, bad) in enumerate(runs)
        ]
    )


def test_a_run_that_diverged_has_learned_nothing():
    runs = losses_of(([2.3, 1.0, 0.5], False), ([2.4, 1.5], True), ([], True), ([2.2, None, 0.7], False))
    assert runs.final_losses() == [0.5, 2.4, 2.4, 0.7]
    assert runs.early_losses() == [2.3, 2.4, 2.4, 2.2]
    assert runs.losses() == [[2.3, 1.0, 0.5], [2.4, 1.5], [2.2, 0.7]]  # as logged, for pictures
    assert losses_of(([2.0, 3.0], False), ([1.0], True)).final_losses() == [3.0, 3.0]
    assert losses_of(([], True), ([], True)).final_losses() == []


def test_a_network_does_not_win_by_diverging():
    world = outcomes_of(("normalization", "as published"))
    outcomes = study.Outcomes(
        [
            o._replace(summary=None, diverged="nan", history={"train": {"loss": [2.3]}})
            if o.labels.get("norm") == "none" and o.labels["seed"] < 5
            else o._replace(history={"train": {"loss": [1.0] * 6}})  # all runs that end are equal
            for o in world.all()
        ]
    )
    judgement = study.module("normalization").results.faster(outcomes)
    assert judgement.evidence.estimate == pytest.approx(0.65)


# -- judges of normalization ----------------------------------------------------------------------------------------


def groups_of_norm(accuracies, seeds=SEEDS):
    """Returns outcomes of group normalization, with accuracies by the number of groups, and little noise."""
    return study.Outcomes(
        [
            study.Outcome({"part": "groups", "groups": g, "seed": s}, {"accuracy": a + s / 1000}, None, {}, {})
            for g, a in accuracies.items()
            for s in range(seeds)
        ]
    )


def test_the_published_rise_is_that_of_a_line_over_all_points():
    assert study.module("normalization").STUDY.claims[0].effect == pytest.approx(0.1032)


def test_numbers_of_groups_are_one_outcome_per_seed_and_must_be_alike():
    judge = study.module("normalization").results.groups
    alike = judge(groups_of_norm({1: 0.8, 2: 0.9, 4: 0.905, 8: 0.9}))
    assert alike.evidence.p_for < 0.001
    assert judge(groups_of_norm({1: 0.8, 2: 0.9, 4: 0.95, 8: 0.9})).evidence.p_against < 0.001
    few = judge(groups_of_norm({1: 0.8, 2: 0.9, 4: 0.905, 8: 0.9}, seeds=2))
    assert few.evidence.p_for > 0.05  # two seeds of three settings are not six outcomes


def test_a_landscape_with_a_number_that_is_not_finite_leaves_its_seed_out():
    results = study.module("normalization").results
    outcomes = study.Outcomes(
        [
            o._replace(measured={"smoothness": {"loss": [1.0, None], "change": [None], "smoothness": [None]}})
            if o.labels["part"] == "smoothness" and (o.labels["seed"], o.labels["norm"]) == (3, "none")
            else o
            for o in outcomes_of(("normalization", "as published")).all()
        ]
    )
    judgement = results.smoother("loss")(outcomes)
    assert f"(1 of {SEEDS} diverged)" in judgement.ours and judgement.evidence.p_for < 0.001
    results.draw_smoothness(outcomes, Figure())
    results.tables(outcomes)


# -- measures ------------------------------------------------------------------------------------------------------


def untrained(**changes):
    run = build_run(tiny.config(**changes))
    return run, run.state


# -- what a study says of itself -----------------------------------------------------------------------------------


def test_a_number_of_seeds_is_capped_in_texts():
    assert study.seeds_text({"seeds": 10**6}) == "200 or more seeds would tell"
    assert study.seeds_text({"seeds": 12}) == "12 seeds would tell" and study.seeds_text({}) == ""


def test_the_verdict_on_a_study_counts_and_names_what_disagrees():
    kinds = (DISAGREES, AGREES, AGREES, TOO_SMALL, DISAGREES)
    claims = [{"statement": f"{verdict}!", "verdict": verdict} for verdict in kinds]
    assert study.overall(claims) == (
        "Of 5 claims 2 agree, 2 disagree, 1 is too small to tell. Not found here: disagrees! disagrees!"
    )


def test_every_study_says_what_would_change_it():
    assert all(len(study.module(name).STUDY.would_change) > 100 for name in study.STUDIES)


@pytest.mark.full
def test_deleting_blocks_that_start_at_zero_changes_nothing():
    deletions = measures.deletions(*untrained(model__name="resnet14", model__zero_gamma=True))
    assert deletions["blocks"] == [f"stage{s}/block{i}" for s in (1, 2, 3) for i in (0, 1)]
    assert deletions["halving"] == [False, False, True, False, True, False]
    assert deletions["accuracy"] == [deletions["whole"]] * 6
    assert deletions["chance"] == 0.1


def test_deleting_a_block_is_zeroing_the_end_of_its_branch():
    run, state = untrained()
    noisy = jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32), state.params
    )
    deletions = measures.deletions(run, state.replace(params=noisy))

    def accuracy_of(params):
        return run.evaluate(run.parallel.place(state.replace(params=params)))["accuracy"]

    accuracy = []
    for name in deletions["blocks"]:
        stage, block = name.split("/")
        blocks = noisy[stage]
        gone = {**blocks[block], "norm2": jax.tree.map(np.zeros_like, blocks[block]["norm2"])}
        params = {**noisy, stage: {**blocks, block: gone}}
        accuracy.append(accuracy_of(params))
    np.testing.assert_allclose(deletions["accuracy"], accuracy, atol=1e-6)
    assert deletions["whole"] == pytest.approx(accuracy_of(noisy))
    assert len({*deletions["accuracy"], deletions["whole"]}) > 1


def test_a_plain_network_loses_only_blocks_that_keep_the_shape():
    deletions = measures.deletions(*untrained(model__name="plain14"))
    assert deletions["blocks"] == ["stage1/block0", "stage1/block1", "stage2/block1", "stage3/block1"]
    assert not any(deletions["halving"])


def test_gradients_are_in_order_and_zero_behind_a_zero_scale():
    gradients = measures.gradients(*untrained(model__zero_gamma=True, model__shortcut="B"))
    norms = dict(zip(gradients["layers"], gradients["norms"], strict=True))
    assert list(norms) == ["stem_conv", *(f"stage{s}/block0/conv{i}" for s in (1, 2, 3) for i in (1, 2)), "head"]
    assert all((norm == 0) == ("block" in name) for name, norm in norms.items())


def test_the_gap_is_measured_in_every_mode():
    run, state = untrained()
    gap = measures.gap(run, state)
    assert list(gap) == ["batch", "train", "test", "recalibrated"]
    assert gap["test"] == run.evaluate(run.parallel.place(state))["accuracy"]
    run, state = untrained(model__norm="group:2", accumulate=4)
    gap = measures.gap(run, state)
    assert list(gap) == ["batch", "train", "test"] and gap["batch"] == pytest.approx(gap["train"])


def test_along_the_gradient_of_a_parabola():
    """Checks the loss a x^2 / 2: its gradient a x changes by a d over a distance d, so its smoothness is a."""
    landscape = measures.along_gradient(lambda x, a: a * jnp.sum(x**2) / 2, np.array([3.0, 4.0]), (2.0,), (0.1, 0.25))
    np.testing.assert_allclose(landscape["loss"], [25, 25 * 0.8**2, 25 * 0.5**2], rtol=1e-6)
    np.testing.assert_allclose(landscape["change"], [2.0, 5.0], rtol=1e-6)  # 2 x (step x 10)
    np.testing.assert_allclose(landscape["smoothness"], [2.0, 2.0], rtol=1e-6)


def test_smoothness_of_a_network_has_a_width():
    landscape = measures.smoothness(*untrained(model__norm="none", optimizer__learning_rate=0.01))
    assert len(landscape["loss"]) == 1 + len(landscape["change"]) == 1 + len(measures.STEPS)
    assert max(landscape["loss"]) > min(landscape["loss"]) and min(landscape["smoothness"]) > 0


@pytest.mark.full
def test_he_initialization_keeps_the_scale_of_the_signal():
    """Checks a deep plain network at step 0: MSRA about keeps the standard deviation, and Xavier lowers it."""
    factors = []
    for init in ("msra", "xavier_normal"):
        stds = signal(*untrained(model__name="plain20", model__width=16, model__norm="none", model__init=init))
        assert len(stds["layers"]) == len(stds["forward"]) == len(stds["backward"]) == 19
        factors.append((stds["forward"][-1] / stds["forward"][0]) ** (1 / 18))
    assert factors[0] / factors[1] == pytest.approx(2**0.5, rel=0.03) and 0.85 < factors[0] < 1.15

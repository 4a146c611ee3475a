"""Studies without training: their trials, what they decide on made outcomes, what they draw, what they measure."""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import models
from experiments import study
from experiments.studies import measures
from experiments.studies.initialization import study as initialization
from experiments.study import AGREES, DISAGREES, TOO_SMALL, Outcome, Outcomes, trials
from tests import tiny
from train.run import build_run

BASIC = ("initialization", "normalization", "depth")


@pytest.mark.parametrize("name", BASIC)
def test_trials_are_distinct_and_complete(name):
    module = study.module(name)
    for scale in module.STUDY.cost:
        made = module.trials(scale)
        labels = [tuple(trial.labels.items()) for trial in made]
        assert len(set(labels)) == len(made)
        seeds = {tuple(pair for pair in pairs if pair[0] != "seed") for pairs in labels}
        assert len(made) == 3 * len(seeds)  # three of everything
        assert {trial.config.model.name for trial in made} <= set(models.names())
        by_address = {}
        for trial in made:
            by_address.setdefault(trials.address(trial), []).append(trial)
        shared = [group for group in by_address.values() if len(group) > 1]
        if name == "normalization":  # group normalization at 32 images is one of the numbers of groups, too
            assert [[trial.labels["part"] for trial in group] for group in shared] == [["size", "groups"]] * 3
        else:
            assert not shared


def test_images_a_device_are_what_batch_norm_sees():
    for scale in ("digits", "cifar10", "imagenet"):
        for trial in study.module("normalization").trials(scale):
            c = trial.config
            assert c.batch_size // c.devices // c.accumulate == trial.labels["images"]
            if trial.labels.get("norm") in ("GN", "LN", "IN", "BN") and trial.labels["part"] == "size":
                rates = {"digits": 0.1 / 64, "cifar10": 0.1 / 128, "imagenet": 0.1 / 256}
                assert c.optimizer.learning_rate == pytest.approx(rates[scale] * c.batch_size)


# -- judging made outcomes -----------------------------------------------------------------------------------------


@functools.cache
def planned(name):
    """The trials; listing them for each of the worlds anew takes seconds."""
    return study.module(name).trials("digits")


def made(name, world):
    """Outcomes of all trials, with {"accuracy", "loss" of training, measures…} of world(labels)."""
    found = []
    for trial in planned(name):
        values = world(trial.labels)
        history = {"train": {"step": [10 * i for i in range(1, 7)], "loss": values["loss"]}} if trial.train else {}
        found.append(
            Outcome(
                trial.labels,
                {"accuracy": values["accuracy"], "loss": 1.0} if trial.train else None,
                None,
                history,
                {measure.__name__: values[measure.__name__] for measure in trial.measures},
            )
        )
    return Outcomes(found)


def initialization_world(sign, noise):
    """Sign +1: as published, -1: the opposite; noise: between seeds."""

    def world(labels):
        xavier, n = labels["init"] == "Xavier", noise * (labels["seed"] - 1)
        accuracy = {
            8: 0.97 if sign > 0 or not xavier else 0.7,
            14: 0.9,
            44: 0.0,
            20: 0.97 if sign > 0 and (labels["network"] != "plain" or "MSRA" in labels["init"]) else 0.1,
        }
        factor = {"MSRA fan-in": 1.0, "Xavier": 0.707}.get(labels["init"], 0.8) if sign > 0 else 0.85
        stds = [factor**i for i in range(43)]
        names = [f"stage{1 + i // 15}/block{i}/conv1" for i in range(43)]
        return {
            "accuracy": accuracy[labels["depth"]] + n,
            "loss": [1 + sign * 0.3 * xavier + n] * 6,
            "signal": {"layers": names, "forward": stds, "backward": stds[::-1]},
        }

    return world


def normalization_world(sign, noise, group_falls=False):
    def world(labels):
        n, norm = noise * (labels["seed"] - 1), labels.get("norm")
        few = np.log2(32 / labels["images"]) / 4  # 0 at 32, 1 at 2
        falls = 0.9 - 0.1 * sign * few
        accuracy = {
            "BN": falls,
            "BN, same steps": falls,
            "GN": 0.895 - 0.1 * few * group_falls,
            "LN": 0.895 - 0.02 * sign,
            "IN": 0.895 - 0.05 * sign,
            "none": 0.5,
            None: 0.9 - 0.05 * sign * (labels.get("groups") == 1),
        }[norm]
        reach = 0.1 * 10 ** (sign * (norm == "none") + 10 * n)
        apart = 0.01 + 0.05 * (few if sign > 0 else 1 - few)
        gap = {"batch": 0.95 - apart + n, "train": 0.95, "test": 0.9}
        return {
            "accuracy": accuracy + n,
            "loss": [1 + 0.5 * sign * (norm == "none") + n] * 6,
            "gap": gap if norm == "GN" else {**gap, "recalibrated": 0.9 + 0.03 * sign + n},
            "smoothness": {"loss": [1.0, 1 - reach], "change": [reach], "smoothness": [reach]},
        }

    return world


def depth_world(sign, noise, projections=0.91):
    def world(labels):
        n, network, deep = noise * (labels["seed"] - 1), labels["network"], labels["role"] == "deep"
        odd = noise > 0.1 and labels["seed"] == 0
        sign_here = -sign if odd else sign
        whole = {
            "plain": 0.8 - 0.1 * sign if labels["depth"] > 20 else 0.9,
            "residual": 0.9 + 0.05 * sign * deep,
            "pre-activation": 0.9 + 0.08 * sign,
            "zero gamma": 0.9,
        }.get(network, projections)
        ahead = (network == "residual" and not deep) or network == "zero gamma"
        left = (
            {"plain": (0.1, 0.1), "residual": (0.94, 0.8)}
            if sign_here > 0
            else {"plain": (0.9, 0.9), "residual": (0.5, 0.6)}
        )
        loss = 1 - 0.3 * sign * ahead + 0.5 * sign * (network == "plain" and deep) + n
        halving = [False, False, True, False, True, False]
        return {
            "accuracy": whole + n,
            "loss": [loss] * 6,
            "gradients": {"layers": [], "norms": [1.0 if sign_here > 0 else 1e-4] * 20 + [1.0] * 20},
            "deletions": {
                "blocks": [f"stage1/block{i}" for i in range(6)],
                "halving": halving,
                "whole": 0.95,
                "accuracy": [left.get(network, (0, 0))[half] + n / 3 for half in halving],
                "chance": 0.1,
            },
        }

    return world


A, D, T = AGREES, DISAGREES, TOO_SMALL
WORLDS = {  # (study, world): (outcomes, verdicts in the order of the claims; None: not of interest in this world)
    ("initialization", "as published"): (initialization_world(1, 0.001), [A] * 6),
    ("initialization", "against"): (initialization_world(-1, 0.001), [D] * 6),
    ("initialization", "noise"): (initialization_world(1, 0.5), [A, T, None, T, T, T]),
    ("normalization", "as published"): (normalization_world(1, 0.001), [A] * 10),
    ("normalization", "against"): (normalization_world(-1, 0.001), [D, T, *[D] * 8]),
    ("normalization", "noise"): (normalization_world(1, 0.5), [T] * 10),
    ("normalization", "all fall"): (normalization_world(1, 0.001, group_falls=True), [A, D, *[None] * 8]),
    ("depth", "as published"): (depth_world(1, 0.001), [A] * 11),
    ("depth", "against"): (depth_world(-1, 0.001), [*[D] * 4, T, *[D] * 6]),
    ("depth", "noise"): (depth_world(1, 0.5), [T] * 11),
    ("depth", "projections fail"): (depth_world(1, 0.001, projections=0.7), [*[None] * 4, D, *[None] * 6]),
}


@pytest.mark.parametrize("case", WORLDS, ids=" ".join)
def test_verdicts_follow_the_outcomes(case):
    world, expected = WORLDS[case]
    about, outcomes = study.module(case[0]).STUDY, made(case[0], world)
    found = {claim.statement: claim.judge(outcomes) for claim in about.claims}
    wanted = {claim.statement: verdict for claim, verdict in zip(about.claims, expected, strict=True) if verdict}
    assert {statement: found[statement].verdict for statement in wanted} == wanted
    assert all("nan" not in judgement.ours for judgement in found.values())


def diverged(name):
    """All that trained diverged; what is measured before training stands."""
    world = {"initialization": initialization_world, "normalization": normalization_world, "depth": depth_world}[name]
    return Outcomes(
        [
            o if o.summary is None else o._replace(summary=None, diverged="loss", history={}, measured={})
            for o in made(name, world(1, 0.001))
        ]
    )


@pytest.mark.parametrize("name", BASIC)
def test_tables_and_pictures_of_made_and_of_diverged_outcomes(name):
    about = study.module(name).STUDY
    for outcomes in (made(name, WORLDS[name, "as published"][0]), diverged(name)):
        for table in about.tables(outcomes):
            assert table.rows and {len(row) for row in table.rows} == {len(table.columns)}
        for picture in about.pictures:
            figure = Figure(figsize=picture.size, layout="constrained")
            picture.draw(outcomes, figure)
            assert figure.axes and all(axes.get_xlabel() for axes in figure.axes[-2:])
            figure.draw_without_rendering()


@pytest.mark.parametrize("name", BASIC)
def test_where_all_diverged_nothing_that_needs_training_agrees(name):
    before_training = {"initialization": [0], "normalization": [], "depth": [5]}[name]
    outcomes = diverged(name)
    for i, claim in enumerate(study.module(name).STUDY.claims):
        verdict = claim.judge(outcomes).verdict
        assert verdict in study.VERDICTS and (verdict != AGREES or i in before_training), claim.statement


# -- measures ------------------------------------------------------------------------------------------------------


def untrained(**changes):
    run = build_run(tiny.config(**changes))
    return run, run.state


# -- what a study says of itself -----------------------------------------------------------------------------------


def test_seeds_that_would_tell_are_the_fewest():
    high, low = [0.97, 0.98, 0.99], [0.96, 0.97, 0.985]
    verdict = study.compare(high, low, by=0.001)
    variance, difference = (
        statistics.variance(high) + statistics.variance(low),
        statistics.mean(high) - 0.001 - (statistics.mean(low)),
    )
    assert verdict == TOO_SMALL and [
        difference > 2 * (variance / n) ** 0.5 for n in (verdict.seeds - 1, verdict.seeds)
    ] == [False, True]
    easier = study.compare([0.97, 0.985, 1.0], [0.96, 0.965, 0.985])
    assert 3 < easier.seeds < verdict.seeds == study.all_of([easier, AGREES, verdict]).seeds
    assert study.compare([0.9], low).seeds is None and study.compare(high, high).seeds is None
    assert study.all_of([study.compare([0.9], low), easier]).seeds is None  # one part is not known
    assert study.seeds_text({"verdict": verdict, "seeds": 10**6}) == "200 or more seeds would tell"


def test_the_verdict_on_a_study_counts_and_names_what_disagrees():
    claims = [{"statement": f"{verdict}!", "verdict": verdict} for verdict in (D, A, A, T, D)]
    assert study.overall(claims) == (
        "Of 5 claims 2 agree, 2 disagree, 1 is too small to tell. Not found here: disagrees! disagrees!"
    )


def test_every_study_says_what_would_change_it():
    assert all(len(study.module(name).STUDY.would_change) > 100 for name in study.STUDIES)


@pytest.mark.full
def test_deleting_blocks_that_start_at_zero_changes_nothing():
    found = measures.deletions(*untrained(model__name="resnet14", model__zero_gamma=True))
    assert found["blocks"] == [f"stage{s}/block{i}" for s in (1, 2, 3) for i in (0, 1)]
    assert found["halving"] == [False, False, True, False, True, False]
    assert found["accuracy"] == [found["whole"]] * 6
    assert found["chance"] == 0.1


def test_deleting_a_block_is_zeroing_the_end_of_its_branch():
    run, state = untrained()
    noisy = jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32), state.params
    )
    found = measures.deletions(run, state.replace(params=noisy))

    def accuracy_of(params):
        return run.evaluate(run.parallel.place(state.replace(params=params)))["accuracy"]

    accuracy = []
    for name in found["blocks"]:
        stage, block = name.split("/")
        blocks = noisy[stage]
        gone = {**blocks[block], "norm2": jax.tree.map(np.zeros_like, blocks[block]["norm2"])}
        params = {**noisy, stage: {**blocks, block: gone}}
        accuracy.append(accuracy_of(params))
    np.testing.assert_allclose(found["accuracy"], accuracy, atol=1e-6)
    assert found["whole"] == pytest.approx(accuracy_of(noisy))
    assert len({*found["accuracy"], found["whole"]}) > 1


def test_a_plain_network_loses_only_blocks_that_keep_the_shape():
    found = measures.deletions(*untrained(model__name="plain14"))
    assert found["blocks"] == ["stage1/block0", "stage1/block1", "stage2/block1", "stage3/block1"]
    assert not any(found["halving"])


def test_gradients_are_in_order_and_zero_behind_a_zero_scale():
    found = measures.gradients(*untrained(model__zero_gamma=True, model__shortcut="B"))
    norms = dict(zip(found["layers"], found["norms"], strict=True))
    assert list(norms) == ["stem_conv", *(f"stage{s}/block0/conv{i}" for s in (1, 2, 3) for i in (1, 2)), "head"]
    assert all((norm == 0) == ("block" in name) for name, norm in norms.items())


def test_gap_knows_the_modes():
    run, state = untrained()
    found = measures.gap(run, state)
    assert list(found) == ["batch", "train", "test", "recalibrated"]
    assert found["test"] == run.evaluate(run.parallel.place(state))["accuracy"]
    run, state = untrained(model__norm="group:2", accumulate=4)
    found = measures.gap(run, state)
    assert list(found) == ["batch", "train", "test"] and found["batch"] == pytest.approx(found["train"])


def test_along_the_gradient_of_a_parabola():
    """Loss a x^2 / 2 has gradient a x, whose change over a distance d is a d: the smoothness is a."""
    found = measures.along_gradient(lambda x, a: a * jnp.sum(x**2) / 2, np.array([3.0, 4.0]), (2.0,), (0.1, 0.25))
    np.testing.assert_allclose(found["loss"], [25, 25 * 0.8**2, 25 * 0.5**2], rtol=1e-6)
    np.testing.assert_allclose(found["change"], [2.0, 5.0], rtol=1e-6)  # 2 x (step x 10)
    np.testing.assert_allclose(found["smoothness"], [2.0, 2.0], rtol=1e-6)


def test_smoothness_of_a_network_has_a_width():
    found = measures.smoothness(*untrained(model__norm="none", optimizer__learning_rate=0.01))
    assert len(found["loss"]) == 1 + len(found["change"]) == 1 + len(measures.STEPS)
    assert max(found["loss"]) > min(found["loss"]) and min(found["smoothness"]) > 0


@pytest.mark.full
def test_signal_keeps_its_scale_behind_he():
    """A deep plain network at step 0: MSRA keeps the standard deviation about as it is, Xavier's lowers it."""
    factors = []
    for init in ("msra", "xavier_normal"):
        found = initialization.signal(
            *untrained(model__name="plain20", model__width=16, model__norm="none", model__init=init)
        )
        assert len(found["layers"]) == len(found["forward"]) == len(found["backward"]) == 19
        factors.append((found["forward"][-1] / found["forward"][0]) ** (1 / 18))
    assert factors[0] / factors[1] == pytest.approx(2**0.5, rel=0.03) and 0.85 < factors[0] < 1.15

"""The studies of cost and attention: networks of equal cost, and what is measured on them."""

import json

import jax
import numpy as np
import pytest

import models
from experiments import study
from experiments.studies import networks
from experiments.studies.attention import study as attention
from experiments.studies.cost import study as cost
from experiments.studies.cost.networks import EQUAL
from experiments.studies.cost.results import TOLERANCE
from experiments.study import trials
from tests.experiments.worlds import WORLDS


@pytest.mark.parametrize("scale", study.SCALES)
@pytest.mark.parametrize("name", ("cost", "attention"))
def test_networks_that_several_sets_share_run_once(name, scale):
    planned = study.module(name).trials(scale, range(3))
    assert len(planned) / 2 < len({trials.address(trial) for trial in planned})


@pytest.mark.full
@pytest.mark.parametrize("scale", study.SCALES)
def test_equal_costs(scale):
    for i, field in enumerate(("mult_adds", "params")):
        counts = [getattr(networks.cost(scale, pair[i]), field) for pair in EQUAL[scale].values()]
        assert max(counts) / min(counts) - 1 <= TOLERANCE
    counts = [networks.cost(scale, network).mult_adds for network in attention.FAMILIES[scale].values()]
    assert max(counts) / min(counts) - 1 <= attention.TOLERANCE


def test_config_has_the_networks_own_ingredients():
    c = networks.config("digits", networks.Network("mobilenet_v1", {"width_multiplier": 0.5}, 16), 3, 7)
    assert c.model.to_dict() == {"name": "mobilenet_v1", "width_multiplier": 0.5}
    assert (c.data.crop, c.data.image_size, c.data.augment) == ("resize", 16, "crop(2)")
    assert (c.seed, c.duration) == (3, "7 epochs")


def test_unequal_costs_are_not_compared():
    judgement = cost.STUDY.claims[2].judge(WORLDS["cost", "unequal costs"][0]())
    assert judgement.ours.startswith("no comparison: ") and judgement.ours.endswith("6.0% apart")
    assert judgement.evidence.note == judgement.ours


class Fake:
    """Stands in for a run, and for its state, as `reuse` reads them."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


@pytest.mark.parametrize("bottleneck", [0, 2])
def test_reuse(bottleneck):
    model = models.create("densenet_bc100_k12", stage_sizes=(2, 1), growth=3, width=4, bottleneck=bottleneck)
    before = models.initialize(model, jax.random.key(0), (1, 8, 8, 1))["params"]
    after = jax.tree.map(np.array, before)
    kernel = after["stage1"]["layer1"]["conv1"]["kernel"]  # 4 channels of the block's input, 3 of layer 0
    kernel[..., :4, :], kernel[..., 4:, :] = -2.0, 0.5
    after["transition1"]["conv"]["kernel"][..., 7:, :] = 3.0
    reuse = cost.reuse(Fake(task=Fake(model=model), state=Fake(params=before)), Fake(params=after))
    assert [[len(row) for row in block] for block in reuse["blocks"]] == [[1, 2, 3], [1, 2]]
    assert reuse["blocks"][0][1] == [2.0, 0.5] and reuse["blocks"][0][2][2] == 3.0
    np.testing.assert_allclose(
        reuse["blocks"][0][0][0], np.abs(before["stage1"]["layer0"]["conv1"]["kernel"]).mean(), rtol=1e-6
    )
    assert reuse["moved"] > 0
    unmoved = cost.reuse(Fake(task=Fake(model=model), state=Fake(params=before)), Fake(params=before))
    assert unmoved["moved"] == 0


def test_step_time():
    from train.run import build_run

    network = networks.Network("resnet8", {"stage_sizes": (1,), "width": 4})
    run = build_run({**networks.config("digits", network, 0, 1).to_dict(), "devices": 1})
    measured = cost.step_time(run, run.state)
    assert measured["milliseconds"] > 0 and measured["images"] == 64
    assert measured["mult_adds"] == networks.cost("digits", network).mult_adds
    assert len(measured["medians"]) == cost.REPEATED and min(measured["medians"]) <= measured["milliseconds"]


def timed(**medians):
    """Returns the judgement of the times of steps, by network."""
    labels = {"set": "step time", "of": "equal mult-adds"}
    measured = {network: {"milliseconds": times[0], "medians": times} for network, times in medians.items()}
    outcomes = [
        study.Outcome({**labels, "network": network}, None, None, {}, {"step_time": one})
        for network, one in measured.items()
    ]
    return cost.results.timed(study.Outcomes(outcomes)), outcomes


def test_times_are_judged_by_their_repetitions():
    steady = [5.0 + i / 50 for i in range(8)]
    clear, outcomes = timed(fast=[2.0 + i / 50 for i in range(8)], between=[3.0] * 8, slow=steady)
    assert clear.evidence.p_for < 0.001 and "fast" in clear.ours and "slow" in clear.ours
    noisy, _ = timed(fast=[2.0, 2.0, 6.0, 2.0, 7.0, 2.5, 5.0, 2.0], slow=steady)
    assert noisy.evidence.p_for > 0.01
    lucky, _ = timed(fast=[1.0, *steady[1:]], slow=steady)  # the choice of the fastest does not decide
    assert lucky.evidence.p_for > 0.5
    for one in outcomes:  # a line of an older ledger
        del one.measured["step_time"]["medians"]
    once = cost.results.timed(study.Outcomes(outcomes))
    assert (once.evidence.p_for, once.evidence.p_against) == (1, 1) and "measured once" in once.evidence.note


def test_steps_are_timed_at_the_size_that_is_counted():
    timed = [trial for trial in cost.trials("cifar", range(1)) if trial.labels["set"] == "step time"]
    assert timed and not any(trial.config.data.resolutions for trial in timed)


@pytest.mark.parametrize(("model", "width"), [("plain20", 8), ("preresnet20", 8), ("mobilenet_v1", None)])
def test_width_of_the_shared_recipe(model, width):
    from train.setup import config

    assert config.load(f"configs/study.py:digits,model={model}").model.get("width") == width


# -- judges of attention -------------------------------------------------------------------------------------------


def attention_outcomes(change=lambda labels, accuracy: accuracy):
    """Returns the outcomes of attention as published, with accuracies that a function of (labels, accuracy) changes."""
    outcomes = WORLDS["attention", "as published"][0]().all()
    return study.Outcomes(
        [o._replace(summary={**o.summary, "accuracy": change(o.labels, o.summary["accuracy"])}) for o in outcomes]
    )


def test_the_number_of_good_settings_is_judged_by_seed_at_the_middle_decay():
    decays = {grid[1][1] for grid in attention.GRID["digits"].values()}
    outcomes = attention_outcomes()
    judgement = attention.results.near(outcomes)
    assert judgement.evidence.estimate == pytest.approx(1 - 1 / 6)  # of ViT_P, one of six settings is near
    assert all(json.loads(group)["decay"] in decays for group in outcomes.used)
    worse = attention_outcomes(lambda labels, accuracy: accuracy - 0.5 * (labels.get("decay") not in decays))
    assert attention.results.near(worse).evidence == judgement.evidence


def test_one_seed_chooses_the_learning_rate_and_the_others_are_judged():
    def misled(labels, accuracy):  # the first seed is best at the smallest rate of AdamW, which is bad for all others
        low = labels.get("rate") == attention.GRID["digits"]["adamw"][0][0]
        return accuracy if not low else 0.99 if labels["seed"] == 0 else 0.3

    outcomes = attention_outcomes(misled)
    judgement = attention.results.optimizers(outcomes)
    assert "ViT_P: error 70.0 ± 0.0 % with AdamW (0.0005, an edge of the grid)" in judgement.ours
    assert "SGD (0.08)" in judgement.ours


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_do_not_compare_optimizers(seeds):
    judgement = attention.results.optimizers(attention_outcomes().seeds_below(seeds))
    assert "at least three" in judgement.evidence.note


def test_small_families_start_from_a_wide_enough_init_and_fit_the_kernels():
    families = attention.FAMILIES["cifar"]
    inits = {families[name].fields.get("init") for name in ("ConvNeXt", "Swin", "ViT")}
    assert inits == {"truncated_normal:0.05"}
    assert families["ResNet"].fields["width"] % 16 == 0

"""experiments/studies/cost/study.py and experiments/studies/attention/study.py: their trials, verdicts, tables and
pictures, on made outcomes.
"""

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import models
from experiments import study
from experiments.studies import networks
from experiments.studies.attention import study as attention
from experiments.studies.cost import study as cost
from experiments.studies.cost.networks import EQUAL
from experiments.study import trials

STUDIES = {"cost": cost, "attention": attention}


@pytest.mark.parametrize("scale", study.SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_trials_are_distinct(name, scale):
    planned = STUDIES[name].trials(scale)
    labels = [tuple(sorted((key, str(value)) for key, value in trial.labels.items())) for trial in planned]
    assert len(set(labels)) == len(labels)
    addresses = {trials.address(trial): trial for trial in planned}
    assert len(addresses) > len(planned) / 2  # networks that several sets share run once
    for trial in planned:
        assert trial.config.model.name in models.names()


@pytest.mark.full
@pytest.mark.parametrize("scale", study.SCALES)
def test_equal_costs(scale):
    for i, field in enumerate(("mult_adds", "params")):
        counts = [getattr(networks.cost(scale, pair[i]), field) for pair in EQUAL[scale].values()]
        assert max(counts) / min(counts) - 1 <= cost.TOLERANCE
    counts = [networks.cost(scale, network).mult_adds for network in attention.FAMILIES[scale].values()]
    assert max(counts) / min(counts) - 1 <= attention.TOLERANCE


def test_config_has_the_networks_own_ingredients():
    c = networks.config("digits", networks.Network("mobilenet_v1", {"width_multiplier": 0.5}, 16), 3, 7)
    assert c.model.to_dict() == {"name": "mobilenet_v1", "width_multiplier": 0.5}
    assert (c.data.crop, c.data.image_size, c.data.augment) == ("resize", 16, "crop(2)")
    assert (c.seed, c.duration) == (3, "7 epochs")


def made(name, accuracy, costs=None):
    """Outcomes of all digits trials, of the accuracy that a function of labels says; None: diverged."""
    outcomes = []
    for trial in STUDIES[name].trials("digits"):
        value = accuracy(trial.labels) if trial.train else None
        summary = None
        if value is not None:
            summary = {"accuracy": value + 0.001 * (trial.labels["seed"] - 1), "mult_adds": 1000, "parameters": 1000}
            summary |= (costs or (lambda labels: {}))(trial.labels)
        history = {"train": {"step": [1], "loss": [1.0]}}
        measured = (
            {
                "step_time": {
                    "milliseconds": 2.0 if trial.labels["network"] != "dense" else 5.0,
                    "images": 64,
                    "mult_adds": 1000,
                    "parameters": 10,
                    "device": "1 x cpu",
                },
                "reuse": {"blocks": [[[1.0], [1.0, 2.0], [1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]] * 2, "moved": 0.8},
            }
            if name == "cost"
            else {}
        )
        diverged = "the loss is not finite" if trial.train and summary is None else None
        measured_here = {} if diverged else {m.__name__: measured[m.__name__] for m in trial.measures}
        outcomes.append(study.Outcome(trial.labels, summary, diverged, {} if diverged else history, measured_here))
    return study.Outcomes(outcomes)


def verdicts(name, outcomes):
    return [claim.judge(outcomes).verdict for claim in STUDIES[name].STUDY.claims]


GOOD_COST = {"bottleneck": 0.92, "grouped bottleneck": 0.94, "inverted residual": 0.96, "dense": 0.95}


def cost_agrees(labels):
    return GOOD_COST.get(labels["network"], 0.9)


def cost_counts(labels):
    if labels["set"] == "sizes":
        return {"parameters": 100 * (labels["size"] + 1)}
    return {"mult_adds": 200} if labels["network"] in ("separable", "early") else {}


def test_cost_verdicts():
    assert set(verdicts("cost", made("cost", cost_agrees, cost_counts))) == {study.AGREES}

    def reverse(labels):
        return 0.8 if labels["network"] in ("separable", "early") else 1.8 - cost_agrees(labels)

    found = verdicts("cost", made("cost", reverse))
    assert found[1] == found[2] == found[3] == found[4] == found[6] == found[8] == study.DISAGREES
    tied = verdicts("cost", made("cost", lambda labels: 0.9, cost_counts))
    assert tied[2] == tied[3] == tied[4] == tied[6] == study.TOO_SMALL
    diverged = verdicts("cost", made("cost", lambda labels: None))
    assert set(diverged[1:6]) == {study.TOO_SMALL}


def test_unequal_costs_are_not_compared():
    uneven = made("cost", cost_agrees, lambda labels: {"mult_adds": 1060} if labels["network"] == "bottleneck" else {})
    judgement = cost.STUDY.claims[2].judge(uneven)
    assert judgement.verdict == study.TOO_SMALL and "6.0% apart: no comparison" in judgement.ours


def attention_agrees(labels):
    """ViT_P suffers from SGD, from rates off the best one, and from short training; families and rows in order."""
    if labels["set"] == "grid":
        off = attention.GRID["digits"][labels["optimizer"]][0].index(labels["rate"]) != 1
        return 0.9 if labels["stem"] == "ViT_C" else 0.85 - 0.2 * (labels["optimizer"] == "sgd") - 0.3 * off
    if labels["set"] == "length":
        return 0.95 - (0.3 if labels["stem"] == "ViT_P" else 0.1) / labels["epochs"]
    order = {
        "ConvNeXt": 0.9,
        "Swin": 0.8,
        "ViT": 0.7,
        "ResNet": 0.6,
        "0 ResNet": 0.6,
        "4 depthwise": 0.5,
        "5 width": 0.8,
        "14 ConvNeXt": 0.9,
    }
    return order.get(labels["network"], 0.7)


def test_attention_verdicts():
    assert set(verdicts("attention", made("attention", attention_agrees))) == {study.AGREES}

    def reverse(labels):
        swapped = {"ViT_P": "ViT_C", "ViT_C": "ViT_P"}
        if "stem" in labels:
            return attention_agrees({**labels, "stem": swapped[labels["stem"]]})
        return 1.5 - attention_agrees(labels)

    assert set(verdicts("attention", made("attention", reverse))) == {study.DISAGREES}
    assert set(verdicts("attention", made("attention", lambda labels: 0.9))) == {study.TOO_SMALL}


@pytest.mark.parametrize(("name", "accuracy"), [("cost", cost_agrees), ("attention", attention_agrees)])
def test_tables_and_pictures(name, accuracy):
    outcomes, about = made(name, accuracy, cost_counts if name == "cost" else None), STUDIES[name].STUDY
    for table in about.tables(outcomes):
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows), table.title
    for picture in about.pictures:
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(outcomes, figure)
        figure.draw_without_rendering()
        assert any(axes.has_data() for axes in figure.axes), picture.name


class Fake:
    """What `reuse` sees of a run, and of a state."""

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
    found = cost.reuse(Fake(task=Fake(model=model), state=Fake(params=before)), Fake(params=after))
    assert [[len(row) for row in block] for block in found["blocks"]] == [[1, 2, 3], [1, 2]]
    assert found["blocks"][0][1] == [2.0, 0.5] and found["blocks"][0][2][2] == 3.0
    np.testing.assert_allclose(
        found["blocks"][0][0][0], np.abs(before["stage1"]["layer0"]["conv1"]["kernel"]).mean(), rtol=1e-6
    )
    assert found["moved"] > 0
    unmoved = cost.reuse(Fake(task=Fake(model=model), state=Fake(params=before)), Fake(params=before))
    assert unmoved["moved"] == 0


def test_step_time():
    from train.run import build_run

    network = networks.Network("resnet8", {"stage_sizes": (1,), "width": 4})
    run = build_run({**networks.config("digits", network, 0, 1).to_dict(), "devices": 1})
    found = cost.step_time(run, run.state)
    assert found["milliseconds"] > 0 and found["images"] == 64
    assert found["mult_adds"] == networks.cost("digits", network).mult_adds


@pytest.mark.parametrize(("model", "width"), [("plain20", 8), ("preresnet20", 8), ("mobilenet_v1", None)])
def test_width_of_the_shared_recipe(model, width):
    from train import config

    assert config.load(f"configs/study.py:digits,model={model}").model.get("width") == width

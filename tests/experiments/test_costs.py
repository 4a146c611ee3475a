"""experiments/bench/costs.py: the page of costs, for a few networks of the table."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import models
from experiments.bench import costs, labels
from models.analysis.cost import analyze
from tests import networks, pictures

ROOT = Path(__file__).parents[2]
FEW = ("alexnet", "resnet18", "vgg11")


def test_published_networks_are_registered_and_drawn():
    assert set(costs.PUBLISHED) <= set(models.list_models())
    assert {entry.family for entry in costs.PUBLISHED.values()} == set(costs.COLORS)
    labels = [(entry.family, entry.label) for entry in costs.PUBLISHED.values()]
    assert len(set(labels)) == len(labels)
    assert all(50 < entry.top1 < 85 for entry in costs.PUBLISHED.values())


def test_costs_by_resolution_are_all_costs():
    cost = analyze(models.create("resnet8", stem="imagenet", num_classes=10), (1, 224, 224, 3))
    for field in costs.COSTS:
        assert sum(costs.by_resolution(cost, field).values()) == getattr(cost, field)
    work = costs.by_resolution(cost, "mult_adds")
    assert work[112] == 112 * 112 * 16 * 3 * 49 and work[1] == 64 * 10 and work[224] == work[7] == 0
    assert costs.by_resolution(cost, "kept_bytes")[224] == 4 * 3 * 224 * 224


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of FEW networks, in its folder."""
    out = tmp_path_factory.mktemp("costs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "PUBLISHED", {name: costs.PUBLISHED[name] for name in FEW})
        patch.setattr(
            costs,
            "EARLY",
            {
                name: (network, {"stage_sizes": (1, 1, 1, 1), **fields})
                for name, (network, fields) in costs.EARLY.items()
            },
        )
        costs.write(out)
    return out


def test_the_page_has_what_was_counted(page):
    stored = json.loads((page / "costs.json").read_text())
    text = (page / "costs.md").read_text()
    for name in FEW:
        assert stored["networks"][name]["params"] == networks.PARAMETERS[name]
        assert f"| {name} | {costs.PUBLISHED[name].top1} | {networks.PARAMETERS[name]:,} |" in text
    assert stored["commit"] and stored["device"]
    assert "69,632 | 69,632 | resnet50 stage1/block1" in text


def test_pictures_are_there(page):
    text = (page / "costs.md").read_text()
    pictures = {path.name for path in page.glob("*.png")}
    assert pictures == {"early.png", "tradeoff_mult_adds.png", "tradeoff_params.png", "tradeoff_kept_bytes.png"}
    assert all(f"]({name})" in text for name in pictures)
    assert all((page / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_labels_do_not_cover_each_other():
    from matplotlib.figure import Figure

    axes = Figure(figsize=(6, 4), layout="constrained").subplots()
    places = [(0.5 + 0.02 * i, 0.5 + 0.01 * (i % 2)) for i in range(6)]
    axes.plot(*zip(*places, strict=True), "o")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels.label(axes, [(x, y, f"label {i}", "black") for i, (x, y) in enumerate(places)])
    assert len(axes.texts) == 6 and pictures.collisions(axes.figure) == []


def test_published_networks_are_told_apart_in_their_picture(tmp_path):
    stored = json.loads((ROOT / "experiments/results/costs/costs.json").read_text())["networks"]
    with pictures.recorded() as figures:
        for field in ("mult_adds", "params", "kept_bytes"):
            networks = {name: SimpleNamespace(**{field: stored[name][field]}) for name in costs.PUBLISHED}
            costs.draw_tradeoff(networks, field, tmp_path / f"{field}.png")
    for figure in figures:
        assert pictures.collisions(figure) == []
        assert {"Swin S", "ConvNeXt S", "ViT B/16"} <= {text for text, _ in pictures.texts(figure)}

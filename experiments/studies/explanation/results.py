"""Results of the study of explanations: judges, tables, pictures."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

from experiments.explain import overlays
from experiments.studies.measures import from_png
from experiments.study import Judge, Judgement, Outcome, Outcomes, Table, evidence, finite, mean, more, spread
from experiments.study.figures import finish, panels_by
from experiments.study.tables import accuracy, table_by
from models.analysis.palette import BLUE, RED, YELLOW

NAMES = {
    "cam": "CAM",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "attention_rollout": "attention rollout",
    "saliency": "gradient",
    "smooth_grad": "SmoothGrad",
    "integrated_gradients": "integrated gradients",
    "guided_backprop": "guided backprop",
    "deconvnet": "deconvnet",
    "guided_grad_cam": "guided Grad-CAM",
    "occlusion": "occlusion",
    "random": "random order",
    "middle": "the middle, always",
}
CORRELATION, PIXEL = 0.02, 1.0  # smallest differences of rank correlations, and of sizes of fields, that matter
PUBLISHED = [  # (quantity, numbers, source)
    ("localization error, ILSVRC val, GoogLeNet-GAP (CAM)", "56.40 % top-1, 43.00 % top-5", "Zhou 2016, table 2"),
    ("the same, VGGnet-GAP (CAM)", "57.20 %, 45.14 %", "Zhou 2016, table 2"),
    ("the same, backprop on GoogLeNet, VGGnet, AlexNet", "61.31, 61.12, 65.17 % top-1", "Zhou 2016, table 2"),
    ("the same, Grad-CAM on VGG-16", "56.51 %, 46.41 %", "Selvaraju 2017, table 1"),
    ("the same, Grad-CAM on AlexNet, GoogLeNet", "68.3, 60.09 % top-1", "Selvaraju 2017, table 1"),
    ("pointing game, Grad-CAM and c-MWP", "70.58 %, 60.30 %", "Selvaraju 2017, section on the pointing game"),
    (
        "rank correlation with occlusion",
        "Grad-CAM 0.254, guided Grad-CAM 0.261, guided backprop 0.168, c-MWP 0.220, CAM 0.208",
        "Selvaraju 2017, section on faithfulness",
    ),
]


def _lower(network: str, low: str, high: str) -> Judge:
    """Returns a judge: one method has a lower localization error than another."""

    def judge(outcomes: Outcomes) -> Judgement:
        runs = outcomes.where(network=network)
        judgement = more({NAMES[name]: runs.measured("localization", name, "error") for name in (high, low)})
        correct = spread(runs.measured("localization", "right"))
        return Judgement(
            judgement.evidence,
            f"localization error: {judgement.ours}; {correct} of the images are classified correctly",
        )

    return judge


cam_localizes = _lower("ResNet", "cam", "saliency")
grad_cam_localizes = _lower("VGG", "grad_cam", "saliency")


def tells_classes_apart(outcomes: Outcomes) -> Judgement:
    """Compares how often guided Grad-CAM and guided backprop point at the requested object, mean over networks."""
    values = {
        NAMES[name]: [
            statistics.mean(same_seed.measured("two_objects", name)) for _, same_seed in outcomes.groups("seed")
        ]
        for name in ("guided_grad_cam", "guided_backprop")
    }
    return more(values, by=0.1)


def agrees_with_occlusion(outcomes: Outcomes) -> Judgement:
    """Compares rank correlations with occlusion."""
    runs, names = outcomes.where(network="VGG"), ("grad_cam", "guided_backprop")
    values = {NAMES[name]: runs.measured("faithfulness", name, "occlusion") for name in names}
    return more(values, percent=False, digits=3, worth=CORRELATION, unit="")


def _half_way(outcome: Outcome, name: str) -> float:
    """Returns the rank correlation after the upper half of the layers is reinitialized."""
    correlations = outcome.measured.get("sanity", {}).get(name)
    return correlations[(len(correlations) - 1) // 2] if correlations else float("nan")


def insensitive(outcomes: Outcomes) -> Judgement:
    """Compares how similar the maps of guided backprop and Grad-CAM stay without the trained upper layers."""
    runs, names = outcomes.where(network="VGG"), ("guided_backprop", "grad_cam")
    values = {NAMES[name]: [_half_way(outcome, name) for outcome in runs] for name in names}
    return more(values, by=0.2, percent=False, digits=2, unit="")


def effective_field(outcomes: Outcomes) -> Judgement:
    """Compares the effective receptive field with the theoretical one, and with itself before training."""
    fields = outcomes.where(network="ResNet").results("effective")
    before, after = ([one[when]["size"] for one in fields] for when in ("before", "after"))
    theoretical = [statistics.mean(one["theoretical"]) for one in fields]
    below = [2 / 3 * size - effective for size, effective in zip(theoretical, after, strict=True)]
    smaller = evidence.above(below, 0.0, unit="pixels")
    return Judgement(
        evidence.all_of(smaller, evidence.more(after, before, worth=PIXEL, unit="pixels")),
        f"theoretical {spread(theoretical, percent=False, digits=0)} pixels; effective "
        f"{spread(before, percent=False)} before and {spread(after, percent=False)} after training",
    )


# -- tables --------------------------------------------------------------------------------------------------------


def _methods(outcomes: Outcomes, measure: str) -> list[str]:
    """Returns the methods that were measured on some network, in the order of NAMES."""
    return [name for name in NAMES if any(name in o.measured.get(measure, {}) for o in outcomes)]


def _table(
    outcomes: Outcomes, title: str, measure: str, paths: Sequence[tuple[str, tuple[str, ...]]], percent: bool
) -> Table:
    """Returns a table with one row per method, and one column per network and path; `paths` are (heading, keys)."""
    networks, rows = outcomes.distinct("network"), []
    for name in _methods(outcomes, measure):
        cells = [
            spread(values, percent=percent, digits=1 if percent else 3) if finite(values) else "—"
            for _, runs in outcomes.groups("network")
            for _, path in paths
            if (values := runs.measured(measure, name, *path))
        ]
        rows += [[NAMES[name], *cells]] if set(cells) != {"—"} else []
    return Table(
        title,
        ["method", *(f"{network}{', ' if name else ''}{name}" for network in networks for name, _ in paths)],
        rows,
    )


def tables(outcomes: Outcomes) -> list[Table]:
    """Returns tables of the networks, localization, two objects, faithfulness, sanity, and the published numbers."""
    half = Outcomes(
        [
            o._replace(
                measured={
                    **o.measured,
                    "half": {name: _half_way(o, name) for name in o.measured.get("sanity", {}) if name != "layers"},
                }
            )
            for o in outcomes
        ]
    )
    return [
        table_by(
            "Networks",
            outcomes,
            {"network": "network"},
            {
                "parameters": lambda group: f"{group[0].get('parameters'):,.0f}",
                "accuracy": accuracy,
                "area of the object (pointing by chance)": lambda g: spread(g.measured("localization", "chance")),
                "pointing at the middle": lambda g: spread(g.measured("localization", "middle")),
            },
        ),
        _table(outcomes, "Pointing game, one object", "localization", [("", ("pointing",))], True),
        _table(outcomes, "Pointing game, the requested one of two objects", "two_objects", [("", ())], True),
        _table(
            outcomes,
            "Top-1 localization error",
            "localization",
            [("fitted threshold", ("error",)), ("threshold 0.2", ("error_at_0.2",))],
            True,
        ),
        _table(
            outcomes,
            "Area under the curve of deletion (lower is better) and insertion (higher is better)",
            "faithfulness",
            [("deletion", ("deletion",)), ("insertion", ("insertion",))],
            False,
        ),
        _table(outcomes, "Rank correlation with occlusion", "faithfulness", [("", ("occlusion",))], False),
        _table(
            half,
            "Rank correlation with the trained network's map, upper half of the layers reinitialized",
            "half",
            [("", ())],
            False,
        ),
        Table("Published", ("quantity", "numbers", "source"), [list(row) for row in PUBLISHED]),
    ]


# -- pictures ------------------------------------------------------------------------------------------------------


def _color(name: str) -> Any:
    return (
        "0.55" if name == "random" else "black" if name == "occlusion" else colormaps["tab10"](list(NAMES).index(name))
    )


def draw_gallery(outcomes: Outcomes, figure: Any) -> None:
    """Draws the gallery: three rows per network, one column per method."""
    seed = outcomes.distinct("seed")[0]
    explained = outcomes.where(seed=seed).having("gallery")
    if not explained:
        return
    columns = [name for name in NAMES if any(name in row["panels"] for o in explained for row in o.measured["gallery"])]
    rows = []
    for outcome in explained:
        for row in outcome.measured["gallery"]:
            panels = [_panel(name, row["panels"].get(name)) for name in columns]
            image = from_png(row["image"])
            image = image[..., None] if image.ndim == 2 else image
            rows.append(
                overlays.Row(image, f"{outcome.labels['network']}: {row['class']}", row["says"], panels, row["boxes"])
            )
    overlays.draw_rows(figure, [NAMES[name].replace(" ", "\n") for name in columns], rows)


def _panel(name: str, picture: str | None) -> overlays.Panel | None:
    from models.explain import catalogue  # imports JAX

    if picture is None:
        return None
    values = from_png(picture)
    if name in catalogue.SIGNED:  # gray is 0
        return overlays.Panel(values / 255 - 0.5, signed=True)
    return overlays.Panel(values / 255, over=name in catalogue.MAPS)


def draw_localization(outcomes: Outcomes, figure: Any) -> None:
    """Draws how often methods point at the object, with one object and with two."""
    networks, panels = outcomes.distinct("network"), figure.subplots(1, 2, sharey=True)
    names = [name for name in _methods(outcomes, "localization") if name != "middle"]
    for axes, title, measure, path in (
        (panels[0], "one object", "localization", ("pointing",)),
        (panels[1], "two objects: the requested one", "two_objects", ()),
    ):
        for i, network in enumerate(networks):
            values = [100 * mean(outcomes.where(network=network).measured(measure, name, *path)) for name in names]
            places = [n + (i - 1) * 0.26 for n in range(len(names))]
            axes.barh(places, values, 0.24, label=network, color=(BLUE, RED, YELLOW)[i % 3])
        middle = outcomes.where(network=networks[0]).measured(measure, "middle")
        axes.axvline(100 * mean(middle), color="0.5", linestyle=":")
        finish(axes, title=title, xlabel="maximum is on the object (%)", xlim=(0, 100))
    panels[0].set_yticks(range(len(names)), [NAMES[name] for name in names])
    panels[0].invert_yaxis()
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    panels[1].legend(title="dotted: the middle", title_fontsize=9, **place)


def _legend_beside(figure: Any, panels: Iterable[Any]) -> None:
    """Puts one legend to the right of the panels, with the labels of all of them."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center")


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """Draws one row for deletion and one for insertion, with one column per network."""
    networks = outcomes.distinct("network")
    grid = figure.subplots(2, len(networks), sharex=True, sharey=True, squeeze=False)
    for line, kind in zip(grid, ("deletion", "insertion"), strict=True):
        for axes, network in zip(line, networks, strict=True):
            measured = outcomes.where(network=network).results("faithfulness")
            for name in NAMES:
                if curves := [one[name][f"{kind}_curve"] for one in measured if name in one]:
                    points = [statistics.mean(same) for same in zip(*curves, strict=True)]
                    x = [100 * i / (len(points) - 1) for i in range(len(points))]
                    style = "--" if name in ("random", "occlusion") else "-"
                    axes.plot(x, points, label=NAMES[name], color=_color(name), linestyle=style)
            axes.set_title(f"{network}, {kind}", fontsize=9)
            finish(axes)
        line[0].set_ylabel("probability of the class")
    for axes in grid[-1]:
        axes.set_xlabel("pixels changed (%)")
    _legend_beside(figure, grid.flat)


def draw_sanity(outcomes: Outcomes, figure: Any) -> None:
    """Draws one panel per network: rank correlation against the number of reinitialized layers."""
    networks = outcomes.distinct("network")
    panels = panels_by(figure, len(networks), sharey=True)
    for axes, network in zip(panels, networks, strict=True):
        measured = outcomes.where(network=network).results("sanity")
        for name in NAMES:
            if curves := [one[name] for one in measured if name in one]:
                points = [1.0, *(statistics.mean(same) for same in zip(*curves, strict=True))]
                axes.plot(range(len(points)), points, label=NAMES[name], color=_color(name), marker=".")
        finish(axes, title=network, xlabel="reinitialized layers, from the logits down")
    panels[0].set_ylabel("rank correlation with the trained network's map")
    _legend_beside(figure, panels)


def draw_effective(outcomes: Outcomes, figure: Any) -> None:
    """Draws effective receptive fields before and after training, one column per network."""
    measured = outcomes.where(seed=outcomes.distinct("seed")[0]).having("effective")
    if not measured:
        return
    grid, image_artist = figure.subplots(2, len(measured), squeeze=False), None
    for line, when in zip(grid, ("before", "after"), strict=True):
        for axes, outcome in zip(line, measured, strict=True):
            field = outcome.measured["effective"]
            heat = from_png(field[when]["map"]) / 255
            image_artist = axes.imshow(heat, cmap="gray", vmin=0, vmax=1)
            if field["box"]:  # within the canvas
                overlays.draw_box(axes, np.clip(field["box"], 0, [*heat.shape, *heat.shape]))
            size = "the whole image" if field["theoretical"] is None else f"{field['theoretical'][0]} pixels"
            axes.set_title(
                f"{outcome.labels['network']}, {field['endpoint']}, {when} training\n"
                f"effective {field[when]['size']:.1f} pixels,\ntheoretical {size}",
                fontsize=9,
            )
            axes.set_xticks([])
            axes.set_yticks([])
    figure.colorbar(image_artist, ax=grid, shrink=0.6, label="|gradient| of the unit, fraction of the largest")

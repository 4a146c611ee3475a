"""What is read off the trials of the study of explanations: verdicts, tables, pictures."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

from experiments.explain import overlays
from experiments.studies.measures import from_png
from experiments.study import Judgement, Outcome, Outcomes, Table, all_of, compare, finite, mean, spread
from train.plots.figures import tidy
from train.plots.palette import BLUE, RED, YELLOW

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
PUBLISHED = [  # what, numbers, source
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


def _lower(outcomes: Outcomes, network: str, low: str, high: str) -> Judgement:
    """Localization error."""
    own = outcomes.where(network=network)
    errors = [own.measured("localization", name, "error") for name in (low, high)]
    return Judgement(
        compare(errors[1], errors[0]),
        "; ".join(f"{NAMES[name]} {spread(values)}" for name, values in zip((low, high), errors, strict=True))
        + f"; {spread(own.measured('localization', 'right'))} are classified right",
    )


def cam_localizes(outcomes: Outcomes) -> Judgement:
    return _lower(outcomes, "ResNet", "cam", "saliency")


def grad_cam_localizes(outcomes: Outcomes) -> Judgement:
    return _lower(outcomes, "VGG", "grad_cam", "saliency")


def tells_classes_apart(outcomes: Outcomes) -> Judgement:
    values = {}
    for name in ("guided_grad_cam", "guided_backprop"):
        by_network = [own.measured("two_objects", name) for _, own in outcomes.groups("network")]
        values[name] = [statistics.mean(column) for column in zip(*by_network, strict=True)]  # one a seed
    return Judgement(
        compare(values["guided_grad_cam"], values["guided_backprop"], by=0.1),
        "; ".join(f"{NAMES[name]} {spread(found)}" for name, found in values.items()),
    )


def agrees_with_occlusion(outcomes: Outcomes) -> Judgement:
    own = outcomes.where(network="VGG")
    values = {name: own.measured("faithfulness", name, "occlusion") for name in ("grad_cam", "guided_backprop")}
    return Judgement(
        compare(*values.values()),
        "; ".join(f"{NAMES[name]} {spread(found, percent=False, digits=3)}" for name, found in values.items()),
    )


def _half_way(outcome: Outcome, name: str) -> float:
    """Rank correlation after the upper half of the layers is drawn anew."""
    found = outcome.measured.get("sanity", {}).get(name)
    return found[(len(found) - 1) // 2] if found else float("nan")


def insensitive(outcomes: Outcomes) -> Judgement:
    values = {
        name: [_half_way(o, name) for o in outcomes.where(network="VGG")] for name in ("guided_backprop", "grad_cam")
    }
    return Judgement(
        compare(*values.values(), by=0.2),
        "; ".join(f"{NAMES[name]} {spread(found, percent=False, digits=2)}" for name, found in values.items()),
    )


def effective_field(outcomes: Outcomes) -> Judgement:
    own = outcomes.where(network="ResNet").results("effective")
    before, after = ([one[when]["size"] for one in own] for when in ("before", "after"))
    whole = [statistics.mean(one["theoretical"]) for one in own]
    limit = [2 / 3 * size for size in whole]
    return Judgement(
        all_of([compare(limit, after), compare(after, before)]),
        f"theoretical {spread(whole, percent=False, digits=0)} pixels; effective "
        f"{spread(before, percent=False)} before and {spread(after, percent=False)} after training",
    )


# -- tables --------------------------------------------------------------------------------------------------------


def _methods(outcomes: Outcomes, measure: str) -> list[str]:
    """That were measured on some network, in the order of NAMES."""
    return [name for name in NAMES if any(name in o.measured.get(measure, {}) for o in outcomes)]


def _table(
    outcomes: Outcomes, title: str, measure: str, paths: Sequence[tuple[str, tuple[str, ...]]], percent: bool
) -> Table:
    """A method a row; for each network and (name, keys below the method) a column."""
    networks, rows = outcomes.distinct("network"), []
    for name in _methods(outcomes, measure):
        cells = [
            spread(values, percent=percent, digits=1 if percent else 3) if finite(values) else "—"
            for _, own in outcomes.groups("network")
            for _, path in paths
            if (values := own.measured(measure, name, *path))
        ]
        rows += [[NAMES[name], *cells]] if set(cells) != {"—"} else []
    return Table(
        title,
        ["method", *(f"{network}{', ' if name else ''}{name}" for network in networks for name, _ in paths)],
        rows,
    )


def tables(outcomes: Outcomes) -> list[Table]:
    """Localization, two objects, faithfulness, sanity, published."""
    accuracy = [
        [
            network,
            f"{own[0].get('parameters'):,.0f}",
            spread(own.values("accuracy")),
            *(spread(own.measured("localization", name)) for name in ("chance", "middle")),
        ]
        for (network,), own in outcomes.groups("network")
    ]
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
        Table(
            "Networks",
            ("network", "parameters", "accuracy", "area of the object (pointing by chance)", "pointing at the middle"),
            accuracy,
        ),
        _table(outcomes, "Pointing game, one object", "localization", [("", ("pointing",))], True),
        _table(outcomes, "Pointing game, the one of two that is asked for", "two_objects", [("", ())], True),
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
            "Rank correlation with the trained network's map, upper half of the layers drawn anew",
            "half",
            [("", ())],
            False,
        ),
        Table("Published", ("what", "numbers", "source"), [list(row) for row in PUBLISHED]),
    ]


# -- pictures ------------------------------------------------------------------------------------------------------


def _color(name: str) -> Any:
    return (
        "0.55" if name == "random" else "black" if name == "occlusion" else colormaps["tab10"](list(NAMES).index(name))
    )


def draw_gallery(outcomes: Outcomes, figure: Any) -> None:
    """Three rows a network, a column a method."""
    seed = outcomes.distinct("seed")[0]
    own = outcomes.where(seed=seed).having("gallery")
    if not own:
        return
    columns = [name for name in NAMES if any(name in row["panels"] for o in own for row in o.measured["gallery"])]
    rows = []
    for outcome in own:
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
    """Bars: pointing with one object, and with two."""
    networks, panels = outcomes.distinct("network"), figure.subplots(1, 2, sharey=True)
    names = [name for name in _methods(outcomes, "localization") if name != "middle"]
    for axes, title, measure, path in (
        (panels[0], "one object", "localization", ("pointing",)),
        (panels[1], "two objects: the one that is asked for", "two_objects", ()),
    ):
        for i, network in enumerate(networks):
            values = [mean(outcomes.where(network=network).measured(measure, name, *path)) for name in names]
            axes.barh(
                [n + (i - 1) * 0.26 for n in range(len(names))],
                [100 * v for v in values],
                0.24,
                label=network,
                color=(BLUE, RED, YELLOW)[i % 3],
            )
        axes.set(title=title, xlabel="highest place is on the object (%)", xlim=(0, 100))
        middle = outcomes.where(network=networks[0]).measured(measure, "middle")
        axes.axvline(100 * mean(middle), color="0.5", linestyle=":")
        tidy(axes)
    panels[0].set_yticks(range(len(names)), [NAMES[name] for name in names])
    panels[0].invert_yaxis()
    panels[1].legend(
        frameon=False,
        fontsize=9,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title="dotted: the middle",
        title_fontsize=9,
    )


def draw_curves(outcomes: Outcomes, figure: Any) -> None:
    """A row deletion and insertion, a column a network."""
    networks = outcomes.distinct("network")
    grid = figure.subplots(2, len(networks), sharex=True, sharey=True, squeeze=False)
    for line, kind in zip(grid, ("deletion", "insertion"), strict=True):
        for axes, network in zip(line, networks, strict=True):
            own = outcomes.where(network=network).results("faithfulness")
            for name in NAMES:
                curves = [one[name][f"{kind}_curve"] for one in own if name in one]
                if curves:
                    points = [statistics.mean(same) for same in zip(*curves, strict=True)]
                    axes.plot(
                        [100 * i / (len(points) - 1) for i in range(len(points))],
                        points,
                        label=NAMES[name],
                        color=_color(name),
                        linestyle="--" if name in ("random", "occlusion") else "-",
                    )
            axes.set_title(f"{network}, {kind}", fontsize=9)
            tidy(axes)
        line[0].set_ylabel("probability of the class")
    for axes in grid[-1]:
        axes.set_xlabel("pixels changed (%)")
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="outside right center")


def draw_sanity(outcomes: Outcomes, figure: Any) -> None:
    """A panel a network: rank correlation by how many layers are new."""
    networks = outcomes.distinct("network")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        own = outcomes.where(network=network).results("sanity")
        for name in NAMES:
            curves = [one[name] for one in own if name in one]
            if curves:
                points = [1.0, *(statistics.mean(same) for same in zip(*curves, strict=True))]
                axes.plot(range(len(points)), points, label=NAMES[name], color=_color(name), marker=".")
        axes.set(title=network, xlabel="layers drawn anew, from the logits down")
        tidy(axes)
    panels[0].set_ylabel("rank correlation with the trained network's map")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=9, loc="outside right center")


def draw_effective(outcomes: Outcomes, figure: Any) -> None:
    """A column a network: before and after training."""
    own = outcomes.where(seed=outcomes.distinct("seed")[0]).having("effective")
    if not own:
        return
    grid = figure.subplots(2, len(own), squeeze=False)
    for line, when in zip(grid, ("before", "after"), strict=True):
        for axes, outcome in zip(line, own, strict=True):
            found = outcome.measured["effective"]
            heat = from_png(found[when]["map"]) / 255
            drawn = axes.imshow(heat, cmap="gray", vmin=0, vmax=1)
            if found["box"]:  # within the canvas
                overlays.draw_box(axes, np.clip(found["box"], 0, [*heat.shape, *heat.shape]))
            size = "all of it" if found["theoretical"] is None else f"{found['theoretical'][0]} pixels"
            axes.set_title(
                f"{outcome.labels['network']}, {found['endpoint']}, {when} training\n"
                f"effective {found[when]['size']:.1f} pixels,\ntheoretical {size}",
                fontsize=9,
            )
            axes.set_xticks([])
            axes.set_yticks([])
    figure.colorbar(drawn, ax=grid, shrink=0.6, label="|gradient| of the unit, share of the largest")
